"""A corpus on one machine, and what every engine leaves behind.

    input ─ shards of rows ─▶ worker ─▶ OUT/parts/00000.parquet and 00000.json ─ ... ─▶ OUT/manifest.json, OUT/_SUCCESS

A part counts when its ``.json`` is there, which is written last and has the other's size and SHA-256. Started again, a
run compares the parts that it finds with the input, and makes those that are missing: the same, because a row's seed
comes from the job's and its id, and the number of rows that are spoken at once is fixed. ``_SUCCESS`` is there only
while the manifest says what is in the folder.
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

from bark_jax.files import lock
from bark_jax.splitting import predicted_duration
from bark_jax.synthesis.job import SCHEMA, Job, JobError, Row
from bark_jax.synthesis.source import Source, absolute, rows_digest, store
from bark_jax.synthesis.worker import Guarded, SynthesisWorker

ENGINES = ("local", "ray")
JOB, MANIFEST, SUCCESS, PARTS, LOCK = "job.json", "manifest.json", "_SUCCESS", "parts", ".lock"


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

    def begin(self, source: Source) -> bool:
        """Write down what the run is (True), or compare it with what it was (False).

        Raises:
          JobError: the folder holds another run, or other files.
        """
        about = {"job": self.job.settings(), "input": source.digest, "rows": source.n_rows}
        found = self.read(JOB)
        if found is None:
            selector = pafs.FileSelector(self.root, allow_not_found=True)
            # What is hidden is a lock; a process may have been killed while it wrote its first file.
            if any(not one.base_name.startswith((".", f"{JOB}.")) for one in self.files.get_file_info(selector)):
                raise JobError(f"{self.uri} has files, and no {JOB}: name a new folder")
            self.write(JOB, _json(about))
            return True
        before = _parsed(found, f"{self.uri}/{JOB}")
        about = json.loads(_json(about))
        if before == about:
            return False
        old, new = before.get("job", {}), about["job"]
        changed = [f"{k}: it was {old.get(k)!r}, and is {new.get(k)!r} now" for k in new if old.get(k) != new.get(k)]
        if not changed:
            changed = [f"the input: it had {before.get('rows')} rows, and has {about['rows']} now, or other texts"]
        raise JobError(
            f"{self.uri} holds a run with other settings; name a new folder, or put back {'; '.join(changed)}"
        )

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Refuse a second process at a folder of this machine; stores have no locks."""
        if not isinstance(self.files, pafs.LocalFileSystem):
            return contextlib.nullcontext()
        Path(self.root).mkdir(parents=True, exist_ok=True)
        taken = JobError(f"{self.uri} is being written by another process: wait for it, or stop it")
        return lock(Path(self.root) / LOCK, taken)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.files.get_file_info(self.path(name)).type == pafs.FileType.File:
            self.files.delete_file(self.path(name))

    def same_model(self, model: str, before: str | None) -> None:
        """Raises `JobError` if a worker has other weights than made the parts that are there; None: there are none."""
        if before is not None and model != before:
            raise JobError(
                f"{self.uri} has parts of other weights ({before[:12]}) than these ({model[:12]}): the model, or the "
                "device's dtype, has changed meanwhile; name a new folder, or put it back"
            )

    def done(self, number: int, digest: str, *, verify: bool = False) -> dict[str, Any] | None:
        """The note of a part that is there, of the size that it had; None: it is to be made.

        Args:
          digest: `rows_digest` of the rows that it must have.
          verify: read it, and compare its SHA-256 too.

        Raises:
          JobError: it is of other rows.
        """
        found = self.read(self.note(number))
        if found is None:
            return None
        note = _parsed(found, f"{self.uri}/{self.note(number)}")
        if note.get("input_sha256") != digest:
            raise JobError(f"{self.uri}/{self.part(number)} is of other rows than the input has: name a new folder")
        if self.files.get_file_info(self.path(self.part(number))).size != note.get("bytes"):
            return None
        if verify and hashlib.sha256(self.read(self.part(number)) or b"").hexdigest() != note.get("sha256"):
            return None
        return note

    def unchanged(self, number: int, rows: Sequence[Row], digest: str) -> None:
        """Raises `JobError` if rows of a shard are not those that were read when the run began."""
        if rows_digest(rows) != digest:
            raise JobError(f"the input has changed since the run began: other rows for {self.part(number)}")

    def keep(self, number: int, digest: str, made: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write a part, and then its note; `digest`: `rows_digest` of the rows that it was made of."""
        data = parquet(made) if self.job.format == "parquet" else webdataset(made, self.job.audio)
        note = {
            "file": self.part(number),
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "rows": len(made),
            "errors": sum(row["error"] is not None for row in made),
            "audio_s": sum(row["duration_s"] for row in made),
            "input_sha256": digest,
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
    retry_errors: bool = False,
    verify: bool = False,
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
      retry_errors: make parts again that have rows with an ``error``; what is good in them comes out the same.
      verify: read the parts that are there, and make those again whose SHA-256 is not what it was; else their sizes
        are compared.
      make: what makes the worker, in a process of its own.
      cluster: of engine "ray": actors, and what each of them needs.

    Returns:
      What was done. Rows that could not be spoken are there, with their ``error``.

    Raises:
      JobError: an input that cannot be read, has an id twice, changes meanwhile or holds the output; an output of
        another run, of other weights, or that another process is writing; a voice of the job's that there is not.
      OSError: no room, no permission, a store that fails; what was made before stays, and the run can go on.
      What `bark_jax.load` raises.
    """
    inputs = [input] if isinstance(input, str | Path) else list(input)
    if engine not in ENGINES:
        raise JobError(f"engine is {engine!r}: choose one of {', '.join(ENGINES)}")
    if cluster and engine != "ray":
        raise JobError(f"{', '.join(cluster)}: for engine 'ray' alone")
    start = time.perf_counter()
    target = Output(output, job)
    for uri in inputs:
        if f"{absolute(output)}/".startswith(f"{absolute(uri).rstrip('/')}/"):
            raise JobError(f"the output {output} is in the input {uri}: name a folder beside it")
    source = Source(inputs, job)
    with target.alone():
        new = target.begin(source)
        notes: dict[int, dict[str, Any]] = {}
        for number, digest in enumerate(source.shard_digests):
            note = target.done(number, digest, verify=verify)
            if note is not None and not (retry_errors and note["errors"]):
                notes[number] = note
        missing = {n: source.shard_digests[n] for n in range(source.n_shards) if n not in notes}
        before = next((note["model"] for note in notes.values()), None)
        report = _Report(source, notes, progress)
        made = iter(())
        if missing:
            target.remove(SUCCESS)
        if missing and engine == "ray":
            from bark_jax.synthesis import on_ray

            made = on_ray.run(inputs, target.uri, job, missing, device=device, make=make, before=before, **cluster)
        elif missing:
            made = _made_here(source, target, missing, device, make, before)
        try:
            for number, note in made:
                notes[number] = note
                report()
        except BaseException:
            parts = pafs.FileSelector(target.path(PARTS), allow_not_found=True)
            if new and not target.files.get_file_info(parts):
                target.remove(JOB)  # nothing is there that it would be true of
            raise
        # As they are in the folder: a worker that Ray took for dead may have written a part once more.
        notes |= {n: note for n, digest in missing.items() if (note := target.done(n, digest)) is not None}
        ordered = [notes[n] for n in range(source.n_shards)]
        manifest = target.read(MANIFEST)
        if target.read(SUCCESS) is None or manifest is None or json.loads(manifest).get("parts") != ordered:
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


def _made_here(
    source: Source,
    target: Output,
    missing: dict[int, str],
    device: str | None,
    make: Callable[..., Any],
    before: str | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The missing parts, one after the other, in one worker."""
    with Guarded(target.job, device=device, make=make) as worker:
        target.same_model(worker.about["model"], before)
        for number, rows in enumerate(source.shards()):
            if number in missing:
                target.unchanged(number, rows, missing[number])
                yield number, target.keep(number, missing[number], worker(rows))


class _Report:
    """A line of progress after each part."""

    def __init__(self, source: Source, notes: dict[int, dict[str, Any]], say: Callable[[str], None] | None):
        self._source, self._notes, self._say = source, notes, say
        self._start, self._before = time.perf_counter(), set(notes)
        if say is not None and notes:
            say(f"{len(notes):,} of {source.n_shards:,} parts are there")

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
    input: str | Path | Sequence[str | Path], job: Job, *, sample: int | None = None, device: str | None = None
) -> Estimate:
    """What a run will take: `sample` rows, evenly chosen, are spoken, after a warm-up, and nothing is written.

    Args:
      sample: by default as many as are spoken at once, on all devices.

    Raises:
      JobError: as `synthesize_dataset`, or no row that can be spoken among those.
    """
    source = Source([input] if isinstance(input, str | Path) else list(input), job)
    worker = SynthesisWorker(job, device=device)
    sample = job.rows * len(worker.bark.devices) if sample is None else sample
    wanted = {i * source.n_rows // min(sample, source.n_rows) for i in range(min(sample, source.n_rows))}
    chosen, predicted = [], 0.0
    for i, row in enumerate(source):
        predicted += predicted_duration(row.text) if isinstance(row.text, str) else 0.0
        if i in wanted:
            chosen.append(row)
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
