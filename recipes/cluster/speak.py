"""A list of texts on one mesh of several processes: started once per process, on every host.

    python recipes/cluster/speak.py texts.txt out --model models/large --share 2 --coordinator localhost:1234 \
      --processes 2 --process 0        # and the same with --process 1
    srun python recipes/cluster/speak.py texts.txt out --model models/large      # Slurm tells the rest

Each line of the file is a text. The first process writes ``out/00000.wav`` and so on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

import bark_jax


def speak(texts: str, out: Path, model: str, seed: int, share: int) -> None:
    """What every process does once JAX knows of all: speak the lines together; the first writes what was said.

    Raises:
      ValueError: the devices cannot be divided so.
    """
    if share < 1 or jax.device_count() % share:
        raise ValueError(f"share is {share}: it must divide the {jax.device_count()} devices that there are")
    mesh = jax.make_mesh((jax.device_count() // share, share), ("data", "model"))
    lines = [line for line in texts.splitlines() if line.strip()]
    speeches = bark_jax.load(model, mesh=mesh).generate(lines, seed=list(range(seed, seed + len(lines))))
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        for i, speech in enumerate(speeches):
            speech.save(out / f"{i:05d}.wav")
        print(f"{len(lines)} texts, {sum(s.duration for s in speeches):.1f} s, on {jax.device_count()} devices")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the first text; the others have the next ones")
    parser.add_argument("--share", type=int, default=1, help="devices that share one copy of the weights")
    parser.add_argument("--coordinator", help="HOST:PORT of the first process; Slurm and TPU hosts know without")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int, help="number of this one")
    given = parser.parse_args()
    jax.distributed.initialize(given.coordinator, given.processes, given.process)
    try:
        speak(given.texts.read_text("utf-8"), given.out, given.model, given.seed, given.share)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
