"""From parts of a text to one stream of audio: in order, soon, and the same samples whether streamed or whole.

    Plan ─ groups ─▶ semantic (again where it ran away) ─▶ coarse ─▶ fine ─▶ codec ─ trimmed, with pauses ─▶ Chunks

Takes a `Script`: a `splitting.Plan` with a checked request for each of its parts. Gives `Chunk`s of audio as they
become final, and what else a part has become when it is complete. `Bark.generate` of a long text collects what
`Bark.stream` hands out, so the two cannot differ. Knows the stages' drivers (`run`, `Growing`, `Decoding`), and nothing
of texts or files.

A part that is alone in its group is heard while it is made: fine and codec begin as soon as coarse allows it (`live`).
The rest come in groups, as rows of a batch, each group short enough to be ready before the one before has been heard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bark_jax import codec, fine, splitting, tokens
from bark_jax.engine import Engine, Report
from bark_jax.requests import Request, Script
from bark_jax.settings import segment_seed
from bark_jax.voice import Voice, VoiceError

LOOK_AHEAD_S = 0.1
"""What `latency="low"` waits for beyond what it hands out, in place of up to a whole fine window."""

TOGETHER = {"cpu": 1}
"""Parts of a group, by platform, if there is time for one: all others are made alone, and heard while they are made. On
CPUs a batch of four is hardly faster than four in turn, and another program to compile."""
TOGETHER_ELSEWHERE = 16

TIME = {"cpu": 0.5}
"""Predicted seconds that a group may have, by platform, as a share of what was spoken before it: it is heard when all
of it is done. A half never stalls at twice real time."""
TIME_ELSEWHERE = 4.0

LEAST_VOICE_S = 1.0
"""A part that lasts less tells too little of a voice for others to take it over."""

SILENCE_DB = -45.0
"""Root mean square of 10 ms, against full scale, below which audio counts as silence."""
KEPT_BLOCKS = 5
"""Blocks of 10 ms that stay when silence is trimmed: a sound's decay."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A piece of a stream; joined in order, the pieces are the audio of the whole."""

    audio: np.ndarray
    """(n,) float32, n ≥ 1, mono, nominally -1 to 1 and never clipped."""
    sample_rate: int
    start: int
    """Samples before it."""
    segment: int
    """Number of the part of the text it belongs to, from 0; a pause belongs to the part behind it."""
    text: str
    """That part."""

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.audio) / self.sample_rate


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a part has become."""

    number: int
    request: Request
    """With the seed and the voice that it was spoken with."""
    semantic: np.ndarray
    ended: bool
    attempts: int
    coarse: np.ndarray
    fine: np.ndarray
    start: int = 0
    """First sample in the stream, after the pause."""
    end: int = 0


@dataclass(frozen=True, eq=False)
class Progress:
    """A group is complete: what is needed to go on from here in another process."""

    parts: int
    """Parts that are done."""
    samples: int
    voices: Mapping[str | None, Voice]
    """By speaker: the voices that came out of what was spoken, and speak from now on."""
    settled: frozenset[str | None]
    """Speakers whose voice stays."""


Event = Chunk | Spoken | Progress

Sound = Generator[np.ndarray, None, Spoken]
"""Yields a part's audio (n,) as it becomes final, and returns everything else."""


# --- one part, heard while it is made ---------------------------------------------------------------------------------


def live(
    engine: Engine,
    request: Request,
    report: Report,
    *,
    said: tuple[np.ndarray, bool] | None = None,
    attempts: int = 1,
    low: bool = False,
) -> Sound:
    """Speak a request.

    Args:
      said: semantic ids and whether they ended, if they are there already. None: they are drawn as coarse needs them.
      attempts: that it took to say them.
      low: see `LOOK_AHEAD_S`.
    """
    if engine.offload:  # one network on the device at a time
        known, ended = said or _first(engine.to_semantic([request], report))
        two = engine.to_coarse([request], [known], report)[0]
        eight = engine.to_fine([request], [two], report)[0]
        yield engine.decode([eight])[0]
        return Spoken(0, request, known, ended, attempts, two, eight)
    config, voice = engine.config, request.voice
    stage, given = config.coarse, config.coarse.n_codebooks
    known, ended = said or (np.zeros(0, np.int32), False)
    whole = said is not None
    source = iter(()) if whole else engine.run("semantic", [request], engine.semantic_prompts([request]))
    prompts = engine.coarse_prompts([request], [known])
    windows = engine.run("coarse", [request], prompts)
    longest = tokens.n_frames(stage, config.semantic.max_tokens if said is None else len(known))
    ahead = round(LOOK_AHEAD_S * config.codec.frame_rate) if low else None
    growing = fine.Growing(config.fine, given, None if voice is None else voice.fine, longest, ahead)
    fill = engine.filler(request)
    decoding = codec.Decoding(engine.network("codec").module, rows=engine.row_count(1))
    limit = tokens.semantic_limit(config.semantic, request.sampling.max_duration_s)
    most = tokens.n_coarse_tokens(stage, limit if said is None else len(known))
    step, heard = 0, 0
    while True:
        while not whole and len(known) < prompts[0].shown_until(stage, step):
            for news in next(source):
                known, whole, ended = np.concatenate([known, news.tokens]), news.done, news.ended
            report("semantic", limit if whole else len(known), limit)
        prompts[0] = prompts[0].grown(stage, known, whole=whole)
        n_tokens = prompts[0].n_tokens
        if step >= n_tokens:
            break
        drawn = next(windows)
        ids = np.asarray(drawn.ids)[drawn.owners.index(0)][: n_tokens - step]
        step += stage.window
        done = step >= n_tokens
        report("coarse", most if done else min(step, most), most)
        growing.add(tokens.unflatten_codes(stage, ids))
        for number, window in growing.due(whole=done):
            fill(growing.state, window, number)
        audio = decoding.push(growing.state.result[:, heard : growing.final], last=done)
        heard = growing.final
        if len(audio):
            yield audio
        if done:
            break
    eight = growing.state.result.copy()
    return Spoken(0, request, known, ended, attempts, eight[:given], eight)


