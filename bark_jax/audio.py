"""Waveforms in and out of files: write, read, resample.

Takes and gives mono ``float32 (samples,)`` at a rate in Hz. This file knows nothing of models. Float audio is never
clipped; only 16-bit output is, because it has no numbers for more.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from bark_jax.files import replacing

FORMATS = {".wav": ("float", "pcm16"), ".flac": ("pcm16",), ".ogg": ("vorbis",), ".mp3": ("mp3",)}
"""Endings that `write` knows, and the sample formats of each, the default first."""

RECORDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
"""Endings of files that are taken for recordings where a folder is searched for them."""

MAX_DURATION_S = 3_600.0
"""Longest recording that `read` takes, unless told otherwise."""

_RATES = (1_000, 384_000)
_BLOCK = 2**16


class AudioError(ValueError):
    """Audio, or a file of it, that breaks a rule. The message names the value, the rule and the choices."""


def write(
    target: str | Path | IO[bytes],
    audio: np.ndarray,
    sample_rate: int,
    *,
    subtype: str | None = None,
    format: str | None = None,
) -> None:
    """Write a waveform.

    Args:
      target: a path, whose ending chooses the format (.wav, .flac, .ogg, .mp3), or a binary file object. A file is
        replaced in one step when it is complete.
      audio: (samples,) float, full scale ±1. No samples give an empty .wav or .ogg.
      sample_rate: Hz.
      subtype: ``"float"`` (32-bit, the default of .wav, exact) or ``"pcm16"`` (the default of .flac): round(x · 32768),
        clipped to 16 bits. .ogg (Vorbis) and .mp3 have one sample format each, and lose detail.
      format: an ending such as ``".flac"``, for file objects (default ``".wav"``) and paths with another ending.

    Raises:
      AudioError: not one-dimensional float audio, a NaN or an infinity, an unknown format, or too long for the format.
      OSError: the file cannot be written; an earlier file of that name is then as it was.
    """
    path = Path(target) if isinstance(target, str | os.PathLike) else None
    ending = format if format is not None else path.suffix if path is not None else ".wav"
    ending = ending.lower() if ending.startswith(".") else f".{ending.lower()}"
    if ending not in FORMATS:
        raise AudioError(f"The format of {str(target)!r} is {ending!r}: the formats are {', '.join(FORMATS)}")
    subtype = FORMATS[ending][0] if subtype is None else subtype
    if subtype not in FORMATS[ending]:
        raise AudioError(f"The subtype is {subtype!r}: a {ending} file has {' or '.join(FORMATS[ending])}")
    audio, sample_rate = _checked(audio), _rate(sample_rate)
    if path is None:
        buffer = io.BytesIO()  # libsndfile seeks, a pipe or a socket cannot
        _encode(buffer, audio, sample_rate, ending, subtype)
        stream: Any = target
        stream.write(buffer.getbuffer())
        return
    with replacing(path) as part, open(part, "xb+") as file:
        _encode(file, audio, sample_rate, ending, subtype)


def check_output(path: str | Path, subtype: str | None = None) -> None:
    """Refuse what `write` could not write, before anything is computed for it.

    Raises:
      AudioError: an ending that is no format, or a subtype that the format has not.
      OSError: no such folder, a folder in the file's place, or no permission.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"The output is {str(path)!r}: its ending must be one of {', '.join(FORMATS)}")
    if subtype and subtype not in FORMATS[path.suffix.lower()]:
        if subtype == "float":
            raise AudioError(f"The output is {str(path)!r}: only .wav holds float samples")
        raise AudioError(f"The subtype is {subtype!r}: {path.suffix} has {' or '.join(FORMATS[path.suffix.lower()])}")
    check_place(path)


