"""A tiny model with Suno's exact ids, codes and vocabulary size, made without torch. Holds no tests.

Its semantic stage stops after 40 tokens (0.8 s) and its codec is simple, so that whole utterances cost little.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np

from bark_jax import Speech, config, text, weights
from bark_jax.config import BarkConfig, CodecConfig
from bark_jax.voice import Voice

MAX_TOKENS = 40
N_FRAMES = 60
"""What `MAX_TOKENS` semantic tokens become."""
NAMES = ["v2/de_speaker_3", "v2/en_speaker_6"]


def made() -> BarkConfig:
    codec = CodecConfig(n_filters=4, dimension=8, ratios=(20, 16), lstm_layers=1)
    whole = config.suno((1, 1, 16), codec=codec)
    return dataclasses.replace(whole, semantic=dataclasses.replace(whole.semantic, max_tokens=MAX_TOKENS))


@functools.cache
def tokenizer_json() -> str:
    """119,547 tokens: what BERT needs, the letters of the tests' texts, and made-up words."""
    letters = [chr(c) for c in (*range(33, 127), *range(0xA1, 0x180), 0x266A)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return text.build_tokenizer([*words, *(f"word{i}" for i in range(119_547 - len(words)))]).to_str()


def voice(seed: int = 0) -> Voice:
    """A random voice in the ranges of Suno's presets."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 1024, (8, 90))
    return Voice(rng.integers(0, 10_000, 60), fine[:2], fine)


def speech(**changes: object) -> Speech:
    """A speech that no model made, of 60 frames."""
    made = voice()
    audio = (0.5 * np.sin(np.arange(90 * 320) / 20)).astype(np.float32)
    parts = {"semantic": made.semantic, "coarse": made.coarse, "fine": made.fine}
    given = dict(audio=audio, sample_rate=24_000, text="Hi <you>", seed=7, ended=True, rows=1, **parts)
    return Speech(**{**given, **changes})  # type: ignore[arg-type]


def write(folder: Path, config: BarkConfig, tokenizer_json: str) -> Path:
    """A native checkpoint of random weights, drawn by numpy: JAX would compile a program for every shape."""
    rng = np.random.default_rng(0)
    with weights.Writer(folder, config, tokenizer_json) as writer:
        for network, module in weights.networks(config).items():
            tensors = {}
            for name, leaf in weights.names(module).items():
                scale = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if network == "codec" else 1.0
                tensors[name] = np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)
            writer.write(network, tensors)
    return folder


def save(folder: Path) -> Path:
    """The model as a native checkpoint, with two voices named like Suno's."""
    write(folder, made(), tokenizer_json())
    (folder / "voices" / "v2").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        voice(seed).save(folder / "voices" / f"{name}.npz")
    return folder
