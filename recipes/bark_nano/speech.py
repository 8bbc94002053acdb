"""How well bark-nano speaks, beside its teacher, the codec alone, and espeak-ng: ``evaluate speech``.

    200 held-out and 40 Harvard sentences, presets in turn ─▶ each speaker's audio ─▶ whisper, GE2E, DNSMOS ─▶ figures

``WORK/evaluation/speech`` keeps the audio (``SPEAKER/SET-NUMBER.flac``) and a line for each clip (``clips.jsonl``),
from which `figures` makes the figures. What is there already is neither spoken nor heard again, so that a run goes on
where it was stopped; another model needs another folder.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bark_jax
from bark_jax import judges
from bark_jax.audio import read, write
from bark_jax.files import replacing
from recipes.bark_nano import corpus, listen, sentences
from recipes.bark_nano.rows import fit
from recipes.bark_nano.teachers import Kokoro, Reader, voices

RATE = 24_000
LENGTHS = (0.6, 1.6)
"""Of an utterance, as a share of the teacher's."""
AFTER_WORDS, AFTER_S, QUIET = 3, 1.0, 0.01
"""Babble is so many words after the text (a second of speech), or so much sound below that share of the peak."""
N_HELDOUT_VOICE_LINES = 20
ROWS = 8
"""Utterances spoken at once."""
FOX, FOX_VOICE, FOX_SEED = "The quick brown fox jumps over the lazy dog.", "af_nova", 2
"""What the README's first example says, and in whose voice; with a picture of it."""


@dataclass(frozen=True)
class Line:
    """A sentence and the voice that says it."""

    set: str
    """"heldout", "harvard", or "cloned": a voice that nothing was trained on."""
    number: int
    text: str
    voice: str

    @property
    def name(self) -> str:
        return f"{self.set}-{self.number:03d}"


