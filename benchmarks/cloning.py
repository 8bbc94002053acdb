"""How like a new speaker: a prompt from one clip, and fine-tuning on minutes of them, with controls that must fail.

    python -m benchmarks.cloning --work measured           # Kokoro's held-out voices, and flite's where there is one
    python -m benchmarks.cloning --work measured --speaker a --speaker b    # folders of recordings, a .txt beside each

    speakers ─▶ WORK/speakers/NAME/{train,test} ─ prepare ─▶ rows ─ finetune ─▶ models, adapters
             └▶ `Bark.clone` of one clip ─▶ a voice prompt            all of them speak the same texts ─▶ judges

What takes long is kept in WORK, and gone on with when the command is given again. One speaker keeps one core busy: with
`--only` two can be measured side by side, and then all of them put together without it. Judges are Resemblyzer and
whisper-base (`bark_jax.evaluate`); the recipe's requirements must be installed. Prints a table and one JSON object
last.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

import bark_jax
from bark_jax import adapters, evaluate, judges
from bark_jax import audio as audio_files
from bark_jax.files import new_folder, replacing
from bark_jax.train import LoRA, finetune, prepare
from benchmarks import harness
from recipes.bark_nano import corpus, listen, sentences, teachers

WHO = "a synthetic voice; nobody's consent is needed"
TEST = 20
"""Recordings of a speaker that nothing is trained on."""
CLIP_S = (6.0, 9.0)
"""Seconds of the clip that becomes a prompt: the one that is nearest to 8."""
RANK = 8
"""Of adapters: 4 % of bark-nano's weights, where `LoRA`'s default would be a sixth."""
FLITE = ("slt", "rms", "awb")
"""Recorded voices of flite's package: US female, US male, Scottish male."""


# --- speakers ---------------------------------------------------------------------------------------------------------


def teach(folder: Path, minutes: float, speaker: corpus.Speaker, lines: Sequence[str], assets: Path) -> None:
    """Kokoro's held-out voice says lines until there are so many minutes, and `TEST` more."""
    reader, kokoro = teachers.Reader(), teachers.Kokoro(assets, threads=harness.cores())
    _record(
        folder,
        minutes,
        lines,
        lambda line: kokoro(reader(line, british=speaker.british), speaker.style, speed=speaker.speed),
        teachers.SAMPLE_RATE,
    )


def flite(folder: Path, minutes: float, voice: str, lines: Sequence[str]) -> None:
    """The same by one of flite's recorded voices."""

    def speak(line: str) -> np.ndarray:
        path = folder.with_name(f".{folder.name}.wav")
        subprocess.run(["flite", "-voice", voice, "-t", line, "-o", str(path)], check=True)
        audio = audio_files.read(path, teachers.SAMPLE_RATE)
        path.unlink()
        return audio

    _record(folder, minutes, lines, speak, teachers.SAMPLE_RATE)


def _record(folder: Path, minutes: float, lines: Sequence[str], speak: Any, rate: int) -> None:
    if folder.exists():
        return
    with new_folder(folder) as made:
        seconds, n = 0.0, 0
        for part in ("test", "train"):
            (made / part).mkdir()
        for line in lines:
            part = "test" if n < TEST else "train"
            if part == "train" and seconds >= 60 * minutes:
                return
            audio = speak(line)
            audio_files.write(made / part / f"{n:04d}.wav", np.clip(audio, -1, 1), rate, subtype="pcm16")
            (made / part / f"{n:04d}.txt").write_text(line + "\n", "utf-8")
            n, seconds = n + 1, seconds + (len(audio) / rate if part == "train" else 0)
    raise ValueError(f"there are not enough lines for {minutes} minutes of {folder.name}")


def split(source: Path, folder: Path) -> None:
    """Somebody's recordings as the two folders."""
    if folder.exists():
        return
    files = audio_files.recordings(source)
    random.Random(0).shuffle(files)
    with new_folder(folder) as made:
        for i, path in enumerate(files):
            part = made / ("test" if i < TEST else "train")
            part.mkdir(exist_ok=True)
            shutil.copy(path, part)
            if (words := path.with_suffix(".txt")).is_file():
                shutil.copy(words, part)


