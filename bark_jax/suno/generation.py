"""``bark.generation`` of Suno's package, as far as its notebooks and users import it. See `bark_jax.suno`.

One model is shared by all functions and loaded at the first use, or by `preload_models`. It is looked for in
``BARK_JAX_SUNO_MODEL`` (a folder or hub id), then where the original keeps its files
(``$XDG_CACHE_HOME`` or ``~/.cache``, then ``suno/bark_v0``), then on the hub as ``suno/bark``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bark_jax import bark as _bark
from bark_jax.settings import Sampling, SamplingError
from bark_jax.settings import check_seed as _check_seed
from bark_jax.voice import Voice

CONTEXT_WINDOW_SIZE = 1024
SEMANTIC_RATE_HZ = 49.9
SEMANTIC_VOCAB_SIZE = 10_000
CODEBOOK_SIZE = 1024
N_COARSE_CODEBOOKS = 2
N_FINE_CODEBOOKS = 8
COARSE_RATE_HZ = 75
SAMPLE_RATE = 24_000
TEXT_ENCODING_OFFSET = 10_048
SEMANTIC_PAD_TOKEN = 10_000
TEXT_PAD_TOKEN = 129_595
SEMANTIC_INFER_TOKEN = 129_599
COARSE_SEMANTIC_PAD_TOKEN = 12_048
COARSE_INFER_TOKEN = 12_050

SUPPORTED_LANGS = [
    ("English", "en"),
    ("German", "de"),
    ("Spanish", "es"),
    ("French", "fr"),
    ("Hindi", "hi"),
    ("Italian", "it"),
    ("Japanese", "ja"),
    ("Korean", "ko"),
    ("Polish", "pl"),
    ("Portuguese", "pt"),
    ("Russian", "ru"),
    ("Turkish", "tr"),
    ("Chinese", "zh"),
]

ALLOWED_PROMPTS = {"announcer"} | {
    f"{folder}{code}_speaker_{n}" for folder in ("", "v2/") for _, code in SUPPORTED_LANGS for n in range(10)
}
"""The names that the original knows; here any voice on this machine or the hub is allowed."""

History = None | str | Path | Mapping[str, Any] | Voice

_model: _bark.Bark | None = None
_sizes: dict[str, str] = {}
_generator: np.random.Generator | None = None


def manual_seed(seed: int) -> None:
    """Make all following calls repeatable: `seed` is an integer of 0 to 2**64 - 1. (Not in the original.)"""
    global _generator
    _generator = np.random.default_rng(_check_seed(seed))


def preload_models(
    text_use_gpu: bool = True,
    text_use_small: bool = False,
    coarse_use_gpu: bool = True,
    coarse_use_small: bool = False,
    fine_use_gpu: bool = True,
    fine_use_small: bool = False,
    codec_use_gpu: bool = True,
    force_reload: bool = False,
) -> None:
    """Load the model; stages of different sizes mix. Every ``..._use_gpu`` is ignored, see `bark_jax.suno`.

    ``SUNO_USE_SMALL_MODELS=True`` in the environment makes all stages small, as in the original.

    Raises:
      HubError: the weights are nowhere, or cannot be fetched.
      ConversionError: the files are not Bark's.
    """
    global _model, _sizes
    all_small = os.environ.get("SUNO_USE_SMALL_MODELS", "").lower() in ("true", "1", "t")
    wanted = {
        stage: "small" if small or all_small else "large"
        for stage, small in (("text", text_use_small), ("coarse", coarse_use_small), ("fine", fine_use_small))
    }
    if _model is None or force_reload or wanted != _sizes:
        _model = None  # its memory, before the next one takes some
        _model, _sizes = _bark.load(_source(), sizes=wanted), wanted


def clean_models(model_key: str | None = None) -> None:
    """Forget the loaded model and free its memory; `model_key` is ignored, the stages are loaded together."""
    global _model
    _model = None


def _source() -> str:
    named = os.environ.get("BARK_JAX_SUNO_MODEL")
    if named:
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suno" / "bark_v0"
    return str(cache) if any(cache.glob("text*.pt")) else "suno/bark"


def _loaded() -> _bark.Bark:
    if _model is None:
        preload_models()
    assert _model is not None  # for the type checker: preload_models sets it or raises
    return _model


def _seed() -> int | None:
    return None if _generator is None else int(_generator.integers(2**63))


def generate_text_semantic(
    text: str,
    history_prompt: History = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    min_eos_p: float | None = 0.2,
    max_gen_duration_s: float | None = None,
    allow_early_stop: bool = True,
    use_kv_caching: bool = False,
) -> np.ndarray:
    """Semantic ids (n,) int32 of a text; `use_kv_caching` is accepted, the cache is always used.

    Raises:
      ValueError: a text, prompt or setting out of its range (`bark_jax.Sampling` says which is allowed).
    """
    settings = Sampling(
        text_temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_eos_p=min_eos_p,
        max_duration_s=max_gen_duration_s,
        allow_early_stop=allow_early_stop,
    )
    return _loaded().text_to_semantic(text, voice=history_prompt, seed=_seed(), sampling=settings, progress=not silent)


def generate_coarse(
    x_semantic: np.ndarray,
    history_prompt: History = None,
    temp: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = None,
    silent: bool = False,
    max_coarse_history: int = 630,
    sliding_window_len: int = 60,
    use_kv_caching: bool = False,
) -> np.ndarray:
    """Codes (2, F) int32 from semantic ids (n,), n ≥ 1.

    Args:
      max_coarse_history: 60 (faster) to 630 (more context).
      sliding_window_len: tokens per window, a multiple of 2 up to max_coarse_history, and both together at most 768;
        other values than 60 compile programs of their own.

    Raises:
      ValueError: ids, prompt or setting out of its range.
    """
    model = _loaded()
    settings = Sampling(coarse_temperature=temp, top_k=top_k, top_p=top_p, max_coarse_history=max_coarse_history)
    coarse = model.config.coarse
    if sliding_window_len != coarse.window:
        if not 60 <= max_coarse_history <= coarse.max_history:
            raise SamplingError(f"max_coarse_history is {max_coarse_history}: it must be 60 to {coarse.max_history}")
        history = int(max_coarse_history)
        most = min(history, coarse.network.block_size - coarse.semantic_length - history)
        whole = isinstance(sliding_window_len, int | np.integer)
        if not whole or not 0 < sliding_window_len <= most or sliding_window_len % 2:
            raise SamplingError(
                f"sliding_window_len is {sliding_window_len!r}: it must be a multiple of 2, 2 to {most} with "
                f"max_coarse_history = {max_coarse_history}"
            )
        other = dataclasses.replace(coarse, window=int(sliding_window_len), max_history=history)
        model = model._with_config(dataclasses.replace(model.config, coarse=other))
    return model.semantic_to_coarse(
        x_semantic, voice=history_prompt, seed=_seed(), sampling=settings, progress=not silent
    )


def generate_fine(
    x_coarse_gen: np.ndarray, history_prompt: History = None, temp: float | None = 0.5, silent: bool = True
) -> np.ndarray:
    """Codes (8, F) int32 from the first 1 to 7 codebooks (q, F), F ≥ 1; `temp` None or 0 is argmax.

    Raises:
      ValueError: codes, prompt or temperature out of its range.
    """
    settings = Sampling(fine_temperature=0.0 if temp is None else temp)
    return _loaded().coarse_to_fine(
        x_coarse_gen, voice=history_prompt, seed=_seed(), sampling=settings, progress=not silent
    )


def codec_decode(fine_tokens: np.ndarray) -> np.ndarray:
    """Audio (320 · F,) float32 at 24 kHz from codes (8, F)."""
    return _loaded().decode(fine_tokens)