def _first(both: tuple[list[np.ndarray], list[bool]]) -> tuple[np.ndarray, bool]:
    return both[0][0], both[1][0]


# --- parts that ran away ----------------------------------------------------------------------------------------------


def _runs_away(request: Request, seconds: float, ended: bool) -> float:
    """How far a part's length is from what its text lets expect; 0: near enough."""
    how = request.sampling
    expected = max(0.1, min(splitting.predicted_duration(request.text), how.max_duration_s or np.inf))
    if seconds == 0:
        return np.inf
    asked_for = not ended and (how.max_duration_s is not None or not how.allow_early_stop)
    if asked_for or (ended and 0.4 * expected - 0.5 <= seconds <= 2.5 * expected + 1.5):
        return 0.0
    return max(seconds / expected, expected / seconds) + (0.0 if ended else 100.0)


def say(
    engine: Engine, requests: Sequence[Request], numbers: Sequence[int], retries: int, report: Report
) -> list[tuple[Request, np.ndarray, bool, int]]:
    """The semantic tokens of some parts, again with another seed where they ran away; the best attempt of each.

    Args:
      requests: with the seed of the whole text.
      numbers: of the parts.

    Returns:
      For each: the request with the seed that was used, ids (n,), whether they ended, attempts.
    """
    rate = engine.config.semantic.rate_hz
    best: dict[int, tuple[float, Request, np.ndarray, bool]] = {}
    attempts = dict.fromkeys(range(len(requests)), 0)
    todo = list(range(len(requests)))
    for attempt in range(retries + 1):
        tries = [
            dataclasses.replace(requests[i], seed=segment_seed(requests[i].seed, numbers[i], attempt)) for i in todo
        ]
        said, ended = engine.to_semantic(tries, report, rows=engine.row_count(len(requests)))
        for i, request, ids, end in zip(todo, tries, said, ended, strict=True):
            attempts[i] += 1
            off = _runs_away(request, len(ids) / rate, end)
            if i not in best or off < best[i][0]:
                best[i] = (off, request, ids, end)
        # At temperature 0 another seed says the same again.
        todo = [i for i in todo if best[i][0] > 0 and requests[i].sampling.text_temperature > 0]
        if not todo:
            break
    return [(*best[i][1:], attempts[i]) for i in range(len(requests))]


# --- silence ----------------------------------------------------------------------------------------------------------


