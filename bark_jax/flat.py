"""`Weights`: a network as a flat tuple of arrays, for the borders of jitted functions. Knows no layer.

Walking the tree of a module at every call costs more than the call itself (2.3 µs per variable were measured in another
project, and a module of 24 layers has 150 of them). `beside` is for what goes in with them.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec


def beside(array: Any, tree: Any) -> Any:
    """Arrays where `array` is: on its device, whole on all of its devices, or as they are beside numpy's.

    For a loop's first state too: all later ones will be there, and one that was placed nowhere has its own program.
    """
    if isinstance(array, np.ndarray):
        return tree
    place = array.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    return jax.device_put(tree, place)


def platform(array: jax.Array) -> str:
    """Of its devices. Their set is JAX's own: taking one out of it (`pop`) would change the array's place."""
    return next(iter(array.devices())).platform


def host(array: Any) -> np.ndarray:
    """An array as numpy's, wherever it is; if other processes have parts of it, all of them must ask for it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


@jax.tree_util.register_pytree_node_class
class Weights:
    """A network as a flat tuple of arrays, cheap to pass across a jit border; `module` puts it together inside.

    Two models of the same config share compiled programs, because the structure compares by value.
    """

    def __init__(self, leaves: tuple[jax.Array, ...], structure: _Structure):
        self.leaves, self.structure = leaves, structure

    @classmethod
    def of(cls, module: nnx.Module) -> Weights:
        leaves, treedef = jax.tree.flatten(module)
        return cls(tuple(leaves), _Structure(treedef))

    @property
    def module(self) -> Any:
        """The `flax.nnx` module over these arrays (or tracers)."""
        return jax.tree.unflatten(self.structure.treedef, self.leaves)

    def tree_flatten(self) -> tuple[tuple[jax.Array, ...], _Structure]:
        return self.leaves, self.structure

    @classmethod
    def tree_unflatten(cls, structure: _Structure, leaves: tuple[jax.Array, ...]) -> Weights:
        return cls(tuple(leaves), structure)


class _Structure:
    """A tree structure that hashes once: jit compares it at every call, and a module's has hundreds of nodes."""

    def __init__(self, treedef: Any):
        self.treedef, self._hash = treedef, hash(treedef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Structure) and self.treedef == other.treedef)
