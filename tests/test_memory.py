"""What a model takes of memory, where weights are, and when: `bark_jax.memory`, `load(offload=True)`, `Bark.unload`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bark_jax
import models
from bark_jax import coarse, memory, semantic, weights
from bark_jax.config import LARGE, suno
from bark_jax.settings import Sampling
from test_adapters import adapter

LARGE_SIZE = suno(LARGE)

OFFLOADED = """
import sys, numpy as np, jax, bark_jax
from bark_jax.config import LARGE, suno
from bark_jax.settings import Sampling
from test_adapters import adapter
first, second = jax.devices()
how = Sampling(max_duration_s=0.6, allow_early_stop=False)
adapters = {"a": adapter("coarse")} if sys.argv[3] == "adapter" else None
name = "a" if adapters else None

def held(device):
    return sum(x.nbytes for x in jax.live_arrays() if x.devices() == {device})

for dtype in ("float32", "int8"):
    ways = []
    for offload in (False, True):
        bark = bark_jax.load(sys.argv[1], device=second, dtype=dtype, adapters=adapters, offload=offload)
        resident = held(second)
        speech = bark.generate(["hello", "you there"], seed=[1, 2], sampling=how, adapter=[name, None])
        codes = bark.encode(speech[0].audio)
        assert bark.device == second and bark.offload is offload
        assert held(second) <= resident + 4096, (held(second), resident)  # keys and the like
        ways.append([*(s.audio for s in speech), *(s.fine for s in speech), codes, np.array([resident])])
        bark.unload()
        assert held(second) <= 4096
    for a, b in zip(*(way[:-1] for way in ways), strict=True):
        np.testing.assert_array_equal(a, b)
    assert ways[1][-1][0] < 0.05 * ways[0][-1][0], ways
"""


@pytest.mark.parametrize("dtype", weights.CHOICES)
def test_needs_are_what_is_loaded(tmp_path: Path, dtype: str) -> None:
    config = models.config()
    models.save(tmp_path / "model", config)
    _, _, loaded = weights.read(tmp_path / "model", dtype=dtype, host=True)
    held = {name: sum(leaf.nbytes for leaf in part.leaves) for name, part in loaded.items()}
    assert memory.of_weights(config, dtype) == held
    assert memory.need(config, dtype) == sum(held.values())
    assert memory.need(config, dtype, offload=True) == max(held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_takes_its_cache(dtype: str) -> None:
    config = models.config()
    caches = [
        stage.empty(part, 3, dtype).cache for stage, part in ((semantic, config.semantic), (coarse, config.coarse))
    ]
    held = [sum(x.nbytes for x in jax.tree.leaves(cache)) for cache in caches]
    assert 3 * memory.of_row(config, dtype) == max(held)


def test_published_sizes() -> None:
    """Bytes of the published large model, by its parameters (`bark-jax info suno/bark`)."""
    parameters = sum(memory.of_weights(LARGE_SIZE, "float32").values()) / 4
    assert 1.10e9 < parameters < 1.11e9
    assert 0.24 < memory.need(LARGE_SIZE, "int8") / memory.need(LARGE_SIZE, "float32") < 0.30
    assert memory.of_row(LARGE_SIZE, "bfloat16") == 2 * 24 * 1024 * 1024 * 2


def test_a_model_that_cannot_fit_is_refused_with_what_would() -> None:
    full, low = memory.need(LARGE_SIZE, "float32"), memory.need(LARGE_SIZE, "int8")

    def refuse(limit: int, used: int = 0, dtype: str = "float32", offload: bool = False) -> None:
        stats = {"bytes_limit": limit, "bytes_in_use": used}
        memory.refuse(LARGE_SIZE, dtype, stats, "cuda:0", offload=offload)

    refuse(full)
    memory.refuse(LARGE_SIZE, "float32", {}, "cuda:0", offload=False)  # a device that does not say
    with pytest.raises(
        MemoryError, match=r'in float32, and cuda:0 .* choose dtype="bfloat16"; dtype="int8"; dtype="fl'
    ):
        refuse(full, used=1)
    with pytest.raises(MemoryError, match=r'choose dtype="int8"; dtype="bfloat16", offload=True; dtype="i'):
        refuse(low + 100_000_000)
    with pytest.raises(MemoryError, match=r"in int8, offloaded, .* choose a smaller model, or another device"):
        refuse(1000, dtype="int8", offload=True)


@pytest.mark.parametrize("how", ["plain", "adapter"])
def test_offloaded_weights_leave_the_device_and_say_the_same(tmp_path: Path, how: str) -> None:
    """On a second device, a CPU too, whose arrays can be told from those of the first."""
    models.save(tmp_path / "model", models.config())
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", OFFLOADED, str(tmp_path / "model"), "-", how]
    subprocess.run(command, check=True, env=env, timeout=600)


def test_an_unloaded_model_says_so(tmp_path: Path) -> None:
    models.save(tmp_path / "model", models.config())
    bark = bark_jax.load(tmp_path / "model", device="cpu", adapters={"a": adapter("coarse")})
    other = bark_jax.load(tmp_path / "model", device="cpu")
    bark.unload()
    bark.unload()
    for call in (
        lambda: bark.generate("hello"),
        lambda: bark.semantic_to_coarse(np.arange(8)),
        lambda: bark.encode(np.zeros(4000, np.float32)),
        lambda: bark.decode(np.zeros((8, 3), np.int32)),
        lambda: bark.audio_to_semantic(np.zeros(4000, np.float32)),
        bark.bases,
        bark.warmup,
    ):
        with pytest.raises(bark_jax.CheckpointError, match="was unloaded: load it again"):
            call()
    assert len(other.generate("hello", seed=1, sampling=Sampling(max_duration_s=0.3)).audio)
