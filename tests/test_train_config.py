"""The settings of a training run: read strictly, written faithfully. Needs none of the training packages."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest

from bark_jax.config import ConfigError
from bark_jax.train import config as config_module
from bark_jax.train.config import FREE, LoRA, TrainConfig

NEEDED = {"stage": "coarse", "data": ("rows.parquet",), "out": "run", "steps": 300, "model": "suno/bark"}


def make(**changes: object) -> TrainConfig:
    return TrainConfig(**(NEEDED | changes))  # type: ignore[arg-type]


def test_toml_round_trip(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ pfad\tü 🐕 \x7f \x01\n'
    configs = [
        make(),
        make(lora=LoRA(rank=8, alpha=12, targets=("mlp.c_fc",), dropout=0), clip=math.inf, learning_rate=1e-7),
        make(stage="text", model=None, config=odd, tokenizer="t.json", freeze=("wte.*", odd), warmup=0, patience=3),
        make(
            stage="fine",
            codebooks=(7, 2),
            data=("a", "b"),
            rehearsal=("c",),
            dtype="bfloat16",
            remat="block",
            optimizer="muon",
        ),
    ]
    for config in configs:
        assert TrainConfig.from_toml(config.to_toml()) == config
        (tmp_path / "config.toml").write_text(config.to_toml(), "utf-8")
        assert TrainConfig.load(tmp_path / "config.toml") == config
    assert set(configs[1].settings()) == set(configs[0].settings()) | {f"lora.{f}" for f in ("rank", "alpha")} | {
        "lora.targets",
        "lora.dropout",
    }


def test_lists_paths_and_integers_become_what_is_asked_for() -> None:
    config = make(data=[Path("a"), "b"], out=Path("o"), learning_rate=1, clip=2)  # type: ignore[arg-type]
    assert config.data == ("a", "b") and config.out == "o"
    assert isinstance(config.learning_rate, float) and isinstance(config.clip, float)


def test_defaults_depend_on_what_is_trained() -> None:
    assert make().peak_learning_rate == 1e-5
    assert make(lora=LoRA()).peak_learning_rate == 1e-4
    assert make(lora=LoRA(), stage="text").peak_learning_rate == 5e-5
    assert make(model=None, config="c.json").peak_learning_rate == 3e-4
    assert make(learning_rate=0.5).peak_learning_rate == 0.5
    assert make().warmup_steps == 15 and make(warmup=0).warmup_steps == 0 and make(steps=1).warmup_steps == 0
    assert LoRA(rank=8).scale == 1.0 and LoRA(rank=8, alpha=16).scale == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "semantic"}, "stage is 'semantic': choose one of text, coarse, fine"),
        ({"steps": 0}, "steps is 0: it must be 1 or more"),
        ({"steps": "10"}, "steps is '10': it must be an integer"),
        ({"steps": True}, "steps is True: it must be an integer"),
        ({"steps": 10.0}, "steps is 10.0: it must be an integer"),
        ({"data": "rows.parquet"}, "data is 'rows.parquet': it must be a list of strings"),
        ({"data": ()}, "data is []: it must name at least one"),
        ({"data": ("",)}, "none of its entries may be empty"),
        ({"out": ""}, "out is ''"),
        ({"out": "\udc80"}, "it must be text that UTF-8 can hold"),
        ({"learning_rate": 0}, "learning_rate is 0.0: it must be greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan: it must be a number"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"clip": 0}, "clip is 0.0: it must be greater than 0"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be 0 or more, and less than 1"),
        ({"history_share": 1.5}, "history_share is 1.5: it must be 0 to 1"),
        ({"accumulate": 3}, "accumulate is 3: it must divide batch = 16"),
        ({"accumulate": 0}, "accumulate is 0: it must be 1 or more"),
        ({"warmup": 300}, "warmup is 300: it must be less than steps = 300"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"dtype": "float16"}, "dtype is 'float16': choose one of float32, bfloat16"),
        ({"model": None}, "model and config: neither given"),
        ({"config": "c.json"}, "model and config: both given"),
        ({"stage": "text", "model": None, "config": "c.json"}, "tokenizer is missing"),
        ({"tokenizer": "t.json"}, "tokenizer is 't.json': it belongs to stage text with config"),
        ({"codebooks": (2,)}, "codebooks is [2]: it belongs to stage fine"),
        ({"stage": "fine", "codebooks": (2, 2)}, "it must name codebooks, each once"),
        ({"stage": "fine", "coarse_loss": "window"}, "coarse_loss is 'window': it belongs to stage coarse"),
        ({"stage": "coarse", "guidance": 11.0}, "guidance is 11.0: it must be 1 to 10"),
        ({"stage": "text", "guidance": 3.0}, "guidance is 3.0: it needs to know what is likely without"),
        ({"stage": "fine", "bare": 0.1}, "bare is 0.1: it belongs to stages text and coarse"),
        ({"stage": "fine", "fine_smoothing": 11.0}, "fine_smoothing is 11.0: it must be 0 to 10"),
        ({"stage": "coarse", "fine_smoothing": 0.3}, "fine_smoothing is 0.3: it belongs to stage fine"),
        (
            {"stage": "fine", "fine_smoothing": 0.3, "model": None, "config": "c.json"},
            "fine_smoothing is 0.3: it asks the codec which codes are near",
        ),
        ({"stage": "coarse", "alignment": 0.5}, "alignment is 0.5: it belongs to stage text"),
        ({"stage": "text", "alignment": 11.0}, "alignment is 11.0: it must be 0 to 10"),
        ({"stage": "coarse", "text_noise": 0.2}, "text_noise is 0.2: it belongs to stage text"),
        ({"stage": "fine", "joined": 0.5}, "joined is 0.5: it belongs to stage text"),
        ({"stage": "text", "joined": 1.0}, "joined is 1.0: it must be 0 or more, and less than 1"),
        ({"stage": "text", "text_noise": 1.0}, "text_noise is 1.0: it must be 0 or more, and less than 1"),
        ({"lora": LoRA(), "freeze": ("wte.*",)}, "freeze is ['wte.*']: it is not for LoRA"),
        ({"lora": LoRA(), "model": None, "config": "c.json"}, "lora is given with config"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd': choose one of adamw, muon"),
        ({"lora": LoRA(), "optimizer": "muon"}, "optimizer is 'muon': adapters are not orthogonalised"),
        ({"lora": 32}, "lora is 32: it must be a table of rank"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "lora.rank is 0: it must be 1 or more"),
        ({"rank": "8"}, "lora.rank is '8': it must be an integer"),
        ({"alpha": 0}, "lora.alpha is 0.0: it must be greater than 0"),
        ({"targets": ("lm_head",)}, "lora.targets is ['lm_head']: it must hold some of attn.c_attn, "),
        ({"targets": ()}, "lora.targets is []"),
        ({"targets": ("mlp.c_fc", "mlp.c_fc")}, "each linear once"),
        ({"dropout": -0.1}, "lora.dropout is -0.1"),
    ],
)
def test_what_is_wrong_with_lora_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRA(**changes)  # type: ignore[arg-type]


def test_all_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        make(stage="x", clip=-1.0, keep=0)
    assert all(part in str(caught.value) for part in ("3 problems", "stage is 'x'", "clip is -1.0", "keep is 0"))
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_toml('stage = "text"\nsteeps = 3\n[lora]\nrang = 3\n', source="my.toml")
    told = str(caught.value)
    assert told.startswith("my.toml: ")
    assert "steeps is unknown: did you mean steps?" in told and "evaluate_every" in told
    assert "lora.rang is unknown: did you mean lora.rank?" in told
    assert "data is missing" in told and "out is missing" in told and "stage is missing" not in told


@pytest.mark.parametrize("text", ["stage = ", "a = [" * 2000, "stage = 'a'\nstage = 'b'"])
def test_broken_toml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^x\.toml is not valid TOML"):
        TrainConfig.from_toml(text, source="x.toml")


def test_binary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        TrainConfig.load(path)
    with pytest.raises(OSError, match="absent"):
        TrainConfig.load(tmp_path / "absent")


def test_every_setting_is_in_the_table() -> None:
    table = config_module.__doc__ or ""
    names = {f.name for f in dataclasses.fields(TrainConfig)} - {"lora", "stage", "out"}
    names |= {f"lora.{f.name}" for f in dataclasses.fields(LoRA)}
    rows = {name for line in table.splitlines() if line.startswith("    ") for name in line[4:29].split()}
    assert names <= {name.strip(",") for name in rows}
    assert {f.name for f in dataclasses.fields(TrainConfig)} >= FREE
