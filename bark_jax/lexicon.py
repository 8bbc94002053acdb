"""How words are said: a table that a tokenizer applies before it splits words into pieces.

A model may read sounds instead of letters: then its ``tokenizer.json`` has, besides what the ``tokenizers`` library
knows, an object ``lexicon`` of words and readings. Each word of a text that is in it is replaced by its reading, after
the file's normalizer and before its pre-tokenizer; other words stay as they are. bark-nano is such a model, Suno's are
not.

    "Knights don't!" ─ normalizer ─▶ "knights don't!" ─ Lexicon ─▶ "NˈīTS DˈōNT!" ─ tokenizer ─▶ ids

Knows words and readings; what the signs of a reading mean is between the tokenizer and its model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import NormalizedString, PreTokenizedString, Regex

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
"""What a word is: small letters without accents, and apostrophes within it."""
ENDING = re.compile(r"'[a-z]+")
"""What may be listed besides words: an ending that follows any of them, as ``'s``."""
MAX_READING = 100
"""Longest reading, in characters: the longest word that a BERT tokenizer takes."""


class LexiconError(ValueError):
    """A lexicon that is not a table of words and readings."""


class Lexicon:
    """A first step for `tokenizers.pre_tokenizers.PreTokenizer.custom`.

    A word that is not listed is read as its beginning and its ending ("suno's" as "suno" and "'s"), each where listed.

    Args:
      readings: by word (`WORD`) or ending (`ENDING`), what stands for it: 1 to `MAX_READING` characters without white
        space and without a to z, so that no reading is taken for a word.

    Raises:
      LexiconError: it names the first entry that is not so.
    """

    def __init__(self, readings: Mapping[str, str]):
        if not isinstance(readings, Mapping):
            raise LexiconError(f"lexicon is a {type(readings).__name__}: it must be an object of words and readings")
        for word, reading in readings.items():
            if not (WORD.fullmatch(word) or ENDING.fullmatch(word)):
                raise LexiconError(f"lexicon has the word {word!r}: it must be of the letters a to z, with ' inside")
            if not isinstance(reading, str) or not 1 <= len(reading) <= MAX_READING or re.search(r"[a-z\s]", reading):
                raise LexiconError(
                    f"lexicon reads {word!r} as {reading!r}: a reading is 1 to {MAX_READING} characters, none of them "
                    "white space or of a to z"
                )
        self.readings = dict(readings)

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Replace the words that are listed; the text falls apart at its spaces, each of which stays with what follows.

        Piece by piece, because a replacement takes as long as the text that it is made in.
        """
        text.split(lambda _, part: part.split(" ", "merged_with_next"))
        text.normalize(self.normalize)

    def normalize(self, text: NormalizedString) -> None:
        """Replace, in place, the words that are listed."""
        # The longer first: "it's" is not to be found as "it" in the meantime.
        for word, reading in sorted(self._found(str(text.normalized)).items(), key=lambda found: -len(found[0])):
            before = "" if ENDING.fullmatch(word) else "(?<![a-z])"
            text.replace(Regex(rf"{before}{word}(?![a-z])"), reading)

    def _found(self, text: str) -> dict[str, str]:
        found = {}
        for word in set(WORD.findall(text)):
            for part in (word,) if word in self.readings else _parts(word):
                if part in self.readings:
                    found[part] = self.readings[part]
        return found


def _parts(word: str) -> Iterator[str]:
    """The beginning and the last ending of a word that has one, else the word."""
    stem, apostrophe, ending = word.rpartition("'")
    yield from (stem, apostrophe + ending) if stem else (word,)


def of(tree: dict[str, Any]) -> Lexicon | None:
    """Take the lexicon out of the tree of a ``tokenizer.json``; None if it has none."""
    return Lexicon(tree.pop("lexicon")) if "lexicon" in tree else None
