"""How fast bark_jax is here, and how near to what the machine allows: ``python -m benchmarks.speed``.

    sizes of a model ─▶ card: bytes and operations of each stage; with the machine's rates the least time it could take
    (weights, rows) ─▶ a process each: seconds by stage of utterances of given lengths, one and many at once; memory
    model ─▶ first use: a process without, and with, programs that were compiled before

Ours alone, on random weights of Suno's sizes or on any model; `benchmarks.peers` has others beside it. Prints tables
and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bark_jax
from bark_jax import Sampling, memory, tokens, weights
from bark_jax.config import BarkConfig
from benchmarks import harness, peers
from recipes.bark_nano import speech

PARTS = ("card", "latency", "throughput", "first")
DTYPES = ("float32", "bfloat16", "int8")
SECONDS = (4.0, 13.0)
"""Of the utterances of part latency. Part throughput has the first of them."""
ROWS = (1, 8, 32, 64)
TEXT = peers.TEXT


# --- the card ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage has to do for one utterance of one row, at least.

    Attributes:
      steps: tokens that are drawn one after the other.
      bytes: of weights, and of the cache filled so far, that each of them reads; the mean over the steps.
      operations: floating-point operations of everything else: prompts and whole windows.
    """

    steps: int
    bytes: float
    operations: float

    def floor(self, bytes_per_s: float, operations_per_s: float) -> float:
        """Seconds, were nothing else to be done."""
        return self.steps * self.bytes / bytes_per_s + self.operations / operations_per_s


def work(config: BarkConfig, dtype: str, seconds: float) -> dict[str, Work]:
    """Of an utterance of so many seconds, without a voice.

    A step reads the blocks, the rows of the head that it needs, and the cache, counted as float32; prompts and windows
    take two operations for a weight and a position, and four for a pair of positions and a number of the width. Norms,
    GELU and drawing are left out: they are small, and not the floor.
    """
    semantic, coarse, fine = config.semantic, config.coarse, config.fine
    size = memory.BYTES[dtype]

    def blocks(network: Any) -> int:
        return 12 * network.n_layer * network.n_embd**2

    def whole(network: Any, positions: int, pairs: float) -> float:
        return 2.0 * blocks(network) * positions + 4.0 * network.n_layer * network.n_embd * pairs

    def kept(network: Any, mean: float) -> float:
        return 2 * network.n_layer * network.n_embd * mean * 4

    n = round(seconds * semantic.rate_hz)
    network, prompt = semantic.network, semantic.text_length + 1
    said = Work(
        n,
        size * (blocks(network) + (semantic.vocab_size + 1) * network.n_embd) + kept(network, prompt + n / 2),
        whole(network, prompt, prompt**2 / 2),
    )

    network, drawn = coarse.network, tokens.n_coarse_tokens(coarse, n)
    windows = range(0, drawn, coarse.window)
    # While the prompt only grows, its cache is kept; the semantic ids that are seen then stay the same.
    again = [start for start in windows if start == 0 or start > coarse.max_history]
    prompts = [coarse.semantic_length + 1 + min(start, coarse.max_history) for start in again]
    seen = [coarse.semantic_length + 1 + min(start, coarse.max_history) + coarse.window / 2 for start in windows]
    shaped = Work(
        drawn,
        size * (blocks(network) + coarse.codebook_size * network.n_embd) + kept(network, float(np.mean(seen))),
        sum(whole(network, p, p**2 / 2) for p in prompts),
    )

    network, frames = fine.network, tokens.n_frames(coarse, n)
    passes = len(tokens.fine_windows(fine, frames, 0)) * (fine.n_codebooks - coarse.n_codebooks)
    head = 2.0 * fine.window * fine.codebook_size * network.n_embd
    detailed = Work(0, 0.0, passes * (whole(network, fine.window, fine.window**2) + head))

    module = weights.build(config, "codec")
    codes = jax.ShapeDtypeStruct((1, fine.n_codebooks, frames), jnp.int32)
    cost = jax.jit(lambda network, codes: network.decoder(network.embed(codes))).lower(module, codes).cost_analysis()
    return {
        "semantic": said,
        "coarse": shaped,
        "fine": detailed,
        "codec": Work(0, 0.0, float((cost or {}).get("flops", 0.0))),
    }


def product_rate(dtype: str, repeat: int = 7) -> float:
    """Operations per second of a product as in the fine stage, (1024, 768) by (768, 3072): the best of some runs."""
    from bark_jax.linear import Int8, matmul

    x = jax.random.normal(jax.random.key(0), (1024, 768), jnp.float32)
    weight: Any = np.asarray(jax.random.normal(jax.random.key(1), (3072, 768), jnp.float32))
    if dtype == "int8":
        weight = jax.tree.map(jnp.asarray, Int8.of(weight))
    else:
        weight = jnp.asarray(weight, dtype)
    call = jax.jit(matmul)
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(8):
            out = call(x, weight)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - start) / 8)
    return 2.0 * 1024 * 768 * 3072 / best