class Trim:
    """Holds silence back until sound follows, and drops it at the end; however the audio is cut into pieces."""

    def __init__(self, sample_rate: int):
        self._block = max(1, sample_rate // 100)
        self._held = np.zeros(0, np.float32)

    def push(self, audio: np.ndarray) -> np.ndarray:
        """The next samples (n,) → those that can be handed out."""
        self._held = np.concatenate([self._held, audio])
        blocks = self._held[: len(self._held) // self._block * self._block].reshape(-1, self._block)
        loud = np.flatnonzero(np.square(blocks, dtype=np.float64).mean(1) >= 10 ** (SILENCE_DB / 10))
        n = (int(loud[-1]) + 1) * self._block if len(loud) else 0
        out, self._held = self._held[:n], self._held[n:]
        return out

    def finish(self) -> np.ndarray:
        """What stays of the silence at the end."""
        return self._held[: KEPT_BLOCKS * self._block]


# --- the whole text ---------------------------------------------------------------------------------------------------


def perform(
    engine: Engine, script: Script, report: Report, *, low: bool = False, begin: Progress | None = None
) -> Generator[Event, None, None]:
    """Speak a script; tells of chunks, of each part after its last chunk, and of each group after its last part.

    Args:
      low: see `live`; of parts that are alone in their group.
      begin: where an earlier run stopped, between two groups.
    """
    plan, requests, split = script.plan, script.requests, script.split
    rate = engine.config.codec.sample_rate
    voices: dict[str | None, Voice | None] = {}
    for part, request in zip(plan.parts, requests, strict=True):
        voices.setdefault(part.speaker, request.voice)
    policy = {who: split.voice or ("first" if voice is None else "fixed") for who, voice in voices.items()}
    settled = {who for who, how in policy.items() if how == "fixed"}
    learnt: dict[str | None, Voice] = {}
    at, samples = 0, 0
    if begin is not None:
        at, samples, learnt, settled = begin.parts, begin.samples, dict(begin.voices), settled | begin.settled
        report("parts", at, len(plan.parts))
    durations = np.cumsum([0.0, *(splitting.predicted_duration(part.text) for part in plan.parts)])

    def chunk(audio: np.ndarray, number: int) -> Iterator[Chunk]:
        nonlocal samples
        if len(audio):
            yield Chunk(audio, rate, samples, number, plan.parts[number].text.strip())
            samples += len(audio)

    def silence(seconds: float, number: int) -> Iterator[Chunk]:
        left = round(seconds * rate)
        for start in range(0, left, rate):  # a second at a time: who stops listening need not wait for a minute
            yield from chunk(np.zeros(min(rate, left - start), np.float32), number)

    def heard(sound: Sound, number: int, trims: bool) -> Generator[Chunk, None, Spoken]:
        start, trim = samples, Trim(rate) if trims else None
        while True:
            try:
                piece = next(sound)
            except StopIteration as stop:
                spoken: Spoken = stop.value
                break
            yield from chunk(piece if trim is None else trim.push(piece), number)
        if trim is not None:
            yield from chunk(trim.finish(), number)
        return dataclasses.replace(spoken, number=number, start=start, end=samples)

    if plan.whole:  # nothing is trimmed, and nothing spoken again
        yield (yield from heard(live(engine, requests[0], report, low=low), 0, trims=False))
        return
    while at < len(plan.parts):
        size = _group(engine, script, at, durations, settled)
        numbers = range(at, at + size)
        speakers = [plan.parts[i].speaker for i in numbers]
        now = [
            dataclasses.replace(requests[i], voice=learnt.get(who, voices[who]))
            for i, who in zip(numbers, speakers, strict=True)
        ]
        said = say(engine, now, numbers, split.retries, report)
        for number, sound in zip(numbers, _sounds(engine, said, report, low), strict=True):
            yield from silence(plan.parts[number].pause_s, number)
            spoken = yield from heard(sound, number, split.trim)
            yield spoken
            who = plan.parts[number].speaker
            if who not in settled:
                voice = _as_voice(engine, spoken)
                if voice is not None:
                    learnt[who] = voice
                    if policy[who] == "first":
                        settled.add(who)
        at += size
        report("parts", at, len(plan.parts))
        if at == len(plan.parts):
            yield from silence(plan.pause_s, at - 1)
        yield Progress(at, samples, dict(learnt), frozenset(settled))


def _group(engine: Engine, script: Script, at: int, durations: np.ndarray, settled: set[str | None]) -> int:
    """How many parts, from `at` on, are made at once: one, or as many as a group has.

    Args:
      durations: (parts + 1,) predicted seconds before each part.
    """
    platform = engine.device.platform
    size = engine.rows or TOGETHER.get(platform, TOGETHER_ELSEWHERE)
    parts = script.plan.parts[at : at + size]
    share = TIME.get(platform, TIME_ELSEWHERE)
    in_time = durations[min(at + size, len(durations) - 1)] - durations[at] <= share * durations[at]
    return size if len(parts) == size and in_time and all(part.speaker in settled for part in parts) else 1


def _sounds(
    engine: Engine, said: Sequence[tuple[Request, np.ndarray, bool, int]], report: Report, low: bool
) -> Iterator[Sound]:
    """What makes the audio of each part of a group, in order."""
    if len(said) == 1:
        request, ids, ended, attempts = said[0]
        yield live(engine, request, report, said=(ids, ended), attempts=attempts, low=low)
        return
    requests = [request for request, *_ in said]
    two = engine.to_coarse(requests, [ids for _, ids, *_ in said], report)
    eight = engine.to_fine(requests, two, report)
    for one, c, f, wave in zip(said, two, eight, engine.decode(eight), strict=True):
        yield _ready(Spoken(0, *one, c, f), wave)


def _ready(spoken: Spoken, wave: np.ndarray) -> Sound:
    """A part whose audio is there already."""
    yield wave
    return spoken


def _as_voice(engine: Engine, spoken: Spoken) -> Voice | None:
    """A part as a voice; None if it is too short to be one."""
    config = engine.config
    if len(spoken.semantic) < LEAST_VOICE_S * config.semantic.rate_hz:
        return None
    try:
        voice = Voice(spoken.semantic, spoken.coarse, spoken.fine, model=config.fingerprint)
        voice.check(config)
    except VoiceError:
        return None
    return voice
