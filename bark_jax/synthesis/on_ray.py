"""The same run on a Ray cluster: shards go to actors, parts are written where the embedded engine writes them.

Ray Data brings numbers of shards to a pool of actors, each with a guarded worker, and takes notes back. An actor reads
the rows of its shard and writes the part itself, so no audio passes through Ray; a part appears whole or not at all,
and is the same whoever makes it, so a shard that Ray tries again after a death is neither lost nor doubled. What is
there is known from the output, as without Ray: a driver that was killed is started again. Ray's own checkpoints are not
used.

Needs ``bark-jax[ray]``. jax is imported in the workers' processes only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bark_jax.synthesis.job import Job, JobError


def run(
    inputs: Sequence[str | Path],
    output: str,
    job: Job,
    missing: Sequence[int],
    *,
    device: str | None,
    make: Callable[..., Any],
    actors: int | tuple[int, int] = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    resources: dict[str, float] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make the missing parts, and give number and note of each when it is there.

    Args:
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
    # Blocks that are there already: read tasks would wait for CPUs that the actors have taken.
    shards = ray.data.from_arrow([pa.table({"number": [number]}) for number in missing])
    notes = shards.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=min(least, len(missing)), max_size=min(most, len(missing))),
        fn_constructor_kwargs={
            "inputs": [str(one) for one in inputs],
            "output": output,
            "job": job,
            "device": device,
            "make": make,
        },
        **needs,
    )
    try:
        for row in notes.iter_rows():
            yield int(row["number"]), json.loads(row["note"])
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, ValueError | OSError) else error from None


class _Actor:
    """A guarded worker, and where its shards come from and go to."""

    def __init__(self, inputs: list[str], output: str, job: Job, device: str | None, make: Callable[..., Any]):
        from bark_jax.synthesis.local import Output
        from bark_jax.synthesis.source import Source
        from bark_jax.synthesis.worker import Guarded

        self._source, self._target = Source(inputs, job, checked=False), Output(output, job)
        self._stack = contextlib.ExitStack()
        self._worker = self._stack.enter_context(Guarded(job, device=device, make=make))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        notes = []
        for number in map(int, batch["number"]):
            rows = self._source.shard(number)
            notes.append(json.dumps(self._target.keep(number, rows, self._worker(rows))))
        return {"number": batch["number"], "note": notes}
