"""Stage 1: text ids (and a voice's semantic history) → semantic tokens.

Takes and gives token ids; knows the network, the cache and the rule that ends speech, and nothing of text, voices as
files, or audio. As in every stage module: *prompt* (host), *state* (device), *step* (pure), *generate* (the loop).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import SemanticConfig
from bark_jax.flat import Weights, beside, platform
from bark_jax.gpt import CausalGPT, KVCache
from bark_jax.rows import Rows, together
from bark_jax.sampling import Draw
from bark_jax.settings import Sampling

CHUNK = {"cpu": 8}
"""Tokens per dispatch, by platform. On CPUs a dispatch costs little and every token past the end costs a whole step."""
CHUNK_ELSEWHERE = 32

AHEAD = {"cpu": 0}
"""Chunks dispatched before the last is looked at, by platform. An accelerator is kept busy by one; a CPU would only do
more work."""
AHEAD_ELSEWHERE = 1


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


def empty(config: SemanticConfig, rows: int, dtype: Any = jnp.float32) -> State:
    """The state of rows that nobody has; `dtype` is the cache's."""
    return State(
        cache=KVCache.zeros(config.network, rows, config.text_length + config.max_tokens, dtype),
        token=jnp.full((rows,), config.infer_token, jnp.int32),
        length=jnp.zeros((rows,), jnp.int32),
        done=jnp.ones((rows,), bool),
        ended=jnp.zeros((rows,), bool),
        step=jnp.zeros((), jnp.int32),
    )


@partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def insert(
    weights: Weights, config: SemanticConfig, state: State, prompts: jax.Array, rows: jax.Array, chosen: jax.Array
) -> State:
    """Let requests begin: prompts (G, 2, text_length) int32 in the rows (G,) int32; those not `chosen` (G,) bool only
    fill up what is computed at once.
    """
    network: CausalGPT = weights.module
    filled = network.prefill(network.embed(prompts[:, 0]) + network.embed(prompts[:, 1]))
    at = jnp.where(chosen, rows, len(state.token))  # what is not chosen is written nowhere
    return State(
        cache=state.cache.put(filled, rows, chosen),
        token=state.token.at[at].set(config.infer_token, mode="drop"),
        length=state.length.at[at].set(0, mode="drop"),
        done=state.done.at[at].set(False, mode="drop"),
        ended=state.ended.at[at].set(False, mode="drop"),
        step=state.step,
    )


@partial(jax.jit, static_argnames=("config",))
def take(config: SemanticConfig, state: State, rows: jax.Array) -> State:
    """The state of the given rows alone: (R,) int32."""
    per_row = (x[rows] for x in (state.token, state.length, state.done, state.ended))
    return State(state.cache.take(rows, config.network.n_head), *per_row, step=state.step)


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


class Said(NamedTuple):
    """What one prompt has said since it was heard of last."""

    prompt: int
    """Its number."""
    tokens: np.ndarray
    """(n,) int32 semantic ids, n from 0."""
    done: bool
    """Nothing follows."""
    ended: bool
    """Nothing follows because speech ended by itself."""


def run(
    weights: Weights,
    config: SemanticConfig,
    prompts: np.ndarray,
    settings: Sequence[Sampling],
    keys: np.ndarray,
    *,
    rows: int | None = None,
    narrows: bool = False,
    networks: Callable[[Sequence[int | None]], Weights] | None = None,
    cache_dtype: Any = jnp.float32,
) -> Iterator[list[Said]]:
    """As `generate`, telling what was said after every dispatch; closing it computes nothing more."""
    n = len(prompts)
    batch = Rows(range(n), rows or n, narrows=narrows)
    device = platform(weights.leaves[0])
    at_once = together(len(batch), device)
    steps = CHUNK.get(device, CHUNK_ELSEWHERE)
    ahead = AHEAD.get(device, AHEAD_ELSEWHERE)
    networks = networks or (lambda owners: weights)
    filtered = any(how.filters for how in settings)

    state = beside(weights.leaves[0], empty(config, len(batch), cache_dtype))

    def of(batch: Rows) -> tuple[Weights, Settings, jax.Array]:
        """What `advance` needs for the batch as it is now."""
        now = batch.requests
        return networks(batch.owners), Settings.of(config, [settings[i] for i in now]), jnp.asarray(keys[now])

    lengths, finished = [0] * n, [False] * n
    pending: deque[tuple[list[int | None], jax.Array, tuple[jax.Array, jax.Array, jax.Array]]] = deque()
    network, how, key = of(batch)
    while not all(finished):
        kept, given = batch.narrow(), batch.admit()
        if kept is not None:
            state = take(config, state, np.array(kept, np.int32))
        for part in batch.passes(given, at_once):
            state = insert(networks(part.owners), config, state, prompts[part.requests], part.rows, part.chosen)
        if kept is not None or given:
            network, how, key = of(batch)
        if batch.owned:
            state, ids, status = advance(network, config, state, how, key, n=steps, filtered=filtered)
            pending.append((list(batch.owners), ids, status))
        if len(pending) <= ahead and batch.owned:
            continue
        owners, ids, status = pending.popleft()
        drawn, (length, done, stop) = np.asarray(ids), map(np.asarray, status)
        news = []
        for row, owner in enumerate(owners):
            if owner is None or finished[owner]:
                continue
            new = drawn[row, : length[row] - lengths[owner]]
            lengths[owner] = int(length[row])
            if done[row]:
                finished[owner] = True
                batch.release(owner)
            news.append(Said(owner, new, bool(done[row]), bool(done[row] and stop[row])))
        yield news


def generate(
    weights: Weights,
    config: SemanticConfig,
    prompts: np.ndarray,
    settings: Sequence[Sampling],
    keys: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> tuple[list[np.ndarray], list[bool]]:
    """Speak any number of prompts, in a batch whose rows go to the next one when theirs has ended.

    Args:
      weights: of the network.
      prompts: (N, 2, text_length) int32, N ≥ 1, see `prompt`.
      settings: N of them.
      keys: (N, 2) uint32, see `sampling.stage_keys`.
      progress: called with (tokens so far, most tokens) of all prompts. One that has ended counts as its most.
      options: of `run`. rows: of the batch; None: N. narrows: whether the batch may become narrower at the end, see
        `Rows`. networks: the network for a batch whose rows have these requests, where rows differ; None: `weights`
        for all. cache_dtype: of keys and values.

    Returns:
      Per prompt the semantic ids (n,) int32, n from 0, and whether speech ended by itself.
    """
    limits = [tokens.semantic_limit(config, how.max_duration_s) for how in settings]
    said: list[list[np.ndarray]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    so_far = [0] * len(prompts)
    for news in run(weights, config, prompts, settings, keys, **options):
        for new in news:
            said[new.prompt].append(new.tokens)
            so_far[new.prompt] = limits[new.prompt] if new.done else so_far[new.prompt] + len(new.tokens)
            ended[new.prompt] = new.ended
        if progress:
            progress(sum(so_far), sum(limits))
    return [np.concatenate(pieces) for pieces in said], ended
