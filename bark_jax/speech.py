"""`Speech`: what a call gives back. Audio with everything that made it; knows how to be saved and played, no model."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bark_jax import audio as audio_files
from bark_jax.files import replacing
from bark_jax.voice import Voice

ENDINGS = (".srt", ".json")
"""Of files of timestamps."""

Mark = Callable[[np.ndarray, int], np.ndarray]
"""What puts a watermark into audio, see `Speech.save`."""


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
    """With it, its voice and the same number of rows, the part alone is spoken the same way."""
    ended: bool
    attempts: int = 1
    """How often it was spoken until it was near enough to what its text lets expect."""


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
    """Row count of the batch, at its beginning; results are bit-equal only if `load` was given it (see `Bark`)."""
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
    """Seconds per stage, of the whole batch this speech was part of; of a longer text those of all its parts."""
    last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    """Semantic, coarse and fine tokens of the last part of a longer text; None: there is but one."""

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.audio) / self.sample_rate

    @property
    def voice(self) -> Voice:
        """This speech, of a longer text its last part, as a voice prompt for further calls.

        Raises:
          VoiceError: it is empty, or too short.
        """
        semantic, coarse, fine = self.last or (self.semantic, self.coarse, self.fine)
        return Voice(semantic=semantic, coarse=coarse, fine=fine, model=self.model)

    def save(
        self,
        path: str | Path,
        *,
        subtype: str | None = None,
        about: Mapping[str, Any] | None = None,
        mark: Mark | None = None,
    ) -> None:
        """Write the audio; the format follows the extension (wav, flac, ogg, mp3).

        Args:
          subtype: "float" (wav only: 32-bit, exact) or "pcm16" (wav and flac: rounded, clipped at full scale); None
            chooses pcm16 for wav, which every player knows, and the format's own for others.
          about: what `Bark.about` says; written beside the audio, as ``PATH.json``.
          mark: puts a watermark into what is written: (samples,) float32 and samples per second → as many samples.

        Raises:
          AudioError: an extension or subtype that cannot be written, or a mark that gives something else.
          OSError: a file cannot be written; nothing half-written remains.
        """
        if subtype is None and Path(path).suffix.lower() == ".wav":
            subtype = "pcm16"
        audio = self.audio if mark is None else _marked(mark, self.audio, self.sample_rate)
        audio_files.write(path, audio, self.sample_rate, subtype=subtype)
        if about is not None:
            place = Path(path)
            with replacing(place.with_name(place.name + ".json")) as part:
                part.write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")

    def save_timestamps(self, path: str | Path) -> None:
        """Write when each part is spoken: ``.srt`` subtitles, or ``.json``; see `timestamps`.

        Raises:
          ValueError: another ending.
          OSError: the file cannot be written; nothing half-written remains.
        """
        save_timestamps(path, self.segments)

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


def _marked(mark: Mark, audio: np.ndarray, rate: int) -> np.ndarray:
    made = np.asarray(mark(audio.copy(), rate), np.float32)
    if made.shape != audio.shape or not np.isfinite(made).all():
        raise audio_files.AudioError(
            f"The mark gives an array of shape {made.shape}: it must give {audio.shape}, and finite numbers"
        )
    return made


def timestamps(segments: Sequence[Segment], ending: str) -> str:
    """When each part is spoken, as the text of a file.

    Args:
      ending: ``.srt`` (SubRip: numbered, hours:minutes:seconds,milliseconds) or ``.json`` (a list of objects with the
        fields of `Segment`, times in seconds).

    Raises:
      ValueError: another ending.
    """
    if ending not in ENDINGS:
        raise ValueError(f"The timestamps' ending is {ending!r}: choose {' or '.join(ENDINGS)}")
    if ending == ".json":
        return json.dumps([dataclasses.asdict(segment) for segment in segments], ensure_ascii=False, indent=1) + "\n"
    blocks = []
    for number, segment in enumerate(segments, 1):
        times = " --> ".join(_clock(seconds) for seconds in (segment.start, segment.end))
        blocks.append(f"{number}\n{times}\n{' '.join(segment.text.split())}\n")
    return "\n".join(blocks)


def check_timestamps(path: str | Path) -> None:
    """Refuse what timestamps could not be written to: `ValueError` for its ending, `OSError` for its folder."""
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"The timestamps are to be written to {str(path)!r}: its ending must be {' or '.join(ENDINGS)}"
        )
    audio_files.check_place(path)


def save_timestamps(path: str | Path, segments: Sequence[Segment]) -> None:
    """Write `timestamps` to a file, whose ending says how; errors are those of `Speech.save_timestamps`."""
    path = Path(path)
    check_timestamps(path)
    written = timestamps(segments, path.suffix.lower())
    with replacing(path) as part:
        part.write_text(written, "utf-8")


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
