"""Fine-tuning end to end, the command line included: adapters, whole models, exports, and what is refused."""

from __future__ import annotations

import contextlib
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optax")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("grain")
pytest.importorskip("pyarrow")

import jax.numpy as jnp
from click.testing import CliRunner

import bark_jax
import models
from bark_jax import adapters, assemble, cli, tokens, weights
from bark_jax.config import ConfigError
from bark_jax.settings import Sampling
from bark_jax.train import DataError, LoRA, RunError, finetune, lora, write
from bark_jax.train.runs import lock

CONFIG = models.config()


def write_rows(folder: Path, n: int = 6, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        codes = rng.integers(0, 64, (8, tokens.n_frames(CONFIG.coarse, 40 + i)))
        said = rng.integers(0, 200, 40 + i)
        split = "validation" if i == 0 else "train"
        rows.append(dict(id=str(i), text=f"text {i}", voice="a", split=split, semantic=said, fine=codes) | changes)
    write(folder, rows)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows")


QUICK: dict[str, Any] = dict(batch=2, learning_rate=1e-2, steps=2, evaluate_every=2, bucket=256, progress=False)


AGREED = ("--consent", "the speaker, in writing")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def test_the_first_step_of_an_adapter_is_the_base(base: Path) -> None:
    tensors = weights.read_network(base / "coarse.safetensors", CONFIG, "coarse")
    abstract = weights.networks(CONFIG)["coarse"]
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 70)))

    def logits(network: Any, arrays: Any) -> np.ndarray:
        module = weights.fill(network, {name: jnp.asarray(x) for name, x in arrays.items()})
        return np.asarray(module.logits(module.hidden(module.embed(ids))))

    wrapped, made, trained = lora.add(abstract, tensors, LoRA(rank=4), seed=0)
    np.testing.assert_array_equal(logits(wrapped, made), logits(abstract, tensors))
    assert {name.rpartition(".")[2] for name in trained} == {"a", "b"} and len(trained) == 2 * 4 * 2
    made = {name: x + np.float32(0.1) if name.endswith(".b") else x for name, x in made.items()}
    assert np.abs(logits(wrapped, made) - logits(abstract, tensors)).max() > 0.1


def test_adapters_of_two_stages_are_one_file(base: Path, data: Path, tmp_path: Path) -> None:
    how = {"stages": ["fine", "coarse"], "lora": LoRA(rank=4), "consent": AGREED[1], **QUICK}
    tuned = finetune(base, [str(data)], tmp_path / "out", **how)
    assert [p.notes["consent"] for p in adapters.read(tuned.product, CONFIG).networks.values()] == [AGREED[1]] * 2
    assert list(tuned.runs) == ["coarse", "fine"] and tuned.product.name == "adapter.safetensors"
    plain = bark_jax.load(base)
    model = bark_jax.load(base, adapters={"me": tuned.product})
    semantic = np.arange(60)
    greedy = Sampling.greedy()
    before = plain.semantic_to_coarse(semantic, sampling=greedy)
    adapted, without = model.semantic_to_coarse([semantic, semantic], sampling=greedy, adapter=["me", None])
    assert not np.array_equal(adapted, before)
    np.testing.assert_array_equal(without, before)
    # Merged into the weights: the same logits to 1e-5, nothing else changed.
    done = run("export", base, tmp_path / "merged", "-a", tuned.product)
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path / "merged"), done.output
    adapter = adapters.read(tuned.product, CONFIG)
    _, _, old = weights.read(base)
    _, _, new = weights.read(tmp_path / "merged")
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 300, (1, 90)))
    for network, embed in (("coarse", lambda m: m.embed(ids)), ("fine", lambda m: m.embed(3, ids % 66))):
        beside = adapters.attach(old[network], network, [adapter]).rows([1]).module
        states = [np.asarray(m.hidden(embed(m))) for m in (beside, new[network].module, old[network].module)]
        assert np.abs(states[0] - states[1]).max() < 1e-5 < 1e-3 < np.abs(states[0] - states[2]).max()
    for network in ("semantic", "codec"):
        for a, b in zip(old[network].leaves, new[network].leaves, strict=True):
            np.testing.assert_array_equal(a, b)
    # Again: everything is complete, nothing is trained.
    again = finetune(base, [str(data)], tmp_path / "out", **{**how, "stages": ["coarse", "fine"]})
    assert again.runs["coarse"].step == 2 and again.product.read_bytes() == tuned.product.read_bytes()


