"""Rows in, rows of speech out: a callable for any engine (a loop, Ray, Spark), and the same in a process of its own.

`SynthesisWorker` never raises for a row: what is wrong with one is in its ``error``. `Guarded` holds a worker in a
child process, kills it when nothing happens for too long, and goes on after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bark_jax.audio import pcm16_bytes, write
from bark_jax.synthesis.job import Job, Row, row_seed

START_S = 3600.0
"""Longest that a worker may take to load and compile."""


class SynthesisWorker:
    """A loaded model that speaks rows.

    Args:
      job: what is asked for.
      device: as for `bark_jax.load`.
      warm: compile what speaking needs before the first rows come.

    Raises:
      What `bark_jax.load` raises, and `Bark.check` of the job's voice and sampling.
    """

    def __init__(self, job: Job, *, device: str | None = None, warm: bool = True):
        import bark_jax

        self.job = job
        self.bark = bark_jax.load(job.model, revision=job.revision, dtype=job.dtype, device=device, rows=job.rows)
        self.revision = self.bark.digest()
        self.rate = self.bark.config.codec.sample_rate
        # What is wrong with all rows is said before the first.
        self.bark.check("Hello.", voice=job.voice, sampling=job.sampling, split=job.split)
        if warm:
            self.bark.warmup(rows=len(self.bark.devices), filtered=job.sampling.filters)

    def __call__(self, rows: Sequence[Row], beat: Callable[[], None] | None = None) -> list[dict[str, Any]]:
        """Speak rows, in their order, as rows of `job.SCHEMA`.

        Args:
          beat: called whenever something was computed.
        """
        start = time.perf_counter()
        spoken = self._without([_unfit(row) for row in rows], rows, beat)
        took = time.perf_counter() - start
        total = sum(one.duration for one in spoken if not isinstance(one, str))
        factor = took / total if total else None
        return [self._row(row, one, factor) for row, one in zip(rows, spoken, strict=True)]

    def _options(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "voice": [self.job.voice if row.voice is None else row.voice for row in rows],
            "seed": [row_seed(self.job.seed, row.id) for row in rows],
            "sampling": self.job.sampling,
            "split": self.job.split,
        }

    def _without(self, faults: Sequence[str | None], rows: Sequence[Row], beat: Callable[[], None] | None) -> list[Any]:
        """The speech of each row, or why there is none; rows with faults are not spoken."""
        spoken = iter(self._speak([row for row, fault in zip(rows, faults, strict=True) if fault is None], beat))
        return [next(spoken) if fault is None else fault for fault in faults]

    def _speak(self, rows: Sequence[Row], beat: Callable[[], None] | None) -> list[Any]:
        """The same of rows that say something. `Bark.generate` checks all of them before it computes anything."""
        if not rows:
            return []
        progress = False if beat is None else lambda *_: beat()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.bark.generate([row.text for row in rows], progress=progress, **self._options(rows))
        except Exception as error:
            if len(rows) == 1:
                return [_message(error)]
        faults = [self._fault(row) for row in rows]
        if any(faults):
            return self._without(faults, rows, beat)
        half = len(rows) // 2  # a row is the same whatever is beside it, so the others lose nothing
        return self._speak(rows[:half], beat) + self._speak(rows[half:], beat)

    def _fault(self, row: Row) -> str | None:
        """Why `Bark.generate` refuses a row."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.bark.check([row.text], **self._options([row]))
        except (ValueError, OSError) as error:
            return _message(error)
        return None

    def _row(self, row: Row, made: Any, factor: float | None) -> dict[str, Any]:
        about = {"model": self.revision, "sample_rate": self.rate}
        if isinstance(made, str):
            return error_row(self.job, row, about, made)
        return {
            **described(self.job, row),
            **about,
            "n_samples": len(made.audio),
            "duration_s": len(made.audio) / self.rate,
            "ended": made.ended,
            "real_time_factor": factor,
            "audio": encoded(made.audio, self.rate, self.job.audio),
            "error": None,
        }


def _unfit(row: Row) -> str | None:
    """What is wrong with a row that no model could speak."""
    if not isinstance(row.text, str) or not row.text.strip():
        return f"its text is {repr(row.text)[:40]}: it must say something"
    try:
        row.id.encode("utf-8")
    except UnicodeEncodeError as error:
        return _message(error)
    return None


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("item 0: ", "")


