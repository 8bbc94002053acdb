"""A text of any length → parts that are said in one call each: sentences of 13 languages, pauses, speakers.

    text ─ turns ─▶ who says what, and pauses ─ sentences ─▶ units ─ packed ─▶ `Part`s

Takes a text and a `Ruler`, which knows how much text fits one call; gives parts that hold every character of the text
but `[pause]` tags and speakers' names, in order. Knows nothing of models, voices or audio.

Sentences are those of `sentencex`, mended where it takes an abbreviation's dot for a full stop. A sentence that is too
long is halved at the boundary nearest to its middle: after a comma or dash, else at a space, else between any two
characters that may be parted. Everything is linear in the text but for that halving, which is n log n.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import sentencex
from tokenizers import Tokenizer

from bark_jax import text as texts
from bark_jax.text import TextError

LANGUAGES = ("en", "de", "es", "fr", "hi", "it", "ja", "ko", "pl", "pt", "ru", "tr", "zh")
"""Bark's 13."""

POLICIES = ("fixed", "first", "previous")

MOST_RETRIES = 100
LEAST_PART_S = 0.5
LONGEST_PAUSE_S = 60.0
USUAL_PAUSE_S = 0.5
"""Of ``[pause]``."""

# How strong a boundary is, and how long a pause stands there, as a share of `Split.pause_s`.
ANYWHERE, SPACE, CLAUSE, SENTENCE, PARAGRAPH = range(5)
_PAUSES = {ANYWHERE: 0.0, SPACE: 0.0, CLAUSE: 0.5, SENTENCE: 1.0, PARAGRAPH: 2.0}


class SplitError(ValueError):
    """Settings of `Split` that are out of range."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a text that is too long for one call is spoken; ``split=True`` stands for the defaults.

    Attributes:
      voice: "fixed": the voice that is given speaks every part. "first": the first part, spoken by the voice that is
        given or by none, becomes the voice of all others. "previous": each part becomes the voice of the next, so that
        moods carry on, and mistakes too. None: "fixed" where a voice is given, else "first".
      max_duration_s: predicted duration of a part, in seconds, 0.5 or more; a text below it is one call, never
        split, trimmed or spoken again. None: 13 for Bark, 85 % of what a call can hold for any model.
      retries: how often a part that did not end, or lasts far longer or shorter than its text should, is spoken again,
        0 to 100. What came nearest is kept.
      pause_s: silence between two sentences, 0 to 60 seconds; twice as long between paragraphs, half as long where a
        sentence had to be cut after a comma.
      trim: whether silence at the end of a part is cut off, so that pauses are what `pause_s` says.
      language: of the text, one of `LANGUAGES`, which tells abbreviations from full stops. None: of the voice's name
        (``v2/de_speaker_3``), or by its script.

    Raises:
      SplitError: a value that is out of range.
    """

    voice: str | None = None
    max_duration_s: float | None = None
    retries: int = 2
    pause_s: float = 0.3
    trim: bool = True
    language: str | None = None

    def __post_init__(self) -> None:
        def need(name: str, right: bool, rule: str) -> None:
            if not right:
                raise SplitError(f"{name} is {getattr(self, name)!r}: it must be {rule}")

        def number(value: object) -> bool:
            return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)

        right = self.voice is None or (isinstance(self.voice, str) and self.voice in POLICIES)
        need("voice", right, f"one of {', '.join(POLICIES)}, or None")
        most = self.max_duration_s
        right = most is None or (number(most) and LEAST_PART_S <= most < math.inf)
        need("max_duration_s", right, f"{LEAST_PART_S:g} or more, or None")
        whole = isinstance(self.retries, int | np.integer) and not isinstance(self.retries, bool)
        need("retries", whole and 0 <= self.retries <= MOST_RETRIES, f"an integer of 0 to {MOST_RETRIES}")
        need("pause_s", number(self.pause_s) and 0 <= self.pause_s <= LONGEST_PAUSE_S, f"0 to {LONGEST_PAUSE_S:g}")
        need("trim", isinstance(self.trim, bool), "True or False")
        need(
            "language",
            self.language is None or (isinstance(self.language, str) and self.language in LANGUAGES),
            f"one of {', '.join(LANGUAGES)}, or None",
        )


@dataclass(frozen=True)
class Part:
    """What is said in one call."""

    text: str
    speaker: str | None = None
    """A name of the cast."""
    pause_s: float = 0.0
    """Silence before it, in seconds."""


# --- how long a text is -----------------------------------------------------------------------------------------------

