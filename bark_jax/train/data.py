"""Rows of speech to train on: Parquet files ↔ a `Corpus` in memory, every row checked before anything is computed.

Takes files and the model's config, gives rows by number; knows nothing of examples, batches, order or networks. A file
has one row per clip and these columns, in any order:

| column   | type                        | null | what                                                                 |
|----------|-----------------------------|------|----------------------------------------------------------------------|
| id       | string                      | no   | the row's name, unique over all files                                |
| split    | string                      | no   | ``train`` or ``validation``                                          |
| text     | string                      | yes  | what is said, at most 256 tokens; stage text needs it                |
| voice    | string                      | yes  | the speaker: clips of one voice serve each other as history          |
| semantic | list of uint16, n           | no   | semantic ids, 0 .. 9,999, 49.9 per second; stage text: n ≤ 768       |
| coarse   | list of lists, 2 × F uint16 | yes  | codes of the first codebooks, 0 .. 1,023; stage coarse: this or fine |
| fine     | list of lists, 8 × F uint16 | yes  | codes of all codebooks; stage fine needs it                          |
| x_...    | any                         | yes  | your own; not read                                                   |

The numbers are Suno's; those of the model's config count. F is `tokens.n_frames` of n, exactly, and coarse is the first
rows of fine. A column that may be null may be missing. Any integer type is read (pandas and Hugging Face's ``datasets``
write int64), lists may be of any Arrow kind, strings may be dictionaries (pandas' categories), and pandas' index is
passed over. Columns that a stage has no use for are not read, and so not checked: text reads no codes, the others no
texts.

Rows are held as their stage needs them, in the smallest integer type: an hour of speech is 0.4 MB for stage text, 1.4
MB for coarse, 4.7 MB for fine.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from bark_jax import files, tokens
from bark_jax import text as texts
from bark_jax.config import BarkConfig
from bark_jax.hub import STAGES
from bark_jax.text import TextError
from bark_jax.train import alignment
from bark_jax.train.examples import Row
from bark_jax.voice import Voice

SPLITS = ("train", "validation")
MAX_PROBLEMS = 20
"""Problems that one `DataError` reports."""

_IDS, _CODES = pa.list_(pa.uint16()), pa.list_(pa.list_(pa.uint16()))
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("voice", pa.string()),
        pa.field("semantic", _IDS, nullable=False),
        pa.field("coarse", _CODES),
        pa.field("fine", _CODES),
    ]
)
"""What `write` writes."""

_ROWS = 1024  # that are checked at a time, and are a row group: 10 MB at 8 seconds a clip


class DataError(ValueError):
    """Files or rows that cannot be trained on. The message names file, row (the first is 0), id, field, value, rule."""


# --- corpus -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Checked rows of one stage, numbered 0 .. n - 1 in the order of files and of rows in them. Made by `read`."""

    config: BarkConfig
    stage: str
    files: tuple[str, ...]
    starts: np.ndarray
    """(files,) int64, number of each file's first row."""
    ids: list[str]
    texts: list[str]
    """Empty unless the stage is text."""
    names: list[str]
    """Voices."""
    voices: np.ndarray
    """(n,) int32, which of `names`; -1: none."""
    train: np.ndarray
    """(n,) bool: the row's split is train."""
    lengths: np.ndarray
    """(n,) int64, semantic ids of each row."""
    frames: np.ndarray
    """(n,) int64, frames of the codes that each row keeps."""
    semantic: np.ndarray
    """Semantic ids, row after row."""
    codes: np.ndarray
    """Codes, row after row, each row's as (n_codebooks, F)."""
    text_lengths: np.ndarray
    """(n,) int64, text ids of each row."""
    text_ids: np.ndarray
    """int32 text ids without padding, row after row."""
    places: np.ndarray | None = None
    """How many text ids have begun at each semantic id, row after row; None unless this is `aligned`."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Row:
        """Row number `i`, in int32 arrays of its own."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a corpus of {len(self)}")
        semantic, codes, text_ids = (
            flat[ends[i] - n[i] * width : ends[i]].astype(np.int32) for flat, ends, n, width in self._flat
        )
        padded = None
        if self.texts:
            padded = np.full(self.config.semantic.text_length, self.config.semantic.text_pad_token, np.int32)
            padded[: len(text_ids)] = text_ids
        text = self.texts[i] if self.texts else None
        voice = self.names[self.voices[i]] if self.voices[i] >= 0 else None
        codes = codes.reshape(self.n_codebooks, self.frames[i])
        places = None
        if self.places is not None:
            end = self._flat[0][1][i]
            places = self.places[end - self.lengths[i] : end].astype(np.int32)
        return Row(self.ids[i], text, padded, voice, semantic, codes, places)

    def aligned(self) -> Corpus:
        """The same with `places`, which `alignment.align` finds: some seconds for an hour of speech."""
        return dataclasses.replace(self, places=np.concatenate(alignment.align(*self.pairs())).astype(np.int16))

    def pairs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Text ids and semantic ids of each row."""
        parts = ((self.text_ids, self.text_lengths), (self.semantic, self.lengths))
        read, said = (np.split(flat, np.cumsum(n)[:-1]) for flat, n in parts)
        return read, said

    @property
    def n_codebooks(self) -> int:
        """Codebooks that are kept: all for stage fine, the first for coarse, none for text."""
        return _kept(self.config, self.stage)

    @cached_property
    def _flat(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
        """For every flat array: the array, where each row ends in it, its lengths, and elements per length."""
        parts = (
            (self.semantic, self.lengths, 1),
            (self.codes, self.frames, self.n_codebooks),
            (self.text_ids, self.text_lengths, 1),
        )
        return [(flat, width * np.cumsum(n), n, width) for flat, n, width in parts]

    def split(self, name: str) -> np.ndarray:
        """Numbers of the rows of a split, ascending."""
        if name not in SPLITS:
            raise ValueError(f"split is {name!r}: choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.train if name == "train" else ~self.train)

    @property
    def by_voice(self) -> dict[str, np.ndarray]:
        """voice → numbers of its rows, ascending; rows without a voice are in none."""
        order = np.argsort(self.voices, kind="stable")
        ends = np.searchsorted(self.voices[order], np.arange(-1, len(self.names)), side="right")
        return {name: order[ends[k] : ends[k + 1]] for k, name in enumerate(self.names)}

    @property
    def durations(self) -> np.ndarray:
        """(n,) float64, seconds of each row."""
        return self.lengths / self.config.semantic.rate_hz

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of all that training sees, in order. How rows are spread over files does not count."""
        digest = hashlib.sha256(self.stage.encode())
        for strings in (self.ids, self.texts, self.names):
            digest.update(json.dumps(strings).encode() + b"\n")
        for name in ("voices", "train", "lengths", "frames", "semantic", "codes", "text_lengths", "text_ids"):
            array: Any = getattr(self, name)
            digest.update(f"{name} {array.dtype.str} {len(array)}\n".encode())
            digest.update(array)
        return digest.hexdigest()

    def describe(self, i: int) -> str:
        """Where row `i` came from, for messages: its file, its number in the file, its id."""
        return f"{_place(self.files, self.starts, i)} (id {_excerpt(self.ids[i])})"


