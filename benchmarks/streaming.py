"""How soon a stream speaks, whether it ever stalls, and whether a long text stays one text in one voice.

    python -m benchmarks.streaming                                  # all of it, with bark-nano
    python -m benchmarks.streaming --parts joined,latency,play      # what needs no judges

Takes a loaded model; prints a table per part and one JSON object last. What is heard is judged by whisper-base and
Resemblyzer, as in `recipes.bark_nano.evaluate` (the recipe's requirements must be installed for part "long").
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import bark_jax
from bark_jax import Bark, BarkWarning, Chunk, Sampling, codec, judges, splitting
from bark_jax.spectra import log_mel
from bark_jax.streaming import Spoken
from benchmarks import harness

PARTS = ("joined", "latency", "play", "low", "long")
SHORT = "Good morning!"
"""A short first sentence."""
LSB = 1 / 32768


# --- joined = whole ---------------------------------------------------------------------------------------------------


def joined(bark: Bark, sentences: Sequence[str], voices: Sequence[str | None], n: int) -> dict[str, Any]:
    """`n` random texts and voices: the stream against `generate`, and the codec in random pieces against the whole."""
    rng = random.Random(0)
    equal_tokens = equal_audio = equal_pieces = 0
    worst = worst_piece = 0.0
    for i in range(n):
        text = " ".join(rng.sample(sentences, rng.choice((1, 1, 1, 2, 6))))
        options: dict[str, Any] = {
            "voice": rng.choice(voices),
            "seed": rng.randrange(2**64),
            "sampling": Sampling(max_duration_s=rng.choice((0.5, 2.0, None))),
        }
        whole = bark.generate(text, **options)
        chunks, said = _events(bark, text, options)
        audio = np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in chunks)])
        tokens = [
            np.concatenate([getattr(one, name) for one in said], axis=-1) for name in ("semantic", "coarse", "fine")
        ]
        equal_tokens += all(map(np.array_equal, tokens, (whole.semantic, whole.coarse, whole.fine)))
        off = _difference(audio, whole.audio)
        equal_audio, worst = equal_audio + (off <= LSB), max(worst, off)

        network = bark._engine.network("codec").module
        decoding, at, heard = codec.Decoding(network), 0, []
        while at < whole.fine.shape[1]:
            size = rng.choice((0, 1, 1, 2, 3, 7, 20, 100))
            heard.append(decoding.push(whole.fine[:, at : at + size]))
            at += size
        heard.append(decoding.push(whole.fine[:, :0], last=True))
        off = _difference(np.concatenate(heard), np.asarray(codec.decode(network, whole.fine)))
        equal_pieces, worst_piece = equal_pieces + (off <= LSB), max(worst_piece, off)
        if (i + 1) % 20 == 0:
            harness.say(f"joined: {i + 1} of {n}")
    return {
        "texts": n,
        "tokens_equal": equal_tokens,
        "audio_within_1_lsb": equal_audio,
        "largest_difference": worst,
        "pieces_within_1_lsb": equal_pieces,
        "largest_difference_of_pieces": worst_piece,
        "joined_equal": equal_tokens == equal_audio == equal_pieces == n,
    }


def _events(bark: Bark, text: str, options: dict[str, Any]) -> tuple[list[Chunk], list[Spoken]]:
    """What `Bark.stream` hands out, and the tokens that it does not."""
    [script] = bark._intake.scripts(text, options["voice"], options["seed"], options["sampling"], None, True)
    events = list(bark._events(script, lambda *_: None, low=False))
    return [e for e in events if isinstance(e, Chunk)], [e for e in events if isinstance(e, Spoken)]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0))


# --- time to first audio ----------------------------------------------------------------------------------------------


def latency(bark: Bark, voice: str | None, repeat: int) -> dict[str, Any]:
    """Seconds from the call to the first samples, after warm-up: the median of `repeat` seeds."""

    def first(how: str, seed: int) -> float:
        start = time.perf_counter()
        chunks = bark.stream(SHORT, voice=voice, seed=seed, latency=how)
        next(chunks)
        took = time.perf_counter() - start
        chunks.close()
        return took

    for seed in range(3):
        for how in ("exact", "low"):
            list(bark.stream(SHORT, voice=voice, seed=seed, latency=how))
    seconds: dict[str, list[float]] = {"exact": [], "low": []}
    for seed in range(repeat):
        for how, took in seconds.items():
            took.append(first(how, seed))
    return {
        "text": SHORT,
        "ttfa_exact_s": harness.median(seconds["exact"]),
        "ttfa_low_s": harness.median(seconds["low"]),
        "all_seconds": seconds,
    }


# --- low latency against exact ----------------------------------------------------------------------------------------


def low(bark: Bark, sentences: Sequence[str], voice: str | None, assets: Path) -> dict[str, Any]:
    """What the low latency costs: words, and how far its spectra are from the exact ones (and these from another seed).

    Both have the same semantic and coarse tokens, so the same words at the same time; the other six codebooks are drawn
    with less to look ahead at.
    """
    from recipes.bark_nano import listen

    whisper, rate = listen.Whisper(assets), bark.config.codec.sample_rate
    wrong: dict[str, list[tuple[int, int]]] = {"exact": [], "low": []}
    apart: dict[str, list[float]] = {"low": [], "seeds": []}
    equal: list[float] = []
    for seed, text in enumerate(sentences):
        exact = bark.generate(text, voice=voice, seed=seed)  # what the exact stream is, joined
        chunks = bark.stream(text, voice=voice, seed=seed, latency="low")
        made = {"exact": exact.audio, "low": np.concatenate([chunk.audio for chunk in chunks])}
        other = bark.decode(bark.coarse_to_fine(exact.coarse, voice=voice, seed=seed + 10_000))
        apart["low"].append(spectral_distance(made["low"], made["exact"], rate))
        apart["seeds"].append(spectral_distance(other, exact.audio, rate))
        equal.append(float(len(made["low"]) == len(made["exact"])))
        for how, audio in made.items():
            wrong[how].append(whisper.wrong(text, audio, rate))
    wer = {how: 100 * sum(w for w, _ in c) / sum(n for _, n in c) for how, c in wrong.items()}
    return {
        "sentences": len(sentences),
        "wer_exact": wer["exact"],
        "wer_low": wer["low"],
        "low_wer_delta": wer["low"] - wer["exact"],
        "low_spectral_db": statistics.mean(apart["low"]),
        "other_seed_spectral_db": statistics.mean(apart["seeds"]),
        "equal_lengths": statistics.mean(equal) if equal else 0.0,
    }


def spectral_distance(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    """Mean absolute difference of the log mel spectra of (samples,) and (samples,), dB, where one of them is within
    60 dB of the loudest; over what both have.
    """
    n = min(len(a), len(b))
    if n < 1024:
        return 0.0
    both = np.stack([a[:n], b[:n]])
    x, y = np.asarray(log_mel(jnp.asarray(both), 1024, 256, 80, rate)) * (20 / np.log(10))
    heard = np.maximum(x, y) > max(x.max(), y.max()) - 60
    return float(np.abs(x - y)[heard].mean())


# --- playing at real time ---------------------------------------------------------------------------------------------


def player(arrivals: Sequence[tuple[float, float]]) -> tuple[int, float]:
    """Of chunks (arrival, seconds of audio), played at once: how often playing stalls, and the longest stall."""
    stalls, longest, until = 0, 0.0, arrivals[0][0]
    for at, duration in arrivals:
        if at > until:
            stalls, longest, until = stalls + 1, max(longest, at - until), at
        until += duration
    return stalls, longest


def play(bark: Bark, text: str, voice: str | None) -> dict[str, Any]:
    """Play a text of some three minutes while it is made."""
    start = time.perf_counter()
    arrivals = [(time.perf_counter() - start, chunk.duration) for chunk in bark.stream(text, voice=voice, seed=1)]
    made = time.perf_counter() - start
    audio = sum(duration for _, duration in arrivals)
    stalls, longest = player(arrivals)
    gaps = np.diff([at for at, _ in arrivals])
    return {
        "audio_s": audio,
        "seconds": made,
        "times_real_time": audio / made,
        "ttfa_s": arrivals[0][0],
        "underruns": stalls,
        "longest_stall_s": longest,
        "gap_p50_s": float(np.percentile(gaps, 50)) if len(gaps) else 0.0,
        "gap_p99_s": float(np.percentile(gaps, 99)) if len(gaps) else 0.0,
    }


# --- a long text ------------------------------------------------------------------------------------------------------


def long(bark: Bark, text: str, voice: str, assets: Path) -> dict[str, Any]:
    """Words lost against its sentences spoken alone, the voice at both ends, and memory on the way."""
    from recipes.bark_nano import listen

    whisper, speakers = listen.Whisper(assets), judges.Speakers()
    rate = bark.config.codec.sample_rate

    def who(audio: np.ndarray) -> np.ndarray:
        return speakers(audio, rate)

    sentences = [one.strip() for one in splitting.sentences(text)]
    memory: list[float] = []
    [script] = bark._intake.scripts(text, voice, 1, Sampling(), None, True)
    planned = [part.text for part in script.plan.parts]
    ends_at: dict[int, int] = {}  # part → samples up to its end
    with tempfile.TemporaryFile() as file:  # not in memory, whose growth is measured
        for chunk, last in _with_last(bark.stream(text, voice=voice, seed=1)):
            memory.append(_resident())
            file.write(chunk.audio.tobytes())
            ends_at[chunk.segment] = file.tell() // 4
            if last:
                harness.say(f"long: {len(ends_at)} of {len(planned)} parts")
        file.seek(0)
        audio = np.frombuffer(file.read(), np.float32)
    counts, start = [], 0
    for number, said in enumerate(planned):  # a part without any audio counts as silence
        end = ends_at.get(number, start)
        counts.append(whisper.wrong(said, audio[start:end] if end > start else np.zeros(rate, np.float32), rate))
        start = end
    said_alone = zip(sentences, _alone(bark, sentences, voice), strict=True)
    alone = [whisper.wrong(said, speech.audio, rate) for said, speech in said_alone]
    wer_long, wer_alone = (100 * sum(w for w, _ in c) / sum(n for _, n in c) for c in (counts, alone))
    tenth = len(audio) // 10
    prompt = bark._library.get(voice)
    preset = who(bark.decode(np.zeros((1, 0), np.int32) if prompt is None else prompt.fine))
    ends = [float(who(part) @ preset) for part in (audio[:tenth], audio[-tenth:])]
    n = len(memory)
    tenths = [max(memory[n * i // 10 : max(n * (i + 1) // 10, n * i // 10 + 1)]) for i in range(10)]
    return {
        "words": len(text.split()),
        "parts": len(planned),
        "parts_lost": len(planned) - len(ends_at),
        "sentences": len(sentences),
        "audio_s": len(audio) / rate,
        "wer_long": wer_long,
        "wer_alone": wer_alone,
        "long_wer_delta": wer_long - wer_alone,
        "ge2e_first_tenth": ends[0],
        "ge2e_last_tenth": ends[1],
        "voice_drift": ends[0] - ends[1],
        "memory_mb_by_tenth": tenths,
        "memory_growth": tenths[9] / tenths[1] - 1,
    }


def _alone(bark: Bark, sentences: Sequence[str], voice: str) -> Iterator[bark_jax.Speech]:
    for i in range(0, len(sentences), 16):
        yield from bark.generate(
            list(sentences[i : i + 16]), voice=voice, seed=list(range(i, i + len(sentences[i : i + 16])))
        )


def _with_last(chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, bool]]:
    before = None
    for chunk in chunks:
        if before is not None:
            yield before, False
        before = chunk
    if before is not None:
        yield before, True


def _resident() -> float:
    """Megabytes that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:  # not Linux: the most it has held so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# --- command line -----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description="Measure Bark.stream.")
    p.add_argument("--model", default="bark-nano", help="what bark_jax.load takes (bark-nano)")
    p.add_argument("--voice", default="af_nova", help="a preset of the model; none: no voice (af_nova)")
    p.add_argument("--text", type=Path, default=Path("../shared/data/ljspeech/transcripts.tsv"),
                   help="a long text, or a table of ids and lines, whose lines are joined")  # fmt: skip
    p.add_argument("--words", type=int, default=2500, help="how much of it part long speaks (2500)")
    p.add_argument("--texts", type=int, default=200, help="of part joined (200)")
    p.add_argument("--low", type=int, default=40, help="sentences of part low (40)")
    p.add_argument("--repeat", type=int, default=11, help="first chunks of each kind (11)")
    p.add_argument("--parts", type=harness.some_of(PARTS), default=PARTS, help=f"of {','.join(PARTS)}; default: all")
    p.add_argument("--assets", type=Path, default=Path("bark-nano-work/assets"), help="where whisper-base is kept")
    p.add_argument("--device", choices=("cpu", "gpu"), help="default: JAX's")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help="of the weights")
    p.add_argument("--out", help="write the JSON to this file, or to benchmarks/results/NAME.json for a bare name")
    return p


