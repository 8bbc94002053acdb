"""Who speaks, and what is heard: judges of speech, other people's networks.

`Speakers` is Resemblyzer's GE2E encoder (its weights come in its package), `Listener` is Whisper in faster-whisper,
whose weights are downloaded or in a folder. Neither is needed to speak or to train; `bark_jax.evaluate` and the
benchmarks ask them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bark_jax import audio as audio_files

RATE = 16_000
"""Hz, what both hear."""
INSTALL = {
    "resemblyzer": "pip install --no-deps resemblyzer==0.1.4, and pip install librosa webrtcvad-wheels torch",
    "faster_whisper": "pip install faster-whisper",
    "whisper_normalizer": "pip install whisper-normalizer",
}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"measuring speech needs {error.name}: {INSTALL[name]}", name=error.name) from None


class Speakers:
    """Speech → a vector (256,) of length 1 that says whose it is; the product of two is their similarity, -1 to 1.

    Raises:
      ModuleNotFoundError: Resemblyzer or what it needs is not installed.
    """

    def __init__(self) -> None:
        resemblyzer = _import("resemblyzer")
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
        self._prepare = resemblyzer.preprocess_wav

    def __call__(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """The vector of (samples,) float at `rate` Hz; zeros where nobody speaks for a tenth of a second.

        Raises:
          ValueError: audio as `bark_jax.audio.resample` refuses it.
        """
        audio = audio_files.resample(audio, rate, RATE)
        if np.abs(audio).max(initial=0) < 1e-4:  # Resemblyzer divides by the level
            return np.zeros(256)
        heard = self._prepare(audio, source_sr=RATE)
        return np.asarray(self._encoder.embed_utterance(heard)) if len(heard) > RATE // 10 else np.zeros(256)


def mean_speaker(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """One vector of length 1 for a speaker, of some of theirs."""
    total = np.sum(vectors, axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)


ALIKE = ((3.0, 0.745), (2.0, 0.70))
"""From so many seconds of speech on, how like the others a clip of the same speaker is at least. Measured on ten
speakers of LibriSpeech's test set, against the mean of five clips: of 3 s, the speaker's own are 0.77 and more, those
of others 0.72 and less; of 2 s, 0.713 and 0.710. Shorter ones overlap, and are not judged."""


def strangers(vectors: Sequence[np.ndarray], seconds: Sequence[float]) -> dict[int, float]:
    """Clips that somebody else speaks than most of the others do.

    Args:
      vectors: what `Speakers` says of each clip.
      seconds: how long each is.

    Returns:
      Number of the clip → how like the others it is. None of them, where fewer than three clips are long enough to tell
      who most of the others are.
    """
    long = [i for i, s in enumerate(seconds) if s >= ALIKE[0][0]]
    if len(long) < 3:
        return {}
    known = np.array([vectors[i] for i in long])
    alike = known @ known.T >= ALIKE[0][1]
    most = mean_speaker(known[alike[np.argmax(alike.sum(axis=1))]])
    most = mean_speaker([vector for vector in known if vector @ most >= ALIKE[0][1]])
    found = {}
    for i, (vector, s) in enumerate(zip(vectors, seconds, strict=True)):
        limit = next((limit for least, limit in ALIKE if s >= least), None)
        if limit is not None and vector @ most < limit:
            found[i] = float(vector @ most)
    return found


class Listener:
    """Whisper, greedily, and how words are compared.

    Args:
      model: a size such as ``"base"`` that faster-whisper downloads, or a folder with a model in its format.
      language: of the speech, Whisper's code.
      threads: of the computation.

    Raises:
      ModuleNotFoundError: faster-whisper or whisper-normalizer is not installed.
    """

    def __init__(self, model: str = "base", *, language: str = "en", threads: int = 1):
        whisper = _import("faster_whisper")
        _import("whisper_normalizer")
        if language == "en":
            normaliser = importlib.import_module("whisper_normalizer.english").EnglishTextNormalizer()
        else:
            normaliser = importlib.import_module("whisper_normalizer.basic").BasicTextNormalizer()
        self._normalise, self._language = normaliser, language
        self._model = whisper.WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)

    def words(self, text: str) -> list[str]:
        """What is compared: normalised words, numbers as single digits, so that "7:45" is "seven forty-five"."""
        return re.sub(r"\d", r" \g<0> ", self._normalise(text)).split()

    def hear(self, audio: np.ndarray, rate: int = RATE) -> str:
        """Text of (samples,) float at `rate` Hz."""
        segments, _ = self._model.transcribe(
            audio_files.resample(audio, rate, RATE),
            language=self._language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def wrong(self, text: str, audio: np.ndarray, rate: int) -> tuple[int, int]:
        """Wrong words of a text that (samples,) float should say, and its words; their ratio may exceed 1."""
        wanted = self.words(text)
        return int(errors(wanted, self.words(self.hear(audio, rate))).sum()), len(wanted)


def errors(wanted: Sequence[str], heard: Sequence[str]) -> np.ndarray:
    """(len(wanted),) int: errors at each wanted word along a best alignment: another, none, or more words after it."""
    n, m = len(wanted), len(heard)
    cost = np.zeros((n + 1, m + 1), np.int32)
    cost[:, 0], cost[0] = np.arange(n + 1), np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            cost[i, j] = min(
                cost[i - 1, j - 1] + (wanted[i - 1] != heard[j - 1]), cost[i - 1, j] + 1, cost[i, j - 1] + 1
            )
    out = np.zeros(n, np.int64)
    i, j = n, m
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (wanted[i - 1] != heard[j - 1]):
            out[i - 1] += wanted[i - 1] != heard[j - 1]
            i, j = i - 1, j - 1
        elif j and cost[i, j] == cost[i, j - 1] + 1:
            if n:
                out[max(i - 1, 0)] += 1
            j -= 1
        else:
            out[i - 1] += 1
            i -= 1
    return out