def check_place(path: Path) -> None:
    """Raises `OSError` unless a file can be put there."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"There is no folder {parent} to write {path.name} into")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: the output must be a file")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"The folder {parent} cannot be written to")


def pcm16_bytes(audio: np.ndarray) -> bytes:
    """Raw samples (n,) as 16-bit little-endian integers, as `write` rounds and clips them: what ``aplay`` reads."""
    return _pcm16(_checked(audio)).tobytes()


def wav_bytes(audio: np.ndarray, sample_rate: int, *, subtype: str = "pcm16") -> bytes:
    """A whole .wav file in memory, 16-bit by default because every browser plays that. Arguments as for `write`."""
    buffer = io.BytesIO()
    write(buffer, audio, sample_rate, subtype=subtype)
    return buffer.getvalue()


def read(source: str | Path | IO[bytes], sample_rate: int, *, max_duration_s: float = MAX_DURATION_S) -> np.ndarray:
    """Read a recording as mono.

    Args:
      source: path or binary file object, in any format that libsndfile knows (wav, flac, ogg, mp3, aiff, ...).
      sample_rate: Hz of the result.
      max_duration_s: longest recording taken, in seconds.

    Returns:
      (samples,) float32, the mean of the channels, at `sample_rate`. Integer formats are scaled to ±1.

    Raises:
      AudioError: not an audio file, fewer samples than its header promises (libsndfile does not tell for .wav), empty,
        longer than `max_duration_s`, or with a NaN or an infinity in it.
      OSError: the file is missing or cannot be read.
    """
    sample_rate = _rate(sample_rate)
    own, audio = read_channels(source, max_duration_s=max_duration_s, mix=True)
    return audio if own == sample_rate else resample(audio, own, sample_rate)


def read_channels(
    source: str | Path | IO[bytes], *, max_duration_s: float = MAX_DURATION_S, mix: bool = False
) -> tuple[int, np.ndarray]:
    """Read a recording as it is.

    Args:
      source: as for `read`.
      max_duration_s: as for `read`.
      mix: give the mean of the channels.

    Returns:
      Its rate in Hz, and (samples, channels) float32, or (samples,) of a mix.

    Raises:
      AudioError: as `read`.
      OSError: as `read`.
    """
    import soundfile

    path = Path(source) if isinstance(source, str | os.PathLike) else None
    name = str(path) if path is not None else "the audio"
    if path is not None and path.exists() and not path.is_file():
        raise AudioError(f"{path} is not a file: it must be a recording, such as a .wav or .flac")
    stream: Any = path.open("rb") if path is not None else source
    try:
        blocks = []
        with soundfile.SoundFile(stream) as file:
            own = file.samplerate
            if not _RATES[0] <= own <= _RATES[1]:
                raise AudioError(f"{name} has a rate of {own} Hz: the rate must be {_RATES[0]} to {_RATES[1]} Hz")
            n, limit = 0, int(max_duration_s * own)
            while True:  # in blocks, because a header may promise more samples than there are
                block = file.read(max(1, _BLOCK // file.channels), dtype="float32", always_2d=True)
                if len(block) == 0:
                    break
                n += len(block)
                if n > limit:
                    raise AudioError(f"{name} is longer than {max_duration_s:g} seconds: cut it, or raise the limit")
                blocks.append(block.mean(axis=1) if mix else block)
            promised = file.frames
    except soundfile.SoundFileError as error:
        raise AudioError(f"{name} is not a sound file that can be read: {_reason(error)}") from None
    finally:
        if path is not None:
            stream.close()
    if not blocks:
        raise AudioError(f"{name} is empty: it must hold at least one sample")
    if n < promised:
        raise AudioError(f"{name} is cut off: its header promises {promised:,} samples, and it has {n:,}")
    audio = np.concatenate(blocks)
    for channel in audio.T.reshape(-1, len(audio)):
        _checked(channel, name)
    return own, audio


def recordings(folder: Path) -> list[Path]:
    """The recordings in a folder and those below it, by their endings, in order; none that is hidden."""
    hidden = lambda path: any(part.startswith(".") for part in path.relative_to(folder).parts)  # noqa: E731
    found = (path for path in folder.rglob("*") if path.suffix.lower() in RECORDINGS and path.is_file())
    return sorted(path for path in found if not hidden(path))


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Another rate, with soxr's high quality (a linear-phase low-pass; the ends are not faded).

    Args:
      audio: (samples,) float.

    Returns:
      (round(samples · to / from),) float32, within one sample; a copy if the rates are equal.

    Raises:
      AudioError: not one-dimensional float audio, a NaN or an infinity, or a rate that is not 1,000 to 384,000 Hz.
    """
    import soxr

    audio, from_rate, to_rate = _checked(audio), _rate(from_rate), _rate(to_rate)
    if from_rate == to_rate or len(audio) == 0:
        return audio.copy()
    return np.asarray(soxr.resample(audio, from_rate, to_rate, quality="HQ"), np.float32)


