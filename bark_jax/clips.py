"""Recordings → clips of speech: where somebody speaks, where to cut, how loud, and what is wrong with it.

Takes and gives mono float32 (samples,) at a rate in Hz. Knows levels and pitch alone: no words, no speakers, no model.
Levels are those of frames of 20 ms, in dB relative to full scale (a sine of full scale has -3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FRAME_S = 0.02
SILENCE_DB = -65.0
"""A recording that is nowhere louder holds no speech: 16 bits end at -90, and rooms are at -60 and above."""
LIVELY_DB = 12.0
"""What speech changes at least between its faint and its loud frames; held chords, hum and noise change less."""
VOICE_HZ = (65.0, 500.0)
"""Pitches of voices: creaking men to children."""
PITCHED, STEADY = 0.2, 0.6
"""Speech has a pitch in more than `PITCHED` of its loud frames (32 to 94 % in 132 clips of LibriSpeech and LJSpeech;
drums 14 %), and from a frame to the next it stays in less than `STEADY` of them (0 to 36 %; notes 91 %)."""
MAX_CLIPPED = 1e-3
"""Share of a clip's samples that may be cut off."""
PAUSE_S = 0.15
"""Shorter gaps belong to words: the closure of a stop lasts 0.05 to 0.13 s."""
LONG_PAUSE_S = 0.8
"""Where speech always ends: people pause so long between sentences and not within them."""
EDGE_S = 0.1
"""What is left before and after speech, so that no word loses its ends."""
LOUDNESS_DB, PEAK = -23.0, 0.95
"""Level of the loud frames' mean power after `levelled`, and the highest peak that it makes."""


@dataclass(frozen=True)
class Span:
    """A stretch of a recording, in seconds."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start

    def within(self, end: float) -> Span:
        """What of it is in a recording of that length."""
        return Span(min(self.start, end), min(self.end, end))

    def of(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Its samples, a view."""
        return audio[round(self.start * rate) : round(self.end * rate)]


