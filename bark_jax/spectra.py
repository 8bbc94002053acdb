"""Spectra of batches of audio: differentiable, as `jax.numpy.fft` computes them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=32)
def _window(size: int) -> np.ndarray:
    """(size,): a Hann window, scaled so that noise of variance 1 has a spectrum of mean square 1."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return (window / np.sqrt(np.sum(window**2))).astype(np.float32)


def to_mel(hz: float | np.ndarray) -> np.ndarray:
    """Hz on the Slaney mel scale: linear up to 1 kHz, which is 15, then 27 for each factor of 6.4."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1) / 1000) / np.log(6.4))


@functools.lru_cache(maxsize=32)
def mel_filters(size: int, n_mels: int, sample_rate: int) -> np.ndarray:
    """(size / 2 + 1, n_mels): triangles of area 1 on the Slaney mel scale, 0 Hz to half the rate."""

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = to_hz(np.linspace(0, to_mel(sample_rate / 2), n_mels + 2))
    bins = np.linspace(0, sample_rate / 2, size // 2 + 1)[:, None]
    rise = (bins - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins) / np.diff(edges)[1:]
    triangles = np.maximum(0, np.minimum(rise, fall))
    return (triangles / np.maximum(triangles.sum(axis=0), 1e-8)).astype(np.float32)


def stft(audio: jax.Array, size: int, hop: int) -> tuple[jax.Array, jax.Array]:
    """(B, N) → real and imaginary parts (B, 1 + (N - size) // hop, size / 2 + 1); no padding."""
    count = 1 + (audio.shape[1] - size) // hop
    if size % hop:
        raise ValueError(f"hop is {hop}: it must divide the window, {size}")
    # Frames as size / hop shifted views of blocks of `hop`: no gather, and the gradient is a sum of slices.
    blocks = audio[:, : (count - 1 + size // hop) * hop].reshape(len(audio), -1, hop)
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(size // hop)], axis=-1)
    spectrum = jnp.fft.rfft(frames * _window(size), axis=-1)
    return spectrum.real, spectrum.imag


def mel(audio: jax.Array, size: int, hop: int, n_mels: int, sample_rate: int) -> jax.Array:
    """(B, N) → (B, frames, n_mels): magnitudes."""
    real, imaginary = stft(audio, size, hop)
    magnitude = jnp.sqrt(jnp.square(real) + jnp.square(imaginary) + 1e-12)
    return magnitude @ jnp.asarray(mel_filters(size, n_mels, sample_rate))


def log_mel(audio: jax.Array, size: int, hop: int, n_mels: int, sample_rate: int) -> jax.Array:
    """(B, N) → (B, frames, n_mels): natural logarithms of magnitudes, not below that of 1e-5."""
    return jnp.log(jnp.maximum(mel(audio, size, hop, n_mels, sample_rate), 1e-5))
