"""A folder of recordings → rows to fine-tune on.

    recordings ─▶ read, level, cut at pauses or at a transcript's times ─▶ clips ─▶ units and codes ─▶ rows.parquet
    what is no speech, or spoilt, or does not fit its text ─▶ a line in report.json

Rows are those of `bark_jax.train.data`, of the model that is named. Recordings are done in groups, each of which is a
folder in ``OUT/.parts`` that appears when it is complete: started again, the work goes on after the last one. Knows
levels (`bark_jax.clips`) and texts (`transcripts`), and, where Resemblyzer is installed, whether all clips of a voice
are one speaker's (`judges.strangers`).
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from bark_jax import audio as audio_files
from bark_jax import clips, judges, tokens
from bark_jax.bark import Bark
from bark_jax.clips import Span
from bark_jax.files import new_folder, replacing
from bark_jax.train import data
from bark_jax.train.data import DataError
from bark_jax.train.runs import lock, remove_parts
from bark_jax.train.transcripts import Line, Said, Transcripts, joined
from bark_jax.voice import check_consent

SHORTEST_S, LONGEST_S = 1.0, 14.0
"""Of a clip. Suno's models speak 15.4 s at most, and a clip of a second tells little of a voice."""
MIN_RATE = 16_000
"""Hz. A telephone's 8 kHz lack what tells an s from an f; a model would learn to sound like one."""
LETTERS_PER_S = (1.5, 35.0)
"""Of a text: slow Chinese to fast Finnish. Beyond these it is not what is said."""
LEAST_VALIDATED = 5
"""Clips that are kept from training where there are 50 or more, however small their share."""
RECORDINGS_AT_ONCE = 32
"""Recordings of a part: what is done anew after a kill."""
PICTURE, REPORT, ROWS = "report.png", "report.json", "rows.parquet"


@dataclass(frozen=True)
class Clip:
    """A clip that became a row."""

    id: str
    source: str
    start: float
    end: float
    text: str | None
    loudness_db: float
    speaker: tuple[float, ...] = field(default=(), repr=False)
    """What `judges.Speakers` says, rounded; empty: it was not asked."""


@dataclass(frozen=True)
class Rejected:
    """A recording, or a stretch of one, that did not."""

    source: str
    start: float | None
    """Seconds; None: the whole recording."""
    end: float | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.start is None else f" at {self.start:.1f} to {self.end:.1f} s"
        return f"{self.source}{where}: {self.reason}"


