"""Small random models made without torch, for tests that compare bark_jax with itself. Holds no tests."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bark_jax import bark, text, units, weights
from bark_jax.config import (
    BarkConfig,
    CoarseConfig,
    CodecConfig,
    FineConfig,
    FineGPTConfig,
    GPTConfig,
    SemanticConfig,
)
from bark_jax.weights import Weights

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"0123456789.,!?-'"]
WORDS += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
CODEC = CodecConfig(n_filters=4, dimension=16, codebook_size=64)


def config(size: tuple[int, int, int] = (2, 2, 32), **changes: object) -> BarkConfig:
    """A Bark of another family: a small vocabulary, codebooks of 64, short windows; the same rates."""
    vocabulary = 200
    offset = vocabulary + 2
    pad = offset + len(WORDS)
    made = BarkConfig(
        semantic=SemanticConfig(
            GPTConfig(*size, input_vocab_size=pad + 2, output_vocab_size=vocabulary + 1, block_size=256),
            text_length=32,
            text_offset=offset,
            text_pad_token=pad,
            infer_token=pad + 1,
            vocab_size=vocabulary,
            pad_token=vocabulary,
            max_tokens=224,
        ),
        coarse=CoarseConfig(
            GPTConfig(*size, input_vocab_size=340, output_vocab_size=340, block_size=256),
            semantic_length=64,
            semantic_pad_token=328,
            infer_token=329,
            code_offset=vocabulary,
            codebook_size=64,
            max_history=120,
            window=12,
        ),
        fine=FineConfig(
            FineGPTConfig(*size, input_vocab_size=66, output_vocab_size=66, block_size=128),
            codebook_size=64,
            pad_token=64,
            window=128,
            hop=64,
            max_history=64,
        ),
        codec=CODEC,
        fingerprint="test",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@functools.cache
def networks(made: BarkConfig, seed: int = 0) -> dict[str, Weights]:
    """Random weights, large enough that every input changes what comes out.

    Drawn by numpy: JAX would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)
    out = {}
    for network, module in weights.networks(made).items():
        tensors = {}
        for name, leaf in weights.names(module).items():
            if leaf.ndim == 1:
                value = np.full(leaf.shape, name.endswith(("weight",)), np.float32)
            elif network == "codec":
                value = rng.standard_normal(leaf.shape, np.float32) * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
            else:
                value = 0.16 * rng.standard_normal(leaf.shape, np.float32)
            tensors[name] = jnp.asarray(value)
        out[network] = Weights.of(weights.fill(module, tensors))
    return out


def tokenizer_json() -> str:
    return text.build_tokenizer(WORDS).to_str()


def model(made: BarkConfig | None = None, *, seed: int = 0, **options: object) -> bark.Bark:
    made = made or config()
    return bark.Bark(made, tokenizer_json(), networks(made, seed), **options)  # type: ignore[arg-type]


def save(folder: Path, made: BarkConfig | None = None, *, seed: int = 0) -> Path:
    made = made or config()
    weights.save(folder, made, tokenizer_json(), networks(made, seed))
    return folder


def voice(made: BarkConfig, n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """A random voice of `n` semantic tokens, as Suno's dictionary."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, made.codec.codebook_size, (made.codec.n_codebooks, round(n * 1.5)))
    return {
        "semantic_prompt": rng.integers(0, made.semantic.vocab_size, n),
        "coarse_prompt": fine[:2],
        "fine_prompt": fine,
    }


def zeros(shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


def save_with_units(folder: Path) -> Path:
    """A model whose semantic ids come 50 times a second, and that takes them from audio."""
    made = config()
    made = dataclasses.replace(
        made,
        semantic=dataclasses.replace(made.semantic, rate_hz=50.0),
        coarse=dataclasses.replace(made.coarse, semantic_rate_hz=50.0),
    )
    save(folder, made)
    sizes = units.UnitsConfig(width=16, n_blocks=3, n_mels=20, n_units=made.semantic.vocab_size)
    units.save(folder / "units.safetensors", sizes, weights.names(units.LogMelUnits(sizes, rngs=nnx.Rngs(0))))
    return folder


def check_copies(hlo: str, shape: tuple[int, ...], n_layer: int) -> None:
    """No copy, transpose or conversion as large as a cache, and each buffer updated in place exactly once."""
    size = f"f32[{','.join(map(str, shape))}]"
    made = [
        (match.group(1), match.group(2))
        for match in re.finditer(rf"%(\S+) = {re.escape(size)}\S* ([\w-]+)\(", hlo)
        if match.group(2) not in ("parameter", "get-tuple-element", "bitcast")
    ]
    updates = [name for name, op in made if "dynamic-update-slice" in name or op == "dynamic-update-slice"]
    entry = [name for name, op in made if op == "fusion" and "dynamic-update-slice" in name]
    others = [item for item in made if item[0] not in updates]
    assert not others, others
    assert len(entry or updates) >= 2 * n_layer
    assert "input_output_alias" in hlo  # the donated state is really reused
