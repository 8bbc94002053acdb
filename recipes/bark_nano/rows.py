"""Step 4, the tokenised corpus: ``python -m recipes.bark_nano.rows``. What the trainer of the three GPTs reads.

    text ────────────────────────────────────────────────┐
    audio ─▶ units (step 2's network, 50 a second) ──────┼─▶ WORK/rows/said-*.parquet, recorded-*.parquet
          └▶ codec (step 3, 75 frames a second, 8 codes) ┘   read-*.parquet: --bulk, text and units alone

Rows of understood clips, and of recordings of people; these have no text and are for the coarse and fine stages. None
is of a held-out voice. The units are the network's, not whisper's: those `Bark.audio_to_semantic` gives of a voice
prompt. ``WORK/rows`` says of which codec and network it is made, and goes on where it was stopped; with others it must
be made anew. Another decoder of the same codec changes no code (`train_codec --trained decoder`).

``--bulk`` writes what the bulk voice reads as rows for the text stage alone, without codes, and without whisper having
listened: checking 15 hours takes longer than speaking and reading them. Of the first 13 hours planned for that voice, 6
in 100 clips did not become rows, refused by whisper or too long.

``--shift ROWS`` writes rows of speakers that nobody is, to ``WORK/shifted``, for the coarse and fine stages: a clip
played faster or slower has another pitch and other resonances (speed perturbation, Ko et al. 2015). Of the voices in
ROWS each is played at two paces; its audio is what the codec makes of its codes. What the bulk voice reads is divided
among many paces.

``--recode ROWS --before CODEC`` writes ROWS, made with another codec, with the codes of this one, of the audio that the
other makes of its codes: minutes, where speaking the corpus again takes hours. Units and texts stay.

``--copies ROWS`` writes the audio of their codes to WORK/audio, where the corpus is not there; ``--relabel ROWS``
writes ROWS with the units that WORK's network hears in WORK/audio. Texts and codes stay.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from bark_jax import codec as codecs
from bark_jax import units as networks
from bark_jax.audio import read, resample
from bark_jax.audio import write as write_audio
from bark_jax.train import data
from recipes.bark_nano import corpus, evaluate, run, units
from recipes.bark_nano.train_codec import CONFIG, digest

CLIPS_PER_FILE, CLIPS_AT_ONCE = 1000, 8

SLOWER, FASTER = (0.82, 0.94), (1.06, 1.22)
"""The two paces of a voice are somewhere in these: far enough to be others, near enough to be speech of its kind."""
BULK_PACES = tuple(round(0.75 * (1.33 / 0.75) ** (i / 59), 4) for i in range(60))


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


DIGESTS: dict[str, Callable[[Path], str]] = {
    "codec": digest,
    "units": lambda network: hashlib.sha256(network.read_bytes()).hexdigest(),
}
"""Of the two files that rows depend on."""


def made_from(codec: Path, network: Path) -> dict[str, str]:
    """SHA-256 of what rows depend on: encoder and codebooks of a codec, but not its decoder, and the units' network."""
    return {name: DIGESTS[name](file) for name, file in (("codec", codec), ("units", network))}


def check(rows: Path, codec: Path, network: Path | None) -> None:
    """Raises `ValueError` if rows are not of a codec and a network: their numbers would mean something else.

    Args:
      network: None: whatever units they have.
    """
    about = rows / "made-from.json"
    if not about.is_file():
        raise FileNotFoundError(f"{rows} has no {about.name}: it is no folder of `python -m recipes.bark_nano.rows`")
    made = json.loads(about.read_text("utf-8"))
    for name, file in (("codec", codec), ("units", network)):
        if file is not None and made[name] != DIGESTS[name](file):
            raise ValueError(f"{rows} was made with another {name} than {file}: take the rows or the file of the other")


def there(folder: Path, pattern: str = "*.parquet") -> set[str]:
    """Ids of the rows in a folder's files."""
    files = sorted(folder.glob(pattern))
    return {id_ for file in files for id_ in pyarrow.parquet.read_table(file, columns=["id"])["id"].to_pylist()}


def free(folder: Path, name: str) -> Iterator[Path]:
    """Files of this name that are not there: ``NAME-00000.parquet`` and on."""
    paths = (folder / f"{name}-{number:05d}.parquet" for number in itertools.count())
    return (path for path in paths if not path.exists())


