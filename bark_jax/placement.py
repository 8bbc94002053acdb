"""`Place`: the devices that hold one copy of the networks, and how it lies on them. Knows tensors, and no requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bark_jax.flat import Weights
from bark_jax.linear import Split
from bark_jax.weights import fill, is_matrix, names

AXES = ("data", "model")
"""Axes that a mesh may have: copies of the networks, and devices that share one."""


@dataclass(frozen=True)
class Place:
    """Where one copy of the networks is.

    Attributes:
      devices: one, or several that share the weights: every matrix of a GPT by its rows, if they can be divided evenly
        (`Split`); everything else, caches and the codec included, is whole on each.
    """

    devices: tuple[jax.Device, ...]

    @property
    def local(self) -> jax.Device | None:
        """The first of the devices that belongs to this process."""
        return next((device for device in self.devices if device.process_index == jax.process_index()), None)

    def put(self, network: str, weights: Weights) -> Weights:
        """A network's weights, from wherever they are, in this place."""
        if len(self.devices) == 1:
            return jax.device_put(weights, self.devices[0])
        module = weights.module
        return Weights.of(fill(module, {name: self._spread(network, name, x) for name, x in names(module).items()}))

    def _spread(self, network: str, name: str, leaf: Any) -> Any:
        mesh = Mesh(np.array(self.devices), ("model",))
        whole = NamedSharding(mesh, PartitionSpec())
        leaf = leaf.weight if isinstance(leaf, Split) else leaf
        # Adapters, whose tensors have other names, are small.
        if not (name.endswith(".weight") and is_matrix(network, leaf.shape)) or leaf.shape[-2] % len(self.devices):
            return jax.device_put(leaf, whole)
        rows = NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 2), "model"))
        # Of an `Int8` too: the axis of its rows is the same in its integers and in its scales.
        return Split(jax.tree.map(lambda x: jax.device_put(x, rows), leaf), whole)


def places(device: str | jax.Device | None, mesh: Mesh | None) -> list[Place]:
    """The copies that `device` and `mesh` of `bark_jax.load` ask for, in order.

    Raises:
      ValueError: both, an unknown device, or a mesh with other axes or without a device of this process.
    """
    if mesh is None:
        return [Place((one,)) for one in _devices(device)]
    if device is not None:
        raise ValueError(f"device is {device!r}, and there is a mesh, which has its own devices: give one of them")
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {str(mesh)[:100]!r}: it must be a jax.sharding.Mesh")
    other = [axis for axis in mesh.axis_names if axis not in AXES]
    if other or mesh.devices.size == 0:
        raise ValueError(
            f"mesh has the axes {mesh.axis_names} of sizes {mesh.devices.shape}: it may have 'data', for copies of the "
            "model, and 'model', for devices that share one"
        )
    found = [Place(tuple(group)) for group in grouped(mesh.devices, mesh.axis_names)]
    if not any(place.local for place in found):
        raise ValueError(f"mesh has no device of this process ({jax.process_index()} of {jax.process_count()})")
    return found


def first(places: Sequence[Place]) -> Place:
    """The first of the places that has a device of this process."""
    return next(place for place in places if place.local)


def grouped(devices: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    """The devices of a mesh as (copies, devices that share one); an axis that is not there is one wide."""
    sizes = dict(zip(axes, devices.shape, strict=True))
    order = [list(axes).index(axis) for axis in AXES if axis in sizes]
    return devices.transpose(order).reshape([sizes.get(axis, 1) for axis in AXES])


def _devices(device: str | jax.Device | None) -> Sequence[jax.Device]:
    if device is None:
        device = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
        if device is None:
            return jax.local_devices()
    if isinstance(device, jax.Device):
        return [device]
    if device not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"device is {device!r}: choose 'cpu', 'gpu', 'tpu', a jax.Device, or None")
    try:
        return jax.local_devices(backend=device)
    except RuntimeError:
        there = ", ".join(sorted({d.platform for d in jax.devices()} | {"cpu"}))
        raise ValueError(f"device is {device!r}, but JAX finds none: there is {there}") from None