def memory_rate(n_bytes: int, repeat: int = 10) -> float:
    """Bytes per second that the device reads of a buffer of that size: the best of some runs."""
    if jax.default_backend() == "cpu":
        return peers.read_rate(n_bytes, repeat)
    buffer, total, best = jnp.ones(max(n_bytes // 4, 1), jnp.float32), jax.jit(jnp.sum), float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        total(buffer).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return buffer.nbytes / best


# --- one process: a model with its weights and rows -------------------------------------------------------------------


def timed(model: str, dtype: str, rows: int, seconds: float, device: str, repeat: int) -> dict[str, Any]:
    """Speak `rows` texts of one length at once: seconds by stage, and what it took of memory."""
    bark = bark_jax.load(model, dtype=dtype, device=device, rows=rows)
    how = Sampling.greedy().replace(allow_early_stop=False, max_duration_s=seconds)
    options: dict[str, Any] = {"seed": list(range(rows)) if rows > 1 else 0, "sampling": how}
    given: Any = [TEXT] * rows if rows > 1 else TEXT
    stages: dict[str, Callable[[Any], Any]] = {
        "semantic": functools.partial(bark.text_to_semantic, **options),
        "coarse": functools.partial(bark.semantic_to_coarse, **options),
        "fine": functools.partial(bark.coarse_to_fine, **options),
        "codec": bark.decode,
    }
    inputs, first = {}, {}
    for name, stage in stages.items():
        inputs[name] = given
        warm = harness.warm_up(functools.partial(stage, given))
        given, first[name] = warm.result, warm.first_s
    calls = {name: functools.partial(stage, inputs[name]) for name, stage in stages.items()}
    before = harness.compilations()
    runs = harness.interleaved(calls, repeat)
    took = {name: harness.median([s for s, _ in run]) for name, run in runs.items()}
    took["total"] = harness.median(
        [sum(turn) for turn in zip(*([s for s, _ in r] for r in runs.values()), strict=True)]
    )
    audio = rows * len(np.atleast_2d(given[0] if rows > 1 else given)[0]) / bark.config.codec.sample_rate
    stats = bark.device.memory_stats() or {}
    return {
        "dtype": dtype,
        "rows": rows,
        "asked_s": seconds,
        "audio_s": audio,
        "seconds": took,
        "compile_s": sum(max(0.0, first[name] - took[name]) for name in stages),
        "compiled_while_timing": harness.compilations() - before,
        "times_real_time": audio / took["total"],
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "device_mb": stats["peak_bytes_in_use"] / 1e6 if "peak_bytes_in_use" in stats else None,
    }


@functools.cache
def elsewhere(model: str, dtype: str, rows: int, seconds: float, device: str, repeat: int) -> dict[str, Any]:
    """`timed` in a process of its own, so that memory and compilation are its own; once, for both parts that ask."""
    harness.say(f"{dtype}, {rows} at once, {seconds:g} s")
    one = json.dumps([model, dtype, rows, seconds, device, repeat])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--one", one], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def first_use(model: str, dtype: str, device: str) -> dict[str, float]:
    """Seconds from the start of a process to its first two seconds of speech: nothing compiled yet, and all of it."""
    cold, warm = speech.first_use(
        f"import bark_jax; from bark_jax import Sampling; "
        f"bark_jax.load({model!r}, dtype={dtype!r}, device={device!r}).generate({TEXT!r}, seed=1, "
        f"sampling=Sampling(allow_early_stop=False, max_duration_s=2.0))"
    )
    return {"cold_s": cold, "warm_s": warm}


# --- all of it --------------------------------------------------------------------------------------------------------


def random_model(size: peers.Size, folder: Path, **codec: Any) -> Path:
    """A native folder with random weights that come from Suno's formats; the codec has EnCodec's sizes, or those."""
    from convert import convert

    checkpoints, reference, _ = peers.fixtures()
    source = folder / "suno"
    checkpoints.write_suno(source, dict.fromkeys(checkpoints.STAGES, size), optimizer_state=False)
    checkpoints.write_encodec(source, **codec)
    convert(source, folder / "native", tokenizer=reference.vocabulary(folder), log=lambda line: None)
    return folder / "native"


def run(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The parts that are asked for, of a model that is on disk."""
    device = options.device or ("gpu" if jax.default_backend() == "gpu" else "cpu")
    config, result = bark_jax.load(model, device=device).config, {}
    if "card" in options.parts:
        machine = {}
        for dtype in options.dtype:
            harness.say(f"rates of the machine, {dtype}")
            n_bytes = memory.of_weights(config, dtype)["semantic"]
            machine[dtype] = {"bytes_per_s": memory_rate(n_bytes), "operations_per_s": product_rate(dtype)}
        result["machine"] = machine
        result["card"] = {
            dtype: {f"{seconds:g}": _card(work(config, dtype, seconds), machine[dtype]) for seconds in options.seconds}
            for dtype in options.dtype
        }
    if "latency" in options.parts:
        result["latency"] = [
            elsewhere(model, dtype, 1, seconds, device, options.repeat)
            for dtype in options.dtype
            for seconds in options.seconds
        ]
    if "throughput" in options.parts:
        result["throughput"] = [
            elsewhere(model, dtype, rows, options.seconds[0], device, options.repeat)
            for dtype in options.dtype
            for rows in options.rows
        ]
    if "first" in options.parts:
        harness.say("first use")
        result["first"] = {dtype: first_use(model, dtype, device) for dtype in options.dtype}
    return result


def _card(stages: Mapping[str, Work], machine: Mapping[str, float]) -> dict[str, Any]:
    found = {name: {**dataclasses.asdict(one), "floor_s": one.floor(**machine)} for name, one in stages.items()}
    return {**found, "floor_s": sum(one["floor_s"] for one in found.values())}


def report(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    parts, stages = [], ("semantic", "coarse", "fine", "codec")
    for dtype, cards in result.get("card", {}).items():
        machine = result["machine"][dtype]
        parts.append(
            f"card, {dtype}: memory {machine['bytes_per_s'] / 1e9:.1f} GB/s, products "
            f"{machine['operations_per_s'] / 1e9:,.0f} GFLOP/s"
        )
        for seconds, card in cards.items():
            rows = [
                [name, str(card[name]["steps"]), f"{card[name]['bytes'] / 1e6:.1f}",
                 f"{card[name]['operations'] / 1e9:.1f}", f"{card[name]['floor_s']:.3f}"]
                for name in stages
            ]  # fmt: skip
            parts.append(harness.table([f"{seconds} s", "steps", "MB a step", "GFLOP besides", "floor s"], rows))
    for part in ("latency", "throughput"):
        if part not in result:
            continue
        rows = []
        for one in result[part]:
            card = result.get("card", {}).get(one["dtype"], {}).get(f"{one['asked_s']:g}")
            near = f"{card['floor_s'] / one['seconds']['total']:.0%}" if card and one["rows"] == 1 else ""
            memory_mb = one["resident_mb"] if one["device_mb"] is None else one["device_mb"]
            rows.append(
                [one["dtype"], str(one["rows"]), f"{one['audio_s'] / one['rows']:.1f}",
                 *(f"{one['seconds'][name]:.3f}" for name in (*stages, "total")),
                 f"{one['times_real_time']:.3g}", near, f"{memory_mb:,.0f}"]
            )  # fmt: skip
        head = [part, "rows", "s each", *stages, "total s", "× real time", "of floor", "MB"]
        parts.append(harness.table(head, rows))
    if "first" in result:
        rows = [[dtype, f"{one['cold_s']:.1f}", f"{one['warm_s']:.1f}"] for dtype, one in result["first"].items()]
        parts.append(harness.table(["first use", "cold s", "warm s"], rows))
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The command line."""

    def numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
        return lambda value: tuple(kind(one) for one in value.split(","))

    p = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    p.add_argument(
        "--size", type=peers.parse_size, default=peers.SIZES["small"], help="small, large, or LAYERS,HEADS,WIDTH"
    )
    p.add_argument("--model", help="what bark_jax.load takes, in place of random weights")
    p.add_argument("--dtype", type=harness.some_of(DTYPES), default=DTYPES, help=f"some of {','.join(DTYPES)}; all")
    p.add_argument(
        "--seconds", type=numbers(peers.positive(float, 0.05, 15.4)), default=SECONDS, help="of the utterances (4,13)"
    )
    p.add_argument(
        "--rows", type=numbers(peers.positive(int, 1, 1000)), default=ROWS, help="of part throughput (1,8,32,64)"
    )
    p.add_argument("--parts", type=harness.some_of(PARTS), default=PARTS, help=f"some of {','.join(PARTS)}")
    p.add_argument("--repeat", type=peers.positive(int, 1, 1000), default=3, help="timed runs (3)")
    p.add_argument("--device", choices=("cpu", "gpu"), help="default: JAX's")
    p.add_argument("--out", help="write the JSON to this file, or to benchmarks/results/NAME.json for a bare name")
    p.add_argument("--one", help=argparse.SUPPRESS)  # a process of part latency or throughput
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; gives the exit status."""
    options = parser().parse_args(arguments)
    if options.one:
        print(json.dumps(timed(*json.loads(options.one))))
        return 0
    device = jax.devices(options.device)[0] if options.device else jax.devices()[0]
    result = {"benchmark": "speed", **harness.environment(device), "model": options.model or list(options.size)}
    with tempfile.TemporaryDirectory(prefix="bark-jax-bench-") as folder:
        model = options.model or str(random_model(options.size, Path(folder)))
        result |= run(model, options)
    result = harness.rounded(result)
    return harness.finish(result, report(result), options.out)


if __name__ == "__main__":
    sys.exit(main())
