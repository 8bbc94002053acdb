"""`bark_jax.synthesis` on Ray: the parts are those of the embedded engine, whatever is killed meanwhile."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from bark_jax.synthesis import JobError, synthesize_dataset
from bark_jax.synthesis.on_ray import run
from test_synthesis import checked, numbered, read, write
from toys import TOY, Brisk, Later, Quick, Toy

PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
SLOW = dataclasses.replace(TOY, model="slow", shard_rows=10)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU on this machine; what is imported here can be imported there."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        made = Cluster()
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=80_000_000, include_dashboard=False)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def workers() -> list[int]:
    """Processes of actors that map."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"ray::" in name and b"Map" in name:
                found.append(int(folder.name))
    return found


def later(seconds: float, what: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(seconds), what()), daemon=True)
    thread.start()
    return thread


def equal(one: Path, other: Path) -> None:
    assert checked(one)["parts"] == checked(other)["parts"]
    assert read(one) == read(other)


@pytest.mark.slow
def test_parts_are_those_of_the_embedded_engine(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.parquet", numbered(11))
    job = dataclasses.replace(TOY, shard_rows=2)
    monkeypatch.chdir(tmp_path)  # paths are the driver's
    embedded = synthesize_dataset("in.parquet", "local", job, make=Toy)
    on_ray = synthesize_dataset("in.parquet", "ray", job, engine="ray", make=Toy, actors=(1, 2))
    assert (on_ray.rows, on_ray.errors, on_ray.parts) == (embedded.rows, embedded.errors, embedded.parts) == (11, 0, 6)
    equal(tmp_path / "local", tmp_path / "ray")
    again = synthesize_dataset("in.parquet", "ray", job, engine="ray", make=Toy)
    assert again.made == 0
    # One engine goes on where the other was.
    (tmp_path / "local" / "parts" / "00001.json").unlink()
    (tmp_path / "local" / "parts" / "00005.json").unlink()
    assert synthesize_dataset("in.parquet", "local", job, engine="ray", make=Toy).made == 2
    equal(tmp_path / "local", tmp_path / "ray")


@pytest.mark.slow
def test_bad_rows_cost_themselves_alone(cluster: Any, tmp_path: Path) -> None:
    """A twentieth of 200 rows is bad: eight are no speech, one kills, one hangs. The others are as without them."""
    bad = {i: f"bad{i}" for i in range(5, 200, 25)} | {44: "die44", 90: "hang90"}
    assert len(bad) == 10
    good, job = numbered(200), dataclasses.replace(TOY, shard_rows=10)
    rows = [{**row, "id": bad.get(i, row["id"])} for i, row in enumerate(good)]
    synthesize_dataset(write(tmp_path / "good.parquet", good), tmp_path / "whole", job, make=Quick)
    expected = [(row["id"], row["audio"]) for i, row in enumerate(read(tmp_path / "whole")) if i not in bad]
    out = tmp_path / "ray"
    done = synthesize_dataset(write(tmp_path / "in.parquet", rows), out, job, engine="ray", make=Quick, actors=2)
    found = read(out)
    assert (done.rows, done.errors, checked(out)["rows"]) == (200, 10, 200)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert {row["id"] for row in found if row["error"]} == set(bad.values())
    assert [(row["id"], row["audio"]) for row in found if not row["error"]] == expected


@pytest.mark.slow
def test_what_workers_raise_comes_out(cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(11))
    with pytest.raises(JobError, match="there is no such model"):
        synthesize_dataset(file, tmp_path / "new", dataclasses.replace(TOY, model="fails"), engine="ray", make=Toy)
    synthesize_dataset(file, tmp_path / "out", TOY, make=Toy)
    (tmp_path / "out" / "parts" / "00001.json").unlink()
    with pytest.raises(JobError, match=r"has parts of other weights \(toy\) than these \(later\)"):
        synthesize_dataset(file, tmp_path / "out", TOY, engine="ray", make=Later)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_actors_that_are_killed_are_replaced(cluster: Any, seed: int, tmp_path: Path) -> None:
    """One at a quarter of the parts, one at half, one at three quarters."""
    file, job = write(tmp_path / "in.parquet", numbered(200)), dataclasses.replace(SLOW, seed=seed)
    synthesize_dataset(file, tmp_path / "local", job, make=Quick)
    killed: list[int] = []

    def watch() -> None:
        parts = tmp_path / "ray" / "parts"
        for share in (0.25, 0.5, 0.75):
            while len(list(parts.glob("*.json"))) < share * 20:
                time.sleep(0.02)
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = later(0, watch)
    done = synthesize_dataset(file, tmp_path / "ray", job, engine="ray", make=Brisk, actors=2)
    thread.join(1)
    assert len(set(killed)) == 3 and done.rows == 200 and done.errors == 0
    equal(tmp_path / "local", tmp_path / "ray")


@pytest.mark.slow
def test_a_node_that_is_killed_is_done_without(cluster: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(200))
    synthesize_dataset(file, tmp_path / "local", SLOW, make=Quick)
    extra = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    cluster.wait_for_nodes()

    def kill() -> None:
        parts = tmp_path / "ray" / "parts"
        while len(list(parts.glob("*.json"))) < 5:
            time.sleep(0.02)
        cluster.remove_node(extra, allow_graceful=False)

    later(0, kill)
    done = synthesize_dataset(file, tmp_path / "ray", SLOW, engine="ray", make=Brisk, actors=(1, 3))
    assert done.rows == 200 and done.errors == 0
    equal(tmp_path / "local", tmp_path / "ray")


def drive(file: Path, out: Path, address: str) -> None:
    ray.init(address=address, log_to_driver=False)
    synthesize_dataset(file, out, SLOW, engine="ray", make=Brisk, actors=1)


@pytest.mark.slow
def test_a_driver_that_is_killed_is_started_again(cluster: Any, tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.parquet", numbered(200)), tmp_path / "ray"
    synthesize_dataset(file, tmp_path / "local", SLOW, make=Quick)
    fresh = multiprocessing.get_context("forkserver")  # a new process each, whose imports were made once
    fresh.set_forkserver_preload([drive.__module__])
    moment = random.Random(0)
    for _ in range(10):
        more = moment.choice((0, 1, 2))
        process = fresh.Process(target=drive, args=(file, out, cluster.address))
        process.start()
        before, end = len(list((out / "parts").glob("*.json"))), time.monotonic() + 90
        while process.is_alive() and time.monotonic() < end:
            if len(list((out / "parts").glob("*.json"))) >= before + more:
                break
            time.sleep(0.02)
        time.sleep(moment.uniform(0, 0.3))
        process.kill()
        process.join()
    process = fresh.Process(target=drive, args=(file, out, cluster.address))
    process.start()
    process.join(180)
    assert process.exitcode == 0
    equal(tmp_path / "local", out)


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "in.parquet", numbered(3))
    with pytest.raises(JobError, match="engine is 'spark': choose one of local, ray"):
        synthesize_dataset(file, tmp_path / "out", TOY, engine="spark", make=Toy)
    with pytest.raises(JobError, match="actors: for engine 'ray' alone"):
        synthesize_dataset(file, tmp_path / "out", TOY, actors=2, make=Toy)
    for actors in (0, (2, 1)):
        with pytest.raises(JobError, match="actors is "):
            next(run([file], "x", TOY, {0: ""}, device=None, make=Toy, actors=actors))