# Seconds per character, by the first code point of a range. Syllables per second of the languages are those of
# Pellegrino, Coupé and Marsico (2011): 5.2 in Mandarin, 6.2 in English, 7.8 in Japanese; a letter of LJSpeech's
# transcripts lasts 0.066 s with its spaces.
_LETTER, _DIGIT, _KANA, _HAN, _HANGUL = 0.066, 0.25, 0.13, 0.2, 0.15
_RANGES = (
    (0x0000, 0.0),
    (0x0020, _LETTER),  # spaces, punctuation, Latin
    (0x0030, _DIGIT),
    (0x003A, _LETTER),
    (0x0300, 0.0),  # combining marks
    (0x0370, _LETTER),  # Greek, Cyrillic and on
    (0x0900, 0.08),  # Devanagari: a letter is a syllable, its marks are letters too
    (0x0966, _DIGIT),
    (0x0970, 0.08),
    (0x1100, 0.05),  # Hangul by letters
    (0x1200, _LETTER),
    (0x200B, 0.0),  # zero width
    (0x2010, _LETTER),
    (0x3000, _KANA),
    (0x3400, _HAN),
    (0xA000, _LETTER),
    (0xAC00, _HANGUL),
    (0xD7A4, _LETTER),
    (0xF900, _HAN),
    (0xFB00, _LETTER),
    (0xFE00, 0.0),  # variation selectors
    (0xFE10, _LETTER),
    (0x20000, _HAN),
)
_FIRST = np.array([first for first, _ in _RANGES], np.uint32)
_SECONDS = np.array([seconds for _, seconds in _RANGES])


def _points(text: str) -> np.ndarray:
    """The code points of a text (n,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _seconds(points: np.ndarray) -> np.ndarray:
    """Predicted seconds of each character (n,)."""
    return _SECONDS[np.searchsorted(_FIRST, points, side="right") - 1]


def predicted_duration(text: str) -> float:
    """Seconds that a text probably takes at a normal pace: a rule of thumb by script, within a factor of two."""
    return float(_seconds(_points(text)).sum())


LONG = 4_000
"""Characters of a text that is surely more than one part."""


class Ruler:
    """Tells what fits one call.

    Args:
      most_tokens: of a part's text, such as ``SemanticConfig.text_length``.
      most_seconds: predicted, of a part.
    """

    def __init__(self, tokenizer: Tokenizer, most_tokens: int, most_seconds: float):
        self.tokenizer, self.most_tokens, self.most_seconds = tokenizer, most_tokens, most_seconds

    def fits(self, text: str) -> bool:
        """Whether one call can say it."""
        return predicted_duration(text) <= self.most_seconds and self.has_room(text)

    def has_room(self, text: str) -> bool:
        """Whether its tokens are few enough."""
        return texts.count_tokens(self.tokenizer, text) <= self.most_tokens

    def silent(self, text: str) -> bool:
        """Whether nothing of it is a token. In a long text, letters are taken to have tokens."""
        if not text.strip():
            return True
        return not (len(text) > LONG and _speakable(text)) and not texts.count_tokens(self.tokenizer, text)


class _Measured:
    """A text whose stretches are measured without reading all of it again."""

    def __init__(self, text: str, ruler: Ruler):
        self.text, self.ruler = text, ruler
        self._seconds = [0.0, *np.cumsum(_seconds(_points(text))).tolist()]  # a list: looked into one by one

    def seconds(self, start: int, end: int) -> float:
        return self._seconds[end] - self._seconds[start]

    def fits(self, start: int, end: int) -> bool:
        return self.seconds(start, end) <= self.ruler.most_seconds and self.ruler.has_room(self.text[start:end])


# --- sentences --------------------------------------------------------------------------------------------------------

# Where sentencex takes the dot for a full stop, or where the text's language is not known. Folded, without the dot.
_ABBREVIATIONS = frozenset(
    "dr prof mr mrs ms st vs no nr fig vol hr fr frau herr sr sra srta dott sig ing arch mme mlle mgr ul al pl "
    "inż mgr hab ks вул ул г гг стр им проф д डॉ श्री श्रीमती sn av doç".split()
)
STRETCH = 1_000
"""Characters that sentencex is given at once, a minute of speech: where quotation marks are open, it takes time by the
square of them, and one that is never closed makes a single sentence of all that follows."""
_OTHER_SPACES = re.compile(r"[^\S\x00-\x7f]")
_LAST_WORD = re.compile(r"(\S+)\.\s*$")
_QUOTED = ("と", "って", "라고", "하고", "이라고")
_CLOSING = "\"'”’»」』)）"


def language_of(text: str) -> str:
    """The language of a text as far as its script tells: ja, ko, zh, hi, ru, or "en" for any Latin one."""
    points = _points(text[:2000])
    counts = {}
    for name, first, last in (
        ("ja", 0x3040, 0x30FF),
        ("ko", 0xAC00, 0xD7A3),
        ("zh", 0x4E00, 0x9FFF),
        ("hi", 0x0900, 0x097F),
        ("ru", 0x0400, 0x04FF),
    ):
        counts[name] = int(((points >= first) & (points <= last)).sum())
    if counts["ja"]:  # kana stand among Han characters in Japanese alone
        counts["ja"] += counts["zh"]
    most = max(counts, key=lambda name: counts[name])
    letters = sum(character.isalpha() for character in text[:2000])
    return most if counts[most] * 2 > letters else "en"


def sentences(text: str, language: str | None = None) -> list[str]:
    """The sentences of a text, each with the white space behind it; joined, they are the text.

    A paragraph's end (an empty line) belongs to the sentence before it.

    Raises:
      TextError: a lone surrogate.
    """
    texts.check(text)
    begin: list[int] = []
    breaks = 0  # of lines, in the white space at the end of what was found last
    # Of a long text it leaves out white space between its sentences now and then; where they begin is right.
    starts = _starts(text, language or language_of(text))
    for start, end in itertools.pairwise([0, *starts, len(text)] if text else []):
        one = text[start:end]
        blank = not one.strip()
        before = text[max(begin[-1], start - 40) : start] if begin else ""
        if not begin or not (blank or (breaks < 2 and _goes_on(before, one))):
            begin.append(start)
        breaks = (breaks if blank else 0) + _line_breaks(one[len(one.rstrip()) :])
    return [text[start:end] for start, end in itertools.pairwise([*begin, len(text)])]


_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028]|(\u2029)")


def _line_breaks(space: str) -> int:
    """Ends of lines in white space; a paragraph's own sign is two."""
    return sum(2 if found[1] else 1 for found in _LINE_BREAK.finditer(space))


