"""Audio → Bark's semantic ids: HuBERT-base and the community's quantizer. The kind "hubert" of ``units.safetensors``.

Suno never published what made Bark's semantic ids. What comes nearest is a quantizer that others have trained on Bark's
own speech: an LSTM that reads the features of HuBERT-base's ninth layer and names an id for each of their frames.

    16 kHz ─ 7 convolutions ─▶ 50 frames/s ─ 9 transformer blocks ─▶ features ─ LSTM, linear ─▶ likeliest of 10,000 ids

The networks are those of ``transformers`` (``HubertModel``, facebook/hubert-base-ls960) up to ``hidden_states[9]``, and
of gitmylo's ``CustomTokenizer``, versions 0 and 1. Later blocks of HuBERT are not there: nothing uses them.

A clip is read as a whole: the group norm behind the first convolution takes mean and variance of each channel over all
of it. Here clips are padded to few lengths; a mask keeps every number that of the clip alone.

Shapes use: B rows, N samples, T frames, C channels, U ids.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from bark_jax.gpt import LayerNorm
from bark_jax.linear import Linear, matmul

BUCKET_S = 2.0
"""Clips are padded to a multiple of it, so that few lengths are compiled."""
LONGEST_S = 120.0
"""Longest clip that is read: attention looks from every frame at all others."""
EPSILON = 1e-5
"""Of the group norm, as of all norms here: torch's."""


@dataclass(frozen=True)
class HubertConfig:
    """Sizes; the defaults are HuBERT-base's first nine layers and the quantizer's version 0."""

    sample_rate: int = 16_000
    conv_width: int = 512
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    width: int = 768
    n_head: int = 12
    ffn: int = 3072
    n_layer: int = 9
    position_kernel: int = 128
    position_groups: int = 16
    lstm_width: int = 1024
    lstm_layers: int = 2
    middle: int = 0
    """Outputs of a linear between LSTM and head: 4,096 in version 1, none (0) in version 0."""
    n_units: int = 10_000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            least = 0 if field.name == "middle" else 1
            if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in numbers):
                raise ValueError(f"HubertConfig.{field.name} is {value!r}: it must be of integers of {least} or more")
        if len(self.kernels) != len(self.strides):
            raise ValueError(f"HubertConfig has {len(self.kernels)} kernels and {len(self.strides)} strides: as many")
        if self.width % self.n_head or self.width % self.position_groups:
            raise ValueError(f"HubertConfig.width is {self.width}: n_head and position_groups must divide it")

    @property
    def hop(self) -> int:
        """Samples from one frame to the next, 320."""
        return math.prod(self.strides)

    @property
    def rate_hz(self) -> float:
        return self.sample_rate / self.hop

    def frames(self, n: int) -> int:
        """Frames of `n` samples: floor((n - 400) / 320) + 1, and none below 400."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n = max(0, (n - kernel) // stride + 1)
        return n


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


class Strided(nnx.Module):
    """A convolution without padding and without bias; weight (K, C_in, C_out)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        std = (kernel * n_in) ** -0.5
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (kernel, n_in, n_out), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            self.weight[...],
            window_strides=(self.stride,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=lax.Precision.HIGHEST,
        )


class ChannelNorm(nnx.Module):
    """Each channel less its mean, over its deviation, of the clip's own frames (a group norm with a group each)."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        """x (B, T, C), of which the frames `real` (B, T) bool are the clip's."""
        real = real[..., None]
        n = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        mean = jnp.sum(jnp.where(real, x, 0), axis=1, keepdims=True) / n
        variance = jnp.sum(jnp.where(real, jnp.square(x - mean), 0), axis=1, keepdims=True) / n
        return (x - mean) * lax.rsqrt(variance + EPSILON) * self.weight[...] + self.bias[...]


