"""New low-rank adapters for a network that is to be trained: names, first values, what is trained and what is not.

A starts random and B as zeros, so that the first step computes exactly what the base does. Only A and B are trained;
the base, its norms, tables and head included, stays as it is. `bark_jax.adapters` knows how adapters lie in a network,
and their files; `bark_jax.linear.LowRank` computes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from bark_jax import adapters, weights
from bark_jax.config import ConfigError
from bark_jax.train.config import LoRA

Network = TypeVar("Network", bound=nnx.Module)


def add(
    network: Network, tensors: Mapping[str, np.ndarray], settings: LoRA, *, seed: int
) -> tuple[Network, dict[str, np.ndarray], list[str]]:
    """Put an adapter beside each target linear.

    Args:
      network: abstract (its leaves are shapes).
      tensors: name → float32 array, of that network.
      seed: of the first values of A, which are normal with variance 1 / (inputs of the linear).

    Returns:
      The abstract network with adapters; all of its tensors, the given ones not copied; the names of what is trained.

    Raises:
      ConfigError: a rank above the width of the network.
    """
    check(network, settings)
    chosen = adapters.linears(network, settings.targets)
    shapes = adapters.shapes(network, dict.fromkeys(chosen, settings.rank))
    wrapped = adapters.wrap(network, shapes)
    made = {_within(name, shapes): tensor for name, tensor in tensors.items()}
    rng = np.random.default_rng(seed)
    for path, (a, b, gate) in shapes.items():
        made[f"{path}.a"] = rng.standard_normal(a.shape, np.float32) * np.float32(a.shape[1] ** -0.5)
        made[f"{path}.b"] = np.zeros(b.shape, np.float32)
        made[f"{path}.gate"] = np.full(gate.shape, settings.scale, np.float32)
    trained = [f"{path}.{part}" for path in shapes for part in "ab"]
    # In the network's own order, whatever the order of `tensors`.
    return wrapped, {name: made[name] for name in weights.names(wrapped)}, trained


def check(network: nnx.Module, settings: LoRA) -> None:
    """Raises `ConfigError` if the rank is above the width of the network."""
    chosen = adapters.linears(network, settings.targets)
    least = min(min(linear.weight.shape) for linear in chosen.values())
    if settings.rank > least:
        raise ConfigError(f"lora.rank is {settings.rank}: it must not exceed {least}, the width of the network")


def _within(name: str, adapted: Mapping[str, Any]) -> str:
    """The name of a tensor after an adapter has been put beside its linear."""
    path, _, last = name.rpartition(".")
    return f"{path}.base.{last}" if path in adapted else name
