"""`Weights`: a network as a flat tuple of arrays, for the borders of jitted functions. Knows no layer.

Walking the tree of a module at every call costs more than the call itself (2.3 µs per variable were measured in another
project, and a module of 24 layers has 150 of them).
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx


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
