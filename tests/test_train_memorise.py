"""What is trained comes out: a tiny model learns eight rows by heart, and greedy generation says them exactly.

This goes through everything at once: rows in files, batches, loss, optimizer, checkpoints, the product, the generator's
caches and windows, and the end of speech. A position, pad or target that is off by one shows here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("grain")
pytest.importorskip("pyarrow")

import jax.numpy as jnp
import safetensors.numpy

import models
from bark_jax import Voice, bark, tokens, weights
from bark_jax.flat import Weights
from bark_jax.hub import STAGES
from bark_jax.settings import Sampling
from bark_jax.train import TrainConfig, train, write

CONFIG = models.config((2, 2, 64))
LENGTHS = [1, 5, 32, 70, 33, 60, 90, 17]
"""Semantic ids: one window of the coarse stage and many, one of the fine stage and two."""
STEPS = {"text": 400, "coarse": 500, "fine": 800}


def rows() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    words = "the quick brown fox jumps over a lazy dog".split()
    made = []
    for i, n in enumerate(LENGTHS):
        codes = rng.integers(0, 64, (8, tokens.n_frames(CONFIG.coarse, n)))
        said = rng.integers(0, 200, n)
        made.append(
            dict(id=str(i), text=" ".join(words[i : i + 2]), voice="ab"[i % 2], split="train", semantic=said,
                 coarse=codes[:2], fine=codes)
        )  # fmt: skip
    return made


@pytest.mark.parametrize("stage", list(STAGES))
def test_eight_rows_are_learnt_by_heart(stage: str, tmp_path: Path) -> None:
    some = rows()
    write(tmp_path / "data", some)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "tokenizer.json").write_text(models.tokenizer_json())
    result = train(
        TrainConfig(
            stage=stage,
            data=(str(tmp_path / "data"),),
            out=str(tmp_path / "run"),
            config=str(tmp_path / "config.json"),
            tokenizer=str(tmp_path / "tokenizer.json") if stage == "text" else None,
            steps=STEPS[stage],
            batch=8,
            learning_rate=3e-3,
            warmup=20,
            weight_decay=0.0,
            bucket=64,
            save_every=10_000,
        ),
        progress=False,
    )
    network = STAGES[stage]
    learnt = {name: jnp.asarray(tensor) for name, tensor in safetensors.numpy.load_file(result.product).items()}
    module = weights.fill(weights.networks(CONFIG)[network], learnt)
    model = bark.Bark(CONFIG, models.tokenizer_json(), {**models.networks(CONFIG), network: Weights.of(module)})
    for i, row in enumerate(some):
        voice = None
        if i % 2:  # every second row in the voice of another clip of its speaker
            other = some[5] if i != 5 else some[3]
            voice = Voice(other["semantic"], other["fine"][:2], other["fine"], model="test")  # type: ignore[arg-type, index]
        how = Sampling.greedy()
        if stage == "text":
            said = model.text_to_semantic(row["text"], voice=voice, sampling=how)
            np.testing.assert_array_equal(said, row["semantic"], err_msg=f"row {i}: {len(said)} ids")
        elif stage == "coarse":
            np.testing.assert_array_equal(
                model.semantic_to_coarse(row["semantic"], voice=voice, sampling=how), row["coarse"], err_msg=f"row {i}"
            )
        else:
            np.testing.assert_array_equal(
                model.coarse_to_fine(row["coarse"], voice=voice, sampling=how), row["fine"], err_msg=f"row {i}"
            )
