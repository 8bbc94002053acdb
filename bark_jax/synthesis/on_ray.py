"""The same run on a Ray cluster: shards go to actors, parts are written where the embedded engine writes them.

Ray Data brings numbers of shards to a pool of actors, each with a guarded worker, and takes notes back. An actor reads
the rows of its shard and writes the part itself, so no audio passes through Ray; a part appears whole or not at all,
and has the same speech whoever makes it, so a shard that Ray tries again after a death is neither lost nor doubled.
What is there is known from the output, as without Ray: a driver that was killed is started again. Ray's own checkpoints
are not used.

Needs ``bark-jax[ray]``. jax is imported in the workers' processes only.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bark_jax.speech import BarkWarning
from bark_jax.synthesis.job import Job, JobError
from bark_jax.synthesis.source import absolute


def run(
    inputs: Sequence[str | Path],
    output: str,
    job: Job,
    missing: dict[int, str],
    *,
    device: str | None,
    make: Callable[..., Any],
    before: str | None = None,
    actors: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    resources: dict[str, float] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make the missing parts, and give number and note of each when it is there.

    Args:
      missing: numbers of shards, and the digests of their rows.
      before: digest of the weights that the other parts were made with.
      actors: how many workers, or the least and the most: one for each GPU, or for each TPU host.
      num_cpus: of an actor.
      num_gpus: of an actor.
      resources: of an actor, such as ``{"TPU": 4}``; 1, 2, 4 or 8 chips.

    Raises:
      JobError: wrong numbers, or an input or output that the workers do not find.
      What a worker raises that is not about a row.
    """
    least, most = actors if isinstance(actors, tuple) else (actors, actors)
    if not 1 <= least <= most:
        raise JobError(f"actors is {actors!r}: it must be 1 or more, or the least and the most")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"engine 'ray' needs {error.name}: pip install 'bark-jax[ray]'", name="ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    needs: dict[str, Any] = {"num_cpus": num_cpus}
    if num_gpus:
        needs["num_gpus"] = num_gpus
    if resources:
        needs["resources"] = resources
    there = ray.cluster_resources()
    for name, amount in (("CPU", num_cpus), ("GPU", num_gpus), *(resources or {}).items()):
        if amount > there.get(name, 0):
            text = f"the cluster has {there.get(name, 0):g} {name} now, and a worker needs {amount:g}: waiting for more"
            warnings.warn(text, BarkWarning, stacklevel=2)
    # Blocks that are there already: read tasks would wait for CPUs that the actors have taken.
    shards = ray.data.from_arrow([pa.table({"number": [n], "digest": [digest]}) for n, digest in missing.items()])
    notes = shards.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=min(least, len(missing)), max_size=min(most, len(missing))),
        fn_constructor_kwargs={
            "inputs": [absolute(one) for one in inputs],
            "output": absolute(output),
            "job": job,
            "device": device,
            "make": make,
            "before": before,
        },
        **needs,
    )
    try:
        for row in notes.iter_rows():
            note = json.loads(row["note"])
            if "failed" in note:
                if not note["os"]:
                    raise JobError(note["failed"])
                failure = OSError(note["failed"])
                failure.errno = note["errno"]
                raise failure
            yield int(row["number"]), note
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0][:300]
        text = f"Ray: {type(error).__name__}: {first} (what was made stays: run the same again)"
        raise ConnectionError(text) from None


class _Actor:
    """A guarded worker, and where its shards come from and go to."""

    def __init__(
        self,
        inputs: list[str],
        output: str,
        job: Job,
        device: str | None,
        make: Callable[..., Any],
        before: str | None,
    ):
        from bark_jax.synthesis.local import Output
        from bark_jax.synthesis.source import Source
        from bark_jax.synthesis.worker import Guarded

        self._source, self._target = Source(inputs, job, checked=False), Output(output, job)
        self._stack = contextlib.ExitStack()
        self._failed: ValueError | OSError | None = None
        try:
            self._worker = self._stack.enter_context(Guarded(job, device=device, make=make))
            self._target.same_model(self._worker.about["model"], before)
        except (ValueError, OSError) as error:
            self._failed = error  # told with the first shard

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        notes = []
        for number, digest in zip(map(int, batch["number"]), map(str, batch["digest"]), strict=True):
            try:
                note = self._note(number, digest)
            except (ValueError, OSError) as error:  # as a note: Ray would try again, and give a traceback for an error
                note = {"failed": str(error), "os": isinstance(error, OSError), "errno": getattr(error, "errno", None)}
            notes.append(json.dumps(note))
        return {"number": batch["number"], "note": notes}

    def _note(self, number: int, digest: str) -> dict[str, Any]:
        """Make a part. Raises what is wrong with more than a row."""
        if self._failed is not None:
            raise self._failed
        rows = self._source.shard(number)
        self._target.unchanged(number, rows, digest)
        return self._target.keep(number, digest, self._worker(rows))
