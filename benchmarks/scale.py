"""Several devices give what one gives; a corpus on Ray is that of the embedded engine, through deaths, and costs what?

    python -m benchmarks.scale --model bark-nano                    # both parts; a quiet machine, and the extra [ray]
    python -m benchmarks.scale --model models/small --parts devices

Virtual CPU devices and two Ray nodes of one CPU each stand for real ones: equality and survival hold elsewhere too,
speed does not scale here, because all share the same cores. So part weak simulates: its workers sleep for what they
would compute, on as many nodes as there are workers, each with the same number of rows, and what is measured is the
engine alone. Prints a table per part and one JSON object last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bark_jax
from bark_jax import Sampling
from bark_jax.synthesis import Job, synthesize_dataset
from bark_jax.synthesis.job import Row
from bark_jax.synthesis.worker import described
from benchmarks import harness
from recipes.bark_nano import sentences

PARTS = ("devices", "corpus", "weak")
PAUSE_S = 0.05
"""What a row takes a worker of part weak, which computes nothing: 20 rows a second."""


# --- devices ----------------------------------------------------------------------------------------------------------


def spoken(model: str, texts: Sequence[str], out: Path) -> None:
    """Speak on all devices that this process has, and write what came out."""
    bark = bark_jax.load(model, rows=2, device="cpu")
    start = time.perf_counter()
    speeches = bark.generate(list(texts), seed=list(range(len(texts))), sampling=Sampling(max_duration_s=3.0))
    arrays = {
        f"{name} {i}": getattr(speech, name)
        for i, speech in enumerate(speeches)
        for name in ("semantic", "coarse", "fine", "audio")
    }
    np.savez(out, seconds=time.perf_counter() - start, devices=len(bark.devices), **arrays)


def devices(model: str, n_devices: int, n_texts: int) -> dict[str, Any]:
    """The same list on one device and on `n_devices` virtual ones, each in a process of its own."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, n_devices):
            out = Path(folder) / f"{count}.npz"
            harness.say(f"devices: {n_texts} texts on {count}")
            flags = f"--xla_force_host_platform_device_count={count}"
            command = [sys.executable, "-m", "benchmarks.scale", "--model", model, "--speak", str(out)]
            subprocess.run(
                [*command, "--texts", str(n_texts)],
                check=True,
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            )
            with np.load(out) as found:
                made.append({name: found[name] for name in found.files})
    one, many = made
    arrays = [name for name in one if " " in name]
    tokens = [name for name in arrays if not name.startswith("audio")]
    return {
        "devices": int(many["devices"]),
        "devices_equal": all(np.array_equal(one[name], many[name]) for name in tokens),
        "audio_difference": max(
            float(np.max(np.abs(one[name] - many[name]), initial=0)) for name in arrays if name.startswith("audio")
        ),
        "one_s": float(one["seconds"]),
        "many_s": float(many["seconds"]),
    }


# --- corpus -----------------------------------------------------------------------------------------------------------


def part_s(folder: Path, workers: int = 1) -> float:
    """Seconds between parts, by when their notes were written, after each worker's first: starting up is not compared.

    The notes' arrival at the driver would not do: Ray brings several together.
    """
    times = sorted(path.stat().st_mtime_ns for path in (folder / "parts").glob("*.json"))
    return (times[-1] - times[workers - 1]) / 1e9 / (len(times) - workers)


def rows_of(folder: Path) -> dict[str, Any]:
    """Row → everything but how long it took; a row that is there twice is refused."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    twice = 0
    for file in sorted((folder / "parts").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            row.pop("real_time_factor")
            twice += row["id"] in found
            found[row["id"]] = row
    return {"rows": found, "twice": twice}


def kill_one(parts: Path, wanted: int, killed: list[int]) -> None:
    """Kill a worker's actor when so many parts are there."""
    while len(list(parts.glob("*.json"))) < wanted:
        time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"ray::" in name and b"Map" in name:
            os.kill(int(entry.name), signal.SIGKILL)
            killed.append(int(entry.name))
            return


@contextlib.contextmanager
def nodes(count: int) -> Iterator[None]:
    """A Ray cluster of nodes of one CPU on this machine; their processes take the environment from here."""
    import ray
    from ray.cluster_utils import Cluster

    here = str(Path(__file__).resolve().parents[1])
    os.environ.update(PYTHONPATH=here, JAX_PLATFORMS="cpu", RAY_DATA_DISABLE_PROGRESS_BARS="1")
    cluster = Cluster()
    for _ in range(count):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


