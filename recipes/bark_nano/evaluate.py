"""How good each part is: ``python -m recipes.bark_nano.evaluate codec``, or ``speech`` (`recipes.bark_nano.speech`),
``text`` (`recipes.bark_nano.fit`) or ``coarse`` (`recipes.bark_nano.heard`). A table, and one line of JSON at the end.

``WORK/evaluation/codec`` keeps what the figures are made of: ``clips.jsonl``, a line per clip and coder,
``units.jsonl``, a line per clip, and the audio.
Clips are of voices that nothing was trained on: the held-out voices of the corpus, and LibriSpeech's test speakers.
STOI and PESQ (wide band) compare with the source at 16 kHz. Opus, at two rates, stands beside.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flax import nnx

from bark_jax import codec as codecs
from bark_jax import weights
from bark_jax.audio import read, write
from bark_jax.codec import Codec
from bark_jax.files import replacing
from recipes.bark_nano import corpus, run
from recipes.bark_nano.train_codec import CONFIG, read_codec

RATE = CONFIG.sample_rate
COPY = "8 codebooks"
"""What the codec's copies of a clip are called."""
JUDGED_RATE = 16_000
OPUS = {"opus 8 kbit/s": 1.0, "opus 20 kbit/s": 0.95}
"""libsndfile's compression level of each rate, measured on speech."""
MAX_S = 12.0
"""Of a clip; the rest of a longer one is not judged."""


def load_codec(path: Path) -> Codec:
    """The codec of a ``codec.safetensors``; raises `weights.CheckpointError` if it is of another kind."""
    import jax.numpy as jnp

    module = nnx.eval_shape(lambda: Codec(CONFIG, rngs=nnx.Rngs(0)))
    return weights.fill(module, {name: jnp.asarray(x) for name, x in read_codec(path, CONFIG).items()})


def clips(work: Path, n_voices: int, n_real: int) -> list[tuple[str, str | None, Path]]:
    """(name, text if it is known, file): of each held-out voice as many as of the others, and of each test speaker."""
    held = [clip for clip in corpus.read_plan(work) if clip.split == "heldout"]
    held = [clip for clip in held if corpus.audio_path(work, clip.id).is_file()]
    said = sorted(held, key=lambda clip: (clip.id.rsplit("/", 1)[1], clip.voice))[:n_voices]
    real = sorted(corpus.recorded(work, "test").glob("*.flac"), key=lambda path: (path.stem.rsplit("-", 1)[-1], path))
    out: list[tuple[str, str | None, Path]] = [(c.id, c.text, corpus.audio_path(work, c.id)) for c in said]
    out += [(f"librispeech/{path.stem}", None, path) for path in real[:n_real]]
    if not out:
        raise ValueError(f"{work} has no clips of held-out voices and no recordings: run `corpus speak` and `record`")
    return out


def scores(source: np.ndarray, copy: np.ndarray) -> dict[str, float]:
    """STOI and PESQ of a copy, both (samples,) at `JUDGED_RATE`."""
    from pesq import PesqError, pesq
    from pystoi import stoi

    n = min(len(source), len(copy))
    source, copy = source[:n], copy[:n]
    try:
        quality = float(pesq(JUDGED_RATE, source, copy, "wb"))
    except PesqError:
        quality = float("nan")
    return {"stoi": float(stoi(source, copy, JUDGED_RATE)), "pesq": quality}


def _opus(audio: np.ndarray, level: float) -> np.ndarray:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio, RATE, format="OGG", subtype="OPUS", compression_level=level)
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


def _resample(audio: np.ndarray) -> np.ndarray:
    import soxr

    return soxr.resample(audio, RATE, JUDGED_RATE)


