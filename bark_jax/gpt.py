"""The two transformer networks of Bark: `CausalGPT` (semantic, coarse) and `FineGPT` (fine).

They know embeddings, attention and a cache, and nothing of stages, sampling or loops. Notable features, all as in
Suno's ``model.py`` and ``model_fine.py``: pre-normalised GPT-2 blocks, learned positions, fused QKV, exact (erf) GELU,
layer norm epsilon 1e-5, residual stream in float32. Training adds dropout and recomputation, both off by default.

Shapes use: B rows, T positions of the input, S slots of the cache, H heads, K size of a head, N = B·H, D width,
V vocabulary, Q codebooks. A cache holds, per layer, keys and values of shape (N, S, K) in separate buffers, and the
layers are a Python list: measured in ``benchmarks/NOTES.md``, this is the layout that XLA updates without copying.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bark_jax.attention import MASKED, attend, attend_slots, heads, thirds
from bark_jax.config import FineGPTConfig, GPTConfig
from bark_jax.linear import Dropout, Linear, dot, matmul


class KVCache(NamedTuple):
    """Keys and values of every layer: two tuples of n_layer arrays (B · H, S, K), rows of a batch head by head.

    Starts as zeros, never as uninitialised memory: a masked slot is multiplied by an exact zero, and 0 · NaN is NaN.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @classmethod
    def zeros(cls, config: GPTConfig, rows: int, slots: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
        """An empty cache of `slots` positions for `rows` rows."""
        shape = (rows * config.n_head, slots, config.n_embd // config.n_head)
        # Every buffer is its own array: one shared zero could not be donated twice.
        keys = tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layer))
        return cls(keys, tuple(jnp.zeros(shape, dtype) for _ in range(config.n_layer)))

    def put(self, filled: KVCache, rows: jax.Array, chosen: jax.Array) -> KVCache:
        """This cache with the first slots of some rows replaced.

        Args:
          filled: a cache of G rows and as many slots as are to be replaced, or fewer than this one has.
          rows: (G,) int32, the row of this cache that each of them goes to.
          chosen: (G,) bool, whether it goes there at all.
        """

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(old.dtype).reshape(len(rows), -1, *new.shape[1:])
            for i in range(len(rows)):
                at = (rows[i] * new.shape[1], jnp.int32(0), jnp.int32(0))  # one type, in 64-bit mode too
                kept = lax.dynamic_slice(old, at, new.shape[1:])
                old = lax.dynamic_update_slice(old, jnp.where(chosen[i], new[i], kept), at)
            return old

        return jax.tree.map(put, self, filled)

    def take(self, rows: jax.Array, n_head: int) -> KVCache:
        """A cache of the given rows alone: (R,) int32."""
        at = (rows[:, None] * n_head + jnp.arange(n_head)).reshape(-1)
        return jax.tree.map(lambda x: x[at], self)


