"""Stage 2: semantic tokens (and a voice) → the codes of the first codebooks, in windows of 60 tokens.

Takes semantic ids and gives codes; knows the network, the cache and Suno's window rules (`tokens`), and nothing of
text, voices as files, or audio. As in every stage module: *prompt*, *state*, *step*, *generate*.

A window's prompt is a slice of semantic ids, the infer token, and the last coarse tokens. Suno computes every prompt
anew. Here a row whose prompt only grew since its last window (same semantic slice, no coarse token dropped: the first
11 windows without a voice) keeps its cache, which is the same numbers for much less work. Which way a row goes depends
on that row alone, so neighbours never change a row.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bark_jax import sampling, tokens
from bark_jax.config import CoarseConfig
from bark_jax.flat import Weights, beside, platform
from bark_jax.gpt import CausalGPT, KVCache
from bark_jax.rows import Rows, together
from bark_jax.sampling import Draw
from bark_jax.settings import Sampling

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

    def shown_until(self, config: CoarseConfig, step: int) -> int:
        """How many of the request's own semantic ids must be known before the window at `step`, if there are more."""
        start = tokens.coarse_semantic_window(config, self.semantic[:0], self.n_history, step, self.max_history)[0]
        spoken = -(-(step + config.window) // tokens.coarse_ratio(config))  # what the window's own tokens say
        return max(start + config.semantic_length - self.n_history, int(spoken) + 1)

    def grown(self, config: CoarseConfig, semantic: np.ndarray, *, whole: bool) -> Prompt:
        """The same request with these semantic ids of its own (n,); not `whole`: more will follow."""
        said = np.concatenate([self.semantic[: self.n_history], semantic]).astype(np.int32)
        n_tokens = tokens.n_coarse_tokens(config, len(semantic)) if whole else sys.maxsize
        return dataclasses.replace(self, semantic=said, n_tokens=n_tokens)

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


def empty(config: CoarseConfig, rows: int, dtype: Any = jnp.float32) -> State:
    """The state of rows that nobody has; `dtype` is the cache's."""
    slots = config.semantic_length + config.max_history + config.window
    return State(
        cache=KVCache.zeros(config.network, rows, slots, dtype),
        history=jnp.zeros((rows, config.max_history + config.window), jnp.int32),
        n_history=jnp.zeros((rows,), jnp.int32),
        step=jnp.zeros((rows,), jnp.int32),
    )


@partial(jax.jit, donate_argnames=("state",))
def insert(state: State, chosen: jax.Array, history: jax.Array, n_history: jax.Array) -> State:
    """Let requests begin in the rows `chosen` (B,) bool, with these histories; nothing is computed yet."""
    return state._replace(
        history=jnp.where(chosen[:, None], history, state.history),
        n_history=jnp.where(chosen, n_history, state.n_history),
        step=jnp.where(chosen, 0, state.step),
    )


@partial(jax.jit, static_argnames=("config",))
def take(config: CoarseConfig, state: State, rows: jax.Array) -> State:
    """The state of the given rows alone: (R,) int32."""
    per_row = (x[rows] for x in (state.history, state.n_history, state.step))
    return State(state.cache.take(rows, config.network.n_head), *per_row)


@partial(jax.jit, static_argnames=("config", "history"), donate_argnames=("state",))
def fill(
    weights: Weights,
    config: CoarseConfig,
    state: State,
    semantic: jax.Array,
    rows: jax.Array,
    chosen: jax.Array,
    *,
    history: bool,
) -> State:
    """Compute the prompts of the rows (G,) int32 from their semantic slices (G, semantic_length) int32; those not
    `chosen` (G,) bool only fill up what is computed at once.

    `history` is static: False computes only the semantic part, for rows that have no coarse token before them. All but
    a prompt's last token enter the cache; that one is fed by the first step of `advance`.
    """
    network: CausalGPT = weights.module
    ids = semantic
    if history:
        infer = jnp.full((len(semantic), 1), config.infer_token, jnp.int32)
        ids = jnp.concatenate([semantic, infer, state.history[rows, : config.max_history - 1]], axis=1)
    filled = network.prefill(network.embed(ids))
    return state._replace(cache=state.cache.put(filled, rows, chosen))


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


class Drawn(NamedTuple):
    """What one dispatch has drawn: a window of every row."""

    owners: list[int | None]
    """The prompt of each row; None: nobody's."""
    ids: jax.Array
    """(B, window) int32 coarse ids; of a prompt's last window, some may lie beyond its end."""


def run(
    weights: Weights,
    config: CoarseConfig,
    prompts: Sequence[Prompt],
    settings: Sequence[Sampling],
    keys: np.ndarray,
    *,
    rows: int | None = None,
    narrows: bool = False,
    networks: Callable[[Sequence[int | None]], Weights] | None = None,
    cache_dtype: Any = jnp.float32,
) -> Iterator[Drawn]:
    """As `generate`, window by window; closing it computes nothing more.

    Between two windows a prompt may be replaced by one that `grown` has made longer, as long as every window finds the
    semantic ids that it shows (`shown_until`).
    """
    n = len(prompts)
    order = sorted((i for i in range(n) if prompts[i].n_tokens), key=lambda i: -prompts[i].n_tokens)
    batch = Rows(order, rows or n, narrows=narrows)
    at_once = together(len(batch), platform(weights.leaves[0]))
    networks = networks or (lambda owners: weights)
    filtered = any(how.filters for how in settings)
    state = beside(weights.leaves[0], empty(config, len(batch), cache_dtype))

    def of(batch: Rows) -> tuple[Weights, Settings, jax.Array]:
        """What `advance` needs for the batch as it is now."""
        now = batch.requests
        how = Settings.of([settings[i] for i in now], [prompts[i] for i in now])
        return networks(batch.owners), how, jnp.asarray(keys[now])

    network, how, key = of(batch)
    at = [0] * n
    while True:
        kept, given = batch.narrow(), batch.admit()
        owned = batch.owned
        if not owned:
            return
        if kept is not None:
            state = take(config, state, np.array(kept, np.int32))
        if given:
            state = _begin(state, {row: prompts[owned[row]] for row in given})
        if kept is not None or given:
            network, how, key = of(batch)
        grows = [row for row, i in owned.items() if prompts[i].extends(config, at[i])]
        if grows:
            state = extend(config, state, np.isin(np.arange(len(batch)), grows))
        bare = [row for row, i in owned.items() if at[i] == 0 and len(prompts[i].history) == 0]
        whole = [row for row in owned if row not in grows and row not in bare]
        for some, history in ((bare, False), (whole, True)):
            for part in batch.passes(some, at_once):
                semantic = np.stack([prompts[i].window(config, at[i])[1] for i in part.requests])
                these = networks(part.owners)
                state = fill(these, config, state, semantic, part.rows, part.chosen, history=history)
        state, ids = advance(network, config, state, how, key, filtered=filtered)
        yield Drawn(list(batch.owners), ids)
        for i in owned.values():
            at[i] += config.window
            if at[i] >= prompts[i].n_tokens:
                batch.release(i)


def generate(
    weights: Weights,
    config: CoarseConfig,
    prompts: Sequence[Prompt],
    settings: Sequence[Sampling],
    keys: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """Codes of any number of prompts, in a batch whose rows go to the next one, window by window; the longest first.

    Args:
      weights: of the network.
      prompts: N ≥ 1 of them, see `prompt`. One without tokens to generate gives an empty array.
      settings: N of them; of the history, what the prompts say counts.
      keys: (N, 2) uint32, see `sampling.stage_keys`.
      progress: called with (windows so far, windows) of all prompts.
      options: of `run`. rows: of the batch; None: N. narrows: whether the batch may become narrower at the end, see
        `Rows`. networks: the network for a batch whose rows have these requests, where rows differ; None: `weights`
        for all. cache_dtype: of keys and values.

    Returns:
      Per prompt the codes (n_codebooks, F) int32, 0 .. codebook_size - 1.
    """
    n_windows, n_done = sum(-(-p.n_tokens // config.window) for p in prompts), 0
    generated: list[Drawn] = []  # read back at the end: nothing waits for the device before
    for drawn in run(weights, config, prompts, settings, keys, **options):
        generated.append(drawn)
        n_done += sum(owner is not None for owner in drawn.owners)
        if progress:
            drawn.ids.block_until_ready()
            progress(n_done, n_windows)
    pieces: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] for _ in prompts]
    for owners, ids in generated:
        for owner, row in zip(owners, np.asarray(ids), strict=True):
            if owner is not None:
                pieces[owner].append(row)
    return [
        tokens.unflatten_codes(config, np.concatenate(part)[: p.n_tokens])
        for part, p in zip(pieces, prompts, strict=True)
    ]


def _begin(state: State, prompts: Mapping[int, Prompt]) -> State:
    """Let the prompts begin, each in its row."""
    history, n_history = np.zeros(state.history.shape, np.int32), np.zeros(state.n_history.shape, np.int32)
    for row, p in prompts.items():
        history[row, : len(p.history)], n_history[row] = p.history, len(p.history)
    return insert(state, np.isin(np.arange(len(n_history)), list(prompts)), history, n_history)
