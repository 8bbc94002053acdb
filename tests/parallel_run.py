"""A process of `test_parallel.py`: speaks on a mesh of virtual devices, and writes what came out. Holds no tests."""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--devices", type=int, required=True, help="of this process")
parser.add_argument("--mesh", default="", help="data=2,model=2; none: what `load` does by itself")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--offload", action="store_true")
parser.add_argument("--process", type=int, default=0)
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--port", type=int)
parser.add_argument("--fails", type=int, help="the process that fails")
given = parser.parse_args()

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={given.devices}"

# Most of the time is compiling, once a device: half of it is saved, and one optimises as little as many do.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax  # noqa: E402
import numpy as np  # noqa: E402

if given.processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{given.port}", given.processes, given.process)

import bark_jax  # noqa: E402
from bark_jax import Sampling, semantic  # noqa: E402
from bark_jax.flat import beside  # noqa: E402

TEXTS = [f"hello {i}" for i in range(9)] + ["one two three. " * 12]
CALLS = {
    "seed": list(range(len(TEXTS))),
    "sampling": [Sampling(max_duration_s=0.2 + 0.1 * (i % 4)) for i in range(len(TEXTS))],
    "adapter": ["one" if i % 2 else None for i in range(len(TEXTS))],
}
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def decode_loop(bark: bark_jax.Bark) -> str:
    """The compiled program of the semantic stage's loop."""
    network, config = bark._engine.weights["semantic"], bark.config.semantic
    state = beside(network.leaves[0], semantic.empty(config, 2))
    settings, keys = semantic.Settings.of(config, [Sampling()] * 2), np.zeros((2, 2), np.uint32)
    return semantic.advance.lower(network, config, state, settings, keys, n=4, filtered=False).compile().as_text()


def main() -> None:
    warnings.simplefilter("ignore")
    mesh = None
    if given.mesh:
        sizes = {name: int(size) for name, size in (axis.split("=") for axis in given.mesh.split(","))}
        mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(tuple(sizes.values())), tuple(sizes))
    options = {"rows": 2, "dtype": given.dtype, "offload": given.offload, "mesh": mesh}
    bark = bark_jax.load(given.model, adapters={"one": given.model / "adapter.safetensors"}, **options)
    told = []

    def tell(stage: str, done: int, total: int) -> None:
        if given.process == given.fails:
            raise OSError("no room")
        told.append((stage, done, total))

    about = {"devices": len(bark.devices), "told": told, "digest": bark.digest(), "bases": bark.bases()}
    arrays: dict[str, np.ndarray] = {}
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    if given.fails is None:
        bark.warmup(rows=2 * len(bark.devices))
        compiled.clear()
    try:
        # First what `warmup` has made everything ready for, and then a text of several parts among others.
        speeches = bark.generate(TEXTS[:9], progress=tell, **{name: some[:9] for name, some in CALLS.items()})
        about["compiled"] = len(compiled)
        speeches += bark.generate(TEXTS[8:], progress=tell, **{name: some[8:] for name, some in CALLS.items()})
    except Exception as error:
        about["error"] = f"{type(error).__name__}: {error}"
    else:
        for i, speech in enumerate(speeches):
            about[f"{i}"] = [speech.seed, speech.rows, speech.ended, [vars(part) for part in speech.segments]]
            for name in ("semantic", "coarse", "fine", "audio"):
                arrays[f"{name} {i}"] = getattr(speech, name)
    if given.processes == 1 and not given.offload:
        text = decode_loop(bark)
        about["collectives"] = [m[1] for m in COLLECTIVE.finditer(text)]
        shards = [x.addressable_shards[0].data.nbytes for x in bark._engine.weights["semantic"].leaves]
        about["bytes"] = sum(shards)
    np.savez(given.out, about=json.dumps(about), **arrays)


if __name__ == "__main__":
    main()
