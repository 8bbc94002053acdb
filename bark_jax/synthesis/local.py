"""A corpus on one machine, and what every engine leaves behind.

    input ─ shards of rows ─▶ worker ─▶ OUT/parts/00000.parquet and 00000.json ─ ... ─▶ OUT/manifest.json, OUT/_SUCCESS

A part counts when its ``.json`` is there, which is written last and has the other's size and SHA-256. Started again, a
run compares ids and sizes of the parts that it finds, and makes those that are missing: the same, because a row's seed
comes from the job's and its id, and the number of rows that are spoken at once is fixed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from bark_jax.splitting import predicted_duration
from bark_jax.synthesis.job import SCHEMA, Job, JobError, Row
from bark_jax.synthesis.source import Source, ids_digest, store
from bark_jax.synthesis.worker import Guarded, SynthesisWorker

ENGINES = ("local", "ray")
JOB, MANIFEST, SUCCESS, PARTS = "job.json", "manifest.json", "_SUCCESS", "parts"


@dataclass(frozen=True)
class Summary:
    """What a run has done, and what there is now."""

    output: str
    rows: int
    errors: int
    audio_s: float
    seconds: float
    """Of this run."""
    made: int
    """Parts that this run has made; the others were there."""
    parts: int

    def line(self) -> str:
        """For people."""
        speed = f", {self.audio_s / self.seconds:.1f} times as fast as real time" if self.made == self.parts else ""
        return (
            f"{self.output}: {self.rows:,} rows, {self.audio_s / 3600:.2f} hours of speech, {self.errors:,} errors"
            f"{speed}"
        )


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from a few of its rows."""

    rows: int
    audio_hours: float
    hours: float
    """Of work, with this model on this machine."""
    gigabytes: float
    real_time_factor: float
    """Seconds of work for a second of speech."""
    predicted_error: float
    """Speech of the rows that were tried, over what was predicted for them; the figures above are corrected by it."""


class Output:
    """The folder of a run, here or in a store."""

    def __init__(self, uri: str | Path, job: Job):
        self.uri, self.job = str(uri), job
        self.files, self.root = store(uri)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file; None: it is not there."""
        if self.files.get_file_info(self.path(name)).type != pafs.FileType.File:
            return None
        with self.files.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """A file that is there whole or not at all. Raises `OSError`: no room, no permission, a store that fails."""
        final = self.path(name)
        self.files.create_dir(final.rpartition("/")[0], recursive=True)
        part = f"{final}.{secrets.token_hex(4)}.part"
        try:
            with self.files.open_output_stream(part) as stream:
                stream.write(data)
            if isinstance(self.files, pafs.LocalFileSystem):
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
            self.files.move(part, final)
        except BaseException:
            with contextlib.suppress(OSError):
                self.files.delete_file(part)
            raise

    def part(self, number: int) -> str:
        ending = ".parquet" if self.job.format == "parquet" else ".tar"
        return f"{PARTS}/{number:05d}{ending}"

    def note(self, number: int) -> str:
        return f"{PARTS}/{number:05d}.json"

    def begin(self, source: Source) -> None:
        """Write down what the run is, or compare it with what it was.

        Raises:
          JobError: the folder holds another run, or other files.
        """
        about = {"job": self.job.settings(), "input": source.digest, "rows": source.n_rows}
        found = self.read(JOB)
        if found is None:
            selector = pafs.FileSelector(self.root, allow_not_found=True)
            if any(not one.base_name.startswith(".") for one in self.files.get_file_info(selector)):
                raise JobError(f"{self.uri} has files, and no {JOB}: name a new folder")
            self.write(JOB, _json(about))
            return
        before = _parsed(found, f"{self.uri}/{JOB}")
        about = json.loads(_json(about))
        if before == about:
            return
        old, new = before.get("job", {}), about["job"]
        changed = [f"{k}: it was {old.get(k)!r}, and is {new.get(k)!r} now" for k in new if old.get(k) != new.get(k)]
        if not changed:
            changed = [f"the input: it had {before.get('rows')} rows, and has {about['rows']} now, or other texts"]
        raise JobError(
            f"{self.uri} holds a run with other settings; name a new folder, or put back {'; '.join(changed)}"
        )

    def done(self, number: int, ids: str) -> dict[str, Any] | None:
        """The note of a part that is there, of the size that it had; None: it is to be made.

        Args:
          ids: digest of the ids that it must have.

        Raises:
          JobError: it is of other rows.
        """
        found = self.read(self.note(number))
        if found is None:
            return None
        note = _parsed(found, f"{self.uri}/{self.note(number)}")
        if note.get("ids") != ids:
            raise JobError(f"{self.uri}/{self.part(number)} is of other rows than the input has: name a new folder")
        return note if self.files.get_file_info(self.path(self.part(number))).size == note.get("bytes") else None

    def keep(self, number: int, rows: Sequence[Row], made: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write a part, and then its note."""
        data = parquet(made) if self.job.format == "parquet" else webdataset(made, self.job.audio)
        note = {
            "file": self.part(number),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "rows": len(made),
            "errors": sum(row["error"] is not None for row in made),
            "audio_s": sum(row["duration_s"] for row in made),
            "ids": ids_digest(row.id for row in rows),
            "model": made[0]["model"],
        }
        self.write(self.part(number), data)
        self.write(self.note(number), _json(note))
        return note

    def finish(self, source: Source, notes: Sequence[dict[str, Any]]) -> None:
        """Write the manifest, and then what says that all is there.

        Raises:
          JobError: parts were made with different weights, such as those of another revision of a hub id.
        """
        models = sorted({note["model"] for note in notes})
        if len(models) > 1:
            raise JobError(
                f"{self.uri} has parts of {len(models)} different weights ({', '.join(m[:12] for m in models)}): the "
                "model has changed meanwhile; remove the parts of one of them"
            )
        tree = {
            "job": self.job.settings(),
            "parameters": self.job.parameters,
            "model": models[0],
            "input": source.digest,
            "rows": sum(note["rows"] for note in notes),
            "errors": sum(note["errors"] for note in notes),
            "audio_s": sum(note["audio_s"] for note in notes),
            "parts": list(notes),
        }
        for one in self.files.get_file_info(pafs.FileSelector(self.path(PARTS))):
            if one.path.endswith(".part"):  # of a process that was killed while it wrote
                self.files.delete_file(one.path)
        self.write(MANIFEST, _json(tree))
        self.write(SUCCESS, b"")


