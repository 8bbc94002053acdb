"""Files of texts → rows, in order, as often as they are asked for.

Reads Parquet, JSON lines and plain text, here or in any store that pyarrow knows (``s3://``, ``gs://``, ``hdfs://``) or
fsspec does. Knows columns, and no models.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from bark_jax.synthesis.job import Job, JobError, Row

ENDINGS = (".parquet", ".jsonl", ".ndjson", ".txt")
_AT_ONCE = 4096


def absolute(uri: str | Path) -> str:
    """An address as it is, a path from the root on: other processes have other working directories."""
    return str(uri) if "://" in str(uri) else str(Path(uri).expanduser().absolute())


def store(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or an address, and the path in it.

    Raises:
      JobError: an address of an unknown kind.
    """
    text = str(uri)
    if "://" not in text:
        return pafs.LocalFileSystem(), absolute(text)
    try:
        return pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise JobError(f"{text} is in no store that pyarrow or fsspec knows: {error}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(files)), path


class Source:
    """The input of a run.

    Args:
      inputs: files, or folders of them; Parquet, ``.jsonl`` (an object in each line), or ``.txt`` (a text in each line,
        whose id is FILE:LINE; of a folder's file, FILE is its path in there).
      job: for the names of the columns, and the rows of a shard.
      checked: read all of it, to know that every id is there once. 8 bytes a row are kept for that. A worker that is
        given numbers of shards needs none of it.

    Raises:
      JobError: no files, a file that cannot be read or has not the columns, an id that is null, of a wrong type, or
        there twice.
      OSError: a file that is missing.
    """

    def __init__(self, inputs: Sequence[str | Path], job: Job, *, checked: bool = True):
        self.job = job
        found = [file for uri in inputs for file in _files(uri)]
        self.files = [(files, path) for files, path, _ in found]
        self._names = {path: name for _, path, name in found}
        if not self.files:
            raise JobError(f"there is no input: its endings are {', '.join(ENDINGS)}")
        self.n_rows = 0
        self.digest = ""
        """Of all ids, texts and voices, in order."""
        self.shard_digests: list[str] = []
        """Of every shard, `rows_digest`."""
        if checked:
            self._check()

    def _check(self) -> None:
        whole, hashes = hashlib.sha256(), array("Q")
        for rows in _together(self, self.job.shard_rows):
            for row in rows:
                hashes.append(int.from_bytes(hashlib.sha256(_bytes(row.id)).digest()[:8], "little"))
            digests = _digests(rows)
            whole.update(digests)
            self.shard_digests.append(hashlib.sha256(digests).hexdigest())
        self.n_rows, self.digest = len(hashes), whole.hexdigest()
        if not self.n_rows:
            raise JobError(f"there are no rows in {', '.join(path for _, path in self.files)[:200]}")
        ordered = np.sort(np.frombuffer(hashes, np.uint64))
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            self._refuse(set(map(int, twice[:1])))

    def _refuse(self, twice: set[int]) -> None:
        """Name two rows of one id."""
        places = []
        for name, number, row in self._numbered():
            if int.from_bytes(hashlib.sha256(_bytes(row.id)).digest()[:8], "little") in twice:
                places.append((f"{name}, row {number}", row.id))
        (one, id_), (other, _) = places[:2]
        raise JobError(f"{other}: the {self.job.id_column} {id_[:80]!r} is that of {one}: each row needs its own")

    @property
    def n_shards(self) -> int:
        return len(self.shard_digests)

    def __iter__(self) -> Iterator[Row]:
        for _, _, row in self._numbered():
            yield row

    def shards(self) -> Iterator[list[Row]]:
        """The rows, `Job.shard_rows` at a time."""
        return _together(self, self.job.shard_rows)

    def shard(self, number: int) -> list[Row]:
        """The rows of one shard; of Parquet files, no others are read than those of its row groups."""
        start, rows = number * self.job.shard_rows, []
        for files, path in self.files:
            there = _count(files, path) if path.endswith(".parquet") else None
            if there is not None and start >= there:
                start -= there
                continue
            for row in itertools.islice(self._file(files, path, start), self.job.shard_rows - len(rows)):
                rows.append(row[2])
            if len(rows) == self.job.shard_rows:
                break
            start = max(0, start - (there if there is not None else _lines_of(files, path)))
        return rows

    def _numbered(self) -> Iterator[tuple[str, int, Row]]:
        for files, path in self.files:
            yield from self._file(files, path, 0)

    def _file(self, files: pafs.FileSystem, path: str, start: int) -> Iterator[tuple[str, int, Row]]:
        """File, number and row, from row `start` on."""
        name = self._names[path]
        try:
            if path.endswith(".parquet"):
                rows = enumerate(self._parquet(files, path, start), start)
            else:
                kind = self._text if path.endswith(".txt") else self._json
                rows = itertools.islice(enumerate(kind(files, path)), start, None)
            for number, row in rows:
                if not row.id:
                    raise JobError(f"{name}, row {number}: its {self.job.id_column} is empty")
                yield name, number, row
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise JobError(f"{path} cannot be read: {error}") from None
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            raise JobError(f"{path} cannot be read: {error}") from None

    def _parquet(self, files: pafs.FileSystem, path: str, start: int) -> Iterator[Row]:
        job = self.job
        with files.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            there = file.schema_arrow.names
            for column in (job.id_column, job.text_column):
                if column not in there:
                    raise JobError(f"{path} has no column {column!r}: it has {', '.join(there)[:200]}")
            columns = [c for c in (job.id_column, job.text_column, job.voice_column) if c in there]
            for group in range(file.num_row_groups):
                n = file.metadata.row_group(group).num_rows
                if start >= n:
                    start -= n
                    continue
                for batch in file.iter_batches(_AT_ONCE, row_groups=[group], columns=columns):
                    for tree in batch.slice(start).to_pylist():
                        yield self._row(tree, path)
                    start = max(0, start - len(batch))

    def _json(self, files: pafs.FileSystem, path: str) -> Iterator[Row]:
        job = self.job
        for number, line in enumerate(_lines(files, path), 1):
            if not line.strip():
                continue
            try:
                tree = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise JobError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(tree, dict) or job.id_column not in tree or job.text_column not in tree:
                raise JobError(
                    f"{path}, line {number} is {line[:80]!r}: it must be an object with {job.id_column} and "
                    f"{job.text_column}"
                )
            yield self._row(tree, path)

    def _text(self, files: pafs.FileSystem, path: str) -> Iterator[Row]:
        name = self._names[path]
        for number, line in enumerate(_lines(files, path), 1):
            if line.strip():
                yield Row(f"{name}:{number}", line.rstrip("\r\n"), None)

    def _row(self, tree: dict[str, Any], path: str) -> Row:
        id_ = tree[self.job.id_column]
        if isinstance(id_, bool) or not isinstance(id_, str | int):
            raise JobError(f"{path} has the {self.job.id_column} {id_!r}: it must be a string or an integer")
        return Row(str(id_), tree[self.job.text_column], tree.get(self.job.voice_column))


def _files(uri: str | Path) -> list[tuple[pafs.FileSystem, str, str]]:
    """Store, path, and name: what of the path is below the folder that was given."""
    files, path = store(uri)
    info = files.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"There is no {uri}: the input must be a file or a folder of them")
    if info.type == pafs.FileType.Directory:
        inner = files.get_file_info(pafs.FileSelector(path, recursive=True))
        names = sorted(one.path for one in inner if one.type == pafs.FileType.File and one.path.endswith(ENDINGS))
        names = [name for name in names if not any(p.startswith(".") for p in name[len(path) :].split("/"))]
        if not names:
            raise JobError(f"{uri} has no files of texts: their endings are {', '.join(ENDINGS)}")
        return [(files, name, name[len(path) :].lstrip("/")) for name in names]
    if not path.endswith(ENDINGS):
        raise JobError(f"{uri} is of an unknown kind: the endings are {', '.join(ENDINGS)}")
    return [(files, path, path.rsplit("/", 1)[-1])]


def _lines(files: pafs.FileSystem, path: str) -> Iterator[str]:
    with files.open_input_stream(path) as stream:
        yield from io.TextIOWrapper(stream, "utf-8-sig", newline="\n")


def _count(files: pafs.FileSystem, path: str) -> int:
    try:
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).metadata.num_rows
    except pa.ArrowInvalid as error:
        raise JobError(f"{path} cannot be read: {error}") from None


def _lines_of(files: pafs.FileSystem, path: str) -> int:
    return sum(bool(line.strip()) for line in _lines(files, path))


def _together(rows: Iterable[Row], n: int) -> Iterator[list[Row]]:
    left = iter(rows)
    while part := list(itertools.islice(left, n)):
        yield part


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def rows_digest(rows: Iterable[Row]) -> str:
    """SHA-256 of rows in order."""
    return hashlib.sha256(_digests(rows)).hexdigest()


def _digests(rows: Iterable[Row]) -> bytes:
    """32 bytes a row: of id, text and voice, and of what type they are."""
    return b"".join(hashlib.sha256(json.dumps(row, default=repr).encode()).digest() for row in rows)
