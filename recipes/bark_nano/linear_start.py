"""Weights to start the codec's training from: a linear transform that already carries the waveform.

Each down-sampling layer of the encoder gathers the samples of its window and keeps their principal components; the
decoder's layers go the same way back. So the untrained network is a block transform coder: what does not fit into the
code vectors is lost, all else is nearly exact. Training then improves on it, where random weights must first find any
waveform at all (`benchmarks/NOTES.md`, "The codec's first weights").

A layer's first channels carry the components; the others are free, and random. The carrying channels are small, so that
ELU is nearly the identity for them.
"""

from __future__ import annotations

import math

import numpy as np

from bark_jax.config import CodecConfig

PEAK = 0.3
"""Of the first component in every layer: ELU's distortion of it is a seventh at the peaks, little elsewhere."""
FREE = 0.3
"""Share of a layer's channels that carry nothing at first."""
FREE_VECTOR = 0.125
"""The same of the code vectors."""
FREE_GAIN = 5.0
"""Of the encoder's first layer in its free channels: brings speech to where ELU is not linear."""

Tensors = dict[str, np.ndarray]


def linear_start(tensors: Tensors, config: CodecConfig, audio: np.ndarray) -> Tensors:
    """The codec's tensors, of random weights, changed to carry the waveform.

    Args:
      tensors: by name, as `bark_jax.weights.names` gives them; not changed.
      audio: (B, N) speech, whole frames; its principal components are the ones kept.
    """
    made = {name: np.array(x, np.float32) for name, x in tensors.items()}
    ratios = tuple(reversed(config.ratios))
    x = np.asarray(audio, np.float64).reshape(-1, 1)
    kept, bases, gains = [1], [], [_gain(x)]
    for i, ratio in enumerate(ratios):
        x = x.reshape(-1, ratio * kept[-1])
        bases.append(_components(x, int((1 - FREE) * config.n_filters * 2 ** (i + 1))))
        x = x @ bases[-1]
        kept.append(x.shape[1])
        gains.append(_gain(x))
    last = _components(x, int((1 - FREE_VECTOR) * config.dimension))
    vector_gain = math.sqrt(config.dimension / np.mean(np.sum(np.square(x @ last), axis=1)))  # mean square of 1

    weight = made["encoder.conv_in.weight"]
    weight *= FREE_GAIN
    _carry(weight, gains[0] * np.ones((1, 1, 1)))
    weight = made["decoder.conv_out.weight"]
    _carry(weight, np.ones((1, 1, 1)) / gains[0])
    for i, (ratio, basis) in enumerate(zip(ratios, bases, strict=True)):
        down, up = f"encoder.stages.{i}", f"decoder.stages.{len(ratios) - 1 - i}"
        gain = gains[i + 1] / gains[i]
        _carry(made[f"{down}.down.weight"], gain * basis.reshape(ratio, kept[i], kept[i + 1]))
        back = basis.T.reshape(kept[i + 1], ratio, kept[i]) / gain
        weight = made[f"{up}.up.weight"]  # (C_in, K, C_out): an input's own outputs are the kernel's first half
        weight[..., : kept[i]] = 0
        weight[: kept[i + 1], :ratio, : kept[i]] = back
        _pass_residuals(made, down, kept[i])
        _pass_residuals(made, up, kept[i])
    _carry(made["encoder.conv_out.weight"], last[None] * (vector_gain / gains[-1]))
    _carry(made["decoder.conv_in.weight"], last.T[None] * (gains[-1] / vector_gain))
    for name in made:
        if ".lstm." in name and ".weight" in name:
            width = made[name].shape[1]
            made[name][2 * width : 2 * width + kept[-1]] = 0  # the cells' inputs: nothing is added to what passes by
    return made


def _gain(x: np.ndarray) -> float:
    """What brings the first component's peaks to `PEAK`."""
    return float(PEAK / np.quantile(np.abs(x[:, 0]), 0.999))


def _components(x: np.ndarray, count: int) -> np.ndarray:
    """(D, up to `count`) principal directions of x (N, D)."""
    _, vectors = np.linalg.eigh(x.T @ x / len(x))
    return vectors[:, ::-1][:, :count]


def _carry(weight: np.ndarray, wanted: np.ndarray) -> None:
    """Let a convolution's weight (K, C_in, C_out) be `wanted` (k, c_in, c_out) in its last taps and first channels, and
    let nothing else come into those channels.
    """
    taps, n_in, n_out = wanted.shape
    weight[..., :n_out] = 0
    weight[-taps:, :n_in, :n_out] = wanted


def _pass_residuals(made: Tensors, stage: str, carrying: int) -> None:
    """Let the residual units of a stage leave the carrying channels alone."""
    j = 0
    while (unit := f"{stage}.residuals.{j}") + ".shortcut.weight" in made:
        made[f"{unit}.shortcut.weight"][0] = np.eye(made[f"{unit}.shortcut.weight"].shape[1])
        made[f"{unit}.conv2.weight"][..., :carrying] = 0
        j += 1
