"""``python -m bark_jax``: files, exit codes, and errors of one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bark_jax
import suno_like
from bark_jax import audio, cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return suno_like.save(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str | bytes | None = None):
        return CliRunner().invoke(cli.main, [str(a) for a in arguments], input=stdin, prog_name="bark-jax")

    return run


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def say(folder: Path, *more: object) -> list[object]:
    return ["say", "-m", folder, "--max-duration", 0.3, "--seed", 7, *more]


class TestSay:
    def test_writes_what_generate_gives(self, folder, call, tmp_path):
        done = call(*say(folder, "-v", "v2/en_speaker_6", "--float", "Hello,", "you!"))
        assert done.exit_code == 0, done.output
        speech = bark_jax.load(folder).generate(
            "Hello, you!", voice="v2/en_speaker_6", seed=7, sampling=bark_jax.Sampling(max_duration_s=0.3)
        )
        np.testing.assert_array_equal(audio.read(tmp_path / "speech.wav", 24_000), speech.audio)
        assert files(tmp_path) == ["speech.wav"]
        assert f"speech.wav: {speech.duration:.2f} s of speech, seed 7" in done.output
        assert "real time" in done.output and "semantic" in done.output

    @pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
    def test_endings(self, folder, call, tmp_path, name):
        done = call(*say(folder, "-q", "-o", name, "Hello"))
        assert (done.exit_code, done.output) == (0, "")
        assert files(tmp_path) == [name]
        assert audio.read(tmp_path / name, 24_000).shape == (320 * 22,)

    def test_text_from_stdin(self, folder, call, tmp_path):
        assert call(*say(folder, "-q", "-o", "a.wav", "-"), stdin="Hello\nyou!\n").exit_code == 0
        assert call(*say(folder, "-q", "-o", "b.wav", "Hello you!")).exit_code == 0
        assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()

    def test_a_voice_file(self, folder, call, tmp_path):
        suno_like.voice(1).save(tmp_path / "me.npz")
        assert call(*say(folder, "-q", "-o", "a.wav", "-v", "me.npz", "Hello")).exit_code == 0
        assert call(*say(folder, "-q", "-o", "b.wav", "-v", suno_like.NAMES[1], "Hello")).exit_code == 0
        assert call(*say(folder, "-q", "-o", "c.wav", "Hello")).exit_code == 0
        a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
        assert a == b != c

    def test_greedy_needs_no_seed(self, folder, call, tmp_path):
        for seed in (1, 2):
            done = call(*say(folder, "-q", "--greedy", "--seed", seed, "-o", f"{seed}.wav", "Hello"))
            assert done.exit_code == 0
        assert (tmp_path / "1.wav").read_bytes() == (tmp_path / "2.wav").read_bytes()

    def test_a_warning_is_a_line(self, folder, call):
        done = call("say", "-q", "-m", folder, "--seed", 1, "Hello")
        assert done.exit_code == 0
        assert done.output.startswith("warning: The speech of 'Hello' was cut at the model's limit of 40")
        assert done.output.count("\n") == 1


def half(samples: np.ndarray, rate: int) -> np.ndarray:
    """A watermark that anyone can hear."""
    assert rate == 24_000
    return samples * np.float32(0.5)


def broken(samples: np.ndarray, rate: int) -> np.ndarray:
    return samples[1:]


class TestOrigin:
    """`--about` and `--mark`."""

    def test_what_is_said_of_a_file_makes_it_again(self, folder, call, tmp_path):
        assert call(*say(folder, "-q", "--float", "--about", "-v", "v2/en_speaker_6", "Hello")).exit_code == 0
        assert files(tmp_path) == ["speech.wav", "speech.wav.json"]
        about = json.loads((tmp_path / "speech.wav.json").read_text("utf-8"))
        bark = bark_jax.load(folder)
        assert about["weights"] == bark.digest() and about["synthetic"] is True and about["mark"] is None
        assert about["text_sha256"] == hashlib.sha256(b"Hello").hexdigest() and "Hello" not in str(about)
        settings = bark_jax.Sampling(**about["sampling"])
        again = bark.generate("Hello", voice=about["voice"], seed=about["seed"], sampling=settings)
        assert len(again.audio) == about["samples"] and again.ended == about["ended"]
        np.testing.assert_array_equal(audio.read(tmp_path / "speech.wav", about["sample_rate"]), again.audio)

    def test_voices_are_called_by_name_or_by_what_they_are(self, folder):
        bark = bark_jax.load(folder)
        speech = bark.generate("Hello", seed=1, sampling=bark_jax.Sampling(max_duration_s=0.3))
        one, other = suno_like.voice(1), suno_like.voice(2)
        said = bark.about(speech, voice={"ann": one, "bob": "v2/en_speaker_6"})["voice"]
        assert said["bob"] == "v2/en_speaker_6" and said["ann"] == bark.about(speech, voice=one)["voice"]
        assert bark.about(speech, voice=one.to_dict())["voice"] == said["ann"]
        assert said["ann"].startswith("sha256 ") and said["ann"] != bark.about(speech, voice=other)["voice"]

    def test_a_mark_is_in_the_file(self, folder, call, tmp_path):
        assert call(*say(folder, "-q", "--float", "-o", "plain.wav", "Hello")).exit_code == 0
        done = call(*say(folder, "-q", "--float", "--about", "--mark", "test_cli:half", "Hello"))
        assert done.exit_code == 0, done.output
        plain, marked = (audio.read(tmp_path / name, 24_000) for name in ("plain.wav", "speech.wav"))
        np.testing.assert_array_equal(marked, plain * np.float32(0.5))
        assert json.loads((tmp_path / "speech.wav.json").read_text())["mark"] == "test_cli:half"

    @pytest.mark.parametrize(
        ("mark", "message"),
        [
            ("nothing", "it must be MODULE:FUNCTION"),
            ("no_such_module:f", "it must be MODULE:FUNCTION"),
            ("test_cli:files_", "it must be MODULE:FUNCTION"),
            ("test_cli:SCRIPT", "cannot be called"),
            ("test_cli:broken", "The mark gives an array of shape"),
        ],
    )
    def test_wrong_marks(self, folder, call, tmp_path, mark, message):
        done = call(*say(folder, "-q", "--mark", mark, "Hello"))
        assert done.exit_code == 1 and message in done.output and files(tmp_path) == []

    def test_streams_have_neither(self, folder, call):
        for option in (["--about"], ["--mark", "test_cli:half"]):
            done = call(*say(folder, "--stream", *option, "Hello"))
            assert done.exit_code == 1 and "a stream has none" in done.output


SCRIPT = "ann: Hello. [pause 0.2s] You!\nbob: Hi"


class TestLong:
    def test_a_script_with_timestamps(self, folder, call, tmp_path):
        cast = {"ann": suno_like.NAMES[0], "bob": suno_like.NAMES[1]}
        named = [part for name, voice in cast.items() for part in ("--cast", f"{name}={voice}")]
        done = call(*say(folder, "--float", "--timestamps", "a.srt", "-q", *named, "-"), stdin=SCRIPT)
        assert done.exit_code == 0, done.output
        settings = bark_jax.Sampling(max_duration_s=0.3)
        speech = bark_jax.load(folder).generate(SCRIPT, voice=cast, seed=7, sampling=settings)
        np.testing.assert_array_equal(audio.read(tmp_path / "speech.wav", 24_000), speech.audio)
        assert (tmp_path / "a.srt").read_text().count(" --> ") == len(speech.segments) == 3

    def test_a_stream_is_raw_samples(self, folder, call, tmp_path):
        done = call(*say(folder, "-q", "--stream", "Hello. [pause] You!"))
        assert done.exit_code == 0, done.output
        assert call(*say(folder, "-q", "Hello. [pause] You!")).exit_code == 0
        samples = np.frombuffer(done.stdout_bytes, "<i2") / np.float32(32768)
        np.testing.assert_array_equal(samples, audio.read(tmp_path / "speech.wav", 24_000))
        assert files(tmp_path) == ["speech.wav"]

    def test_a_book(self, folder, call, tmp_path):
        (tmp_path / "book.txt").write_text("Hello. [pause] You!", "utf-8")
        options = ["-m", folder, "--max-duration", 0.3, "--seed", 7]
        done = call("read", *options, "-o", "book.wav", "--timestamps", "book.json", "book.txt")
        assert done.exit_code == 0, done.output
        assert "book.wav: 0.0 minutes of speech in 2 parts" in done.output
        assert call(*say(folder, "-q", "Hello. [pause] You!")).exit_code == 0
        assert (tmp_path / "book.wav").read_bytes() == (tmp_path / "speech.wav").read_bytes()
        assert files(tmp_path) == ["book.json", "book.txt", "book.wav", "speech.wav"]


class TestOthers:
    def test_voices(self, folder, call, tmp_path, monkeypatch):
        (tmp_path / "mine").mkdir()
        suno_like.voice(3).save(tmp_path / "mine" / "anna.npz")
        monkeypatch.setenv("BARK_JAX_VOICES", str(tmp_path / "mine"))
        done = call("voices", "-m", folder)
        assert done.exit_code == 0
        assert {"anna", *suno_like.NAMES} <= set(done.output.split("\n"))

    def test_info(self, folder, call):
        done = call("info", "-m", folder)
        assert done.exit_code == 0
        for words in (bark_jax.__version__, "1 layers, 1 heads, width 16", "256 text tokens", "24000 Hz, 8 codebooks"):
            assert words in done.output
        for words in (r"memory .* MB of weights in int8, .* offloaded", r"MB for each row of a batch"):
            assert re.search(words, done.output)

    def test_version_and_help(self, call):
        assert call("--version").output.strip() == f"bark-jax, version {bark_jax.__version__}"
        for arguments in (["-h"], ["say", "--help"], ["voices", "-h"], ["info", "-h"]):
            done = call(*arguments)
            assert done.exit_code == 0 and done.output.startswith("Usage: bark-jax")


USAGE = {
    "unknown command": ["sing"],
    "unknown option": ["say", "--loud", "Hello"],
    "no text": ["say"],
    "seed": ["say", "--seed", "x", "Hello"],
    "temperature": ["say", "--text-temperature", "hot", "Hello"],
    "dtype": ["say", "--dtype", "int3", "Hello"],
    "device": ["say", "--device", "metal", "Hello"],
    "more for voices": ["voices", "extra"],
}


@pytest.mark.parametrize("case", USAGE, ids=str)
def test_usage_errors(call, tmp_path, case):
    done = call(*USAGE[case])
    assert done.exit_code == 2
    assert "Usage: bark-jax" in done.output and "Error: " in done.output
    assert files(tmp_path) == []


ERRORS = {
    "text file": (["Hello", "-o", "a.txt"], "'a.txt': its ending must be one of .wav, .flac"),
    "text": ([""], "must hold at least one character"),
    "long text": (["--no-split", "a " * 300], "300 tokens, 44 more than the limit of 256"),
    "latency": (["--latency", "low", "Hello"], "'low': it belongs to --stream"),
    "stream timestamps": (["--stream", "--timestamps", "a.srt", "Hello"], "--stream and --timestamps"),
    "timestamps": (["--timestamps", "a.txt", "Hello"], "'a.txt': its ending must be .srt or .json"),
    "cast": (["--cast", "ANN", "ANN: Hello"], "The cast has 'ANN': it must be NAME=VOICE"),
    "cast and voice": (["--cast", "ANN=a.npz", "-v", "b.npz", "ANN: Hello"], "There are a voice and a cast"),
    "pause": (["--pause", "100", "Hello"], "pause_s is 100.0: it must be 0 to 60"),
    "pause tag": (["Hello [pause x]"], "a pause is [pause], [pause 0.5s]"),
    "voice": (["-v", "v2/en_speaker_66", "Hello"], "There is no voice 'v2/en_speaker_66'"),
    "voice file": (["-v", "none.npz", "Hello"], "none.npz"),
    "voice path": (["-v", "../x", "Hello"], "is not the name of a voice"),
    "seed": (["--seed", "-1", "Hello"], "seed is -1: it must be"),
    "temperature": (["--text-temperature", "-1", "Hello"], "text_temperature is -1.0: it must be"),
    "temperature NaN": (["--fine-temperature", "nan", "Hello"], "fine_temperature is nan: it must be"),
    "top-k": (["--top-k", "0", "Hello"], "top_k is 0: it must be"),
    "top-p": (["--top-p", "2", "Hello"], "top_p is 2.0: it must be"),
    "min-eos-p": (["--min-eos-p", "2", "Hello"], "min_eos_p is 2.0: it must be"),
    "duration": (["--max-duration", "-1", "Hello"], "max_duration_s is -1.0: it must be"),
    "device": (["--device", "tpu", "Hello"], "JAX finds none"),
    "folder": (["-o", "none/a.wav", "Hello"], "There is no folder"),
    "a folder": (["-o", "folder.wav", "Hello"], "folder.wav is a folder"),
    "no ending": (["-o", "speech", "Hello"], "'speech': its ending must be one of"),
    "float flac": (["--float", "-o", "a.flac", "Hello"], "only .wav holds float"),
    "model": (["-m", "no/such/model", "Hello"], "There is no folder 'no/such/model'"),
    "hub": (["-m", "suno/bark-none", "Hello"], "suno/bark-none is not in the cache"),
    "local only": (["--local-files-only", "-m", "suno/bark-none", "Hello"], "local_files_only is set"),
    "file": (["-m", str(__file__), "Hello"], "is a file: the model must be the folder"),
}


@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_errors_are_one_line(folder, call, tmp_path, monkeypatch, case):
    arguments, words = ERRORS[case]
    (tmp_path / "folder.wav").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    done = call("say", "-m", folder, *arguments)
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)  # no error of ours passes through
    lines = done.output.strip("\n").split("\n")
    assert len(lines) == 1 and lines[0].startswith("Error: ") and words in lines[0]
    assert files(tmp_path) == ["folder.wav"]


@pytest.mark.parametrize("command", [["say", "Hello"], ["voices"], ["info"]])
def test_a_damaged_model_is_one_line(call, tmp_path, folder, command):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (damaged / file.name).symlink_to(file)
    (damaged / "coarse.safetensors").unlink()
    (damaged / "coarse.safetensors").write_bytes(b"")
    (damaged / "fine.safetensors").unlink()
    (damaged / "fine.safetensors").write_bytes(b"xx")
    done = call(*command, "-m", damaged)
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert "coarse.safetensors is damaged" in done.output and "fine.safetensors is damaged" in done.output
    assert files(tmp_path) == ["damaged"]


def test_a_folder_that_holds_no_model(call, tmp_path):
    (tmp_path / "empty").mkdir()
    done = call("say", "-m", "empty", "Hello")
    assert done.exit_code == 1 and done.output.count("Error: ") == 1
    assert files(tmp_path) == ["empty"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written(folder, call, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = call(*say(folder, "-o", "locked/a.wav", "Hello"))
    assert done.exit_code == 1 and "cannot be written to" in done.output


def test_bad_bytes_on_stdin(folder, call, tmp_path):
    done = call(*say(folder, "-"), stdin=b"\xff\xfe")
    assert done.exit_code == 1 and done.output.startswith("Error: ")
    assert files(tmp_path) == []


def test_a_bug_keeps_its_traceback(folder, call, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(bark_jax, "load", broken)
    done = call("voices", "-m", folder)
    assert isinstance(done.exception, TypeError)


def test_as_a_process(folder, tmp_path):
    """With nothing of this process: the real streams and exit codes, and no torch."""
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['torch'] = None; import bark_jax.cli; bark_jax.cli.main()",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([*command, *map(str, say(folder, "-o", "a.wav", "-"))], input="Hello", **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a.wav: 0.29 s of speech, seed 7\n"
    assert "%" not in done.stderr  # no bar where there is no terminal
    assert len(audio.read(tmp_path / "a.wav", 24_000)) == 320 * 22
    module = [sys.executable, "-m", "bark_jax"]
    done = subprocess.run([*module, *map(str, say(folder, "-v", "nobody", "-o", "b.wav", "Hello"))], **options)
    assert (done.returncode, done.stdout, files(tmp_path)) == (1, "", ["a.wav"])
    assert done.stderr.startswith("Error: There is no voice 'nobody'") and done.stderr.count("\n") == 1


class TestFilesApart:
    def test_a_stream_has_no_file(self, folder, call):
        for more in (("-o", "a.wav"), ("--float",)):
            done = call(*say(folder, "--stream", *more, "Hello"))
            assert done.exit_code == 1 and "a stream has none" in done.output

    def test_two_files_of_one_name(self, folder, call, tmp_path):
        (tmp_path / "bk.json").write_text("Hello.")
        for arguments in (
            say(folder, "-o", "a.wav", "--about", "--timestamps", "a.wav.json", "Hello"),
            ["read", "-m", folder, "-o", "a.wav", "--timestamps", "bk.json", "bk.json"],
        ):
            done = call(*arguments)
            assert done.exit_code == 1 and "would be written over" in done.output
        assert (tmp_path / "bk.json").read_text() == "Hello."

    def test_a_book_that_is_read_is_left_alone(self, folder, call, tmp_path):
        (tmp_path / "book.txt").write_text("Hello.")
        again = ["read", "-m", folder, "-q", "--max-duration", 0.3, "-o", "a.wav", "book.txt"]
        assert call(*again).exit_code == 0
        before = (tmp_path / "a.wav").read_bytes()
        done = call(*again)
        assert done.exit_code == 1 and "is there already" in done.output
        assert (tmp_path / "a.wav").read_bytes() == before

    def test_a_name_has_one_voice(self, folder, call):
        done = call(*say(folder, "--cast", "A=x", "--cast", "A=y", "A: Hello"))
        assert done.exit_code == 1 and "2 voices for 1 names" in done.output

    def test_bytes_that_are_no_text(self, folder, call):
        done = call(*say(folder, "-"), stdin=b"Caf\xe9")
        assert done.exit_code == 1 and "is not UTF-8 text" in done.output
