"""Where speech is, where it is cut, and what is wrong with it: on signals whose answer is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bark_jax import audio as audio_files
from bark_jax import clips

RATE = 16_000


def said(seconds: float, *, level: float = 0.2, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A gliding pitch and breath with the rhythm of syllables, four a second, without a gap as long as a pause."""
    t = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    phase = np.cumsum((120 + 60 * rng.random()) * 2 ** (0.3 * np.sin(2 * np.pi * 0.9 * t))) / rate
    voice = sum(np.sin(2 * np.pi * k * phase) / k for k in range(1, 12)) + 0.3 * rng.standard_normal(len(t))
    return (level * voice * (0.05 + np.abs(np.sin(2 * np.pi * 2 * t)))).astype(np.float32)


def pause(seconds: float, *, rate: int = RATE, floor: float = 1e-4) -> np.ndarray:
    return (floor * np.random.default_rng(9).standard_normal(round(seconds * rate))).astype(np.float32)


def utterances(*parts: float, rate: int = RATE) -> np.ndarray:
    """Speech and pauses by turns, beginning with a pause."""
    return np.concatenate([said(s, seed=i, rate=rate) if i % 2 else pause(s, rate=rate) for i, s in enumerate(parts)])


def test_speech_is_found_where_it_is() -> None:
    found = clips.speech(utterances(0.7, 2.0, 0.5, 1.3, 1.1, 3.0, 0.2), RATE)
    wanted = [(0.7, 2.7), (3.2, 4.5), (5.6, 8.6)]
    assert len(found) == 3
    for span, (start, end) in zip(found, wanted, strict=True):
        assert abs(span.start - start) < 0.1 and abs(span.end - end) < 0.1
    for audio in (np.zeros(0, np.float32), np.zeros(RATE, np.float32), pause(3, floor=1e-5)):
        assert clips.speech(audio, RATE) == []


@pytest.mark.parametrize("noise", [1e-3, 1e-2])
def test_speech_is_found_in_noise(noise: float) -> None:
    audio = utterances(0.7, 2.0, 0.6, 2.0, 0.7)
    audio = audio + noise * np.random.default_rng(1).standard_normal(len(audio)).astype(np.float32)
    found = clips.speech(audio, RATE)
    assert [round(span.start, 0) for span in found] == [1.0, 3.0] and len(found) == 2


def test_cuts_are_in_pauses_and_lose_no_speech() -> None:
    audio = utterances(0.3, 3.0, 0.3, 2.5, 0.5, 4.0, 0.25, 3.5, 1.0, 2.0, 0.4)
    loud = clips.levels(audio, RATE) > -30
    for longest in (14.0, 8.0, 5.0):
        spans = clips.cut(audio, RATE, longest)
        assert all(0 < span.duration <= longest for span in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))
        covered = np.zeros(len(loud), bool)
        for span in spans:
            covered[int(span.start / clips.FRAME_S) : int(span.end / clips.FRAME_S) + 1] = True
        assert covered[loud].all()
    assert len(clips.cut(audio, RATE, 14.0)) == 3  # at the pause of 1 s, and 14.05 s in the longest of the others
    assert len(clips.cut(audio, RATE, 8.0)) == 3
    # The longest pause, 0.5 s, is the first to be cut.
    assert abs(clips.cut(audio, RATE, 8.0)[0].end - 6.2) < 0.15


def test_a_breath_without_a_pause_is_cut_where_it_is_faint() -> None:
    spans = clips.cut(said(30.0), RATE, 8.0)
    assert sum(span.duration for span in spans) == pytest.approx(30.0, abs=0.3)
    assert all(2.0 < span.duration <= 8.0 for span in spans[:-1])
    level = clips.levels(said(30.0), RATE)
    for span in spans[:-1]:
        assert level[round(span.end / clips.FRAME_S)] < np.median(level)


def test_levelled_speech_is_equally_loud_and_never_beyond_the_peak() -> None:
    made = [clips.levelled(level * utterances(0.5, 3.0, 0.5), RATE) for level in (0.01, 1.0, 5.0)]
    np.testing.assert_allclose(made[0], made[1], atol=2e-3)
    np.testing.assert_allclose(made[2], made[1], atol=2e-3)
    level = clips.levels(made[0], RATE)
    assert abs(10 * np.log10(np.mean(10 ** (level[level > -40] / 10))) - clips.LOUDNESS_DB) < 2
    spiky = said(2.0, level=0.01)
    spiky[100] = 0.9
    assert np.abs(clips.levelled(spiky, RATE)).max() == pytest.approx(clips.PEAK)
    np.testing.assert_array_equal(clips.levelled(np.zeros(100, np.float32), RATE), np.zeros(100))


def test_what_is_cut_off_is_noticed() -> None:
    audio = said(3.0)
    assert clips.clipped(audio) == 0
    for scale in (1.0, 0.3):  # made fainter afterwards, it is as bad
        assert clips.clipped(scale * np.clip(audio, -0.2, 0.2)) > 0.005
    assert clips.clipped(np.zeros(100, np.float32)) == 0


def test_music_and_noise_are_not_lively() -> None:
    t = np.arange(4 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * hz * t) for hz in (220, 277, 330)).astype(np.float32) / 6
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) / 10
    for steady in (chord, noise):
        assert clips.lively(steady, RATE) < clips.LIVELY_DB
    assert clips.lively(said(4.0), RATE) > clips.LIVELY_DB
    assert clips.lively(np.zeros(0, np.float32), RATE) == 0


def test_music_does_not_have_the_pitch_of_a_voice() -> None:
    t = np.arange(6 * RATE) / RATE
    rng = np.random.default_rng(0)
    since, beat = t % 0.25, (t // 0.25).astype(int)
    kick = np.sin(2 * np.pi * (50 * since + 2 * (1 - np.exp(-30 * since)))) * np.exp(-12 * since) * (beat % 2 == 0)
    hat = 0.2 * np.diff(rng.standard_normal(len(t) + 1)) * np.exp(-60 * since)
    hz = 220 * 2 ** (rng.integers(0, 12, beat[-1] + 1) / 12)
    melody = sum(np.sin(2 * np.pi * k * hz[beat] * t) / k for k in range(1, 6)) * np.exp(-6 * since)
    whispered = rng.standard_normal(len(t)) * (0.05 + np.abs(np.sin(2 * np.pi * 2 * t)))
    assert clips.pitch(kick + hat, RATE)[0] < clips.PITCHED
    assert clips.pitch(whispered, RATE)[0] < clips.PITCHED
    pitched, steady = clips.pitch(melody, RATE)
    assert pitched > 0.9 and steady > clips.STEADY + 0.1
    for rate in (RATE, 24_000):
        pitched, steady = clips.pitch(said(6.0, rate=rate), rate)
        assert pitched > clips.PITCHED + 0.3 and steady < clips.STEADY - 0.3
    for nothing in (np.zeros(0, np.float32), np.zeros(RATE, np.float32)):
        assert clips.pitch(nothing, RATE) == (0, 0)


def test_people_have_the_pitch_of_a_voice() -> None:
    folder = Path(__file__).parents[1] / "../shared/data/librispeech/test"
    files = sorted(folder.glob("*.flac"))[::20]
    if not files:
        pytest.skip(f"no recordings in {folder}")
    for path in files:
        pitched, steady = clips.pitch(audio_files.read(path, 24_000), 24_000)
        assert pitched > clips.PITCHED + 0.05 and steady < clips.STEADY - 0.2, path.name