def some(folder: Path, out: Path, minutes: float, *, shuffled: bool = False) -> Path:
    """So many minutes of a speaker's training recordings in a folder; `shuffled`: each with another's text."""
    if out.exists():
        return out
    chosen, seconds = [], 0.0
    for path in audio_files.recordings(folder / "train"):
        rate, audio = audio_files.read_channels(path, mix=True)
        if seconds >= 60 * minutes:
            break
        chosen.append(path)
        seconds += len(audio) / rate
    texts = [path.with_suffix(".txt") for path in chosen]
    if shuffled:
        texts = texts[1:] + texts[:1]
    with new_folder(out) as made:
        for path, words in zip(chosen, texts, strict=True):
            shutil.copy(path, made / path.name)
            if words.is_file():
                shutil.copy(words, made / f"{path.stem}.txt")
    return out


def prompt(bark: bark_jax.Bark, folder: Path) -> bark_jax.Voice:
    """A voice prompt from the training clip whose length is nearest to 8 s."""
    rate, best = bark.config.codec.sample_rate, None
    for path in audio_files.recordings(folder / "train"):
        audio = audio_files.read(path, rate)
        seconds = len(audio) / rate
        if CLIP_S[0] <= seconds <= CLIP_S[1] and (best is None or abs(seconds - 8) < abs(best[0] - 8)):
            best = seconds, audio
    if best is None:
        raise ValueError(f"{folder} has no recording of {CLIP_S[0]:g} to {CLIP_S[1]:g} s")
    return bark.clone(best[1], rate, consent=WHO)


# --- measurements -----------------------------------------------------------------------------------------------------