@dataclass(frozen=True)
class Prepared:
    """What `prepare` has made."""

    rows: Path
    """``OUT/rows.parquet``."""
    clips: tuple[Clip, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    """What the caller should know and nothing was rejected for."""

    @property
    def minutes(self) -> float:
        return sum(clip.end - clip.start for clip in self.clips) / 60


def prepare(
    bark: Bark,
    source: str | Path,
    out: str | Path,
    *,
    voice: str | None = None,
    consent: str,
    transcripts: str | Path | None = None,
    validation: float = 0.05,
    one_speaker: bool | None = None,
    progress: bool = False,
) -> Prepared:
    """Make rows of all recordings in a folder.

    Args:
      bark: the model to be fine-tuned, with its ``units.safetensors``.
      source: folder of recordings, with those in its folders; or one recording.
      out: folder for ``rows.parquet``, ``report.json`` and ``report.png``. Started again with the same folder, it goes
        on where it was stopped, and takes recordings that have come since.
      voice: the speaker of all recordings. None: recordings in a folder of the source are of the speaker of that
        name, others of one that is named as the source.
      consent: who agreed that their voice is used (1 to 256 characters), kept in the report.
      transcripts: see `Transcripts`; without any, rows have no texts and serve the coarse and fine stages.
      validation: share of the clips that are kept from training, 0 to 0.5; of 10 clips or more at least one in ten, up
        to 5: the loss of a single clip says little.
      one_speaker: reject clips of 2 s and more in which somebody else speaks than in most of the voice's. None: if
        Resemblyzer is installed.

    Raises:
      ModuleNotFoundError: `one_speaker` is True, and Resemblyzer is not installed.
      ValueError: no recordings, no clip that is fit, a wrong argument, a recording that has changed since it was done.
      OSError: files that cannot be read or written.
      CheckpointError: the model has no network that takes semantic ids from audio.
    """
    check_consent(consent)
    if not 0 <= validation <= 0.5:
        raise DataError(f"validation is {validation!r}: it must be 0 to 0.5")
    source, out = Path(source), Path(out)
    recordings = find(source)
    root = source if source.is_dir() else source.parent
    if out.resolve() == root.resolve():
        raise DataError(f"out is {out}, where the recordings are: it must be a folder of its own")
    said = Transcripts(transcripts)
    speakers, untold = _speakers(one_speaker)
    settings = {
        "model": bark.config.fingerprint,
        "voice": voice,
        "transcripts": None if transcripts is None else str(transcripts),
    }
    parts = out / ".parts"
    parts.mkdir(parents=True, exist_ok=True)
    held = lock(parts, "preparing rows")
    try:
        remove_parts(parts)
        done = _done(parts, settings)
        _check_unchanged(done, root, recordings)
        waiting = [path for path in recordings if _name(path, root) not in done]
        maker = _Maker(bark, root, voice, said, speakers)
        with tqdm(total=len(recordings), initial=len(done), disable=not progress, unit="recording") as bar:
            for i in range(0, len(waiting), RECORDINGS_AT_ONCE):
                group = waiting[i : i + RECORDINGS_AT_ONCE]
                with new_folder(parts / f"{len(_folders(parts)):05d}") as made:
                    maker.write(made, group, settings)
                bar.update(len(group))
        notes = [] if len(waiting) < len(recordings) else _notes(said)
        return _finish(out, consent, validation, [*notes, *untold])
    finally:
        held.close()


def find(source: Path) -> list[Path]:
    """The recordings of a folder and those below it, in order; or the one that is named."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"There is no {source}: it must be a folder of recordings, or one of them")
    found = audio_files.recordings(source)
    if not found:
        raise DataError(f"{source} has no recordings: their endings are {', '.join(audio_files.RECORDINGS)}")
    return found


# --- a recording ------------------------------------------------------------------------------------------------------


class _Maker:
    """Recordings → a part: rows, clips and rejections."""

    def __init__(self, bark: Bark, root: Path, voice: str | None, said: Transcripts, speakers: judges.Speakers | None):
        self.bark, self.root, self.voice, self.said, self.speakers = bark, root, voice, said, speakers
        config = bark.config
        self.rate = config.codec.sample_rate
        self.longest_s = min(LONGEST_S, config.semantic.max_tokens / config.semantic.rate_hz)

    def write(self, folder: Path, recordings: Sequence[Path], settings: dict[str, Any]) -> None:
        found: list[Clip] = []
        rejected: list[Rejected] = []
        rows: list[dict[str, Any]] = []
        for path in recordings:
            name = _name(path, self.root)
            try:
                audio = self._audio(path)
                said = self.said.of(path, self.root)
            except (ValueError, OSError) as error:
                rejected.append(Rejected(name, None, None, str(error).replace(str(path), "it")))
                continue
            for span, words in self._spans(audio, said):
                clip = clips.levelled(span.of(audio, self.rate), self.rate)
                reason = self._fault(clip, span, words)
                if reason is None:
                    made = Clip(
                        id=f"{name}@{span.start:.2f}",
                        source=name,
                        start=span.start,
                        end=span.end,
                        text=words,
                        loudness_db=float(np.percentile(clips.levels(span.of(audio, self.rate), self.rate), 95)),
                        speaker=self._who(clip),
                    )
                    rows.append(self._row(made, clip, path))
                    found.append(made)
                else:
                    rejected.append(Rejected(name, span.start, span.end, reason))
        if rows:
            data.write(folder / ROWS, rows)
        about = {
            "settings": settings,
            "sources": {_name(path, self.root): _state(path) for path in recordings},
            "clips": [asdict(clip) for clip in found],
            "rejected": [asdict(one) for one in rejected],
        }
        (folder / "part.json").write_text(json.dumps(about, ensure_ascii=False), "utf-8")

    def _audio(self, path: Path) -> np.ndarray:
        """At the codec's rate; what makes the whole recording unfit is an error."""
        own, audio = audio_files.read_channels(path)
        if own < MIN_RATE:
            raise DataError(f"its rate is {own:,} Hz: it must be {MIN_RATE:,} or more")
        power = np.mean(np.square(audio), axis=0)
        if power.max() < 10 ** (clips.SILENCE_DB / 10):
            raise DataError("it is silent")
        live = power > 1e-4 * power.max()  # a channel 40 dB below the other is dead, and would halve the level
        mono = audio_files.resample(audio[:, live].mean(axis=1), own, self.rate)
        if len(mono) < SHORTEST_S * self.rate:
            raise DataError(f"it lasts {len(mono) / self.rate:.2f} s: it must be {SHORTEST_S:g} s or longer")
        if clips.lively(mono, self.rate) < clips.LIVELY_DB:
            raise DataError(
                f"its level changes by {clips.lively(mono, self.rate):.0f} dB: speech changes by {clips.LIVELY_DB:g} "
                "or more, music and noise by less"
            )
        return mono

    def _spans(self, audio: np.ndarray, said: Said | None) -> Iterator[tuple[Span, str | None]]:
        """Where to cut, and what is said there."""
        most = len(audio) / self.rate
        if said is not None and said.lines:
            yield from ((span.within(most), words) for span, words in by_lines(said.lines, self.longest_s))
            return
        spans = clips.cut(audio, self.rate, self.longest_s)
        if said is not None and said.text is not None and spans:
            whole = Span(spans[0].start, spans[-1].end)
            if whole.duration <= self.longest_s:  # its text tells that it is one utterance, pauses or not
                yield whole, said.text
                return
        yield from ((span, None) for span in spans)

    def _fault(self, clip: np.ndarray, span: Span, words: str | None) -> str | None:
        """Why a clip is no row, if so."""
        if span.duration < SHORTEST_S:
            return f"it lasts {span.duration:.2f} s: it must be {SHORTEST_S:g} s or longer"
        if span.duration > self.longest_s:
            return (
                f"it lasts {span.duration:.2f} s, and has no pause to cut at: it must be {self.longest_s:g} s or less"
            )
        if (fault := clips.fault(clip, self.rate)) is not None:
            return fault
        if words is None:
            return None
        letters = sum(sign.isalnum() for sign in words)
        low, high = LETTERS_PER_S
        if not low <= letters / span.duration <= high:
            return (
                f"its text has {letters} letters for {span.duration:.1f} s, and people say {low:g} to {high:g} in one: "
                f"this is not what is said ({words[:40]!r})"
            )
        n, most = self.bark.count_tokens(words), self.bark.config.semantic.text_length
        if n > most:
            return f"its text has {n} tokens: the model takes {most}"
        return None

    def _who(self, clip: np.ndarray) -> tuple[float, ...]:
        return () if self.speakers is None else tuple(round(float(x), 4) for x in self.speakers(clip, self.rate))

    def _row(self, made: Clip, clip: np.ndarray, path: Path) -> dict[str, Any]:
        config = self.bark.config
        ids, codes = self.bark.audio_to_semantic(clip), self.bark.encode(clip)
        ids = ids[: config.semantic.max_tokens]
        ids, codes = tokens.aligned(config.coarse, ids, codes)
        return {
            "id": made.id,
            "split": "train",
            "text": made.text,
            "voice": self.voice or self._speaker(path),
            "semantic": ids,
            "coarse": codes[: config.coarse.n_codebooks],
            "fine": codes,
        }

    def _speaker(self, path: Path) -> str:
        inner = path.relative_to(self.root).parts
        return inner[0] if len(inner) > 1 else self.root.resolve().name or "voice"


def by_lines(lines: Sequence[Line], longest_s: float) -> Iterator[tuple[Span, str]]:
    """Lines with times → stretches of up to `longest_s`, cut at long pauses and else where the most fits."""
    group: list[Line] = []

    def made() -> tuple[Span, str]:
        return Span(max(0.0, group[0].start - clips.EDGE_S), group[-1].end + clips.EDGE_S), joined(group)

    for line in lines:
        long_pause = group and line.start - group[-1].end >= clips.LONG_PAUSE_S
        if group and (long_pause or line.end - group[0].start + 2 * clips.EDGE_S > longest_s):
            yield made()
            group = []
        group.append(line)
    if group:
        yield made()


# --- parts ------------------------------------------------------------------------------------------------------------


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _folders(parts: Path) -> list[Path]:
    return sorted(path for path in parts.iterdir() if path.name.isdigit())


def _about(part: Path) -> dict[str, Any]:
    return json.loads((part / "part.json").read_text("utf-8"))


def _done(parts: Path, settings: dict[str, Any]) -> dict[str, list[int]]:
    """The recordings of complete parts, and their sizes and times."""
    done: dict[str, list[int]] = {}
    for part in _folders(parts):
        about = _about(part)
        for name, now in settings.items():
            before = about["settings"][name]
            if before != now:
                raise DataError(
                    f"{parts.parent} was begun with {name} {before!r}, and it is {now!r} now: put it back, or name "
                    "another folder"
                )
        done |= about["sources"]
    return done


def _check_unchanged(done: dict[str, list[int]], root: Path, recordings: Sequence[Path]) -> None:
    there = {_name(path, root): path for path in recordings}
    for name, state in done.items():
        if name not in there:
            raise DataError(f"{name} was prepared before, and is not in {root} any more: name a new folder")
        if _state(there[name]) != state:
            raise DataError(f"{name} has changed since it was prepared: name a new folder")


def _speakers(wanted: bool | None) -> tuple[judges.Speakers | None, list[str]]:
    """Who tells speakers apart, and what is to be said where nobody does."""
    if wanted is False:
        return None, []
    try:
        return judges.Speakers(), []
    except ModuleNotFoundError as error:
        if wanted:
            raise
        return None, [f"whether each voice is one speaker was not looked at; {error}"]


def _others(rows: Sequence[dict[str, Any]], found: Sequence[Clip]) -> dict[int, tuple[str, float]]:
    """Number of a clip of somebody else → the voice it is under, and how like that voice it is."""
    voices = collections.defaultdict(list)
    for i, (row, clip) in enumerate(zip(rows, found, strict=True)):
        if clip.speaker:
            voices[row["voice"]].append(i)
    others = {}
    for voice, mine in voices.items():
        vectors = [np.array(found[i].speaker) for i in mine]
        alike = judges.strangers(vectors, [found[i].end - found[i].start for i in mine])
        others |= {mine[k]: (voice, value) for k, value in alike.items()}
    return others


def _notes(said: Transcripts) -> list[str]:
    unused = said.unused
    if not unused:
        return []
    more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
    return [f"the transcripts have {', '.join(map(repr, unused[:5]))}{more}, which are not among the recordings"]


def _finish(out: Path, consent: str, validation: float, notes: list[str]) -> Prepared:
    """All parts → one file of rows, without what is there twice, and the report."""
    found: list[Clip] = []
    rejected: list[Rejected] = []
    rows: list[dict[str, Any]] = []
    seen: dict[bytes, str] = {}
    for part in _folders(out / ".parts"):
        about = _about(part)
        rejected += [Rejected(**one) for one in about["rejected"]]
        made = pq.read_table(part / ROWS).to_pylist() if (part / ROWS).is_file() else []
        kept = [Clip(**one | {"speaker": tuple(one.get("speaker", ()))}) for one in about["clips"]]
        for row, clip in zip(made, kept, strict=True):
            digest = hashlib.sha256(np.array(row["fine"], np.int32).tobytes()).digest()
            if digest in seen:
                rejected.append(Rejected(clip.source, clip.start, clip.end, f"it is the same as {seen[digest]}"))
                continue
            seen[digest] = clip.id
            rows.append(row)
            found.append(clip)
    others = _others(rows, found)
    for i, (voice, alike) in sorted(others.items()):
        reason = f"somebody else speaks than in most of {voice!r} (likeness {alike:.2f})"
        rejected.append(Rejected(found[i].source, found[i].start, found[i].end, reason))
    rows = [row for i, row in enumerate(rows) if i not in others]
    found = [clip for i, clip in enumerate(found) if i not in others]
    if not rows:
        some = "; ".join(map(str, rejected[:5]))
        raise DataError(f"No clip is fit to train on, of {len(rejected)}: {some}")
    # By their names, so that more recordings change the split of few.
    chance = {row["id"]: int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big") / 2**64 for row in rows}
    chosen = {id_ for id_, x in chance.items() if x < validation}
    if validation > 0:
        chosen |= set(sorted(chance, key=chance.__getitem__)[: min(LEAST_VALIDATED, len(rows) // 10)])
    for row in rows:
        row["split"] = "validation" if row["id"] in chosen else "train"
    data.write(out / ROWS, rows)
    result = Prepared(out / ROWS, tuple(found), tuple(rejected), tuple(notes))
    _report(out, result, rows, consent)
    return result


def _report(out: Path, made: Prepared, rows: Sequence[dict[str, Any]], consent: str) -> None:
    voices: dict[str, list[float]] = collections.defaultdict(list)
    for row, clip in zip(rows, made.clips, strict=True):
        voices[row["voice"]].append(clip.end - clip.start)
    tree = {
        "consent": consent,
        "clips": len(made.clips),
        "minutes": round(made.minutes, 2),
        "with_text": sum(clip.text is not None for clip in made.clips),
        "validation": sum(row["split"] == "validation" for row in rows),
        "voices": {name: {"clips": len(s), "minutes": round(sum(s) / 60, 2)} for name, s in sorted(voices.items())},
        "rejected": [asdict(one) for one in made.rejected],
        "notes": list(made.notes),
    }
    with replacing(out / REPORT) as part:
        part.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _picture(out / PICTURE, made)


def _picture(path: Path, made: Prepared) -> None:
    """How long and how loud the clips are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([clip.end - clip.start for clip in made.clips], bins=28, range=(0, LONGEST_S))
    left.set(xlabel="seconds", ylabel="clips", title=f"{len(made.clips)} clips, {made.minutes:.1f} minutes")
    right.hist([clip.loudness_db for clip in made.clips], bins=24)
    right.set(xlabel="level before, dB of full scale", title=f"{len(made.rejected)} rejected")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
