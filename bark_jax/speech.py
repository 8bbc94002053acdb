"""`Speech`: what a call gives back. Audio with everything that made it; knows how to be saved and played, no model."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bark_jax import audio as audio_files
from bark_jax.voice import Voice


class BarkWarning(UserWarning):
    """Something a listener would notice: speech that is empty, or cut by the model's limit."""


@dataclass(frozen=True)
class Segment:
    """One model call within a `Speech`."""

    text: str
    start: float
    """Seconds from the start of the audio."""
    end: float
    seed: int
    ended: bool


@dataclass(frozen=True, eq=False)
class Speech:
    """Synthesised speech.

    In a notebook it shows a player; ``np.asarray(speech)`` is its audio.
    """

    audio: np.ndarray
    """(samples,) float32, mono, nominally -1 to 1 and never clipped."""
    sample_rate: int
    """Samples per second, 24,000 for Bark."""
    text: str
    seed: int
    """Repeat the call with this seed, and the same number of rows, to get the same speech."""
    ended: bool
    """False if the token limit (or max_duration_s) cut the speech."""
    rows: int
    """Row count of the compiled programs; results are bit-equal only at the same one."""
    semantic: np.ndarray
    """(n,) int32."""
    coarse: np.ndarray
    """(2, F) int32."""
    fine: np.ndarray
    """(8, F) int32."""
    model: str = "suno"
    """Fingerprint of the model's token space, see `Voice.model`."""
    segments: tuple[Segment, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per stage, of the whole batch this speech was part of."""

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.audio) / self.sample_rate

    @property
    def voice(self) -> Voice:
        """This speech as a voice prompt for further calls.

        Raises:
          VoiceError: the speech is empty.
        """
        return Voice(semantic=self.semantic, coarse=self.coarse, fine=self.fine, model=self.model)

    def save(self, path: str | Path, *, subtype: str | None = None) -> None:
        """Write the audio; the format follows the extension (wav, flac, ogg).

        Args:
          subtype: "float" (wav only: 32-bit, exact) or "pcm16" (wav and flac: rounded, clipped at full scale); None
            chooses pcm16 for wav, which every player knows, and the format's own for others.

        Raises:
          AudioError: an extension or subtype that cannot be written.
          OSError: the file cannot be written; nothing half-written remains.
        """
        if subtype is None and Path(path).suffix.lower() == ".wav":
            subtype = "pcm16"
        audio_files.write(path, self.audio, self.sample_rate, subtype=subtype)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.audio, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return (
            f"Speech({self.duration:.2f} s at {self.sample_rate} Hz, text={self.text!r}, seed={self.seed}, "
            f"ended={self.ended})"
        )

    def _repr_html_(self) -> str:
        if len(self.audio) == 0:
            return f"<em>empty speech: {html.escape(self.text)}</em>"
        data = base64.b64encode(audio_files.wav_bytes(self.audio, self.sample_rate)).decode("ascii")
        return (
            f'<audio controls src="data:audio/wav;base64,{data}"></audio><br>'
            f"{html.escape(self.text)} <small>({self.duration:.2f} s, seed {self.seed})</small>"
        )