class Embedding(nnx.Module):
    """A table (V, D); rows are returned in float32."""

    def __init__(self, n: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(0.02 * jax.random.normal(rngs.params(), (n, width), jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.weight[...]
        if table.dtype != jnp.float32:
            # In a loop, XLA on CPUs would turn the whole table into float32 before the first step of every dispatch:
            # 129,600 rows for 8 tokens. It cannot do so before it knows the ids.
            table, ids = lax.optimization_barrier((table, ids))
        return table[ids].astype(jnp.float32)


@jax.custom_vjp
def _normalise(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Layer norm over the last axis without a bias. The gradient keeps x and two numbers per position."""
    return _normalise_forward(x, weight)[0]


def _normalise_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
    return centred * inverse * weight, (x, mean, inverse, weight)


def _normalise_backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, mean, inverse, weight = kept
    unit = (x - mean) * inverse
    inner = gradient * weight
    along = jnp.mean(inner * unit, axis=-1, keepdims=True)
    dx = inverse * (inner - jnp.mean(inner, axis=-1, keepdims=True) - unit * along)
    return dx, jnp.sum(gradient * unit, axis=tuple(range(x.ndim - 1)))


_normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, epsilon 1e-5 (torch's, and Suno's explicit value), with an optional bias."""

    def __init__(self, width: int, *, bias: bool):
        self.weight = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _normalise(x, self.weight[...].astype(jnp.float32))
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, in torch's form: XLA's own (with erfc) takes 2.5 times as long on CPUs."""
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x = lax.optimization_barrier(x)  # or XLA keeps the forward pass's erf, as large as x, from there to here
    density = jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5
    return (gradient * (0.5 * (1 + lax.erf(x * 0.5**0.5)) + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


def _at(dropout: Dropout | None, place: int) -> Dropout | None:
    return None if dropout is None else dropout.at(place)


REMAT = ("none", "block")
"""What a training step keeps for its gradient: all activations, or only the input of each block."""


def _one(block: Any, causal: bool, dropout: Dropout | None, start: int, x: jax.Array) -> jax.Array:
    return block.whole(x, causal=causal, dropout=dropout, start=start)[0]


def _run(
    blocks: Any,
    x: jax.Array,
    *,
    causal: bool,
    dropout: Dropout | None,
    remat: str,
    start: int = 0,
    inputs: list[jax.Array] | None = None,
) -> jax.Array:
    """All blocks on x (B, T, D), positions added → positions `start` on; `remat` is one of `REMAT`."""
    if dropout is not None:
        x = dropout.at(len(blocks))(x)
    for i, block in enumerate(blocks):
        last = i == len(blocks) - 1  # what is asked of it alone decides what it computes
        one = partial(_one, block, causal, _at(dropout, i), start if last else 0)
        if inputs is not None:
            inputs.append(x)
        with jax.named_scope(f"block_{i}"):
            x = jax.checkpoint(one)(x) if remat == "block" else one(x)  # type: ignore[arg-type]
    return x


class Attention(nnx.Module):
    """Multi-head self-attention with one fused projection, in the order q, k, v."""

    def __init__(self, width: int, n_head: int, *, bias: bool, std_out: float, rngs: nnx.Rngs):
        self.n_head = n_head
        self.c_attn = Linear(width, 3 * width, bias=bias, std=0.02, rngs=rngs)
        self.c_proj = Linear(width, width, bias=bias, std=std_out, rngs=rngs)

    def whole(
        self, x: jax.Array, *, causal: bool, dropout: Dropout | None = None, start: int = 0
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Attend within x (B, T, D) → (B, T - start, D), of positions `start` on; keys and values (N, T, K) of all."""
        qkv = self.c_attn(x, _at(dropout, 0))
        y = attend(qkv, self.n_head, causal)[:, start:]
        _, k, v = (heads(part, self.n_head) for part in thirds(qkv))
        return self.c_proj(y, _at(dropout, 1)), k, v

    def looks(self, x: jax.Array, n: int, start: int) -> jax.Array:
        """Logarithms of the first n heads' weights, positions `start` on: x (B, T, D) → (B, n, T - start, T)."""
        length, size = x.shape[1], x.shape[2] // self.n_head
        q, k, _ = thirds(self.c_attn(x))
        q, k = heads(q[:, start:, : n * size] * size**-0.5, n), heads(k[:, :, : n * size], n)
        scores = dot(q, k, (((2,), (2,)), ((0,), (0,)))).reshape(len(x), n, length - start, length)
        seen = jnp.arange(length) <= jnp.arange(start, length)[:, None]
        return jax.nn.log_softmax(jnp.where(seen, scores, MASKED))

    def step(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, slot: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Attend from one position: x (B, D), its keys and values written at `slot`, `bias` (B, S) added to scores."""
        rows, width = x.shape
        qkv = self.c_attn(x).reshape(rows, 3, self.n_head, width // self.n_head)
        q, k, v = (part.reshape(rows * self.n_head, -1) for part in qkv.transpose(1, 0, 2, 3))
        keys = lax.dynamic_update_slice_in_dim(keys, k.astype(keys.dtype)[:, None], slot, axis=1)
        values = lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype)[:, None], slot, axis=1)
        y = attend_slots(q, keys, values, bias)  # (N, K)
        return self.c_proj(y.reshape(rows, width)), keys, values


class MLP(nnx.Module):
    """Two linears, four times as wide between them, with the exact GELU."""

    def __init__(self, width: int, *, bias: bool, std_out: float, rngs: nnx.Rngs):
        self.c_fc = Linear(width, 4 * width, bias=bias, std=0.02, rngs=rngs)
        self.c_proj = Linear(4 * width, width, bias=bias, std=std_out, rngs=rngs)

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        return self.c_proj(_gelu(self.c_fc(x, _at(dropout, 2))), _at(dropout, 3))


class Block(nnx.Module):
    """One pre-normalised transformer layer."""

    def __init__(self, width: int, n_head: int, n_layer: int, *, bias: bool, norm_bias: bool, rngs: nnx.Rngs):
        std_out = 0.02 / (2 * n_layer) ** 0.5  # GPT-2's initialisation of what is added to the residual stream
        self.ln_1 = LayerNorm(width, bias=norm_bias)
        self.attn = Attention(width, n_head, bias=bias, std_out=std_out, rngs=rngs)
        self.ln_2 = LayerNorm(width, bias=norm_bias)
        self.mlp = MLP(width, bias=bias, std_out=std_out, rngs=rngs)

    def whole(
        self, x: jax.Array, *, causal: bool, dropout: Dropout | None = None, start: int = 0
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, k, v = self.attn.whole(self.ln_1(x), causal=causal, dropout=dropout, start=start)
        x = x[:, start:] + (y if dropout is None else dropout.at(4)(y))
        y = self.mlp(self.ln_2(x), dropout)
        return x + (y if dropout is None else dropout.at(5)(y)), k, v

    def looks(self, x: jax.Array, n: int, start: int) -> jax.Array:
        return self.attn.looks(self.ln_1(x), n, start)

    def step(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, slot: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, keys, values = self.attn.step(self.ln_1(x), keys, values, slot, bias)
        x = x + y
        return x + self.mlp(self.ln_2(x)), keys, values


class CausalGPT(nnx.Module):
    """The decoder-only network of the semantic and coarse stages."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.wte = Embedding(config.input_vocab_size, config.n_embd, rngs=rngs)
        self.wpe = Embedding(config.block_size, config.n_embd, rngs=rngs)
        self.blocks = nnx.List(
            Block(config.n_embd, config.n_head, config.n_layer, bias=config.bias, norm_bias=config.bias, rngs=rngs)
            for _ in range(config.n_layer)
        )
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = Linear(config.n_embd, config.output_vocab_size, bias=False, std=0.02, rngs=rngs)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Token embeddings, positions not yet added: ids (...) int32 → (..., D)."""
        return self.wte(ids)

    def hidden(
        self,
        x: jax.Array,
        *,
        start: int = 0,
        dropout: Dropout | None = None,
        remat: str = "none",
        inputs: list[jax.Array] | None = None,
    ) -> jax.Array:
        """Every position at once: embeddings x (B, T, D) at positions 0 .. T-1 → normalised states (B, T - start, D).

        Only positions `start` on are returned, and what the last block would do for the others alone is not computed.
        What goes into each block, (B, T, D), is appended to `inputs`, for `looks`.
        """
        x = x + self.wpe(jnp.arange(x.shape[1]))
        return self.ln_f(_run(self.blocks, x, causal=True, dropout=dropout, remat=remat, start=start, inputs=inputs))

    def looks(self, i: int, x: jax.Array, heads: int, start: int) -> jax.Array:
        """Where the first heads of block `i` look.

        Args:
          x: (B, T, D), what goes into the block, see `hidden`.
          start: the first position that is asked about.

        Returns:
          (B, heads, T - start, T): logarithms of the attention weights.
        """
        return self.blocks[i].looks(x, heads, start)

    def logits(self, x: jax.Array, start: int = 0, end: int | None = None) -> jax.Array:
        """Head rows start .. end-1 on normalised states (..., D) → (..., end - start)."""
        weight = self.lm_head.weight[...]
        return matmul(x, weight if end is None and start == 0 else weight[start:end])

    def prefill(self, x: jax.Array) -> KVCache:
        """Keys and values of a prompt: embeddings x (B, T, D) at positions 0 .. T-1 → a cache of T slots.

        Only the cache is returned: the caller feeds the prompt's last token as the first `decode_step`, so the last
        layer's MLP and the head are never computed for a prompt.
        """
        x = x + self.wpe(jnp.arange(x.shape[1]))
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"prefill_{i}"):
                x, k, v = block.whole(x, causal=True)
            keys.append(k)
            values.append(v)
        return KVCache(tuple(keys), tuple(values))

    def decode_step(
        self, cache: KVCache, token: jax.Array, position: jax.Array, slot: jax.Array, visible: jax.Array
    ) -> tuple[KVCache, jax.Array]:
        """Feed one token per row.

        Args:
          cache: slots of the earlier tokens.
          token: (B,) int32 ids.
          position: (B,) int32, each row's own position (it enters by the position table only).
          slot: () int32, where all rows write their keys and values.
          visible: (B, S) bool, the slots each row may see, `slot` included.

        Returns:
          The new cache, and normalised states (B, D) for `logits`.
        """
        x = self.wte(token) + self.wpe(position)
        bias = jnp.where(visible, jnp.float32(0), MASKED)  # (B, S)
        keys, values = list(cache.keys), list(cache.values)
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"decode_{i}"):
                x, keys[i], values[i] = block.step(x, keys[i], values[i], slot, bias)
        return KVCache(tuple(keys), tuple(values)), self.ln_f(x)


class Tables(nnx.Module):
    """Q embedding tables or heads in one array (Q, V, D), so that the codebook may be traced."""

    def __init__(self, n: int, vocabulary: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(0.02 * jax.random.normal(rngs.params(), (n, vocabulary, width), jnp.float32))

    def at(self, i: jax.Array | int) -> Any:
        """Table `i` (V, D), an array or `Int8`."""
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), self.weight[...])


class FineGPT(nnx.Module):
    """The bidirectional network that predicts one codebook of every frame from the codebooks below it."""

    def __init__(self, config: FineGPTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.wtes = Tables(config.n_codes_total, config.input_vocab_size, config.n_embd, rngs=rngs)
        self.wpe = Embedding(config.block_size, config.n_embd, rngs=rngs)
        self.blocks = nnx.List(
            Block(config.n_embd, config.n_head, config.n_layer, bias=config.bias, norm_bias=True, rngs=rngs)
            for _ in range(config.n_layer)
        )
        self.ln_f = LayerNorm(config.n_embd, bias=True)
        if config.tied:  # one array, not two names for it: shared references do not survive a jit border
            self.lm_heads = None
        else:
            n_heads = config.n_codes_total - config.n_codes_given
            self.lm_heads = Tables(n_heads, config.output_vocab_size, config.n_embd, rngs=rngs)

    def embed(self, codebook: jax.Array | int, codes: jax.Array) -> jax.Array:
        """Embeddings of one codebook: codes (B, T) int32 → (B, T, D). `codebook` may be traced."""
        return self.wtes.at(codebook)[codes].astype(jnp.float32)

    def hidden(self, x: jax.Array, *, dropout: Dropout | None = None, remat: str = "none") -> jax.Array:
        """Summed embeddings x (B, T, D), positions not yet added → normalised states (B, T, D)."""
        x = x + self.wpe(jnp.arange(x.shape[1]))
        return self.ln_f(_run(self.blocks, x, causal=False, dropout=dropout, remat=remat))

    def head(self, codebook: jax.Array | int) -> Any:
        """The head (V, D) of `codebook`, n_codes_given .. n_codes_total - 1; may be traced."""
        if self.lm_heads is None:
            return self.wtes.at(codebook)
        return self.lm_heads.at(codebook - self.config.n_codes_given)

    def logits(self, codebook: jax.Array | int, x: jax.Array) -> jax.Array:
        """Predict `codebook` from the summed embeddings of codebooks 0 .. `codebook`, itself included.

        Args:
          codebook: n_codes_given .. n_codes_total - 1, may be traced.
          x: (B, T, D) sum of `embed` over codebooks 0 .. codebook; positions not yet added.

        Returns:
          (B, T, V) float32.
        """
        return matmul(self.hidden(x), self.head(codebook))

    def __call__(self, codebook: jax.Array | int, codes: jax.Array) -> jax.Array:
        """Suno's forward pass: codes (B, T, Q) int32 → logits (B, T, V) of `codebook`."""
        x = self.embed(0, codes[:, :, 0])
        for q in range(1, self.config.n_codes_total):
            x = x + (q <= codebook) * self.embed(q, codes[:, :, q])
        return self.logits(codebook, x)