def test_whole_stages_become_a_model(base: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--stage", "text,coarse", "--steps", 2, "--batch", 2, "--learning-rate", 1e-2, "-q"]
    done = run("finetune", *AGREED, "-m", base, "-d", data, "-o", tmp_path / "out", *arguments)
    assert done.exit_code == 0 and done.output.strip() == str(tmp_path / "out" / "model"), done.output
    _, _, old = weights.read(base)
    _, _, new = weights.read(tmp_path / "out" / "model")
    for network, differs in (("semantic", True), ("coarse", True), ("fine", False), ("codec", False)):
        same = [np.array_equal(a, b) for a, b in zip(old[network].leaves, new[network].leaves, strict=True)]
        assert not any(same) if differs else all(same), network
    assert bark_jax.load(tmp_path / "out" / "model").generate("hi", seed=1).audio is not None
    assert (tmp_path / "out" / "model" / "consent.txt").read_text() == f"{AGREED[1]}\n"
    # One of the runs alone, exported by the name of its file.
    product = tmp_path / "out" / "coarse" / "coarse.safetensors"
    done = run("export", base, tmp_path / "one", "-n", product)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "one" / "config.json").read_text() == (base / "config.json").read_text()
    assert assemble.changed(base, [product]).keys() == {"coarse"}


def test_stages_of_several_calls_are_one_product(base: Path, data: Path, tmp_path: Path) -> None:
    def tune(out: str, stage: str, rank: int | None) -> Path:
        settings = LoRA(rank=rank) if rank else None
        return finetune(base, [str(data)], tmp_path / out, stages=[stage], lora=settings, **QUICK).product

    for stage in ("fine", "coarse"):
        small, whole = tune("small", stage, 2), tune("whole", stage, None)
    assert set(adapters.read(small, CONFIG).networks) == {"fine", "coarse"}
    for network in ("fine", "coarse"):
        made = (whole / f"{network}.safetensors", tmp_path / "whole" / network / f"{network}.safetensors")
        new, run_of = (weights.read_network(file, CONFIG, network) for file in made)
        assert all(np.array_equal(new[name], run_of[name]) for name in new)
        assert not np.array_equal(
            new["wpe.weight"], weights.read_network(base / made[0].name, CONFIG, network)["wpe.weight"]
        )
    with pytest.raises(RunError, match="trained = 'adapters', this one has 'all weights'"):
        tune("small", "fine", None)
    (whole / "mine.txt").write_text("not to be lost")
    with pytest.raises(RunError, match=r"is to be replaced, and holds mine\.txt besides"):
        tune("whole", "text", None)
    assert (whole / "mine.txt").exists()
    (tmp_path / "other" / "model").mkdir(parents=True)
    with pytest.raises(RunError, match="no fine-tuning made it"):
        tune("other", "fine", None)


