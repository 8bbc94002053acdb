"""Step 1, the corpus: ``python -m recipes.bark_nano.corpus plan|speak|check|record``. Up to 40 h, in many voices.

    plan    who says what: WORK/plan.jsonl. A pure function of its options; nothing is spoken.
    speak   every clip of the plan that is not there yet: WORK/audio/ID.flac, 24 kHz, mono, 16 bits
    check   whisper-base listens to what was spoken: WORK/heard.jsonl, errors and seconds of each clip
    record  real recordings at 24 kHz: WORK/recordings/train and test

Each can be stopped and started again. `good` gives what the later steps use: the clips of the plan that whisper
understood, and real recordings besides (`recorded`), which have no use for a text. What is held out is decided in the
plan, before anything is trained: sentences that no clip of the training set says, and voices that say nothing in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bark_jax import audio as audio_files
from bark_jax.files import replacing
from recipes.bark_nano import run, sentences
from recipes.bark_nano.teachers import KOKORO_JS, SAMPLE_RATE, Hibari, Kokoro, Reader, Style, voices

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WORK = Path("bark-nano-work")

HELD_OUT = ("af_sarah", "bm_george")
"""Named voices that are never trained on, in no mix either."""
UNUSABLE = ("af_nicole", "am_santa", "em_santa", "pm_santa")
"""One whispers; the others are caricatures."""
N_HELD_OUT_MIXES, N_HELD_OUT_SENTENCES = 10, 200
MORE = 1000
"""Number of the first held-out sentence where a voice says its share of all of them: of its own it says 0 to 14. A few
sentences by every voice compare voices, but what is lost of one of them is lost in many voices at once."""

SECONDS_PER_CHARACTER, SECONDS_AROUND = 0.062, 0.5
"""Of a clip, measured on both teachers; only to plan how many clips make an hour."""
TEACHERS = ("hibari", "kokoro")
BULK = "hibari"
"""Teacher and voice that says most of the corpus, and that nobody will ask for."""

MADE = Path(__file__).parent / "made"
"""What the steps have made besides the model."""

DURATION_S = (1.0, 12.0)
"""Shorter and longer clips are not used."""
MAX_WER = 0.15
"""Of whisper-base on a clip; beyond it the clip is not used."""


@dataclass(frozen=True)
class Clip:
    """A line of the plan."""

    id: str
    """"VOICE/NUMBER"; also the name of the audio file."""
    voice: str
    teacher: str
    """"hibari" or "kokoro"."""
    split: str
    """"train", "validation" (a voice and words of the training set, but not this clip), or "heldout"."""
    text: str
    british: bool
    speed: float
    seed: int
    colour: dict[str, float]
    """Weights of Kokoro's voices, see `Style`; empty for hibari."""
    melody: dict[str, float]


@dataclass(frozen=True)
class Speaker:
    """Somebody who speaks in the corpus."""

    name: str
    style: Style
    british: bool
    speed: float
    heldout: bool = False


# --- plan -------------------------------------------------------------------------------------------------------------


def speakers(n: int, names: Sequence[str]) -> list[Speaker]:
    """`n` speakers to train on, and those held out: Kokoro's English voices, and mixes.

    A mix takes its colour from two or three voices of any language, and its melody from one or two English ones, all of
    one sex. So mixes are as unlike each other as Kokoro's voices are, and read English as its English voices do.

    Args:
      names: of Kokoro's voices: language, sex, underscore, name.
    """
    rng = random.Random("speakers")
    usable = [name for name in names if name not in UNUSABLE and name not in HELD_OUT]
    english = [name for name in usable if name[0] in "ab"]
    found = [Speaker(name, Style({name: 1.0}, {name: 1.0}), name[0] == "b", 1.0) for name in english]
    found += [Speaker(name, Style({name: 1.0}, {name: 1.0}), name[0] == "b", 1.0, heldout=True) for name in HELD_OUT]
    n_mixes = n - len(english)
    if n_mixes < 0:
        raise ValueError(f"{n} speakers are asked for: there are {len(english)} voices that are no mixes")
    for i in range(n_mixes + N_HELD_OUT_MIXES):
        sex = "fm"[i % 2]
        colour = rng.sample([name for name in usable if name[1] == sex], rng.choice((2, 3)))
        melody = rng.sample([name for name in english if name[1] == sex], rng.choice((1, 2)))
        heldout = i >= n_mixes
        found.append(
            Speaker(
                f"{'heldout' if heldout else 'mix'}_{sex}{(i - n_mixes if heldout else i) // 2:02d}",
                Style(_weights(rng, colour), _weights(rng, melody)),
                sum(name[0] == "b" for name in melody) * 2 > len(melody),
                round(rng.uniform(0.9, 1.15), 2),
                heldout,
            )
        )
    return found


