"""EnCodec 24 kHz in JAX: waveform → codes (`encode`) and codes → waveform (`decode`).

Takes mono float32 audio at the codec's rate, or int32 codes; gives the other. Knows nothing of Bark's stages, of files,
or of resampling. The networks are those of ``encodec`` 0.1.1 (``modules/seanet.py``, ``conv.py``, ``lstm.py``,
``quantization/core_vq.py``) with weight norm already folded into the weights.

Everything is causal, so everything runs in pieces: a piece goes in with the state its clip had after the piece before,
and whole clips are a host loop over pieces of one fixed size. That is why no length of text or clip ever recompiles,
and why memory does not grow with the clip. The state is per row, so rows may start, end and be replaced independently.

Two things are not causal, and both are at the border of a clip:

* Every convolution mirrors the first samples of *its* input to the left (EnCodec's reflect padding), so a clip's first
  piece must hold at least `start_frames` frames, unless the clip ends within it. What lies beyond the end of a clip
  counts as zero there, as in EnCodec's rule for inputs shorter than the padding.
* Every down-sampling convolution mirrors the last samples to the right to fill its last window, so in the encoder a
  piece whose length is no multiple of the hop is a clip's last.

Shapes use: B rows, T positions, C channels, F frames, Q codebooks, D width of the code vectors, N samples. Arrays are
feature-last, (B, T, C). All arithmetic is float32 in full precision: one flipped bit of an embedding flips a code.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from bark_jax.config import CodecConfig
from bark_jax.flat import beside
from bark_jax.linear import matmul

CHUNK = 64
"""Frames per compiled piece (0.85 s): large enough for fast products, small enough that a short clip wastes little."""

ABSENT = -1
"""In codes of a piece: this frame lies beyond the end of its row (in codebook 0), or this codebook is not given."""


class ResidualState(NamedTuple):
    """Left context of a residual unit's first convolution."""

    conv1: jax.Array
    """(B, (residual_kernel_size - 1) · dilation, C) last inputs."""


class UpState(NamedTuple):
    """State of one decoder stage, which multiplies the rate by r."""

    up: jax.Array
    """(B, r · C) what the last input adds to the next r outputs of the transposed convolution."""
    residuals: tuple[ResidualState, ...]


class DownState(NamedTuple):
    """State of one encoder stage, which divides the rate by r."""

    residuals: tuple[ResidualState, ...]
    down: jax.Array
    """(B, r, C) last inputs of the strided convolution."""


class LSTMState(NamedTuple):
    """One layer's hidden and cell state, (B, C) each."""

    h: jax.Array
    c: jax.Array


class DecoderState(NamedTuple):
    """All that the decoder remembers of each row's earlier frames. Every leaf is float32 or bool with rows first, so
    rows can be taken, replaced or reset (to zeros) one by one with `jax.tree.map`.
    """

    started: jax.Array
    """(B,) bool: whether the row has had a frame; if not, the next piece is mirrored to the left."""
    conv_in: jax.Array
    """(B, kernel_size - 1, D) last code vectors."""
    lstm: tuple[LSTMState, ...]
    stages: tuple[UpState, ...]
    conv_out: jax.Array
    """(B, last_kernel_size - 1, n_filters) last inputs of the output convolution."""


class EncoderState(NamedTuple):
    """All that the encoder remembers of each row's earlier samples; rows first, as in `DecoderState`."""

    started: jax.Array
    """(B,) bool: whether the row has had a sample."""
    conv_in: jax.Array
    """(B, kernel_size - 1, 1) last samples."""
    stages: tuple[DownState, ...]
    lstm: tuple[LSTMState, ...]
    conv_out: jax.Array
    """(B, last_kernel_size - 1, C) last inputs of the output convolution."""