def judge(work: Path, codec: Codec, *, n_voices: int, n_real: int) -> tuple[list[dict[str, Any]], np.ndarray, float]:
    """Rows of all clips and coders, how often each code was used (Q, K), and how many times real time decoding is."""
    rows: list[dict[str, Any]] = []
    used = np.zeros((CONFIG.n_codebooks, CONFIG.codebook_size), np.int64)
    decoded = spent = 0.0
    for name, text, path in clips(work, n_voices, n_real):
        audio = read(path, RATE)[: int(MAX_S * RATE)]
        codes = np.asarray(codecs.encode(codec, audio))
        for table, row in zip(used, codes, strict=True):
            table += np.bincount(row, minlength=len(table))
        codecs.decode(codec, codes)  # compiled, if it is the first
        began = time.perf_counter()
        eight = np.asarray(codecs.decode(codec, codes))
        spent += time.perf_counter() - began
        decoded += len(eight) / RATE
        made: dict[str, np.ndarray] = {COPY: eight, "2 codebooks": np.asarray(codecs.decode(codec, codes[:2]))}
        made |= {label: _opus(audio, level) for label, level in OPUS.items()}
        source = _resample(audio)
        for label, copy in made.items():
            copy = copy[: len(audio)]
            row = {"clip": name, "coder": label, "seconds": round(len(audio) / RATE, 3), "text": text}
            rows.append(row | {key: round(value, 4) for key, value in scores(source, _resample(copy)).items()})
            _keep(copy_path(work, label, name), copy)
        _keep(copy_path(work, "source", name), audio)
    return rows, used, decoded / spent


def copy_path(work: Path, coder: str, clip: str) -> Path:
    """Where a coder's copy of a clip is kept."""
    folder = work / "evaluation" / "codec" / coder.replace(" ", "-").replace("/", "-")
    return folder / f"{clip.replace('/', '_')}.flac"


def _keep(path: Path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, audio, RATE)


def word_errors(work: Path, rows: Sequence[dict[str, Any]], whisper: Any) -> tuple[float, float]:
    """whisper's word error rates on the sources and on the copies of 8 codebooks, where the text is known. Their rows
    get "words", "source_errors" and "errors".
    """
    from recipes.bark_nano import listen

    totals = np.zeros(3)
    for row in rows:
        if row["coder"] == COPY and row["text"]:
            item = SimpleNamespace(text=row["text"])
            for key, coder in (("source_errors", "source"), ("errors", COPY)):
                # Each by itself: voices say the same sentences, and of one that is repeated whisper writes one only.
                audio = listen.load(copy_path(work, coder, row["clip"]))
                ((_, _, row[key], row["words"]),) = whisper.compare([(item, audio)])
            totals += (row["source_errors"], row["errors"], row["words"])
    return totals[0] / max(totals[2], 1), totals[1] / max(totals[2], 1)


def check_labels(work: Path) -> None:
    """Raises `ValueError` if a held-out clip of the corpus has no units to be compared with."""
    from recipes.bark_nano import units

    heldout = [clip.id for clip in units.read_aloud(work, bulk=0) if clip.split == "heldout"]
    if missing := [id_ for id_ in heldout if not units.label_path(work, id_).is_file()]:
        raise ValueError(
            f"{missing[0]} has no units to compare with, as {len(missing)} have none: run `units align` and `cluster`"
        )


