"""What judges the codec while it is trained: spectral distances, and networks that learn to tell speech from its copy.

The distance is DAC's multi-scale mel distance, of loudness in place of logarithms; the critics are EnCodec's
multi-scale STFT discriminator (arXiv 2210.13438, section 3.4) in a smaller size, with least-squares losses and feature
matching. Speaking needs none of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bark_jax.spectra import mel, stft, to_mel
from bark_jax.units import LogMelUnits

MELS = ((64, 8), (128, 16), (256, 32), (512, 64), (1024, 96), (2048, 128))
"""Window and number of mel bands of each scale; hops are a quarter of the window."""
LONG = MELS[3:]
"""Those that tell more of what sounds than of when a wave begins."""
HALVES = (MELS[1::2], MELS[::2])
"""Two halves of them, as costly as each other."""

FLOOR, EXPONENT = 1e-6, 0.23
"""Of loudness: power (relative to that of the whole row) plus the floor, 60 dB down, to the exponent. It is Zwicker's
law without the ear's threshold (E. Zwicker and H. Fastl, "Psychoacoustics", 8.7), and what PESQ compares as well."""

N_AUDIBLE, TOP_HZ = 49, 8000.0
"""Bands of `audible_distance`, and where they end."""


def wave_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean absolute difference of (B, N) and (B, N), in units of each row's mean size in `b`."""
    return jnp.mean(jnp.mean(jnp.abs(a - b), axis=1) / (jnp.mean(jnp.abs(b), axis=1) + 1e-3))


def band_powers(
    a: jax.Array, b: jax.Array, size: int, hop: int, n_mels: int, sample_rate: int, *, margin: int
) -> tuple[jax.Array, jax.Array]:
    """Powers of the mel bands of (B, N) and (B, N), each (B, frames, n_mels), over the mean power of `b`'s row.
    `margin` zeros come before and after, so that the ends count as much as the rest.
    """
    level = jnp.sqrt(jnp.mean(jnp.square(b), axis=1) + 1e-6)[:, None, None]
    both = jnp.pad(jnp.concatenate([a, b]), ((0, 0), (margin, margin)))  # in one product
    power = jnp.square(mel(both, size, hop, n_mels, sample_rate) / jnp.concatenate([level, level]))
    x, y = jnp.split(power, 2)
    return x, y


def loudness(power: jax.Array) -> jax.Array:
    return (power + FLOOR) ** EXPONENT


