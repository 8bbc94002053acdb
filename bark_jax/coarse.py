"""Stage 2: semantic tokens (and a voice) → the codes of the first codebooks, in windows of 60 tokens.

Takes semantic ids and gives codes; knows the network, the cache and Suno's window rules (`tokens`), and nothing of
text, voices as files, or audio. As in every stage module: *prompt*, *state*, *step*, *generate*.

A window's prompt is a slice of semantic ids, the infer token, and the last coarse tokens. Suno computes every prompt
anew. Here a row whose prompt only grew since its last window (same semantic slice, no coarse token dropped: the first
11 windows without a voice) keeps its cache, which is the same numbers for much less work. Which way a row goes depends
on that row alone, so neighbours never change a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import CoarseConfig
from bark_jax.flat import Weights
from bark_jax.gpt import CausalGPT, KVCache
from bark_jax.sampling import Draw, Sampling

# --- prompt -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """One row's request, on the host."""

    semantic: np.ndarray
    """(n_history + n,) int32, the voice's ids first."""
    n_history: int
    history: np.ndarray
    """(h,) int32 coarse ids of the voice, h ≤ max_history."""
    n_tokens: int
    """Coarse tokens to generate."""
    max_history: int

    def window(self, config: CoarseConfig, step: int) -> tuple[int, np.ndarray]:
        """The semantic slice of the window that starts at coarse token `step`: its first index, and its ids."""
        return tokens.coarse_semantic_window(config, self.semantic, self.n_history, step, self.max_history)

    def extends(self, config: CoarseConfig, step: int) -> bool:
        """Whether the prompt at `step` is the one of the window before plus the tokens generated in it."""
        if step == 0 or len(self.history) + step > self.max_history:
            return False
        return self.window(config, step)[0] == self.window(config, step - config.window)[0]


def prompt(
    config: CoarseConfig,
    semantic: np.ndarray,
    history: tuple[np.ndarray, np.ndarray] | None,
    max_history: int,
) -> Prompt:
    """Build a row from semantic ids (n,) and a voice's (semantic ids, codes (n_codebooks, F)), if any."""
    past_semantic = past_coarse = np.zeros(0, np.int32)
    if history is not None:
        past_semantic, past_coarse = tokens.coarse_history(config, *history, max_history)
    return Prompt(
        semantic=np.concatenate([past_semantic, semantic]).astype(np.int32),
        n_history=len(past_semantic),
        history=past_coarse,
        n_tokens=tokens.n_coarse_tokens(config, len(semantic)),
        max_history=max_history,
    )