def _starts(text: str, language: str) -> list[int]:
    """Where sentencex finds a sentence to begin, but for the first."""
    # It takes the bytes of other white space than ASCII's for one each, and panics in the middle of a character.
    plain = _OTHER_SPACES.sub(" ", text)
    found: list[int] = []
    at = 0
    while True:
        stretch = plain[at : at + STRETCH]
        inside = _boundaries(stretch, language)[1:]
        end = len(stretch)
        if at + end < len(plain) and inside:  # the last sentence goes on behind the stretch; a line begins anew, best
            lines = (i for i in reversed(inside) if i > end // 2 and stretch[i - 1] == "\n")
            end = next(lines, inside[-1])
        found += [at + i for i in inside if i <= end]
        at += end
        if at >= len(plain):
            return found


def _boundaries(plain: str, language: str) -> list[int]:
    try:
        found = sentencex.get_sentence_boundaries(language, plain)  # pyrefly: ignore[missing-attribute]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of the Rust library derives from it; what it cannot split is cut where it must be
        return [0]
    return [one["start_index"] for one in found]


def _goes_on(before: str, after: str) -> bool:
    """Whether what was taken for two sentences is one; `before` is the end of the first."""
    word = _LAST_WORD.search(before)
    if word:
        last = word[1].rpartition("(")[2].casefold()
        if last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha()) or re.fullmatch(r"(?:\w\.)+\w", last):
            return True
    return before.rstrip()[-1:] in tuple(_CLOSING) and after.startswith(_QUOTED)


# --- boundaries -------------------------------------------------------------------------------------------------------

_CLAUSE_END = re.compile(r"[,;:—–…](?=\s)\s+|(?<=\s)[—–-]\s+|[、，；：]\s*")
_SPACES = re.compile(r"\s+")
_JOINERS = {0x200D, *range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400)}


def _speakable(text: str) -> bool:
    """Whether there is more in it than punctuation."""
    return any(character.isalnum() or character == "♪" for character in text)


def _halve(measured: _Measured, start: int, end: int, clauses: Sequence[int], spaces: Sequence[int]) -> Iterator[int]:
    """Places (ascending) at which a stretch that does not fit is to be cut."""
    todo = [(start, end)]
    while todo:
        first, last = todo.pop()
        if measured.fits(first, last) or last - first < 2:
            if last != end:
                yield last
            continue
        at = _nearest_middle(measured.text, first, last, clauses, spaces)
        todo += [(at, last), (first, at)]