def missing(clips: Iterable[Clip], rows: Path) -> Iterator[Clip]:
    """The clips of a plan to train on that are not in a folder of rows."""
    from pyarrow import parquet

    from bark_jax.train import data

    files = data.find([rows])
    there = {id_ for file in files for id_ in parquet.read_table(file, columns=["id"])["id"].to_pylist()}
    return (clip for clip in clips if clip.split != "heldout" and clip.id not in there)


def known(clips: Iterable[Clip], rows: Path) -> tuple[list[Clip], list[dict[str, Any]]]:
    """The clips of a plan that a folder of rows has, and those held out; and lines for ``heard.jsonl``.

    Rows with codes are of clips that whisper understood; how many words it heard they do not say: ``words`` is 0.
    """
    from pyarrow import parquet

    from bark_jax.train import data

    there, heard = set(), []
    for file in data.find([rows]):
        table = parquet.read_table(file, columns=["id", "semantic", "fine"])
        coded = table["fine"].is_valid().to_pylist()
        for id_, units, understood in zip(
            *(table[name].to_pylist() for name in ("id", "semantic")), coded, strict=True
        ):
            there.add(id_)
            if understood:
                heard.append({"id": id_, "seconds": len(units) / 50, "errors": 0, "words": 0})
    return [clip for clip in clips if clip.split == "heldout" or clip.id in there], heard


def _weights(rng: random.Random, names: Sequence[str]) -> dict[str, float]:
    drawn = [rng.uniform(0.2, 1.0) for _ in names]
    return {name: round(x / sum(drawn), 3) for name, x in zip(names, drawn, strict=True)}