def judge_units(work: Path) -> dict[str, float]:
    """How well the network of step 2 does on held-out voices.

    ``unit_agreement`` is the share of its frames that are the unit which `units cluster` gave them, knowing what is
    said and how the voice sounds on average. Where the network finds the same sound, if not the same unit, is printed
    beside it. ``unit_order`` is the share of comparisons where one sentence by two voices is nearer than two sentences
    by one of them; distances are edit distances of the network's units over the length of the longer sequence.
    """
    from rapidfuzz.distance import Levenshtein

    from bark_jax import units as networks
    from recipes.bark_nano import units

    network = networks.load(work / "units" / "units.safetensors")
    clips = {clip.id: clip for clip in corpus.read_plan(work)}
    found: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    sound = units.sound_of_units(work)
    for clip in units.read_aloud(work, bulk=0):
        if clip.split == "heldout":
            found[clip.id] = networks.encode(network, read(corpus.audio_path(work, clip.id), RATE))
            known = np.load(units.label_path(work, clip.id))
            n = min(len(known), len(found[clip.id]))
            ours, wanted = found[clip.id][:n], known[:n]
            same = {"right": int(np.sum(ours == wanted)), "sound": int(np.sum(sound[ours] == sound[wanted]))}
            rows.append({"clip": clip.id, **same, "frames": n})
    corpus.write_lines(work / "evaluation" / "codec" / "units.jsonl", rows)

    def share(key: str) -> float:
        return sum(row[key] for row in rows) / max(1, sum(row["frames"] for row in rows))

    voices: dict[str, dict[str, np.ndarray]] = {}
    for id_ in sorted(found):
        voices.setdefault(clips[id_].voice, {})[clips[id_].text] = found[id_]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return Levenshtein.normalized_distance(a.tolist(), b.tolist())

    same, other, ordered = [], [], []
    for one, two in itertools.permutations(voices, 2):
        both = [text for text in voices[one] if text in voices[two]]
        for a, b in itertools.pairwise([*both, *both[:1]]):
            if a != b:
                same.append(distance(voices[one][a], voices[two][a]))
                other.append(distance(voices[one][a], voices[one][b]))
                ordered.append(same[-1] < other[-1])
    right, sound_right = (f"{share(key):.1%}" for key in ("right", "sound"))
    print(f"units            {right} of the frames of held-out voices agree, {sound_right} in the sound")
    print(
        f"                 edit distance {np.mean(same):.3f} of one sentence by two voices, {np.mean(other):.3f} of two"
    )
    return {"unit_agreement": share("right"), "unit_order": float(np.mean(ordered))}


