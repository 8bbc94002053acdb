"""What is said in recordings: tables, Whisper's JSON and plain text → lines with or without times.

Takes files, gives `Said` by recording; knows neither audio nor models.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

FILE_COLUMNS = ("file", "path", "audio", "audio_file", "file_name", "filename", "id", "name")
TEXT_COLUMNS = ("text", "transcript", "transcription", "sentence", "normalized_text")
MAX_BYTES = 500_000_000


class TranscriptError(ValueError):
    """A file of transcripts that cannot be understood. The message names the file and the rule."""


@dataclass(frozen=True)
class Line:
    """Something said, from second `start` to `end` of a recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Said:
    """What is said in one recording: a text of the whole, or lines with times."""

    text: str | None = None
    lines: tuple[Line, ...] = ()


class Transcripts:
    """Of a folder of recordings.

    Args:
      source: a table of recordings and texts; a folder of ``NAME.json`` (Whisper's) and ``NAME.txt``; None: such files
        beside the recordings.

    A table is CSV, TSV or LJSpeech's ``metadata.csv`` (with ``|``). With a header, the columns `FILE_COLUMNS` and
    `TEXT_COLUMNS` count; without one, the first and the last. Recordings are meant by their path in the folder, with or
    without ending, or by their name alone where only one has it.

    Raises:
      TranscriptError: a table that cannot be read, or that names a recording twice.
      OSError: it is missing.
    """

    def __init__(self, source: str | Path | None):
        self._folder: Path | None = None
        self._table: dict[str, str] = {}
        self._used: set[str] = set()
        path = None if source is None else Path(source)
        self._beside = path is None
        if path is not None and path.is_dir():
            self._folder = path
        elif path is not None:
            self._table = _table(path)

    def of(self, recording: Path, root: Path) -> Said | None:
        """What is said in a recording of the folder `root`; None: nothing is known of it."""
        relative = recording.relative_to(root)
        for key in (relative.as_posix(), relative.with_suffix("").as_posix(), recording.name, recording.stem):
            if key in self._table:
                self._used.add(key)
                return Said(text=self._table[key])
        if self._folder is None and not self._beside:
            return None
        base = recording if self._folder is None else self._folder / relative
        for folder in dict.fromkeys([base.parent, self._folder or base.parent]):
            for ending, reader in ((".json", whisper), (".txt", plain)):
                file = folder / f"{recording.stem}{ending}"
                if file.is_file():
                    return reader(file)
        return None

    @property
    def unused(self) -> list[str]:
        """Recordings of the table that nobody has asked for."""
        return [key for key in self._table if key not in self._used]


def plain(path: Path) -> Said:
    """A text file in UTF-8."""
    text = " ".join(_text(path).split())
    if not text:
        raise TranscriptError(f"{path} is empty: it must hold what is said")
    return Said(text=text)


def whisper(path: Path) -> Said:
    """Whisper's JSON: ``{"segments": [{"start": s, "end": s, "text": ..., "words": [...]}, ...]}``.

    Where there are words with times, each is a line of its own, so that a long segment can be cut between them.
    """
    try:
        tree = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"{path} is not valid JSON: {error}") from None
    segments = tree.get("segments") if isinstance(tree, dict) else None
    if not isinstance(segments, list):
        raise TranscriptError(f"{path} has no list of segments: it must be as Whisper writes it")
    lines: list[Line] = []
    for number, segment in enumerate(segments):
        words = segment.get("words") if isinstance(segment, dict) else None
        for one in words if isinstance(words, list) and words else [segment]:
            line = _line(one, f"{path}: segment {number}")
            if lines and line.start < lines[-1].start:
                raise TranscriptError(f"{path}: segment {number} starts before the one before it")
            if line.text.strip():
                lines.append(line)
    return Said(lines=tuple(lines))


def _line(one: Any, where: str) -> Line:
    if not isinstance(one, dict):
        raise TranscriptError(f"{where} is a {type(one).__name__}: it must have start, end and text")
    start, end, text = one.get("start"), one.get("end"), one.get("text", one.get("word"))
    if not _is_time(start) or not _is_time(end) or start > end or not isinstance(text, str):
        raise TranscriptError(f"{where} has start {start!r}, end {end!r}, text {str(text)[:40]!r}: seconds and a text")
    return Line(float(start), float(end), text)


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def joined(lines: Iterable[Line]) -> str:
    """The text of lines one after the other: Whisper's words bring their spaces along."""
    text = ""
    for line in lines:
        glue = "" if not text or line.text[:1].isspace() or text[-1:].isspace() else " "
        text += glue + line.text
    return " ".join(text.split())


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise TranscriptError(f"{path} has {path.stat().st_size:,} bytes: the limit is {MAX_BYTES:,}")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TranscriptError(f"{path} is not UTF-8 text: {error}") from None


def _table(path: Path) -> dict[str, str]:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise TranscriptError(f"{path} is empty: it must have a line for each recording")
    delimiter = next((sign for sign in ("\t", "|", ",") if sign in lines[0]), None)
    if delimiter is None:
        raise TranscriptError(f"{path} has no tabs, bars or commas in its first line: it must be recordings and texts")
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    rows = list(csv.reader(lines, delimiter=delimiter, quoting=quoting))
    header = [name.strip().lower() for name in rows[0]]
    file, text = _column(header, FILE_COLUMNS), _column(header, TEXT_COLUMNS)
    first, last = (0, -1) if file is None or text is None else (file, text)
    found: dict[str, str] = {}
    for row in rows if file is None or text is None else rows[1:]:
        if len(row) < 2 or len(row) <= max(first, last):
            raise TranscriptError(
                f"{path} has the line {delimiter.join(row)[:80]!r}: it must have a recording and a text"
            )
        key, said = row[first].strip().removeprefix("./"), " ".join(row[last].split())
        if key in found:
            raise TranscriptError(f"{path} names {key!r} twice: once for each recording")
        found[key] = said
    return found


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)