def test_train_command_reads_toml_and_continues(base: Path, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "fine.toml"
    settings.write_text(
        f'stage = "fine"\nmodel = "{base}"\ndata = ["{data}"]\nout = "{tmp_path / "run"}"\nsteps = 9\nbatch = 2\n'
    )
    done = run("train", settings, "--set", "steps=2", "--set", "lora.rank=2", "-q")
    assert done.exit_code == 0 and Path(done.output.strip()).name == "adapter.safetensors", done.output
    done = run("train", settings, "--set", "steps=3", "--set", "lora.rank=2", "-q")
    assert done.exit_code == 1 and "steps" in done.output and "2" in done.output
    for change, words in (
        ("step=3", "step"),
        ("batch", "KEY=VALUE"),
        ("batch=x", "batch"),
        ("lora.rank=0", "rank"),
        ("lora.rank=33", "must not exceed 32"),
        ("stage.x=1", "has no x"),
        ("=3", "KEY=VALUE"),
        ("batch=99999999999999999999", "65,536"),
        (f"out={data}", "folder of its own"),
        ("stage=codec", "text, coarse, fine"),
        ("steps=5\nbatch=1", "one KEY=VALUE"),
        ("lora.alpha=2e6", "at most 1e+06"),
    ):
        done = run("train", settings, "--set", change)
        assert done.exit_code == 1 and words in done.output and "Traceback" not in done.output, done.output
    for rate, steps, words in (("1e30", 9, "Training stopped at step"), ("1e42", 1, "not finite")):
        wild = ("--set", f"learning_rate={rate}", "--set", f"steps={steps}", "--set", f"out={tmp_path / f'$x^{rate}'}")
        done = run("train", settings, *wild, "-q")
        assert done.exit_code == 1 and words in done.output and "Traceback" not in done.output, done.output
    settings.write_text("stage = ")
    assert "TOML" in run("train", settings).output
    assert "There is no" in run("train", tmp_path / "none.toml").output
    assert "TOML" in run("train", next(data.glob("*.parquet"))).output


def test_a_model_says_how_it_wants_to_be_trained(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = models.save(tmp_path / "model")
    (base / "voices").mkdir()
    bark_jax.Voice(np.arange(40), np.zeros((2, 60), int), np.zeros((8, 60), int), CONFIG.fingerprint).save(
        base / "voices" / "me.safetensors"
    )
    advice = base / "training.json"
    coarse = {"guidance": 3.0, "bare": 0.1, "batch": 3, "steps": 1, "lora": {"learning_rate": 0.5}}
    advice.write_text(json.dumps({"coarse": coarse}))
    how = {name: QUICK[name] for name in ("evaluate_every", "bucket")}

    def settings(out: str, **options: Any) -> dict[str, Any]:
        tuned = finetune(base, str(data), tmp_path / out, stages=["coarse"], **{**how, **options})
        assert tuned.runs["coarse"].step == options.get("steps", 1)
        return tomllib.loads((tmp_path / out / "coarse" / "config.toml").read_text())

    adapter = settings("adapter", lora=LoRA(rank=2))
    assert (adapter["guidance"], adapter["bare"], adapter["batch"], adapter["learning_rate"]) == (3.0, 0.1, 3, 0.5)
    assert "guidance 3.0" in capsys.readouterr().err
    whole = settings("whole", steps=2, batch=2, consent=AGREED[1])
    assert (whole["guidance"], whole["batch"]) == (3.0, 2) and "learning_rate" not in whole
    # What belongs to the model goes with it, and the folder is known again as what fine-tuning made.
    model = tmp_path / "whole" / "model"
    assert (model / "training.json").read_text() == advice.read_text()
    assert bark_jax.load(model).voices() == ["me"]
    settings("whole", steps=2, batch=2, consent=AGREED[1])
    (model / "voices" / "mine.npz").touch()  # but not if there is more in it, which would be lost
    with pytest.raises(RunError, match=r"holds voices.mine\.npz besides"):
        settings("whole", steps=2, batch=2, consent=AGREED[1])
    for wrong, words in (
        ("{", "training.json is no JSON"),
        ("[]", "an object whose keys are of"),
        ('{"codec": {}}', "an object whose keys are of"),
        ('{"coarse": 3}', "must be objects"),
        ('{"coarse": {"data": ["x"]}}', "coarse has data, which is for a caller to say"),
        ('{"coarse": {"guidanc": 2}}', "training.json: coarse: .*guidanc"),
        ('{"coarse": {"guidance": 99, "bare": 0.1}}', "training.json: coarse: guidance is 99"),
    ):
        advice.write_text(wrong)
        with pytest.raises(ConfigError, match=words):
            finetune(base, str(data), tmp_path / "wrong", stages=["coarse"], **QUICK)
        assert not (tmp_path / "wrong").exists()


def test_everything_is_checked_before_the_first_stage_is_trained(base: Path, tmp_path: Path) -> None:
    silent = write_rows(tmp_path / "silent", text=None)
    with pytest.raises(DataError, match="text"):
        finetune(base, [str(silent)], tmp_path / "out", stages=["coarse", "text"], **QUICK)
    assert not (tmp_path / "out").exists()
    for stages, words in ((["codec"], "choose from text"), ([], "at least one"), (["fine", "fine"], "each once")):
        with pytest.raises(ConfigError, match=words):
            finetune(base, [str(silent)], tmp_path / "out", stages=stages, **QUICK)
    with pytest.raises(ConfigError, match=r"learning_rat: choose from .* learning_rate,"):
        finetune(base, [str(silent)], tmp_path / "out", learning_rat=1)
    with pytest.raises(ConfigError, match="where the model or the rows are"):
        finetune(base, [str(silent)], base, **QUICK)
    done = run("finetune", *AGREED, "-m", base, "-d", silent, "-o", tmp_path / "out", "--alpha", 3)
    assert done.exit_code == 1 and "--lora" in done.output
    with pytest.raises(ConfigError, match="given by the other arguments"):
        finetune(base, [str(silent)], tmp_path / "out", stage="fine")


def test_later_stages_are_checked_before_the_first_is_trained(base: Path, data: Path, tmp_path: Path) -> None:
    def tune(out: Path, stages: Any, **options: Any) -> Path:
        return finetune(base, str(data), out, stages=stages, **{**QUICK, **options}).product

    out = tmp_path / "out"
    out.mkdir()
    (out / "fine").write_text("a file")
    with pytest.raises(RunError, match="fine', which is a file"):
        tune(out, "coarse, fine", lora=LoRA(rank=2))
    with pytest.raises(ConfigError, match=r"lora\.rank is 99"):
        tune(tmp_path / "rank", ["coarse", "fine"], lora=LoRA(rank=99))
    with pytest.raises(ConfigError, match="which is a file"):
        tune(out / "fine", ["coarse"])
    (out / "fine").unlink()
    (out / ".adapter.safetensors.00.part").touch()
    tune(out, ["fine"], lora=LoRA(rank=2))
    assert not list(out.glob(".*.part"))
    with pytest.raises(RunError, match="seed: it was 0, and is 5"):
        tune(out, ["coarse", "fine"], lora=LoRA(rank=2), seed=5)
    assert not (out / "coarse").exists()
    with contextlib.closing(lock(out)), pytest.raises(RunError, match="another process"):
        tune(out, ["coarse"], lora=LoRA(rank=2))
    (out / "fine" / "adapter.safetensors").unlink()
    with pytest.raises(RunError, match="lost the product of fine"):
        tune(out, ["coarse"], lora=LoRA(rank=2))
    record = json.loads((out / "finetune.json").read_text())
    for spoilt in ({"stages": []}, {"stages": {"bogus": ""}}):
        (out / "finetune.json").write_text(json.dumps(record | spoilt))
        with pytest.raises(RunError, match="is damaged"):
            tune(out, ["coarse"], lora=LoRA(rank=2))
    (out / "finetune.json").write_text(json.dumps(record | {"weights": "of another"}))
    with pytest.raises(RunError, match="with weights = 'of another'"):
        tune(out, ["coarse"], lora=LoRA(rank=2))


def test_exports_that_cannot_be(base: Path, data: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["-n", data / "x.bin"], "must be named"),
        (["-n", base / "coarse.safetensors", "-n", base / "coarse.safetensors"], "given twice"),
        (["-n", tmp_path / "fine.safetensors"], "there is no"),
        (["-a", base / "fine.safetensors"], "adapter"),
        (["--format", "suno"], "uno"),  # another family than Suno's; or no torch
    ):
        done = run("export", base, tmp_path / "out", *arguments)
        assert done.exit_code == 1 and words in done.output and "Traceback" not in done.output, done.output
        assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is there already" in run("export", base, tmp_path / "full").output
