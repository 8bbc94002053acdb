"""bark-nano, the bundled model, from text to words that are recognised; no network is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soxr

import bark_jax
from bark_jax import library, weights
from recipes.bark_nano import listen

pytestmark = pytest.mark.skipif(
    not weights.is_native(library.BUNDLED_FOLDER), reason="bark-nano is still in training, and not in the package yet"
)

SENTENCES = [
    "Good morning, how are you today?",
    "The train leaves at seven in the evening.",
    "Please close the door behind you.",
    "The weather is cold and the sky is grey.",
    "She gave her brother a book about birds.",
    "We walked along the river to the old bridge.",
    "My sister has two dogs and a cat.",
    "Turn left at the next corner.",
    "He was very glad to see his friends again.",
    "There is a small garden behind the house.",
]


@pytest.fixture(scope="module")
def bark() -> bark_jax.Bark:
    return bark_jax.load()


@pytest.fixture(scope="module")
def said(bark: bark_jax.Bark) -> list[bark_jax.Speech]:
    voices = bark.voices()
    return bark.generate(
        SENTENCES, voice=[voices[i % len(voices)] for i in range(10)], seed=[100 + i for i in range(10)]
    )


def test_it_is_the_default_and_whole(bark: bark_jax.Bark) -> None:
    folder = library.BUNDLED_FOLDER
    assert library.locate("bark-nano") == (folder, folder)
    assert bark.config.fingerprint.startswith("bark-nano") and len(bark.voices()) >= 8
    names = bark.voices()
    assert {name[0] for name in names} == {"a", "b"} and {name[1] for name in names} == {"f", "m"}  # US, UK; both sexes
    packed = sum(len(zlib.compress(path.read_bytes())) for path in folder.rglob("*") if path.is_file())
    assert packed < 38e6  # as a wheel packs it; the wheel must be under 40 MB, and the code is one of them
    assert (folder / "README.md").read_text("utf-8").startswith("# bark-nano")


def test_a_missing_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "BUNDLED_FOLDER", tmp_path)
    with pytest.raises(bark_jax.HubError, match="which is not in this installation"):
        bark_jax.load()


def test_speech_ends_and_lasts_as_long_as_it_should(said: list[bark_jax.Speech]) -> None:
    assert sum(speech.ended for speech in said) >= 9
    per_character = [speech.duration / len(speech.text) for speech in said]
    assert 0.045 < np.median(per_character) < 0.09
    assert all(np.abs(speech.audio).max() > 0.05 for speech in said)


def test_words_are_recognised(said: list[bark_jax.Speech]) -> None:
    """pocketsphinx, a recogniser of the nineties, hears one word in five wrong of natural speech.

    Of bark-nano's it heard 29, 31 and 37 of these 77 wrong with three sets of seeds; what a seed gives differs between
    processors, hence the band. Against another of the ten sentences
    80 to 87 are wrong.
    """
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=16_000, loglevel="FATAL")
    wrong = total = 0
    for speech in said:
        audio = soxr.resample(speech.audio, speech.sample_rate, 16_000)
        decoder.start_utt()
        decoder.process_raw((32767 * np.clip(audio, -1, 1)).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        wanted = re.findall(r"[a-z']+", speech.text.lower())
        wrong += int(listen.errors(wanted, heard.hypstr.split() if heard else []).sum())
        total += len(wanted)
    assert wrong / total < 0.65, f"{wrong} of {total} words are wrong"


def test_a_voice_is_heard_in_the_codes(bark: bark_jax.Bark) -> None:
    """The same text and seed in two voices are two utterances; unknown characters and other models' voices are said."""
    one, two = bark.generate(["Hello there."] * 2, voice=["bf_isabella", "bm_fable"], seed=[5, 5])
    assert not np.array_equal(one.fine[:, :20], two.fine[:, :20])
    with pytest.warns(bark_jax.BarkWarning, match="does not know '日' of 'Hello 日'"):
        bark.text_to_semantic("Hello 日", seed=1)
    foreign = bark_jax.Voice(np.arange(100), np.zeros((2, 150), int), np.zeros((8, 150), int))
    with pytest.raises(bark_jax.VoiceError, match="bark-nano"):
        bark.generate("Hello.", voice=foreign)


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "fox.wav"
    command = [
        sys.executable,
        "-m",
        "bark_jax",
        "say",
        "-v",
        "bm_fable",
        "--seed",
        "3",
        "-o",
        str(out),
        "Good evening.",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "of speech, seed 3" in done.stdout and out.stat().st_size > 20_000
