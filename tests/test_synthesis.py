"""`bark_jax.synthesis`: every row once, whatever happens; what is wrong with a row stays that row's."""

from __future__ import annotations

import dataclasses
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from click.testing import CliRunner

import bark_jax
import models
from bark_jax import Sampling, cli
from bark_jax.audio import pcm16_bytes
from bark_jax.synthesis import Job, JobError, local, row_seed, synthesize_dataset, worker
from bark_jax.synthesis.job import Row
from bark_jax.synthesis.source import Source
from toys import TOY, Better, Killed, Later, Quick, Toy

SHORT = Sampling(max_duration_s=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.save(tmp_path_factory.mktemp("model") / "model")
    (folder / "voices").mkdir()
    bark = bark_jax.load(folder)
    for name, seed in (("ann", 1), ("ben", 2)):
        arrays = models.voice(bark.config, seed=seed)
        bark_jax.Voice.from_dict(arrays, model=bark.config.fingerprint).save(folder / "voices" / f"{name}.npz")
    return folder


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def read(out: Path) -> list[dict[str, Any]]:
    """The rows, as the README reads them."""
    return pq.read_table(sorted(glob.glob(f"{out}/parts/*.parquet"))).to_pylist()


def checked(out: Path) -> dict[str, Any]:
    """The manifest, whose every word is true."""
    assert (out / "_SUCCESS").is_file()
    manifest = json.loads((out / "manifest.json").read_text())
    for part in manifest["parts"]:
        data = (out / part["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == part["sha256"] and len(data) == part["bytes"]
    assert not list(out.rglob("*.part"))
    return manifest


def numbered(n: int, **ids: str) -> list[dict[str, Any]]:
    return [{"id": ids.get(f"i{i}", f"row{i}"), "text": f"text {i}"} for i in range(n)]


def test_rows_are_those_of_calls_alone(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "one", "text": "abc def", "voice": "ann", "more": 1},
        {"id": "two", "text": "gh", "voice": None, "more": 2},
        {"id": "no text", "text": None, "voice": None, "more": 3},
        {"id": "nobody", "text": "ij", "voice": "carl", "more": 4},
        {"id": "five", "text": "a longer text, of two parts. " * 8, "voice": "ben", "more": 5},
    ]
    file = write(tmp_path / "in.parquet", rows)
    job = Job(model=str(model), voice="ben", seed=7, sampling=SHORT, rows=2, shard_rows=3)
    lines: list[str] = []
    done = synthesize_dataset(file, tmp_path / "out", job, progress=lines.append)
    assert (done.rows, done.errors, done.made, done.parts) == (5, 2, 2, 2)
    assert len(lines) == 2 and lines[-1].startswith("5 of 5 rows") and lines[-1].endswith("2 errors")
    manifest = checked(tmp_path / "out")
    assert (manifest["rows"], manifest["errors"]) == (5, 2)
    found = read(tmp_path / "out")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    bark = bark_jax.load(model, rows=2)
    for row, made in zip(rows, found, strict=True):
        assert made["seed"] == row_seed(7, row["id"]) and made["model"] == manifest["model"] == bark.digest()
        if made["error"] is not None:
            assert made["audio"] is None and made["n_samples"] == 0
            continue
        alone = bark.generate(row["text"], voice=row["voice"] or "ben", seed=made["seed"], sampling=SHORT)
        heard, rate = soundfile.read(io.BytesIO(made["audio"]), dtype="int16")
        assert rate == made["sample_rate"] == 24_000 and heard.tobytes() == pcm16_bytes(alone.audio)
        assert made["duration_s"] == alone.duration and made["ended"] == alone.ended and made["real_time_factor"] > 0
    assert "its text is None" in found[2]["error"] and "carl" in found[3]["error"]
    # Again: everything is there, no model is loaded.
    again = synthesize_dataset(file, tmp_path / "out", job)
    assert again.made == 0 and again.rows == 5 and again.errors == 2
    for changed, words in (({"seed": 8}, "seed: it was 7, and is 8 now"), ({"rows": 4}, "rows: it was 2, and is 4")):
        with pytest.raises(JobError, match=words):
            synthesize_dataset(file, tmp_path / "out", dataclasses.replace(job, **changed))
    write(file, rows[:4])
    with pytest.raises(JobError, match="the input: it had 5 rows, and has 4 now"):
        synthesize_dataset(file, tmp_path / "out", job)


def test_a_lost_or_broken_part_is_made_again(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(17)), tmp_path / "out"
    synthesize_dataset(file, out, TOY, make=Toy)
    before = {path.name: path.read_bytes() for path in (out / "parts").iterdir()}
    (out / "parts" / "00001.parquet").write_bytes(before["00001.parquet"][:-1])
    (out / "parts" / "00003.json").unlink()
    (out / "parts" / "00002.parquet.ab.part").write_bytes(b"half")
    again = synthesize_dataset(file, out, TOY, make=Toy)
    assert again.made == 2
    assert {path.name: path.read_bytes() for path in (out / "parts").iterdir()} == before
    checked(out)


def test_rows_that_hang_or_kill_are_errors_and_no_others(tmp_path: Path) -> None:
    rows = numbered(9, i3="hang3", i7="die7")
    out = tmp_path / "out"
    done = synthesize_dataset(write(tmp_path / "in.parquet", rows), out, TOY, make=Toy)
    found = read(out)
    assert [row["id"] for row in found] == [row["id"] for row in rows] and done.errors == 2
    errors = {row["id"]: row["error"] for row in found if row["error"]}
    assert errors == {
        "hang3": "DeadlineError: nothing came for 1 s",
        "die7": "WorkerError: the worker ended with code -9",
    }
    assert all(row["model"] == "toy" and row["audio"] for row in found if not row["error"])
    checked(out)


def test_a_model_that_does_not_load_is_said_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(3))
    with pytest.raises(JobError, match="there is no such model"):
        synthesize_dataset(file, tmp_path / "out", dataclasses.replace(TOY, model="fails"), make=Toy)
    with pytest.raises(OSError, match="absent"):
        synthesize_dataset(file, tmp_path / "out2", Job(model=str(tmp_path / "absent")))


DRIVER = """
import signal
import sys
from bark_jax.synthesis import synthesize_dataset
from toys import TOY, Toy
import dataclasses
if __name__ == "__main__":
    # Ctrl-C interrupts, even where the tests run in a shell's background, which turns it off for what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    synthesize_dataset(sys.argv[1], sys.argv[2], dataclasses.replace(TOY, model="slow"), make=Toy)
"""


def kill_and_rerun(tmp_path: Path, moments: Sequence[float]) -> None:
    file = write(tmp_path / "in.parquet", numbered(40))
    (tmp_path / "driver.py").write_text(DRIVER)
    job = dataclasses.replace(TOY, model="slow")
    synthesize_dataset(file, tmp_path / "whole", job, make=Quick)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, str(tmp_path / "driver.py"), str(file)]

    def at(moment: float) -> None:
        out = tmp_path / f"out {moment}"
        process = subprocess.Popen([*command, str(out)], env={**os.environ, "PYTHONPATH": path})
        end = time.monotonic() + 60
        while not (out / "parts").is_dir() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(moment)
        process.kill()
        process.wait()
        assert not (out / "_SUCCESS").exists()
        for note in (out / "parts").glob("*.json"):  # what has a note is whole
            data = note.with_suffix(".parquet").read_bytes()
            assert hashlib.sha256(data).hexdigest() == json.loads(note.read_text())["sha256"]
        synthesize_dataset(file, out, job, make=Quick)
        assert checked(out)["parts"] == checked(tmp_path / "whole")["parts"]
        assert read(out) == read(tmp_path / "whole")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(at, moments))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    kill_and_rerun(tmp_path, [0.5])