class Positions(nnx.Module):
    """A grouped convolution over the frames, whose result is added to them; weight (K, C / groups, C), bias (C,)."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.groups = config.position_groups
        shape = (config.position_kernel, config.width // self.groups, config.width)
        std = (shape[0] * shape[1]) ** -0.5
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((config.width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        half = weight.shape[0] // 2
        y = lax.conv_general_dilated(
            x,
            weight,
            window_strides=(1,),
            padding=((half, half - 1 + weight.shape[0] % 2),),  # an even kernel gives a frame too many: the last goes
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
            precision=lax.Precision.HIGHEST,
        )
        return _gelu(y + self.bias[...])


class HubertBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): norms come after, unlike in Bark's own blocks."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        def linear(n_in: int, n_out: int) -> Linear:
            return Linear(n_in, n_out, bias=True, std=n_in**-0.5, rngs=rngs)

        self.n_head = config.n_head
        self.query, self.key, self.value, self.out = (linear(config.width, config.width) for _ in range(4))
        self.norm_1, self.norm_2 = (LayerNorm(config.width, bias=True) for _ in range(2))
        self.mlp_in, self.mlp_out = linear(config.width, config.ffn), linear(config.ffn, config.width)

    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        rows, length, width = x.shape

        def heads(linear: Linear) -> jax.Array:
            return linear(x).reshape(rows, length, self.n_head, -1)

        scores = jnp.einsum("bqhd,bkhd->bhqk", heads(self.query), heads(self.key), precision=lax.Precision.HIGHEST)
        scores = jnp.where(real[:, None, None], scores * (width // self.n_head) ** -0.5, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, heads(self.value), precision=lax.Precision.HIGHEST)
        x = self.norm_1(x + self.out(mixed.reshape(rows, length, width)))
        return self.norm_2(x + self.mlp_out(_gelu(self.mlp_in(x))))


class LSTMCell(nnx.Module):
    """One layer over time; weight_ih (4 · H, C), weight_hh (4 · H, H), bias (4 · H,), gates in the order i, f, g, o."""

    def __init__(self, n_in: int, width: int, *, rngs: nnx.Rngs):
        std = (3 * width) ** -0.5
        self.weight_ih = nnx.Param(std * jax.random.normal(rngs.params(), (4 * width, n_in), jnp.float32))
        self.weight_hh = nnx.Param(std * jax.random.normal(rngs.params(), (4 * width, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((4 * width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, C) → hidden states (B, T, H)."""
        inputs = (matmul(x, self.weight_ih[...]) + self.bias[...]).swapaxes(0, 1)
        weight = self.weight_hh[...]

        def step(state: tuple[jax.Array, jax.Array], gates: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            h, c = state
            i, f, g, o = jnp.split(gates + matmul(h, weight), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.zeros((x.shape[0], weight.shape[1]), jnp.float32)
        _, hidden = lax.scan(step, (start, start), inputs)
        return hidden.swapaxes(0, 1)


class Hubert(nnx.Module):
    """The networks of the module's first lines: audio → logits of semantic ids."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = [1, *[config.conv_width] * len(config.kernels)]
        self.convs = nnx.List(
            Strided(n_in, n_out, kernel, stride, rngs=rngs)
            for n_in, n_out, kernel, stride in zip(widths[:-1], widths[1:], config.kernels, config.strides, strict=True)
        )
        self.channel_norm = ChannelNorm(config.conv_width)
        self.feature_norm = LayerNorm(config.conv_width, bias=True)
        self.projection = Linear(config.conv_width, config.width, bias=True, std=config.conv_width**-0.5, rngs=rngs)
        self.positions = Positions(config, rngs=rngs)
        self.norm = LayerNorm(config.width, bias=True)
        self.blocks = nnx.List(HubertBlock(config, rngs=rngs) for _ in range(config.n_layer))
        inputs = [config.width, *[config.lstm_width] * (config.lstm_layers - 1)]
        self.lstm = nnx.List(LSTMCell(n_in, config.lstm_width, rngs=rngs) for n_in in inputs)
        std = config.lstm_width**-0.5
        last = config.middle or config.lstm_width
        self.middle = Linear(config.lstm_width, config.middle, bias=True, std=std, rngs=rngs) if config.middle else None
        self.head = Linear(last, config.n_units, bias=True, std=last**-0.5, rngs=rngs)

    def features(self, audio: jax.Array, samples: jax.Array) -> jax.Array:
        """What the quantizer reads (B, T, C) of audio (B, N), of which `samples` (B,) int32 are the clip's."""
        config = self.config
        x, real = audio[..., None], samples
        for i, (conv, kernel) in enumerate(zip(self.convs, config.kernels, strict=True)):
            x = conv(x)
            real = jnp.maximum((real - kernel) // conv.stride + 1, 0)
            if i == 0:
                x = self.channel_norm(x, jnp.arange(x.shape[1]) < real[:, None])
            x = _gelu(x)
        seen = jnp.arange(x.shape[1]) < real[:, None]
        x = jnp.where(seen[..., None], self.projection(self.feature_norm(x)), 0)
        x = self.norm(x + self.positions(x))
        for block in self.blocks:
            x = block(x, seen)
        return x

    def quantize(self, features: jax.Array) -> jax.Array:
        """Logits (B, T, U) of features (B, T, C); a frame depends on those before it alone."""
        x = features
        for layer in self.lstm:
            x = layer(x)
        return self.head(x if self.middle is None else self.middle(x))

    def __call__(self, audio: jax.Array, samples: jax.Array) -> jax.Array:
        return self.quantize(self.features(audio, samples))


@functools.partial(jax.jit, static_argnums=0)
def likeliest(tree: Any, leaves: list[jax.Array], audio: jax.Array, real: jax.Array) -> jax.Array:
    """Of a network of any kind, flattened: the likeliest unit of each frame of audio (B, N), `real` (B,) of it."""
    return jnp.argmax(jax.tree.unflatten(tree, leaves)(audio, real), axis=-1).astype(jnp.int32)


def encode(network: Hubert, audio: np.ndarray) -> np.ndarray:
    """Semantic ids of a clip that `units.encode` has checked.

    Args:
      audio: (N,) floating point, mono, -1 to 1, at 16 kHz, not normalised; at least 400 samples, one frame.

    Returns:
      (floor((N - 400) / 320) + 1,) int32.

    Raises:
      ValueError: audio shorter than a frame or longer than `LONGEST_S`.
    """
    config = network.config
    frames = config.frames(len(audio))
    if frames < 1:
        raise ValueError(f"audio has {len(audio)} samples: a first semantic id takes {_least(config)}")
    if len(audio) > LONGEST_S * config.sample_rate:
        seconds = len(audio) / config.sample_rate
        raise ValueError(f"audio lasts {seconds:.1f} s: HuBERT reads up to {LONGEST_S:g} s at once, cut it")
    size = int(BUCKET_S * config.sample_rate)
    padded = np.zeros((1, math.ceil(len(audio) / size) * size), np.float32)
    padded[0, : len(audio)] = audio
    leaves, tree = jax.tree.flatten(network)
    return np.asarray(likeliest(tree, leaves, padded, np.array([len(audio)], np.int32)))[0, :frames]


def _least(config: HubertConfig) -> int:
    """Samples of a first frame (400)."""
    n = 1
    for kernel, stride in zip(config.kernels[::-1], config.strides[::-1], strict=True):
        n = (n - 1) * stride + kernel
    return n
