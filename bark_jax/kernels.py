"""`product`, `few` and `attend`: the operations of ``kernels.cc``, for programs compiled for CPUs.

XLA has no fast code for them on CPUs without AMX (``benchmarks/NOTES.md``). They are there as soon as `native` has
compiled them on this machine, and whoever has a use for them asks first: `multiplies`, `takes`, `attends`. Knows
nothing of compilers and files.
"""

from __future__ import annotations

from concurrent.futures import Future

import jax
import jax.numpy as jnp

PREFIX = "bark_jax_"
"""Of the names under which XLA knows them."""
NAMES = ("product", "few", "attend")

FEW = 8
"""Rows that `product` and `few` multiply with weights that they read once."""

_expected: Future[str | None] | None = None


def expect(variant: Future[str | None] | None) -> None:
    """Say that they are being made; the result is the instruction set that they are for, None if there will be none.

    None instead of a future: nobody makes them any more.
    """
    global _expected
    _expected = variant


def variant() -> str | None:
    """The instruction set that they were compiled for, once they are; None: they are not there."""
    return None if _expected is None else _expected.result()


def multiplies(rows: int, width: int) -> bool:
    """Whether `product` is there, and faster than XLA's code, for x (rows, width)."""
    found = variant()
    return found is not None and 0 < width <= 1 << 16 and rows > 0 and (rows <= FEW or found != "avx2")


def product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """What `linear._int8_product` computes, bit for bit where it is finite. Has no gradient.

    Args:
      x: (M, K) float32.
      values: (N, K) int8, of an `Int8`.
      scale: (N,) float32, of it.

    Returns:
      (M, N) float32.
    """
    out = jax.ShapeDtypeStruct((x.shape[0], values.shape[0]), jnp.float32)
    call = jax.ffi.ffi_call(PREFIX + "product", out, vmap_method="sequential")
    return call(x.astype(jnp.float32), values, scale)


def takes(rows: int, width: int) -> bool:
    """Whether `few` is there, and faster than XLA's code, for x (rows, width)."""
    return 0 < rows <= FEW and width > 0 and variant() is not None


def few(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x (M, K) float32 times weight (N, K) float32 → (M, N), in full float32.

    A row is the same, to the bit, whatever M. Has no gradient.
    """
    out = jax.ShapeDtypeStruct((x.shape[0], weight.shape[0]), jnp.float32)
    return jax.ffi.ffi_call(PREFIX + "few", out, vmap_method="sequential")(x.astype(jnp.float32), weight)


def attends(keys: jax.Array) -> bool:
    """Whether `attend` is there for such a cache (N, S, K)."""
    size = keys.shape[-1]
    return keys.dtype == jnp.float32 and size % 16 == 0 and 0 < size <= 256 and variant() is not None


def attend(q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> jax.Array:
    """What `attention.attend_slots` computes, but for the order of its sums; only slots that a row sees are read.

    A row that sees nothing gets zeros. Has no gradient.

    Args:
      q: (N, K) float32.
      keys, values: (N, S, K) float32.
      bias: (B, S) float32, N being a multiple of B; what is below -1e29 stands for "not seen".

    Returns:
      (N, K) float32.
    """
    out = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    return jax.ffi.ffi_call(PREFIX + "attend", out, vmap_method="sequential")(q, keys, values, bias)