class Span(NamedTuple):
    """What a layer must know of a piece: which rows begin with it, and how many positions of each row are real."""

    fresh: jax.Array
    """(B,) bool."""
    length: jax.Array
    """(B,) int32, a prefix of the piece; 0 leaves the row's state alone."""

    def times(self, ratio: int) -> Span:
        """The same piece at `ratio` times the rate."""
        return Span(self.fresh, self.length * ratio)

    def over(self, ratio: int) -> Span:
        """The same piece at 1 / `ratio` of the rate; a last window that is begun counts."""
        return Span(self.fresh, (self.length + (ratio - 1)) // ratio)


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
    """Variance 1 / fan_in, which keeps the size of a signal through linear layers."""
    bound = math.sqrt(3 / fan_in)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def _window(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Row b of the result is x[b, start[b] : start[b] + size]."""
    return jax.vmap(lambda row, i: lax.dynamic_slice_in_dim(row, i, size))(x, start)


class Conv(nnx.Module):
    """Causal convolution with EnCodec's reflect padding; weight (K, C_in, C_out), bias (C_out,).

    A stride s > 1 expects K = 2 · s, as in EnCodec, and pieces whose size is a multiple of s.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs):
        self.stride = stride
        self.dilation = dilation
        self.weight = _uniform(rngs, (kernel, n_in, n_out), kernel * n_in)
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    @property
    def context(self) -> int:
        """Inputs before the first that a first output needs."""
        return (self.weight.shape[0] - 1) * self.dilation - (self.stride - 1)

    def __call__(self, x: jax.Array, past: jax.Array, span: Span) -> tuple[jax.Array, jax.Array]:
        """A piece x (B, T, C_in) after `past` (B, context, C_in) → (B, T / stride, C_out), and the next `past`."""
        pad = self.context
        if pad == 0:
            return self.pointwise(x), past
        near = x[:, 1 : pad + 1]
        near = jnp.pad(near, ((0, 0), (0, pad - near.shape[1]), (0, 0)))
        real = jnp.arange(1, pad + 1) < span.length[:, None]
        mirrored = jnp.where(real[..., None], near, 0)[:, ::-1]
        joined = jnp.concatenate([jnp.where(span.fresh[:, None, None], mirrored, past), x], axis=1)
        past = _window(joined, span.length, pad)
        if self.stride > 1:
            joined = self._fill_last_window(joined, span)
        return self._convolve(joined) + self.bias[...], past

    def pointwise(self, x: jax.Array) -> jax.Array:
        """The whole layer, where the kernel is 1: a matrix product."""
        return matmul(x, self.weight[...][0].T) + self.bias[...]

    def _fill_last_window(self, joined: jax.Array, span: Span) -> jax.Array:
        """Mirror the end of a row into the positions its last window lacks. In `joined`, position 0 is at `context`."""
        pad, n = self.context, span.length[:, None]
        size = jnp.where(span.fresh[:, None], jnp.maximum(n, pad + 1), n)  # a short clip counts as longer by zeros
        at = n + jnp.arange(self.stride - 1)
        source = jnp.where(at < size, at, 2 * (size - 1) - at)
        values = jnp.take_along_axis(joined, (pad + jnp.minimum(source, n - 1))[..., None], axis=1)
        values = jnp.where((source < n)[..., None], values, 0)
        missing = at < -(-n // self.stride) * self.stride
        at = jnp.where(missing, pad + at, joined.shape[1])  # what is not missing is written nowhere
        return joined.at[jnp.arange(joined.shape[0])[:, None], at].set(values, mode="drop")

    def _convolve(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        kernel, n_in, n_out = weight.shape
        if n_in == 1 and self.stride == self.dilation == 1:
            # XLA's CPU convolution is 6 times slower than shifted sums where one side has a single channel.
            size = x.shape[1] - (kernel - 1)
            return sum((x[:, k : k + size] * weight[k] for k in range(1, kernel)), x[:, :size] * weight[0])
        if self.stride > 1 and kernel == 2 * self.stride:  # each window is two blocks of `stride`: two products
            blocks = x.reshape(x.shape[0], -1, self.stride * n_in)
            early, late = weight.reshape(2, self.stride * n_in, n_out)
            return matmul(blocks[:, :-1], early.T) + matmul(blocks[:, 1:], late.T)
        if self.stride == 1:
            return lax.platform_dependent(x, weight, cpu=self._shifted_products, default=self._convolution)
        return self._convolution(x, weight)

    def _shifted_products(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """One product for all taps, then a sum of shifted columns. As fast as XLA's CPU convolution (6 times as fast
        for a single output), which on some CPUs adds the last positions of a batch in another order than the others: a
        row would depend on its place.
        """
        kernel, n_in, n_out = weight.shape
        size = x.shape[1] - (kernel - 1) * self.dilation
        taps = matmul(x, weight.swapaxes(1, 2).reshape(kernel * n_out, n_in))
        at = [(k * self.dilation, k * n_out) for k in range(kernel)]
        return sum((taps[:, t : t + size, c : c + n_out] for t, c in at[1:]), taps[:, :size, :n_out])

    def _convolution(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            weight,
            window_strides=(self.stride,),
            padding="VALID",
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=lax.Precision.HIGHEST,
        )


class Up(nnx.Module):
    """Transposed convolution with kernel 2 · r and stride r, trimmed on the right; weight (C_in, 2 · r, C_out).

    One product to 2 · r · C_out columns, then an overlap-add: each input adds to its own r outputs and to the next r.
    """

    def __init__(self, n_in: int, n_out: int, ratio: int, *, rngs: nnx.Rngs):
        self.weight = _uniform(rngs, (n_in, 2 * ratio, n_out), 2 * n_in)
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def __call__(self, x: jax.Array, past: jax.Array, span: Span) -> tuple[jax.Array, jax.Array]:
        """A piece x (B, T, C_in) after `past` (B, r · C_out) → (B, T · r, C_out), and the next `past`."""
        weight = self.weight[...]
        n_in, kernel, n_out = weight.shape
        rows, length, _ = x.shape
        y = matmul(x, weight.reshape(n_in, kernel * n_out).T)
        own, late = jnp.split(y, 2, axis=-1)
        late = jnp.concatenate([past[:, None], late], axis=1)
        y = (own + late[:, :-1]).reshape(rows, length * (kernel // 2), n_out) + self.bias[...]
        return y, _window(late, span.length, 1)[:, 0]


class Residual(nnx.Module):
    """x → shortcut(x) + conv2(elu(conv1(elu(x)))); the shortcut and conv2 have kernel 1."""

    def __init__(self, width: int, config: CodecConfig, dilation: int, *, rngs: nnx.Rngs):
        hidden = width // config.compress
        self.conv1 = Conv(width, hidden, config.residual_kernel_size, dilation=dilation, rngs=rngs)
        self.conv2 = Conv(hidden, width, 1, rngs=rngs)
        self.shortcut = Conv(width, width, 1, rngs=rngs)

    def __call__(self, x: jax.Array, past: ResidualState, span: Span) -> tuple[jax.Array, ResidualState]:
        y, conv1 = self.conv1(jax.nn.elu(x), past.conv1, span)
        return self.shortcut.pointwise(x) + self.conv2.pointwise(jax.nn.elu(y)), ResidualState(conv1)


def _residuals(width: int, count: int, config: CodecConfig, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(Residual(width, config, config.dilation_base**j, rngs=rngs) for j in range(count))


def _run_residuals(
    units: nnx.List, x: jax.Array, past: tuple[ResidualState, ...], span: Span
) -> tuple[jax.Array, tuple[ResidualState, ...]]:
    after = []
    for unit, state in zip(units, past, strict=True):
        x, state = unit(x, state, span)
        after.append(state)
    return x, tuple(after)


class LSTMLayer(nnx.Module):
    """One LSTM layer; weight_ih (4 · C, C), weight_hh (4 · C, C), bias (4 · C,), gates in the order i, f, g, o."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.weight_ih = _uniform(rngs, (4 * width, width), 3 * width)  # torch's bound, 1 / sqrt(width)
        self.weight_hh = _uniform(rngs, (4 * width, width), 3 * width)
        self.bias = nnx.Param(jnp.zeros((4 * width,), jnp.float32))

    def __call__(self, x: jax.Array, past: LSTMState, span: Span) -> tuple[jax.Array, LSTMState]:
        """x (B, T, C) → hidden states (B, T, C), and the state after each row's `span.length` steps."""
        inputs = (matmul(x, self.weight_ih[...]) + self.bias[...]).swapaxes(0, 1)  # all steps in one product
        weight = self.weight_hh[...]
        # On the CPU a single row is 1.5 times faster with torch's (out, in), several rows 1.4 times with (in, out).
        weight, axis = (weight, 1) if x.shape[0] == 1 else (weight.T, 0)

        def step(state: LSTMState, now: tuple[jax.Array, jax.Array]) -> tuple[LSTMState, jax.Array]:
            t, gates = now
            gates += lax.dot_general(state.h, weight, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            live = (t < span.length)[:, None]
            return LSTMState(jnp.where(live, h, state.h), jnp.where(live, c, state.c)), h

        state, hidden = lax.scan(step, past, (jnp.arange(x.shape[1]), inputs))
        return hidden.swapaxes(0, 1), state


class LSTM(nnx.Module):
    """A stack of LSTM layers with one skip from its input to its output."""

    def __init__(self, width: int, n_layers: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List(LSTMLayer(width, rngs=rngs) for _ in range(n_layers))

    def __call__(
        self, x: jax.Array, past: tuple[LSTMState, ...], span: Span
    ) -> tuple[jax.Array, tuple[LSTMState, ...]]:
        if not self.layers:
            return x, past
        y, after = x, []
        for layer, state in zip(self.layers, past, strict=True):
            y, state = layer(y, state, span)
            after.append(state)
        return y + x, tuple(after)


class UpStage(nnx.Module):
    """Stage i of the decoder: ELU, up-sampling, residual units."""

    def __init__(self, i: int, config: CodecConfig, *, rngs: nnx.Rngs):
        self.ratio = config.ratios[i]
        before, after = config.channels[i : i + 2]
        self.up = Up(before, after, self.ratio, rngs=rngs)
        self.residuals = _residuals(after, config.residuals[i], config, rngs)

    def __call__(self, x: jax.Array, past: UpState, span: Span) -> tuple[jax.Array, UpState, Span]:
        x, up = self.up(jax.nn.elu(x), past.up, span)
        span = span.times(self.ratio)
        x, residuals = _run_residuals(self.residuals, x, past.residuals, span)
        return x, UpState(up, residuals), span


class DownStage(nnx.Module):
    """What undoes stage i of the decoder: residual units, ELU, down-sampling."""

    def __init__(self, i: int, config: CodecConfig, *, rngs: nnx.Rngs):
        self.ratio = config.ratios[i]
        after, before = config.channels[i : i + 2]
        self.residuals = _residuals(before, config.residuals[i], config, rngs)
        self.down = Conv(before, after, 2 * self.ratio, stride=self.ratio, rngs=rngs)

    def __call__(self, x: jax.Array, past: DownState, span: Span) -> tuple[jax.Array, DownState, Span]:
        x, residuals = _run_residuals(self.residuals, x, past.residuals, span)
        x, down = self.down(jax.nn.elu(x), past.down, span)
        return x, DownState(residuals, down), span.over(self.ratio)


class Decoder(nnx.Module):
    """Code vectors → waveform."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.channels[0]
        self.conv_in = Conv(config.dimension, width, config.kernel_size, rngs=rngs)
        self.lstm = LSTM(width, config.lstm_layers, rngs=rngs)
        self.stages = nnx.List(UpStage(i, config, rngs=rngs) for i in range(len(config.ratios)))
        self.conv_out = Conv(config.n_filters, 1, config.last_kernel_size, rngs=rngs)

    def step(self, state: DecoderState, x: jax.Array, lengths: jax.Array) -> tuple[DecoderState, jax.Array]:
        """One piece: x (B, F, D), of which the first `lengths` (B,) frames of a row are real → audio (B, hop · F).

        Audio beyond a row's length is meaningless; the row's state is the one after its length.
        """
        span = Span(~state.started, lengths)
        with jax.named_scope("decoder_in"):
            x, conv_in = self.conv_in(x, state.conv_in, span)
        with jax.named_scope("decoder_lstm"):
            x, lstm = self.lstm(x, state.lstm, span)
        stages = []
        for i, (stage, past) in enumerate(zip(self.stages, state.stages, strict=True)):
            with jax.named_scope(f"decoder_{i}"):
                x, past, span = stage(x, past, span)
            stages.append(past)
        with jax.named_scope("decoder_out"):
            x, conv_out = self.conv_out(jax.nn.elu(x), state.conv_out, span)
        started = state.started | (lengths > 0)
        return DecoderState(started, conv_in, lstm, tuple(stages), conv_out), x[..., 0]

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Whole clips: code vectors (B, F, D) → audio (B, hop · F). `lengths` (B,) int32 defaults to F for all."""
        lengths = jnp.full(x.shape[:1], x.shape[1], jnp.int32) if lengths is None else lengths
        return self.step(decoder_state(self.config, x.shape[0]), x, lengths)[1]


class Encoder(nnx.Module):
    """Waveform → vectors for the quantizer."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.conv_in = Conv(1, config.n_filters, config.kernel_size, rngs=rngs)
        self.stages = nnx.List(DownStage(i, config, rngs=rngs) for i in reversed(range(len(config.ratios))))
        width = config.channels[0]
        self.lstm = LSTM(width, config.lstm_layers, rngs=rngs)
        self.conv_out = Conv(width, config.dimension, config.last_kernel_size, rngs=rngs)

    def step(self, state: EncoderState, audio: jax.Array, lengths: jax.Array) -> tuple[EncoderState, jax.Array]:
        """One piece: audio (B, hop · F), of which the first `lengths` (B,) samples of a row are real → (B, F, D).

        A row's length that is no multiple of the hop ends the clip: its last frame is completed by reflection.
        Vectors beyond frame ceil(length / hop) are meaningless.
        """
        span = Span(~state.started, lengths)
        with jax.named_scope("encoder_in"):
            x, conv_in = self.conv_in(audio[..., None], state.conv_in, span)
        stages = []
        for i, (stage, past) in enumerate(zip(self.stages, state.stages, strict=True)):
            with jax.named_scope(f"encoder_{i}"):
                x, past, span = stage(x, past, span)
            stages.append(past)
        with jax.named_scope("encoder_lstm"):
            x, lstm = self.lstm(x, state.lstm, span)
        with jax.named_scope("encoder_out"):
            x, conv_out = self.conv_out(jax.nn.elu(x), state.conv_out, span)
        started = state.started | (lengths > 0)
        return EncoderState(started, conv_in, tuple(stages), lstm, conv_out), x

    def __call__(self, audio: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Whole clips: audio (B, N) → (B, ceil(N / hop), D). `lengths` (B,) int32 defaults to N for all."""
        rows, n = audio.shape
        lengths = jnp.full((rows,), n, jnp.int32) if lengths is None else lengths
        audio = jnp.pad(audio, ((0, 0), (0, -n % self.config.hop_length)))
        return self.step(encoder_state(self.config, rows), audio, lengths)[1]


class Quantizer(nnx.Module):
    """Residual vector quantizer; codebooks (Q, codebook_size, D). Each codebook quantizes what the last left over."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        shape = (config.n_codebooks, config.codebook_size, config.dimension)
        # A sum of all codebooks then has unit variance.
        self.codebooks = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) / config.n_codebooks**0.5)

    def encode(self, x: jax.Array) -> jax.Array:
        """Vectors (..., D) → codes (..., Q) int32: nearest by |x|² - 2 x·e + |e|², the first on a tie."""
        codes = []
        for table in self.codebooks[...]:
            squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
            distance = squares - matmul(2 * x, table) + jnp.sum(jnp.square(table), axis=-1)
            codes.append(jnp.argmin(distance, axis=-1).astype(jnp.int32))
            x = x - table[codes[-1]]
        return jnp.stack(codes, axis=-1)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes (..., up to Q) → sum of their vectors (..., D), in the codebooks' order. `ABSENT` adds nothing."""
        total = jnp.zeros((), jnp.float32)
        for table, code in zip(self.codebooks[...], jnp.moveaxis(codes, -1, 0), strict=False):
            total = total + jnp.where((code >= 0)[..., None], table[jnp.maximum(code, 0)], 0)
        return total


class Codec(nnx.Module):
    """Encoder, quantizer and decoder: a tree of float32 weights. Random weights unless a checkpoint fills it."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.quantizer = Quantizer(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def embed(self, codes: jax.Array) -> jax.Array:
        """Codes (B, up to Q, F) int32 → code vectors (B, F, D), the decoder's input. `ABSENT` adds nothing."""
        return self.quantizer.decode(codes.swapaxes(1, 2))

    def quantize(self, x: jax.Array) -> jax.Array:
        """The encoder's output (B, F, D) → codes (B, Q, F) int32."""
        return self.quantizer.encode(x).swapaxes(1, 2)


def start_frames(config: CodecConfig) -> int:
    """Frames a clip's first piece must hold (7 for EnCodec), unless the clip is shorter: the left padding mirrors them.

    The same number serves decoder and encoder.
    """
    rates = tuple(itertools.accumulate(config.ratios, lambda a, b: a * b))  # samples per frame after each stage
    needs = [(config.kernel_size - 1, 1), (config.last_kernel_size - 1, config.hop_length)]
    needs += [(config.last_kernel_size - 1, 1), (config.kernel_size - 1, config.hop_length)]
    for rate, units in zip(rates, config.residuals, strict=True):
        needs += [((config.residual_kernel_size - 1) * config.dilation_base**j, rate) for j in range(units)]
    needs += [(ratio, rate) for ratio, rate in zip(config.ratios, rates, strict=True)]
    return max(pad // rate + 1 for pad, rate in needs)


def _zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)  # always a new array: one shared zero could not be donated twice


def _residual_states(config: CodecConfig, rows: int, stage: int) -> tuple[ResidualState, ...]:
    """Of a stage of the decoder, or of what undoes it."""
    reach, width = config.residual_kernel_size - 1, config.channels[stage + 1]
    return tuple(
        ResidualState(_zeros(rows, reach * config.dilation_base**j, width)) for j in range(config.residuals[stage])
    )


def _lstm_states(config: CodecConfig, rows: int) -> tuple[LSTMState, ...]:
    width = config.channels[0]
    return tuple(LSTMState(_zeros(rows, width), _zeros(rows, width)) for _ in range(config.lstm_layers))


def decoder_state(config: CodecConfig, rows: int) -> DecoderState:
    """The state of `rows` clips that have not begun."""
    stages = []
    for i, ratio in enumerate(config.ratios):
        stages.append(UpState(_zeros(rows, ratio * config.channels[i + 1]), _residual_states(config, rows, i)))
    return DecoderState(
        started=jnp.zeros((rows,), bool),
        conv_in=_zeros(rows, config.kernel_size - 1, config.dimension),
        lstm=_lstm_states(config, rows),
        stages=tuple(stages),
        conv_out=_zeros(rows, config.last_kernel_size - 1, config.channels[-1]),
    )


def encoder_state(config: CodecConfig, rows: int) -> EncoderState:
    """The state of `rows` clips that have not begun."""
    stages = []
    for i, ratio in reversed(list(enumerate(config.ratios))):
        stages.append(DownState(_residual_states(config, rows, i), _zeros(rows, ratio, config.channels[i + 1])))
    return EncoderState(
        started=jnp.zeros((rows,), bool),
        conv_in=_zeros(rows, config.kernel_size - 1, 1),
        stages=tuple(stages),
        lstm=_lstm_states(config, rows),
        conv_out=_zeros(rows, config.last_kernel_size - 1, config.channels[0]),
    )


def decode_chunk(codec: Codec, state: DecoderState, codes: jax.Array) -> tuple[DecoderState, jax.Array]:
    """Decode the next piece of each row. Pure; to be jitted by the caller, with `state` donated.

    Args:
      codec: the weights.
      state: from `decoder_state` or an earlier piece.
      codes: (B, Q, C) int32. A frame whose codebook 0 is `ABSENT` lies beyond the row's end; such frames come last. A
        row without frames keeps its state, so rows may pause, and a row's pieces may differ in length. A clip's first
        piece must hold `start_frames` frames, or the whole clip.

    Returns:
      The new state, and audio (B, C · hop) float32; samples of absent frames are meaningless.
    """
    present = codes[:, :1] >= 0
    x = codec.embed(jnp.where(present, codes, ABSENT))
    return codec.decoder.step(state, x, jnp.sum(present, axis=(1, 2), dtype=jnp.int32))


def encode_chunk(
    codec: Codec, state: EncoderState, audio: jax.Array, lengths: jax.Array
) -> tuple[EncoderState, jax.Array]:
    """Encode the next piece of each row. Pure; to be jitted by the caller, with `state` donated.

    Args:
      codec: the weights.
      state: from `encoder_state` or an earlier piece.
      audio: (B, C · hop) float32, -1 to 1.
      lengths: (B,) int32, how many samples of each row are real. 0 keeps the row's state; a length that is no multiple
        of the hop ends the clip. A clip's first piece must hold `start_frames` frames, or the whole clip.

    Returns:
      The new state, and codes (B, Q, C) int32, `ABSENT` beyond frame ceil(length / hop).
    """
    state, x = codec.encoder.step(state, audio, lengths)
    frames = -(-lengths // codec.config.hop_length)
    present = jnp.arange(x.shape[1]) < frames[:, None]
    return state, jnp.where(present[:, None], codec.quantize(x), ABSENT)


# The weights cross the jit border as a flat list: walking the module tree at every piece would cost more than it saves.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode_chunk(
    tree: Any, weights: list[jax.Array], state: DecoderState, codes: jax.Array
) -> tuple[DecoderState, jax.Array]:
    return decode_chunk(jax.tree.unflatten(tree, weights), state, codes)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _encode_chunk(
    tree: Any, weights: list[jax.Array], state: EncoderState, audio: jax.Array, lengths: jax.Array
) -> tuple[EncoderState, jax.Array]:
    return encode_chunk(jax.tree.unflatten(tree, weights), state, audio, lengths)


def decode(
    codec: Codec,
    codes: np.ndarray | Sequence[np.ndarray],
    lengths: Sequence[int] | np.ndarray | None = None,
    *,
    chunk: int = CHUNK,
) -> np.ndarray | list[np.ndarray]:
    """Codes → waveform, as ``EncodecModel.decode`` of encodec 0.1.1.

    Compiles once per number of rows and `chunk`, whatever the lengths and the number of codebooks.

    Args:
      codec: the weights.
      codes: integers 0 to codebook_size - 1. One clip (Q, F); or a list of clips, each of its own length; or a padded
        batch (B, Q, F), whose values beyond `lengths` are ignored. Q may be less than the codec's number of codebooks:
        then the first Q are used. A clip of 0 frames gives 0 samples.
      lengths: frames of each row of a padded batch; default F. Only for (B, Q, F).
      chunk: frames per compiled piece, at least `start_frames`.

    Returns:
      Float32 audio (hop · F,) at the codec's sample rate, not clipped; a list of such arrays for a list or a batch.

    Raises:
      ValueError: codes of the wrong shape, type or range, lengths that do not fit, or a chunk that is too small.
    """
    config = codec.config
    _check_chunk(config, chunk)
    rows = [_check_codes(config, row, f"codes{where}") for row, where in _rows(codes, lengths, "codes", "(Q, F)", 2)]
    if not rows:
        return []
    longest = max(row.shape[1] for row in rows)
    padded = np.full((len(rows), config.n_codebooks, -(-longest // chunk) * chunk), ABSENT, np.int32)
    for target, row in zip(padded, rows, strict=True):
        target[: row.shape[0], : row.shape[1]] = row
    weights, tree = jax.tree.flatten(codec)
    state = beside(weights[0], decoder_state(config, len(rows)))
    pieces: list[jax.Array] = []
    for start in range(0, padded.shape[2], chunk):
        state, piece = _decode_chunk(tree, weights, state, padded[:, :, start : start + chunk])
        pieces.append(piece)
    audio = np.concatenate([np.zeros((len(rows), 0), np.float32), *map(np.asarray, pieces)], axis=1)
    clips = [out[: row.shape[1] * config.hop_length].copy() for out, row in zip(audio, rows, strict=True)]
    return clips[0] if _is_one(codes, 2) else clips


class Decoding:
    """`decode` of one clip whose codes arrive piece by piece: what each piece makes audible, and a state that does not
    grow. However the codes are cut, the audio is that of the whole within rounding (1e-5).

    Args:
      codec: the weights.
      chunk: frames per compiled piece, at least `start_frames`.
      rows: of the compiled program; the clip is its first row.
    """

    def __init__(self, codec: Codec, *, chunk: int = CHUNK, rows: int = 1):
        _check_chunk(codec.config, chunk)
        self._config, self._chunk, self._rows = codec.config, chunk, rows
        self._weights, self._tree = jax.tree.flatten(codec)
        self._state = beside(self._weights[0], decoder_state(codec.config, rows))
        self._waiting = np.zeros((codec.config.n_codebooks, 0), np.int32)
        self._least = start_frames(codec.config)

    def push(self, codes: np.ndarray, *, last: bool = False) -> np.ndarray:
        """The next codes (Q, f) int, f from 0 → audio (n,) float32; `last`: no more follow.

        A clip's first `start_frames` frames (7 for EnCodec) are heard together, all others at once.

        Raises:
          ValueError: as `decode`.
        """
        codes = _check_codes(self._config, np.asarray(codes), "codes")
        padded = np.full((self._config.n_codebooks, codes.shape[1]), ABSENT, np.int32)
        padded[: len(codes)] = codes
        self._waiting = np.concatenate([self._waiting, padded], axis=1)
        n = self._waiting.shape[1]
        if n < self._least and not last:
            return np.zeros(0, np.float32)
        self._least = 0
        pieces = [np.zeros(0, np.float32)]
        for start in range(0, n, self._chunk):
            part = self._waiting[:, start : start + self._chunk]
            batch = np.full((self._rows, self._config.n_codebooks, self._chunk), ABSENT, np.int32)
            batch[0, :, : part.shape[1]] = part
            self._state, audio = _decode_chunk(self._tree, self._weights, self._state, batch)
            pieces.append(np.asarray(audio[0, : part.shape[1] * self._config.hop_length]))
        self._waiting = self._waiting[:, n:]
        return np.concatenate(pieces)


def encode(
    codec: Codec,
    audio: np.ndarray | Sequence[np.ndarray],
    lengths: Sequence[int] | np.ndarray | None = None,
    *,
    chunk: int = CHUNK,
) -> np.ndarray | list[np.ndarray]:
    """Waveform → codes, as ``EncodecModel.encode`` of encodec 0.1.1 at the bandwidth of n_codebooks (8: 6 kbit/s).

    Compiles once per number of rows and `chunk`. Memory beyond the audio itself does not grow with the clip: the
    encoder is causal, so a clip goes through in pieces with carried state.

    Args:
      codec: the weights.
      audio: mono floating-point samples at the codec's sample rate, -1 to 1. One clip (N,), at least 1 sample; or a
        list of clips; or a padded batch (B, N), whose values beyond `lengths` are ignored.
      lengths: samples of each row of a padded batch; default N. Only for (B, N).
      chunk: frames per compiled piece, at least `start_frames`.

    Returns:
      Codes (Q, ceil(N / hop)) int32; a list of such arrays for a list or a batch.

    Raises:
      ValueError: audio of the wrong shape or type, empty, or not finite, lengths that do not fit, a chunk too small.
    """
    config = codec.config
    _check_chunk(config, chunk)
    rows = [_check_audio(row, f"audio{where}") for row, where in _rows(audio, lengths, "audio", "(N,)", 1)]
    if not rows:
        return []
    hop, size = config.hop_length, chunk * config.hop_length
    ends = np.array([len(row) for row in rows])
    weights, tree = jax.tree.flatten(codec)
    state = beside(weights[0], encoder_state(config, len(rows)))
    pieces: list[jax.Array] = []
    for start in range(0, int(ends.max()), size):
        piece = np.zeros((len(rows), size), np.float32)
        for target, row in zip(piece, rows, strict=True):
            part = row[start : start + size]
            target[: len(part)] = part
        real = np.clip(ends - start, 0, size).astype(np.int32)
        state, codes = _encode_chunk(tree, weights, state, piece, real)
        pieces.append(codes)
    codes = np.concatenate([np.asarray(codes) for codes in pieces], axis=2)
    clips = [out[:, : -(-len(row) // hop)].copy() for out, row in zip(codes, rows, strict=True)]
    return clips[0] if _is_one(audio, 1) else clips


def _is_one(value: Any, ndim: int) -> bool:
    return not isinstance(value, (list, tuple)) and np.ndim(value) == ndim


def _rows(value: Any, lengths: Any, name: str, form: str, ndim: int) -> list[tuple[np.ndarray, str]]:
    """Split one clip, a list of clips or a padded batch into clips, each with the index that names it in an error."""
    if isinstance(value, (list, tuple)):
        if lengths is not None:
            raise ValueError(f"lengths is given with a list of {name}: each item has its own; leave lengths out")
        return [(np.asarray(row), f"[{i}]") for i, row in enumerate(value)]
    value = np.asarray(value)
    if value.ndim == ndim:
        if lengths is not None:
            raise ValueError(f"lengths is given with a single clip of {name}: it belongs to a padded batch")
        return [(value, "")]
    if value.ndim != ndim + 1:
        raise ValueError(
            f"{name} has shape {value.shape}: it must be one clip {form}, a list of clips, or a batch with rows first"
        )
    longest = value.shape[-1]
    ends = np.full(len(value), longest) if lengths is None else np.asarray(lengths)
    if ends.shape != (len(value),) or ends.dtype.kind not in "iu":
        raise ValueError(f"lengths is {lengths!r}: it must hold one integer for each of the {len(value)} rows")
    for i, end in enumerate(ends):
        if not 0 <= end <= longest:
            raise ValueError(f"lengths[{i}] is {end}: it must be 0 to {longest}, the padded length of {name}")
    return [(row[..., :end], f"[{i}]") for i, (row, end) in enumerate(zip(value, ends, strict=True))]


def _check_chunk(config: CodecConfig, chunk: int) -> None:
    least = start_frames(config)
    if chunk < least:
        raise ValueError(f"chunk is {chunk}: it must be at least {least} frames, the reach of the padding at the start")


def _check_codes(config: CodecConfig, codes: np.ndarray, name: str) -> np.ndarray:
    if codes.ndim != 2 or not 1 <= codes.shape[0] <= config.n_codebooks:
        raise ValueError(f"{name} has shape {codes.shape}: it must be (Q, F) with 1 to {config.n_codebooks} codebooks")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {codes.dtype}: codes must be integers")
    if codes.size and (codes.min() < 0 or codes.max() >= config.codebook_size):
        raise ValueError(
            f"{name} holds values from {codes.min()} to {codes.max()}: codes must be 0 to {config.codebook_size - 1}"
        )
    return codes


def _check_audio(audio: np.ndarray, name: str) -> np.ndarray:
    if audio.ndim != 1:
        raise ValueError(f"{name} has shape {audio.shape}: it must be mono, (N,); mix channels down first")
    if audio.dtype.kind != "f":
        raise ValueError(
            f"{name} has dtype {audio.dtype}: samples must be floating point, -1 to 1; scale integers first"
        )
    if not len(audio):
        raise ValueError(f"{name} is empty: it must hold at least 1 sample")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds NaN or infinite samples: all must be finite")
    return audio
