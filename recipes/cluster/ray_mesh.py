"""`speak.py` on a Ray cluster: `JaxTrainer` starts a process on every host and lets JAX know of all.

    python recipes/cluster/ray_mesh.py texts.txt /shared/out --model /shared/large --workers 2 --gpus 8 --share 2
    python recipes/cluster/ray_mesh.py texts.txt /shared/out --model /shared/large --workers 4 --tpu TPU-V6E 4x4
    python recipes/cluster/ray_mesh.py texts.txt out --workers 2          # two processes with a CPU each, to try it

Model and output are where all hosts find them. Needs ``pip install 'bark-jax[ray]' 'ray[train]'``. Not for corpora:
`bark-jax synthesize --engine ray` goes on when a host dies, this does not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer


def work(given: dict[str, Any]) -> None:
    """In every process."""
    sys.path.insert(0, given.pop("here"))
    importlib.import_module("speak").speak(**given)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="bark-nano")
    parser.add_argument("--seed", type=int, default=0, help="of the first text; the others have the next ones")
    parser.add_argument("--share", type=int, default=1, help="devices that share one copy of the weights")
    parser.add_argument("--workers", type=int, default=1, help="processes, one to a host")
    parser.add_argument("--gpus", type=int, default=0, help="of a worker")
    parser.add_argument("--tpu", nargs=2, metavar=("TYPE", "TOPOLOGY"), help="such as TPU-V6E 4x4")
    given = parser.parse_args()
    scaling: dict[str, Any] = {"num_workers": given.workers}
    if given.tpu:
        scaling |= {"use_tpu": True, "accelerator_type": given.tpu[0], "topology": given.tpu[1]}
    elif given.gpus:
        scaling |= {"use_gpu": True, "resources_per_worker": {"GPU": given.gpus}}
    # Ray connects JAX's processes for TPUs and GPUs only. JAX_PLATFORMS, which it asks first, says CPU here.
    connected = None if given.tpu or given.gpus else JaxConfig(use_gpu=True)
    variables = {"env_vars": {"JAX_PLATFORMS": "cpu"}} if connected else {}
    ray.init(runtime_env=variables, log_to_driver=True)
    what = {name: getattr(given, name) for name in ("model", "seed", "share")}
    what |= {"texts": given.texts.read_text("utf-8"), "out": given.out.resolve()}
    JaxTrainer(
        work,
        train_loop_config={**what, "here": str(Path(__file__).resolve().parent)},
        jax_config=connected,
        scaling_config=ScalingConfig(**scaling),
    ).fit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