class Speaker:
    """A new speaker, and what is measured of them."""

    def __init__(self, name: str, work: Path, model: str, listener: judges.Listener | None):
        self.name, self.folder, self.work = name, work / "speakers" / name, work / name
        self.model, self.listener = model, listener
        self.bark = bark_jax.load(model)
        self.voice = prompt(self.bark, self.folder)
        self.work.mkdir(parents=True, exist_ok=True)

    def measured(self, name: str, ways: dict[str, evaluate.Way], texts: Sequence[str]) -> dict[str, Any]:
        """The scores of ways of speaking, kept."""
        out = self.work / "measured" / name
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            evaluate.evaluate(
                ways,
                self.folder / "test",
                out,
                texts=texts,
                listener=self.listener,
                log=lambda line: harness.say(f"  {line}"),
            )
        return json.loads((out / "evaluation.json").read_text("utf-8"))

    def clip(self, presets: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """The prompt against presets: how much liker the speaker, and how often nearest to them of all."""
        ways = {"clip": evaluate.Way(self.bark, self.voice)} | {p: evaluate.Way(self.bark, p) for p in presets}
        found = self.measured("clip", ways, texts)
        scores = {name: score["similarity"] for name, score in found["ways"].items()}
        speakers = judges.Speakers()

        def vectors(name: str) -> list[np.ndarray]:
            files = sorted((self.work / "measured" / "clip" / name).glob("*.wav"))
            return [speakers(audio_files.read(path, judges.RATE), judges.RATE) for path in files]

        own = [
            speakers(audio_files.read(path, judges.RATE), judges.RATE)
            for path in audio_files.recordings(self.folder / "test")
        ]
        target = judges.mean_speaker(own)
        others = [judges.mean_speaker(vectors(name)) for name in presets]
        nearest = [float(v @ target) > max(float(v @ other) for other in others) for v in vectors("clip")]
        return {
            "similarity": scores["clip"],
            "margin": scores["clip"] - max(scores[name] for name in presets),
            "nearest": statistics.mean(nearest),
            "ceiling": found["ceiling"],
        }

    def tuned(
        self, name: str, recordings: Path, *, lora: LoRA | None, stages: Sequence[str], steps: int | None
    ) -> tuple[Path, float]:
        """A product of fine-tuning on recordings, and the minutes that it took."""
        out, note = self.work / "tuned" / name, self.work / "tuned" / f"{name}.json"
        if not note.is_file():
            start = time.perf_counter()
            rows = prepare(self.bark, recordings, self.work / "rows" / recordings.name, voice=self.name, consent=WHO)
            ready = time.perf_counter()
            harness.say(f"  {name}: {rows.minutes:.1f} minutes of rows in {ready - start:.0f} s")
            data = with_text(rows.rows) if "text" in stages else rows.rows
            made = finetune(self.model, data, out, stages=stages, lora=lora, steps=steps, consent=WHO, progress=True)
            took = {"product": str(made.product), "minutes": (time.perf_counter() - start) / 60}
            with replacing(note) as part:
                part.write_text(json.dumps(took), "utf-8")
        about = json.loads(note.read_text("utf-8"))
        return Path(about["product"]), about["minutes"]

    def way(self, product: Path) -> evaluate.Way:
        """Speaking with a product of fine-tuning, and the same prompt."""
        if product.is_dir():
            return evaluate.Way(bark_jax.load(product), self.voice)
        return evaluate.Way(bark_jax.load(self.model, adapters={"tuned": product}), self.voice, "tuned")


def with_text(rows: Path) -> Path:
    """The rows that have one: a recording that was cut at its pauses has lost its own."""
    table = pq.read_table(rows)
    out = rows.with_name("with-text.parquet")
    pq.write_table(table.filter(table["text"].is_valid()), out)
    return out


def share(bark: bark_jax.Bark, product: Path) -> float:
    """Weights of an adapter for those of the networks that it changes."""
    adapter = adapters.read(product, bark.config)
    own = sum(a.size + b.size for part in adapter.networks.values() for a, b in part.tensors.values())
    whole = bark.parameters()
    return own / sum(whole[name] for name in adapter.networks)


def measure(
    speaker: Speaker,
    other: Path,
    related: Sequence[str],
    texts: Sequence[str],
    minutes: Sequence[int],
    steps: int | None,
) -> dict[str, Any]:
    """All of one new speaker; `other` has recordings of somebody else, for the control, and the presets that are
    `related` have a part of this voice.
    """
    presets = [name for name in speaker.bark.voices() if name not in related][:9]
    result: dict[str, Any] = {"clip": speaker.clip(presets, texts)}
    ways = {"clip": evaluate.Way(speaker.bark, speaker.voice)}
    lora = LoRA(rank=RANK)
    for length in minutes:
        recordings = some(speaker.folder, speaker.work / f"said-{length}", length)
        for kind, how in (("full", None), ("lora", lora)):
            name = f"{kind}-{length}"
            product, took = speaker.tuned(name, recordings, lora=how, stages=("coarse", "fine"), steps=steps)
            ways[name] = speaker.way(product)
            result[f"{name} minutes"] = took
            if how is not None:
                result["lora_share"] = share(speaker.bark, product)
    first = minutes[0]
    wrong = some(other, speaker.work / f"other-{first}", first)
    product, _ = speaker.tuned("other", wrong, lora=None, stages=("coarse", "fine"), steps=steps)
    ways["other"] = speaker.way(product)
    mixed = some(speaker.folder, speaker.work / f"shuffled-{first}", first, shuffled=True)
    product, _ = speaker.tuned("shuffled", mixed, lora=None, stages=("text",), steps=steps)
    ways["shuffled"] = speaker.way(product)
    found = speaker.measured("tuned", ways, texts)
    return result | {"ways": found["ways"], "ceiling": found["ceiling"]}


def summary(found: dict[str, dict[str, Any]], minutes: Sequence[int]) -> dict[str, Any]:
    """The figures of the bars, means over the speakers."""

    def mean(value: Callable[[dict[str, Any]], float]) -> float:
        return statistics.mean(value(one) for one in found.values())

    flat: dict[str, Any] = {
        "clip_margin": mean(lambda one: one["clip"]["margin"]),
        "clip_nearest": mean(lambda one: one["clip"]["nearest"]),
        "lora_share": mean(lambda one: one["lora_share"]),
        "finetune_minutes": mean(lambda one: one[f"full-{minutes[0]} minutes"]),
    }
    for length in minutes:
        for kind, ending in (("full", ""), ("lora", "_lora")):
            name = f"{kind}-{length}"
            flat[f"gap_closed_{length}min{ending}"] = statistics.mean(
                one["ways"][name]["gap_closed"] for one in found.values()
            )
    flat["wer_delta"] = max(
        one["ways"][f"full-{length}"]["wer"] - one["ways"]["clip"]["wer"]
        for one in found.values()
        for length in minutes
    )
    flat["controls_fail"] = all(
        one["ways"]["other"]["similarity"] <= one["ways"]["clip"]["similarity"]
        and one["ways"]["shuffled"]["wer"] > one["ways"]["clip"]["wer"]
        for one in found.values()
    )
    return flat


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; the same again goes on")
    parser.add_argument("--model", default="bark-nano", help="as for bark_jax.load")
    parser.add_argument("--speaker", type=Path, action="append", default=[], help="recordings of one; again for more")
    parser.add_argument("--assets", type=Path, default=Path("bark-nano-work/assets"), help="of the recipe")
    parser.add_argument("--transcripts", type=Path, default=corpus.SHARED / "ljspeech/transcripts.tsv")
    parser.add_argument("--speakers", type=int, default=155, help="of the model's corpus: which are held out of it")
    parser.add_argument("--minutes", default="5,20", help="of speech that is learnt from")
    parser.add_argument("--only", action="append", default=[], help="this speaker's part alone; again for more")
    parser.add_argument("--steps", type=int, help="updates of each stage; default: those of `finetune`")
    parser.add_argument("--texts", type=int, default=len(evaluate.TEXTS), help="of those that are spoken")
    parser.add_argument("--out", help="a file for the JSON; a bare NAME means benchmarks/results/NAME.json")
    given = parser.parse_args(arguments)
    minutes = [int(part) for part in given.minutes.split(",")]
    place = given.work / "speakers"
    place.mkdir(parents=True, exist_ok=True)
    related: dict[str, Sequence[str]] = {}
    for source in given.speaker:
        split(source, place / source.name)
    if not given.speaker:
        lines = list(sentences.transcripts(given.transcripts))
        random.Random("cloning").shuffle(lines)
        cast = corpus.speakers(given.speakers, list(teachers.voices(given.assets)))
        heldout = [one for one in cast if one.heldout and one.name not in corpus.HELD_OUT]
        for speaker in heldout[:2]:
            related[speaker.name] = list(speaker.style.colour)
            harness.say(f"{speaker.name} speaks")
            teach(place / speaker.name, max(minutes), speaker, lines, given.assets)
        if shutil.which("flite"):
            harness.say(f"{FLITE[0]} speaks")
            flite(place / FLITE[0], max(minutes), FLITE[0], lines)
    speakers = sorted(path.name for path in place.iterdir() if path.is_dir())
    if len(speakers) < 2:
        parser.error("there is one speaker: name two, each is the control of the other")
    if unknown := set(given.only) - set(speakers):
        parser.error(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(speakers)}")
    listener = judges.Listener(str(listen.folder(given.assets)), threads=harness.cores())
    found = {}
    for i, name in enumerate(speakers):
        if given.only and name not in given.only:
            continue
        harness.say(name)
        other = place / speakers[(i + 1) % len(speakers)]
        speaker = Speaker(name, given.work, given.model, listener)
        found[name] = measure(
            speaker, other, related.get(name, ()), evaluate.TEXTS[: given.texts], minutes, given.steps
        )
    result = {
        **harness.environment(jax.devices()[0]),
        "model": Path(given.model).name,
        **summary(found, minutes),
        "speakers": found,
    }
    rows = []
    for name, one in found.items():
        for way, score in one["ways"].items():
            closed = "" if score["gap_closed"] is None else f"{score['gap_closed']:.0%}"
            rows.append([f"{name}, {way}", f"{score['similarity']:.3f}", closed, f"{score['wer']:.1f}"])
    return harness.finish(result, harness.table(["", "similarity", "gap closed", "WER %"], rows), given.out)


if __name__ == "__main__":
    sys.exit(main())