class Memory:
    """The most that all processes of this user took together, looked at every second; shared pages count once."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            total = 0
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError, ValueError):
                    if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                        total += 1024 * int(re.search(r"^Pss:\s+(\d+)", (entry / "smaps_rollup").read_text(), re.M)[1])  # type: ignore[index]
            self.most = max(self.most, total)


def corpus(model: str, n_rows: int, repeat: int) -> dict[str, Any]:
    """Rows through the embedded engine and through Ray, in turns; once more with an actor killed halfway."""
    everyday = sentences.everyday()
    lines = [json.dumps({"id": f"row {i}", "text": next(everyday)}) for i in range(n_rows)]
    job = Job(model=model, seed=1, rows=8, shard_rows=max(2, n_rows // 10))
    times: dict[str, list[float]] = {"local": [], "ray": []}
    with nodes(2), tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("\n".join(lines) + "\n", "utf-8")

        def run(name: str, engine: str, **cluster_options: Any) -> float:
            harness.say(f"corpus: {name}")
            out = Path(folder) / name
            synthesize_dataset(
                source, out, job, engine=engine, progress=lambda line: harness.say(f"  {line}"), **cluster_options
            )
            return part_s(out)

        for i in range(repeat):
            times["local"].append(run(f"local {i}", "local"))
            times["ray"].append(run(f"ray {i}", "ray", actors=1))
        killed: list[int] = []
        watch = threading.Thread(target=kill_one, args=(Path(folder) / "killed" / "parts", 5, killed), daemon=True)
        watch.start()
        with Memory() as memory:
            run("killed", "ray", actors=2)
        whole = rows_of(Path(folder) / "local 0")
        others = [rows_of(Path(folder) / name) for name in (*[f"ray {i}" for i in range(repeat)], "killed")]
    medians = {name: statistics.median(one) for name, one in times.items()}
    return {
        "rows": n_rows,
        "actors_killed": len(killed),
        "errors": sum(row["error"] is not None for row in whole["rows"].values()),
        "missing": n_rows - min(len(one["rows"]) for one in (whole, *others)),
        "duplicate": max(one["twice"] for one in (whole, *others)),
        "hash_equal": all(one["rows"] == whole["rows"] for one in others),
        "local_part_s": medians["local"],
        "ray_part_s": medians["ray"],
        "overhead": medians["ray"] / medians["local"] - 1,
        "memory_gb": memory.most / 1e9,
        "machine_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }


# --- weak scaling, simulated ------------------------------------------------------------------------------------------


class Sleeper:
    """A worker that sleeps for what it would compute."""

    revision, rate = "sleeper", 24_000

    def __init__(self, job: Job, *, device: str | None = None):
        self.job = job

    def __call__(self, rows: Sequence[Row], beat: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        made = []
        for row in rows:
            time.sleep(PAUSE_S)
            if beat is not None:
                beat()
            about = {"model": self.revision, "sample_rate": self.rate, "n_samples": 1, "duration_s": 1 / self.rate}
            made.append({**described(self.job, row), **about, "audio": b"\0\0", "error": None})
        return made


def weak(workers: Sequence[int], n_rows: int) -> dict[str, Any]:
    """`n_rows` rows a worker, on 1, 2, ... nodes: what a row takes a worker, against what it sleeps."""
    worker = importlib.import_module("benchmarks.scale").Sleeper  # as other processes know it: here it is __main__'s

    found: dict[str, float] = {}
    job = Job(model="sleeper", shard_rows=max(2, n_rows // 10))
    for count in workers:
        with nodes(count), tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "in.jsonl", Path(folder) / "out"
            total = count * n_rows
            source.write_text("".join(json.dumps({"id": str(i), "text": "x"}) + "\n" for i in range(total)), "utf-8")
            harness.say(f"weak: {total} rows, {count} workers")
            synthesize_dataset(source, out, job, engine="ray", make=worker, actors=count)
            found[f"{count} workers"] = PAUSE_S * job.shard_rows / (part_s(out, count) * count)
    return {"weak_efficiency": found}


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bark-nano", help="as for bark_jax.load")
    parser.add_argument("--parts", type=harness.some_of(PARTS), default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--devices", type=int, default=8, help="virtual ones")
    parser.add_argument("--texts", type=int, default=24, help="of part devices")
    parser.add_argument("--rows", type=int, default=200, help="of part corpus, ten parts")
    parser.add_argument("--workers", default="1,2,4,8", help="of part weak, each with --rows rows that sleep")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each engine")
    parser.add_argument("--out", help="a file for the JSON; a bare NAME means benchmarks/results/NAME.json")
    parser.add_argument("--speak", type=Path, help=argparse.SUPPRESS)  # a process of part devices
    given = parser.parse_args(arguments)
    if given.speak:
        everyday = sentences.everyday(1)
        spoken(given.model, [next(everyday) for _ in range(given.texts)], given.speak)
        return 0
    result = {**harness.environment(jax.devices("cpu")[0]), "model": Path(given.model).name}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "devices": lambda: devices(given.model, given.devices, given.texts),
        "corpus": lambda: corpus(given.model, given.rows, given.repeat),
        "weak": lambda: weak([int(n) for n in given.workers.split(",")], given.rows),
    }
    lines = []
    for part in given.parts:
        figures = parts[part]()
        result |= figures
        cells = [[k, f"{v:.4g}" if isinstance(v, float) else str(v)] for k, v in figures.items()]
        lines.append(f"{part}\n{harness.table(['', ''], cells)}")
    return harness.finish(result, "\n\n".join(lines), given.out)


if __name__ == "__main__":
    sys.exit(main())
