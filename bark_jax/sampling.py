"""From logits to a token, for one row; and the keys that make the noise. Callers `jax.vmap` over rows.

The order is Suno's (``bark/generation.py``): top-p on the raw logits, then top-k, then temperature, then the draw.
The draw is explicit: the caller passes Gumbel noise, and the token is argmax(logits / temperature + noise), so the same
noise gives the same token in any implementation. Settings are traced arrays, one value per row; only whether *any* row
filters (top-k or top-p) is static, so that plain sampling never sorts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

OFF = 2.0
"""Stands for "no limit" where a probability is expected: no probability reaches it."""

MAX_TEMPERATURE = 10_000
"""Far beyond it float32 no longer tells candidates apart, and what top-k and top-p exclude would come back."""

STAGES = ("semantic", "coarse", "fine")


class SamplingError(ValueError):
    """A sampling setting out of its range."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; defaults are those of Suno's ``generate_audio``.

    Attributes:
      text_temperature: of the semantic stage, 0 to 10,000. 0 is argmax (and then `min_eos_p` is ignored).
      coarse_temperature: of the coarse stage, 0 to 10,000.
      fine_temperature: of the fine stage, 0 to 10,000.
      top_k: keep the k most likely candidates, 1 or more; None keeps all. Semantic and coarse stages.
      top_p: keep the most likely candidates up to and including the one that makes their sum exceed top_p; greater
        than 0, at most 1; None keeps all. Semantic and coarse stages.
      min_eos_p: end the speech as soon as the end's probability (after temperature) is at least this; None ends it
        only when the end is drawn.
      max_duration_s: most seconds of semantic tokens, 0 or more; None is the model's own limit (15.4 s for Bark).
      allow_early_stop: False never ends before the limit.
      max_coarse_history: earlier coarse tokens that a coarse window sees, 60 (faster) to 630 for Bark; None is the
        model's most, Suno's default.
    """

    text_temperature: float = 0.7
    coarse_temperature: float = 0.7
    fine_temperature: float = 0.5
    top_k: int | None = None
    top_p: float | None = None
    min_eos_p: float | None = 0.2
    max_duration_s: float | None = None
    allow_early_stop: bool = True
    max_coarse_history: int | None = None

    def __post_init__(self) -> None:
        for name in ("text_temperature", "coarse_temperature", "fine_temperature"):
            self._check(name, lambda v: 0 <= v <= MAX_TEMPERATURE, f"0 (argmax) to {MAX_TEMPERATURE:,}")
        if self.top_k is not None:
            self._check("top_k", lambda v: v >= 1 and v == int(v), "an integer of 1 or more, or None")
        if self.top_p is not None:
            self._check("top_p", lambda v: 0 < v <= 1, "greater than 0 and at most 1, or None")
        if self.min_eos_p is not None:
            self._check("min_eos_p", lambda v: 0 <= v <= 1, "0 to 1, or None")
        if self.max_duration_s is not None:
            self._check("max_duration_s", lambda v: v >= 0, "seconds, 0 or more, or None")
        if self.max_coarse_history is not None:
            self._check(
                "max_coarse_history", lambda v: v >= 1 and v == int(v), "an integer (60 to 630 for Bark), or None"
            )
        if not isinstance(self.allow_early_stop, bool | np.bool_):
            raise SamplingError(f"allow_early_stop is {self.allow_early_stop!r}: it must be True or False")

    def _check(self, name: str, rule, words: str) -> None:  # type: ignore[no-untyped-def]
        value = getattr(self, name)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not (number and -math.inf < value < math.inf and rule(value)):
            raise SamplingError(f"{name} is {value!r}: it must be {words}")

    @classmethod
    def greedy(cls) -> Sampling:
        """Argmax in every stage: no randomness, the seed does not matter."""
        return cls(text_temperature=0.0, coarse_temperature=0.0, fine_temperature=0.0)

    def replace(self, **changes: object) -> Sampling:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def filters(self) -> bool:
        """Whether top-k or top-p is on."""
        return self.top_k is not None or self.top_p is not None


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


def new_seed() -> int:
    """A 64-bit seed from the operating system, for a request that names none."""
    return secrets.randbits(64)


def check_seed(seed: object) -> int:
    """Return `seed` as an int, or raise `SamplingError` unless it is an integer of 0 to 2⁶⁴ - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**64:
        raise SamplingError(f"seed is {seed!r}: it must be an integer of 0 to 2**64 - 1, or None")
    return int(seed)


def segment_seed(seed: int, segment: int, attempt: int) -> int:
    """The seed of one part of a text that is spoken in several calls: such a part alone, with this seed, is the same.

    The first attempt of the first part has the text's own seed; all others are as good as drawn anew.
    """
    if segment == attempt == 0:
        return seed
    path = struct.pack("<QII", seed, segment, attempt)
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")


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