def _nearest_middle(text: str, start: int, end: int, clauses: Sequence[int], spaces: Sequence[int]) -> int:
    middle, room = (start + end) // 2, (end - start) // 4
    for places in (clauses, spaces):
        i = bisect.bisect_left(places, middle)
        near = [place for place in places[max(0, i - 1) : i + 1] if start < place < end]
        best = min(near, key=lambda place: abs(place - middle), default=None)
        if best is not None and abs(best - middle) <= room:
            return best
    for at in range(middle, end):
        if not unicodedata.combining(text[at]) and not {ord(text[at]), ord(text[at - 1])} & _JOINERS:
            return at
    return middle


class _Unit(NamedTuple):
    """A sentence, what was cut out of one, or what is put together of some."""

    start: int
    end: int
    level: int
    """How strong the boundary at its end is."""


def _grown(measured: _Measured, units: Sequence[_Unit], first: int, end: int, wanted: float = math.inf) -> int:
    """Behind the last of the units from `first` on, and before `end`, that fit together and have `wanted` seconds.

    A call fits with one or two counts of its tokens, not with one for each unit.
    """
    start, last = units[first].start, first + 1
    while (
        last < end
        and measured.seconds(start, units[last - 1].end) < wanted
        and measured.seconds(start, units[last].end) <= measured.ruler.most_seconds
    ):
        last += 1
    if last - first < 2 or measured.fits(start, units[last - 1].end):
        return last
    return bisect.bisect_left(
        range(last), True, first + 2, last, key=lambda i: not measured.fits(start, units[i - 1].end)
    ) - 1  # fmt: skip


def _joined(units: Sequence[_Unit]) -> _Unit:
    return _Unit(units[0].start, units[-1].end, max(unit.level for unit in units))


def _units(measured: _Measured, language: str | None) -> list[_Unit]:
    """Sentences, or what was cut out of them; punctuation alone, which is not worth a call, with what it follows."""
    text = measured.text
    clauses = [found.end() for found in _CLAUSE_END.finditer(text)]
    spaces = [found.end() for found in _SPACES.finditer(text)]
    strong = set(clauses)
    pieces: list[_Unit] = []
    start = 0
    for sentence in sentences(text, language):
        end = start + len(sentence)
        tail = sentence[len(sentence.rstrip()) :]
        cuts = [*_halve(measured, start, end, clauses, spaces), end]
        for cut in cuts:
            inside = CLAUSE if cut in strong else SPACE if text[cut - 1 : cut].isspace() else ANYWHERE
            level = inside if cut < end else PARAGRAPH if _line_breaks(tail) > 1 else SENTENCE
            pieces.append(_Unit(start, cut, level))
            start = cut
    units: list[_Unit] = []
    first = 0
    while first < len(pieces):
        end = first + 1
        while end < len(pieces) and not _speakable(text[pieces[end].start : pieces[end].end]):
            end += 1
        while first < end:
            together = _grown(measured, pieces, first, end)
            units.append(_joined(pieces[first:together]))
            first = together
    return units


def _pack(measured: _Measured, units: Sequence[_Unit], first_alone: bool) -> Iterator[_Unit]:
    """Sentences put together into parts that fit, paragraph by paragraph, in parts of about the same length, so that
    none is a lonely last word.
    """
    first = 0
    while first < len(units):
        end = first + 1
        while end < len(units) and units[end - 1].level < PARAGRAPH:
            end += 1
        if first == 0 and first_alone:
            end = 1
        whole = measured.seconds(units[first].start, units[end - 1].end)
        wanted = whole / max(1, math.ceil(whole / measured.ruler.most_seconds))
        while first < end:
            together = _grown(measured, units, first, end, wanted)
            yield _Unit(units[first].start, *units[together - 1][1:])
            first = together


# --- pauses and speakers ----------------------------------------------------------------------------------------------

_PAUSE = re.compile(r"\[\s*pause\b([^\]\[\n]{0,40})\]", re.IGNORECASE)
_LENGTH = re.compile(r"[:\s]*(?:(\d+(?:\.\d+)?|\.\d+)\s*(ms|s)?)?\s*", re.IGNORECASE)


def _pause_length(tag: re.Match[str]) -> float:
    length = _LENGTH.fullmatch(tag[1])
    seconds = math.inf
    if length:
        scale = 0.001 if (length[2] or "").lower() == "ms" else 1.0
        seconds = float(length[1]) * scale if length[1] else USUAL_PAUSE_S
    if seconds > LONGEST_PAUSE_S:
        raise TextError(
            f"The text has {tag[0]!r}: a pause is [pause], [pause 0.5s] or [pause 500ms], up to {LONGEST_PAUSE_S:g} s"
        )
    return seconds