def picture(work: Path, rows: Sequence[dict[str, Any]], count: int = 4) -> Path:
    """Spectrograms of source and copy of some clips, of both kinds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = sorted({row["clip"] for row in rows})
    real = [name for name in names if name.startswith("librispeech")]
    said = [name for name in names if name not in real]
    chosen = [kind[i * len(kind) // (count // 2)] for kind in (said, real) for i in range(min(count // 2, len(kind)))]
    figure, axes = plt.subplots(len(chosen), 2, figsize=(11, 2.1 * len(chosen)), sharey=True, squeeze=False)
    for line, name in zip(axes, chosen, strict=True):
        for axis, coder in zip(line, ("source", COPY), strict=True):
            audio = read(copy_path(work, coder, name), RATE)[: 4 * RATE]
            axis.specgram(audio + 1e-6, NFFT=1024, noverlap=768, Fs=RATE / 1000, vmin=-110, vmax=-20, cmap="magma")
            axis.set_title(f"{name}: {coder}", fontsize=8)
        line[0].set_ylabel("kHz")
    for axis in axes[-1]:
        axis.set_xlabel("ms")
    path = work / "evaluation" / "codec" / "spectrograms.png"
    figure.tight_layout()
    with replacing(path) as part:
        figure.savefig(part, dpi=70, format="png")
    plt.close(figure)
    return path


def evaluate_codec(work: Path, assets: Path, path: Path, *, n_voices: int, n_real: int, wer: bool) -> dict[str, Any]:
    """All figures of the codec, and of the units where there is a network.

    Raises:
      ValueError: there is nothing to judge by: no clips, or no labels for the units.
    """
    with_units = (work / "units" / "units.safetensors").is_file()
    if with_units:
        check_labels(work)
    rows, used, speed = judge(work, load_codec(path), n_voices=n_voices, n_real=n_real)

    def mean(coder: str, key: str, keep: Callable[[str], bool] = lambda name: True) -> float:
        values = [row[key] for row in rows if row["coder"] == coder and keep(row["clip"])]
        return float(np.nanmean(values)) if values else float("nan")

    print(f"{'':16}{'STOI':>8}{'PESQ':>8}   of held-out voices    of LibriSpeech's")
    for coder in (COPY, "2 codebooks", *OPUS):
        both = [mean(coder, key) for key in ("stoi", "pesq")]
        ours = [mean(coder, key, lambda name: not name.startswith("libri")) for key in ("stoi", "pesq")]
        real = [mean(coder, key, lambda name: name.startswith("libri")) for key in ("stoi", "pesq")]
        print(f"{coder:16}{both[0]:8.3f}{both[1]:8.2f}{ours[0]:14.3f}{ours[1]:8.2f}{real[0]:14.3f}{real[1]:8.2f}")
    share = used / used.sum(axis=1, keepdims=True)
    perplexity = np.exp(-np.sum(share * np.log(np.maximum(share, 1e-12)), axis=1))
    usage = np.mean(used > 0, axis=1)
    print("codes used     ", " ".join(f"{x:7.1%}" for x in usage))
    print("perplexity     ", " ".join(f"{x:7.0f}" for x in perplexity))
    result: dict[str, Any] = {
        "stoi8": mean(COPY, "stoi"),
        "pesq8": mean(COPY, "pesq"),
        "stoi2": mean("2 codebooks", "stoi"),
        "usage_min": float(usage.min()),
        "codec_mb": path.stat().st_size / 1e6,
        "decode_xrt": speed,
    }
    if wer:
        from recipes.bark_nano import listen

        whisper = listen.Whisper(assets)
        source, copy = word_errors(work, rows, whisper)
        print(f"word errors      {source:.1%} of the source, {copy:.1%} of the copy")
        result["wer_delta"] = 100 * (copy - source)
    corpus.write_lines(work / "evaluation" / "codec" / "clips.jsonl", rows)
    if with_units:
        result |= judge_units(work)
    print(f"spectrograms     {picture(work, rows)}")
    print(f"weights          {result['codec_mb']:.1f} MB; decoding {speed:.0f} x real time")
    return {key: round(value, 4) for key, value in result.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.evaluate", description="Measure what was made.")
    parts = parser.add_subparsers(dest="part", required=True)
    ours = corpus.places_of_files("folder where whisper is kept")
    codec = parts.add_parser("codec", parents=[ours], help="the codec and the units")
    codec.add_argument("--voices", type=int, default=60, help="clips of held-out voices (60)")
    codec.add_argument("--real", type=int, default=40, help="clips of LibriSpeech's test speakers (40)")
    codec.add_argument("--no-wer", action="store_true", help="do not let whisper listen")
    speech = parts.add_parser("speech", parents=[ours], help="text to speech")
    speech.add_argument("--model", default="bark-nano", help="a native folder, or bark-nano (the one that is bundled)")
    speech.add_argument("--transcripts", type=Path, default=corpus.SHARED / "ljspeech" / "transcripts.tsv")
    speech.add_argument("--seeds", type=int, default=3, help="runs over all lines (3)")
    speech.add_argument("--every", type=int, default=1, help="one line of so many (1)")
    speech.add_argument("--no-speed", action="store_true", help="without the speeds")
    text = parts.add_parser("text", parents=[ours], help="the text stage alone")
    coarse = parts.add_parser("coarse", parents=[ours], help="the coarse stage alone")
    for part in (text, coarse):
        part.add_argument(
            "--model", default="bark-nano", help="a native folder, or bark-nano (the one that is bundled)"
        )
        part.add_argument(
            "--rows", type=Path, default=corpus.MADE / "rows", help="the corpus as tokens; default: made/rows"
        )
    coarse.add_argument("--draws", type=int, default=3, help="of each clip (3)")
    options = parser.parse_args(argv)
    assets = options.assets or options.work / "assets"

    def measure() -> dict[str, Any]:
        if options.part == "codec":
            return evaluate_codec(
                options.work,
                assets,
                options.work / "codec" / "codec.safetensors",
                n_voices=options.voices,
                n_real=options.real,
                wer=not options.no_wer,
            )
        if options.part == "text":
            from recipes.bark_nano.fit import evaluate_text

            return evaluate_text(options.rows, options.model)
        if options.part == "coarse":
            from recipes.bark_nano.heard import evaluate_coarse

            return evaluate_coarse(options.rows, options.model, assets, draws=options.draws)
        from recipes.bark_nano.speech import evaluate_speech

        return evaluate_speech(
            options.work,
            assets,
            options.transcripts,
            options.model,
            seeds=options.seeds,
            every=options.every,
            timed=not options.no_speed,
        )

    return run(lambda: print(json.dumps(measure())))


if __name__ == "__main__":
    sys.exit(main())
