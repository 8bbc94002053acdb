"""`Team`: copies of an engine, and work dealt out to them. Knows no stage and no network.

    items ─ deal ─▶ a part per copy ─ (each in a thread, with programs of its own) ─▶ results in the order of the items

A copy is never told of the others. So no device waits for another, in a loop or between two stages; what an item gives
does not depend on how many copies there are; and a program that compiles for one device is all there is. (One program
over all devices, by `jax.shard_map`, would hold every device until the host has served all, and compile only once.)

With processes that JAX has connected (`jax.distributed.initialize`), a mesh may have devices of several. Each process
works for the copies that have devices of its own, and afterwards all have all results. They must make the same calls.
"""

from __future__ import annotations

import copy
import io
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np

from bark_jax.config import BarkConfig
from bark_jax.engine import Engine, Report
from bark_jax.placement import Place, first

Item = TypeVar("Item")
Made = tuple[np.ndarray, ...]
"""What is made of an item: arrays, which can be sent to other processes."""
Work = Callable[[Engine, list[Item], Report], Sequence[Made]]
"""Called with a copy, its items, and where to tell of progress."""


class Team:
    """Copies of an engine, one per place.

    Args:
      engine: the copy in the first place that has a device of this process; the others are made when they are needed.
      places: one, or more that do not overlap.
    """

    def __init__(self, engine: Engine, places: Sequence[Place]):
        self.places = tuple(places)
        here = jax.process_index()
        self.shared = any(device.process_index != here for place in self.places for device in place.devices)
        """Whether other processes belong to it."""
        self._config = engine.config
        self._lock = threading.Lock()
        self._first = self.places.index(first(self.places))
        self._engines = {self._first: engine}

    def configured(self, config: BarkConfig) -> Team:
        """The same copies, for calls with other windows or limits."""
        other = copy.copy(self)
        other._config = config
        return other

    @property
    def first(self) -> Engine:
        """The copy that does what is not dealt out."""
        return self._engine(self._first)

    def _engine(self, i: int) -> Engine:
        with self._lock:
            if i not in self._engines:
                self._engines[i] = self._engines[self._first].on(self.places[i])
            engine = self._engines[i]
        if engine.config is self._config:
            return engine
        other = copy.copy(engine)
        other.config = self._config
        return other

    @property
    def engines(self) -> list[Engine]:
        """The copies that have been made."""
        return list(self._engines.values())

    def each(self, items: Sequence[Item], work: Work[Item], report: Report) -> list[Made]:
        """What `work` makes of the items, each copy of its part of them, all at the same time.

        Args:
          items: dealt out one by one; as many copies work as there are items for.
          work: in a thread, if several work.
          report: told of the progress of all together, one call at a time.

        Raises:
          What `work` raises, when all others have stopped, which they do where they next report.
          RuntimeError: another process failed.
        """
        if not items:
            return []
        count = min(len(self.places), len(items))
        mine = [i for i in range(count) if self.places[i].local]
        parts = {i: list(items[i::count]) for i in mine}
        if not self.shared:
            made = self._work(parts, work, report)
        else:
            try:
                made, fault = self._work(parts, work, report), None
            except Exception as error:
                made, fault = {}, error
            made = _exchanged(made, fault)
        return [made[i % count][i // count] for i in range(len(items))]

    def _work(self, parts: dict[int, list[Item]], work: Work[Item], report: Report) -> dict[int, Sequence[Made]]:
        if len(parts) <= 1:
            return {i: self._on(i, part, work, report) for i, part in parts.items()}
        together = _Together(report)
        with ThreadPoolExecutor(len(parts), "bark-jax") as pool:
            futures = {i: pool.submit(self._on, i, part, work, together.of(i)) for i, part in parts.items()}
            try:
                done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:  # an interrupt too
                together.stop.set()
                raise
        return {i: future.result() for i, future in futures.items()}

    def _on(self, i: int, part: list[Item], work: Work[Item], report: Report) -> Sequence[Made]:
        engine = self._engine(i)
        with jax.default_device(engine.device):  # of this thread
            return work(engine, part, report)


class _Stopped(Exception):
    """Another thread has failed, and tells what there is to tell."""


class _Together:
    """Progress of several that go through the same stages → that of all."""

    def __init__(self, report: Report):
        self.stop = threading.Event()
        self._report, self._lock = report, threading.Lock()
        self._at: dict[str, dict[int, tuple[int, int]]] = {}

    def of(self, i: int) -> Report:
        def tell(stage: str, done: int, total: int) -> None:
            if self.stop.is_set():
                raise _Stopped
            with self._lock:
                at = self._at.setdefault(stage, {})
                at[i] = done, total
                self._report(stage, sum(done for done, _ in at.values()), sum(total for _, total in at.values()))

        return tell


# --- processes --------------------------------------------------------------------------------------------------------


def _exchanged(made: dict[int, Sequence[Made]], fault: Exception | None) -> dict[int, Sequence[Made]]:
    """What all processes have made, and so in all of them the same; a fault of one is raised in all."""
    arrays = {f"{i}.{j}.{k}": x for i, some in made.items() for j, one in enumerate(some) for k, x in enumerate(one)}
    arrays["fault"] = np.array("" if fault is None else f"{type(fault).__name__}: {fault}")
    file = io.BytesIO()
    save: Any = np.savez  # its own keyword arguments are not among the names
    save(file, **arrays)
    found: dict[int, dict[int, dict[int, np.ndarray]]] = {}
    faults = {}
    for process, data in enumerate(_gathered(file.getvalue())):
        with np.load(io.BytesIO(data), allow_pickle=False) as one:
            for key in one.files:
                if key == "fault":
                    faults |= {process: str(one[key])} if str(one[key]) else {}
                    continue
                i, j, k = map(int, key.split("."))
                found.setdefault(i, {}).setdefault(j, {})[k] = one[key]
    if fault is not None:
        raise fault
    if faults:
        raise RuntimeError("; ".join(f"process {process} failed: {fault}" for process, fault in faults.items()))
    return {i: [tuple(one[k] for k in range(len(one))) for _, one in sorted(some.items())] for i, some in found.items()}


_MEETING = itertools.count()

LONGEST_S = 24 * 3600.0
"""Longest that a process waits for the others' part of the work."""


def _gathered(data: bytes) -> list[bytes]:
    """What each process gives, in all of them; they wait for each other."""
    from jax._src import distributed  # there is no public name for it
    from jax.experimental import multihost_utils

    # Collectives give up after half a minute, and one process may have much more to do than another.
    client: Any = distributed.global_state.client
    client.wait_at_barrier(f"bark_jax {next(_MEETING)}", int(LONGEST_S * 1000))
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # few sizes: each is a program of its own
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
