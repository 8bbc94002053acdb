"""Matrix products with a weight: the one place that decides how a product is computed.

`Linear` holds its weight as (out, in), as torch does: on CPUs that is the faster layout for one row (1.2 times on the
2-core machine of `benchmarks/NOTES.md`), and the scales of an `Int8` weight belong to rows. Activations come in and go
out in float32; the weight's type alone decides the precision of the product. `LowRank` is its twin with low-rank
adapters. Knows nothing of layers, files or training; `Dropout` is the noise that training asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from bark_jax import kernels
from bark_jax.flat import host


@partial(jax.tree_util.register_dataclass, data_fields=("key",), meta_fields=("rate", "adapter_rate"))
@dataclass(frozen=True)
class Dropout:
    """Noise of training, with its key: nothing of it is hidden in a module.

    Attributes:
      key: a `jax.random.key`.
      rate: share of the activations set to 0 (embeddings, and what a block adds to the residual stream), below 1.
      adapter_rate: share of the inputs of low-rank adapters set to 0. Both are rounded to 1 / 65,536.
    """

    key: jax.Array
    rate: float = 0.0
    adapter_rate: float = 0.0

    def at(self, i: int) -> Dropout:
        """The same noise for another place."""
        return Dropout(jax.random.fold_in(self.key, i), self.rate, self.adapter_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _drop(self.key, self.rate, x)

    def adapter(self, x: jax.Array) -> jax.Array:
        return _drop(self.key, self.adapter_rate, x)


def _drop(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    if not rate:
        return x
    dropped = min(round(rate * 0x10000), 0xFFFF)
    return jnp.where(_noise(key, x.shape) < dropped, 0.0, x * (0x10000 / (0x10000 - dropped)))


def _noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent uniform integers 0 to 65,535, uint32.

    An integer hash of position and key ("lowbias32" of https://github.com/skeeto/hash-prospector, the key going in
    before and between its rounds), and not `jax.random.bits`: that takes 100 operations for a number, on CPUs longer
    than everything else that an adapter does. Like it, the same values however the array is sharded.
    """
    before, between = jax.random.bits(key, (2,), jnp.uint32)
    half = (shape[-1] + 1) // 2  # a word makes two numbers
    h = before
    for axis, stride in enumerate(_strides((*shape[:-1], half))):
        h = h + lax.broadcasted_iota(jnp.uint32, (*shape[:-1], half), axis) * np.uint32(stride)
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) + between
    h = (h ^ (h >> 16)) * np.uint32(0x846CA68B)
    h = h ^ (h >> 16)
    return jnp.concatenate([h >> 16, h & 0xFFFF], axis=-1)[..., : shape[-1]]


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of each axis: how far apart neighbours are in a flat array."""
    return [math.prod(shape[i + 1 :]) & 0xFFFFFFFF for i in range(len(shape))]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A weight of 8 bits: each row is integers times a scale of its own. Stands where an array would.

    Attributes:
      values: (..., N, K) int8, -127 to 127.
      scale: (..., N) float32, above 0.
    """

    values: Any
    scale: Any

    @classmethod
    def of(cls, weight: np.ndarray) -> Int8:
        """The nearest, of a float array (..., N, K): a number moves by half of a 127th of its row's largest at most."""
        weight = weight.astype(np.float32)
        largest = np.max(np.abs(weight), axis=-1)
        scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
        return cls(np.rint(weight / scale[..., None]).astype(np.int8), scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        """Weights, not counting scales."""
        return self.values.size

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def __getitem__(self, key: Any) -> Int8:
        """Some of the rows: `key` may index all axes but the last."""
        return Int8(self.values[key], self.scale[key])

    def astype(self, dtype: Any) -> Any:
        return (self.values * self.scale[..., None]).astype(dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, np.float32) * np.asarray(self.scale)[..., None]


@partial(jax.tree_util.register_dataclass, data_fields=("weight",), meta_fields=("whole",))
@dataclass(frozen=True)
class Split:
    """A weight whose rows are spread over devices, which share a copy of the network. Stands where an array would.

    What is computed with it is at once brought together on all of them, so nothing else of the network knows. Every
    sum is one device's own: results do not depend on how many there are.

    Attributes:
      weight: an array (..., N, K) or `Int8`, on several devices by N.
      whole: the sharding of what all of them have.
    """

    weight: Any
    whole: NamedSharding

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def ndim(self) -> int:
        return self.weight.ndim

    @property
    def size(self) -> int:
        return self.weight.size

    @property
    def dtype(self) -> Any:
        return self.weight.dtype

    def __getitem__(self, key: Any) -> Any:
        """Some of the rows, as of `Int8`; whole on all devices if they cannot be divided evenly."""
        part = self.weight[key]
        if part.shape[-2] % self.whole.mesh.size:
            return lax.with_sharding_constraint(part, self.whole)
        return Split(part, self.whole)

    def product(self, x: jax.Array) -> jax.Array:
        """`matmul`: each device its own columns, then exchanged; left to itself, XLA exchanges the weight instead."""
        (axis,) = self.whole.mesh.axis_names

        def mine(x: jax.Array, weight: Any) -> jax.Array:
            return lax.all_gather(matmul(x, weight), axis, axis=x.ndim - 1, tiled=True)

        rows = PartitionSpec(axis)
        specs = PartitionSpec(), jax.tree.map(lambda _: rows, self.weight)
        return jax.shard_map(mine, mesh=self.whole.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(
            x, self.weight
        )

    def astype(self, dtype: Any) -> Any:
        return lax.with_sharding_constraint(self.weight.astype(dtype), self.whole)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if isinstance(self.weight, Int8):
            return np.asarray(Int8(host(self.weight.values), host(self.weight.scale)))
        return host(self.weight)


def inner(weight: Any) -> Any:
    """The arrays of a weight themselves: what `Split` holds, or an `Int8`'s integers."""
    if isinstance(weight, Split):
        weight = weight.weight
    return weight.values if isinstance(weight, Int8) else weight


def matmul(x: jax.Array, weight: Any) -> jax.Array:
    """x (..., K) float32 times weight (N, K) → (..., N) float32; an array of any float dtype, `Int8`, or a `Split`."""
    if isinstance(weight, Split):
        return weight.product(x)
    return _int8_matmul(x, weight) if isinstance(weight, Int8) else _matmul(x, weight)


def _int8_matmul(x: jax.Array, weight: Int8) -> jax.Array:
    """Integers times integers, x brought to 8 bits row by row, so that no row depends on another.

    The sum of the products is exact: a result is the same in every batch. A single row is sent twice, see `_doubled`.
    """
    flat = x.reshape(-1, x.shape[-1])
    if kernels.multiplies(*flat.shape):
        y = lax.platform_dependent(flat, weight.values, weight.scale, cpu=kernels.product, default=_int8_product)
    else:
        y = _int8_product(flat, weight.values, weight.scale)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _int8_product(flat: jax.Array, values: jax.Array, weight_scale: jax.Array) -> jax.Array:
    """x (M, K) times (N, K) int8 with scales (N,) → (M, N), in XLA's own operations."""
    largest = jnp.max(jnp.abs(flat), axis=-1, keepdims=True)
    scale = jnp.where(largest == 0, 1, largest) * np.float32(1 / 127)  # NaN stays so
    rounded = jnp.rint(flat * (1 / scale)).astype(jnp.int8)  # as XLA divides; so does `kernels.product`
    sums = lax.dot_general(_doubled(rounded), values, _ROWS, preferred_element_type=jnp.int32)[: len(rounded)]
    return sums.astype(jnp.float32) * scale * weight_scale


def _doubled(x: jax.Array) -> jax.Array:
    """Rows (M, K) to multiply with a low weight: a single one twice, because XLA's CPU kernels for those begin at two.

    With one it copies the weight into a wider dtype first, before the loop: four times the memory of an int8 weight.
    """
    return jnp.broadcast_to(x, (2, x.shape[1])) if len(x) == 1 else x


_ROWS = (((1,), (1,)), ((), ()))
"""Of a product (M, K) x (N, K) → (M, N)."""


@jax.custom_vjp
def _matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x (..., K) float32 times weight (N, K) of any float dtype → (..., N) float32.

    float32 weights use full precision everywhere (no TF32 on GPUs, no bfloat16 passes on TPUs). Lower weights cast x
    down and accumulate in float32; a float32 *output* is also what XLA's fast CPU kernels for bfloat16 ask for.

    The gradient is written out, because JAX's own would multiply a float32 cotangent with a low weight in float32, and
    on CPUs copies the cotangent into another order first (a fifth of the gradient's time).
    """
    if weight.dtype == jnp.float32 and x.ndim == 2 and kernels.takes(*x.shape):
        # Of a step. What has an axis of positions must not depend on how many they are: it is always left to XLA.
        return lax.platform_dependent(x, weight, cpu=kernels.few, default=partial(dot, dimension_numbers=_ROWS))
    if weight.dtype == jnp.float32 or x.size != x.shape[-1]:
        return dot(x, weight, (((x.ndim - 1,), (1,)), ((), ())))
    y = lax.platform_dependent(
        x.reshape(1, -1),
        weight,
        cpu=lambda row, weight: dot(_doubled(row), weight, _ROWS)[:1],
        default=partial(dot, dimension_numbers=_ROWS),
    )
    return y.reshape(*x.shape[:-1], -1)


def dot(a: jax.Array, b: jax.Array, dimension_numbers: lax.DotDimensionNumbers) -> jax.Array:
    """`lax.dot_general` in the dtype of `b`, to float32; with `_matmul`'s precision, and JAX's own gradient."""
    precision = lax.Precision.HIGHEST if b.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a.astype(b.dtype), b, dimension_numbers, precision=precision, preferred_element_type=jnp.float32
    )


def _matmul_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _matmul(x, weight), (x.astype(weight.dtype), weight)


def _matmul_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = kept
    flat = gradient.reshape(-1, gradient.shape[-1]).astype(weight.dtype)
    dx = dot(flat, weight, (((1,), (0,)), ((), ())))
    dw = dot(flat, x.reshape(-1, x.shape[-1]), (((0,), (0,)), ((), ())))
    return dx.reshape(x.shape), dw.astype(weight.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """y = x Wᵀ + b, with W (out, in) and an optional b (out,)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float, rngs: nnx.Rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (n_out, n_in), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        y = matmul(x, self.weight[...])
        return y if self.bias is None else y + self.bias[...]


class LowRank(nnx.Module):
    """A `Linear` with low-rank adapters beside it: y = base(x) + ((x Aᵀ) ∘ gate) Bᵀ.

    Several adapters lie side by side in A (R, in) and B (out, R), R being the sum of their ranks; `gate` (rows, R), or
    (1, R) for all rows, holds each adapter's scale where the row uses it, and 0 elsewhere. So every row of a batch may
    have an adapter of its own, or none (index 0 of DESIGN: a gate of zeros leaves base(x) as it is), without gathering
    any weights.
    """

    def __init__(self, base: Linear, a: jax.Array, b: jax.Array, gate: jax.Array):
        self.base = base
        self.a, self.b, self.gate = nnx.Param(a), nnx.Param(b), nnx.Param(gate)

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        return self._add(self.base(x), x if dropout is None else dropout.adapter(x))

    def _add(self, y: jax.Array, x: jax.Array) -> jax.Array:
        gate = self.gate[...].astype(jnp.float32)
        gate = gate.reshape(gate.shape[0], *[1] * (x.ndim - 2), gate.shape[1])
        return y + matmul(matmul(x, self.a[...]) * gate, self.b[...])


class ChosenLowRank(LowRank):
    """A `LowRank` for speaking, where a row without an adapter must give, bit for bit, what it gives without any.

    On CPUs the sum is a branch of its own, left out where no row needs it. For XLA would join the sum with the sums of
    the layer norm behind it, and add those in another order: 1e-6 on the logits of narrow networks. Besides, a batch
    without adapters then takes as long as if none were loaded, and not 6 % more (12 layers, width 768, rank 32).
    Elsewhere a branch costs more than the sum.
    """

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        if dropout is not None:
            return super().__call__(x, dropout)

        def branch(y: jax.Array) -> jax.Array:
            return lax.cond(jnp.any(self.gate[...] != 0), lambda y: self._add(y, x), lambda y: y, y)

        y = matmul(x, self.base.weight[...])
        y = lax.platform_dependent(y, cpu=branch, default=lambda y: self._add(y, x))
        return y if self.base.bias is None else y + self.base.bias[...]
