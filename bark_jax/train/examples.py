"""Rows of a corpus → what a network is fed and asked, integer for integer as in generation.

Every example is built by the prompt functions that generation calls (`semantic.prompt`, `coarse.prompt`,
`fine.prompt`, `tokens.fine_windows`), so that a position, a pad or a window cannot mean one thing in training and
another in speech. Host code, numpy only; knows nothing of files, batches over a corpus, networks or losses.

What each stage learns:

* text: the whole clip after its text, over the history of another clip; the end of speech once, where it belongs.
* coarse: one of the windows that generation would form, at a random place of the clip; by default all coarse tokens of
  its prompt are targets, since each of them stands where generation would draw it when its window was young.
* fine: one codebook of one window; the codebooks below are the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bark_jax import coarse, fine, semantic, tokens
from bark_jax.config import BarkConfig

IGNORE = -1
"""Target of a position that is not trained."""

SHORTEST_S = 1.05
"""Least seconds of a history: below 1.01 s a voice's lengths are no longer consistent after rounding (`Voice`)."""

LONGEST_ASTRAY = 30
"""Most frames of a stretch of `astray`: 0.4 s, about a word. Chosen, not tuned."""


@dataclass(frozen=True)
class Row:
    """One clip.

    Attributes:
      id: its name in the corpus.
      text: what is said; None where no text is needed.
      text_ids: (text_length,) int32, see `bark_jax.text.encode`; only for the text stage.
      voice: the speaker; clips of one speaker serve each other as history. None: nobody's.
      semantic: (n,) int32.
      fine: (n_codebooks, F) int32, F = `tokens.n_frames`; the first codebooks alone are enough for the coarse stage,
        and none (0, 0) for the text stage.
    """

    id: str
    text: str | None
    text_ids: np.ndarray | None
    voice: str | None
    semantic: np.ndarray
    fine: np.ndarray
    places: np.ndarray | None = None
    """(n,) int32: how many text ids have begun by then, see `bark_jax.train.alignment.align`; None: not known."""


NOWHERE = np.zeros(0, np.int32)
"""Places of an example whose places are not known."""


class Example(NamedTuple):
    """One sequence: the target at a position is what the network must predict from the inputs up to it."""

    inputs: np.ndarray
    """int32. text: (2, T), text ids, infer token and semantic ids over history ids (`IGNORE` behind them). coarse:
    (T,). fine: (window, n_codebooks)."""
    targets: np.ndarray
    """(T,) int32, the id to predict, or `IGNORE`."""
    codebook: int
    """fine: which codebook the targets are; 0 in the other stages."""
    places: np.ndarray = NOWHERE
    """text, where they are known: (T,) int32, text ids that had begun at the semantic id that is fed; else (0,)."""


class Batch(NamedTuple):
    """Examples of one length, stacked: inputs (B, ...), targets (B, T), codebook (B,), the corpus's row (B,), places
    (B, T) or (B, 0).

    numpy's arrays on the host, JAX's on a device.
    """

    inputs: Any
    targets: Any
    codebook: Any
    rows: Any
    places: Any


@dataclass(frozen=True)
class Options:
    """What may be chosen about examples.

    Attributes:
      coarse_targets: "all" coarse tokens of a prompt, or only those of the "window" that generation draws from it (at
        most 60 of them: exact to the last alignment, and some ten times slower to learn from).
      max_coarse_history: "full" as generation's default, or "random" (from one window to full) for a model that will be
        run with shorter histories too.
      joined: of the text stage, how likely a row goes on with another one of its voice, and that one with a third, see
        `join`.
      text_noise: share of the clip's semantic ids that the text stage is shown wrongly, see `astray`.
      coarse_noise: share of the clip's frames that a coarse prompt shows wrongly, the same way.
      bare: share of the text and coarse prompts that show padding in place of the text or of all semantic ids, see
        `bare`.
      codebooks: of the fine stage, which are trained; None: those that follow the coarse ones, as generation asks.
    """

    coarse_targets: str = "all"
    max_coarse_history: str = "full"
    joined: float = 0.0
    text_noise: float = 0.0
    coarse_noise: float = 0.0
    bare: float = 0.0
    codebooks: tuple[int, ...] | None = None


