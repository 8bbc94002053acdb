"""What smaller weights change: ``python -m benchmarks.quality``.

    sentences ─ model in float32 ─▶ speech ─▶ the trainer's examples of it ─▶ logits of each stage, each dtype beside
    float32's ─▶ error, divergence, how often the likeliest token is the same;  sentences ─ each dtype ─▶ words heard

Every dtype reads the same tokens, those of float32, so that one token drawn otherwise does not hide what the weights
did. Prints a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bark_jax
from bark_jax import Bark, BarkWarning, Sampling, text
from bark_jax.hub import STAGES
from bark_jax.train import examples
from bark_jax.train.loss import predicted
from benchmarks import harness, peers, speed
from recipes.bark_nano import sentences

FASTER = ("bfloat16", "int8")
MODEL = "bark-nano"


def rows(bark: Bark, texts: Sequence[str], voice: str | None, seconds: float | None) -> list[examples.Row]:
    """What the model says, as the trainer's rows."""
    how = Sampling() if seconds is None else Sampling(allow_early_stop=False, max_duration_s=seconds)
    said = bark.generate(list(texts), voice=voice, seed=list(range(len(texts))), sampling=how, split=False)
    config, made = bark.config.semantic, []
    for i, (line, speech) in enumerate(zip(texts, said, strict=True)):
        ids = text.encode(bark._intake._tokenizer, config, line)
        made.append(examples.Row(str(i), line, ids, None, speech.semantic, speech.fine))
    return made


def batch(bark: Bark, stage: str, some: Sequence[examples.Row]) -> examples.Batch:
    """One example of each row, as long as the stage has them."""
    config, rng = bark.config, np.random.default_rng(0)
    made = [examples.example(stage, config, row, None, rng) for row in some]
    longest = max(map(examples.length, made))
    return examples.collate(stage, config, made, range(len(made)), longest)


def logits(bark: Bark, stage: str, one: examples.Batch) -> np.ndarray:
    """(n, V) float64, of the positions that have a target."""
    network = bark._engine.network(STAGES[stage]).module

    @jax.jit
    def call(network: Any, one: examples.Batch) -> Any:
        return predicted(stage, bark.config, network, one)

    found, _, counted = call(network, jax.tree.map(jnp.asarray, one))
    return np.asarray(found, np.float64)[np.asarray(counted)]


def compare(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Of (n, V) logits: how far `found` are off, what that does to what is drawn, and to the likeliest token."""
    centred = exact - exact.mean(axis=-1, keepdims=True)
    off = found - found.mean(axis=-1, keepdims=True) - centred
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (exact, found))
    return {
        "error": float(np.sqrt(np.mean(off**2) / np.mean(centred**2))),
        "divergence": float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))),
        "same_likeliest": float(np.mean(exact.argmax(-1) == found.argmax(-1))),
    }


def heard(bark: Bark, texts: Sequence[str], voice: str | None, assets: Path) -> float:
    """Words that whisper-base gets wrong, in per cent."""
    from recipes.bark_nano import listen

    whisper, rate = listen.Whisper(assets), bark.config.codec.sample_rate
    said = bark.generate(list(texts), voice=voice, seed=list(range(len(texts))))
    counts = [whisper.wrong(line, speech.audio, rate) for line, speech in zip(texts, said, strict=True)]
    return 100 * sum(wrong for wrong, _ in counts) / sum(n for _, n in counts)


def run(model: str, texts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of every dtype, stage by stage."""
    voice = None if options.voice == "none" else options.voice

    def load(dtype: str) -> Bark:
        return bark_jax.load(model, dtype=dtype, device=options.device)

    bark = load("float32")
    harness.say(f"float32: {len(texts)} sentences")
    said = rows(bark, texts, voice, options.seconds)
    batches = {stage: batch(bark, stage, said) for stage in STAGES}
    exact = {stage: logits(bark, stage, one) for stage, one in batches.items()}
    result: dict[str, Any] = {"positions": {stage: len(one) for stage, one in exact.items()}, "quality": {}}
    if options.words:
        result["wer"] = {"float32": heard(bark, texts, voice, options.assets)}
    for dtype in FASTER:
        harness.say(dtype)
        bark.unload()
        bark = load(dtype)
        result["quality"][dtype] = {
            stage: compare(exact[stage], logits(bark, stage, one)) for stage, one in batches.items()
        }
        if options.words:
            result["wer"][dtype] = heard(bark, texts, voice, options.assets)
    return result


def report(result: dict[str, Any]) -> str:
    """The table of a result."""
    lines = [
        [f"{dtype}, {stage}", f"{one['error']:.2%}", f"{one['divergence']:.2g}", f"{one['same_likeliest']:.1%}"]
        for dtype, stages in result["quality"].items()
        for stage, one in stages.items()
    ]
    parts = [harness.table(["against float32", "logits off by", "divergence, nats", "same likeliest"], lines)]
    if "wer" in result:
        parts.append("words wrong, %: " + ", ".join(f"{dtype} {wer:.1f}" for dtype, wer in result["wer"].items()))
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--model", default=MODEL, help=f"what bark_jax.load takes ({MODEL})")
    p.add_argument("--size", type=peers.parse_size, help="small, large, or LAYERS,HEADS,WIDTH: random weights instead")
    p.add_argument("--voice", default="none", help="a preset of the model (none)")
    p.add_argument("--texts", type=peers.positive(int, 1, 10_000), default=24, help="sentences (24)")
    p.add_argument(
        "--seconds",
        type=peers.positive(float, 0.05, 15.4),
        help="length of each utterance; default: as the model ends it",
    )
    p.add_argument("--words", action="store_true", help="let whisper-base count words; not for random weights")
    p.add_argument("--assets", type=Path, default=Path("bark-nano-work/assets"), help="where whisper-base is kept")
    p.add_argument("--device", choices=("cpu", "gpu"), help="default: JAX's")
    p.add_argument("--out", help="write the JSON to this file, or to benchmarks/results/NAME.json for a bare name")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; gives the exit status."""
    options = parser().parse_args(arguments)
    warnings.simplefilter("ignore", BarkWarning)
    device = jax.devices(options.device)[0] if options.device else jax.devices()[0]
    everyday = sentences.everyday(1)
    texts = [next(everyday) for _ in range(options.texts)]
    name = options.model if options.size is None else list(options.size)
    result = {"benchmark": "quality", **harness.environment(device), "model": name}
    with tempfile.TemporaryDirectory(prefix="bark-jax-bench-") as folder:
        model = options.model if options.size is None else str(speed.random_model(options.size, Path(folder)))
        result |= run(model, texts, options)
    result = harness.rounded(result)
    return harness.finish(result, report(result), options.out)


if __name__ == "__main__":
    sys.exit(main())
