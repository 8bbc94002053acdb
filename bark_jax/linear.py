"""Matrix products with a weight: the one place that decides how a product is computed.

`Linear` holds its weight as (out, in), as torch does: on CPUs that is the faster layout for one row (1.2 times on the
2-core machine of `benchmarks/NOTES.md`), and per-channel scales of low-bit twins belong to rows. Activations come in
and go out in float32; the weight's dtype alone decides the precision of the product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x (..., K) float32 times weight (N, K) of any float dtype → (..., N) float32.

    float32 weights use full precision everywhere (no TF32 on GPUs, no bfloat16 passes on TPUs). Lower weights cast x
    down and accumulate in float32; a float32 *output* is also what XLA's fast CPU kernels for bfloat16 ask for.
    """
    precision = lax.Precision.HIGHEST if weight.dtype == jnp.float32 else lax.Precision.DEFAULT
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(
        x.astype(weight.dtype), weight, contract, precision=precision, preferred_element_type=jnp.float32
    )


class Linear(nnx.Module):
    """y = x Wᵀ + b, with W (out, in) and an optional b (out,)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, std: float, rngs: nnx.Rngs):
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (n_out, n_in), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.weight[...])
        return y if self.bias is None else y + self.bias[...]
