"""``bark.api`` of Suno's package: text → semantic → waveform as named steps. `bark_jax.suno` lists the differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bark_jax.suno import generation
from bark_jax.suno.generation import History
from bark_jax.voice import Voice, VoiceError


def text_to_semantic(text: str, history_prompt: History = None, temp: float = 0.7, silent: bool = False) -> np.ndarray:
    """Semantic ids (n,) int32, 49.9 per second, of a text of 1 to 256 tokens. See `generate_audio`."""
    return generation.generate_text_semantic(
        text, history_prompt=history_prompt, temp=temp, silent=silent, use_kv_caching=True
    )


def semantic_to_waveform(
    semantic_tokens: np.ndarray,
    history_prompt: History = None,
    temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (samples,) float32 at 24 kHz from semantic ids.

    Args:
      semantic_tokens: (n,) integers of 0 to 9,999, n ≥ 1.
      history_prompt: as in `generate_audio`.
      temp: of the coarse stage; the fine stage always uses 0.5, as in the original.
      silent: no progress bar.
      output_full: return (prompt dictionary, audio) instead.
    """
    coarse_tokens = generation.generate_coarse(
        semantic_tokens, history_prompt=history_prompt, temp=temp, silent=silent, use_kv_caching=True
    )
    if coarse_tokens.shape[1]:
        fine_tokens = generation.generate_fine(coarse_tokens, history_prompt=history_prompt, temp=0.5)
    else:
        fine_tokens = np.zeros((generation.N_FINE_CODEBOOKS, 0), np.int32)
    audio = generation.codec_decode(fine_tokens)
    if not output_full:
        return audio
    full = {"semantic_prompt": semantic_tokens, "coarse_prompt": coarse_tokens, "fine_prompt": fine_tokens}
    return full, audio


def save_as_prompt(filepath: str, full_generation: Mapping[str, np.ndarray]) -> None:
    """Write what ``output_full=True`` returned as a voice prompt.

    Raises:
      VoiceError: a name that does not end in ``.npz``, or not the three arrays of a prompt.
    """
    if not str(filepath).endswith(".npz"):
        raise VoiceError(f"filepath is {str(filepath)!r}: it must end in .npz")
    Voice.from_dict(full_generation).save(filepath)


def generate_audio(
    text: str,
    history_prompt: History = None,
    text_temp: float = 0.7,
    waveform_temp: float = 0.7,
    silent: bool = False,
    output_full: bool = False,
) -> Any:
    """Audio (samples,) float32 at 24 kHz from a text.

    Args:
      text: 1 to 256 tokens.
      history_prompt: None, a preset such as "v2/en_speaker_6", an ``.npz`` path, or a prompt dictionary.
      text_temp: of the semantic stage, 0 (argmax) or more.
      waveform_temp: of the coarse stage, 0 (argmax) or more.
      silent: no progress bar.
      output_full: return (prompt dictionary, audio) instead, for `save_as_prompt`.

    Raises:
      ValueError: a text, prompt or temperature out of its range.
    """
    semantic_tokens = text_to_semantic(text, history_prompt=history_prompt, temp=text_temp, silent=silent)
    if len(semantic_tokens) == 0:
        empty = {"semantic_prompt": semantic_tokens}
        empty["coarse_prompt"] = np.zeros((generation.N_COARSE_CODEBOOKS, 0), np.int32)
        empty["fine_prompt"] = np.zeros((generation.N_FINE_CODEBOOKS, 0), np.int32)
        audio = np.zeros(0, np.float32)
        return (empty, audio) if output_full else audio
    return semantic_to_waveform(
        semantic_tokens, history_prompt=history_prompt, temp=waveform_temp, silent=silent, output_full=output_full
    )