def example(
    stage: str,
    config: BarkConfig,
    row: Row,
    history: Row | None,
    rng: np.random.Generator,
    options: Options = Options(),
) -> Example:
    """One example of a row ("text", "coarse" or "fine").

    Args:
      history: another clip of the same speaker, of which a random length counts; None: none.
      rng: decides on that length, on the window, and on the codebook.
    """
    past = None if history is None else shorten(config, history, rng)
    if stage == "text":
        said = astray(row.semantic[None], options.text_noise, rng)[0] if options.text_noise > 0 else None
        made = text_example(config, row, past, shown=said)
        return bare(stage, config, made) if rng.random() < options.bare else made
    if stage == "coarse":
        stage_config = config.coarse
        most = stage_config.max_history
        if options.max_coarse_history == "random":
            most = int(rng.integers(stage_config.window, most + 1))
        n_windows = math.ceil(tokens.n_coarse_tokens(stage_config, len(row.semantic)) / stage_config.window)
        step = int(rng.integers(n_windows)) * stage_config.window
        shown = None
        if options.coarse_noise > 0:
            shown = astray(row.fine[: stage_config.n_codebooks], options.coarse_noise, rng)
        made = coarse_example(config, row, past, step, most, whole=options.coarse_targets == "all", shown=shown)
        return bare(stage, config, made) if rng.random() < options.bare else made
    codebooks = options.codebooks or range(config.coarse.n_codebooks, config.fine.n_codebooks)
    n_history = 0 if past is None else min(past.fine.shape[1], config.fine.max_history)
    n_windows = len(tokens.fine_windows(config.fine, row.fine.shape[1], n_history))
    beyond = rng.integers(0, config.fine.codebook_size, (config.fine.window, config.fine.n_codebooks))
    return fine_example(config, row, past, int(rng.integers(n_windows)), int(rng.choice(codebooks)), beyond)


def shortest(config: BarkConfig) -> int:
    """Least semantic ids of a clip that may serve as history (53 for Bark)."""
    return math.ceil(SHORTEST_S * config.semantic.rate_hz)


def shorten(config: BarkConfig, history: Row, rng: np.random.Generator) -> Row | None:
    """The end of a clip, of random length; None for a clip too short to be a history."""
    n = len(history.semantic)
    least = shortest(config)
    if n < least:
        return None
    kept = int(rng.integers(least, n + 1))
    frames = min(tokens.n_frames(config.coarse, kept), history.fine.shape[1])
    codes = history.fine[:, history.fine.shape[1] - frames :]
    return Row(history.id, None, None, history.voice, history.semantic[n - kept :], codes)


def join(config: BarkConfig, row: Row, other: Row) -> Row | None:
    """Two clips of one voice as one, for the text stage: both texts, then the units of both; None if they do not fit.

    Short clips alone teach nothing of what comes late in a long text.
    """
    stage = config.semantic
    if row.text_ids is None or other.text_ids is None:
        raise ValueError(f"row {row.id} or {other.id} has no text ids: the text stage needs them")
    first, second = (ids[ids != stage.text_pad_token] for ids in (row.text_ids, other.text_ids))
    if len(first) + len(second) > stage.text_length or len(row.semantic) + len(other.semantic) > stage.max_tokens:
        return None
    text_ids = np.full_like(row.text_ids, stage.text_pad_token)
    text_ids[: len(first) + len(second)] = np.concatenate([first, second])
    text = None if row.text is None or other.text is None else f"{row.text} {other.text}"
    places = None
    if row.places is not None and other.places is not None:
        places = np.concatenate([row.places, len(first) + other.places])
    semantic_ids = np.concatenate([row.semantic, other.semantic])
    return Row(row.id, text, text_ids, row.voice, semantic_ids, row.fine, places)


