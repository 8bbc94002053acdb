"""Weights to start training from, with in them what would else take long to be found out.

The codec: the layers next to the waveform are a filter bank. The encoder's first large convolution takes cosines and
sines of a mel scale of frequencies out of each window, the decoder's last one sums such waves up, and the residual
units between them begin as nothing but their shortcuts. So no step is spent on finding out what a frequency is
(`benchmarks/NOTES.md`, "The codec that works at the frame rate").

The GPTs: positions know where to look. What a position speaks of lies, but for the speed of speech, at a known place of
its prompt: `places`. The position tables are sines of that place, and heads of the first two layers look for like
places, near and wide, and for neighbours. Nothing is fixed by that: it is where learning starts. A trained network may
begin again with more blocks, as what it was: `deeper`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bark_jax import tokens
from bark_jax.config import BarkConfig, CodecConfig

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


# --- the GPTs ---------------------------------------------------------------------------------------------------------

LEVEL, SHARPNESS = 0.07, 6.0
"""Size of the sines in the position tables (embeddings have 0.02), and logits by which a head prefers its place."""
NORMED = 1.5
"""Size of the sines after a layer norm."""
N_FREQUENCIES = 16


def gpt(tensors: Tensors, config: BarkConfig, network: str, pieces_per_unit: float) -> Tensors:
    """A GPT's tensors, of random weights, with positions that know where to look.

    Args:
      tensors: by name, as `bark_jax.weights.names` gives them; not changed.
      network: "semantic", "coarse" or "fine".
      pieces_per_unit: ids of a text for one semantic id.
    """
    made: Tensors = {name: np.array(x, np.float32) for name, x in tensors.items()}
    tables = places(config, network, pieces_per_unit)
    n = 2 * N_FREQUENCIES
    for name in ("wte.weight", "wtes.weight"):
        if name in made:
            made[name][..., : len(tables) * n] = 0.0
    for i, table in enumerate(tables):
        made["wpe.weight"][:, i * n : (i + 1) * n] = LEVEL * sines(table)
    n_head = getattr(config, network).network.n_head
    for layer in (0, 1):
        linear = made[f"blocks.{layer}.attn.c_attn.weight"]
        heads = linear.reshape(3, n_head, -1, linear.shape[1])
        for head, (asked, held, offset, reach) in enumerate(HEADS[network]):
            query, key = looks(offset, reach, heads.shape[2])
            for matrix, part, table in ((heads[0, head], query, asked), (heads[1, head], key, held)):
                matrix[:] = 0.0
                matrix[:n, table * n : (table + 1) * n] = part
    return made


def deeper(tensors: Tensors, n_layer: int) -> Tensors:
    """A trained GPT with more blocks that computes what it did: learning goes on in a larger network.

    The new blocks come between the others, evenly. Each starts as its lower neighbour, but for its two projections back
    into the residual stream, which are zero: it adds nothing yet, and has something to add at once.

    Args:
      tensors: by name, as `bark_jax.weights.names` gives them; not changed.
      n_layer: blocks wanted, as many as there are or more.
    """
    n = n_blocks(tensors)
    made = {name: x for name, x in tensors.items() if not name.startswith("blocks.")}
    before = -1
    for layer in range(n_layer):
        source = layer * n // n_layer
        for name, x in tensors.items():
            if name.startswith(prefix := f"blocks.{source}."):
                adds = name.endswith(".c_proj.weight") and source == before
                made[f"blocks.{layer}.{name[len(prefix) :]}"] = np.zeros_like(x) if adds else x
        before = source
    return made


def n_blocks(names: Iterable[str]) -> int:
    """Blocks of a GPT with tensors of these names."""
    return len({name.split(".")[1] for name in names if name.startswith("blocks.")})


ASKED, HELD, STEP = 0, 1, 2
HEADS = {
    "semantic": (
        (ASKED, HELD, 0.0, 0.8),
        (ASKED, HELD, 0.0, 4.0),
        (ASKED, HELD, 1.2, 1.0),
        (ASKED, HELD, -1.0, 0.7),
        (STEP, STEP, -1.0, 0.5),
        (STEP, STEP, -3.0, 1.5),
    ),
    "coarse": (
        (ASKED, HELD, 0.0, 0.6),
        (ASKED, HELD, 1.5, 1.5),
        (STEP, STEP, -1.0, 0.5),
        (STEP, STEP, -3.0, 1.5),
    ),
    "fine": tuple((0, 0, offset, reach) for offset, reach in ((-1.0, 0.5), (1.0, 0.5), (-3.0, 2.0), (3.0, 2.0))),
}
"""Of each network the heads that start with something to look at: which of `places` its queries and its keys have, how
far on, how wide. Those that are not named start at random."""


def places(config: BarkConfig, network: str, pieces_per_unit: float) -> tuple[np.ndarray, ...]:
    """For each position, NaN where it has none: the place it asks for and the place it holds, in what is read (ids of
    the text, semantic ids), and its place among the positions that are drawn. The fine network has only this one.
    """
    i = np.arange(getattr(config, network).network.block_size, dtype=float)
    if network == "fine":
        return (i,)
    if network == "semantic":
        n_read, ratio = config.semantic.text_length, pieces_per_unit
    else:
        n_read, ratio = config.coarse.semantic_length, 1 / tokens.coarse_ratio(config.coarse)
    read = i < n_read
    return np.where(read, i, ratio * (i - n_read)), np.where(read, i, np.nan), np.where(read, np.nan, i - n_read)


def frequencies() -> np.ndarray:
    """Radians per place, periods of 3 to 1,500 places."""
    return 2 * np.pi / np.geomspace(3, 1500, N_FREQUENCIES)


def sines(place: np.ndarray) -> np.ndarray:
    """Cosines, then sines of the places (T,) → (T, 2 · N_FREQUENCIES); zeros for NaN."""
    phase = place[:, None] * frequencies()
    return np.nan_to_num(np.concatenate([np.cos(phase), np.sin(phase)], axis=1))


def looks(offset: float, reach: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys (2 · N_FREQUENCIES)² on `sines`, whose products are largest `offset` places on.

    Products over the root of `size` are `SHARPNESS` there, and fall like a bell of width `reach`, as far as the sines'
    frequencies make one.
    """
    omega = frequencies()
    gain = np.exp(-0.5 * (omega * reach) ** 2) * omega  # a Gaussian's spectrum, over frequencies that are a scale
    gain = np.sqrt(gain / gain.sum() * SHARPNESS * np.sqrt(size)) / NORMED
    turn = omega * offset
    cos, sin = np.diag(gain * np.cos(turn)), np.diag(gain * np.sin(turn))
    key = np.diag(np.concatenate([gain, gain]))
    # The query of place p is the key of place p + offset: cosine and sine of a sum.
    return np.block([[cos, -sin], [sin, cos]]), key
