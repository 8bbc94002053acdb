"""Stage 1: text ids (and a voice's semantic history) → semantic tokens.

Takes and gives token ids; knows the network, the cache and the rule that ends speech, and nothing of text, voices as
files, or audio. As in every stage module: *prompt* (host), *state* (device), *step* (pure), *generate* (the loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import SemanticConfig
from bark_jax.flat import Weights
from bark_jax.gpt import CausalGPT, KVCache
from bark_jax.sampling import Draw, Sampling

CHUNK = {"cpu": 8}
"""Tokens per dispatch, by platform. On CPUs a dispatch costs little and every token past the end costs a whole step."""
CHUNK_ELSEWHERE = 32


# --- prompt -----------------------------------------------------------------------------------------------------------


def prompt(config: SemanticConfig, text: np.ndarray, history: np.ndarray | None) -> np.ndarray:
    """One row's prompt: text ids (text_length,) over history ids → (2, text_length) int32.

    The two are embedded and added position by position. Of a longer history the last ids count; it is padded on the
    right, as is no history at all.
    """
    ids = np.full((2, config.text_length), config.pad_token, np.int32)
    ids[0] = text
    if history is not None:
        history = history[-config.text_length :]
        ids[1, : len(history)] = history
    return ids


# --- state ------------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Everything a batch needs to go on; rows are independent of each other.

    The cache has text_length prompt slots and a ring of max_tokens slots behind them, written at one index shared by
    all rows; since a row never lives longer than max_tokens steps, rows may start at different times.
    """

    cache: KVCache
    token: jax.Array
    """(B,) int32, to be fed next: the infer token, then what was drawn last."""
    length: jax.Array
    """(B,) int32, semantic tokens drawn so far; the row's position is text_length + length."""
    done: jax.Array
    """(B,) bool: the row is complete and goes on only as a passenger."""
    ended: jax.Array
    """(B,) bool: complete because speech ended, not because of the limit."""
    step: jax.Array
    """() int32, steps since the state began: where in the ring all rows write."""


class Settings(NamedTuple):
    """What may differ from row to row, as arrays (B,)."""

    draw: Draw
    min_eos_p: jax.Array
    allow_early_stop: jax.Array
    limit: jax.Array
    """Most tokens."""

    @classmethod
    def of(cls, config: SemanticConfig, rows: Sequence[Sampling]) -> Settings:
        return cls(
            Draw.of(rows, "semantic"),
            jnp.asarray(np.array([sampling.OFF if r.min_eos_p is None else r.min_eos_p for r in rows], np.float32)),
            jnp.asarray(np.array([r.allow_early_stop for r in rows])),
            jnp.asarray(np.array([tokens.semantic_limit(config, r.max_duration_s) for r in rows], np.int32)),
        )


@partial(jax.jit, static_argnames=("config", "dtype"))
def start(weights: Weights, config: SemanticConfig, prompts: jax.Array, dtype: Any = jnp.float32) -> State:
    """The state after the prompt: prompts (B, 2, text_length) int32; `dtype` is the cache's."""
    network: CausalGPT = weights.module
    rows = prompts.shape[0]
    filled = network.prefill(network.embed(prompts[:, 0]) + network.embed(prompts[:, 1]))
    grow = lambda x: jnp.pad(x.astype(dtype), ((0, 0), (0, config.max_tokens), (0, 0)))  # noqa: E731
    return State(
        cache=jax.tree.map(grow, filled),
        token=jnp.full((rows,), config.infer_token, jnp.int32),
        length=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
        ended=jnp.zeros((rows,), bool),
        step=jnp.zeros((), jnp.int32),
    )


# --- step -------------------------------------------------------------------------------------------------------------