def lines(transcripts: Path, presets: Sequence[str]) -> list[Line]:
    """All lines: held-out sentences and Harvard sentences by the presets in turn, some by the held-out voices."""
    heldout = corpus.heldout_sentences(transcripts)
    out = []
    for set_, texts in (("heldout", heldout), ("harvard", sentences.HARVARD)):
        for i, text in enumerate(texts):  # every tenth line, too, has the voices in turn
            out.append(Line(set_, i, text, presets[(i + i // len(presets)) % len(presets)]))
    some = heldout[:: len(heldout) // (2 * N_HELDOUT_VOICE_LINES)][: 2 * N_HELDOUT_VOICE_LINES]
    return out + [Line("cloned", i, text, corpus.HELD_OUT[i % 2]) for i, text in enumerate(some)]


class Folder:
    """Where audio and rows are kept.

    Args:
      path: ``WORK/evaluation/speech``.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def clips(self) -> Path:
        """The rows, a line of JSON each."""
        return self.path / "clips.jsonl"

    def audio(self, speaker: str, line: Line) -> Path:
        return self.path / speaker / f"{line.name}.flac"

    def missing(self, speaker: str, wanted: Iterable[Line]) -> list[Line]:
        return [line for line in wanted if not self.audio(speaker, line).is_file()]

    def keep(self, speaker: str, line: Line, audio: np.ndarray) -> None:
        path = self.audio(speaker, line)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, audio, RATE)

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows that are there, by speaker and line."""
        return {(row["speaker"], row["line"]): row for row in corpus.read_lines(self.clips)}


# --- who speaks -------------------------------------------------------------------------------------------------------


def teach(folder: Folder, wanted: Sequence[Line], assets: Path) -> None:
    """The teacher says each line, in the voice itself."""
    waiting = folder.missing("teacher", wanted)
    if not waiting:
        return
    reader, kokoro = Reader(), Kokoro(assets)
    speakers = {speaker.name: speaker for speaker in corpus.speakers(155, list(voices(assets)))}
    for line in waiting:
        speaker = speakers[line.voice]
        phonemes = reader(line.text, british=speaker.british)
        folder.keep("teacher", line, corpus.trim(kokoro(phonemes, speaker.style, speed=speaker.speed)))


def copy(folder: Folder, wanted: Sequence[Line], bark: bark_jax.Bark) -> None:
    """The codec's copy of what the teacher said."""
    for line in folder.missing("codec", wanted):
        folder.keep("codec", line, bark.decode(bark.encode(read(folder.audio("teacher", line), RATE))))


def espeak(folder: Folder, wanted: Sequence[Line]) -> bool:
    """espeak-ng says each line, in American; gives whether it is on this machine."""
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not installed: without its figures", file=sys.stderr)
        return False
    for line in folder.missing("espeak", wanted):
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "said.wav"
            subprocess.run(["espeak-ng", "-v", "en-us", "-w", str(path), line.text], check=True)
            folder.keep("espeak", line, read(path, RATE))
    return True


def speak(
    folder: Folder, wanted: Sequence[Line], bark: bark_jax.Bark, seed: int, clones: Mapping[str, bark_jax.Voice]
) -> dict[str, bool]:
    """bark-nano says each line with the default sampling; gives which lines ended by themselves.

    Each line has a seed of its own, made of its name and of `seed`.
    """
    speaker = f"nano-{seed}"
    about = folder.path / speaker / "ended.json"
    ended: dict[str, bool] = json.loads(about.read_text("utf-8")) if about.is_file() else {}
    waiting = [line for line in wanted if line.name not in ended]
    for start in range(0, len(waiting), ROWS):
        some = waiting[start : start + ROWS]
        said = bark.generate(
            [line.text for line in some],
            voice=[clones.get(line.voice, line.voice) for line in some],
            seed=[zlib.crc32(f"{seed} {line.name}".encode()) for line in some],
        )
        for line, speech in zip(some, said, strict=True):
            folder.keep(speaker, line, np.clip(speech.audio, -1, 1) if len(speech.audio) else np.zeros(RATE // 10))
            ended[line.name] = bool(speech.ended)
        with replacing(about) as part:
            part.write_text(json.dumps(ended), "utf-8")
    return ended


def clones(work: Path, bark: bark_jax.Bark) -> dict[str, bark_jax.Voice]:
    """Voice prompts from a clip of each held-out voice, the longest."""
    out = {}
    for name in corpus.HELD_OUT:
        audio = max((read(path, RATE) for path in _heldout_clips(work, name)), key=len)
        semantic, fine = fit(bark.audio_to_semantic(audio), bark.encode(audio))
        out[name] = bark_jax.Voice(semantic, fine[:2], fine, model=bark.config.fingerprint)
    return out


def _heldout_clips(work: Path, voice: str) -> list[Path]:
    """The clips of a voice before `corpus.MORE`: what its prompt is taken from stays the same."""
    found = sorted((work / "audio" / voice).glob("0*.flac"))
    if not found:
        raise FileNotFoundError(f"there are no clips of {voice} in {work / 'audio'}: run `corpus speak` first")
    return found


# --- who judges -------------------------------------------------------------------------------------------------------


def words_after(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Words heard after the text: beyond the beginning of `heard` that is nearest to it, the longest if several are."""
    distances = [int(listen.errors(wanted, heard[:j]).sum()) for j in range(len(heard) + 1)]
    return distances[::-1].index(min(distances))


def quiet_after(audio: np.ndarray, rate: int) -> float:
    """Seconds of near silence at the end of (samples,)."""
    loud = np.flatnonzero(np.abs(audio) > QUIET * np.max(np.abs(audio), initial=0.0))
    return (len(audio) - 1 - loud[-1]) / rate if len(loud) else len(audio) / rate


class Judges:
    """whisper-base, GE2E (Resemblyzer) and DNSMOS P.808."""

    def __init__(self, assets: Path):
        self.whisper, self._speakers = listen.Whisper(assets), judges.Speakers()

    def embedding(self, path: Path) -> np.ndarray:
        """(256,) of norm 1: who speaks. Zeros where nobody does."""
        return self._speakers(listen.load(path), listen.RATE)

    def quality(self, path: Path) -> float:
        """DNSMOS P.808, 1 to 5."""
        from speechmos import dnsmos

        found: Any = dnsmos.run(np.clip(listen.load(path), -1, 1), sr=listen.RATE)
        return float(found["p808_mos"])

    def judge(self, path: Path, line: Line) -> dict[str, Any]:
        """What is heard, what is wrong, and what is after it."""
        audio = listen.load(path)
        heard = self.whisper.hear(audio)
        wanted, got = self.whisper.words(line.text), self.whisper.words(heard)
        return {
            "seconds": round(len(audio) / listen.RATE, 3),
            "heard": heard,
            "words": len(wanted),
            "errors": int(listen.errors(wanted, got).sum()),
            "after_words": words_after(wanted, got),
            "after_s": round(quiet_after(audio, listen.RATE), 3),
            "dnsmos": round(self.quality(path), 3),
        }


def judge(folder: Folder, spoken: Mapping[str, Sequence[Line]], judges: Judges) -> list[dict[str, Any]]:
    """A row for each clip of each speaker."""
    rows = folder.rows()
    embeddings: dict[tuple[str, str], np.ndarray] = {}
    with folder.clips.open("a", encoding="utf-8") as file:
        for speaker, some in spoken.items():
            for line in some:
                key = (speaker, line.name)
                if speaker != "espeak":
                    embeddings[key] = judges.embedding(folder.audio(speaker, line))
                if key not in rows:
                    about = {"speaker": speaker, "line": line.name, "voice": line.voice, "text": line.text}
                    rows[key] = about | judges.judge(folder.audio(speaker, line), line)
                    file.write(json.dumps(rows[key]) + "\n")
                    file.flush()
    known = references({line: embeddings["teacher", line.name] for line in spoken["teacher"]})
    presets = sorted({line.voice for line in spoken["teacher"] if line.set != "cloned"})
    table = np.stack([known[name] for name in presets])
    for (speaker, name), embedding in embeddings.items():
        row = rows[speaker, name]
        row["ge2e"] = round(float(embedding @ known[row["voice"]]), 4)
        row["nearest"] = presets[int(np.argmax(table @ embedding))]
    return [rows[speaker, line.name] for speaker, some in spoken.items() for line in some]


def references(said: Mapping[Line, np.ndarray]) -> dict[str, np.ndarray]:
    """How each voice sounds: the mean embedding of what the teacher says in it, of norm 1."""
    found: dict[str, list[np.ndarray]] = {}
    for line, embedding in said.items():
        found.setdefault(line.voice, []).append(embedding)
    means = {voice: np.mean(some, axis=0) for voice, some in found.items()}
    return {voice: mean / np.linalg.norm(mean) for voice, mean in means.items()}


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(bark: bark_jax.Bark, texts: Sequence[str], voice: str) -> float:
    """Seconds of speech per second of work, one utterance at a time, after warm-up; the median."""
    ratios = []
    for i, text in enumerate([*texts[:2], *texts]):
        began = time.perf_counter()
        speech = bark.generate(text, voice=voice, seed=i)
        if i >= 2:
            ratios.append(speech.duration / (time.perf_counter() - began))
    return statistics.median(ratios)


def first_use(code: str) -> tuple[float, float]:
    """Seconds of a process of its own that runs `code`: with nothing compiled before, and with all of it."""
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        home = {"JAX_COMPILATION_CACHE_DIR": str(Path(place) / "programs"), "BARK_JAX_HOME": str(Path(place) / "home")}
        always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | home | always)
            seconds.append(time.perf_counter() - began)
    return seconds[0], min(seconds[1:])


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Mapping[str, Any]], ended: Mapping[str, Mapping[str, bool]]) -> dict[str, float]:
    """The figures of bark-nano, from the rows of all speakers.

    Args:
      ended: which lines of each of bark-nano's runs ended by themselves.
    """
    by = {(row["speaker"], row["line"]): row for row in rows}
    runs = sorted({row["speaker"] for row in rows if row["speaker"].startswith("nano")})
    ours = [row for row in rows if row["speaker"] in runs and not row["line"].startswith("cloned")]
    cloned = [row for row in rows if row["speaker"] in runs and row["line"].startswith("cloned")]

    def lasts(row: Mapping[str, Any]) -> bool:
        ratio = row["seconds"] / by["teacher", row["line"]]["seconds"]
        return ended[row["speaker"]][row["line"]] and LENGTHS[0] <= ratio <= LENGTHS[1]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    taught = [row for row in rows if row["speaker"] == "teacher" and not row["line"].startswith("cloned")]
    return {
        "wer": statistics.median(wer(rows, run, "heldout") for run in runs),
        "wer_harvard": statistics.median(wer(rows, run, "harvard") for run in runs),
        "ended": 100 * mean(lasts(row) for row in ours),
        "babble": 100 * mean(row["after_words"] >= AFTER_WORDS or row["after_s"] > AFTER_S for row in ours),
        "ge2e": mean(row["ge2e"] for row in ours),
        "ge2e_nearest": 100 * mean(row["nearest"] == row["voice"] for row in ours),
        "ge2e_heldout": mean(row["ge2e"] for row in cloned),
        "dnsmos_gap": mean(row["dnsmos"] for row in taught) - mean(row["dnsmos"] for row in ours),
    }


def wer(rows: Sequence[Mapping[str, Any]], speaker: str, set_: str) -> float:
    """Wrong words of a speaker on a set, in per cent."""
    some = [row for row in rows if row["speaker"] == speaker and row["line"].startswith(set_)]
    return 100 * sum(row["errors"] for row in some) / max(1, sum(row["words"] for row in some))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each speaker."""
    out = [f"{'':10}{'WER held-out':>14}{'Harvard':>9}{'GE2E':>7}{'nearest':>9}{'DNSMOS':>8}{'s / teacher':>13}"]
    seconds = {row["line"]: row["seconds"] for row in rows if row["speaker"] == "teacher"}
    for speaker in dict.fromkeys(row["speaker"] for row in rows):
        some = [row for row in rows if row["speaker"] == speaker and not row["line"].startswith("cloned")]
        who = [row for row in some if "ge2e" in row]
        out.append(
            f"{speaker:10}{wer(rows, speaker, 'heldout'):13.1f}%{wer(rows, speaker, 'harvard'):8.1f}%"
            + (f"{np.mean([r['ge2e'] for r in who]):7.3f}" if who else " " * 7)
            + (f"{np.mean([r['nearest'] == r['voice'] for r in who]):9.1%}" if who else " " * 9)
            + f"{np.mean([r['dnsmos'] for r in some]):8.2f}"
            + f"{np.mean([r['seconds'] / seconds[r['line']] for r in some]):13.2f}"
        )
    return "\n".join(out)


def picture(speech: bark_jax.Speech, path: Path) -> None:
    """Waveform and spectrogram of an utterance."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    audio = speech.audio
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 3.6), height_ratios=(1, 2), sharex=True)
    top.plot(np.arange(len(audio)) / RATE, audio, linewidth=0.4)
    top.set_title(f"{speech.text} (seed {speech.seed})", fontsize=9, parse_math=False)
    bottom.specgram(audio + 1e-6, NFFT=1024, noverlap=768, Fs=RATE, vmin=-140, vmax=-50, cmap="magma")
    bottom.set(xlabel="s", ylabel="Hz", xlim=(0, len(audio) / RATE))
    figure.tight_layout()
    with replacing(path) as part:
        figure.savefig(part, dpi=80, format="png")
    plt.close(figure)


def evaluate_speech(
    work: Path,
    assets: Path,
    transcripts: Path,
    model: str,
    *,
    seeds: int = 3,
    every: int = 1,
    timed: bool = True,
) -> dict[str, Any]:
    """All figures of bark-nano.

    Args:
      model: what `bark_jax.load` takes.
      seeds: runs over all lines.
      every: take one line of so many.
    """
    folder = Folder(work / "evaluation" / "speech")
    bark = bark_jax.load(model)
    prompts = clones(work, bark)
    wanted = lines(transcripts, bark.voices())[::every]
    preset = [line for line in wanted if line.set != "cloned"]
    teach(folder, wanted, assets)
    copy(folder, preset, bark)
    spoken: dict[str, Sequence[Line]] = {"teacher": wanted, "codec": preset}
    if espeak(folder, preset):
        spoken["espeak"] = preset
    ended = {}
    for seed in range(seeds):
        some = wanted if seed == 0 else preset
        ended[f"nano-{seed}"] = speak(folder, some, bark, seed, prompts)
        spoken[f"nano-{seed}"] = some
    rows = judge(folder, spoken, Judges(assets))
    corpus.write_lines(folder.clips, rows)
    print(table(rows))
    result = figures(rows, ended)
    picture(bark.generate(FOX, voice=FOX_VOICE, seed=FOX_SEED), folder.path / "fox.png")
    if timed:
        result["xrt"] = speed(bark, [line.text for line in preset[:10]], preset[0].voice)
        result["cold_s"], result["warm_s"] = first_use(
            f"import bark_jax; bark_jax.generate({FOX!r}, model={model!r}, seed=1)"
        )
    return {key: round(value, 4) for key, value in result.items()}
