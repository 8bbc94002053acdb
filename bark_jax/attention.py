"""Attention of all positions of a window to each other, with and without a causal mask, and its gradient; and of one
position to a cache.

Takes the fused queries, keys and values of a block, or those of the cache, and gives the attended values. On CPUs a few
heads of a window are computed together, block by block, which keeps their scores in the cache of the core and makes
only those that a causal mask lets through; elsewhere all heads at once.

Shapes use: B rows, T positions, H heads, K size of a head, N = B·H, D = H·K width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bark_jax import kernels
from bark_jax.linear import dot

MASKED = -1e30
"""Added to the score of a slot that must not be seen; finite, so that a row with nothing to see stays a number."""


def attend(qkv: jax.Array, n_head: int, causal: bool) -> jax.Array:
    """Attention of every position to every (or every earlier) one: queries, keys, values (B, T, 3 D) → (B, T, D)."""
    # On CPUs the scores of a few heads stay in the cache: half the time of all at once, at 1,024 positions.
    return lax.platform_dependent(
        qkv, cpu=lambda x: _few_heads(x, n_head, causal), default=lambda x: _all_heads(x, n_head, causal)
    )


def attend_slots(q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> jax.Array:
    """Attention of one position of each row to the slots of a cache.

    Args:
      q: (N, K), rows of a batch head by head.
      keys, values: (N, S, K).
      bias: (B, S), added to the scores: 0, or `MASKED` for a slot that the row must not see.

    Returns:
      (N, K) float32.
    """
    if not kernels.attends(keys):
        return _all_slots(q, keys, values, bias)
    return lax.platform_dependent(q, keys, values, bias, cpu=kernels.attend, default=_all_slots)


def _all_slots(q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> jax.Array:
    scores = dot(q, keys, (((1,), (2,)), ((0,), (0,)))) * (q.shape[-1] ** -0.5)  # (N, S)
    scores = scores + jnp.repeat(bias, len(q) // len(bias), axis=0)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return dot(weights / jnp.sum(weights, axis=-1, keepdims=True), values, (((1,), (1,)), ((0,), (0,))))


def _all_heads(qkv: jax.Array, n_head: int, causal: bool) -> jax.Array:
    rows, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (heads(part, n_head) for part in thirds(qkv))
    scores = dot(q * q.shape[-1] ** -0.5, k, (((2,), (2,)), ((0,), (0,))))  # (N, T, T)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = dot(weights, v, (((2,), (1,)), ((0,), (0,)))) / total  # (N, T, K): fewer to divide than weights
    return y.reshape(rows, n_head, length, -1).transpose(0, 2, 1, 3).reshape(rows, length, width)


def thirds(qkv: jax.Array) -> Sequence[jax.Array]:
    """(B, T, 3 D) → three of (B, T, D)."""
    # Not three slices of one array: their gradients would be padded and added, those of a split are concatenated.
    return lax.split(qkv, (qkv.shape[2] // 3,) * 3, axis=2)


def heads(x: jax.Array, n_head: int) -> jax.Array:
    """(B, T, D) → (N, T, K)."""
    rows, length, width = x.shape
    x = x.reshape(rows, length, n_head, width // n_head).transpose(0, 2, 1, 3)
    return x.reshape(rows * n_head, length, -1)


HEADS, QUERIES = 4, 128
"""Heads computed together by `_few_heads`, and queries of a block: at 1,024 positions their scores are 2 MB."""


def _blocks(length: int, causal: bool) -> list[tuple[slice, int]]:
    """The blocks of queries, and how many keys each can see: with a causal mask half of all scores are never made."""
    starts = range(0, length, QUERIES)
    return [(slice(i, min(i + QUERIES, length)), min(i + QUERIES, length) if causal else length) for i in starts]


def _groups(n_head: int) -> int:
    """Heads of a group: all groups have the same number."""
    return max(n for n in range(1, HEADS + 1) if n_head % n == 0)


def _take(x: jax.Array, n: jax.Array, part: int, group: int) -> jax.Array:
    """Group number n, counted over rows and heads, of x (B, T, parts, H, K) → (group, T, K)."""
    n_groups = x.shape[3] // group
    start = (n // n_groups, 0, part, n % n_groups * group, 0)
    return lax.dynamic_slice(x, start, (1, x.shape[1], 1, group, x.shape[4]))[0, :, 0].transpose(1, 0, 2)


def _put(x: jax.Array, y: jax.Array, n: jax.Array, part: int) -> jax.Array:
    """The reverse of `_take`."""
    n_groups = x.shape[3] // len(y)
    start = (n // n_groups, 0, part, n % n_groups * len(y), 0)
    return lax.dynamic_update_slice(x, y.transpose(1, 0, 2)[None, :, None], start)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _few_heads(qkv: jax.Array, n_head: int, causal: bool) -> jax.Array:
    """A few heads after each other, block by block. The gradient makes the scores again, and keeps none."""
    return _few_heads_forward(qkv, n_head, causal)[0]


def _few_heads_forward(qkv: jax.Array, n_head: int, causal: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rows, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    x = qkv.reshape(rows, length, 3, n_head, width // n_head)
    group = _groups(n_head)

    def one(n: jax.Array, out: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, k, v = (_take(x, n, i, group) for i in range(3))
        q = q * q.shape[-1] ** -0.5
        parts, logs = [], []
        for at, keys in _blocks(length, causal):
            scores = dot(q[:, at], k[:, :keys], (((2,), (2,)), ((0,), (0,))))
            if causal:
                scores = jnp.where(jnp.arange(keys)[None] <= jnp.arange(at.start, at.stop)[:, None], scores, MASKED)
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            parts.append(dot(weights, v[:, :keys], _PLAIN) / total)
            logs.append((top + jnp.log(total))[..., 0])
        y = _put(out[0], jnp.concatenate(parts, axis=1), n, 0)
        return y, lax.dynamic_update_slice(out[1], jnp.concatenate(logs, axis=1), (n * group, 0))

    empty = [jnp.zeros(shape, jnp.float32) for shape in ((*x.shape[:2], 1, *x.shape[3:]), (rows * n_head, length))]
    y, logs = lax.fori_loop(0, rows * n_head // group, one, tuple(empty))
    y = y.reshape(rows, length, width)
    return y, (qkv, y, logs)


_PLAIN = (((2,), (1,)), ((0,), (0,)))
"""Of a product (.., I, J) x (.., J, K): on CPUs all others copy one side into another order first."""


def _few_heads_backward(
    n_head: int, causal: bool, kept: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array]:
    qkv, y, logs = kept
    rows, length, width = y.shape
    shape = (rows, length, 1, n_head, width // n_head)
    x, y, gradient = qkv.reshape(rows, length, 3, *shape[3:]), y.reshape(shape), gradient.reshape(shape)
    group, scale = _groups(n_head), shape[-1] ** -0.5

    def turned(a: jax.Array) -> jax.Array:
        return a.transpose(0, 2, 1)

    def one(n: jax.Array, out: jax.Array) -> jax.Array:
        q, k, v = (_take(x, n, i, group) for i in range(3))
        q, dy = q * scale, _take(gradient, n, 0, group)
        shared = jnp.sum(dy * _take(y, n, 0, group), axis=-1)[:, None]
        log = lax.dynamic_slice(logs, (n * group, 0), (group, length))[:, None]
        q_turned, dy_turned, k_turned = turned(q), turned(dy), turned(k)
        dq, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
        for at, keys in _blocks(length, causal):  # scores are (group, keys, queries) here: every product is plain
            scores = dot(k[:, :keys], q_turned[:, :, at], _PLAIN)
            if causal:
                scores = jnp.where(jnp.arange(keys)[:, None] <= jnp.arange(at.start, at.stop)[None], scores, MASKED)
            weights = jnp.exp(scores - log[:, :, at])  # exactly 0 where masked
            d_scores = weights * (dot(v[:, :keys], dy_turned[:, :, at], _PLAIN) - shared[:, :, at])
            dq.append(dot(k_turned[:, :, :keys], d_scores, _PLAIN))
            dk = dk.at[:, :keys].add(dot(d_scores, q[:, at], _PLAIN))
            dv = dv.at[:, :keys].add(dot(weights, dy[:, at], _PLAIN))
        out = _put(out, turned(jnp.concatenate(dq, axis=2)) * scale, n, 0)
        return _put(_put(out, dk, n, 1), dv, n, 2)

    return (lax.fori_loop(0, rows * n_head // group, one, jnp.zeros_like(x)).reshape(qkv.shape),)


_few_heads.defvjp(_few_heads_forward, _few_heads_backward)
