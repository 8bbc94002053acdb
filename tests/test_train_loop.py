"""Training runs: killed and resumed, stopped, out of disk, over several devices; what is trained, and what is not."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for module in ("optax", "orbax.checkpoint", "grain", "pyarrow", "matplotlib"):
    pytest.importorskip(module)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import safetensors.numpy  # noqa: E402

import models  # noqa: E402
from bark_jax import adapters, tokens, weights  # noqa: E402
from bark_jax.config import ConfigError  # noqa: E402
from bark_jax.train import data, loop, loss  # noqa: E402
from bark_jax.train.batches import Batches  # noqa: E402
from bark_jax.train.config import LoRA, TrainConfig  # noqa: E402
from bark_jax.train.examples import Batch  # noqa: E402
from bark_jax.train.runs import Run, RunError  # noqa: E402

MODEL = models.config((1, 2, 32))
ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "tokens_per_s")


def rows(n: int, validation: int, seed: int = 0) -> list[dict[str, Any]]:
    """Clips that can be learnt: codes and the next semantic id follow from the semantic ids, with some noise."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        semantic = (rng.integers(90) + 7 * np.arange(rng.integers(24, 60))) % 97
        frames = tokens.n_frames(MODEL.coarse, len(semantic))
        fine = (semantic[np.arange(frames) * 2 // 3] + 3 * np.arange(8)[:, None]) % 64
        fine = np.where(rng.random(fine.shape) < 0.2, rng.integers(0, 64, fine.shape), fine)
        split = "validation" if i < validation else "train"
        text = "".join(rng.choice(list("abc def"), 8)) + "x"
        made.append(
            {"id": f"{i}", "split": split, "text": text, "voice": "uv"[i % 2], "semantic": semantic, "fine": fine}
        )
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` and ``rows.parquet``, 12 to train on and 3 for validation."""
    folder = tmp_path_factory.mktemp("train")
    models.save(folder / "model", MODEL)
    data.write(folder / "rows.parquet", rows(15, 3))
    return folder


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def made(**changes: Any) -> TrainConfig:
        defaults = {
            "stage": "coarse",
            "data": (place / "rows.parquet",),
            "out": tmp_path / "run",
            "model": place / "model",
            "steps": 12,
            "batch": 4,
            "learning_rate": 3e-3,
            "bucket": 256,  # one length, one program
            "evaluate_every": 4,
            "save_every": 6,
        }
        return TrainConfig(**(defaults | changes))

    return made


def tensors(path: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def initial(network: str = "coarse") -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in weights.names(models.networks(MODEL)[network].module).items()}


def logged(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same_run(one: Path, other: Path, product: str = "coarse.safetensors") -> None:
    assert logged(one) == logged(other)
    first, second = tensors(one / product), tensors(other / product)
    assert first.keys() == second.keys()
    assert all(tensor.tobytes() == second[name].tobytes() for name, tensor in first.items())


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "product"), [("text", "semantic"), ("coarse", "coarse"), ("fine", "fine")])
def test_run(stage: str, product: str, make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """What a run leaves behind; the networks of all stages learn, and frozen tensors do not."""
    frozen = ("wpe.*", "blocks.0.ln_1.*") if stage == "text" else ()
    config = make(stage=stage, freeze=frozen, keep=1, log_every=2, steps=10)
    result = loop.train(config)
    folder = Path(config.out)
    assert result.product == folder / f"{product}.safetensors" and result.step == 10 and result.reason == "steps"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.toml",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
        result.product.name,
    }
    assert TrainConfig.load(folder / "config.toml") == config
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")

    lines = logged(folder)
    checked = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(checked) == [0, 4, 8, 10]
    assert result.validation_loss == min(list(checked.values())[1:]) == checked[result.best_step] < checked[0] - 0.05
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8, 10]
    assert all(set(line) == {"step", "loss", "tokens", "learning_rate", "grad_norm"} for line in trained)
    assert {int(path.name) for path in (folder / "checkpoints").iterdir()} == {10, result.best_step}

    before, after = initial(product), tensors(result.product)
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        is_frozen = stage == "text" and (name == "wpe.weight" or name.startswith("blocks.0.ln_1."))
        assert np.array_equal(tensor, after[name]) == is_frozen, name

    told = capfd.readouterr().err
    assert f"{stage} fully: " in told and "12 rows" in told and "3 for validation" in told
    assert re.search(r"step 4/10: loss \d\.\d+, validation \d\.\d+ \(best\), [\d,]+ tokens/s, \d+:\d\d left", told)


def test_without_validation_rows_the_last_checkpoint_is_the_product(
    make: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data.write(tmp_path / "all.parquet", rows(6, 0))
    config = make(data=(tmp_path / "all.parquet",), steps=4)
    result = loop.train(config)
    assert (result.best_step, result.validation_loss) == (4, None)
    assert "no validation rows: the last checkpoint will be the product" in capfd.readouterr().err
    with Run(config.out) as run:
        shapes = {name: jax.ShapeDtypeStruct(t.shape, np.float32) for name, t in initial().items()}
        last = run.restore(4, weights=shapes)["weights"]
    assert all(np.array_equal(last[name], tensor) for name, tensor in tensors(result.product).items())
    with pytest.raises(ConfigError, match="patience is 1, and no row of the data has the split 'validation'"):
        loop.train(make(data=(tmp_path / "all.parquet",), patience=1, out=tmp_path / "other"), progress=False)
    assert not (tmp_path / "other").exists()


def test_from_random_weights(make: Any, place: Path) -> None:
    config = make(model=None, config=place / "model" / "config.json", steps=2, seed=5)
    result = loop.train(config, progress=False)
    before = weights.names(weights.build(MODEL, "coarse", seed=5))
    assert set(before) == set(tensors(result.product))
    assert not np.array_equal(before["wte.weight"], tensors(result.product)["wte.weight"])


def test_a_run_that_gains_nothing_says_so(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    config = make(steps=4, learning_rate=3.0, warmup=0, evaluate_every=2, clip=100)
    result = loop.train(config)
    before = next(line["validation_loss"] for line in logged(Path(config.out)) if line["step"] == 0)
    assert result.validation_loss is not None and result.validation_loss > before
    assert f"before training the validation loss was {before:.4f}, so this run has gained" in capfd.readouterr().err


def test_patience_stops_and_the_best_is_the_product(
    make: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rate that ruins the network: it gets worse and worse, and the best checkpoint survives all newer ones."""
    config = make(steps=60, learning_rate=0.3, warmup=12, evaluate_every=2, patience=3, keep=1, save_every=99, clip=100)
    result = loop.train(config)
    checked = {line["step"]: line["validation_loss"] for line in logged(Path(config.out)) if "validation_loss" in line}
    losses = [checked[step] for step in checked if step > 0]
    best = min(losses)
    assert result.reason == "patience" and result.step == result.best_step + 6 < 60
    assert losses.index(best) == len(losses) - 4 and checked[result.best_step] == best == result.validation_loss
    assert losses[-1] > best + 0.1
    assert best < checked[0] and "gained nothing" not in capfd.readouterr().err
    assert {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()} == {result.best_step, result.step}

    # The loss of the product, computed anew, is the best one.
    trainer = loop.Trainer(config, MODEL, tensors(result.product))
    trainer.start()
    plan_config = dataclasses.replace(config, out=str(tmp_path / "other"))
    with Run(plan_config.out) as run:
        plan = loop._prepare(plan_config, run)
    sums = [trainer.evaluate(trainer.put(batch)) for batch in plan.validation or ()]
    assert sum(nll.sum() for nll, _ in sums) / sum(n.sum() for _, n in sums) == pytest.approx(best, abs=1e-5)

    # Started again it neither goes on nor changes the product.
    before = digest(result.product)
    assert loop.train(config, progress=False) == result and digest(result.product) == before


def test_lora_trains_adapters_only(make: Any, place: Path) -> None:
    config = make(lora=LoRA(rank=4, alpha=6, targets=("attn.c_attn", "mlp.c_proj")), learning_rate=0.02)
    before = {path.name: digest(path) for path in (place / "model").iterdir()}
    result = loop.train(config, progress=False)
    assert result.product == Path(config.out) / "adapter.safetensors"
    assert before == {path.name: digest(path) for path in (place / "model").iterdir()}
    adapter = adapters.read(result.product, MODEL)
    part = adapter.networks["coarse"]
    assert (part.rank, part.alpha, part.targets) == (4, 6.0, ("attn.c_attn", "mlp.c_proj"))
    assert all(np.any(b) for _, b in part.tensors.values())
    assert part.notes["step"] == str(result.best_step)
    held = (Path(config.out) / "checkpoints" / str(result.step) / "weights" / "_METADATA").read_text()
    assert "blocks.0.mlp.c_proj.a" in held and "base" not in held and "wte" not in held

    # Step 0 is the base, bit for bit; the frozen tensors stay what they are; merged is adapted.
    plain = loop.Trainer(make(), MODEL, initial())
    trainer = loop.Trainer(config, MODEL, initial())
    plain.start()
    trainer.start()
    batch = trainer.put(next(iter(some_batches(place)))[1])
    assert np.array_equal(plain.evaluate(batch)[0], trainer.evaluate(batch)[0])
    frozen = {name: np.asarray(tensor).copy() for name, tensor in trainer.frozen.items()}
    first = trainer.step(batch, 0)
    trainer.step(batch, 1)
    assert all(np.array_equal(tensor, trainer.frozen[name]) for name, tensor in frozen.items())
    assert set(trainer.params) == {f"{path}.{x}" for path in part.tensors for x in "ab"}
    assert float(first.grad_norm) > 0

    merged = loop.Trainer(make(), MODEL, adapters.merge(initial(), "coarse", adapter))
    merged.start()
    trainer.params = {
        f"{path}.{x}": jax.device_put(pair[i]) for path, pair in part.tensors.items() for i, x in enumerate("ab")
    }
    assert not np.allclose(plain.evaluate(batch)[0], trainer.evaluate(batch)[0], rtol=1e-3)
    np.testing.assert_allclose(merged.evaluate(batch)[0], trainer.evaluate(batch)[0], rtol=1e-5)


def some_batches(place: Path, **options: Any) -> Any:
    corpus = data.read(place / "rows.parquet", MODEL, "coarse")
    made = Batches(MODEL, "coarse", corpus, corpus.split("train"), batch=4, seed=0, bucket=256, **options)
    return made.iterate(0)


# --- one update -------------------------------------------------------------------------------------------------------


def test_update_is_adamw_of_the_mean_over_targets(make: Any, place: Path) -> None:
    """Two updates against AdamW written out in float64."""
    config = make(weight_decay=0.3, clip=0.4, steps=20, warmup=5, learning_rate=1e-2)
    steps = some_batches(place, group=1)
    batches = [next(steps)[1] for _ in range(2)]
    for batch in batches:  # unequal masks: the mean over rows of their means is something else
        counts = np.sum(batch.targets >= 0, axis=1)
        assert counts.max() > 1.3 * counts.min()

    expected = {name: tensor.astype(np.float64) for name, tensor in initial().items()}
    first, second = ({name: np.zeros_like(t) for name, t in expected.items()} for _ in range(2))
    abstract = weights.networks(MODEL)["coarse"]

    def mean(params: dict[str, jax.Array], batch: Batch) -> jax.Array:
        nll, counts = loss.nll("coarse", MODEL, weights.fill(abstract, params), batch)
        return nll.sum() / counts.sum()

    gradient = jax.jit(jax.value_and_grad(mean))
    told = []
    for t, batch in enumerate(batches, 1):
        value, grads = gradient({n: x.astype(np.float32) for n, x in expected.items()}, batch)
        norm = np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in grads.values()))
        told.append((float(value), norm))
        assert norm > 0.4
        rate = 1e-2 * t / 5
        for name in expected:
            g = np.asarray(grads[name], np.float64) * min(1, 0.4 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            step = (first[name] / (1 - 0.9**t)) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8)
            is_linear = name == "lm_head.weight" or ".c_" in name
            expected[name] = expected[name] - rate * (step + 0.3 * is_linear * expected[name])

    trainer = loop.Trainer(config, MODEL, initial())
    trainer.start()
    for index, batch in enumerate(batches):
        metrics = trainer.step(trainer.put(batch), index)
        assert float(metrics.loss) == pytest.approx(told[index][0], rel=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(told[index][1], rel=1e-4)
        assert int(metrics.tokens) == np.sum(batch.targets >= 0)
    for name, tensor in expected.items():
        # Adam divides by the size of the gradient: where that is next to nothing, rounding decides on the sign.
        np.testing.assert_allclose(trainer.params[name], tensor, atol=2e-4)
        assert np.mean(np.abs(trainer.params[name] - tensor) > 1e-6) < 0.01, name


def test_muon_orthogonalises_the_blocks_and_leaves_the_rest_to_adamw(make: Any, place: Path) -> None:
    """Of a block's matrix the singular values and their directions; of all else AdamW's step, to the bit."""
    batch = next(some_batches(place, group=1))[1]
    results, momentum = [], {}
    for optimizer in ("adamw", "muon"):
        config = make(optimizer=optimizer, weight_decay=0.0, warmup=0, learning_rate=1e-3)
        trainer = loop.Trainer(config, MODEL, initial())
        trainer.start()
        before = {name: np.array(tensor) for name, tensor in trainer.params.items()}
        trainer.step(trainer.put(batch), 0)
        results.append({name: np.asarray(tensor) - before[name] for name, tensor in trainer.params.items()})
        state = trainer.state()[1]
        momentum = {name: np.asarray(leaf) for name, leaf in state.items() if ".mu" in name}
    matrices = [name for name in results[0] if name.startswith("blocks.") and ".c_" in name]
    assert matrices == [name for name in results[0] if loop.orthogonalised(name)] and len(matrices) == 4
    for name, step in results[1].items():
        if name not in matrices:
            assert np.array_equal(step, results[0][name]), name
            continue
        (first,) = [leaf for key, leaf in momentum.items() if f"'{name}'" in key and leaf.shape == step.shape]
        tall = step.shape[0] > step.shape[1]
        step, first = (step.T, first.T) if tall else (step, first)
        rows_ = first / np.sqrt(
            np.sum(np.abs(first @ first.T), axis=1, keepdims=True)
        )  # what the iterations begin with
        u, size, v = np.linalg.svd(rows_.astype(np.float64), full_matrices=False)
        unit = loop.learning_rate(config, 0) * loop.MUON_RMS * max(step.shape) ** 0.5
        turned = -(u.T @ step @ v.T) / unit
        strong = size > 0.05 * size.max()  # three iterations leave what is far smaller on its way
        seen = np.diag(turned)
        assert strong.sum() >= 4 and np.all((seen[strong] > 0.5) & (seen[strong] < 1.3)), (name, seen[strong])
        assert np.abs(turned - np.diag(seen)).max() < 0.01, name


def test_accumulated_gradient_is_that_of_the_batch(make: Any, place: Path) -> None:
    """Plain gradient descent in the optimizer's place: no division by small numbers, so 1e-6 everywhere."""
    batch = next(some_batches(place, group=1))[1]
    counts = np.sum(batch.targets >= 0, axis=1)
    assert abs(int(counts[:2].sum()) - int(counts[2:].sum())) > 10  # a mean of means would be something else
    results = []
    for parts in (1, 2):
        trainer = loop.Trainer(make(accumulate=parts, learning_rate=0.1, warmup=0), MODEL, initial())
        trainer.optimizer = optax.identity()
        trainer.compiled_step = loop.make_step(trainer.recipe, trainer.optimizer)
        trainer.start()
        trainer.step(trainer.put(batch), 0)
        results.append(trainer.params)
    moved = max(float(np.abs(results[0][name] - tensor).max()) for name, tensor in initial().items())
    assert moved > 1e-3
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1e-6, rtol=0)


def test_dropout_depends_on_seed_step_and_part(make: Any, place: Path) -> None:
    batch = next(some_batches(place))[1]
    same = Batch(*(np.repeat(x[:1], 4, axis=0) for x in batch))

    config = make(dropout=0.5, accumulate=2, learning_rate=1e-30)  # a rate that changes no weight
    one, other = (loop.Trainer(dataclasses.replace(config, seed=seed), MODEL, initial()) for seed in (0, 1))
    one.start()
    other.start()
    first, second, again = (np.asarray(one.step(one.put(same), index).nll) for index in (0, 1, 0))
    assert len(set(first.tolist())) == 4  # rows and parts have noise of their own
    assert np.array_equal(first, again)
    assert not np.any(first == second)
    assert not np.any(first == np.asarray(other.step(other.put(same), 0).nll))


def test_schedule_and_decay(make: Any) -> None:
    config = make(steps=100, warmup=10, learning_rate=2.0)
    rates = [loop.learning_rate(config, step) for step in range(100)]
    theirs = optax.warmup_cosine_decay_schedule(0.0, 2.0, 10, 100, end_value=0.2)
    np.testing.assert_allclose(rates, [theirs(step + 1) for step in range(100)], rtol=1e-5)
    assert rates[9] == 2.0 and rates[-1] == pytest.approx(0.2)
    assert loop.learning_rate(make(steps=1, warmup=0, learning_rate=1.0), 0) == pytest.approx(0.1)
    for network, module in weights.networks(models.config((1, 2, 32))).items():
        if network != "codec":
            names = set(weights.names(module))
            linears = {n for n in names if ".c_" in n and n.endswith("weight")} | (names & {"lm_head.weight"})
            assert {name for name in names if loop.decays(name)} == linears
    assert loop.decays("lm_heads.weight") and not loop.decays("blocks.0.attn.c_attn.bias")
    assert not any(loop.decays(f"blocks.0.attn.c_attn.{part}") for part in ("a", "b", "gate"))


def test_bfloat16_is_for_the_computation_only(make: Any, place: Path) -> None:
    batch = next(some_batches(place))[1]
    full, low = (loop.Trainer(make(dtype=dtype), MODEL, initial()) for dtype in ("float32", "bfloat16"))
    full.start()
    low.start()
    expected, got = (trainer.step(trainer.put(batch), 0) for trainer in (full, low))
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-2)
    assert float(got.grad_norm) == pytest.approx(float(expected.grad_norm), rel=5e-2)
    assert float(got.loss) != float(expected.loss)
    assert all(leaf.dtype == np.float32 for leaf in [*low.params.values(), *jax.tree.leaves(low.opt_state)[1:]])


def test_the_compiled_step_copies_no_weights(make: Any, place: Path) -> None:
    """Its memory beyond weights and optimizer state is one gradient, and activations (here: few)."""
    model = models.config((2, 2, 512))
    made = weights.names(weights.build(model, "coarse"))
    trainer = loop.Trainer(make(batch=1), model, {name: np.asarray(leaf) for name, leaf in made.items()})
    batch = Batch(
        np.zeros((1, 72), np.int32),
        np.full((1, 72), 205, np.int32),
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.zeros((1, 0), np.int32),
    )
    params, _ = trainer.abstract()
    size = sum(leaf.size * 4 for leaf in params.values())
    state = jax.eval_shape(trainer.optimizer.init, params)
    compiled = trainer.compiled_step.lower(params, state, {}, trainer.put(batch), trainer.now(0)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pytest.approx(3 * size, rel=1e-3)  # all of params and opt_state is donated
    assert size < memory.temp_size_in_bytes < 1.2 * size


# --- stopped and resumed ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from bark_jax.train import loop
from bark_jax.train.config import TrainConfig
loop.train(TrainConfig.load(sys.argv[1]), progress=False)
"""


def start(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_when(child: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """SIGKILL as soon as the condition holds, which must be before the child ends by itself."""
    deadline = time.monotonic() + 120
    while not condition():
        if child.poll() is not None:
            raise AssertionError(f"the run ended too early: {child.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def n_lines(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def half_written(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_and_resumed_is_as_if_never_killed(optimizer: str, make: Any, tmp_path: Path) -> None:
    """Killed once at some step and once while a checkpoint is written; every loss and the weights are the same."""
    config = make(steps=40, evaluate_every=20, save_every=7, patience=40, dropout=0.1, optimizer=optimizer)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    loop.train(whole, progress=False)

    folder = Path(config.out)
    settings = tmp_path / "settings.toml"
    settings.write_text(config.to_toml())
    kill_when(start(CHILD, settings), lambda: n_lines(folder) >= random.Random(0).randint(9, 14))
    assert logged(folder) == logged(tmp_path / "whole")[: n_lines(folder)]
    kill_when(start(CHILD, settings), lambda: bool(half_written(folder)))
    assert half_written(folder) and n_lines(folder) < 40
    (folder / ".coarse.safetensors.part").write_bytes(b"from a process that was killed while it wrote this")
    (folder / "metrics.jsonl").open("a").write('{"step": 41, "lo')

    result = loop.train(config, progress=False)
    assert_same_run(folder, tmp_path / "whole")
    assert result.step == 40 and not half_written(folder) and not list(folder.glob(".*.part"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_killed_ten_times(stage: str, make: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": LoRA(rank=4)} if stage == "fine" else {}
    config = make(stage=stage, steps=200, evaluate_every=10, save_every=4, keep=1, accumulate=2, dropout=0.1, **options)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    product = loop.train(whole, progress=False).product.name

    folder = Path(config.out)
    settings = tmp_path / "settings.toml"
    settings.write_text(config.to_toml())
    rng = random.Random(0)
    kills = 0
    while kills < 10:
        with Run(folder) as run:
            at = (run.latest or 0) + rng.randint(1, 25)
        if at >= 190:
            break
        last_line = lambda: int((re.findall(rb'"step": (\d+)', (folder / "metrics.jsonl").read_bytes()) or [0])[-1])  # noqa: E731
        child = start(CHILD, settings)
        kill_when(child, lambda at=at, last=last_line: n_lines(folder) > 0 and last() >= at)  # type: ignore[misc]
        kills += 1
    assert kills == 10
    loop.train(config, progress=False)
    assert_same_run(folder, tmp_path / "whole", product)


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """As if Ctrl-C were pressed right after a step was reported."""
    report = loop._Reporter.step

    def reported(self: Any, at: int, *rest: Any) -> None:
        report(self, at, *rest)
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(loop._Reporter, "step", reported)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, even where the tests run in a shell's background, which turns it off for what it starts."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_run_saves_and_goes_on(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(save_every=100, evaluate_every=100)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    loop.train(whole, progress=False)
    folder = Path(config.out)

    class Terminated(Exception):
        pass

    def handler(number: int, frame: Any) -> None:
        raise Terminated

    old = signal.signal(signal.SIGTERM, handler)
    try:
        with monkeypatch.context() as patch:
            signal_at(patch, 3, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                loop.train(config, progress=False)
        with Run(folder) as run:
            first = run.latest
        assert first in (3, 4) and [line["step"] for line in logged(folder)] == [0, *range(1, first + 1)]
        picture = (folder / "loss.png").read_bytes()
        with monkeypatch.context() as patch:
            signal_at(patch, 8, signal.SIGTERM)
            with pytest.raises(Terminated):
                loop.train(config, progress=False)
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, old)
    loop.train(config, progress=False)
    assert_same_run(folder, tmp_path / "whole")
    assert (folder / "loss.png").read_bytes() != picture  # drawn again, with all lines


@pytest.mark.usefixtures("interruptible")
def test_a_text_stage_that_is_shown_its_place(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns where to look, and goes on as if it had never been stopped."""
    options = {"alignment": 1.0, "joined": 0.3, "text_noise": 0.2, "bare": 0.1, "guidance": 2.0}
    config = make(stage="text", steps=40, rehearsal_share=0.0, **options)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    loop.train(whole, progress=False)
    lost = [line["alignment"] for line in logged(tmp_path / "whole") if "loss" in line]
    assert len(lost) == 40 and np.mean(lost[-5:]) < np.mean(lost[:5]) - 0.5
    with monkeypatch.context() as patch:
        signal_at(patch, 9, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, progress=False)
    loop.train(config, progress=False)
    assert_same_run(Path(config.out), tmp_path / "whole", "semantic.safetensors")
    plain = dataclasses.replace(config, alignment=0.0, out=str(tmp_path / "plain"), steps=2)
    loop.train(plain, progress=False)
    assert not any("alignment" in line for line in logged(tmp_path / "plain"))


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        with loop._Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is signal.SIGINT
            signal.raise_signal(signal.SIGINT)
            signals.received = None  # never reached
    assert signals.received is signal.SIGINT and signal.getsignal(signal.SIGINT) is signal.default_int_handler


SEVERAL_DEVICES = """
import json, resource, sys
import jax
from bark_jax.train import loop
from bark_jax.train.config import TrainConfig
assert jax.local_device_count() == 4

loop.train(TrainConfig.load(sys.argv[1]), progress=False)

# The same run again, elsewhere, on a disk that is full after the first checkpoint: no file may grow beyond 4 kB.
def full(self, number, *rest):
    if number == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    report(self, number, *rest)
report = loop._Reporter.step
loop._Reporter.step = full
config = TrainConfig.load(sys.argv[2])
try:
    loop.train(config, progress=False)
    raise SystemExit("the disk was not full")
except OSError as error:
    message = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
loop._Reporter.step = report
from bark_jax.train.runs import Run
with Run(config.out) as run:
    left = run.steps
loop.train(config, progress=False)
print(json.dumps({"message": message, "left": left}))
"""


def test_several_devices_and_a_full_disk(make: Any, tmp_path: Path) -> None:
    config = make(steps=6, learning_rate=1e-3, save_every=2)
    one = loop.train(config, progress=False)
    paths = []
    for name in ("four", "full"):
        paths.append(tmp_path / f"{name}.toml")
        paths[-1].write_text(dataclasses.replace(config, out=str(tmp_path / name)).to_toml())
    child = start(SEVERAL_DEVICES, *paths, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err

    # Four devices give what one gives.
    got, expected = tensors(tmp_path / "four" / "coarse.safetensors"), tensors(one.product)
    assert max(np.abs(tensor - initial()[name]).max() for name, tensor in expected.items()) > 1e-3
    for name, tensor in expected.items():
        np.testing.assert_allclose(got[name], tensor, atol=1e-5, rtol=0)
    for a, b in zip(logged(tmp_path / "four"), logged(tmp_path / "run"), strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)

    # The full disk was reported, lost nothing, left nothing, and the run could go on.
    told = json.loads(out.splitlines()[-1])
    assert str(tmp_path / "full" / "checkpoints" / "4") in told["message"]
    assert "the checkpoint at step 2 is intact" in told["message"] and "could not be written" in told["message"]
    assert "Traceback" not in err and told["message"].endswith("File too large [os_error_code='27']")
    assert told["left"] == [2] and not half_written(tmp_path / "full")
    assert_same_run(tmp_path / "full", tmp_path / "four")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_row_that_is_not_finite_stops_training(make: Any, tmp_path: Path) -> None:
    """An embedding so large that the network overflows, of an id that one row has."""
    made = rows(15, 3)
    made[9]["semantic"][5] = 199
    data.write(tmp_path / "rows.parquet", made)
    corpus = data.read(tmp_path / "rows.parquet", MODEL, "coarse")

    def order(seed: int) -> list[bool]:
        batches = Batches(
            MODEL, "coarse", corpus, corpus.split("train"), batch=4, seed=seed, history_share=0.0, bucket=256
        )
        return [9 in batches[step].rows for step in range(8)]

    seed = next(seed for seed in range(100) if True in order(seed)[2:] and not any(order(seed)[:2]))
    at = order(seed).index(True) + 1
    broken = {name: {n: np.asarray(leaf) for n, leaf in weights.names(w.module).items()}
              for name, w in models.networks(MODEL).items()}  # fmt: skip
    broken["coarse"]["wte.weight"] = broken["coarse"]["wte.weight"].copy()
    broken["coarse"]["wte.weight"][199] = 3e38
    with weights.Writer(tmp_path / "model", MODEL, models.tokenizer_json()) as writer:
        for name, network in broken.items():
            writer.write(name, network)

    config = make(
        data=(tmp_path / "rows.parquet",),
        model=tmp_path / "model",
        batch=2,
        seed=seed,
        history_share=0.0,
        save_every=1,
        evaluate_every=100,
    )
    with pytest.raises(loop.TrainingError) as caught:
        loop.train(config, progress=False)
    told = str(caught.value)
    assert f"stopped at step {at}: the loss is nan, because of" in told
    assert "rows.parquet, row 9 (id '9')" in told and told.count("(id ") == 1
    assert f"the checkpoint at step {at - 1} is intact" in told
    with Run(config.out) as run:
        assert run.latest == at - 1
        shapes = {name: jax.ShapeDtypeStruct(t.shape, np.float32) for name, t in initial().items()}
        kept = run.restore(at - 1, weights=shapes)["weights"]
    assert all(np.all(np.isfinite(tensor)) for tensor in kept.values())
    assert [line["step"] for line in logged(Path(config.out))] == [0, *range(1, at)]
    with pytest.raises(loop.TrainingError, match=rf"stopped at step {at}: "):  # and again when it goes on
        loop.train(config, progress=False)


def test_a_fine_stage_that_leaves_out_what_it_does_not_know(make: Any, tmp_path: Path) -> None:
    """Its loss is another one, the same on as many devices and parts, and the codec's codebooks are a setting of it."""
    config = make(stage="fine", steps=4, save_every=2, fine_smoothing=0.33)
    loop.train(config, progress=False)
    losses = [line["loss"] for line in logged(Path(config.out)) if "loss" in line]
    parts = dataclasses.replace(config, out=str(tmp_path / "parts"), accumulate=2)
    loop.train(parts, progress=False)
    np.testing.assert_allclose([x["loss"] for x in logged(Path(parts.out)) if "loss" in x], losses, rtol=1e-4)
    plain = dataclasses.replace(config, out=str(tmp_path / "plain"), fine_smoothing=0.0)
    loop.train(plain, progress=False)
    assert abs(next(x["loss"] for x in logged(Path(plain.out)) if "loss" in x) - losses[0]) > 1e-2
    shutil.copytree(str(config.model), tmp_path / "model")
    codec = tensors(tmp_path / "model" / "codec.safetensors")
    weights.write_file(tmp_path / "model" / "codec.safetensors", {name: 2 * x for name, x in codec.items()})
    with pytest.raises(RunError, match="contents of model"):
        loop.train(dataclasses.replace(config, model=str(tmp_path / "model")), progress=False)


def test_a_run_goes_on_that_began_before_there_was_a_setting(make: Any) -> None:
    config = make(steps=4, save_every=2)
    loop.train(config, progress=False)
    [path] = (Path(config.out) / "checkpoints" / "4" / "record").rglob("metadata")
    record = json.loads(path.read_text())
    del record["settings"]["fine_smoothing"], record["settings"]["guidance"]
    path.write_text(json.dumps(record))
    loop.train(config, progress=False)
    with Run(config.out) as run:
        run.check(config.settings() | {"dtype": "float32"}, partly=True)  # as fine-tuning asks before its first stage
    with pytest.raises(RunError, match=r"guidance: it was 1\.0, and is 2\.0 now"):
        loop.train(dataclasses.replace(config, guidance=2.0, bare=0.1), progress=False)


def test_resuming_with_something_else_is_refused(make: Any, place: Path, tmp_path: Path) -> None:
    config = make(steps=4)
    result = loop.train(config, progress=False)
    before = {path: digest(path) for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.name != ".lock"}

    with pytest.raises(RunError) as caught:
        loop.train(dataclasses.replace(config, learning_rate=1e-2, batch=2, lora=LoRA()), progress=False)
    told = str(caught.value)
    for line in (
        f"{config.out} holds a run (at step 4) with other settings",
        "learning_rate: it was 0.003, and is 0.01 now",
        "batch: it was 4, and is 2 now",
        "lora: it was false, and is true now",
        'lora.rank: it was "(not set)", and is 32 now',
    ):
        assert line in told
    assert "seed" not in told and "contents" not in told

    data.write(tmp_path / "other.parquet", rows(15, 3, seed=1))
    models.save(tmp_path / "other", MODEL, seed=1)
    for changes, key in (
        ({"data": (str(tmp_path / "other.parquet"),)}, "contents of data"),
        ({"model": str(tmp_path / "other")}, "contents of model"),
        ({"rehearsal": (str(tmp_path / "other.parquet"),)}, "contents of rehearsal: it was null, and is "),
    ):
        with pytest.raises(RunError, match=key):
            loop.train(dataclasses.replace(config, **changes), progress=False)  # type: ignore[arg-type]
    assert before == {path: digest(path) for path in before}

    # What changes no result may change, and where the same rows and weights lie too.
    shutil.copy(place / "rows.parquet", tmp_path / "moved.parquet")
    shutil.copytree(place / "model", tmp_path / "moved")
    other = {"data": (str(tmp_path / "moved.parquet"),), "model": str(tmp_path / "moved")}
    free = dataclasses.replace(config, log_every=7, keep=9, save_every=50, **other)  # type: ignore[arg-type]
    assert loop.train(free, progress=False, resume=True) == result
    assert digest(result.product) == before[result.product]


def test_folders_that_are_no_run_are_refused(make: Any, tmp_path: Path) -> None:
    config = make(steps=1)
    with pytest.raises(RunError, match=r"resume was asked for, and .*run has no checkpoint"):
        loop.train(config, progress=False, resume=True)
    assert not Path(config.out).exists()
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("x")
    full.mkdir()
    (full / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match="which is a file: it must be a folder"):
        loop.train(dataclasses.replace(config, out=str(file)), progress=False)
    with pytest.raises(RunError, match=r"which holds thesis\.txt and no config\.toml"):
        loop.train(dataclasses.replace(config, out=str(full)), progress=False)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]

    loop.train(config, progress=False)
    with pytest.raises(RunError, match=r"resume was refused, and .*run has a checkpoint at step 1"):
        loop.train(config, progress=False, resume=False)
    with (Path(config.out) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is training in"):
            loop.train(config, progress=False)
    for path in (Path(config.out) / "checkpoints" / "1" / "weights").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunError, match=r"the checkpoint .*checkpoints/1 cannot be read: "):
        loop.train(config, progress=False)


def test_settings_that_do_not_fit_are_refused_before_anything_is_made(make: Any, place: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"freeze": ("blocks.7.*",)}, r"freeze holds 'blocks.7.\*', which matches no tensor"),
        ({"freeze": ("*",)}, "it matches every tensor"),
        ({"stage": "fine", "codebooks": (0,)}, "the fine network predicts codebooks 1 to 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            loop.train(make(**changes), progress=False)
    for changes in ({"data": (str(tmp_path / "absent"),)}, {"model": str(tmp_path / "absent")}):
        with pytest.raises(OSError, match="absent"):
            loop.train(make(**changes), progress=False)
    shutil.copytree(place / "model", tmp_path / "model")
    path = tmp_path / "model" / "coarse.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(weights.CheckpointError, match=r"cannot be used:\n  coarse\.safetensors is damaged"):
        loop.train(make(model=str(tmp_path / "model")), progress=False)
    path.unlink()
    with pytest.raises(weights.CheckpointError, match=r"has no coarse\.safetensors, which stage coarse needs"):
        loop.train(make(model=str(tmp_path / "model")), progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="so 3 rows are computed at once: that must be a multiple of the 2 devices"):
        loop.check_devices(make(batch=6, accumulate=2), 2)


def test_room_is_checked(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "b")
    run.check_room(1)
    with pytest.raises(OSError, match="a checkpoint takes 1,000,000,000,000,000,000 bytes"):
        run.check_room(10**18)
