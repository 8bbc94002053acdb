"""How well the codec's first codes can be foretold, while it is trained: `train_codec --foretold`.

    units ─▶ what is said around a frame ─┬──────────────────────▶ likelihoods of its first code
    mean and spread of the vectors ───────┘        │
    codes of the frames before, its first code ────┴─────────────▶ likelihoods of its second code

The coarse stage must draw the first two codes of a frame from units and a voice. What it cannot know it draws by
chance, and a codec is free to put what nobody hears, such as where in its frame a wave begins, into just these codes
(`benchmarks/NOTES.md`, "What the codes say that nobody hears"). So a small network, a stand-in for the coarse stage,
learns along with the codec, and the encoder pays for what that network could not foretell.

The network sees no earlier frame for the first code: what a first code tells should follow from what is said and by
whom. How a wave goes on from the frame before is for the second.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bark_jax.gpt import LayerNorm
from bark_jax.units import Convolution

N_BOOKS = 2
"""Codebooks that are foretold: those of the coarse stage."""
NEAR = 0.3
"""How far around a vector codes are taken to have had a chance, in usual squared distances to the nearest one."""


class Block(nnx.Module):
    """x → x + out(gelu(conv(norm(x)))), over the frame and those before it, or over those around it."""

    def __init__(self, width: int, kernel: int, *, dilation: int = 1, causal: bool, rngs: nnx.Rngs):
        self.shift = dilation * (kernel // 2) if causal else 0
        self.norm = LayerNorm(width, bias=True)
        self.conv = Convolution(width, 2 * width, kernel, dilation=dilation, rngs=rngs)
        self.out = Convolution(2 * width, width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = later(self.norm(x), self.shift)
        return x + self.out(jax.nn.gelu(self.conv(y), approximate=True))


def later(x: jax.Array, frames: int) -> jax.Array:
    """(B, F, C) with zeros first, and as many frames less at the end."""
    return jnp.pad(x, ((0, 0), (frames, 0), (0, 0)))[:, : x.shape[1]]


class Foreteller(nnx.Module):
    """What is known → logits of the first codes.

    Args:
      n_units: ids of units.
      n_codes: codes of a codebook.
      dimension: numbers of a codebook's vector.
    """

    def __init__(self, n_units: int, n_codes: int, dimension: int, *, width: int = 256, rngs: nnx.Rngs):
        def linear(n_in: int, n_out: int) -> Convolution:
            return Convolution(n_in, n_out, 1, rngs=rngs)

        def blocks(kernel: int, dilations: tuple[int, ...], *, causal: bool) -> nnx.List:
            return nnx.List(Block(width, kernel, dilation=n, causal=causal, rngs=rngs) for n in dilations)

        self.units = nnx.Param(0.5 * jax.random.normal(rngs.params(), (n_units, width), jnp.float32))
        self.voice = linear(2 * dimension, width)
        self.around = blocks(5, (1, 2), causal=False)
        self.frame = blocks(3, (1, 1), causal=False)
        self.first = linear(width, n_codes)
        self.before = linear(2 * dimension, width)
        self.now = linear(dimension, width)
        self.past = blocks(3, (1, 2, 4, 8), causal=True)
        self.norms = nnx.List([LayerNorm(width, bias=True), LayerNorm(width, bias=True)])
        self.second = linear(width, n_codes)

    def __call__(self, units: jax.Array, voice: jax.Array, vectors: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
        """Logits (B, F, K) of each codebook.

        Args:
          units: (B, T) int32, of the same time as the F frames.
          voice: (B, 2 D).
          vectors: (B, F, D) of the frames' own codes, of each codebook; a frame's first is known to its second.
        """
        said = self.units[...][units]
        for block in self.around:
            said = block(said)
        frames = vectors[0].shape[1]
        known = said[:, jnp.arange(frames) * units.shape[1] // frames] + self.voice(voice[:, None])
        for block in self.frame:
            known = block(known)
        x = known + self.before(later(jnp.concatenate(vectors, axis=-1), 1)) + self.now(vectors[0])
        for block in self.past:
            x = block(x)
        return [self.first(self.norms[0](known)), self.second(self.norms[1](x))]


def voice_of(x: jax.Array) -> jax.Array:
    """(B, F, D) → (B, 2 D), mean and spread over the frames."""
    return jnp.concatenate([jnp.mean(x, axis=1), jnp.std(x, axis=1)], axis=-1)


def unforetold(left: jax.Array, table: jax.Array, share: jax.Array, logits: jax.Array) -> jax.Array:
    """What codes tell less what they cost, for the encoder to lower: the mean of log share - log likelihood, over codes
    by their nearness to the vectors, so that there is a gradient (after entropy-constrained vector quantization: Chou,
    Lookabaugh and Gray, IEEE Transactions on Acoustics, Speech and Signal Processing 37, 1989).

    Without log share, codebooks would collapse: a code that is always used is foretold best.

    Args:
      left: (B, F, D), what a codebook is given.
      table: (K, D).
      share: (K,), how often each code is used; sums to 1.
      logits: (B, F, K). No gradient goes to what made them.
    """
    distance = (
        jnp.sum(jnp.square(left), axis=-1, keepdims=True)
        + jnp.sum(jnp.square(table), axis=-1)
        - 2 * jnp.dot(left, table.T, precision="highest")
    )
    usual = lax.stop_gradient(jnp.mean(jnp.min(distance, axis=-1)))
    near = jax.nn.softmax(-distance / (NEAR * usual), axis=-1)
    known = jax.nn.log_softmax(lax.stop_gradient(logits), axis=-1)
    return jnp.mean(jnp.sum(near * (jnp.log(share + 1e-9) - known), axis=-1))


def surprise(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Mean nats of codes (B, F), for the network to lower."""
    known = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.mean(jnp.take_along_axis(known, codes[..., None], axis=-1))
