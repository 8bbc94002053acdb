"""Stage 3: the codes of the first codebooks (and a voice) → the codes of all codebooks.

Takes and gives codes; knows the network and Suno's overlapping windows (`tokens.fine_windows`), and nothing of text,
voices as files, or audio. As in every stage module: *prompt*, *state*, *step*, *generate*. Attention here is not
causal, so there is no cache: each codebook of each window is one pass over all of the window's frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import FineConfig
from bark_jax.flat import Weights, platform
from bark_jax.gpt import FineGPT
from bark_jax.rows import Rows, together
from bark_jax.sampling import Draw
from bark_jax.settings import Sampling

# --- prompt and state -------------------------------------------------------------------------------------------------


@dataclass
class State:
    """One row, on the host: filled in place, window by window."""

    codes: np.ndarray
    """(L, n_codebooks) int32, L ≥ window: the voice's frames, the clip's, and padding."""
    n_history: int
    n_frames: int
    windows: list[tokens.FineWindow]

    @property
    def result(self) -> np.ndarray:
        """The clip's codes (n_codebooks, n_frames)."""
        return self.codes[self.n_history : self.n_history + self.n_frames].T


def prompt(config: FineConfig, codes: np.ndarray, history: np.ndarray | None) -> State:
    """A row from codes (n_given, F) and a voice's codes (n_codebooks, F'), whose last max_history frames count."""
    n_given, n_frames = codes.shape
    n_history = 0 if history is None else min(history.shape[1], config.max_history)
    length = max(n_history + n_frames, config.window)
    buffer = np.full((length, config.n_codebooks), config.pad_token, np.int32)
    if history is not None:
        buffer[:n_history] = history[:, history.shape[1] - n_history :].T
    buffer[n_history : n_history + n_frames, :n_given] = codes.T
    windows = tokens.fine_windows(config, n_frames, n_history) if n_frames else []
    return State(buffer, n_history, n_frames, windows)


# --- step -------------------------------------------------------------------------------------------------------------


