"""From logits to a token, for one row; and the keys that make the noise. Callers `jax.vmap` over rows.

The order is Suno's (``bark/generation.py``): top-p on the raw logits, then top-k, then temperature, then the draw.
The draw is explicit: the caller passes Gumbel noise, and the token is argmax(logits / temperature + noise), so the same
noise gives the same token in any implementation. Settings are traced arrays, one value per row; only whether *any* row
filters (top-k or top-p) is static, so that plain sampling never sorts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bark_jax.settings import Sampling

OFF = 2.0
"""Stands for "no limit" where a probability is expected: no probability reaches it."""

STAGES = ("semantic", "coarse", "fine")


class Draw(NamedTuple):
    """The settings of one stage as arrays, one value per row."""

    temperature: jax.Array
    """(B,) float32; 0 is argmax."""
    top_k: jax.Array
    """(B,) int32; a number beyond the candidates keeps all."""
    top_p: jax.Array
    """(B,) float32; `OFF` keeps all."""

    @classmethod
    def of(cls, rows: Sequence[Sampling], stage: str) -> Draw:
        """The settings of `stage` ("semantic", "coarse" or "fine") for each row."""
        name = {"semantic": "text_temperature", "coarse": "coarse_temperature", "fine": "fine_temperature"}[stage]
        return cls(
            jnp.asarray(np.array([getattr(row, name) for row in rows], np.float32)),
            jnp.asarray(np.array([min(row.top_k or 2**31 - 1, 2**31 - 1) for row in rows], np.int32)),
            jnp.asarray(np.array([OFF if row.top_p is None else row.top_p for row in rows], np.float32)),
        )


def filter_logits(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Set what top-p, then top-k, excludes to -inf: logits (V,) → (V,).

    The candidates kept by top-p are a prefix of the descending order that includes the one crossing `top_p`, and top-k
    keeps a prefix of that, so one sort gives one threshold. Candidates equal to it are all kept.
    """
    ordered = jnp.sort(logits, descending=True)
    cumulative = jnp.cumsum(jax.nn.softmax(ordered))
    kept = 1 + jnp.sum(cumulative[:-1] <= top_p)
    threshold = ordered[jnp.minimum(kept, top_k) - 1]
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def scale(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """logits / temperature, and logits as they are where the temperature is 0."""
    return logits / jnp.where(temperature > 0, temperature, 1.0)


def draw(logits: jax.Array, noise: jax.Array, temperature: jax.Array) -> jax.Array:
    """The index drawn from logits (V,) with Gumbel noise (V,); the argmax where `temperature` is 0 (first on ties)."""
    return jnp.argmax(scale(logits, temperature) + jnp.where(temperature > 0, noise, 0.0), axis=-1).astype(jnp.int32)


def gumbel(keys: jax.Array, steps: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise for each row: stage keys (B, 2), step numbers (B,) → (B, *shape) float32, the same whatever the batch."""

    def one(key: jax.Array, step: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, step), shape, jnp.float32)

    return jax.vmap(one)(keys, steps)


_KEYS_AT_ONCE = 16


def stage_keys(seeds: Sequence[int], stage: str) -> np.ndarray:
    """The key of each request: its seed → stage (the step is folded in by `gumbel`).

    Both halves of the 64-bit seed count: without x64, `jax.random.key` would see only the lower one.

    Returns:
      (len(seeds), 2) uint32, the data of threefry2x32 keys.
    """
    number = np.uint32(STAGES.index(stage))
    out = [np.zeros((0, 2), np.uint32)]
    for start in range(0, len(seeds), _KEYS_AT_ONCE):  # always as many at once: one program for any number of seeds
        part = [*seeds[start : start + _KEYS_AT_ONCE]]
        padded = part + [0] * (_KEYS_AT_ONCE - len(part))
        low = np.array([seed & 0xFFFFFFFF for seed in padded], np.uint32)
        high = np.array([seed >> 32 for seed in padded], np.uint32)
        out.append(np.asarray(_stage_keys(low, high, number))[: len(part)])
    return np.concatenate(out)


@partial(jax.jit)
def _stage_keys(low: jax.Array, high: jax.Array, stage: jax.Array) -> jax.Array:
    def one(low: jax.Array, high: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(low, impl="threefry2x32"), high)
        return jax.random.key_data(jax.random.fold_in(key, stage))

    return jax.vmap(one)(low, high)