# --- state ------------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Everything a batch needs to go on.

    The cache has semantic_length + max_history slots for the prompt, from the left, and `window` slots behind them for
    the window's own tokens, written at one index shared by all rows.
    """

    cache: KVCache
    history: jax.Array
    """(B, max_history + window) int32 coarse ids before the current window, from the left."""
    n_history: jax.Array
    """(B,) int32, how many of them there are."""
    step: jax.Array
    """(B,) int32, coarse tokens generated so far."""


class Settings(NamedTuple):
    """What may differ from row to row, as arrays (B,)."""

    draw: Draw
    max_history: jax.Array

    @classmethod
    def of(cls, rows: Sequence[Sampling], prompts: Sequence[Prompt]) -> Settings:
        return cls(Draw.of(rows, "coarse"), jnp.asarray(np.array([p.max_history for p in prompts], np.int32)))


def start(config: CoarseConfig, prompts: Sequence[Prompt], dtype: Any) -> State:
    """The state before the first window; no prompt has been computed yet."""
    history = np.zeros((len(prompts), config.max_history + config.window), np.int32)
    for row, p in zip(history, prompts, strict=True):
        row[: len(p.history)] = p.history
    slots = config.semantic_length + config.max_history + config.window
    return State(
        cache=KVCache.zeros(config.network, len(prompts), slots, dtype),
        history=jnp.asarray(history),
        n_history=jnp.asarray(np.array([len(p.history) for p in prompts], np.int32)),
        step=jnp.zeros((len(prompts),), jnp.int32),
    )


@partial(jax.jit, static_argnames=("config", "history"), donate_argnames=("state",))
def fill(
    weights: Weights, config: CoarseConfig, state: State, semantic: jax.Array, chosen: jax.Array, *, history: bool
) -> State:
    """Compute the prompts of the chosen rows: semantic (B, semantic_length) int32, chosen (B,) bool.

    `history` is static: False computes only the semantic part, for rows that have no coarse token before them. All but
    a prompt's last token enter the cache; that one is fed by the first step of `advance`.
    """
    network: CausalGPT = weights.module
    ids = semantic
    if history:
        infer = jnp.full((len(semantic), 1), config.infer_token, jnp.int32)
        ids = jnp.concatenate([semantic, infer, state.history[:, : config.max_history - 1]], axis=1)
    filled = network.prefill(network.embed(ids))
    rows = jnp.repeat(chosen, config.network.n_head)[:, None, None]

    def merge(old: jax.Array, new: jax.Array) -> jax.Array:
        kept = old[:, : new.shape[1]]
        return lax.dynamic_update_slice(old, jnp.where(rows, new.astype(old.dtype), kept), (0, 0, 0))

    return state._replace(cache=jax.tree.map(merge, state.cache, filled))


@partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def extend(config: CoarseConfig, state: State, chosen: jax.Array) -> State:
    """For the chosen rows, move what the last window wrote to the end of the prompt, where it belongs from now on."""
    first = config.semantic_length + config.max_history
    # `advance` has counted the window's tokens already; its first slot held the last token of the prompt before.
    target = jnp.repeat(config.semantic_length + state.n_history - config.window, config.network.n_head)
    rows = jnp.repeat(chosen, config.network.n_head)

    def move(buffer: jax.Array, row: jax.Array, target: jax.Array) -> jax.Array:
        new = jnp.where(row, buffer[first:], lax.dynamic_slice_in_dim(buffer, target, config.window))
        return lax.dynamic_update_slice_in_dim(buffer, new, target, axis=0)

    return state._replace(cache=jax.tree.map(lambda x: jax.vmap(move)(x, rows, target), state.cache))


# --- step -------------------------------------------------------------------------------------------------------------


def step(
    network: CausalGPT,
    config: CoarseConfig,
    state: State,
    token: jax.Array,
    index: jax.Array,
    settings: Draw,
    noise: jax.Array,
    filtered: bool,
) -> tuple[KVCache, jax.Array]:
    """One token for every row.

    Args:
      token: (B,) int32, the last one of the prompt or of the window.
      index: () int32, which token of the window is drawn.
      noise: (B, codebook_size) Gumbel noise over the codes.

    Returns:
      The new cache, and ids (B,) int32 in the codebook that `index` is due.
    """
    first = config.semantic_length + config.max_history
    slots = jnp.arange(first + config.window)
    in_prompt = slots[None] < config.semantic_length + state.n_history[:, None]
    visible = in_prompt | ((slots >= first) & (slots <= first + index))[None]
    position = config.semantic_length + state.n_history + index
    cache, hidden = network.decode_step(state.cache, token, position, first + index, visible)
    # The heads of the codebooks alone, 2,048 of 12,096 rows; a traced choice of 1,024 would copy them at every step.
    logits = network.logits(hidden, config.code_offset, config.code_offset + config.n_codebooks * config.codebook_size)
    codebook = index % config.n_codebooks
    logits = logits.reshape(-1, config.n_codebooks, config.codebook_size)
    logits = lax.dynamic_index_in_dim(logits, codebook, axis=1, keepdims=False)

    def choose(logits: jax.Array, noise: jax.Array, settings: Draw) -> jax.Array:
        if filtered:
            logits = sampling.filter_logits(logits, settings.top_k, settings.top_p)
        return sampling.draw(logits, noise, settings.temperature)

    code = jax.vmap(choose)(logits, noise, settings)
    return cache, config.code_offset + codebook * config.codebook_size + code


# --- generate ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("config", "filtered"), donate_argnames=("state",))
def advance(
    weights: Weights,
    config: CoarseConfig,
    state: State,
    settings: Settings,
    keys: jax.Array,
    *,
    filtered: bool,
) -> tuple[State, jax.Array]:
    """One window for every row, always all of its tokens. Gives the state and coarse ids (B, window)."""
    network: CausalGPT = weights.module
    indices = jnp.arange(config.window, dtype=jnp.int32)
    noise = jax.vmap(lambda i: sampling.gumbel(keys, state.step + i, (config.codebook_size,)))(indices)
    last = jax.vmap(lambda row, n: row[jnp.maximum(n - 1, 0)])(state.history, state.n_history)
    token = jnp.where(state.n_history > 0, last, config.infer_token)

    def body(
        carry: tuple[KVCache, jax.Array], x: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[KVCache, jax.Array], jax.Array]:
        index, noise = x
        cache, token = step(
            network, config, state._replace(cache=carry[0]), carry[1], index, settings.draw, noise, filtered
        )
        return (cache, token), token

    (cache, _), ids = lax.scan(body, (state.cache, token), (indices, noise))
    ids = ids.T

    def remember(row: jax.Array, n: jax.Array, new: jax.Array, limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = lax.dynamic_update_slice(row, new, (n,))
        kept = jnp.minimum(n + config.window, limit)
        return jnp.roll(row, kept - (n + config.window)), kept

    history, n_history = jax.vmap(remember)(state.history, state.n_history, ids, settings.max_history)
    return State(cache, history, n_history, state.step + config.window), ids


def generate(
    weights: Weights,
    config: CoarseConfig,
    prompts: Sequence[Prompt],
    rows: Sequence[Sampling],
    keys: jax.Array,
    *,
    cache_dtype: Any = jnp.float32,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Codes of a batch.

    Args:
      prompts: B rows, see `prompt`. A row without tokens to generate gives an empty array.
      rows: B settings; of the history, what the prompts say counts.
      keys: (B,) stage keys.
      progress: called with (windows so far, windows of the longest row).

    Returns:
      Per row the codes (n_codebooks, F) int32, 0 .. codebook_size - 1.
    """
    settings = Settings.of(rows, prompts)
    filtered = any(row.filters for row in rows)
    state = start(config, prompts, cache_dtype)
    n_windows = max((-(-p.n_tokens // config.window) for p in prompts), default=0)
    generated = []
    for w in range(n_windows):
        at = w * config.window
        # A finished row has nothing to compute; it neither asks for a prompt nor keeps its cache.
        live = np.array([at < p.n_tokens for p in prompts])
        grown = live & np.array([p.extends(config, at) for p in prompts])
        bare = live & ~grown & np.array([at == 0 and len(p.history) == 0 for p in prompts])
        whole = live & ~grown & ~bare
        if grown.any():
            state = extend(config, state, jnp.asarray(grown))
        if bare.any() or whole.any():
            semantic = jnp.asarray(np.stack([p.window(config, at)[1] for p in prompts]))
            for chosen, history in ((bare, False), (whole, True)):
                if chosen.any():
                    state = fill(weights, config, state, semantic, jnp.asarray(chosen), history=history)
        state, ids = advance(weights, config, state, settings, keys, filtered=filtered)
        generated.append(ids)
        if progress:
            ids.block_until_ready()
            progress(w + 1, n_windows)
    if not generated:
        return [np.zeros((config.n_codebooks, 0), np.int32) for _ in prompts]
    ids = np.concatenate([np.asarray(part) for part in generated], axis=1)
    return [tokens.unflatten_codes(config, row[: p.n_tokens]) for row, p in zip(ids, prompts, strict=True)]


def idle(config: CoarseConfig) -> Prompt:
    """A row that asks for nothing: fills a batch up to its compiled row count."""
    empty = np.zeros(0, np.int32)
    return Prompt(semantic=empty, n_history=0, history=empty, n_tokens=0, max_history=config.max_history)