def text_example(config: BarkConfig, row: Row, history: Row | None, *, shown: np.ndarray | None = None) -> Example:
    """Text (and history) → the clip's semantic ids and, unless they fill the model's limit, the end of speech.

    Args:
      shown: (n,) ids that are fed in place of the clip's own, as `astray` makes them.
    """
    stage = config.semantic
    if row.text_ids is None:
        raise ValueError(f"row {row.id} has no text ids: the text stage needs them")
    prompt = semantic.prompt(stage, row.text_ids, None if history is None else history.semantic)
    drawn = np.append(row.semantic, stage.pad_token)[: stage.max_tokens]
    shown = row.semantic if shown is None else shown
    fed = np.concatenate([[stage.infer_token], shown[: len(drawn) - 1]])
    inputs = np.full((2, stage.text_length + len(drawn)), IGNORE, np.int32)
    inputs[:, : stage.text_length] = prompt
    inputs[0, stage.text_length :] = fed
    targets = _after(stage.text_length, drawn)
    if row.places is None:
        return Example(inputs, targets, 0)
    return Example(inputs, targets, 0, _after(stage.text_length, np.append(0, row.places)[: len(drawn)]))


def coarse_example(
    config: BarkConfig,
    row: Row,
    history: Row | None,
    step: int,
    max_history: int,
    *,
    whole: bool = True,
    shown: np.ndarray | None = None,
) -> Example:
    """The window that begins at coarse token `step`.

    Args:
      whole: earlier tokens of its prompt are targets too.
      shown: (n_codebooks, F) codes that stand among the inputs in place of the clip's own, as `astray` makes them.
        What is asked stays true, but for a code whose frame shows another one in a codebook below: there is no right
        answer to that.
    """
    stage = config.coarse
    past = None if history is None else (history.semantic, history.fine[: stage.n_codebooks])
    prompt = coarse.prompt(stage, row.semantic, past, max_history)
    true = row.fine[: stage.n_codebooks]
    shown = true if shown is None else shown
    wrong = np.cumsum(shown != true, axis=0) > 0
    wrong = np.concatenate([np.zeros_like(wrong[:1]), wrong[:-1]])  # in a codebook below
    said, fed = (tokens.flatten_codes(stage, codes)[: prompt.n_tokens] for codes in (true, shown))
    asked = np.where(wrong.T.reshape(-1)[: prompt.n_tokens], IGNORE, said)

    so_far = lambda codes: np.concatenate([prompt.history, codes[: step + stage.window]])  # noqa: E731
    n_before = min(len(prompt.history) + step, max_history)
    first = len(prompt.history) + step - n_before
    targets = _after(stage.semantic_length, so_far(asked)[first:])
    if not whole:
        targets[: stage.semantic_length + n_before] = IGNORE
    window = prompt.window(stage, step)[1]
    inputs = np.concatenate([window, [stage.infer_token], so_far(fed)[first:-1]]).astype(np.int32)
    return Example(inputs, targets, 0)