_ENDS = r"\n\r\v\f\x85\u2028\u2029"
_LINE = rf"(?:\A\ufeff?|(?<=[{_ENDS}]))[^\S{_ENDS}]*(NAME)[^\S{_ENDS}]*[:：]"
"""The beginning of a speaker's line."""


def turns(text: str, cast: Collection[str] = ()) -> list[tuple[str | None, str]]:
    """A script by speaker: lines that begin with a name of the cast and a colon, and the lines after each.

    Raises:
      TextError: a text before the first name.
    """
    if not cast:
        return [(None, text)]
    # A script may write a name's accents as one character or as two.
    written = {unicodedata.normalize(form, name): name for name in cast for form in ("NFD", "NFC")}
    written |= {name: name for name in cast}
    names = "|".join(re.escape(name) for name in sorted(written, key=len, reverse=True))
    marks = list(re.finditer(_LINE.replace("NAME", names), text))
    first = text[: marks[0].start()] if marks else text
    if first.strip():
        shown = first.strip().split("\n")[0][:60]
        raise TextError(f"The line {shown!r} has no speaker: a script's first line begins with one of "
                        f"{', '.join(f'{name}:' for name in cast)}")  # fmt: skip
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return [(written[mark[1]], text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]


def strangers(text: str, cast: Collection[str]) -> list[str]:
    """What looks like a speaker's name at the beginning of a line and is not in the cast: CAPITALS and a colon, or
    nearly a name of the cast and a colon.
    """
    known = [name.casefold() for name in cast]
    found = dict.fromkeys(re.findall(_LINE.replace("NAME", r"(?!\d)\w[\w .'-]{0,30}?"), text))

    def strange(name: str) -> bool:
        capitals = re.fullmatch(r"[A-Z][A-Z0-9 _.-]*", name) is not None
        return capitals or bool(difflib.get_close_matches(name.casefold(), known, 1, 0.65))

    return [name for name in found if unicodedata.normalize("NFC", name) not in cast and strange(name)]


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A text as it will be spoken."""

    parts: tuple[Part, ...]
    pause_s: float = 0.0
    """Silence after the last part."""
    whole: bool = False
    """One call, as without splitting: not trimmed, and not spoken again."""


def plan(text: str, ruler: Ruler, split: Split, *, cast: Collection[str] = (), language: str | None = None) -> Plan:
    """Decide what is said in which call.

    Args:
      text: any characters but lone surrogates.
      cast: names that speak, if it is a script.
      language: of the text; `split.language` comes first.

    Raises:
      TextError: a pause that is none, a line without speaker, a lone surrogate, or nothing to say.
    """
    texts.check(text)
    if not cast and not _PAUSE.search(text) and ruler.fits(text):
        return Plan((Part(text),), whole=True)
    language = split.language or language
    parts: list[Part] = []
    natural, asked = 0.0, None
    for speaker, said in turns(text, cast):
        place = 0
        tags = list(_PAUSE.finditer(said))
        for tag in [*tags, None]:
            stretch = said[place : len(said) if tag is None else tag.start()]
            for piece, level in packed(stretch, ruler, language, first_alone=not parts):
                parts.append(Part(piece, speaker, (natural if parts else 0.0) if asked is None else asked))
                natural, asked = split.pause_s * _PAUSES[level], None
            if tag is not None:
                asked = (asked or 0.0) + _pause_length(tag)
                if asked > LONGEST_PAUSE_S:
                    raise TextError(f"The text has pauses of {asked:g} s in a row: they may last {LONGEST_PAUSE_S:g} s")
                place = tag.end()
        natural = max(natural, split.pause_s)
    if not parts:
        raise TextError(f"The text is {text[:60]!r}: it must hold something to say")
    return Plan(tuple(parts), pause_s=asked or 0.0)


def packed(text: str, ruler: Ruler, language: str | None = None, *, first_alone: bool = True) -> list[tuple[str, int]]:
    """Pieces of a text that fit one call each, and how strong the boundary at its end is; joined, they are the text.

    A text that has nothing to say has no pieces. White space and what else has no tokens goes with what it follows.

    Args:
      first_alone: the first piece is the first sentence, so that speech starts soon.
    """
    if ruler.silent(text):
        return []
    measured = _Measured(text, ruler)
    pieces: list[tuple[str, int]] = []
    lead = ""
    for start, end, level in _pack(measured, _units(measured, language), first_alone):
        piece, lead = lead + text[start:end], ""
        if not ruler.silent(piece):
            pieces.append((piece, level))
        elif pieces:
            pieces[-1] = (pieces[-1][0] + piece, max(level, pieces[-1][1]))
        else:
            lead = piece
    return pieces