def begin(work: Path, name: str = "rows") -> Path:
    """A folder of rows, if it is new or of the same codec and units."""
    folder = work / name
    now = made_from(work / "codec" / "codec.safetensors", work / "units" / "units.safetensors")
    corpus.of_one_kind(folder, now, "another codec or other units", files="*.parquet")
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
    chosen = [(id_, path) for id_, path, split in units.sources(work) if split != "heldout"]
    if not chosen:
        raise ValueError(f"{work} has no clips that were understood and no recordings: see `corpus check`, `record`")
    folder = begin(work)
    began, known = time.monotonic(), there(folder)
    for name, recorded in (("said", False), ("recorded", True)):
        these = [item for item in chosen if item[0].startswith("recordings/") == recorded and item[0] not in known]
        these.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())  # every file has some of every voice
        for start, path in zip(range(0, len(these), CLIPS_PER_FILE), free(folder, name), strict=False):
            # By length, so that clips that are encoded together need about the same number of pieces.
            some = sorted(these[start : start + CLIPS_PER_FILE], key=lambda item: item[1].stat().st_size)
            data.write(path, tokenised(work, some))
            print(f"{path.name}: {len(some):,} rows, {time.monotonic() - began:.0f} s", flush=True)


def bulk(work: Path, known: set[str]) -> Iterator[dict[str, Any]]:
    """Rows of the bulk voice's clips that last as long as a clip may, but for those that are `known`."""
    network = networks.load(work / "units" / "units.safetensors")
    low, high = corpus.DURATION_S
    for clip in corpus.read_plan(work):
        path = corpus.audio_path(work, clip.id)
        if clip.teacher == corpus.BULK and clip.id not in known and path.is_file():
            audio = read(path, CONFIG.sample_rate)
            if low <= len(audio) / CONFIG.sample_rate <= high:
                heard = networks.encode(network, audio)
                yield {"id": clip.id, "split": clip.split, "text": clip.text, "voice": clip.voice, "semantic": heard}


def write_bulk(work: Path) -> None:
    """Write the bulk voice's rows that are not there yet, with codes or without."""
    folder = begin(work)
    known = there(folder)
    rows = bulk(work, known)
    for path in free(folder, "read"):
        some = list(itertools.islice(rows, CLIPS_PER_FILE))
        if not some:
            break
        data.write(path, some)
        known.update(row["id"] for row in some)
        print(f"{path.name}: {len(some):,} rows", flush=True)
    if not known:
        raise ValueError(f"{work} has no audio of {corpus.BULK}'s: run `corpus speak --teacher {corpus.BULK}` first")


def paces(voice: str) -> tuple[float, float]:
    """The two paces of a voice, the same whenever it is asked."""
    low, high = hashlib.sha256(voice.encode()).digest()[:2]
    between = lambda ends, at: round(ends[0] + (ends[1] - ends[0]) * at / 255, 4)  # noqa: E731
    return between(SLOWER, low), between(FASTER, high)


def at_pace(audio: np.ndarray, pace: float) -> np.ndarray:
    """A clip (samples,) as a tape machine would play it `pace` times as fast."""
    return resample(audio, round(CONFIG.sample_rate * pace), CONFIG.sample_rate)


def to_shift(work: Path, others: Path) -> Iterator[tuple[str, str, float, Path | np.ndarray]]:
    """(id, voice, pace, its file or its codes) of every clip to make: those of `others`, then the bulk voice's."""
    for file in sorted(others.glob("said-*.parquet")):
        for row in pyarrow.parquet.read_table(file, columns=["id", "voice", "split", "fine"]).to_pylist():
            if row["split"] == "train" and row["voice"] != corpus.BULK:
                for pace in paces(row["voice"]):
                    yield row["id"], row["voice"], pace, np.array(row["fine"], np.int32)
    for clip in corpus.read_plan(work):
        path = corpus.audio_path(work, clip.id)
        if clip.teacher == corpus.BULK and clip.split == "train" and path.is_file():
            at = hashlib.sha256(clip.id.encode()).digest()[0] % len(BULK_PACES)
            yield clip.id, clip.voice, BULK_PACES[at], path