def loudness_distance(
    a: jax.Array, b: jax.Array, sample_rate: int, scales: Sequence[tuple[int, int]] = MELS
) -> jax.Array:
    """Mean absolute difference of the loudness of mel bands of (B, N) and (B, N), over the mean loudness of `b`; the
    mean over `scales`. With logarithms, faint bands would count as much as loud ones.
    """
    total = jnp.zeros(())
    for size, n_mels in scales:
        x, y = map(loudness, band_powers(a, b, size, size // 4, n_mels, sample_rate, margin=512))
        total += jnp.mean(jnp.abs(x - y)) / jnp.mean(y)
    return total / len(scales)


def split_loudness_distance(a: jax.Array, b: jax.Array, sample_rate: int) -> jax.Array:
    """The same, every other row at one half of the scales and the rest at the other: in the mean over many batches as
    good, at half the cost.
    """
    if len(a) < 2:
        return loudness_distance(a, b, sample_rate)
    parts = [loudness_distance(a[i::2], b[i::2], sample_rate, scales) for i, scales in enumerate(HALVES)]
    return sum(parts, jnp.zeros(())) / len(parts)


def audible_distance(a: jax.Array, b: jax.Array, sample_rate: int) -> jax.Array:
    """How much louder or fainter the bands of (B, N) are than those of its source (B, N), where it can be heard.

    After PESQ (ITU-T P.862, 10.2; as a loss: Martín-Doñas et al., IEEE Signal Processing Letters 25, 2018), with mel
    bands in place of its table, and without its filters and its alignment: bands up to 8 kHz of windows of 32 ms; what
    is within a quarter of the fainter of both is masked; and what was added, more than 4 dB, counts besides.
    """
    hop = round(sample_rate * 0.016)
    n_mels = round(N_AUDIBLE * to_mel(sample_rate / 2).item() / to_mel(TOP_HZ).item())
    bands = band_powers(a, b, 2 * hop, hop, n_mels, sample_rate, margin=hop)
    after, before = (power[..., :N_AUDIBLE] for power in bands)
    x, y = loudness(after), loudness(before)
    heard = jax.nn.relu(jnp.abs(x - y) - 0.25 * jnp.minimum(x, y))
    added = ((after + 1e-5) / (before + 1e-5)) ** 1.2
    added = lax.stop_gradient(jnp.where(added < 3, 0, jnp.minimum(added, 12)))
    both_ways = jnp.mean(jnp.sqrt(jnp.mean(jnp.square(heard), axis=-1) + 1e-8))
    return (both_ways + 0.309 * jnp.mean(heard * added)) / jnp.mean(y)


def content_distance(listener: LogMelUnits, a: jax.Array, b: jax.Array) -> jax.Array:
    """How differently a network that knows semantic units hears (B, N) and its source (B, N): the mean absolute
    difference of the vectors that its units are read from, over their mean size. What it was taught to overlook, such
    as a voice or a balance of bands, counts little; what tells one sound of a language from another counts.
    """
    x, y = jnp.split(listener.hidden(listener.spectrum(jnp.concatenate([a, b]))), 2)
    y = lax.stop_gradient(y)
    return jnp.mean(jnp.abs(x - y)) / jnp.mean(jnp.abs(y))


class NormConv(nnx.Module):
    """2-D convolution (time, frequency) with weight norm: direction (KT, KF, in, out) and size (out,). Takes and gives
    float32; `dtype` is that of the products.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        shape = (*kernel, n_in, n_out)
        self.direction = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.size = nnx.Param(jnp.full((n_out,), 1.4, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def weight(self) -> jax.Array:
        direction = self.direction[...]
        return direction * (self.size[...] * lax.rsqrt(jnp.sum(jnp.square(direction), axis=(0, 1, 2)) + 1e-12))

    def frames(self, x: jax.Array) -> jax.Array:
        """(B, T, in) → (B, T, out), for a kernel that is 1 wide: as one product."""
        weight = self.weight()
        n, kt = x.shape[1], len(weight)
        reach = self.dilation * (kt // 2)
        x = jnp.pad(x, ((0, 0), (reach, reach), (0, 0))).astype(self.dtype)
        x = jnp.concatenate([x[:, i * self.dilation : i * self.dilation + n] for i in range(kt)], axis=-1)
        y = x @ weight.reshape(-1, weight.shape[-1]).astype(self.dtype)
        return y.astype(jnp.float32) + self.bias[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight()
        kt, kf = weight.shape[:2]
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            weight.astype(self.dtype),
            window_strides=(1, self.stride),
            padding=((self.dilation * (kt // 2),) * 2, (kf // 2,) * 2),
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y.astype(jnp.float32) + self.bias[...]


class STFTCritic(nnx.Module):
    """A spectrogram → a map of marks, 1 for speech and 0 for a copy, and what its layers saw."""

    def __init__(self, window: int, filters: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        self.window = window
        conv = functools.partial(NormConv, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            [
                conv(2, filters, (3, 9)),
                *(conv(filters, filters, (3, 9), stride=2, dilation=2**i) for i in range(3)),
                conv(filters, filters, (3, 3)),
            ]
        )
        self.out = conv(filters, 1, (3, 3))

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = jnp.stack(stft(audio, self.window, self.window // 4), axis=-1)
        seen = []
        for conv in self.convs:
            x = jax.nn.leaky_relu(conv(x), 0.2)
            seen.append(x)
        return self.out(x)[..., 0], seen


class FrameCritic(nnx.Module):
    """As `STFTCritic`, with a frame's frequencies as channels: three frames at a time, and all of it in dense products.

    It looks for no pattern at every frequency alike, and so knows less for its size; but a processor that is slow at
    2-D convolutions and their gradients takes a tenth of the time (`benchmarks/NOTES.md`).
    """

    def __init__(self, window: int, width: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        self.window = window
        conv = functools.partial(NormConv, dtype=dtype, rngs=rngs)
        self.first = conv(2 * (window // 2 + 1), width, (1, 1))
        self.convs = nnx.List([conv(width, width, (3, 1), dilation=2**i) for i in range(3)])
        self.out = conv(width, 1, (3, 1))

    def __call__(self, audio: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        parts = jnp.concatenate(stft(audio, self.window, self.window // 4), axis=-1)
        halves = jnp.split(parts, 2, axis=-1)
        # To the power 0.3, or the few loud frequencies would be all that counts.
        x = parts * jnp.tile((jnp.square(halves[0]) + jnp.square(halves[1]) + 1e-6) ** -0.35, (1, 1, 2))
        seen = []
        for conv in (self.first, *self.convs):
            x = jax.nn.leaky_relu(conv.frames(x), 0.2)
            seen.append(x)
        return self.out.frames(x)[..., 0], seen


class Critics(nnx.Module):
    """One critic for each window, of a `kind`: "stft" or "frames"; `filters` is the width of its layers."""

    def __init__(
        self, windows: tuple[int, ...], filters: int, *, kind: str = "stft", dtype: str = "float32", rngs: nnx.Rngs
    ):
        one = KINDS[kind]
        self.critics = nnx.List(one(window, filters, dtype=dtype, rngs=rngs) for window in windows)

    def __call__(self, audio: jax.Array) -> list[tuple[jax.Array, list[jax.Array]]]:
        return [critic(audio) for critic in self.critics]


KINDS = {"stft": STFTCritic, "frames": FrameCritic}


def critic_loss(critics: Any, real: jax.Array, copy: jax.Array) -> jax.Array:
    """What the critics minimise: marks 1 for `real` (B, N), 0 for `copy`."""
    total = jnp.zeros(())
    for marks, _ in critics(jnp.concatenate([real, copy])):
        good, bad = jnp.split(marks, 2)
        total += jnp.mean(jnp.square(1 - good)) + jnp.mean(jnp.square(bad))
    return total / len(critics.critics)


def copy_losses(critics: Any, real: jax.Array, copy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the codec minimises: distance of the copy's marks from 1, and of what the critics see in both."""
    marks_loss, matching = jnp.zeros(()), jnp.zeros(())
    for marks, seen in critics(jnp.concatenate([real, copy])):
        _, bad = jnp.split(marks, 2)
        marks_loss += jnp.mean(jnp.square(1 - bad))
        for layer in seen:
            a, b = jnp.split(layer, 2)
            a = lax.stop_gradient(a)
            matching += jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(a)) + 1e-6) / len(seen)
    return marks_loss / len(critics.critics), matching / len(critics.critics)
