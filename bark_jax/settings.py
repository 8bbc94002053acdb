"""What callers choose of the sampling, and seeds. Without jax, so that a driver of workers starts in half a second."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
import struct
from dataclasses import dataclass

import numpy as np

MAX_TEMPERATURE = 10_000
"""Far beyond it float32 no longer tells candidates apart, and what top-k and top-p exclude would come back."""

LATENCIES = ("exact", "low")
"""Of `Bark.stream`: the codes of `Bark.generate`, or sooner and others."""


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