def test_ctrl_c_is_said_once_and_leaves_no_process(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(40)), tmp_path / "out"
    (tmp_path / "driver.py").write_text(DRIVER)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(file), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not list((out / "parts").glob("*.json")) and time.monotonic() < end:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (out / "_SUCCESS").exists() and list((out / "parts").glob("*.json"))


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_goes_on(tmp_path: Path) -> None:
    kill_and_rerun(tmp_path, np.random.default_rng(0).uniform(0, 1.5, 10).tolist())


def test_a_store_that_fails_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(17)), tmp_path / "out"
    synthesize_dataset(file, tmp_path / "whole", TOY, make=Toy)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "parts").iterdir()}
    plain, calls = local.Output.write, [0]

    class Full:
        """A store whose disk is full at every third file, after a part of it."""

        def __init__(self, files: Any):
            self._files = files

        def __getattr__(self, name: str) -> Any:
            return getattr(self._files, name)

        def open_output_stream(self, path: str) -> Any:
            calls[0] += 1
            stream = self._files.open_output_stream(path)
            if calls[0] % 3:
                return stream
            stream.write(b"half")

            class Broken:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    stream.close()

                def write(self, data: bytes) -> None:
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Broken()

    def failing(self: Any, name: str, data: bytes) -> None:
        files, self.files = self.files, Full(self.files)
        try:
            plain(self, name, data)
        finally:
            self.files = files

    monkeypatch.setattr(local.Output, "write", failing)
    attempts = 0
    while not (out / "_SUCCESS").exists():
        attempts += 1
        assert attempts < 20
        try:
            synthesize_dataset(file, out, TOY, make=Toy)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        if (out / "parts").is_dir():
            for path in (out / "parts").iterdir():
                assert path.read_bytes() == whole[path.name]
    assert attempts > 3
    checked(out)