def _rate(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not _RATES[0] <= value <= _RATES[1]:
        raise AudioError(f"The sample rate is {value!r}: it must be a whole number of Hz, {_RATES[0]} to {_RATES[1]}")
    return int(value)


def _checked(audio: Any, name: str = "the audio") -> np.ndarray:
    try:
        array = np.asarray(audio)
    except Exception as error:
        raise AudioError(f"{name} cannot be made an array: {error}") from None
    if array.ndim != 1:
        raise AudioError(f"{name} has shape {array.shape}: it must be mono, (samples,)")
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"{name} is of type {array.dtype}: it must be float, with full scale ±1")
    array = np.ascontiguousarray(array, dtype=np.float32)
    for start, block in _blocks(array):
        if not np.isfinite(block).all():
            first = start + int(np.argmin(np.isfinite(block)))
            raise AudioError(f"{name} holds NaN or infinity, first at sample {first}")
    return array


def _blocks(audio: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """A waveform piece by piece: it may be a file of hours, mapped into memory."""
    for start in range(0, len(audio), _BLOCK):
        yield start, audio[start : start + _BLOCK]


def _reason(error: Exception) -> str:
    return getattr(error, "error_string", None) or str(error)  # without the name of the temporary file


def _pcm16(audio: np.ndarray) -> np.ndarray:
    # 32,768 is what readers divide by, so that rounding is the only error within full scale.
    return np.clip(np.rint(audio * np.float32(32_768)), -32_768, 32_767).astype("<i2")


def _encode(file: Any, audio: np.ndarray, sample_rate: int, ending: str, subtype: str) -> None:
    if ending == ".wav":
        _encode_wav(file, audio, sample_rate, subtype)
        return
    import soundfile

    if len(audio) == 0 and ending != ".ogg":
        raise AudioError(f"There are no samples, and a {ending} file cannot be empty: write .wav")
    names = {".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
    container, codec = names[ending]
    try:
        with soundfile.SoundFile(file, "w", sample_rate, 1, codec, format=container) as sound:
            for _, block in _blocks(audio):  # libsndfile overflows its stack on long Vorbis writes
                sound.write(_pcm16(block) if subtype == "pcm16" else block)
    except (soundfile.SoundFileError, ValueError) as error:
        raise AudioError(f"A {ending} file of {sample_rate} Hz cannot be written: {_reason(error)}") from None


def _encode_wav(file: Any, audio: np.ndarray, sample_rate: int, subtype: str) -> None:
    # By hand, because libsndfile writes the time into float files, and equal audio should be equal bytes.
    pcm = subtype == "pcm16"
    width, tag = (2, 1) if pcm else (4, 3)
    n_bytes = width * len(audio)
    fmt = struct.pack("<HHIIHH", tag, 1, sample_rate, sample_rate * width, width, 8 * width)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if not pcm:
        chunks += b"fact" + struct.pack("<II", 4, len(audio))
    size = 4 + len(chunks) + 8 + n_bytes
    if size >= 2**32:
        raise AudioError(f"The audio has {len(audio):,} samples: a .wav file holds 4 GiB, write .flac")
    file.write(b"RIFF" + struct.pack("<I", size) + b"WAVE" + chunks + b"data" + struct.pack("<I", n_bytes))
    for _, block in _blocks(audio):
        file.write((_pcm16(block) if pcm else block.astype("<f4", copy=False)).data)
