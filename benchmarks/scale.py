"""Several devices give what one gives; a corpus on Ray is that of the embedded engine, through deaths, and costs what?

    python -m benchmarks.scale --model bark-nano                    # both parts; a quiet machine, and the extra [ray]
    python -m benchmarks.scale --model models/small --parts devices

Virtual CPU devices and two Ray nodes of one CPU each stand for real ones: equality and survival hold elsewhere too,
speed does not scale here, because all share the same cores. Prints a table per part and one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bark_jax
from bark_jax import Sampling
from bark_jax.synthesis import Job, synthesize_dataset
from benchmarks import harness
from recipes.bark_nano import sentences

PARTS = ("devices", "corpus")


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


class Clock:
    """When each part was there: starting up is not what is compared."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, line: str) -> None:
        self.times.append(time.perf_counter())
        harness.say(f"  {line}")

    @property
    def per_part(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


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


def corpus(model: str, n_rows: int, repeat: int) -> dict[str, Any]:
    """Rows through the embedded engine and through Ray, in turns; once more with an actor killed halfway."""
    import ray
    from ray.cluster_utils import Cluster

    everyday = sentences.everyday()
    lines = [json.dumps({"id": f"row {i}", "text": next(everyday)}) for i in range(n_rows)]
    job = Job(model=model, seed=1, rows=8, shard_rows=max(2, n_rows // 10))
    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
    here = str(Path(__file__).resolve().parents[1])
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": here, "JAX_PLATFORMS": "cpu"}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    times: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("\n".join(lines) + "\n", "utf-8")

        def run(name: str, engine: str, **cluster_options: Any) -> Clock:
            harness.say(f"corpus: {name}")
            clock = Clock()
            synthesize_dataset(source, Path(folder) / name, job, engine=engine, progress=clock, **cluster_options)
            return clock

        for i in range(repeat):
            times["local"].append(run(f"local {i}", "local").per_part)
            times["ray"].append(run(f"ray {i}", "ray", actors=1).per_part)
        killed: list[int] = []
        watch = threading.Thread(target=kill_one, args=(Path(folder) / "killed" / "parts", 5, killed), daemon=True)
        watch.start()
        run("killed", "ray", actors=2)
        whole = rows_of(Path(folder) / "local 0")
        others = [rows_of(Path(folder) / name) for name in (*[f"ray {i}" for i in range(repeat)], "killed")]
    ray.shutdown()
    cluster.shutdown()
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
    }


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bark-nano", help="as for bark_jax.load")
    parser.add_argument("--parts", type=harness.some_of(PARTS), default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--devices", type=int, default=8, help="virtual ones")
    parser.add_argument("--texts", type=int, default=24, help="of part devices")
    parser.add_argument("--rows", type=int, default=200, help="of part corpus, ten parts")
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