def _kept(config: BarkConfig, stage: str) -> int:
    return {"text": 0, "coarse": config.coarse.n_codebooks, "fine": config.fine.n_codebooks}[stage]


def _place(files: Sequence[str], starts: Sequence[int] | np.ndarray, i: int) -> str:
    file = int(np.searchsorted(starts, i, side="right")) - 1
    return f"{files[file]}, row {i - int(starts[file])}"


def _excerpt(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:59] + "…")


# --- reading ----------------------------------------------------------------------------------------------------------


def read(
    paths: str | Path | Sequence[str | Path],
    config: BarkConfig,
    stage: str,
    *,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Read and check the rows of files.

    Args:
      paths: files; folders, in which every ``*.parquet`` counts, however deep (but none whose name, or whose folder's
        name, begins with a dot); or patterns such as ``data/*.parquet``. Files of one folder or pattern are sorted.
      stage: "text", "coarse" or "fine".
      tokenizer: the model's; stage text needs it.

    Raises:
      DataError: no files, a file that is damaged or has other columns, rows that break a rule of the table above, or
        no row to train on. Up to `MAX_PROBLEMS` are reported together.
      OSError: a path that does not exist or cannot be read.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}: choose one of {', '.join(STAGES)}")
    if stage == "text":
        if tokenizer is None:
            raise ValueError("stage text needs the model's tokenizer")
        texts.count_tokens(tokenizer, "")  # refuses one that cuts or pads
    files = find([paths] if isinstance(paths, str | Path) else paths)
    reader = _Reader(_Rules(config, stage, tokenizer))
    for file in files:
        reader.read(file)
    reader.report()
    corpus = reader.corpus()
    if not corpus.train.any():
        where = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise DataError(f"There is no row to train on in {where}: of {len(corpus)} rows, none has split 'train'")
    return corpus


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `read` would read for these paths, in its order.

    Raises:
      DataError: a folder or pattern without files, or a file that is named twice.
      OSError: a path that does not exist.
    """
    files: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            inner = [file for file in sorted(path.rglob("*.parquet")) if file.is_file()]
            inner = [file for file in inner if not any(p.startswith(".") for p in file.relative_to(path).parts)]
            if not inner:
                raise DataError(f"{path} has no .parquet files: rows are read from files that end in .parquet")
            files += inner
        elif path.exists():
            files.append(path)
        elif re.search(r"[*?[]", str(path)):
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            matches = [match for match in matches if match.is_file()]
            if not matches:
                raise DataError(f"{path} matches no file")
            files += matches
        else:
            raise FileNotFoundError(f"There is no {path}: rows are read from files, folders or patterns of files")
    if not files:
        raise DataError("No data is named: rows are read from files, folders or patterns of files")
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file} is named twice: every file is read once")
        seen.add(file.resolve())
    return files


class _Rules:
    """What a row must obey, one row at a time and in words. `_Batch` finds the rows that do not, many times faster."""

    def __init__(self, config: BarkConfig, stage: str, tokenizer: Tokenizer | None):
        self.config, self.stage, self.tokenizer = config, stage, tokenizer
        self.n_codebooks = {"coarse": config.coarse.n_codebooks, "fine": config.fine.n_codebooks}
        self.columns = ("id", "split", "voice", "semantic") + (("text",) if stage == "text" else ("coarse", "fine"))

    def broken(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The field, value and rule of everything that is wrong with a row, as Python's strings and lists."""
        if not row["id"]:
            yield f"id is {'null' if row['id'] is None else 'empty'}: every row needs a name of its own"
        if row["split"] not in SPLITS:
            shown = "null" if row["split"] is None else _excerpt(row["split"])
            yield f"split is {shown}: it must be {' or '.join(SPLITS)}"
        if row["voice"] == "":
            yield "voice is empty: it must name the speaker, or be null"
        yield from self._semantic(row["semantic"])
        if self.stage == "text":
            yield from self._text(row["text"])
        else:
            yield from self._codes(row)

    def _text(self, text: str | None) -> Iterator[str]:
        assert self.tokenizer is not None
        if text is None:
            yield "text is null: stage text needs it"
            return
        try:
            texts.encode(self.tokenizer, self.config.semantic, text)
        except TextError as error:
            yield f"text cannot be spoken. {error}"

    def _semantic(self, ids: list[int | None] | None) -> Iterator[str]:
        config = self.config.semantic
        if not ids:
            yield f"semantic is {'null' if ids is None else 'empty'}: a row needs at least one id"
            return
        if self.stage == "text" and len(ids) > config.max_tokens:
            seconds = config.max_tokens / config.rate_hz
            yield f"semantic has {len(ids)} ids: stage text takes at most {config.max_tokens} ({seconds:.1f} s)"
        for at, value in enumerate(ids):
            if value is None or not 0 <= value < config.vocab_size:
                shown = "null" if value is None else value
                yield f"semantic holds {shown} at position {at}: ids are 0 to {config.vocab_size - 1}"
                return

    def _codes(self, row: Mapping[str, Any]) -> Iterator[str]:
        given = {field: row[field] for field in self.n_codebooks if row[field] is not None}
        if self.stage == "fine" and "fine" not in given:
            yield "fine is null: stage fine needs it"
        if self.stage == "coarse" and not given:
            yield "coarse is null, and so is fine: stage coarse needs one of them"
        right = True
        for field, codes in given.items():
            for what in self._column(codes, self.n_codebooks[field], len(row["semantic"] or [])):
                right = False
                yield f"{field} {what}"
        if right and len(given) == 2:
            for k, (coarse, fine) in enumerate(zip(given["coarse"], given["fine"], strict=False)):
                for at, (one, other) in enumerate(zip(coarse, fine, strict=True)):
                    if one != other:
                        yield (
                            f"coarse holds {one} in codebook {k}, frame {at}, where fine holds {other}: it must be the "
                            f"first {self.n_codebooks['coarse']} codebooks of fine"
                        )
                        return

    def _column(self, codes: list[list[int | None] | None], n_codebooks: int, n_semantic: int) -> Iterator[str]:
        config = self.config.coarse
        if len(codes) != n_codebooks:
            yield f"has {len(codes)} codebooks: it must have {n_codebooks}"
            return
        n_frames = tokens.n_frames(config, n_semantic)
        for k, part in enumerate(codes):
            if n_semantic and (part is None or len(part) != n_frames):  # without ids, no number is the right one
                yield (
                    f"has {'null' if part is None else len(part)} frames in codebook {k}: {n_semantic} semantic ids "
                    f"have {n_frames} ({config.rate_hz:g} / {config.semantic_rate_hz:g} per id, rounded down)"
                )
                return
        for k, part in enumerate(codes):
            for at, value in enumerate(part or []):
                if value is None or not 0 <= value < config.codebook_size:
                    shown = "null" if value is None else value
                    yield f"holds {shown} in codebook {k}, frame {at}: codes are 0 to {config.codebook_size - 1}"
                    return


class _Batch:
    """Some rows of a file, from number `first` on, as arrays, checked all at once. `bad`: those that break a rule."""

    def __init__(self, rules: _Rules, batch: pa.RecordBatch, first: int):
        config, n = rules.config, len(batch)
        self.rules, self.first = rules, first
        self.columns = {
            name: batch.column(name) if name in batch.schema.names else pa.nulls(n) for name in rules.columns
        }
        self.ids, self.splits, self.voices = (self._strings(name) for name in ("id", "split", "voice"))
        self.train = np.array([split == "train" for split in self.splits], bool)
        self.bad = np.array(
            [
                not name or split not in SPLITS or voice == ""
                for name, split, voice in zip(self.ids, self.splits, self.voices, strict=True)
            ],
            bool,
        )
        self.lengths, ids = _lists(self.columns["semantic"])
        self.semantic = _integers(ids)
        self.bad |= self.lengths == 0
        self._flag(_outside(self.semantic, config.semantic.vocab_size), self.lengths)
        different, which = np.unique(self.lengths, return_inverse=True)
        self.frames = np.array([tokens.n_frames(config.coarse, int(k)) for k in different], np.int64)[which]
        self.texts: list[Any] = []
        self.text_lengths, self.text_ids = np.zeros(n, np.int64), np.zeros(0, np.int32)
        self.codes = np.zeros(0, np.uint8)
        if rules.stage == "text":
            self.bad |= self.lengths > config.semantic.max_tokens
            self.frames = np.zeros(n, np.int64)
            self._encode()
        else:
            self._choose()

    def explain(self, i: int) -> Iterator[str]:
        """What is wrong with row `i`."""
        return self.rules.broken({name: column[i].as_py() for name, column in self.columns.items()})

    def _strings(self, field: str) -> list[Any]:
        column = self.columns[field]
        try:
            return column.to_pylist()
        except UnicodeDecodeError:  # Parquet's strings may be any bytes
            for i, value in enumerate(column):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    raise pa.ArrowInvalid(f"row {self.first + i}: {field} is not UTF-8 text: {error}") from None
            raise

    def _flag(self, elements: np.ndarray, lengths: np.ndarray, owners: np.ndarray | None = None) -> None:
        """Flag the rows that hold these elements, by the lengths of the lists they are in, and the lists' rows."""
        lists = np.searchsorted(np.cumsum(lengths), elements, side="right")
        self.bad[lists if owners is None else owners[lists]] = True

    def _encode(self) -> None:
        """What `text.encode` gives, without the padding, for all rows together."""
        config, tokenizer = self.rules.config.semantic, self.rules.tokenizer
        assert tokenizer is not None
        self.texts = self._strings("text")
        clean = [texts.one_spaced(text or "") for text in self.texts]
        encoded = [one.ids for one in tokenizer.encode_batch_fast(clean, add_special_tokens=False)]
        self.text_lengths = np.array([len(ids) for ids in encoded], np.int64)
        flat = np.array([k for ids in encoded for k in ids], np.int64)
        self.bad |= (self.text_lengths < 1) | (self.text_lengths > config.text_length)
        self._flag(_outside(flat, config.text_vocab_size), self.text_lengths)
        self.text_ids = (flat + config.text_offset).astype(np.int32)

    def _choose(self) -> None:
        """The codes to keep: those of fine where they are given, else of coarse."""
        in_coarse, coarse = self._column("coarse")
        in_fine, fine = self._column("fine")
        self.bad |= ~in_fine if self.rules.stage == "fine" else ~(in_fine | in_coarse)
        if self.bad.any():
            return  # what follows needs every block (codebooks, F) whole
        kept, at_coarse, at_fine = [], 0, 0
        for i, n_frames in enumerate(self.frames.tolist()):
            n = self.rules.n_codebooks["coarse"] * n_frames  # a block begins with its first codebooks
            block, head = coarse[at_coarse : at_coarse + n], fine[at_fine : at_fine + n]
            if in_coarse[i] and in_fine[i]:
                self.bad[i] = not np.array_equal(block, head)
            kept.append(head if in_fine[i] else block)
            at_coarse += n if in_coarse[i] else 0
            at_fine += self.rules.n_codebooks["fine"] * n_frames if in_fine[i] else 0
        self.codes = fine if self.rules.stage == "fine" else np.concatenate(kept)

    def _column(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Which rows have the column, and their codes, row after row."""
        column = self.columns[field]
        given = column.is_valid().to_numpy(zero_copy_only=False)
        counts, lists = _lists(column)
        widths, codes = _lists(lists)
        values = _integers(codes)
        rows = np.repeat(np.arange(len(counts)), counts)
        self.bad |= given & (counts != self.rules.n_codebooks[field])
        self.bad[rows[widths != self.frames[rows]]] = True
        self._flag(_outside(values, self.rules.config.coarse.codebook_size), widths, rows)
        return given, values


class _Reader:
    """Reads file after file; collects rows, or what is wrong with them."""

    def __init__(self, rules: _Rules):
        config = rules.config
        self.rules = rules
        self.problems: list[str] = []
        self.files: list[str] = []
        self.starts: list[int] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.seen: dict[str, int] = {}
        self.names: dict[str | None, int] = {}
        # A bytearray grows in place, so that what is read is in memory once: numpy's concatenate needs it twice.
        self.flat: dict[str, tuple[np.dtype, bytearray]] = {
            name: (np.dtype(dtype), bytearray())
            for name, dtype in (
                ("train", bool),
                ("voices", np.int32),
                ("lengths", np.int64),
                ("frames", np.int64),
                ("semantic", np.min_scalar_type(config.semantic.vocab_size - 1)),
                ("codes", np.min_scalar_type(config.coarse.codebook_size - 1)),
                ("text_lengths", np.int64),
                ("text_ids", np.int32),
            )
        }

    def read(self, file: Path) -> None:
        self.files.append(str(file))
        self.starts.append(len(self.ids))
        try:
            # Checksums are verified where a file has them, as those of `write` do.
            with pq.ParquetFile(file, page_checksum_verification=True) as source:
                problems = list(_check_schema(source.schema_arrow, self.rules.stage))
                self.problems += [f"{file}: {problem}" for problem in problems]
                if problems:
                    return
                columns = [name for name in self.rules.columns if name in source.schema_arrow.names]
                for batch in source.iter_batches(_ROWS, columns=columns):
                    self._add(_Batch(self.rules, batch, len(self.ids) - self.starts[-1]))
                    if len(self.problems) >= MAX_PROBLEMS:
                        break
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            self.problems.append(f"{file}: the file is damaged, or no Parquet: {reason}")
        if len(self.problems) >= MAX_PROBLEMS:
            self.report()

    def _add(self, batch: _Batch) -> None:
        first = len(self.ids)
        self.ids += batch.ids
        for i, name in enumerate(batch.ids):
            problems = list(batch.explain(i)) if batch.bad[i] else []
            before = self.seen.setdefault(name, first + i) if name else first + i
            if before != first + i:
                where = _place(self.files, self.starts, before)
                problems.append(f"id is also that of {where}: it must be unique over all files")
            for problem in problems:
                shown = f"id {_excerpt(name)}" if name else "no id"
                self.problems.append(f"{_place(self.files, self.starts, first + i)} ({shown}): {problem}")
        assert not batch.bad.any() or self.problems
        if self.problems:
            return  # nothing will come of it: only look for more
        self.texts += batch.texts
        voices = [-1 if name is None else self.names.setdefault(name, len(self.names)) for name in batch.voices]
        for name, (dtype, flat) in self.flat.items():
            flat.extend(np.ascontiguousarray(voices if name == "voices" else getattr(batch, name), dtype).data)

    def report(self) -> None:
        """Raise what has been found, if anything."""
        shown = self.problems[:MAX_PROBLEMS]
        if len(self.problems) == 1:
            raise DataError(shown[0])
        if shown:
            more = "at least " if len(shown) == MAX_PROBLEMS else ""
            raise DataError("\n  ".join([f"The data has {more}{len(shown)} problems (rows count from 0):", *shown]))

    def corpus(self) -> Corpus:
        arrays = {name: np.frombuffer(flat, dtype) for name, (dtype, flat) in self.flat.items()}
        for array in arrays.values():
            array.flags.writeable = False
        rules, names = self.rules, [name for name in self.names if name is not None]
        starts = np.array(self.starts, np.int64)
        return Corpus(rules.config, rules.stage, tuple(self.files), starts, self.ids, self.texts, names, **arrays)


def _check_schema(schema: pa.Schema, stage: str) -> Iterator[str]:
    """What is wrong with a file's columns."""
    known = ", ".join(SCHEMA.names)
    for name in dict.fromkeys(schema.names):
        if name not in SCHEMA.names and not re.match(r"x_|__index_level_\d+__$", name):
            yield f"column {_excerpt(name)} is unknown: the columns are {known}, and your own as x_..."
        elif schema.names.count(name) > 1:
            yield f"column {_excerpt(name)} is there {schema.names.count(name)} times"
        elif name in SCHEMA.names:
            found, right = schema.field(name).type, SCHEMA.field(name).type
            if not _fits(found, right):
                kind = {_IDS: "a list of integers", _CODES: "a list of lists of integers"}.get(right, "a string")
                yield f"column {name} is of type {found}: it must be {kind}"
    needed = ["id", "split", "semantic"] + {"text": ["text"], "fine": ["fine"]}.get(stage, [])
    for name in needed:
        if name not in schema.names:
            yield f"column {name} is missing: stage {stage} needs {', '.join(needed)}"
    if stage == "coarse" and "coarse" not in schema.names and "fine" not in schema.names:
        yield "columns coarse and fine are missing: stage coarse needs one of them"


def _fits(found: pa.DataType, right: pa.DataType) -> bool:
    """Whether a column's type will do. A column of nulls, and lists that are all empty, may have no type at all."""
    is_type = pa.types
    if is_type.is_null(found):
        return True
    if is_type.is_string(right):
        found = found.value_type if is_type.is_dictionary(found) else found
        return is_type.is_string(found) or is_type.is_large_string(found) or is_type.is_string_view(found)
    if is_type.is_list(right):
        return isinstance(found, _LISTS) and _fits(found.value_type, right.value_type)
    return is_type.is_integer(found)


_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)


def _lists(array: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Lists of any kind as their lengths (n,) int64, 0 for null, and all elements in a row."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64), pa.nulls(0)
    lengths = pc.call_function("list_value_length", [array])
    return np.asarray(pc.fill_null(lengths, 0), np.int64), array.flatten()


def _integers(array: pa.Array) -> np.ndarray:
    """Integers in their own type; in int64, with -1 for null, if one is."""
    if array.null_count:
        array = pc.fill_null(array.cast(pa.int64()), -1)
    return np.asarray(array) if len(array) else np.zeros(0, np.int64)


def _outside(values: np.ndarray, size: int) -> np.ndarray:
    """Positions of values that are not 0 .. size - 1."""
    if len(values) == 0 or (values.min() >= 0 and values.max() < size):
        return np.zeros(0, np.int64)
    return np.flatnonzero((values < 0) | (values >= size))


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: str | Path, rows: Iterable[Mapping[str, Any]], *, shard_rows: int = 8_192) -> list[Path]:
    """Write rows as Parquet, in the types of `SCHEMA`.

    Args:
      path: ``NAME.parquet``, a file that is replaced if it exists; or a new folder, for ``00000.parquet``,
        ``00001.parquet``, ... of `shard_rows` rows each. For a folder, no more than one file's rows are in memory.
      rows: mappings of the columns to values: ``semantic`` (n,), ``coarse`` (2, F), ``fine`` (8, F), of integers; what
        may be null may be left out.

    Returns:
      The files, in order. A code takes 10 bits in them, an hour of speech 3 MB with all codebooks.

    Raises:
      DataError: an unknown or missing key, a value of the wrong type or shape, ids that repeat, no rows. What depends
        on a model (ranges, lengths) is for `read` to check.
      OSError: the folder has files in it, or something cannot be written. Nothing is left half-written: the file or
        folder appears when all rows are in it.
    """
    path = Path(path)
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}: it must be 1 or more")
    single = path.suffix == ".parquet"
    if not single and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists: rows go into a new or empty folder, or a file that ends in .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    checked, names = _check_rows(rows), []
    with (files.replacing if single else files.new_folder)(path) as temporary:
        while shard := list(itertools.islice(checked, None if single else shard_rows)):
            columns = ([row[name] for row in shard] for name in SCHEMA.names)
            table = pa.table([pa.array(c, kind) for c, kind in zip(columns, SCHEMA.types, strict=True)], SCHEMA)
            names.append(f"{len(names):05d}.parquet")
            with (temporary if single else temporary / names[-1]).open("xb") as file:
                pq.write_table(table, file, row_group_size=_ROWS, compression="zstd", write_page_checksum=True)
        if not names:
            raise DataError(f"There are no rows to write to {path}")
    return [path] if single else [path / name for name in names]


def _check_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with all columns, as pyarrow takes them."""
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} is a {type(row).__name__}: it must map {', '.join(SCHEMA.names)} to values")
        where = f"row {number} (id {_excerpt(str(row.get('id')))})"
        if unknown := [str(key) for key in row if key not in SCHEMA.names]:
            raise DataError(f"{where}: unknown {', '.join(unknown)}: a row has {', '.join(SCHEMA.names)}")
        made: dict[str, Any] = {}
        for field in SCHEMA:
            value = row.get(field.name)
            if value is None:
                if not field.nullable:
                    raise DataError(f"{where}: {field.name} is missing: every row needs it")
            elif field.type == pa.string():
                _check_string(field.name, value, where)
            else:
                array = _array(field.name, value, 1 if field.type == _IDS else 2, where)
                value = array if array.ndim == 1 else list(array)
            made[field.name] = value
        if made["id"] in seen:
            raise DataError(f"{where}: id is that of an earlier row: it must be unique")
        seen.add(made["id"])
        yield made


def _check_string(field: str, value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} is a {type(value).__name__}: it must be a str")
    if not value:
        raise DataError(f"{where}: {field} is empty")
    if field == "split" and value not in SPLITS:
        raise DataError(f"{where}: split is {_excerpt(value)}: it must be {' or '.join(SPLITS)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {field} is no text that UTF-8 can hold: {error}") from None


def _array(field: str, value: Any, rank: int, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: {field} is no array: {error}") from None
    if array.ndim != rank or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{where}: {field} is {array.dtype} {array.shape}: it must be integers of {rank} dimension(s)")
    if array.size and not (array.min() >= 0 and array.max() < 2**16):
        worst = array.min() if array.min() < 0 else array.max()
        raise DataError(f"{where}: {field} holds {worst}: what is written is 0 to {2**16 - 1}")
    return array.astype(np.uint16)


def from_voices(
    paths: str | Path | Iterable[str | Path], *, validation: int = 0, model: str = "suno"
) -> list[dict[str, Any]]:
    """Rows of voice files, for `write`: no text, `id` and `voice` the file's name (``v2/en_speaker_6``).

    Args:
      paths: ``.npz`` or ``.safetensors`` files, or folders, in which all of them count; names are relative to the
        folder, without the ending.
      validation: how many rows go to the validation split. Which ones depends on their names alone: those whose
        SHA-256 is smallest, so that it stays much the same when voices are added.
      model: `BarkConfig.fingerprint` of the model whose tokens these are.

    Raises:
      DataError: no files, a voice of another model, or more validation rows than leave one for training.
      VoiceError: a file that is no voice. OSError: one that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in (".npz", ".safetensors"))
        for file in files:
            voice = Voice.load(file)
            if voice.model != model:
                raise DataError(f"{file} is of model {voice.model!r}: these rows are to be of {model!r}")
            name = (file.relative_to(path) if path.is_dir() else Path(file.name)).with_suffix("").as_posix()
            parts = {"semantic": voice.semantic, "coarse": voice.coarse, "fine": voice.fine}
            rows.append({"id": name, "split": "train", "text": None, "voice": name, **parts})
    if not rows:
        raise DataError("There are no voices: they are files that end in .npz or .safetensors")
    if not 0 <= validation < len(rows):
        raise DataError(f"validation is {validation}: of {len(rows)} rows, 0 to {len(rows) - 1} can be spared")
    for row in sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:validation]:
        row["split"] = "validation"
    return rows