def astray(codes: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Codes (n_codebooks, F) with `share` of the frames (or fewer: stretches may meet) from elsewhere in the same clip.

    That is what a coarse prompt looks like when generation has lost its way: the right voice, saying something else. A
    network that has only met true prompts goes on with what it hears there (exposure bias; scheduled sampling, Bengio
    et al. 2015, is the usual remedy, and needs a second pass). One that has met these goes back to the semantic tokens.
    The same is done to semantic ids (1, n), for one that goes back to its text.
    """
    n = codes.shape[1]
    shown = codes.copy()
    left = round(share * n)
    while left > 0:
        length = int(rng.integers(1, min(LONGEST_ASTRAY, left) + 1))
        to, source = rng.integers(0, n - length + 1, 2)
        shown[:, to : to + length] = codes[:, source : source + length]
        left -= length
    return shown


def bare(stage: str, config: BarkConfig, made: Example) -> Example:
    """A text or coarse example without its text or semantic ids: what generation with guidance asks besides."""
    shown, pad = told(stage, config)
    inputs = made.inputs.copy()
    inputs[shown] = pad
    return made._replace(inputs=inputs, places=np.full_like(made.places, IGNORE))


def told(stage: str, config: BarkConfig) -> tuple[tuple[int | slice, ...], int]:
    """Where the inputs of an example have the text or the semantic ids, and what stands there without any."""
    if stage == "text":
        return (0, slice(config.semantic.text_length)), config.semantic.text_pad_token
    return (slice(config.coarse.semantic_length),), config.coarse.semantic_pad_token


def fine_example(
    config: BarkConfig, row: Row, history: Row | None, window: int, codebook: int, beyond: np.ndarray
) -> Example:
    """One codebook of pass number `window`, the codebooks below it being the true ones.

    Args:
      beyond: (config.fine.window, n_codebooks) codes that stand in frames past the clip's end, in codebooks that have
        been filled already: generation draws some there too, and feeds them on. Random ones teach the network not to
        mind.

    Where windows overlap, generation draws codes again that an earlier pass has filled, with those among its inputs. So
    does training: a network that was never asked to keep them would change them.
    """
    stage = config.fine
    n_given = config.coarse.n_codebooks
    state = fine.prompt(stage, row.fine[:n_given], None if history is None else history.fine)
    at = state.windows[window]
    frames = slice(at.start, at.start + stage.window)
    length = len(state.codes)
    end = state.n_history + state.n_frames

    truth = np.full((length, stage.n_codebooks), stage.pad_token, np.int32)
    truth[: state.n_history] = state.codes[: state.n_history]
    truth[state.n_history : end] = row.fine.T
    filled = state.windows[window - 1].start + stage.window if window else state.n_history
    known = np.arange(length) < filled

    codes = np.where(known[:, None], truth, state.codes)
    below = slice(n_given, codebook)
    codes[:, below] = truth[:, below]
    codes = codes[frames]
    place = np.arange(at.start, at.start + stage.window)
    codes[place >= end, below] = beyond[place >= end, below]
    codes[:, codebook + 1 :] = stage.pad_token  # not looked at
    asked = (place >= at.fill) & (place < end)
    targets = np.where(asked, truth[frames, codebook], IGNORE).astype(np.int32)
    return Example(codes, targets, codebook)


def _after(n: int, drawn: np.ndarray) -> np.ndarray:
    """Targets: nothing at the first n positions, then what was drawn."""
    return np.concatenate([np.full(n, IGNORE), drawn]).astype(np.int32)


def length(made: Example) -> int:
    """Positions of an example."""
    return len(made.targets)


def longest(stage: str, config: BarkConfig) -> int:
    """Most positions that an example of `stage` can have."""
    if stage == "text":
        return config.semantic.text_length + config.semantic.max_tokens
    if stage == "coarse":
        return config.coarse.semantic_length + config.coarse.max_history + config.coarse.window
    return config.fine.window


def collate(stage: str, config: BarkConfig, examples: Sequence[Example], rows: Sequence[int], length: int) -> Batch:
    """Stack examples, the causal stages' padded on the right to `length` positions (what follows is invisible)."""
    targets = np.full((len(examples), length), IGNORE, np.int32)
    for i, one in enumerate(examples):
        targets[i, : len(one.targets)] = one.targets
    if stage == "fine":
        inputs = np.stack([one.inputs for one in examples])
    else:
        pad = config.semantic.pad_token if stage == "text" else config.coarse.semantic_pad_token
        inputs = np.full((len(examples), *examples[0].inputs.shape[:-1], length), pad, np.int32)
        for i, one in enumerate(examples):
            inputs[i, ..., : one.inputs.shape[-1]] = one.inputs
    codebook = np.array([one.codebook for one in examples], np.int32)
    places = np.full((len(examples), length if any(len(one.places) for one in examples) else 0), IGNORE, np.int32)
    for i, one in enumerate(examples):
        places[i, : len(one.places)] = one.places
    return Batch(inputs, targets, codebook, np.array(rows, np.int32), places)