def shifted(work: Path, chosen: Sequence[tuple[str, str, float, Path | np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Rows of clips at their paces, in their order."""
    codec = evaluate.load_codec(work / "codec" / "codec.safetensors")
    network = networks.load(work / "units" / "units.safetensors")
    for start in range(0, len(chosen), CLIPS_AT_ONCE):
        some = chosen[start : start + CLIPS_AT_ONCE]
        given = [codes if isinstance(codes, np.ndarray) else np.zeros((1, 0), np.int32) for *_, codes in some]
        given += given[:1] * (CLIPS_AT_ONCE - len(some))  # as many rows in every call: compiled once
        waves = codecs.decode(codec, given)
        audio = [
            at_pace(read(source, CONFIG.sample_rate) if isinstance(source, Path) else wave, pace)
            for (_, _, pace, source), wave in zip(some, waves, strict=False)
        ]
        audio += [audio[0][:1]] * (CLIPS_AT_ONCE - len(some))
        for (id_, voice, pace, _), clip, codes in zip(some, audio, codecs.encode(codec, audio), strict=False):
            semantic, fine = fit(networks.encode(network, clip), np.asarray(codes))
            name = f"{voice}x{pace:.4f}"
            yield {"id": shifted_id(id_, pace), "split": "train", "voice": name, "semantic": semantic, "fine": fine}


def write_shifted(work: Path, others: Path) -> None:
    """Write what is not there yet.

    Raises:
      ValueError: `others` is of another codec or other units, or there is nothing to play at another pace.
    """
    check(others, work / "codec" / "codec.safetensors", work / "units" / "units.safetensors")
    folder = begin(work, "shifted")
    known = there(folder)
    wanted = [item for item in to_shift(work, others) if shifted_id(item[0], item[2]) not in known]
    if not wanted and not known:
        raise ValueError(f"{others} has no said-*.parquet with clips to train on: there is nothing to shift")
    chosen = sorted(wanted, key=lambda item: hashlib.sha256(f"{item[0]}{item[2]}".encode()).digest())
    began = time.monotonic()
    for start, path in zip(range(0, len(chosen), CLIPS_PER_FILE), free(folder, "shifted"), strict=False):
        size = lambda item: item[3].shape[1] / 75 if isinstance(item[3], np.ndarray) else 4.0  # noqa: E731
        data.write(path, shifted(work, sorted(chosen[start : start + CLIPS_PER_FILE], key=size)))
        print(f"{path.name} of {-(-len(chosen) // CLIPS_PER_FILE)}, {time.monotonic() - began:.0f} s", flush=True)


def shifted_id(id_: str, pace: float) -> str:
    return f"{id_}x{pace:.4f}"


def recoded(rows: Sequence[dict[str, Any]], old: codecs.Codec, new: codecs.Codec) -> Iterator[dict[str, Any]]:
    """Rows of one codec with the codes of another, of what the first makes of them; rows without codes stay."""
    yield from (row for row in rows if row.get("fine") is None)
    coded = sorted((row for row in rows if row.get("fine") is not None), key=lambda row: len(row["fine"][0]))
    for start in range(0, len(coded), CLIPS_AT_ONCE):
        some = coded[start : start + CLIPS_AT_ONCE]
        given = [np.array(row["fine"], np.int32) for row in some]
        given += given[:1] * (CLIPS_AT_ONCE - len(some))  # as many rows in every call: compiled once
        for row, codes in zip(some, codecs.encode(new, codecs.decode(old, given)), strict=False):
            fine = np.asarray(codes)
            yield row | {"fine": fine} | ({"coarse": fine[:2]} if row.get("coarse") is not None else {})


def rewrite(work: Path, others: Path, changed: Callable[[list[dict[str, Any]]], Iterable[dict[str, Any]]]) -> None:
    """Write WORK/rows, each file of `others` with its rows changed, where it is not there yet."""
    files = sorted(others.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{others} has no .parquet files: there are no rows to change")
    folder, began = begin(work), time.monotonic()
    for number, file in enumerate(files, 1):
        if not (folder / file.name).is_file():
            data.write(folder / file.name, changed(pyarrow.parquet.read_table(file).to_pylist()))
            print(f"{file.name}, {number} of {len(files)}, {time.monotonic() - began:.0f} s", flush=True)


def write_recoded(work: Path, others: Path, before: Path) -> None:
    """Write `others` with the codes of WORK's codec."""
    old, new = evaluate.load_codec(before), evaluate.load_codec(work / "codec" / "codec.safetensors")
    rewrite(work, others, lambda rows: recoded(rows, old, new))


def relabelled(work: Path, rows: Iterable[dict[str, Any]], network: networks.Network) -> Iterator[dict[str, Any]]:
    """Rows with the units of a network, of WORK's audio.

    Raises:
      FileNotFoundError: a clip is not there.
    """
    for row in rows:
        path = corpus.audio_path(work, row["id"])
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: `corpus speak` or `rows --copies` makes it")
        heard = networks.encode(network, read(path, CONFIG.sample_rate))
        if row.get("fine") is None:
            yield row | {"semantic": heard}
        else:
            semantic, fine = fit(heard, np.array(row["fine"], np.int32))
            yield row | {"semantic": semantic, "fine": fine} | ({"coarse": fine[:2]} if row.get("coarse") else {})


def write_relabelled(work: Path, others: Path) -> None:
    """Write `others` with the units of WORK's network.

    Raises:
      ValueError: the rows are of another codec than WORK's.
    """
    check(others, work / "codec" / "codec.safetensors", None)
    network = networks.load(work / "units" / "units.safetensors")
    rewrite(work, others, lambda rows: relabelled(work, rows, network))


def write_copies(work: Path, others: Path) -> None:
    """Write the audio of rows' codes where the corpus is not there: WORK/audio/ID.flac.

    Raises:
      ValueError: the rows are of another codec than WORK's.
    """
    codec_path = work / "codec" / "codec.safetensors"
    check(others, codec_path, None)
    codec, began = evaluate.load_codec(codec_path), time.monotonic()
    files = sorted(others.glob("said-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{others} has no said-*.parquet: there are no codes to make audio of")
    for number, file in enumerate(files, 1):
        made = pyarrow.parquet.read_table(file, columns=["id", "fine"]).to_pylist()
        missing = [row for row in made if not corpus.audio_path(work, row["id"]).is_file()]
        missing.sort(key=lambda row: len(row["fine"][0]))
        for start in range(0, len(missing), CLIPS_AT_ONCE):
            some = missing[start : start + CLIPS_AT_ONCE]
            given = [np.array(row["fine"], np.int32) for row in some]
            given += given[:1] * (CLIPS_AT_ONCE - len(some))  # as many rows in every call: compiled once
            for row, audio in zip(some, codecs.decode(codec, given), strict=False):
                path = corpus.audio_path(work, row["id"])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_audio(path, np.asarray(audio), CONFIG.sample_rate)
        print(f"{file.name}, {number} of {len(files)}, {time.monotonic() - began:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.rows", description="Tokenise the corpus.")
    parser.add_argument("--work", type=Path, default=corpus.WORK)
    parser.add_argument("--bulk", action="store_true", help="the bulk voice's rows, for the text stage alone")
    parser.add_argument("--shift", type=Path, metavar="ROWS", help="the voices of these rows at other paces")
    parser.add_argument("--recode", type=Path, metavar="ROWS", help="these rows, with the codes of WORK's codec")
    parser.add_argument("--before", type=Path, metavar="CODEC", help="of --recode: the codec.safetensors of these rows")
    parser.add_argument("--relabel", type=Path, metavar="ROWS", help="these rows, with the units of WORK's network")
    parser.add_argument("--copies", type=Path, metavar="ROWS", help="audio of these rows' codes, where WORK has none")
    options = parser.parse_args(argv)
    if options.relabel is not None:
        return run(lambda: write_relabelled(options.work, options.relabel))
    if options.copies is not None:
        return run(lambda: write_copies(options.work, options.copies))
    if (options.recode is None) != (options.before is None):
        parser.error("--recode ROWS and --before CODEC go together: ROWS do not say what a code of theirs sounds like")
    if options.recode is not None:
        return run(lambda: write_recoded(options.work, options.recode, options.before))
    if options.shift is not None:
        return run(lambda: write_shifted(options.work, options.shift))
    return run(lambda: (write_bulk if options.bulk else write)(options.work))


if __name__ == "__main__":
    sys.exit(main())
