"""Stage 3: the codes of the first codebooks (and a voice) → the codes of all codebooks.

Takes and gives codes; knows the network and Suno's overlapping windows (`tokens.fine_windows`), and nothing of text,
voices as files, or audio. As in every stage module: *prompt*, *state*, *step*, *generate*. Attention here is not
causal, so there is no cache: each codebook of each window is one pass over all of the window's frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import FineConfig
from bark_jax.flat import Weights
from bark_jax.gpt import FineGPT
from bark_jax.sampling import Draw, Sampling

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

    `window` () int32 is its number, for the noise.
    """
    network: FineGPT = weights.module
    below = network.embed(0, codes[:, :, 0])
    for q in range(1, n_given):
        below = below + network.embed(q, codes[:, :, q])
    noise_shape = (config.window, config.codebook_size)

    def body(below: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codebook, old = x
        steps = jnp.full(fill.shape, window * config.n_codebooks + codebook)
        noise = sampling.gumbel(keys, steps, noise_shape)
        new = step(network, config, codebook, below, old, fill, draw.temperature, noise)
        return below + network.embed(codebook, new), new

    wanted = jnp.arange(n_given, config.n_codebooks)
    _, filled = lax.scan(body, below, (wanted, codes[:, :, n_given:].transpose(2, 0, 1)))
    return jnp.concatenate([codes[:, :, :n_given], filled.transpose(1, 2, 0)], axis=2)


def generate(
    weights: Weights,
    config: FineConfig,
    states: Sequence[State],
    rows: Sequence[Sampling],
    keys: jax.Array,
    *,
    n_given: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Codes (n_codebooks, F) int32 of a batch.

    Args:
      states: B rows, see `prompt`; they are filled in place.
      rows: B settings.
      keys: (B,) stage keys.
      n_given: codebooks that the rows bring along.
      progress: called with (windows so far, windows of the longest row).
    """
    draw = Draw.of(rows, "fine")
    n_windows = max((len(state.windows) for state in states), default=0)
    for w in range(n_windows):
        codes = np.full((len(states), config.window, config.n_codebooks), config.pad_token, np.int32)
        fill = np.full(len(states), config.window, np.int32)  # a finished row is a passenger that fills nothing
        for i, state in enumerate(states):
            if w < len(state.windows):
                window = state.windows[w]
                codes[i] = state.codes[window.start : window.start + config.window]
                fill[i] = window.fill - window.start
        filled = np.asarray(advance(weights, config, codes, fill, draw, keys, np.int32(w), n_given=n_given))
        for i, state in enumerate(states):
            if w < len(state.windows):
                start = state.windows[w].start
                state.codes[start : start + config.window] = filled[i]
        if progress:
            progress(w + 1, n_windows)
    return [state.result.copy() for state in states]


def idle(config: FineConfig) -> State:
    """A row that asks for nothing."""
    return prompt(config, np.zeros((config.network.n_codes_given, 0), np.int32), None)