ON_A_DISK = """
import sys
from bark_jax.synthesis import synthesize_dataset
from toys import TOY, Toy
if __name__ == "__main__":
    try:
        synthesize_dataset(sys.argv[1], sys.argv[2], TOY, make=Toy)
    except OSError as error:
        sys.exit(f"errno {error.errno}")
"""


def on_a_disk(tmp_path: Path, options: str, file: Path) -> str:
    """Run on a disk of memory that is mounted for this command alone; returns what it said, and leaves a copy."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything, not even for one command")
    (tmp_path / "disk").mkdir()
    (tmp_path / "driver.py").write_text(ON_A_DISK)
    script = 'mount -t tmpfs -o "$1" none disk || exit 9; "$2" driver.py "$3" disk/out; cp -r disk copy'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = ["unshare", "-rm", "sh", "-c", script, "sh", options, sys.executable, str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode == 9:
        pytest.skip(f"no disk of memory can be mounted: {done.stderr}")
    return done.stderr


def test_a_full_disk(tmp_path: Path) -> None:
    """A real one of 200 kB: what is there is whole, and the run goes on elsewhere."""
    file, copy = write(tmp_path / "in.parquet", numbered(200)), tmp_path / "copy" / "out"
    synthesize_dataset(file, tmp_path / "whole", TOY, make=Toy)
    assert f"errno {errno.ENOSPC}" in on_a_disk(tmp_path, "size=200k", file)
    made = [path for path in (copy / "parts").iterdir() if not path.name.endswith(".part")]
    assert 4 < len(made) < 80 and not (copy / "_SUCCESS").exists()
    for path in made:
        assert path.read_bytes() == (tmp_path / "whole" / "parts" / path.name).read_bytes()
    done = synthesize_dataset(file, copy, TOY, make=Toy)
    assert done.made < 40
    assert checked(copy)["parts"] == checked(tmp_path / "whole")["parts"] and read(copy) == read(tmp_path / "whole")


def test_an_output_on_a_disk_that_is_only_read(tmp_path: Path) -> None:
    assert f"errno {errno.EROFS}" in on_a_disk(tmp_path, "ro", write(tmp_path / "in.parquet", numbered(3)))
    assert list((tmp_path / "copy").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_an_output_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        synthesize_dataset(write(tmp_path / "in.parquet", numbered(3)), tmp_path / "out", TOY, make=Toy)


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    file, out = tmp_path / "long.jsonl", tmp_path / "out"

    def said(word: str) -> str:
        """More than is read at once."""
        return "".join(json.dumps({"id": i, "text": f"{word} " * 2000}) + "\n" for i in range(60))

    def change(line: str) -> None:
        with file.open("r+") as open_file:
            open_file.write(said("new"))

    file.write_text(said("old"))
    with pytest.raises(JobError, match=r"the input has changed since the run began: other rows for parts/000"):
        synthesize_dataset(file, out, TOY, make=Toy, progress=change)
    assert not (out / "_SUCCESS").exists()
    file.write_text(said("old"))
    assert 0 < synthesize_dataset(file, out, TOY, make=Toy).made < 12
    checked(out)
    for text in (5, "5", None, "None"):  # what looks the same is not
        lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i in range(3))
        (tmp_path / "in.jsonl").write_text(lines)
        if text == 5:
            synthesize_dataset(tmp_path / "in.jsonl", tmp_path / "five", TOY, make=Toy)
        else:
            with pytest.raises(JobError, match="or other texts"):
                synthesize_dataset(tmp_path / "in.jsonl", tmp_path / "five", TOY, make=Toy)


def test_success_is_there_while_the_manifest_is_true(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(17)), tmp_path / "out"
    synthesize_dataset(file, out, TOY, make=Toy)
    damaged = bytearray((out / "parts" / "00003.parquet").read_bytes())
    damaged[20] ^= 1
    (out / "parts" / "00003.parquet").write_bytes(damaged)
    assert synthesize_dataset(file, out, TOY, make=Toy).made == 0  # of the same size
    assert synthesize_dataset(file, out, TOY, make=Toy, verify=True).made == 1
    checked(out)
    (out / "parts" / "00002.json").unlink()
    for _ in range(2):
        with pytest.raises(JobError, match=r"has parts of other weights \(toy\) than these \(later\)"):
            synthesize_dataset(file, out, TOY, make=Later)
        assert not (out / "_SUCCESS").exists()
    assert synthesize_dataset(file, out, TOY, make=Toy).made == 1
    checked(out)
    note = out / "parts" / "00001.json"  # a part that somebody has made once more
    note.write_text(json.dumps({**json.loads(note.read_text()), "audio_s": 7.0}))
    assert synthesize_dataset(file, out, TOY, make=Toy).made == 0
    assert checked(out)["parts"][1]["audio_s"] == 7.0


def test_two_processes_at_one_output(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(17)), tmp_path / "out"

    def also(line: str) -> None:
        with pytest.raises(JobError, match="is being written by another process: wait for it, or stop it"):
            synthesize_dataset(file, out, TOY, make=Toy)
        told.append(line)

    told: list[str] = []
    synthesize_dataset(file, out, TOY, make=Toy, progress=also)
    assert len(told) == 4
    checked(out)


def test_a_row_alone_is_not_blamed_for_one_kill(tmp_path: Path) -> None:
    job = dataclasses.replace(TOY, shard_rows=1, model=str(tmp_path / "killed"))
    done = synthesize_dataset(write(tmp_path / "in.parquet", numbered(3)), tmp_path / "out", job, make=Killed)
    assert done.rows == 3 and done.errors == 0


def test_errors_are_tried_again_when_asked(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(12, i3="hang3")), tmp_path / "out"
    assert synthesize_dataset(file, out, TOY, make=Toy).errors == 1
    assert synthesize_dataset(file, out, TOY, make=Better).made == 0
    done = synthesize_dataset(file, out, TOY, make=Better, retry_errors=True)
    assert done.made == 1 and done.errors == 0
    checked(out)


def test_places_that_are_refused_or_not(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no such model"):
        synthesize_dataset(
            write(tmp_path / "one.parquet", numbered(3)),
            tmp_path / "new",
            dataclasses.replace(TOY, model="fails"),
            make=Toy,
        )
    assert not (tmp_path / "new" / "job.json").exists()  # nothing was made: another model may be named
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", numbered(3))
    with pytest.raises(JobError, match=r"in/out is in the input .*in: name a folder beside it"):
        synthesize_dataset(tmp_path / "in", tmp_path / "in" / "out", TOY, make=Toy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json.ab12cd34.part").write_text("{")  # killed while it wrote its first file
    assert synthesize_dataset(tmp_path / "in", tmp_path / "out", TOY, make=Toy).made == 1
    for book in ("one", "two"):
        (tmp_path / "books" / book).mkdir(parents=True)
        (tmp_path / "books" / book / "ch1.txt").write_text("so\n")
    assert [row.id for row in Source([tmp_path / "books"], TOY)] == ["one/ch1.txt:1", "two/ch1.txt:1"]


def test_webdatasets(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(7, i2="a/b.c é"))
    job = dataclasses.replace(TOY, format="webdataset")
    for out in ("one", "two"):
        synthesize_dataset(file, tmp_path / out, job, make=Toy)
        checked(tmp_path / out)
    names: list[str] = []
    for part in ("00000.tar", "00001.tar"):
        data = [(tmp_path / out / "parts" / part).read_bytes() for out in ("one", "two")]
        assert data[0] == data[1]
        with tarfile.open(fileobj=io.BytesIO(data[0])) as archive:
            names += archive.getnames()
            if "a%2Fb%2Ec%20%C3%A9.json" in names and part == "00000.tar":
                about = json.load(archive.extractfile("a%2Fb%2Ec%20%C3%A9.json"))  # type: ignore[arg-type]
                assert about["id"] == "a/b.c é" and about["text_sha256"] == hashlib.sha256(b"text 2").hexdigest()
    assert len(names) == 14 and names[:2] == ["row0.flac", "row0.json"]
    synthesize_dataset(file, tmp_path / "one", job, make=Toy)
    (tmp_path / "one" / "manifest.json").unlink()
    synthesize_dataset(file, tmp_path / "one", job, make=Toy)
    assert checked(tmp_path / "one") == checked(tmp_path / "two")


def test_audio_is_exact() -> None:
    audio = np.random.default_rng(0).uniform(-1.2, 1.2, 1000).astype(np.float32)
    samples = worker.encoded(audio, 24_000, "pcm16")
    assert samples == pcm16_bytes(audio)
    heard, _ = soundfile.read(io.BytesIO(worker.encoded(audio, 24_000, "flac")), dtype="int16")
    assert heard.tobytes() == samples
    assert worker.encoded(audio[:0], 24_000, "flac") == b""


class TestSource:
    def rows(self, *inputs: Path, job: Job = TOY) -> list[Row]:
        return list(Source(inputs, job))

    def test_kinds(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", [{"id": 1, "text": "x", "voice": "v"}, {"id": 2, "text": None, "voice": None}])
        (tmp_path / "b.jsonl").write_text(
            '\ufeff{"id": "three", "text": "é"}\n\n{"text": 5, "id": 4, "x": 1}\n', "utf-8"
        )
        (tmp_path / "c.txt").write_text("one line\r\n\nanother\n")
        (tmp_path / ".hidden.txt").write_text("not this\n")
        rows = [
            Row("1", "x", "v"),
            Row("2", None, None),
            Row("three", "é", None),
            Row("4", 5, None),
            Row("c.txt:1", "one line", None),
            Row("c.txt:3", "another", None),
        ]
        assert self.rows(tmp_path) == rows
        source = Source([tmp_path], TOY)
        assert [source.shard(i) for i in (1, 0)] == [rows[5:], rows[:5]]
        assert [len(part) for part in source.shards()] == [5, 1] and (source.n_rows, source.n_shards) == (6, 2)
        assert self.rows(tmp_path / "c.txt", tmp_path / "a.parquet") == rows[4:] + rows[:2]
        assert Source([f"file://{tmp_path}"], TOY).digest == source.digest
        named = dataclasses.replace(TOY, id_column="text", text_column="id")
        with pytest.raises(JobError, match="has the text None"):
            self.rows(tmp_path / "a.parquet", job=named)

    def test_any_shard_alone(self, tmp_path: Path) -> None:
        rows = numbered(31)
        pq.write_table(pa.Table.from_pylist(rows[:17]), tmp_path / "a.parquet", row_group_size=4)
        (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows[17:24]))
        pq.write_table(pa.Table.from_pylist(rows[24:]), tmp_path / "c.parquet", row_group_size=3)
        for size in (1, 2, 5, 16, 40):
            source = Source([tmp_path], dataclasses.replace(TOY, shard_rows=size))
            whole = list(source.shards())
            assert [row.id for part in whole for row in part] == [row["id"] for row in rows]
            lazy = Source([tmp_path], source.job, checked=False)
            assert [lazy.shard(i) for i in range(source.n_shards)] == whole

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        good = write(tmp_path / "good.parquet", numbered(50))
        data = good.read_bytes()
        (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
        write(tmp_path / "other.parquet", [{"key": 1, "text": "x"}])
        write(
            tmp_path / "twice.parquet", [{"id": "a", "text": "x"}, {"id": "b", "text": "x"}, {"id": "a", "text": "y"}]
        )
        (tmp_path / "bad.jsonl").write_text('{"id": 1, "text": "x"}\n{"id": 2\n')
        (tmp_path / "list.jsonl").write_text("[1]\n")
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n")
        (tmp_path / "none.txt").write_text("\n")
        (tmp_path / "x.docx").write_text("x")
        (tmp_path / "empty").mkdir()
        write(tmp_path / "null.parquet", [{"id": None, "text": "x"}, {"id": "b", "text": "x"}])
        for name, words in {
            "cut.parquet": "cannot be read",
            "other.parquet": "has no column 'id': it has key, text",
            "twice.parquet": r"twice\.parquet, row 2: the id 'a' is that of twice\.parquet, row 0",
            "bad.jsonl": "line 2 is not JSON",
            "list.jsonl": "must be an object with id and text",
            "bytes.txt": "cannot be read",
            "none.txt": "there are no rows",
            "x.docx": "of an unknown kind",
            "empty": "has no files of texts",
            "null.parquet": "has the id None: it must be a string or an integer",
        }.items():
            with pytest.raises(JobError, match=words):
                self.rows(tmp_path / name)
        with pytest.raises(JobError, match=r"the id 'row(\d+)' is that of good\.parquet, row \1"):
            self.rows(good, good)
        with pytest.raises(FileNotFoundError, match="must be a file or a folder"):
            self.rows(tmp_path / "absent.parquet")
        with pytest.raises(JobError, match="in no store"):
            self.rows("nowhere://x/y.parquet")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audio": "mp3"}, "audio is 'mp3': choose one of flac, pcm16"),
        ({"format": "csv"}, "format is 'csv'"),
        ({"rows": 0}, "rows is 0: it must be an integer of 1 to 4,096"),
        ({"shard_rows": True}, "shard_rows is True"),
        ({"seed": -1}, "seed is -1"),
        ({"deadline_s": 0.5}, "deadline_s is 0.5"),
        ({"sampling": None}, "sampling is None"),
        ({"text_column": "id"}, "need three names"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError, match=words):
        Job(**changes)


def test_seeds_are_of_the_job_and_the_row() -> None:
    seeds = {row_seed(job, id_) for job in (0, 1, 2**64 - 1) for id_ in ("", "a", "b", "é")}
    assert len(seeds) == 12 and all(0 <= seed < 2**64 for seed in seeds)
    digest = hashlib.sha256((5).to_bytes(8, "little") + b"row").digest()
    assert row_seed(5, "row") == int.from_bytes(digest[:8], "little")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(JobError, match=r"has files, and no job\.json: name a new folder"):
        synthesize_dataset(write(tmp_path / "in.parquet", numbered(3)), tmp_path / "out", TOY, make=Toy)
    (tmp_path / "out" / "thesis.txt").rename(tmp_path / "out" / "job.json")
    with pytest.raises(JobError, match="is damaged"):
        synthesize_dataset(tmp_path / "in.parquet", tmp_path / "out", TOY, make=Toy)


def test_what_is_wrong_with_every_row_is_said_at_once(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(3))
    options = ["--rows", "2", "-m", str(model)]
    done = CliRunner().invoke(cli.main, ["synthesize", str(file), "-o", str(tmp_path / "a"), "-v", "nobody", *options])
    assert done.exit_code == 1 and "nobody" in done.output and not (tmp_path / "a" / "parts").exists()
    empty = write(tmp_path / "empty.parquet", [{"id": "a", "text": ""}])
    done = CliRunner().invoke(cli.main, ["synthesize", str(empty), "-o", str(tmp_path / "b"), *options])
    assert done.exit_code == 1 and "none of the 1 rows could be spoken" in done.output


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text("ab cd.\nef.\n")
    options = ["-m", str(model), "--rows", "2", "-o", str(tmp_path / "out")]
    dry = CliRunner().invoke(cli.main, ["synthesize", str(file), *options, "--dry-run"])
    assert dry.exit_code == 0 and "hours of work here" in dry.output, dry.output
    found = json.loads(dry.output.splitlines()[-1])
    assert found["rows"] == 2 and found["audio_hours"] > 0 and found["gigabytes"] > 0
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(cli.main, ["synthesize", str(file), *options])
    assert done.exit_code == 0 and json.loads(done.output.splitlines()[-1])["rows"] == 2, done.output
    assert checked(tmp_path / "out")["rows"] == 2
    wrong = CliRunner().invoke(cli.main, ["synthesize", str(file), *options, "--rows", "3"])
    assert wrong.exit_code == 1 and "rows: it was 2, and is 3 now" in wrong.output