def step(
    network: FineGPT,
    config: FineConfig,
    codebook: jax.Array,
    below: jax.Array,
    codes: jax.Array,
    fill: jax.Array,
    temperature: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """Predict one codebook of a window.

    Args:
      below: (B, window, D) summed embeddings of the codebooks below.
      codes: (B, window) int32 what the window holds for this codebook now; it counts as input too.
      fill: (B,) int32, frames before it stay as they are.
      noise: (B, window, codebook_size) Gumbel noise.

    Returns:
      (B, window) int32, the codes from `fill` on replaced.
    """
    logits = network.logits(codebook, below + network.embed(codebook, codes))[..., : config.codebook_size]
    per_frame = jax.vmap(sampling.draw, in_axes=(0, 0, None))
    drawn = jax.vmap(per_frame)(logits, noise, temperature)
    return jnp.where(jnp.arange(config.window)[None] >= fill[:, None], drawn, codes)


# --- generate ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("config", "n_given"))
def advance(
    weights: Weights,
    config: FineConfig,
    codes: jax.Array,
    fill: jax.Array,
    draw: Draw,
    keys: jax.Array,
    window: jax.Array,
    *,
    n_given: int,
) -> jax.Array:
    """One window of every row: codes (B, window, n_codebooks) int32 → the same, codebooks n_given .. filled.

    `window` (B,) int32 is each row's number of its window, for the noise.
    """
    network: FineGPT = weights.module
    below = network.embed(0, codes[:, :, 0])
    for q in range(1, n_given):
        below = below + network.embed(q, codes[:, :, q])
    noise_shape = (config.window, config.codebook_size)

    def body(below: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codebook, old = x
        noise = sampling.gumbel(keys, window * config.n_codebooks + codebook, noise_shape)
        new = step(network, config, codebook, below, old, fill, draw.temperature, noise)
        return below + network.embed(codebook, new), new

    wanted = jnp.arange(n_given, config.n_codebooks)
    _, filled = lax.scan(body, below, (wanted, codes[:, :, n_given:].transpose(2, 0, 1)))
    return jnp.concatenate([codes[:, :, :n_given], filled.transpose(1, 2, 0)], axis=2)


def generate(
    weights: Weights,
    config: FineConfig,
    states: Sequence[State],
    settings: Sequence[Sampling],
    keys: np.ndarray,
    *,
    n_given: int = 2,
    rows: int | None = None,
    narrows: bool = False,
    networks: Callable[[Sequence[int | None]], Weights] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Codes (n_codebooks, F) int32 of any number of clips, a window of some of them at a time; the longest first.

    Args:
      weights: of the network.
      states: N ≥ 1 clips, see `prompt`; they are filled in place.
      settings: N of them.
      keys: (N, 2) uint32, see `sampling.stage_keys`.
      n_given: codebooks that the clips bring along.
      rows: most clips at a time, see `together`; None: N.
      narrows: whether the batch may become narrower at the end, see `Rows`.
      networks: the network for a batch whose rows have these requests, where rows differ; None: `weights` for all.
      progress: called with (windows so far, windows) of all clips.
    """
    n = len(states)
    order = sorted((i for i in range(n) if states[i].windows), key=lambda i: -len(states[i].windows))
    batch = Rows(order, together(rows or n, platform(weights.leaves[0])), narrows=narrows)
    networks = networks or (lambda owners: weights)
    n_windows, n_done = sum(len(state.windows) for state in states), 0
    at = [0] * n
    while n_done < n_windows:
        batch.narrow()
        batch.admit()
        owned = batch.owned
        now = batch.requests
        fill(
            networks(batch.owners),
            config,
            [None if i is None else (states[i], states[i].windows[at[i]]) for i in batch.owners],
            [settings[i] for i in now],
            keys[now],
            [at[i] for i in now],
            n_given=n_given,
        )
        for i in owned.values():
            at[i] += 1
            if at[i] == len(states[i].windows):
                batch.release(i)
        n_done += len(owned)
        if progress:
            progress(n_done, n_windows)
    return [state.result.copy() for state in states]


def fill(
    network: Weights,
    config: FineConfig,
    rows: Sequence[tuple[State, tokens.FineWindow] | None],
    settings: Sequence[Sampling],
    keys: np.ndarray,
    numbers: Sequence[int],
    *,
    n_given: int,
) -> None:
    """One pass: fill a window of each row's clip, in place; None is a passenger. `numbers` are for the noise."""
    codes = np.full((len(rows), config.window, config.n_codebooks), config.pad_token, np.int32)
    first = np.full(len(rows), config.window, np.int32)  # a passenger fills nothing
    for i, row in enumerate(rows):
        if row is not None:
            state, window = row
            codes[i] = state.codes[window.start : window.start + config.window]
            first[i] = window.fill - window.start
    draw, number = Draw.of(settings, "fine"), np.array(numbers, np.int32)
    filled = np.asarray(advance(network, config, codes, first, draw, keys, number, n_given=n_given))
    for row, new in zip(rows, filled, strict=True):
        if row is not None:
            state, window = row
            state.codes[window.start : window.start + config.window] = new


# --- piece by piece ---------------------------------------------------------------------------------------------------


class Growing:
    """A clip whose given codes arrive piece by piece; what can be filled already, and what of it is final.

    The windows are those of the whole clip, as soon as all frames of theirs are known: then they do not depend on how
    long the clip will be. A frame is final when no later window fills it again: the last window reaches back `hop`
    frames from the clip's end, wherever that will be. With a `look_ahead`, a window ends where the known frames do, and
    all of them are final but the last `look_ahead`: sooner, and not the codes of the whole clip.

    Args:
      history: (n_codebooks, F) of the voice, or None.
      most_frames: that the clip can have.
      look_ahead: frames; None: exact.
    """

    def __init__(
        self,
        config: FineConfig,
        n_given: int,
        history: np.ndarray | None,
        most_frames: int,
        look_ahead: int | None = None,
    ):
        self.config, self.look_ahead = config, look_ahead
        self.state = prompt(config, np.full((n_given, most_frames + config.window), config.pad_token), history)
        self.state.n_frames = 0
        self.final = 0
        """Frames of the clip that will not change."""
        self._passes = 0
        self._n_given = n_given

    def add(self, codes: np.ndarray) -> None:
        """The next frames (n_given, f)."""
        start = self.state.n_history + self.state.n_frames
        self.state.codes[start : start + codes.shape[1], : self._n_given] = codes.T
        self.state.n_frames += codes.shape[1]

    def due(self, *, whole: bool) -> Iterator[tuple[int, tokens.FineWindow]]:
        """Windows to `fill` now, with their numbers; `whole`: no more frames follow."""
        config, state = self.config, self.state
        known = state.n_history + state.n_frames
        if self.look_ahead is None:
            windows = tokens.fine_windows(config, state.n_frames, state.n_history) if state.n_frames else []
            # A voice that reaches beyond the overlap would let a window's beginning depend on the clip's end.
            steady = state.n_history <= config.window - config.hop
            while self._passes < len(windows):
                if not whole and not (steady and self._passes * config.hop + config.window <= known):
                    break
                yield self._passes, windows[self._passes]
                self._passes += 1
            self.final = (
                state.n_frames if whole else max(0, min(self._passes * config.hop, state.n_frames - config.hop))
            )
            return
        while self.final < state.n_frames:
            fill = state.n_history + self.final
            start = max(0, min(known - config.window, fill))
            yield self._passes, tokens.FineWindow(start, fill)
            self._passes += 1
            end = min(known, start + config.window)
            if end == known:
                self.final = state.n_frames if whole else max(self.final, state.n_frames - self.look_ahead)
                return
            self.final = end - state.n_history - self.look_ahead
