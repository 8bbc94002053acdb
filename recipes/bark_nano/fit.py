"""Does the text stage say its texts, and where does it lose them? ``python -m recipes.bark_nano.evaluate text``

    rows ─▶ how the pieces of texts are said (`bark_jax.train.alignment`) ─▶ likelihoods ◀─ validation texts, said anew

No other network and no recogniser takes part, so it is the text stage alone that is measured, in a minute. A piece
counts as not heard where the likeliest path passes it over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import bark_jax
from bark_jax import library, text
from bark_jax.train import data
from bark_jax.train.alignment import UNKNOWN, Sounds

LONG = 13
"""Words: the everyday sentences have no more, nearly all of LJSpeech's have."""
STEP = 16
"""Pieces of a line of the table."""


class Fits:
    """Per place of a piece: the sum of likelihoods of its semantic ids, their number, pieces, pieces not heard."""

    def __init__(self) -> None:
        self.sums = np.zeros((4, 0))

    def add(self, sounds: Sounds, ids: np.ndarray, said: np.ndarray) -> None:
        """Add a clip; one with fewer semantic ids than pieces says none of them."""
        [places] = sounds.places([ids], [said])
        n = len(ids)
        if self.sums.shape[1] < n:
            self.sums = np.pad(self.sums, ((0, 0), (0, n - self.sums.shape[1])))
        self.sums[2, :n] += 1
        if places[0] == UNKNOWN:
            self.sums[3, :n] += 1
            return
        inside = (places > 0) & (places <= n)
        fits = sounds.likelihoods(ids, said, places)[inside]
        self.sums[0, :n] += np.bincount(places[inside] - 1, fits, n)
        times = np.bincount(places[inside] - 1, minlength=n)
        self.sums[1, :n] += times
        self.sums[3, :n] += times == 0

    def mean(self, of: slice = slice(None)) -> tuple[float, float]:
        """Nats per semantic id, and the share of pieces that are not heard."""
        fits, times, pieces, lost = self.sums[:, of].sum(axis=1)
        return float(fits / max(times, 1)), float(lost / max(pieces, 1))


def evaluate_text(rows: Path, model: str, *, most: int = 60) -> dict[str, Any]:
    """Figures, and a table on the way: of the corpus's own clips, and of the same texts said by the model's presets."""
    bark = bark_jax.load(model)
    tokenizer = text.load_tokenizer(Path(library.locate(model)[0]) / "tokenizer.json")
    corpus = data.read(rows, bark.config, "text", tokenizer=tokenizer)
    pieces, units = corpus.pairs()
    sounds = Sounds.learn(pieces, units)
    figures: dict[str, Any] = {}
    for name, long in (("short", False), ("long", True)):
        chosen = [i for i in corpus.split("validation") if (len(corpus.texts[i].split()) > LONG) == long][:most]
        voices = [bark.voices()[k % len(bark.voices())] for k in range(len(chosen))]
        texts = [corpus.texts[i] for i in chosen]
        said = bark.text_to_semantic(texts, voice=voices, seed=list(range(len(chosen))))
        true, own = Fits(), Fits()
        for i, one in zip(chosen, said, strict=True):
            true.add(sounds, pieces[i], units[i])
            own.add(sounds, pieces[i], one)
        print(
            f"{len(chosen)} {name} sentences: nats per semantic id, and pieces not heard, of the corpus and of {model}"
        )
        for start in range(0, true.sums.shape[1], STEP):
            at = slice(start, start + STEP)
            print("  piece {:>3} on: {:6.2f} {:5.1%} {:8.2f} {:5.1%}".format(start, *true.mean(at), *own.mean(at)))
        for key, fits in ((name, own), (f"{name}_corpus", true)):
            figures[f"fit_{key}"], figures[f"unheard_{key}"] = (round(x, 4) for x in fits.mean())
    return figures
