"""How English words are said: the lexicon in bark-nano's tokenizer (`bark_jax.lexicon`).

    texts, their phonemes by hibari's reader (misaki's lexicon) ─▶ `readings` ─▶ word: signs, one for a phoneme

The text stage is small and has heard a day of speech: letters are too much for it to make out
(`benchmarks/NOTES.md`, "What bark-nano reads"). Pronunciation is American, and the commonest of a word where it has
several. Words that are not in the lexicon are left as letters, in training too, so that some names may be guessed.
"""

from __future__ import annotations

import gzip
import importlib.resources
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from bark_jax.lexicon import WORD

SIGNS = str.maketrans(
    {
        **{letter: letter.upper() for letter in "bdfhjklmnpstvwziu"},
        **dict(zip("AIOWYT", "ēīōŵŷɾ", strict=True)),
        "ˌ": None,
    }
)
"""Phonemes of misaki to signs that are no letters of a text; secondary stress is left out."""
ENDINGS = {"'s": "Z", "'ll": "əL", "'d": "D", "'ve": "V", "'re": "əɹ"}
INFLECTIONS = ("s", "ed", "ing")
OFTEN = 2
"""A word that the corpus has so often is listed even if no dictionary has it."""
LONG, SHORT = 14, 5
"""Letters of the longest word of the dictionary that is listed, and of the longest that is inflected unless common."""


def readings(texts: Iterable[str]) -> dict[str, str]:
    """The lexicon: hibari's dictionary, common words with endings, and what the texts have `OFTEN`.

    Args:
      texts: normalised, as the tokenizer does before its lexicon.
    """
    from hibari.g2p import G2P

    read, known = G2P(), G2P(oov=False, unk="?")
    heard: dict[str, Counter[str]] = defaultdict(Counter)
    count: Counter[str] = Counter()
    for text in texts:
        words = WORD.findall(text)
        count.update(words)
        said = re.sub(r"[^\w\sˈˌ]", " ", read(text)).split()
        if len(said) == len(words):  # else a number, or words made one
            for word, phonemes in zip(words, said, strict=True):
                heard[word][phonemes] += 1
    dictionary = {word for word in _words("lexicon_us_gold.json.gz") if len(word) <= LONG}
    common = count.keys() | set(_words("tagger.json.gz", "tagdict"))
    bases = common | {word for word in dictionary if len(word) <= SHORT}
    bases -= {word + ending for word in bases for ending in INFLECTIONS}  # not "endeds"
    bases -= {word[:-1] + ending for word in bases if word.endswith("e") for ending in INFLECTIONS}
    inflected = {word + ending for word in bases for ending in INFLECTIONS if not word.endswith("e") or ending == "s"}
    inflected |= {word[:-1] + ending for word in bases if word.endswith("e") for ending in INFLECTIONS[1:]}
    found = dict(ENDINGS)
    for word in sorted(dictionary | common | inflected):
        if heard.get(word):
            phonemes = heard[word].most_common(1)[0][0]
        else:
            phonemes = (read if count[word] >= OFTEN else known)(word)
        if phonemes and not re.search(r"[\s?]", phonemes) and (count[word] >= OFTEN or "?" not in known(word)):
            found[word] = phonemes.translate(SIGNS)
    return found


def _words(asset: str, key: str | None = None) -> Iterable[str]:
    """The words of one of hibari's tables, in small letters."""
    with importlib.resources.files("hibari").joinpath("assets", asset).open("rb") as file:
        table = json.loads(gzip.decompress(file.read()))
    for word in table if key is None else table[key]:
        if WORD.fullmatch(word.lower()):
            yield word.lower()