def described(job: Job, row: Row) -> dict[str, Any]:
    """What is known of a row before it is spoken."""
    voice = job.voice if row.voice is None else row.voice
    said = row.text if isinstance(row.text, str) else None
    return {
        "id": _printable(row.id),
        "text_sha256": None if said is None else hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest(),
        "voice": None if voice is None else _printable(str(voice)),
        "seed": row_seed(job.seed, _printable(row.id)),
        "parameters": job.parameters,
    }


def error_row(job: Job, row: Row, about: dict[str, Any], error: str) -> dict[str, Any]:
    """A row that could not be spoken; `about`: model and sample rate."""
    empty = {"n_samples": 0, "duration_s": 0.0, "ended": None, "real_time_factor": None, "audio": None}
    return {**described(job, row), **about, **empty, "error": _printable(error)}


def encoded(audio: np.ndarray, rate: int, kind: str) -> bytes:
    """(samples,) float as a FLAC file or as raw 16-bit samples; nothing for no samples, which FLAC cannot hold."""
    if kind == "pcm16" or len(audio) == 0:
        return pcm16_bytes(audio)
    buffer = io.BytesIO()
    write(buffer, audio, rate, format=".flac")
    return buffer.getvalue()


def _printable(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Guarded:
    """A worker in a process of its own.

    Rows that make it crash, or keep it silent for `Job.deadline_s`, twice become error rows; the others are spoken by a
    new process. Such a row is found by halving the rows, so it costs some deadlines.

    Args:
      job: what is asked for.
      device: as for `bark_jax.load`.
      make: what makes the worker in the child: `SynthesisWorker`, or a stand-in with the same arguments.
    """

    def __init__(self, job: Job, *, device: str | None = None, make: Callable[..., Any] = SynthesisWorker):
        self.job, self._device, self._make = job, device, make
        self._process: Any = None
        self._pipe: Any = None
        self.about: dict[str, Any] = {}
        """``model`` and ``sample_rate``, of the worker."""

    def __enter__(self) -> Guarded:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, rows: Sequence[Row], *, again: bool = False) -> list[dict[str, Any]]:
        """As `SynthesisWorker`; `again`: they were among rows that failed."""
        if not rows:
            return []
        if self._process is None:
            self._start()
        try:
            self._pipe.send(list(rows))
            while True:
                if not self._pipe.poll(self.job.deadline_s):
                    fault = f"DeadlineError: nothing came for {self.job.deadline_s:g} s"
                    break
                kind, what = self._pipe.recv()
                if kind == "done":
                    return what
        except (EOFError, OSError):
            fault = f"WorkerError: the worker ended with code {self._exit_code()}"
        self._stop()
        if len(rows) == 1:  # whom somebody else may have killed the first time
            return [error_row(self.job, rows[0], self.about, fault)] if again else self(rows, again=True)
        half = len(rows) // 2
        return self(rows[:half], again=True) + self(rows[half:], again=True)

    def _start(self) -> None:
        # Not multiprocessing's: it runs the caller's script again in the child, unless that is written for it.
        self._pipe, theirs = multiprocessing.Pipe()
        code = f"from bark_jax.synthesis.worker import serve; serve({theirs.fileno()}, {os.getpid()})"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            # -P: a file of the working directory, such as a tokenizers.py, is no module of ours.
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child
        )
        theirs.close()
        with contextlib.suppress(OSError):
            self._pipe.send((self._make, self.job, self._device))
        try:
            if not self._pipe.poll(START_S):
                raise TimeoutError(f"the worker was not ready after {START_S:g} s")
            kind, what = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._exit_code()
            self._stop()
            if isinstance(error, TimeoutError):
                raise
            raise ChildProcessError(f"the worker ended with code {code} while it started") from None
        if kind == "failed":
            self._stop()
            raise what
        self.about = what

    def _exit_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return self._process.returncode

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()
        self._process = self._pipe = None


def serve(descriptor: int, parent: int) -> None:
    """A worker's process: rows come through a pipe, beats and results go."""
    pipe = multiprocessing.connection.Connection(descriptor)

    def watch() -> None:  # a killed parent closes nothing that the child would notice while it computes
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        make, job, device = pipe.recv()
        worker = make(job, device=device)
    except Exception as error:
        with contextlib.suppress(Exception):
            pipe.send(("failed", error))
            return
        pipe.send(("failed", RuntimeError(f"{type(error).__name__}: {error}")))
        return
    pipe.send(("ready", {"model": worker.revision, "sample_rate": worker.rate}))
    while True:
        try:
            rows = pipe.recv()
        except EOFError:
            sys.exit()
        pipe.send(("done", worker(rows, lambda: pipe.send(("beat", None)))))
