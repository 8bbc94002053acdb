"""Step 4, the tokenised corpus: ``python -m recipes.bark_nano.rows``. What the trainer of the three GPTs reads.

    text ────────────────────────────────────────────────┐
    audio ─▶ units (step 2's network, 50 a second) ──────┼─▶ WORK/rows/said-*.parquet, recorded-*.parquet
          └▶ codec (step 3, 75 frames a second, 8 codes) ┘

Rows of understood clips, and of recordings of people; these have no text and are for the coarse and fine stages. None
is of a held-out voice. The units are the network's, not whisper's: those `Bark.audio_to_semantic` gives of a voice
prompt. ``WORK/rows`` says of which codec and network it is made, and goes on where it was stopped; with others it must
be made anew. Another decoder of the same codec changes no code (`train_codec --trained decoder`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from bark_jax import codec as codecs
from bark_jax import units as networks
from bark_jax.audio import read
from bark_jax.files import replacing
from bark_jax.train import data
from recipes.bark_nano import corpus, evaluate, run, units
from recipes.bark_nano.train_codec import CONFIG

CLIPS_PER_FILE, CLIPS_AT_ONCE = 1000, 8


def fit(labels: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units (n,) and codes (Q, F) of one clip, cut to what both cover: F = floor(n · 75 / 50), the trainer's rule."""
    n = min(len(labels), -(-codes.shape[1] * 2 // 3))
    while n * 3 // 2 > codes.shape[1]:
        n -= 1
    return labels[:n], codes[:, : n * 3 // 2]


def row(id_: str, clip: corpus.Clip | None, labels: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """A row of the trainer's schema, whose coarse codes are the first of fine; `clip` is None for a recording."""
    semantic, fine = fit(labels, codes)
    speaker = clip.voice if clip else voice_of(id_)
    return {
        "id": id_,
        "split": clip.split if clip else "train",
        "text": clip.text if clip else None,
        "voice": speaker,
        "semantic": semantic,
        "fine": fine,
    }


def voice_of(id_: str) -> str:
    """The speaker of a recording: what its file's name begins with."""
    return "recorded-" + id_.rsplit("/", 1)[-1].split("-")[0].split("_")[0]


def made_from(codec: Path, network: Path) -> dict[str, str]:
    """SHA-256 of what rows depend on: encoder and codebooks of a codec, but not its decoder, and the units' network."""
    tensors = safetensors.numpy.load_file(codec)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not name.startswith("decoder."):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return {"codec": digest.hexdigest(), "units": hashlib.sha256(network.read_bytes()).hexdigest()}


def begin(work: Path) -> Path:
    """The folder of the rows, if it is new or of the same codec and units."""
    folder = work / "rows"
    about = folder / "made-from.json"
    now = made_from(work / "codec" / "codec.safetensors", work / "units" / "units.safetensors")
    if not about.is_file():
        if any(folder.glob("*.parquet")):
            raise FileExistsError(f"{folder} has files and no {about.name}: move them away")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(about) as part:
            part.write_text(json.dumps(now, indent=2), "utf-8")
    elif json.loads(about.read_text("utf-8")) != now:
        raise ValueError(f"{folder} was made with another codec or other units: remove it, it is made anew")
    return folder


def tokenised(work: Path, chosen: Sequence[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
    """Rows of clips (id, file), in their order."""
    codec = evaluate.load_codec(work / "codec" / "codec.safetensors")
    network = networks.load(work / "units" / "units.safetensors")
    plan = {clip.id: clip for clip in corpus.read_plan(work)}
    for start in range(0, len(chosen), CLIPS_AT_ONCE):
        some = chosen[start : start + CLIPS_AT_ONCE]
        audio = [read(path, CONFIG.sample_rate) for _, path in some]
        audio += [audio[0][:1]] * (CLIPS_AT_ONCE - len(some))  # as many rows in every call: compiled once
        for (id_, _), clip, codes in zip(some, audio, codecs.encode(codec, audio), strict=False):
            yield row(id_, plan.get(id_), networks.encode(network, clip), np.asarray(codes))


def write(work: Path) -> None:
    """Write what is not there yet."""
    folder = begin(work)
    chosen = [(id_, path) for id_, path, split in units.sources(work) if split != "heldout"]
    began = time.monotonic()
    for name, recorded in (("said", False), ("recorded", True)):
        these = [item for item in chosen if item[0].startswith("recordings/") == recorded]
        these.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())  # every file has some of every voice
        for number, start in enumerate(range(0, len(these), CLIPS_PER_FILE)):
            path = folder / f"{name}-{number:05d}.parquet"
            if not path.is_file():
                # By length, so that clips that are encoded together need about the same number of pieces.
                some = sorted(these[start : start + CLIPS_PER_FILE], key=lambda item: item[1].stat().st_size)
                data.write(path, tokenised(work, some))
                print(f"{path.name}: {len(some):,} rows, {time.monotonic() - began:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.rows", description="Tokenise the corpus.")
    parser.add_argument("--work", type=Path, default=corpus.WORK)
    options = parser.parse_args(argv)
    return run(lambda: write(options.work))


if __name__ == "__main__":
    sys.exit(main())
