"""Fine-tuning a model: one run of the trainer per stage, then one model or one adapter out of them.

    model, rows ─ check all stages ─▶ train coarse, fine, text ─▶ out/adapter.safetensors, or out/model/

Defaults for real Bark and 5 to 30 minutes of one speaker; everything else is `TrainConfig`'s. A run that was stopped
goes on where it was when it is started again in the same folder: stages that are complete are not trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bark_jax import adapters, assemble, library, text
from bark_jax.config import BarkConfig, ConfigError
from bark_jax.train import data as rows
from bark_jax.train.config import LoRA, TrainConfig
from bark_jax.train.examples import STAGES
from bark_jax.train.loop import Result, train

STEPS = {"coarse": 500, "fine": 200, "text": 200}
"""Updates of 16 rows for a speaker of 5 to 30 minutes. The coarse stage carries most of a voice; the text stage gets
few, because it soon forgets its tags."""

ORDER = ("coarse", "fine", "text")
"""Most useful first, should the time not suffice for all."""


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuning left.

    Attributes:
      folder: where everything is; one run folder per stage in it.
      product: ``adapter.safetensors`` for `load(adapters=...)`, or ``model``, a folder for `load`.
      runs: stage → how its run ended.
    """

    folder: Path
    product: Path
    runs: dict[str, Result]


def finetune(
    model: str | Path,
    data: Sequence[str],
    out: str | Path,
    *,
    stages: Sequence[str] = ("coarse", "fine"),
    lora: LoRA | None = None,
    steps: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Tuned:
    """Fine-tune stages of a model on rows.

    Args:
      model: a native folder, a folder of published weights, or a hub id, as for `bark_jax.load`.
      data: Parquet files or folders of them, see `bark_jax.train.data`.
      out: folder of the result. If it holds an unfinished fine-tuning with the same settings, that is continued.
      stages: of "text", "coarse", "fine". The first needs texts; the other two only audio tokens.
      lora: train adapters; None trains all weights of the stages.
      steps: updates of each stage; None: `STEPS`.
      progress: report on stderr.
      settings: any other field of `TrainConfig`, for all stages.

    Raises:
      ConfigError: a setting that is unknown or out of range, or a stage that is unknown or named twice.
      DataError: rows that a stage cannot use. All stages are checked before the first is trained.
      Everything that `train` raises.
    """
    chosen = _stages(stages)
    out = Path(out)
    folder, _ = library.locate(model)
    config = BarkConfig.load(folder / "config.json")
    plans = {}
    for stage in chosen:
        tree: dict[str, Any] = {"steps": STEPS[stage] if steps is None else steps, "lora": lora, **settings}
        own = {"stage", "data", "out", "model", "config", "tokenizer"} & set(settings)
        if own:
            raise ConfigError(f"{', '.join(sorted(own))}: given by the other arguments, not among the settings")
        known = set(TrainConfig.__dataclass_fields__)
        if unknown := sorted(set(tree) - known):
            raise ConfigError(f"unknown setting(s) {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
        plans[stage] = TrainConfig(stage=stage, model=str(folder), data=tuple(data), out=str(out / stage), **tree)
    tokenizer = text.load_tokenizer(folder / "tokenizer.json", config.semantic) if "text" in chosen else None
    for stage in chosen:
        rows.read(data, config, stage, tokenizer=tokenizer)

    runs = {stage: train(plan, progress=progress) for stage, plan in plans.items()}
    products = [run.product for run in runs.values()]
    if lora is not None:
        product = out / "adapter.safetensors"
        adapters.save(product, adapters.join([adapters.read(path, config) for path in products]))
    else:
        product = out / "model"
        if not (product / "config.json").is_file():
            assemble.native(product, folder, assemble.changed(folder, products))
    return Tuned(out, product, runs)


def _stages(stages: Sequence[str]) -> list[str]:
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"stage is {stage!r}: choose from {', '.join(STAGES)}")
    if not stages or len(set(stages)) != len(stages):
        raise ConfigError(f"stages are {list(stages)}: name at least one of {', '.join(STAGES)}, each once")
    return [stage for stage in ORDER if stage in stages]