def _begin_plan(transcripts: Path) -> tuple[random.Random, list[str], Iterator[str], list[str]]:
    """The plan's chance, lines of books, everyday sentences without end, and what is held out of both."""
    rng = random.Random("plan")
    books = list(sentences.transcripts(transcripts))
    if len(books) <= N_HELD_OUT_SENTENCES:
        raise ValueError(
            f"{transcripts} has {len(books)} lines that can be read: more than {N_HELD_OUT_SENTENCES} are needed, each"
            " an id, a tab and a text"
        )
    rng.shuffle(books)
    talk = sentences.everyday()
    heldout = sentences.take(N_HELD_OUT_SENTENCES // 2, talk, set())
    return rng, books, talk, heldout + books[: N_HELD_OUT_SENTENCES // 2]


def heldout_sentences(transcripts: Path) -> list[str]:
    """The sentences that nothing is trained on: first everyday ones, then lines of LJSpeech's transcripts."""
    return _begin_plan(transcripts)[3]


def plan(
    transcripts: Path,
    names: Sequence[str],
    *,
    bulk_hours: float,
    n_speakers: int,
    minutes: float,
    named_minutes: float = 0.0,
) -> list[Clip]:
    """All clips, in the order in which they are spoken: held-out voices, then bulk and speakers mixed, so that a part
    of it is a corpus too.

    Args:
      transcripts: LJSpeech's, see `sentences.transcripts`.
      names: of Kokoro's voices.
      bulk_hours: of hibari.
      n_speakers, minutes: of Kokoro, besides those held out, and of each.
      named_minutes: of each voice of Kokoro's that is no mix, besides these. Clips of a plan without them keep their
        words and their ids.
    """
    rng, books, talk, heldout = _begin_plan(transcripts)
    books = [text for text in books[N_HELD_OUT_SENTENCES // 2 :] if text not in heldout]
    used = set(heldout)

    def texts(seconds: float) -> Iterator[str]:
        """Different sentences that take so long, half of that time from each source."""
        left = {"talk": seconds / 2, "books": seconds / 2}
        while left:
            kind = max(left, key=lambda k: left[k])
            if kind == "talk":
                (text,) = sentences.take(1, talk, used)
                used.add(text)
            else:
                if not books:
                    books.extend(reading)
                    rng.shuffle(books)
                text = books.pop()
            left[kind] -= SECONDS_PER_CHARACTER * len(text) + SECONDS_AROUND
            yield text
            left = {k: v for k, v in left.items() if v > 0}

    reading = list(books)
    clips: list[Clip] = []

    def add(speaker: Speaker, teacher: str, lines: Iterable[str], split: str | None = None, first: int = 0) -> None:
        for i, text in enumerate(lines, first):
            part = split or ("validation" if rng.random() < 0.01 else "train")
            clips.append(_clip(speaker, teacher, part, i, text, rng, seed=len(clips)))

    cast = speakers(n_speakers, names)
    for speaker in cast:
        if speaker.heldout:  # ten sentences that all of them say, five of their own
            own = rng.sample(heldout[10:], 5)
            add(speaker, "kokoro", [*heldout[:5], *heldout[-5:], *own], "heldout")
        else:
            add(speaker, "kokoro", texts(60 * minutes))
    add(Speaker(BULK, Style({}, {}), False, 1.0), BULK, texts(3600 * bulk_hours))
    for speaker in cast:
        if named_minutes and not speaker.heldout and speaker.name in names:
            said = sum(clip.voice == speaker.name for clip in clips)
            add(speaker, "kokoro", texts(60 * named_minutes), first=said)
    rng.shuffle(clips)
    clips += _all_heldout([speaker for speaker in cast if speaker.heldout], heldout, clips)
    clips.sort(key=lambda clip: clip.split != "heldout")  # first what measures all else
    return clips


def _clip(speaker: Speaker, teacher: str, split: str, number: int, text: str, chance: random.Random, seed: int) -> Clip:
    return Clip(
        id=f"{speaker.name}/{number:04d}",
        voice=speaker.name,
        teacher=teacher,
        split=split,
        text=text,
        british=speaker.british,
        speed=round(speaker.speed * chance.uniform(0.95, 1.05), 3),
        seed=seed,
        colour=dict(speaker.style.colour),
        melody=dict(speaker.style.melody),
    )


def _all_heldout(cast: Sequence[Speaker], texts: Sequence[str], clips: Iterable[Clip]) -> Iterator[Clip]:
    """Every text by two speakers, but for what they say among `clips` already."""
    chance = random.Random("more")
    there = {(clip.voice, clip.text) for clip in clips}
    for i, text in enumerate(texts):
        for speaker in (cast[i % len(cast)], cast[(i + len(cast) // 2) % len(cast)]):
            if (speaker.name, text) not in there:
                yield _clip(speaker, "kokoro", "heldout", MORE + i, text, chance, seed=i)


# --- speak ------------------------------------------------------------------------------------------------------------

_teachers: dict[str, Any] = {}


def _begin(assets: Path, teachers: Sequence[str]) -> None:
    _teachers["reader"] = Reader()
    if BULK in teachers:
        _teachers["hibari"] = Hibari()
    if "kokoro" in teachers:
        _teachers["kokoro"] = Kokoro(assets)


def _speak(job: tuple[Clip, Path]) -> float:
    clip, path = job
    phonemes = _teachers["reader"](clip.text, british=clip.british)
    if clip.teacher == "hibari":
        audio = _teachers["hibari"](phonemes, speed=clip.speed, seed=clip.seed)
    else:
        audio = _teachers["kokoro"](phonemes, Style(clip.colour, clip.melody), speed=clip.speed)
    audio = trim(audio)
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_files.write(path, audio, SAMPLE_RATE)
    return len(audio) / SAMPLE_RATE


def trim(audio: np.ndarray, *, keep_s: float = 0.1, floor: float = 0.01) -> np.ndarray:
    """Without the silence at the ends, but for `keep_s` of it; `floor` is the amplitude that counts as sound."""
    loud = np.flatnonzero(np.abs(audio) > floor)
    if len(loud) == 0:
        return audio
    keep = int(keep_s * SAMPLE_RATE)
    return audio[max(0, loud[0] - keep) : loud[-1] + keep]


def speak(work: Path, assets: Path, *, workers: int, teachers: Sequence[str] = TEACHERS) -> None:
    """Speak what is not there yet, of these teachers."""
    jobs = [(clip, audio_path(work, clip.id)) for clip in read_plan(work) if clip.teacher in teachers]
    jobs = [(clip, path) for clip, path in jobs if not path.is_file()]
    started, seconds = time.monotonic(), 0.0
    # Here first: what fails in a pool's processes is begun again for ever, and Kokoro's network, which is put together
    # from its packages by whoever first asks, must not be by two at once.
    _begin(assets, teachers)
    _teachers.clear()
    with multiprocessing.get_context("spawn").Pool(workers, _begin, (assets, teachers)) as pool:
        for i, length in enumerate(pool.imap_unordered(_speak, jobs, chunksize=4), 1):
            seconds += length
            if i % 100 == 0 or i == len(jobs):
                speed = seconds / (time.monotonic() - started)
                print(f"{i:,} of {len(jobs):,} clips, {seconds / 3600:.2f} h, {speed:.1f} x real time", flush=True)


# --- check ------------------------------------------------------------------------------------------------------------


def check(work: Path, whisper: Any) -> None:
    """Let whisper listen to what it has not heard yet.

    Args:
      whisper: `listen.Whisper`.
    """
    from recipes.bark_nano import listen

    path = work / "heard.jsonl"
    heard = {row["id"] for row in read_lines(path)}
    waiting = [clip for clip in read_plan(work) if clip.id not in heard and audio_path(work, clip.id).is_file()]
    torn = path.is_file() and not path.read_text("utf-8").endswith("\n")
    with path.open("a", encoding="utf-8") as file:
        if torn:  # by a kill: what is written now must not become part of that line
            file.write("\n")
        for done, batch in enumerate(listen.packs(waiting, lambda clip: listen.load(audio_path(work, clip.id))), 1):
            for clip, seconds, errors, words in whisper.compare(batch):
                row = {"id": clip.id, "seconds": round(seconds, 3), "errors": errors, "words": words}
                file.write(json.dumps(row) + "\n")
            file.flush()
            if done % 50 == 0:
                print(f"{done} packs of half a minute", flush=True)


# --- record -----------------------------------------------------------------------------------------------------------


def record(work: Path, shared: Path) -> None:
    """Bring the real recordings to the rate of the corpus.

    Raises:
      FileNotFoundError: `shared` has none.
    """
    found = recordings(shared)
    if not any(found.values()):
        raise FileNotFoundError(f"{shared} has no recordings: librispeech/train/*.ogg, ljspeech/*.flac are looked for")
    for split, paths in found.items():
        for path in paths:
            made = recorded(work, split) / f"{path.stem}.flac"
            if not made.is_file():
                made.parent.mkdir(parents=True, exist_ok=True)
                audio_files.write(made, audio_files.read(path, SAMPLE_RATE), SAMPLE_RATE)
        print(f"{split}: {len(paths)} recordings")


# --- what later steps take --------------------------------------------------------------------------------------------


def audio_path(work: Path, id: str) -> Path:
    """File of a clip, or of a recording (``recordings/SPLIT/NAME``)."""
    return (work if id.startswith("recordings/") else work / "audio") / f"{id}.flac"


def recorded(work: Path, split: str) -> Path:
    """Folder of the real recordings of a split, "train" or "test"."""
    return work / "recordings" / split


def read_plan(work: Path) -> list[Clip]:
    path = work / "plan.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run `python -m recipes.bark_nano.corpus plan` first")
    return [Clip(**row) for row in read_lines(path)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of JSON; one that a killed process left half-written is passed over."""
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def of_one_kind(folder: Path, now: Mapping[str, str], others: str, *, files: str) -> None:
    """Make a folder that says what its files are made from, or see that it was made from the same.

    Args:
      now: digests, ``made-from.json``.
      others: what they would be of otherwise, for the message.
      files: a pattern of the folder's files, at any depth.

    Raises:
      ValueError: it was made from something else.
      FileExistsError: it has files and does not say of what.
    """
    about = folder / "made-from.json"
    if not about.is_file():
        if any(folder.rglob(files)):
            raise FileExistsError(f"{folder} has files and no {about.name}: move them away")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(about) as part:
            part.write_text(json.dumps(now, indent=2), "utf-8")
    elif json.loads(about.read_text("utf-8")) != now:
        raise ValueError(f"{folder} was made with {others}: remove it, it is made anew")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each row; the folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def good(work: Path) -> dict[str, Clip]:
    """The clips of the plan that are spoken and understood, by id."""
    fine = {
        row["id"]
        for row in read_lines(work / "heard.jsonl")
        if DURATION_S[0] <= row["seconds"] <= DURATION_S[1] and row["errors"] <= MAX_WER * row["words"]
    }
    return {clip.id: clip for clip in read_plan(work) if clip.id in fine}


def recordings(shared: Path = SHARED) -> dict[str, list[Path]]:
    """Real speech: "train" (251 speakers of LibriSpeech, 30 clips of LJSpeech) and "test" (10 other speakers)."""
    libri = shared / "librispeech"
    return {
        "train": sorted((libri / "train").glob("*.ogg")) + sorted((shared / "ljspeech").glob("*.flac"))[:30],
        "test": sorted((libri / "test").glob("*.flac")),
    }


# --- command line -----------------------------------------------------------------------------------------------------


def places_of_files(assets: str) -> argparse.ArgumentParser:
    """Options of every command: where things are."""
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--work", type=Path, default=WORK, help=f"folder of everything that is made ({WORK})")
    places.add_argument("--assets", type=Path, help=f"{assets}; default: WORK/assets")
    return places


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.corpus", description="Make the corpus.")
    places = places_of_files(f"folder with {KOKORO_JS}")
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", parents=[places], help="decide who says what")
    planning.add_argument("--transcripts", type=Path, default=SHARED / "ljspeech" / "transcripts.tsv")
    planning.add_argument("--bulk-hours", type=float, default=30.0, help="of hibari (30)")
    planning.add_argument("--speakers", type=int, default=155, help="of Kokoro, besides 12 held out (155)")
    planning.add_argument("--minutes", type=float, default=2.2, help="of each of them (2.2)")
    planning.add_argument("--named-minutes", type=float, default=12.0, help="more, of each that is no mix (12)")
    planning.add_argument("--without", type=Path, help="leave out clips of this folder of rows, and held-out ones")
    planning.add_argument("--of", type=Path, help="the clips of this folder of rows, and held-out ones, alone")
    speaking = commands.add_parser("speak", parents=[places], help="make the audio")
    speaking.add_argument("--workers", type=int, default=2, help="processes (2)")
    speaking.add_argument("--teacher", choices=TEACHERS, help="only what this one says")
    commands.add_parser("check", parents=[places], help="let whisper listen")
    recording = commands.add_parser("record", parents=[places], help="bring real recordings to 24 kHz")
    recording.add_argument("--shared", type=Path, default=SHARED, help="folder with librispeech/ and ljspeech/")
    options = parser.parse_args(argv)
    if options.command == "plan":
        for name in ("bulk_hours", "minutes", "named_minutes"):
            if not 0 <= getattr(options, name) < 1e6:
                parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}: it must be 0 or more")
    if options.command == "speak" and options.workers < 1:
        parser.error(f"--workers is {options.workers}: it must be 1 or more")
    return run(lambda: _run(options, options.work, options.assets or options.work / "assets"))


def _run(options: argparse.Namespace, work: Path, assets: Path) -> None:
    if options.command == "plan":
        clips = plan(
            options.transcripts,
            list(voices(assets)),
            bulk_hours=options.bulk_hours,
            n_speakers=options.speakers,
            minutes=options.minutes,
            named_minutes=options.named_minutes,
        )
        if options.without is not None:
            clips = list(missing(clips, options.without))
        if options.of is not None:
            clips, heard = known(clips, options.of)
            write_lines(work / "heard.jsonl", heard)
        write_lines(work / "plan.jsonl", map(dataclasses.asdict, clips))
        print(f"{len(clips):,} clips of {len({clip.voice for clip in clips})} voices")
    elif options.command == "speak":
        speak(work, assets, workers=options.workers, teachers=[options.teacher] if options.teacher else TEACHERS)
    elif options.command == "record":
        record(work, options.shared)
    else:
        from recipes.bark_nano import listen

        check(work, listen.Whisper(assets))


if __name__ == "__main__":
    sys.exit(main())
