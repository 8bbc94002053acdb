"""Law 3: what the trainer feeds is what generation feeds, integer for integer.

The generators run as they are, with a network that answers from a script and writes down what it can see: at every
step the whole visible context, token by token with its position. So caches that grow, rings and windows are in it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import models
from bark_jax import coarse, config, fine, sampling, semantic, tokens
from bark_jax.gpt import KVCache
from bark_jax.settings import Sampling
from bark_jax.train import examples, loss
from bark_jax.train.examples import IGNORE, Row

SIZE = (1, 1, 4)
CONFIG = models.config(SIZE)
GREEDY = Sampling.greedy()


@jax.tree_util.register_pytree_node_class
class Script:
    """Stands where `Weights` stand: its module asks `answer` on the host what the network says."""

    def __init__(self, module: Any, leaves: Any = None):
        self.module = module
        self.leaves = (jnp.zeros(()),) if leaves is None else leaves

    def tree_flatten(self) -> Any:
        return self.leaves, self.module

    @classmethod
    def tree_unflatten(cls, module: Any, leaves: Any) -> Script:
        return cls(module, leaves)


class Causal:
    """A network whose cache holds what was fed: (sum of ids, sum of their squares, position, 1) per slot.

    Two ids are added at a position of the text prompt; sum and squares tell which two.
    """

    def __init__(self, stage_config: Any, answer: Callable[[int, np.ndarray], np.ndarray]):
        self.config, self.answer = stage_config.network, answer
        self.seen: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def embed(self, ids: jax.Array) -> jax.Array:
        ids = ids.astype(jnp.float32)
        return jnp.stack([ids, ids**2, 0 * ids, 0 * ids], axis=-1)

    def prefill(self, x: jax.Array) -> KVCache:
        keys = x.at[..., 2].set(jnp.arange(x.shape[1], dtype=jnp.float32)).at[..., 3].set(1)
        return KVCache((keys,), (keys,))

    def decode_step(self, cache: KVCache, token: Any, position: Any, slot: Any, visible: Any) -> Any:
        new = self.embed(token).at[:, 2].set(position).at[:, 3].set(1)
        keys = cache.keys[0].at[:, slot].set(new)
        shape = jax.ShapeDtypeStruct((len(token),), jnp.int32)
        said = io_callback(self._note, shape, keys, visible, ordered=True)
        return KVCache((keys,), cache.values), said

    def logits(self, said: jax.Array, start: int = 0, end: int | None = None) -> jax.Array:
        return jax.nn.one_hot(said, self.config.output_vocab_size)[:, start:end]

    def _note(self, keys: np.ndarray, visible: np.ndarray) -> np.ndarray:
        step = []
        for row, seen in zip(np.asarray(keys), np.asarray(visible), strict=True):
            context = row[seen]
            assert (context[:, 3] == 1).all(), "a slot is visible that was never written"
            step.append((context[np.argsort(context[:, 2])], seen))
        self.seen.append([context for context, _ in step])  # type: ignore[misc]
        return np.array([self.answer(b, context) for b, (context, _) in enumerate(step)], np.int32)


def row(n: int, seed: int, made: config.BarkConfig = CONFIG) -> Row:
    rng = np.random.default_rng(seed)
    stage = made.semantic
    ids = np.full(stage.text_length, stage.text_pad_token, np.int32)
    length = int(rng.integers(1, stage.text_length + 1))
    ids[:length] = stage.text_offset + rng.integers(0, stage.text_vocab_size, length)
    frames = tokens.n_frames(made.coarse, n)
    said = rng.integers(0, stage.vocab_size, n).astype(np.int32)
    codes = rng.integers(0, made.codec.codebook_size, (made.codec.n_codebooks, frames)).astype(np.int32)
    return Row(f"row {seed}", "text", ids, "v", said, codes)


def keys(n: int, stage: str) -> np.ndarray:
    return sampling.stage_keys([0] * n, stage)


def same_context(context: np.ndarray, inputs: np.ndarray) -> None:
    """`inputs` (T,) or (2, T) is what `context` (T, 4) holds, at positions 0 .. T-1."""
    pair = inputs if inputs.ndim == 2 else np.stack([inputs, np.full_like(inputs, IGNORE)])
    pair = np.where(pair == IGNORE, 0, pair).astype(np.float64)
    np.testing.assert_array_equal(context[:, 2], np.arange(inputs.shape[-1]))
    np.testing.assert_array_equal(context[:, 0], pair.sum(axis=0))
    np.testing.assert_array_equal(context[:, 1], (pair**2).sum(axis=0))


HISTORIES = [None, 1, 31, 32, 33, 60]


@pytest.mark.parametrize("n", [1, 7, 224])
def test_text_is_fed_as_in_generation(n: int) -> None:
    rows = [row(max(1, n - i), 100 * n + i) for i in range(len(HISTORIES))]
    histories = [None if h is None else row(h, h) for h in HISTORIES]
    made = [examples.text_example(CONFIG, r, h) for r, h in zip(rows, histories, strict=True)]
    stage = CONFIG.semantic

    def answer(b: int, context: np.ndarray) -> int:
        at = len(context) - 1
        return made[b].targets[at] if at < len(made[b].targets) else 0

    network = Causal(stage, answer)
    prompts = [
        semantic.prompt(stage, r.text_ids, None if h is None else h.semantic)
        for r, h in zip(rows, histories, strict=True)
    ]
    said, ended = semantic.generate(
        Script(network), stage, np.stack(prompts), [GREEDY] * len(rows), keys(len(rows), "semantic")
    )
    for b, one in enumerate(made):
        np.testing.assert_array_equal(said[b], rows[b].semantic)
        assert ended[b] == (len(rows[b].semantic) < stage.max_tokens)
        asked = np.flatnonzero(one.targets != IGNORE)
        assert len(asked) == len(said[b]) + ended[b], "every token once, and the end of speech once"
        np.testing.assert_array_equal(asked, stage.text_length + np.arange(len(asked)))
        for at in asked:
            same_context(network.seen[at - stage.text_length][b], one.inputs[:, : at + 1])


@pytest.mark.parametrize(("n", "most"), [(1, 120), (5, 12), (61, 30), (150, 120)])
def test_coarse_is_fed_as_in_generation(n: int, most: int) -> None:
    stage = CONFIG.coarse
    rows = [row(n + i, 10 * n + i) for i in range(3)]
    histories = [None, row(60, 1), row(131, 2)]
    prompts = [
        coarse.prompt(stage, r.semantic, None if h is None else (h.semantic, h.fine[:2]), most)
        for r, h in zip(rows, histories, strict=True)
    ]
    flat = [tokens.flatten_codes(stage, r.fine[:2]) for r in rows]
    order = sorted(range(3), key=lambda i: -len(flat[i]))  # the longest has the batch's first row
    calls = [0]

    def answer(row: int, context: np.ndarray) -> int:
        b, at = order[row], calls[0] // len(rows)
        calls[0] += 1
        return flat[b][at] if at < len(flat[b]) else stage.code_offset

    network = Causal(stage, answer)
    codes = coarse.generate(Script(network), stage, prompts, [GREEDY] * 3, keys(3, "coarse"))
    n_windows = 0
    for b, r in enumerate(rows):
        np.testing.assert_array_equal(codes[b], r.fine[:2])
        for step in range(0, len(flat[b]), stage.window):
            made = examples.coarse_example(CONFIG, r, histories[b], step, most, whole=False)
            everything = examples.coarse_example(CONFIG, r, histories[b], step, most)
            np.testing.assert_array_equal(made.inputs, everything.inputs)
            asked = np.flatnonzero(made.targets != IGNORE)
            np.testing.assert_array_equal(made.targets[asked], flat[b][step : step + stage.window])
            np.testing.assert_array_equal(everything.targets[asked], made.targets[asked])
            # Of all coarse tokens of the prompt, each but the last is the next position's input.
            every = np.flatnonzero(everything.targets != IGNORE)
            np.testing.assert_array_equal(every, np.arange(stage.semantic_length, len(made.targets)))
            np.testing.assert_array_equal(everything.targets[every[:-1]], made.inputs[every[1:]])
            for i, at in enumerate(asked):
                same_context(network.seen[step + i][order.index(b)], made.inputs[: at + 1])
            n_windows += 1
    assert n_windows >= 3


def test_coarse_noise_shows_other_codes_and_asks_the_true_ones() -> None:
    stage, r, h = CONFIG.coarse, row(150, 7), row(60, 1)
    shown = examples.astray(r.fine[:2], 0.3, np.random.default_rng(3))
    frames = shown.T[:, None] == r.fine[:2].T[None]
    assert frames.all(2).any(1).all(), "every frame is one of the clip's"
    wrong = (shown != r.fine[:2]).any(0)
    assert 0.1 < wrong.mean() <= 0.3
    flat, fed = (tokens.flatten_codes(stage, codes) for codes in (r.fine[:2], shown))
    for step in (0, stage.window, 3 * stage.window):
        plain = examples.coarse_example(CONFIG, r, h, step, 120)
        noisy = examples.coarse_example(CONFIG, r, h, step, 120, shown=shown)
        end = min(len(flat), step + stage.window)
        n = min(end, len(plain.inputs) - stage.semantic_length)  # of the clip's own tokens; before them, the history's
        np.testing.assert_array_equal(noisy.inputs[-n + 1 :], fed[end - n : end - 1])
        np.testing.assert_array_equal(noisy.inputs[: -n + 1], plain.inputs[: -n + 1])
        same = noisy.targets == plain.targets
        assert (noisy.targets[~same] == IGNORE).all()
        # Not asked: the second codebook of a frame whose first one shows another code.
        for i in range(n):
            token = end - n + i
            differs = token % 2 == 1 and shown[0, token // 2] != r.fine[0, token // 2]
            assert same[len(same) - n + i] != differs
    for share in (0.0, 0.001):
        np.testing.assert_array_equal(examples.astray(r.fine[:2], share, np.random.default_rng(0)), r.fine[:2])


def test_text_noise_shows_other_ids_and_asks_the_true_ones() -> None:
    stage, r, h = CONFIG.semantic, row(150, 7), row(60, 1)
    for n in (150, stage.max_tokens):  # with an end of speech, and without room for it
        r = row(n, 7)
        plain = examples.example("text", CONFIG, r, h, np.random.default_rng(0))
        noisy = examples.example("text", CONFIG, r, h, np.random.default_rng(0), examples.Options(text_noise=0.3))
        np.testing.assert_array_equal(noisy.targets, plain.targets)
        prompt = slice(stage.text_length + 1)
        np.testing.assert_array_equal(noisy.inputs[:, prompt], plain.inputs[:, prompt])
        wrong = noisy.inputs[0, stage.text_length + 1 :] != plain.inputs[0, stage.text_length + 1 :]
        assert 0.1 < wrong.mean() <= 0.3 and set(noisy.inputs[0, stage.text_length + 1 :]) <= set(r.semantic)


def test_two_clips_joined_are_both_one_after_the_other() -> None:
    stage = CONFIG.semantic
    short = [
        dataclasses.replace(row(60, seed), places=np.sort(np.arange(60, dtype=np.int32) % 5) + 1) for seed in (1, 7)
    ]
    for r, n in zip(short, (10, 12), strict=True):
        r.text_ids[n:] = stage.text_pad_token
        r.text_ids[:n] = stage.text_offset + np.arange(n)
    one, two = short
    both = examples.join(CONFIG, one, two)
    assert both is not None and both.id == one.id and both.text == "text text"
    said = np.concatenate([one.text_ids[:10], two.text_ids[:12]])
    np.testing.assert_array_equal(both.text_ids, [*said, *[stage.text_pad_token] * (stage.text_length - 22)])
    np.testing.assert_array_equal(both.semantic, np.concatenate([one.semantic, two.semantic]))
    np.testing.assert_array_equal(both.places, np.concatenate([one.places, two.places + 10]))
    assert (
        examples.join(CONFIG, both, dataclasses.replace(two, semantic=row(stage.max_tokens - 119, 3).semantic)) is None
    )
    assert examples.join(CONFIG, both, row(10, 2)) is None or (row(10, 2).text_ids != stage.text_pad_token).sum() <= 10
    # Nothing of it for a text that has no room: as many ids as fit exactly are taken, one more is refused.
    for n, fits in ((stage.text_length - 22, True), (stage.text_length - 21, False)):
        more = row(10, 2)
        more.text_ids[:] = stage.text_pad_token
        more.text_ids[:n] = stage.text_offset
        assert (examples.join(CONFIG, both, more) is not None) == fits


@pytest.mark.parametrize("stage", ["text", "coarse"])
def test_noise_is_drawn_anew_for_every_example(stage: str) -> None:
    r = row(4, 7)  # one window: nothing else is drawn

    def inputs(seed: int, noise: float) -> bytes:
        options = examples.Options(**{f"{stage}_noise": noise})  # type: ignore[arg-type]
        return examples.example(stage, CONFIG, r, None, np.random.default_rng(seed), options).inputs.tobytes()

    assert len({inputs(seed, 0.0) for seed in range(8)}) == 1
    assert inputs(0, 0.5) == inputs(0, 0.5)
    assert len({inputs(seed, 0.5) for seed in range(8)}) > 4


@pytest.mark.parametrize("stage", ["text", "coarse"])
def test_bare_examples_are_told_nothing_and_are_the_same_else(stage: str) -> None:
    r, h, bare = row(150, 7), row(60, 1), 0
    place, pad = examples.told(stage, CONFIG)
    for seed in range(200):
        plain, made = (
            examples.example(stage, CONFIG, r, h, np.random.default_rng(seed), examples.Options(bare=share))
            for share in (0.0, 0.3)
        )
        np.testing.assert_array_equal(made.targets, plain.targets)
        assert (plain.inputs[place] != pad).any()
        if (made.inputs != plain.inputs).any():
            expected = plain.inputs.copy()
            expected[place] = pad
            np.testing.assert_array_equal(made.inputs, expected)
            bare += 1
    assert 40 <= bare <= 80


class Fine:
    """A fine network whose embeddings are the codes themselves, one channel per codebook."""

    def __init__(self, stage_config: Any, answer: Callable[[int, int, int], np.ndarray]):
        self.stage, self.answer = stage_config, answer
        self.seen: list[tuple[int, np.ndarray]] = []

    def embed(self, codebook: Any, codes: jax.Array) -> jax.Array:
        return (codes[..., None] + 1) * (jnp.arange(self.stage.n_codebooks) == codebook)

    def logits(self, codebook: Any, x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
        said = io_callback(self._note, shape, codebook, x, ordered=True)
        return jax.nn.one_hot(said, self.stage.codebook_size)

    def _note(self, codebook: Any, x: np.ndarray) -> np.ndarray:
        window = len(self.seen) // (self.stage.n_codebooks - 2)
        self.seen.append((int(codebook), np.asarray(x) - 1))
        return np.stack([self.answer(b, int(codebook), window) for b in range(len(x))]).astype(np.int32)


@pytest.mark.parametrize("n", [1, 84, 128, 224])
def test_fine_is_fed_as_in_generation(n: int) -> None:
    stage = CONFIG.fine
    rows = [row(n, n + i) for i in range(4)]
    histories = [None, row(2, 1), row(30, 2), row(90, 3)]
    states = [
        fine.prompt(stage, r.fine[:2], None if h is None else h.fine) for r, h in zip(rows, histories, strict=True)
    ]
    rng = np.random.default_rng(0)
    beyond = rng.integers(0, stage.codebook_size, (stage.window, stage.n_codebooks))

    order = sorted(range(4), key=lambda i: -len(states[i].windows))
    passes = [(i, w) for i in order for w in range(len(states[i].windows))]

    def answer(b: int, codebook: int, number: int) -> np.ndarray:
        assert b == 0, "on CPUs a window at a time"
        b, window = passes[number]
        state = states[b]
        frames = state.windows[window].start + np.arange(stage.window) - state.n_history
        inside = (frames >= 0) & (frames < state.n_frames)
        truth = rows[b].fine[codebook][np.clip(frames, 0, state.n_frames - 1)]
        return np.where(inside, truth, beyond[:, codebook])

    network = Fine(stage, answer)
    filled = fine.generate(Script(network), stage, states, [GREEDY] * 4, keys(4, "fine"))
    for b, r in enumerate(rows):
        np.testing.assert_array_equal(filled[b], r.fine)
        asked = np.zeros((stage.n_codebooks, r.fine.shape[1]), int)
        for w, window in enumerate(states[b].windows):
            for codebook in range(2, stage.n_codebooks):
                made = examples.fine_example(CONFIG, r, histories[b], w, codebook, beyond)
                found, x = network.seen[passes.index((b, w)) * (stage.n_codebooks - 2) + codebook - 2]
                assert found == made.codebook == codebook
                np.testing.assert_array_equal(made.inputs[:, : codebook + 1], x[0][:, : codebook + 1])
                at = np.flatnonzero(made.targets != IGNORE)
                frames = window.start + at - states[b].n_history
                drawn = np.arange(window.fill - states[b].n_history, window.start - states[b].n_history + stage.window)
                np.testing.assert_array_equal(frames, drawn[drawn < r.fine.shape[1]])
                fresh = frames >= (states[b].windows[w - 1].start - states[b].n_history + stage.window if w else 0)
                np.testing.assert_array_equal(made.inputs[at, codebook] == stage.pad_token, fresh)
                np.testing.assert_array_equal(made.targets[at], r.fine[codebook][frames])
                asked[codebook][frames[fresh]] += 1
        assert (asked[2:] == 1).all(), "every code is asked exactly once without the answer among the inputs"


def test_numbers_of_bark_itself() -> None:
    """The layout written out by hand from Suno's constants, without any of our functions."""
    bark = config.suno((1, 1, 4))
    r = dataclasses.replace(row(40, 0, bark), text_ids=np.full(256, 129_595, np.int32))
    r.text_ids[:2] = 10_048 + 101, 10_048 + 102  # type: ignore[index]
    h = row(300, 1, bark)
    one = examples.text_example(bark, r, h)
    assert one.inputs.shape == (2, 256 + 41)
    assert list(one.inputs[0, :3]) == [10_149, 10_150, 129_595] and one.inputs[0, 256] == 129_599
    np.testing.assert_array_equal(one.inputs[1, :256], h.semantic[-256:])
    np.testing.assert_array_equal(one.inputs[0, 257:], r.semantic)
    np.testing.assert_array_equal(one.targets[256:], [*r.semantic, 10_000])
    assert (examples.text_example(bark, r, None).inputs[1, :256] == 10_000).all()

    # 300 semantic ids of history: 209 are shown, with round(209 · 3.006) = 628 coarse tokens, less one frame.
    two = examples.coarse_example(bark, r, h, 60, 630)
    start = 209 + round(60 / (75 / 49.9 * 2)) - 209
    np.testing.assert_array_equal(two.inputs[:256], [*np.append(h.semantic[-209:], r.semantic)[start:], *[12_048] * 27])
    interleaved = lambda codes: (codes[:2] + [[10_000], [11_024]]).T.reshape(-1)  # noqa: E731
    history = interleaved(h.fine)[-628:-2]
    said = interleaved(r.fine)
    before = np.append(history, said[:60])[-630:]
    np.testing.assert_array_equal(two.inputs[256:], [12_050, *before, *said[60:119]])
    np.testing.assert_array_equal(two.targets[-60:], said[60:120])