def step(
    network: CausalGPT, config: SemanticConfig, state: State, settings: Settings, noise: jax.Array, filtered: bool
) -> tuple[State, jax.Array]:
    """One token for every row.

    Args:
      noise: (B, vocab_size + 1) Gumbel noise over the semantic ids and, last, the end of speech.
      filtered: static; whether any row uses top-k or top-p.

    Returns:
      The new state and the ids drawn (B,); those of complete rows mean nothing.
    """
    ring = config.max_tokens
    written = state.step % ring
    age = (written - jnp.arange(ring)) % ring
    seen = age[None] <= state.length[:, None]  # a row sees what it wrote itself: its latest length + 1 slots
    visible = jnp.concatenate([jnp.ones((len(seen), config.text_length), bool), seen], axis=1)
    position = jnp.minimum(config.text_length + state.length, network.config.block_size - 1)
    cache, hidden = network.decode_step(state.cache, state.token, position, config.text_length + written, visible)
    logits = network.logits(hidden)  # all rows of the head: some would have to be copied out first
    end = jnp.where(settings.allow_early_stop, logits[:, config.pad_token], -jnp.inf)
    logits = jnp.concatenate([logits[:, : config.vocab_size], end[:, None]], axis=1)
    choose = partial(_choose, filtered=filtered)
    drawn, stop = jax.vmap(choose)(logits, noise, settings.draw, settings.min_eos_p)
    end = stop & settings.allow_early_stop & ~state.done
    length = jnp.where(state.done | end, state.length, state.length + 1)
    done = state.done | end | (length >= settings.limit)
    token = jnp.minimum(drawn, config.vocab_size - 1)
    return State(cache, token, length, done, state.ended | end, state.step + 1), token


def _choose(
    logits: jax.Array, noise: jax.Array, settings: Draw, min_eos_p: jax.Array, *, filtered: bool
) -> tuple[jax.Array, jax.Array]:
    """One row: the candidate drawn, and whether speech ends here (drawn, or likely enough)."""
    if filtered:
        logits = sampling.filter_logits(logits, settings.top_k, settings.top_p)
    drawn = sampling.draw(logits, noise, settings.temperature)
    p_end = jax.nn.softmax(sampling.scale(logits, settings.temperature))[-1]
    likely = (settings.temperature > 0) & (p_end >= min_eos_p)
    return drawn, (drawn == len(logits) - 1) | likely


# --- generate ---------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("config", "n", "filtered"), donate_argnames=("state",))
def advance(
    weights: Weights,
    config: SemanticConfig,
    state: State,
    settings: Settings,
    keys: jax.Array,
    *,
    n: int,
    filtered: bool,
) -> tuple[State, jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """`n` steps in one dispatch. Gives the state, ids (B, n), and copies of (length, done, ended) that outlive it."""
    network: CausalGPT = weights.module
    # Drawn before the loop, off the serial path. A row's step number is its own length, so chunks do not matter.
    steps = state.length[None] + jnp.arange(n, dtype=jnp.int32)[:, None]
    noise = jax.vmap(lambda s: sampling.gumbel(keys, s, (config.vocab_size + 1,)))(steps)

    def body(state: State, noise: jax.Array) -> tuple[State, jax.Array]:
        return step(network, config, state, settings, noise, filtered)

    state, ids = lax.scan(body, state, noise)
    return state, ids.T, (state.length + 0, state.done | False, state.ended | False)


def generate(
    weights: Weights,
    config: SemanticConfig,
    prompts: np.ndarray,
    rows: Sequence[Sampling],
    keys: jax.Array,
    *,
    cache_dtype: Any = jnp.float32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[np.ndarray], list[bool]]:
    """Speak a batch of prompts.

    Args:
      prompts: (B, 2, text_length) int32, see `prompt`.
      rows: B settings.
      keys: (B,) stage keys, see `sampling.stage_keys`.
      progress: called with (tokens so far, most tokens) of the longest row.

    Returns:
      Per row the semantic ids (n,) int32, n from 0, and whether speech ended by itself.
    """
    settings = Settings.of(config, rows)
    filtered = any(row.filters for row in rows)
    on_cpu = weights.leaves[0].devices().pop().platform == "cpu"
    n = CHUNK["cpu"] if on_cpu else CHUNK_ELSEWHERE
    # An accelerator is kept busy by dispatching a chunk before looking at the last; a CPU would only do more work.
    ahead = 0 if on_cpu else 1

    state = start(weights, config, jnp.asarray(prompts), cache_dtype)
    limit = int(np.max(settings.limit))
    chunks: list[tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]] = []
    for i in range(-(-limit // n)):
        state, ids, status = advance(weights, config, state, settings, keys, n=n, filtered=filtered)
        chunks.append((ids, status))
        if i >= ahead:
            length, done, _ = map(np.asarray, chunks[i - ahead][1])
            if progress:
                progress(int(length.max()), limit)
            if done.all():
                break
    lengths, _, ended = map(np.asarray, chunks[-1][1])
    if progress:
        progress(limit, limit)
    ids = np.concatenate([np.asarray(chunk) for chunk, _ in chunks], axis=1)
    return [row[:length] for row, length in zip(ids, lengths, strict=True)], [bool(e) for e in ended]