def synthesize_dataset(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    job: Job,
    *,
    engine: str = "local",
    device: str | None = None,
    progress: Callable[[str], None] | None = None,
    make: Callable[..., Any] = SynthesisWorker,
    **cluster: Any,
) -> Summary:
    """Speak every row of the input once; started again, go on.

    Args:
      input: see `bark_jax.synthesis.source.Source`.
      output: a folder, or an address of one in a store.
      job: how.
      engine: "local", one worker on this machine; or "ray", many in a cluster, see `bark_jax.synthesis.on_ray`.
      device: as for `bark_jax.load`.
      progress: called with a line after each part.
      make: what makes the worker, in a process of its own.
      cluster: of engine "ray": actors, and what each of them needs.

    Returns:
      What was done. Rows that could not be spoken are there, with their ``error``.

    Raises:
      JobError: an input that cannot be read or has an id twice, an output of another run.
      OSError: no room, no permission, a store that fails; what was made before stays, and the run can go on.
      What `bark_jax.load` raises.
    """
    inputs = [input] if isinstance(input, str | Path) else list(input)
    if engine not in ENGINES:
        raise JobError(f"engine is {engine!r}: choose one of {', '.join(ENGINES)}")
    if cluster and engine != "ray":
        raise JobError(f"{', '.join(cluster)}: for engine 'ray' alone")
    start = time.perf_counter()
    source, target = Source(inputs, job), Output(output, job)
    target.begin(source)
    notes = {n: note for n, ids in enumerate(source.ids) if (note := target.done(n, ids)) is not None}
    missing = [n for n in range(source.n_shards) if n not in notes]
    report = _Report(source, notes, progress)
    made = iter(())
    if missing and engine == "ray":
        from bark_jax.synthesis import on_ray

        made = on_ray.run(inputs, target.uri, job, missing, device=device, make=make, **cluster)
    elif missing:
        made = _alone(source, target, missing, device, make)
    for number, note in made:
        notes[number] = note
        report()
    ordered = [notes[n] for n in range(source.n_shards)]
    if missing or target.read(MANIFEST) is None or target.read(SUCCESS) is None:
        target.finish(source, ordered)
    return Summary(
        output=target.uri,
        rows=sum(note["rows"] for note in ordered),
        errors=sum(note["errors"] for note in ordered),
        audio_s=sum(note["audio_s"] for note in ordered),
        seconds=time.perf_counter() - start,
        made=len(missing),
        parts=len(ordered),
    )