def levels(audio: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) → (frames,) dB; of a last frame that is not whole, what there is."""
    size = round(FRAME_S * rate)
    n = -(-len(audio) // size)
    power = np.zeros(n * size, np.float32)
    power[: len(audio)] = np.square(audio)
    return 10 * np.log10(power.reshape(n, size).mean(axis=1) + 1e-10)


def speech(audio: np.ndarray, rate: int) -> list[Span]:
    """Where somebody speaks, gaps of less than `PAUSE_S` included; nothing of what is all silence.

    A frame counts if it is well above the faint ones (8 dB, where there are such) and within 40 dB of the loud ones.
    """
    level = levels(audio, rate)
    if len(level) == 0 or level.max() < SILENCE_DB:
        return []
    faint, loud = np.percentile(level, (10, 95))
    threshold = min(max(faint + 8, loud - 40, SILENCE_DB), loud - 15)
    on = np.flatnonzero(np.diff(np.concatenate([[False], level > threshold, [False]])))
    starts, ends = on[::2], on[1::2]
    long_enough = ends - starts >= 2  # a click is not speech
    starts, ends = starts[long_enough], ends[long_enough]
    apart = starts[1:] - ends[:-1] > PAUSE_S / FRAME_S
    starts = np.concatenate([starts[:1], starts[1:][apart]])
    ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    most = len(audio) / rate
    return [Span(float(a * FRAME_S), min(float(b * FRAME_S), most)) for a, b in zip(starts, ends, strict=True)]


def cut(audio: np.ndarray, rate: int, longest_s: float) -> list[Span]:
    """A recording → stretches of speech of at most `longest_s`, in order, without overlaps.

    It is cut in every pause of `LONG_PAUSE_S`; what is still too long is cut in its longest pauses, those near the
    middle first among equals, and where there is none, where it is faintest. Each stretch keeps up to `EDGE_S` of what
    is around it.
    """
    spoken = speech(audio, rate)
    groups: list[list[Span]] = []
    for one in spoken:
        if groups and one.start - groups[-1][-1].end < LONG_PAUSE_S:
            groups[-1].append(one)
        else:
            groups.append([one])
    level = levels(audio, rate)
    inner = max(FRAME_S, longest_s - 2 * EDGE_S)
    found = [span for group in groups for span in _shorter(group, level, inner)]
    out = []
    for i, span in enumerate(found):
        before = found[i - 1].end if i else 0.0
        after = found[i + 1].start if i + 1 < len(found) else len(audio) / rate
        start = max(span.start - EDGE_S, (span.start + before) / 2 if i else 0.0)
        end = min(span.end + EDGE_S, (span.end + after) / 2 if i + 1 < len(found) else after)
        out.append(Span(start, end))
    return out


def _shorter(group: list[Span], level: np.ndarray, longest_s: float) -> Iterator[Span]:
    whole = Span(group[0].start, group[-1].end)
    if whole.duration <= longest_s:
        yield whole
        return
    if len(group) > 1:
        middle = (whole.start + whole.end) / 2
        gaps = [(b.start - a.end, -abs((a.end + b.start) / 2 - middle)) for a, b in pairwise(group)]
        at = gaps.index(max(gaps)) + 1
        yield from _shorter(group[:at], level, longest_s)
        yield from _shorter(group[at:], level, longest_s)
        return
    # One breath: at the faintest frame of the second half of what fits.
    first, last = (round((whole.start + share * longest_s) / FRAME_S) for share in (0.5, 1.0))
    frame = first + int(np.argmin(level[first : max(first + 1, last)]))
    yield Span(whole.start, frame * FRAME_S)
    yield from _shorter([Span(frame * FRAME_S, whole.end)], level, longest_s)


def levelled(audio: np.ndarray, rate: int) -> np.ndarray:
    """At `LOUDNESS_DB`, or as near to it as `PEAK` allows; a copy. Frames within 20 dB of the loudest count."""
    level = levels(audio, rate)
    if len(level) == 0 or level.max() < SILENCE_DB:
        return audio.copy()
    loud = level[level > np.percentile(level, 95) - 20]
    power = 10 * np.log10(np.mean(10 ** (loud / 10)))
    gain = min(10 ** ((LOUDNESS_DB - power) / 20), PEAK / float(np.abs(audio).max()))
    return np.asarray(audio * np.float32(gain), np.float32)


def clipped(audio: np.ndarray) -> float:
    """Share of the samples that are cut off: three or more in a row, and twenty in all, at the highest peak."""
    peak = float(np.abs(audio).max(initial=0))
    if peak < 1e-3:
        return 0.0
    share = 0
    for side in (audio, -audio):
        on = np.flatnonzero(np.diff(np.concatenate([[False], side >= 0.999 * peak, [False]])))
        runs = on[1::2] - on[::2]
        share += int(runs[runs >= 3].sum())
    return share / len(audio) if share >= 20 else 0.0


def lively(audio: np.ndarray, rate: int) -> float:
    """How much the level changes, in dB: between the faintest tenth of the frames and the loudest twentieth."""
    level = levels(audio, rate)
    return float(np.ptp(np.percentile(level, (10, 95)))) if len(level) else 0.0


def pitch(audio: np.ndarray, rate: int) -> tuple[float, float]:
    """Share of the loud frames that have the pitch of a voice, and share of the steps between such in which it stays.

    Frames of 50 ms every 25, below 4 kHz; a pitch is a peak of 0.6 or more of the autocorrelation, and stays if it
    moves by less than 6 cents. (0, 0) of what is too short.
    """
    size, hop = round(0.05 * rate), round(0.025 * rate)
    if len(audio) < size:
        return 0.0, 0.0
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    power = np.mean(np.square(frames), axis=1)
    frames = frames[power > 1e-3 * np.percentile(power, 95)]
    if not len(frames):
        return 0.0, 0.0
    n = 1 << (2 * size - 1).bit_length()
    window = np.hanning(size)
    spectrum = np.square(np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * window, n)))
    spectrum[:, np.fft.rfftfreq(n, 1 / rate) > 4000] = 0
    shape = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, n))))[:size]
    alike = np.fft.irfft(spectrum)[:, :size]
    alike /= (alike[:, :1] + 1e-12) * (shape / shape[0] + 1e-3)
    # Looked for below the lowest voice too, so that what is lower is not taken for its octave.
    low, high = int(rate / VOICE_HZ[1]), min(int(rate / 50), size - 1)
    lag = low + np.argmax(alike[:, low:high], axis=1)
    before, peak, after = (np.take_along_axis(alike, lag[:, None] + i, axis=1)[:, 0] for i in (-1, 0, 1))
    bend = before - 2 * peak + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1), 0)
    hz = rate / (lag + np.clip(shift, -0.5, 0.5))
    voiced = (peak > 0.6) & (hz >= VOICE_HZ[0])
    steps = np.abs(np.diff(np.log2(hz)))[voiced[1:] & voiced[:-1]]
    return float(voiced.mean()), float(np.mean(steps < 6 / 1200)) if len(steps) else 0.0


def fault(audio: np.ndarray, rate: int) -> str | None:
    """Why a clip is no good speech, if so: it is silent, cut off, noise or music."""
    if not speech(audio, rate):
        return "it is silent"
    share = clipped(audio)
    if share > MAX_CLIPPED:
        return f"it is clipped: {share:.1%} of its samples are cut off, {MAX_CLIPPED:.1%} may be"
    if lively(audio, rate) < LIVELY_DB:
        return f"its level changes by less than {LIVELY_DB:g} dB: it is no speech"
    pitched, steady = pitch(audio, rate)
    if pitched < PITCHED:
        return (
            f"{pitched:.0%} of it has the pitch of a voice: speech has {PITCHED:.0%} or more, drums and whispers less"
        )
    if steady > STEADY:
        return f"its pitch stays in {steady:.0%} of its steps: in speech in {STEADY:.0%} or less, it is music"
    return None