def read(path: Path) -> str:
    """A text, or the last columns of a table."""
    lines = path.read_text("utf-8").splitlines()
    return " ".join(line.rpartition("\t")[2].strip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the result if asked to."""
    options = parser().parse_args(arguments)
    warnings.simplefilter("ignore", BarkWarning)
    voice = None if options.voice == "none" else options.voice
    bark = bark_jax.load(options.model, device=options.device, dtype=options.dtype)
    result: dict[str, Any] = {**harness.environment(bark.device), "model": options.model, "dtype": bark.dtype}
    words = read(options.text).split() if {"joined", "play", "low", "long"} & set(options.parts) else []
    sentences = [one.strip() for one in splitting.sentences(" ".join(words[:4000])) if len(one.split()) < 25]
    measured: dict[str, Any] = {}
    if "latency" in options.parts:
        measured["latency"] = latency(bark, voice, options.repeat)
    if "play" in options.parts:
        play(bark, " ".join(words[:60]), voice)  # compiles what groups of parts need
        measured["play"] = play(bark, " ".join(words[:520]), voice)
    if "joined" in options.parts:
        measured["joined"] = joined(bark, sentences, [None, *bark.voices()[:4]], options.texts)
    if "low" in options.parts:
        measured["low"] = low(bark, sentences[: options.low], voice, options.assets)
    if "long" in options.parts:
        measured["long"] = long(bark, " ".join(words[: options.words]), options.voice, options.assets)
    for part, figures in measured.items():
        rows = [[key, f"{value:.4g}" if isinstance(value, float) else str(value)] for key, value in figures.items()
                if not isinstance(value, dict | list)]  # fmt: skip
        print(f"\n{part}\n{harness.table(['', ''], rows)}")
    keys = (
        "joined_equal",
        "ttfa_exact_s",
        "ttfa_low_s",
        "underruns",
        "low_wer_delta",
        "long_wer_delta",
        "voice_drift",
        "memory_growth",
    )
    flat = {key: value for figures in measured.values() for key, value in figures.items()}
    result |= {key: flat[key] for key in keys if key in flat} | measured
    result = harness.rounded(result)
    if options.out:
        harness.write_json(harness.results_path(options.out), result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
