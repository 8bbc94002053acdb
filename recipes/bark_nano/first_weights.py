"""Weights to start the codec's training from: the layers next to the waveform are a filter bank.

The encoder's first large convolution takes cosines and sines of a mel scale of frequencies out of each window, the
decoder's last one sums such waves up, and the residual units between them begin as nothing but their shortcuts. So no
step is spent on finding out what a frequency is (`benchmarks/NOTES.md`, "The codec that works at the frame rate").
"""

from __future__ import annotations

import numpy as np

from bark_jax.config import CodecConfig

LOWEST_HZ, HIGHEST = 40.0, 0.92
"""Frequencies of the bank: the lowest, and the highest as a share of half the sample rate."""
IN_GAIN, OUT_GAIN, TAPS, RESIDUAL = 2.0, 0.3, 0.05, 0.3
"""Sizes that gave the encoder's layers about 1 and the decoder's output about speech's level, by trial."""

Tensors = dict[str, np.ndarray]


def first_weights(tensors: Tensors, config: CodecConfig, *, seed: int = 0) -> Tensors:
    """The codec's tensors, of random weights, with the filter bank in them.

    Args:
      tensors: by name, as `bark_jax.weights.names` gives them; not changed.
    """
    made: Tensors = {name: np.array(x, np.float32) for name, x in tensors.items()}
    rng = np.random.default_rng(seed)
    for name, x in made.items():
        if name.endswith(".shortcut.weight"):
            x[0] = np.eye(x.shape[1])
        elif ".residuals." in name and name.endswith(".conv2.weight"):
            x *= RESIDUAL
    ratio, filters, width = config.ratios[-1], config.channels[-1], config.channels[-2]
    # Each filter has a twin of the other sign: together they pass through ELU what either loses below zero.
    signs = np.where(np.arange(filters) % 2 == 0, 1.0, -1.0)
    waves, weight = filter_bank(width, ratio, config.sample_rate)
    scale = 1 / np.sqrt(ratio * filters)
    made["encoder.stages.0.down.weight"] = IN_GAIN * scale * waves.T[:, None] * signs[:, None]
    up = OUT_GAIN * scale * (waves * weight[:, None])[..., None] * signs
    made[f"decoder.stages.{len(config.ratios) - 1}.up.weight"] = up
    for name, at in (("encoder.conv_in", (-1, 0)), ("decoder.conv_out", (-1, slice(None), 0))):
        x = TAPS * rng.standard_normal(made[f"{name}.weight"].shape)
        x[at] += signs
        made[f"{name}.weight"] = x
    return {name: x.astype(np.float32) for name, x in made.items()}


def filter_bank(width: int, ratio: int, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Waves (width, 2 · ratio): cosines, then sines, under a sine window; and their weights (width,) in a sum.

    The weights make up for the distances between neighbouring frequencies; their mean square is 1.
    """
    n_cosines = -(-width // 2)
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, HIGHEST * sample_rate / 2))
    hz = 700 * (10 ** (np.linspace(low, high, n_cosines) / 2595) - 1)
    n = np.arange(2 * ratio)
    phase = 2 * np.pi * hz[:, None] * (n - ratio) / sample_rate
    window = np.sin(np.pi * (n + 0.5) / (2 * ratio))
    weight = np.sqrt(np.gradient(hz) / np.gradient(hz).mean()) if n_cosines > 1 else np.ones(1)
    waves, weights = np.concatenate([np.cos(phase), np.sin(phase)]) * window, np.concatenate([weight, weight])
    return waves[:width], weights[:width]