class TestOwnCodes:
    """`loss.own_codes`: a coarse batch that shows what the network draws."""

    STAGE = CONFIG.coarse

    def batch(self) -> examples.Batch:
        rows, histories = [row(n, n) for n in (9, 40, 150)], [None, row(60, 1), row(131, 2)]
        some = [
            examples.example("coarse", CONFIG, r, h, np.random.default_rng(i))
            for i, (r, h) in enumerate(zip(rows, histories, strict=True))
        ]
        length = max(len(one.targets) for one in some) + 3
        return jax.tree.map(jnp.asarray, examples.collate("coarse", CONFIG, some, range(3), length))

    def own(self, share: float, key: int = 0, batch: examples.Batch | None = None) -> examples.Batch:
        network = models.networks(CONFIG)["coarse"].module
        made = loss.own_codes(self.STAGE, network, batch or self.batch(), share, jax.random.key(key))
        return jax.tree.map(np.asarray, made)

    def test_nothing_changes_without_a_share(self) -> None:
        jax.tree.map(np.testing.assert_array_equal, self.own(0.0), self.batch())

    @pytest.mark.parametrize("share", [0.3, 1.0])
    def test_frames_change_and_spoilt_targets_are_not_asked(self, share: float) -> None:
        before, after = jax.tree.map(np.asarray, self.batch()), self.own(share)
        n, size, first = self.STAGE.semantic_length, self.STAGE.codebook_size, self.STAGE.code_offset
        same = after.inputs == before.inputs
        codes = (before.inputs >= first) & (before.inputs < first + 2 * size)
        codes[:, : n + 1] = False
        assert same[~codes].all()
        np.testing.assert_array_equal((after.inputs - first)[codes] // size, (before.inputs - first)[codes] // size)
        assert 0.8 * share < 1 - same[codes].mean() <= min(1.0, 1.3 * share)  # a draw may be the true one
        spoilt = ~same & codes & ((before.inputs - first) // size == 0)
        np.testing.assert_array_equal(after.targets, np.where(spoilt, IGNORE, before.targets))
        assert (self.own(share, key=1).inputs != after.inputs).any()

    def test_draws_are_the_networks(self) -> None:
        """Of a network that is sure of one code in each codebook, whatever it is fed."""
        sure = self.STAGE.code_offset + np.array([7, 64 + 5])
        logits = jnp.zeros(self.STAGE.network.output_vocab_size).at[sure].set(100.0)

        class Sure:
            def embed(self, ids: jax.Array) -> jax.Array:
                return ids[..., None]

            def hidden(self, x: jax.Array, start: int) -> jax.Array:
                return x[:, start:]

            def logits(self, hidden: jax.Array, a: int, b: int) -> jax.Array:
                return jnp.broadcast_to(logits[a:b], (*hidden.shape[:2], b - a))

        batch = self.batch()
        after = np.asarray(loss.own_codes(self.STAGE, Sure(), batch, 1.0, jax.random.key(0)).inputs)  # type: ignore[arg-type]
        shown = after[np.asarray(after != batch.inputs)]
        assert set(shown) == set(sure)


class Guided:
    """A text or coarse network that says one thing after a prompt, and another after padding alone."""

    def __init__(self, stage: str, shown: jax.Array, bare: jax.Array):
        part = {"text": CONFIG.semantic, "coarse": CONFIG.coarse}[stage]
        self.nothing = sum(self.pads(stage))
        self.width = part.network.output_vocab_size
        self.shown, self.bare = shown, bare
        self.lm_head = SimpleNamespace(weight={...: jnp.eye(self.width)})

    @staticmethod
    def pads(stage: str) -> list[int]:
        """What is added up where a prompt has nothing: the text stage adds its history to its text."""
        return [examples.told(stage, CONFIG)[1], *([CONFIG.semantic.pad_token] if stage == "text" else [])]

    def embed(self, ids: jax.Array) -> jax.Array:
        return ids

    def hidden(self, ids: jax.Array, start: int, **_: Any) -> jax.Array:
        sees = jnp.any(ids[:, :start] != self.nothing, axis=1)
        return jnp.where(sees[:, None, None], self.shown, self.bare) + 0.0 * ids[:, start:, None]

    def logits(self, hidden: jax.Array, a: int, b: int) -> jax.Array:
        return hidden[..., a:b]


class TestSmoothing:
    """`fine_smoothing`: codes near the true one are right as well."""

    size = 256
    vectors = np.random.default_rng(0).standard_normal((3, size, 16)) * np.array([4.0, 1.0, 0.1])[:, None, None]
    vectors = vectors * np.exp(0.5 * np.random.default_rng(3).standard_normal((3, size, 1)))  # short ones and long ones
    ids = np.random.default_rng(1).integers(0, size, (3, 50))

    def right(self, smoothing: float) -> np.ndarray:
        """How right each code is (Q, true, code), written out."""
        out = []
        for table in self.vectors:
            distance = np.square(table[:, None] - table).sum(-1) / (smoothing * np.square(table).sum(-1).mean())
            out.append(np.exp(-distance) / np.exp(-distance).sum(axis=1, keepdims=True))
        return np.stack(out)

    def smoothed(self, logits: np.ndarray, smoothing: float) -> jax.Array:
        scaled = loss.scaled(self.vectors.astype(np.float32), smoothing)
        return loss.smoothed(jnp.asarray(logits, jnp.float32), jnp.asarray(self.ids), jnp.asarray(scaled))

    @pytest.mark.parametrize("smoothing", [0.1, 0.33, 3.0])
    def test_it_is_the_cross_entropy_with_what_is_right(self, smoothing: float) -> None:
        logits = np.random.default_rng(2).standard_normal((3, 50, self.size))
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        right = np.stack([table[ids] for table, ids in zip(self.right(smoothing), self.ids, strict=True)])
        np.testing.assert_allclose(self.smoothed(logits, smoothing), -(right * likely).sum(-1), rtol=1e-4)

    def test_without_smoothing_only_the_true_code_is_right(self) -> None:
        logits = np.random.default_rng(2).standard_normal((3, 50, self.size))
        true = -jax.nn.log_softmax(jnp.asarray(logits))
        true = jnp.take_along_axis(true, jnp.asarray(self.ids)[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(self.smoothed(logits, 1e-4), true, rtol=1e-4, atol=1e-4)

    def test_what_is_not_known_is_left_out(self) -> None:
        """A network that knows nothing draws, sharpened, short codes; without smoothing, noise as loud as the true."""
        energy = np.square(self.vectors).sum(-1)
        distance = np.square(self.vectors[:, None] - self.vectors[:, :, None]).sum(-1).mean(axis=1)

        def drawn(smoothing: float) -> list[np.ndarray]:
            """Energy of what is drawn, and its distance from the true code: of the mean energy, for each codebook."""
            guess = self.right(smoothing).mean(axis=1) ** 4  # learnt of true codes that are all as likely
            guess /= guess.sum(axis=1, keepdims=True)
            return [(guess * x).sum(axis=1) / energy.mean(axis=1) for x in (energy, distance)]

        loud, far = drawn(1e-4)
        assert np.allclose(loud, 1) and np.all(far > 1.9)
        loud, far = drawn(0.33)
        assert np.all(loud < 0.35) and np.all(far < 1.35)

    def test_only_a_fine_stage_with_codebooks_is_smoothed(self) -> None:
        rng = np.random.default_rng(0)
        some = [examples.example("fine", CONFIG, row(40, i), None, rng) for i in range(3)]
        batch = jax.tree.map(jnp.asarray, examples.collate("fine", CONFIG, some, range(3), examples.length(some[0])))
        network = models.networks(CONFIG)["fine"].module
        size = (CONFIG.fine.n_codebooks, CONFIG.fine.codebook_size, 4)
        vectors = rng.standard_normal(size).astype(np.float32)
        plain, counts = loss.nll("fine", CONFIG, network, batch)
        near, same = loss.nll("fine", CONFIG, network, batch, vectors=loss.scaled(vectors, 1e-5))
        np.testing.assert_allclose(near, plain, rtol=1e-4)
        np.testing.assert_array_equal(counts, same)
        far, _ = loss.nll("fine", CONFIG, network, batch, vectors=loss.scaled(vectors, 0.33))
        assert np.all(np.abs(np.asarray(far - plain)) > 1e-3)


@pytest.mark.parametrize("stage", ["text", "coarse"])
class TestGuidance:
    """`guidance`: the network's output is taken for what guidance would draw from."""

    def nll(
        self,
        stage: str,
        guidance: float,
        shown: jax.Array,
        bare: jax.Array,
        *,
        sharpness: float = 1.0,
        only_shown: bool = False,
    ) -> jax.Array:
        rng = np.random.default_rng(0)
        some = [examples.example(stage, CONFIG, row(40, i), None, rng) for i in range(2)]
        if not only_shown:
            some[1] = examples.bare(stage, CONFIG, some[1])
        batch = examples.collate(stage, CONFIG, some, range(2), max(map(examples.length, some)))
        network = Guided(stage, shown, bare)
        how = {"guidance": guidance, "sharpness": sharpness}
        return loss.nll(stage, CONFIG, network, jax.tree.map(jnp.asarray, batch), **how)[0]

    def said(self, stage: str, seed: int) -> tuple[jax.Array, jax.Array]:
        shown, bare = jax.random.normal(jax.random.key(seed), (2, Guided(stage, 0, 0).width))  # type: ignore[arg-type]
        return shown, bare

    def test_the_loss_is_least_where_the_network_says_what_guidance_would(self, stage: str) -> None:
        likely, bare = self.said(stage, 0)
        for guidance in (1.0, 1.5, 3.0):
            said = bare + guidance * (likely - bare)
            least = self.nll(stage, 1.0, likely, bare)
            np.testing.assert_allclose(self.nll(stage, guidance, said, bare), least, rtol=1e-5)
            sharper = self.nll(stage, guidance, 1.75 * said, 1.75 * bare, sharpness=1.75)
            np.testing.assert_allclose(sharper, least, rtol=1e-5)
            assert np.abs(self.nll(stage, guidance, 1.75 * said, 1.75 * bare) - least).max() > 0.1

    def test_what_is_likely_without_a_prompt_is_learned_from_bare_prompts_alone(self, stage: str) -> None:
        shown, bare = self.said(stage, 1)

        def gradients(**options: bool) -> list[float]:
            found = jax.grad(lambda *x: jnp.sum(self.nll(stage, 3.0, *x, **options)), argnums=(0, 1))(shown, bare)
            return [float(jnp.abs(x).max()) for x in found]

        assert min(gradients()) > 0
        assert gradients(only_shown=True)[0] > 0 == gradients(only_shown=True)[1]
