"""Fine-tuning a model: one run of the trainer per stage, then one model or one adapter out of them.

    model, rows ─ check all stages ─▶ train coarse, fine, text ─▶ out/adapter.safetensors, or out/model/

Defaults for real Bark and 5 to 30 minutes of one speaker; everything else is `TrainConfig`'s. A run that was stopped
goes on where it was when it is started again in the same folder: stages that are complete are not trained again, and
stages that an earlier call has trained there are part of the product.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bark_jax import adapters, assemble, hub, library, text, weights
from bark_jax.config import BarkConfig, ConfigError
from bark_jax.files import replacing
from bark_jax.hub import STAGES
from bark_jax.train import data as rows
from bark_jax.train.config import ADVICE, CALLERS, LoRA, TrainConfig, advice
from bark_jax.train.loop import Result, train
from bark_jax.train.lora import check as check_rank
from bark_jax.train.runs import Run, RunError, lock, remove_parts
from bark_jax.voice import check_consent

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
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    stages: Sequence[str] = ("coarse", "fine"),
    lora: LoRA | None = None,
    steps: int | None = None,
    consent: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Tuned:
    """Fine-tune stages of a model on rows.

    Args:
      model: a native folder, a folder of published weights, or a hub id, as for `bark_jax.load`.
      data: Parquet files or folders of them, see `bark_jax.train.data`; or one of these.
      out: folder of the result. If it holds an unfinished fine-tuning with the same settings, that is continued.
      stages: of "text", "coarse", "fine". The first needs texts; the other two only audio tokens.
      lora: train adapters; None trains all weights of the stages.
      steps: updates of each stage; None: what the model's ``training.json`` says, else `STEPS`.
      consent: who agreed that their voice is learnt, 1 to 256 characters, which the product keeps: an adapter in its
        notes, a model in ``consent.txt``.
      progress: report on stderr.
      settings: any other field of `TrainConfig`, for all stages. What is not given is as the model's ``training.json``
        says (`bark_jax.train.config.advice`), or the default.

    Raises:
      ConfigError: a setting that is unknown or out of range, or a stage that is unknown or named twice.
      VoiceError: a consent that says nothing.
      DataError: rows that a stage cannot use. All stages are checked before the first is trained.
      Everything that `train` raises.
    """
    if consent is not None:
        check_consent(consent)
    chosen = _stages([part.strip() for part in stages.split(",")] if isinstance(stages, str) else stages)
    data = [data] if isinstance(data, str | Path) else list(data)
    out = Path(os.path.abspath(Path(out).expanduser()))
    folder, _ = library.locate(model)
    _check_out(out, [folder, *map(Path, data)])
    config = BarkConfig.load(folder / "config.json")
    known = set(TrainConfig.__dataclass_fields__)
    if given := CALLERS & set(settings):
        raise ConfigError(f"{', '.join(sorted(given))}: given by the other arguments, not among the settings")
    if unknown := sorted(set(settings) - known):
        raise ConfigError(f"unknown setting(s) {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    plans = {}
    for stage in chosen:
        own = advice(folder, stage, lora=lora is not None)
        tree: dict[str, Any] = {"steps": STEPS[stage], **own, "lora": lora, **settings}
        if steps is not None:
            tree["steps"] = steps
        if progress and (kept := [name for name in own if tree[name] == own[name]]):
            print(f"{stage}: {', '.join(f'{name} {own[name]}' for name in kept)}, as {ADVICE} says", file=sys.stderr)
        paths = tuple(map(str, data))
        plans[stage] = TrainConfig(stage=stage, model=str(folder), data=paths, out=str(out / stage), **tree)
    tokenizer = text.load_tokenizer(folder / "tokenizer.json", config.semantic) if "text" in chosen else None
    about = {
        "model": str(folder.resolve()),
        "weights": _digest(folder),
        "trained": "all weights" if lora is None else "adapters",
    }
    # All that can be wrong with a later stage, before the first is trained.
    _Record.of(out, about, chosen)
    for stage, plan in plans.items():
        if stage != chosen[0]:  # `train` reads those of the first at once
            rows.read(plan.data, config, stage, tokenizer=tokenizer)
        with Run(plan.out) as run:
            settled = {name: value for name, value in plan.settings().items() if name != "dtype"}  # that may be open
            run.check(settled, partly=True)
        if lora is not None:
            check_rank(weights.abstract(config, STAGES[stage]), lora)
    model_ = out / "model"
    _check_product(model_, folder)

    out.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(lock(out)):
        remove_parts(out)
        record = _Record.of(out, about, chosen)
        record.write()  # what cannot be written to must not be found out when the stages are trained
        runs = {}
        for stage, plan in plans.items():
            runs[stage] = train(plan, progress=progress)
            record.note(stage, runs[stage].product)
        products = record.products()
        if lora is not None:
            product = out / "adapter.safetensors"
            made = adapters.join([adapters.read(path, config) for path in products])
            adapters.save(product, made if consent is None else made.noted(consent=consent))
            return Tuned(out, product, runs)
        if not record.assembled():
            new = out / "model.new"
            shutil.rmtree(new, ignore_errors=True)
            assemble.native(new, folder, assemble.changed(folder, products))
            if consent is not None:
                (new / "consent.txt").write_text(consent + "\n", "utf-8")
            _check_product(model_, folder)
            shutil.rmtree(model_, ignore_errors=True)
            new.rename(model_)
            record.note_assembled()
        return Tuned(out, model_, runs)


class _Record:
    """``finetune.json``: what the folder of a fine-tuning holds, so that stages of several calls become one product."""

    def __init__(self, path: Path, tree: dict[str, Any]):
        self.path, self.tree = path, tree

    @classmethod
    def of(cls, out: Path, about: dict[str, str], chosen: Sequence[str]) -> _Record:
        """That of a folder, new or found; `about` must not change, `chosen` are the stages that are to be trained.

        Raises:
          RunError: it is damaged, of another fine-tuning, or of stages whose products are gone.
        """
        path = out / "finetune.json"
        tree: dict[str, Any] = {**about, "stages": {}, "assembled": {}}
        if path.is_file():
            try:
                found = json.loads(path.read_text("utf-8"))
                same = {name: found[name] for name in about}
                for name in ("stages", "assembled"):
                    if not isinstance(found[name], dict) or not set(found[name]) <= set(STAGES):
                        raise ValueError(f"{name} is {str(found[name])[:80]}")
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{path} is damaged ({error}): choose another folder, or remove this one") from None
            for name, value in same.items():
                if value != tree[name]:
                    raise RunError(
                        f"{out} holds a fine-tuning with {name} = {value!r}, this one has {tree[name]!r}: choose "
                        "another folder"
                    )
            record = cls(path, found)
            gone = [
                stage
                for stage, product in zip(found["stages"], record.products(), strict=True)
                if stage not in chosen and not product.is_file()
            ]
            if gone:
                raise RunError(f"{out} has lost the product of {', '.join(gone)}: name the stage, to train it again")
            return record
        for name in ("model", "adapter.safetensors"):
            if (out / name).exists():
                raise RunError(f"{out / name} is there, and no fine-tuning made it: choose another folder")
        return cls(path, tree)

    def note(self, stage: str, product: Path) -> None:
        """A stage is complete."""
        self.tree["stages"][stage] = hashlib.sha256(product.read_bytes()).hexdigest()
        self.write()

    def products(self) -> list[Path]:
        """Files of all complete stages, those of earlier calls included."""
        whole = self.tree["trained"] == "all weights"
        return [
            self.path.parent / stage / (f"{STAGES[stage]}.safetensors" if whole else "adapter.safetensors")
            for stage in self.tree["stages"]
        ]

    def assembled(self) -> bool:
        """Whether the model is there, and made of the stages as they are now."""
        there = (self.path.parent / "model" / "config.json").is_file()
        return there and self.tree["assembled"] == self.tree["stages"]

    def note_assembled(self) -> None:
        self.tree["assembled"] = dict(self.tree["stages"])
        self.write()

    def write(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.tree, indent=2) + "\n", "utf-8")


def _digest(model: Path) -> str:
    """Of the networks of a native folder."""
    digest = hashlib.sha256()
    for network in STAGES.values():
        with (model / f"{network}.safetensors").open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_product(model: Path, base: Path) -> None:
    """Refuse to replace a folder that holds more than a model made of the base."""
    ours = {"config.json", "tokenizer.json", "consent.txt", *(f"{network}.safetensors" for network in weights.NETWORKS)}
    ours |= {str(path.relative_to(base)) for name in hub.BESIDE for path in [base / name, *base.glob(f"{name}/**/*")]}
    more = sorted(name for path in model.rglob("*") if (name := str(path.relative_to(model))) not in ours)
    if more:
        raise RunError(f"{model} is to be replaced, and holds {', '.join(more[:3])} besides: move that away")


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is a file: it must be a folder, or not exist")
    for path in inputs:
        if out.resolve() == path.resolve():
            raise ConfigError(f"out is {str(out)!r}, where the model or the rows are: choose another folder")


def _stages(stages: Sequence[str]) -> list[str]:
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"stage is {stage!r}: choose from {', '.join(STAGES)}")
    if not stages or len(set(stages)) != len(stages):
        raise ConfigError(f"stages are {list(stages)}: name at least one of {', '.join(STAGES)}, each once")
    return [stage for stage in ORDER if stage in stages]
