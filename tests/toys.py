"""Workers without a model, for tests of corpus runs. A small file of their own: many processes import it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bark_jax.synthesis import Job, JobError, worker
from bark_jax.synthesis.job import Row

TOY = Job(model="toy", shard_rows=5, deadline_s=1.0)


class Toy:
    """A worker without a model, for what happens around one: it hangs, dies or fails at ids that say so."""

    revision, rate = "toy", 24_000
    pause_s = 0.05  # for a row, where the model is called slow

    def __init__(self, job: Job, *, device: str | None = None):
        self.job = job
        if job.model == "fails":
            raise JobError("there is no such model")

    def __call__(self, rows: Sequence[Row], beat: Any = None) -> list[dict[str, Any]]:
        for row in rows:
            if row.id.startswith("hang"):
                time.sleep(1e6)
            if row.id.startswith("die"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.job.model == "slow":
                time.sleep(self.pause_s)
            beat()
        about = {"model": self.revision, "sample_rate": self.rate}
        return [
            worker.error_row(self.job, row, about, "it is bad")
            if row.id.startswith("bad")
            else {
                **worker.described(self.job, row),
                **about,
                "n_samples": 1,
                "duration_s": 1 / self.rate,
                "audio": hashlib.sha256(f"{row.id} {row.text}".encode()).digest(),
                "error": None,
            }
            for row in rows
        ]


class Quick(Toy):
    """The same rows without the pauses, to compare with."""

    pause_s = 0.0


class Brisk(Toy):
    """Shorter ones: ten rows in 0.2 s, time enough to be killed in."""

    pause_s = 0.02


class Later(Toy):
    """The model of another day."""

    revision = "later"


class Killed(Toy):
    """Dies once of nothing that a row has to do with."""

    def __call__(self, rows: Sequence[Row], beat: Any = None) -> list[dict[str, Any]]:
        mark = Path(self.job.model)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows, beat)


class Better(Toy):
    """Nothing hangs any more."""

    def __call__(self, rows: Sequence[Row], beat: Any = None) -> list[dict[str, Any]]:
        made = super().__call__([row._replace(id=f"row {row.id}") for row in rows], beat)
        return [{**one, **worker.described(self.job, row)} for one, row in zip(made, rows, strict=True)]