def _alone(
    source: Source, target: Output, missing: Sequence[int], device: str | None, make: Callable[..., Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The missing parts, one after the other, in one worker."""
    wanted = set(missing)
    with Guarded(target.job, device=device, make=make) as worker:
        for number, rows in enumerate(source.shards()):
            if number in wanted:
                yield number, target.keep(number, rows, worker(rows))


class _Report:
    """A line of progress after each part."""

    def __init__(self, source: Source, notes: dict[int, dict[str, Any]], say: Callable[[str], None] | None):
        self._source, self._notes, self._say = source, notes, say
        self._start, self._before = time.perf_counter(), set(notes)

    def __call__(self) -> None:
        if self._say is None:
            return
        notes = self._notes.values()
        rows, errors = (sum(note[name] for note in notes) for name in ("rows", "errors"))
        line = (
            f"{rows:,} of {self._source.n_rows:,} rows, {sum(n['audio_s'] for n in notes) / 3600:.2f} hours of speech"
        )
        new = [note for number, note in self._notes.items() if number not in self._before]
        audio, seconds = sum(note["audio_s"] for note in new), time.perf_counter() - self._start
        if audio:
            left = (self._source.n_rows - rows) * seconds / max(sum(note["rows"] for note in new), 1)
            line += f", {audio / seconds:.1f} times real time, {left / 3600:.1f} hours left"
        self._say(f"{line}, {errors:,} errors" if errors else line)


def estimate(
    input: str | Path | Sequence[str | Path], job: Job, *, sample: int = 8, device: str | None = None
) -> Estimate:
    """What a run will take: `sample` rows, evenly chosen, are spoken, after a warm-up, and nothing is written.

    Raises:
      JobError: as `synthesize_dataset`, or no row that can be spoken among those.
    """
    source = Source([input] if isinstance(input, str | Path) else list(input), job)
    wanted = {i * source.n_rows // min(sample, source.n_rows) for i in range(min(sample, source.n_rows))}
    chosen, predicted = [], 0.0
    for i, row in enumerate(source):
        predicted += predicted_duration(row.text) if isinstance(row.text, str) else 0.0
        if i in wanted:
            chosen.append(row)
    worker = SynthesisWorker(job, device=device)
    start = time.perf_counter()
    made = worker(chosen)
    took = time.perf_counter() - start
    spoken = [(row, one) for row, one in zip(chosen, made, strict=True) if one["error"] is None and one["n_samples"]]
    if not spoken:
        raise JobError(f"none of the {len(chosen)} rows that were tried can be spoken: {made[0]['error']}")
    audio = sum(one["duration_s"] for _, one in spoken)
    share = audio / max(sum(predicted_duration(row.text) for row, _ in spoken), 1e-9)
    factor = took / audio
    total = predicted * share
    size = sum(len(one["audio"]) for _, one in spoken) / audio
    return Estimate(source.n_rows, total / 3600, total * factor / 3600, total * size / 1e9, factor, share)


# --- what is written --------------------------------------------------------------------------------------------------


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of `SCHEMA` as a Parquet file; audio is not compressed again."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], SCHEMA)
    buffer = io.BytesIO()
    kinds = {name: "none" if name == "audio" else "zstd" for name in SCHEMA.names}
    pq.write_table(table, buffer, compression=kinds, use_dictionary=["voice", "parameters", "model"])
    return buffer.getvalue()


def webdataset(rows: Sequence[dict[str, Any]], audio: str) -> bytes:
    """Rows as a tar file: ``KEY.flac`` (``KEY.pcm``) and ``KEY.json`` for each; equal rows are equal bytes.

    A key is the id, with what readers of such files take for something else (dots, slashes, signs) as ``%XX``.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            about = {name: row.get(name) for name in SCHEMA.names if name not in ("audio", "real_time_factor")}
            members = [("json", json.dumps(about, ensure_ascii=False).encode())]
            if row.get("audio"):
                members.insert(0, ("flac" if audio == "flac" else "pcm", row["audio"]))
            for ending, data in members:
                info = tarfile.TarInfo(f"{key(row['id'])}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def key(id_: str) -> str:
    """An id as a name in a WebDataset."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "-_") else "".join(f"%{b:02X}" for b in c.encode()) for c in id_
    )


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise JobError(f"{name} is damaged ({error}): name a new folder, or remove it") from None
    if not isinstance(tree, dict):
        raise JobError(f"{name} is damaged: name a new folder, or remove it")
    return tree
