"""`bark-jax prepare`: recordings → rows, and what is left out with which words."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("grain")

import soundfile
from click.testing import CliRunner

import bark_jax
import models
from bark_jax import Bark, cli, clips, judges, tokens
from bark_jax import audio as audio_files
from bark_jax.train import DataError, prepare, read
from bark_jax.train.transcripts import Line, Said, TranscriptError, Transcripts, joined, whisper
from test_clips import pause, said, utterances

RATE = 24_000
WHO = "the speaker, in writing"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_with_units(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def bark(model: Path) -> Bark:
    return bark_jax.load(model)


def put(path: Path, audio: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def test_rows_are_the_clips_as_the_model_reads_them(bark: Bark, tmp_path: Path) -> None:
    folder = tmp_path / "said"
    whole = utterances(0.5, 2.0, 0.3, 1.6, 1.5, 2.4, 0.5, rate=RATE)
    put(folder / "one" / "long.wav", whole)
    put(folder / "two" / "short.flac", utterances(0.2, 2.2, 0.2, rate=48_000), 48_000)
    made = prepare(bark, folder, tmp_path / "rows", consent=WHO, one_speaker=False)
    assert made.rejected == () and made.notes == () and len(made.clips) == 3
    rows = rows_of(made.rows)
    assert [row["voice"] for row in rows] == ["one", "one", "two"] and [row["text"] for row in rows] == [None] * 3
    for row, clip in zip(rows[:2], made.clips, strict=False):
        audio = clips.levelled(whole[round(clip.start * RATE) : round(clip.end * RATE)], RATE)
        ids, codes = tokens.aligned(bark.config.coarse, bark.audio_to_semantic(audio), bark.encode(audio))
        np.testing.assert_array_equal(row["semantic"], ids)
        np.testing.assert_array_equal(np.stack(row["fine"]), codes)
    for stage in ("coarse", "fine"):
        assert len(read([str(tmp_path / "rows")], bark.config, stage)) == 3
    report = json.loads((tmp_path / "rows" / "report.json").read_text())
    assert report["consent"] == WHO and report["voices"]["one"]["clips"] == 2 and report["clips"] == 3
    assert (tmp_path / "rows" / "report.png").read_bytes()[:4] == b"\x89PNG"
    lengths = [clip.end - clip.start for clip in made.clips]
    assert made.minutes == pytest.approx(sum(lengths) / 60) and 1.5 < min(lengths) < max(lengths) < 4.5


def test_a_bad_recording_is_named_and_the_rest_is_done(bark: Bark, tmp_path: Path) -> None:
    folder, good = tmp_path / "said", utterances(0.3, 2.0, 0.3, rate=RATE)
    t = np.arange(3 * RATE) / RATE
    put(folder / "a-good.wav", good)
    put(folder / "b-short.wav", said(0.3, rate=RATE))
    put(folder / "c-silent.wav", np.zeros(2 * RATE, np.float32))
    put(folder / "d-music.wav", (0.2 * np.sin(2 * np.pi * 220 * t)).astype(np.float32))
    put(folder / "e-clipped.wav", np.clip(3 * utterances(0.3, 3.0, 0.3, rate=RATE), -0.5, 0.5))
    put(folder / "f-telephone.wav", utterances(0.3, 2.0, 0.3, rate=8_000), 8_000)
    (folder / "g-nothing.wav").write_bytes(b"no audio")
    put(folder / "h-dead.wav", np.stack([utterances(0.3, 2.5, 0.3, rate=RATE), np.zeros(round(3.1 * RATE))], axis=1))
    put(folder / "i-twice.wav", good)
    put(folder / "j-other.wav", utterances(0.3, 2.7, 0.3, rate=RATE))
    (folder / "j-other.txt").write_text("much more than anybody could ever say in three seconds of time " * 4)
    put(folder / "k-broken.wav", utterances(0.3, 2.8, 0.3, rate=RATE))
    plucked = np.sin(2 * np.pi * 220 * 2 ** ((t // 0.5) % 3 / 12) * t) * np.exp(-6 * (t % 0.5))
    put(folder / "l-melody.wav", (0.5 * plucked).astype(np.float32))
    (folder / "k-broken.json").write_text('{"segments": [{"start": 2, "end": 1, "text": "x"}]}')
    made = prepare(bark, folder, tmp_path / "rows", consent=WHO)
    assert [clip.source for clip in made.clips] == ["a-good.wav", "h-dead.wav"]
    reasons = {one.source[0]: one.reason for one in made.rejected}
    for letter, words in {
        "b": "it lasts 0.30 s: it must be 1 s or longer",
        "c": "it is silent",
        "d": "its level changes by 0 dB: speech changes by 12",
        "e": "it is clipped: ",
        "f": "its rate is 8,000 Hz: it must be 16,000 or more",
        "g": "it is not a sound file that can be read",
        "i": "it is the same as a-good.wav@",
        "j": "this is not what is said ('much more than",
        "l": "its pitch stays in ",
        "k": "k-broken.json: segment 0 has start 2, end 1",
    }.items():
        assert words in reasons.pop(letter), letter
    assert not reasons
    dead = next(row for row in rows_of(made.rows) if row["id"].startswith("h-dead"))
    alone = tmp_path / "alone"
    put(alone / "h-dead.wav", utterances(0.3, 2.5, 0.3, rate=RATE))
    [row] = rows_of(prepare(bark, alone, tmp_path / "rows2", consent=WHO).rows)
    assert row["fine"] == dead["fine"]  # a dead channel does not halve the level
    with pytest.raises(DataError, match=r"No clip is fit to train on, of 1: c-silent\.wav: it is silent"):
        prepare(bark, folder / "c-silent.wav", tmp_path / "none", consent=WHO)


def test_strangers_are_those_unlike_most() -> None:
    rng = np.random.default_rng(0)

    def speaker(n: int, of: int) -> list[np.ndarray]:
        vectors = np.eye(256)[of] + 0.02 * rng.normal(size=(n, 256))
        return list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    vectors, seconds = [*speaker(5, 0), *speaker(8, 1)], [4.0] * 13
    found = judges.strangers(vectors, seconds)
    assert sorted(found) == [0, 1, 2, 3, 4] and max(found.values()) < 0.2
    seconds[1], seconds[2] = 1.9, 2.1  # too short to tell, and just long enough
    assert sorted(judges.strangers(vectors, seconds)) == [0, 2, 3, 4]
    assert judges.strangers(vectors, [2.9] * 11 + [4.0] * 2) == {}
    assert judges.strangers([], []) == {}


def test_two_people_in_one_folder_are_told_apart(bark: Bark, tmp_path: Path) -> None:
    pytest.importorskip("resemblyzer")
    recordings = Path(__file__).parents[1] / "../shared/data/librispeech/test"
    if not recordings.is_dir():
        pytest.skip(f"there is no {recordings}")
    for reader, n in (("1688", 5), ("2609", 2)):
        for path in sorted(recordings.glob(f"{reader}-*.flac"))[:n]:
            (tmp_path / "said").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "said" / path.name)
    made = prepare(bark, tmp_path / "said", tmp_path / "rows", consent=WHO)
    others = [one for one in made.rejected if "somebody else speaks" in one.reason]
    assert others and {one.source[:4] for one in others} == {"2609"}
    assert {clip.source[:4] for clip in made.clips if clip.end - clip.start >= 2} == {"1688"}
    kept = prepare(bark, tmp_path / "said", tmp_path / "all", consent=WHO, one_speaker=False)
    assert len(kept.clips) == len(made.clips) + len(others) and not kept.notes


def test_where_nobody_tells_speakers_apart_it_is_said(
    bark: Bark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    put(tmp_path / "said" / "one.wav", utterances(0.3, 2.0, 0.3, rate=RATE))
    [note] = prepare(bark, tmp_path / "said", tmp_path / "rows", consent=WHO).notes
    assert note.startswith("whether each voice is one speaker was not looked at; measuring speech needs resemblyzer")
    with pytest.raises(ModuleNotFoundError, match="needs resemblyzer"):
        prepare(bark, tmp_path / "said", tmp_path / "more", consent=WHO, one_speaker=True)


def test_texts_come_from_tables_and_from_whisper(bark: Bark, tmp_path: Path) -> None:
    folder = tmp_path / "said"
    put(folder / "one.wav", utterances(0.3, 1.2, 0.4, 1.2, 0.3, rate=RATE))
    put(folder / "two.wav", utterances(0.3, 2.0, 0.3, rate=RATE))
    table = tmp_path / "metadata.csv"
    table.write_text("one|raw|it is said here\nthree|raw|and not here\n")
    made = prepare(bark, folder, tmp_path / "rows", consent=WHO, transcripts=table, one_speaker=False)
    assert [clip.text for clip in made.clips] == ["it is said here", None]
    assert made.notes == ("the transcripts have 'three', which are not among the recordings",)
    heard = tmp_path / "heard"
    heard.mkdir()
    segments = [(0.3, 1.5, " it is"), (1.9, 3.1, " said here")]
    tree = {"segments": [{"start": a, "end": b, "text": text} for a, b, text in segments]}
    (heard / "one.json").write_text(json.dumps(tree))
    made = prepare(bark, folder, tmp_path / "rows3", consent=WHO, transcripts=heard, voice="me")
    assert [(clip.text, round(clip.start, 1)) for clip in made.clips] == [("it is said here", 0.2), (None, 0.2)]
    assert {row["voice"] for row in rows_of(made.rows)} == {"me"}


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not(
    bark: Bark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[prepare.__module__]
    monkeypatch.setattr(module, "RECORDINGS_AT_ONCE", 2)
    folder = tmp_path / "said"
    for i in range(5):
        put(folder / f"{i}.wav", utterances(0.3, 1.5 + 0.2 * i, 0.3, rate=RATE))
    whole = prepare(bark, folder, tmp_path / "whole", consent=WHO, validation=0.3)
    calls = []

    def dies(self: Any, made: Any, clip: np.ndarray, path: Path) -> Any:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return row(self, made, clip, path)

    row = module._Maker._row
    monkeypatch.setattr(module._Maker, "_row", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(bark, folder, tmp_path / "out", consent=WHO, validation=0.3)
    assert not (tmp_path / "out" / "rows.parquet").exists()
    monkeypatch.setattr(module._Maker, "_row", row)
    again = prepare(bark, folder, tmp_path / "out", consent=WHO, validation=0.3)
    assert again.clips == whole.clips
    assert again.rows.read_bytes() == whole.rows.read_bytes()
    # More recordings are added; those that are done are not read again.
    put(folder / "5.wav", utterances(0.3, 3.0, 0.3, rate=RATE))
    monkeypatch.setattr(module._Maker, "_row", lambda *a: calls.append("x") or row(*a))
    calls.clear()
    more = prepare(bark, folder, tmp_path / "out", consent=WHO, validation=0.3)
    assert calls == ["x"] and len(more.clips) == 6
    before = {r["id"]: r["split"] for r in rows_of(whole.rows)}
    assert {r["id"]: r["split"] for r in rows_of(more.rows) if r["id"] in before} == before
    with pytest.raises(DataError, match="begun with voice None, and it is 'me' now"):
        prepare(bark, folder, tmp_path / "out", consent=WHO, voice="me")
    put(folder / "5.wav", utterances(0.3, 3.1, 0.3, rate=RATE))
    with pytest.raises(DataError, match=r"5\.wav has changed since it was prepared"):
        prepare(bark, folder, tmp_path / "out", consent=WHO)
    (folder / "5.wav").unlink()
    with pytest.raises(DataError, match=r"5\.wav was prepared before, and is not in"):
        prepare(bark, folder, tmp_path / "out", consent=WHO)


def test_of_some_clips_enough_are_kept_from_training(bark: Bark, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for i in range(40):
        put(tmp_path / "said" / f"{i:02d}.wav", utterances(0.1, float(rng.uniform(1.1, 1.4)), 0.1, rate=RATE))

    def kept(share: float) -> set[str]:
        made = prepare(bark, tmp_path / "said", tmp_path / "out", consent=WHO, validation=share)
        assert len(made.clips) == 40
        return {row["id"] for row in rows_of(made.rows) if row["split"] == "validation"}

    assert not kept(0)
    assert len(kept(1e-9)) == 4  # one in ten, where the share alone would keep none
    assert kept(1e-9) <= kept(0.5) and 8 <= len(kept(0.5)) <= 32


def test_wrong_arguments_are_named(bark: Bark, tmp_path: Path) -> None:
    folder = tmp_path / "said"
    put(folder / "one.wav", utterances(0.3, 1.5, 0.3, rate=RATE))
    (tmp_path / "empty").mkdir()
    for source, options, words in (
        (folder, {"consent": " "}, "must say who agreed"),
        (folder, {"validation": 0.6}, "validation is 0.6: it must be 0 to 0.5"),
        (tmp_path / "empty", {}, r"has no recordings: their endings are \.wav"),
        (folder, {"out": folder}, "where the recordings are"),
        (folder, {"transcripts": folder / "one.wav"}, "is not UTF-8 text"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare(bark, source, **{"out": tmp_path / "rows", "consent": WHO, **options})
    with pytest.raises(FileNotFoundError, match="must be a folder of recordings"):
        prepare(bark, tmp_path / "absent", tmp_path / "rows", consent=WHO)


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(cli.main, [str(a) for a in arguments])

    clip = put(tmp_path / "said" / "one.wav", utterances(0.3, 3.0, 0.3, rate=RATE))
    put(tmp_path / "said" / "bad.wav", np.zeros(RATE * 2, np.float32))
    for command in (("clone", clip, "-o", tmp_path / "v.npz"), ("prepare", clip.parent, "-o", tmp_path / "rows")):
        done = run(*command, "-m", model)
        assert done.exit_code == 2 and "--consent" in done.output
    done = run("prepare", clip.parent, "-o", tmp_path / "rows", "-m", model, "--consent", WHO, "-q")
    assert done.exit_code == 0 and "1 clips, 0.1 minutes; 1 rejected" in done.output, done.output
    assert "bad.wav: it is silent" in done.output
    done = run("clone", clip, "-o", tmp_path / "v.npz", "-m", model, "--consent", WHO)
    assert done.exit_code == 0, done.output
    voice = bark_jax.Voice.load(tmp_path / "v.npz")
    assert voice.consent is not None and voice.consent.startswith(f"{WHO}; 20") and "; sha256 " in voice.consent
    done = run("clone", clip, "-o", tmp_path / "v.npy", "-m", model, "--consent", WHO)
    assert done.exit_code == 1 and "ends in .npz or .safetensors" in done.output


class TestTranscripts:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.csv", 'file,text\na/one.wav,"so, it is"\n'),
            ("t.csv", 'a/one.wav,"so, it is"\n'),
            ("t.tsv", "id\tx\ttext\none\t0\tso, it is\n"),
            ("metadata.csv", "one|SO|so, it is\n"),
            ("t.csv", '\ufefftranscript,path\n"so,  it is",./a/one\n'),
        ],
    )
    def test_tables(self, name: str, content: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content, "utf-8")
        table = Transcripts(tmp_path / name)
        assert table.of(tmp_path / "a" / "one.wav", tmp_path) == Said(text="so, it is") and table.unused == []
        assert table.of(tmp_path / "two.wav", tmp_path) is None

    @pytest.mark.parametrize(
        ("content", "words"),
        [("", "is empty"), ("one two\n", "no tabs, bars or commas"), ("a|x\na|y\n", "names 'a' twice"),
         ("a|x\nb\n", "has the line 'b'")],
    )  # fmt: skip
    def test_tables_that_are_none(self, content: str, words: str, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(content)
        with pytest.raises(TranscriptError, match=words):
            Transcripts(tmp_path / "t.csv")

    def test_whisper(self, tmp_path: Path) -> None:
        words = [{"start": 0.5, "end": 0.7, "word": " so,"}, {"start": 0.8, "end": 1.0, "word": " it's"}]
        segments = [
            {"start": 0.5, "end": 1.0, "text": "so, it's", "words": words},
            {"start": 2, "end": 3.5, "text": " done. "},
            {"start": 4, "end": 4, "text": " "},
        ]
        tree = {"segments": segments}
        (tmp_path / "x.json").write_text(json.dumps(tree))
        heard = whisper(tmp_path / "x.json")
        assert [line.text for line in heard.lines] == [" so,", " it's", " done. "]
        assert joined(heard.lines) == "so, it's done."
        assert joined([Line(0, 1, "one"), Line(1, 2, "two")]) == "one two"
        for broken, words_ in (
            ("{", "not valid JSON"),
            ("[]", "no list of segments"),
            ('{"segments": [3]}', "is a int"),
            ('{"segments": [{"start": "a", "end": 1, "text": ""}]}', "has start 'a'"),
        ):
            (tmp_path / "x.json").write_text(broken)
            with pytest.raises(TranscriptError, match=words_):
                whisper(tmp_path / "x.json")


def test_channels_are_read_as_they_are(tmp_path: Path) -> None:
    two = np.stack([said(0.5), pause(0.5)], axis=1).astype(np.float32)
    put(tmp_path / "two.wav", two, 16_000)
    rate, audio = audio_files.read_channels(tmp_path / "two.wav")
    assert rate == 16_000
    np.testing.assert_array_equal(audio, two)
    np.testing.assert_array_equal(audio_files.read(tmp_path / "two.wav", 16_000), two.mean(axis=1))
