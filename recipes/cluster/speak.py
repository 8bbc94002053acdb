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
    if jax.device_count() % given.share:
        parser.error(f"--share is {given.share}: it must divide the {jax.device_count()} devices that there are")
    mesh = jax.make_mesh((jax.device_count() // given.share, given.share), ("data", "model"))
    texts = [line for line in given.texts.read_text("utf-8").splitlines() if line.strip()]
    bark = bark_jax.load(given.model, mesh=mesh)
    speeches = bark.generate(texts, seed=list(range(given.seed, given.seed + len(texts))))
    if jax.process_index() == 0:
        given.out.mkdir(parents=True, exist_ok=True)
        for i, speech in enumerate(speeches):
            speech.save(given.out / f"{i:05d}.wav")
        print(f"{len(speeches)} texts, {sum(s.duration for s in speeches):.1f} s, on {jax.device_count()} devices")
    return 0


if __name__ == "__main__":
    sys.exit(main())
