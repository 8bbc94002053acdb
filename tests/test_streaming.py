"""Streamed = whole: the codec, windows and prompts that grow, parts of long texts, pauses, scripts, readings."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import time
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bark_jax
import models
from bark_jax import (
    BarkWarning,
    Sampling,
    Split,
    SplitError,
    TextError,
    Voice,
    VoiceError,
    codec,
    fine,
    reading,
    streaming,
    tokens,
)
from bark_jax import audio as audio_files
from bark_jax.streaming import Spoken, Trim

LONG = "the end. what a day! one two three four five six seven, and so on, and so on; it is what it is. " * 3
LEAST = Sampling(max_duration_s=0.5)


@pytest.fixture(scope="module")
def bark():  # type: ignore[no-untyped-def]
    return models.model()


@pytest.fixture(scope="module")
def wide():  # type: ignore[no-untyped-def]
    return models.model(rows=3)


@pytest.fixture(autouse=True)
def _quiet():  # type: ignore[no-untyped-def]
    """Random models seldom end by themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BarkWarning)
        yield


def a_voice(bark, n=40, seed=0):  # type: ignore[no-untyped-def]
    return Voice.from_dict(models.voice(bark.config, n, seed), model=bark.config.fingerprint)


def joined(chunks):  # type: ignore[no-untyped-def]
    chunks = list(chunks)
    starts = np.cumsum([0, *(len(chunk.audio) for chunk in chunks)])
    assert [chunk.start for chunk in chunks] == list(starts[:-1])
    assert all(len(chunk.audio) and chunk.audio.dtype == np.float32 for chunk in chunks)
    return np.concatenate([chunk.audio for chunk in chunks])


def near(streamed, whole):  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(streamed, whole, atol=1e-5)
    lsb = np.abs(np.rint(streamed * 32768) - np.rint(whole * 32768))
    assert lsb.max(initial=0) <= 1


class TestCodec:
    @given(st.lists(st.integers(0, 40), max_size=8), st.integers(0, 2**32 - 1))
    def test_any_partition(self, sizes, seed):
        network = models.networks(models.config())["codec"].module
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 64, (8, sum(sizes)))
        stream = codec.Decoding(network)
        ends = np.cumsum([0, *sizes])
        heard = [stream.push(codes[:, a:b], last=False) for a, b in itertools.pairwise(ends)]
        heard.append(stream.push(codes[:, :0], last=True))
        near(np.concatenate(heard), codec.decode(network, codes))
        # After the first 7 frames nothing waits.
        if sum(sizes) >= 7:
            assert sum(map(len, heard[:-1])) == 320 * sum(sizes)

    def test_nothing_before_seven_frames_and_a_state_that_stays(self):
        network = models.networks(models.config())["codec"].module
        stream = codec.Decoding(network, rows=2)
        codes = np.random.default_rng(0).integers(0, 64, (8, 200))
        assert [len(stream.push(codes[:, i : i + 1])) for i in range(7)] == [0] * 6 + [7 * 320]
        sizes = [leaf.shape for leaf in jax.tree.leaves(stream._state)]
        near(stream.push(codes[:, 7:], last=True), codec.decode(network, codes)[7 * 320 :])
        assert [leaf.shape for leaf in jax.tree.leaves(stream._state)] == sizes
        assert stream._waiting.shape == (8, 0)

    def test_errors(self):
        stream = codec.Decoding(models.networks(models.config())["codec"].module)
        with pytest.raises(ValueError, match="codes must be 0 to 63"):
            stream.push(np.full((8, 3), 64))


class TestFine:
    @given(st.integers(1, 400), st.integers(0, 64), st.lists(st.integers(1, 90), min_size=1, max_size=20))
    def test_windows_are_those_of_the_whole_and_final_frames_stay(self, n_frames, n_history, pieces):
        config = models.config().fine
        history = np.zeros((8, n_history), int) if n_history else None
        whole = fine.prompt(config, np.zeros((2, n_frames), int), history)
        for number, window in enumerate(whole.windows):
            whole.codes[window.fill : window.start + config.window, 2:] = number
        growing = fine.Growing(config, 2, history, n_frames)
        seen, frozen = [], np.zeros((8, 0))
        while growing.state.n_frames < n_frames:
            size = min(pieces[len(seen) % len(pieces)], n_frames - growing.state.n_frames)
            growing.add(np.zeros((2, size), int))
            done = growing.state.n_frames == n_frames
            for number, window in growing.due(whole=done):
                seen.append(window)
                growing.state.codes[window.fill : window.start + config.window, 2:] = number
            np.testing.assert_array_equal(growing.state.result[:, : frozen.shape[1]], frozen)
            frozen = growing.state.result[:, : growing.final].copy()
        assert seen == whole.windows
        np.testing.assert_array_equal(frozen, whole.result)

    @given(st.integers(1, 400), st.integers(0, 64), st.integers(1, 300), st.integers(0, 20))
    def test_looking_ahead_fills_every_frame(self, n_frames, n_history, piece, ahead):
        config = models.config().fine
        history = np.zeros((8, n_history), int) if n_history else None
        growing = fine.Growing(config, 2, history, n_frames, ahead)
        while growing.state.n_frames < n_frames:
            growing.add(np.zeros((2, min(piece, n_frames - growing.state.n_frames)), int))
            done = growing.state.n_frames == n_frames
            for _, window in growing.due(whole=done):
                assert 0 <= window.start <= window.fill <= window.start + config.window
                growing.state.codes[window.fill : window.start + config.window, 2:] = 5
            assert growing.final == (n_frames if done else max(0, growing.state.n_frames - ahead, growing.final))
            assert (growing.state.result[2:, : growing.final] == 5).all()


class TestOneCall:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("with_voice", [False, True])
    def test_streamed_equals_whole(self, bark, seed, with_voice):  # type: ignore[no-untyped-def]
        voice = a_voice(bark, 20 + 20 * seed, seed) if with_voice else None
        how = Sampling(max_duration_s=(0.05, 0.3, 1.0, 2.0, 3.0, None)[seed])
        options = {"voice": voice, "seed": seed, "sampling": how}
        whole = bark.generate("what a day!", **options)
        near(joined(bark.stream("what a day!", **options)), whole.audio)
        [spoken] = [e for e in bark._events(one_script(bark, **options), quietly, low=False) if isinstance(e, Spoken)]
        for part in ("semantic", "coarse", "fine"):
            np.testing.assert_array_equal(getattr(spoken, part), getattr(whole, part), err_msg=part)
        assert spoken.ended == whole.ended and spoken.end == len(whole.audio)

    def test_at_a_fixed_row_count_and_offloaded(self, wide, tmp_path):  # type: ignore[no-untyped-def]
        for model in (wide, bark_jax.load(models.save(tmp_path / "model"), device="cpu", offload=True)):
            whole = model.generate("the end.", seed=3, sampling=Sampling(max_duration_s=2.0))
            near(joined(model.stream("the end.", seed=3, sampling=Sampling(max_duration_s=2.0))), whole.audio)

    def test_audio_comes_before_the_speech_is_drawn(self, bark):  # type: ignore[no-untyped-def]
        told = []
        how = Sampling(allow_early_stop=False)
        chunks = bark.stream(
            "abc", voice=a_voice(bark, 60), seed=1, sampling=how, progress=lambda *news: told.append(news)
        )
        next(chunks)
        semantic = [done for stage, done, _ in told if stage == "semantic"]
        assert 0 < semantic[-1] < bark.config.semantic.max_tokens
        n = len(told)
        chunks.close()
        assert len(told) == n
        assert next(chunks, None) is None

    def test_nothing_is_computed_before_it_is_asked_for(self, bark):  # type: ignore[no-untyped-def]
        told = []
        chunks = bark.stream("abc", seed=1, sampling=LEAST, progress=lambda *news: told.append(news))
        assert told == []
        next(chunks)
        assert told

    def test_low_latency_is_sooner_and_as_long(self, bark):  # type: ignore[no-untyped-def]
        how = Sampling(allow_early_stop=False, max_duration_s=4.0)
        options = {"voice": a_voice(bark, 60), "seed": 1, "sampling": how}
        windows = {}
        for latency in ("exact", "low"):
            told = []
            chunks = bark.stream("abc", latency=latency, progress=lambda *news, to=told: to.append(news), **options)
            first = next(chunks)
            windows[latency] = sum(stage == "coarse" for stage, *_ in told)
            rest = list(chunks)
            assert len(first.audio) + sum(len(c.audio) for c in rest) == len(bark.generate("abc", **options).audio)
        assert windows["low"] < windows["exact"] / 3

    def test_asynchronously(self, bark):  # type: ignore[no-untyped-def]
        async def collect(most=None):  # type: ignore[no-untyped-def]
            chunks, stream = [], bark.astream("abc", seed=1, sampling=Sampling(max_duration_s=3.0))
            async for chunk in stream:
                chunks.append(chunk)
                if len(chunks) == most:
                    await stream.aclose()
            return chunks

        whole = bark.generate("abc", seed=1, sampling=Sampling(max_duration_s=3.0))
        near(joined(asyncio.run(collect())), whole.audio)
        assert len(asyncio.run(collect(1))) == 1

    def test_a_cancelled_task_stops_within_a_chunk(self, bark):  # type: ignore[no-untyped-def]
        told = []

        async def cancel():  # type: ignore[no-untyped-def]
            never = Sampling(allow_early_stop=False)
            stream = bark.astream("abc", seed=1, sampling=never, progress=lambda *news: told.append(news))
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            n = len(told)
            await asyncio.sleep(0.2)
            assert len(told) == n

        asyncio.run(cancel())

    def test_an_empty_speech_has_no_chunk(self, bark, recwarn):  # type: ignore[no-untyped-def]
        said = [bark.generate("abc", seed=seed) for seed in range(40)]
        seeds = [speech.seed for speech in said if len(speech.semantic) == 0]
        if not seeds:
            pytest.skip("no seed of these gives an empty speech")
        with pytest.warns(BarkWarning, match="is empty"):
            assert list(bark.stream("abc", seed=seeds[0])) == []


def quietly(*_: object) -> None:
    pass


def one_script(bark, text="what a day!", split=True, **options):  # type: ignore[no-untyped-def]
    arguments = {"voice": None, "seed": None, "sampling": Sampling(), "adapter": None} | options
    given = [arguments[name] for name in ("voice", "seed", "sampling", "adapter")]
    [script] = bark._intake.scripts(text, *given, split)
    return script


class TestLongTexts:
    @pytest.mark.parametrize("policy", ["fixed", "first", "previous"])
    def test_streamed_equals_whole_to_the_bit(self, bark, policy):  # type: ignore[no-untyped-def]
        options = {
            "voice": a_voice(bark),
            "seed": 5,
            "sampling": Sampling(max_duration_s=1.2),
            "split": Split(voice=policy),
        }
        whole = bark.generate(LONG, **options)
        assert len(whole.segments) >= 4
        np.testing.assert_array_equal(joined(bark.stream(LONG, **options)), whole.audio)
        again = bark.generate(LONG, **options)
        np.testing.assert_array_equal(again.audio, whole.audio)

    def test_no_word_is_lost(self, bark):  # type: ignore[no-untyped-def]
        whole = bark.generate(LONG, seed=5, sampling=LEAST)
        assert " ".join(segment.text for segment in whole.segments).split() == LONG.split()
        assert whole.text == LONG and whole.seed == whole.segments[0].seed

    def test_a_part_is_what_the_call_alone_gives(self, wide):  # type: ignore[no-untyped-def]
        voice = a_voice(wide)
        whole = wide.generate(LONG, voice=voice, seed=5, sampling=LEAST, split=Split(trim=False, pause_s=0))
        at = 0
        for segment in whole.segments:
            alone = wide.generate(segment.text, voice=voice, seed=segment.seed, sampling=LEAST, split=False)
            n = len(alone.semantic)
            np.testing.assert_array_equal(whole.semantic[at : at + n], alone.semantic)
            at += n
            start, end = (round(t * 24_000) for t in (segment.start, segment.end))
            near(whole.audio[start:end], alone.audio)
        assert at == len(whole.semantic)

    @pytest.mark.parametrize("policy", ["first", "previous"])
    def test_voices_are_carried_on(self, wide, policy):  # type: ignore[no-untyped-def]
        how = Sampling(max_duration_s=1.5, allow_early_stop=False)
        split = Split(voice=policy, trim=False, pause_s=0)
        whole = wide.generate(LONG, seed=5, sampling=how, split=split)
        voice, at = None, 0
        for i, segment in enumerate(whole.segments):
            alone = wide.generate(segment.text, voice=voice, seed=segment.seed, sampling=how, split=False)
            np.testing.assert_array_equal(whole.fine[:, at : at + alone.fine.shape[1]], alone.fine)
            at += alone.fine.shape[1]
            if policy == "previous" or i == 0:
                voice = alone.voice
        np.testing.assert_array_equal(whole.voice.fine, alone.fine)

    def test_without_a_voice_the_first_part_is_the_voice(self, bark):  # type: ignore[no-untyped-def]
        how = Sampling(max_duration_s=1.5, allow_early_stop=False)
        default = bark.generate(LONG, seed=5, sampling=how)
        named = bark.generate(LONG, seed=5, sampling=how, split=Split(voice="first"))
        np.testing.assert_array_equal(default.audio, named.audio)

    def test_a_first_part_too_short_to_be_a_voice(self, bark):  # type: ignore[no-untyped-def]
        speech = bark.generate(LONG, seed=5, sampling=Sampling(max_duration_s=0.02, allow_early_stop=False))
        assert len(speech.segments) >= 4
        with pytest.raises(VoiceError, match="at least 2"):
            speech.voice.check(bark.config)

    def test_parts_that_run_away_are_spoken_again(self, bark):  # type: ignore[no-untyped-def]
        told = []
        whole = bark.generate(
            LONG, voice=a_voice(bark), seed=5, split=Split(retries=2), progress=lambda *news: told.append(news)
        )
        attempts = [segment.attempts for segment in whole.segments]
        assert set(attempts) <= {1, 2, 3} and max(attempts) > 1
        once = bark.generate(LONG, voice=a_voice(bark), seed=5, split=Split(retries=0))
        away = [
            streaming._runs_away(one_script(bark, part.text).requests[0], part.end - part.start, part.ended)
            for speech in (whole, once)
            for part in speech.segments
        ]
        assert sum(away[: len(attempts)]) < sum(away[len(attempts) :])
        # A group's attempts are over before its first sample: no semantic token is drawn after a coarse one.
        stages = [stage for stage, *_ in told]
        for group in " ".join(stages).split("parts")[:-1]:
            assert "semantic" in group and "coarse semantic" not in group

    def test_the_best_attempt_is_kept(self, bark, monkeypatch):  # type: ignore[no-untyped-def]
        off = iter([3.0, 1.0, 2.0])
        monkeypatch.setattr(streaming, "_runs_away", lambda *_: next(off, 0.0))
        whole = bark.generate(LONG, voice=a_voice(bark), seed=5, sampling=LEAST)
        assert whole.segments[0].attempts == 3
        assert whole.segments[0].seed == bark_jax.settings.segment_seed(5, 0, 1)
        assert [segment.attempts for segment in whole.segments[1:]] == [1] * (len(whole.segments) - 1)

    def test_a_length_is_judged_by_the_text(self, bark):  # type: ignore[no-untyped-def]
        request = one_script(bark, "one two three four five six seven.").requests[0]
        away = lambda seconds, ended=True: streaming._runs_away(request, seconds, ended)  # noqa: E731
        assert away(2.0) == 0 and away(0) == np.inf
        assert 0 < away(10) < away(20) < away(2.0, False)
        for how in (Sampling(max_duration_s=0.1), Sampling(allow_early_stop=False)):  # no other seed would last longer
            assert streaming._runs_away(dataclasses.replace(request, sampling=how), 0.1, False) == 0

    def test_a_list_of_long_and_short_texts(self, wide):  # type: ignore[no-untyped-def]
        options = {"voice": a_voice(wide), "sampling": LEAST}
        batch = wide.generate([LONG, "abc", "x [pause] y"], seed=[1, 2, 3], **options)
        for text, seed, speech in zip([LONG, "abc", "x [pause] y"], [1, 2, 3], batch, strict=True):
            np.testing.assert_array_equal(speech.audio, wide.generate(text, seed=seed, **options).audio)
        assert [len(speech.segments) > 1 for speech in batch] == [True, False, True]

    def test_long_pauses_come_second_by_second(self, bark):  # type: ignore[no-untyped-def]
        chunks = list(bark.stream("x [pause 2.5s] z", seed=1, sampling=LEAST))
        assert sum(len(chunk.audio) == 24_000 and not chunk.audio.any() for chunk in chunks) == 2

    def test_pauses_are_silence(self, bark):  # type: ignore[no-untyped-def]
        text = "[pause 0.1s] x [pause 0.5s] z [pause 0.25s]"
        whole = bark.generate(text, seed=1, sampling=LEAST, split=Split(trim=False))
        first, second = whole.segments
        assert (first.start, round(second.start - first.end, 6)) == (0.1, 0.5)
        assert round(whole.duration - second.end, 6) == 0.25
        assert not whole.audio[:2400].any() and whole.audio[2400:4800].any()
        assert len(bark.generate("x [pause] z", seed=1, sampling=LEAST, split=False).segments) == 1

    def test_scripts(self, wide):  # type: ignore[no-untyped-def]
        a, b = a_voice(wide), a_voice(wide, seed=1)
        text = "ann: x y.\nbob: abc.\nann: z."
        whole = wide.generate(text, voice={"ann": a, "bob": b}, seed=1, sampling=LEAST, split=Split(trim=False))
        assert [segment.text for segment in whole.segments] == ["x y.", "abc.", "z."]
        for segment, voice in zip(whole.segments, (a, b, a), strict=True):
            alone = wide.generate(segment.text, voice=voice, seed=segment.seed, sampling=LEAST)
            start, end = (round(t * 24_000) for t in (segment.start, segment.end))
            near(whole.audio[start:end], alone.audio)

    def test_timestamps(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        whole = bark.generate(LONG, seed=5, sampling=LEAST)
        whole.save_timestamps(tmp_path / "a.srt")
        whole.save_timestamps(tmp_path / "a.json")
        blocks = (tmp_path / "a.srt").read_text().strip().split("\n\n")
        assert len(blocks) == len(whole.segments)
        assert blocks[0].split("\n")[0] == "1" and blocks[0].split("\n")[1].startswith("00:00:00,000 --> 00:00:0")
        assert [part["start"] for part in json.loads((tmp_path / "a.json").read_text())] == [
            s.start for s in whole.segments
        ]
        with pytest.raises(ValueError, match=r"its ending must be \.srt or \.json"):
            whole.save_timestamps(tmp_path / "a.txt")

    def test_clock(self):
        assert bark_jax.speech._clock(3_661.2345) == "01:01:01,234" and bark_jax.speech._clock(0.9996) == "00:00:01,000"


class TestTrim:
    @given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.004]), st.integers(1, 900)), max_size=8), st.data())
    def test_pieces_do_not_matter_and_only_the_end_is_cut(self, stretches, data):
        audio = np.concatenate([np.zeros(0, np.float32), *(np.full(n, level, np.float32) for level, n in stretches)])
        ends = [0, *sorted(data.draw(st.lists(st.integers(0, len(audio)), max_size=5))), len(audio)]
        trim = Trim(24_000)
        parts = [trim.push(audio[a:b]) for a, b in itertools.pairwise(ends)]
        out = np.concatenate([*parts, trim.finish()])
        once = Trim(24_000)
        np.testing.assert_array_equal(out, np.concatenate([once.push(audio), once.finish()]))
        np.testing.assert_array_equal(out, audio[: len(out)])
        loud = np.flatnonzero(audio >= 0.1)
        last = loud[-1] + 1 if len(loud) else 0
        assert len(out) >= min(last, len(audio) // 240 * 240)
        assert len(out) <= last + 240 + 5 * 240


class Killed(Exception):
    pass


def killed_after(n: int):  # type: ignore[no-untyped-def]
    """Progress that is told of `n` things and no more."""
    calls = iter(range(n))

    def tell(*_: object) -> None:
        if next(calls, None) is None:
            raise Killed

    return tell


READ = {"sampling": Sampling(max_duration_s=1.2, allow_early_stop=False)}


class TestReading:
    @pytest.mark.parametrize("policy", ["fixed", "previous", "first"])
    def test_interrupted_equals_uninterrupted(self, bark, tmp_path, policy):  # type: ignore[no-untyped-def]
        options = {**READ, "voice": a_voice(bark), "split": Split(voice=policy)}
        segments = reading.read(bark, LONG, tmp_path / "a.wav", seed=3, subtype="float", **options)
        whole = bark.generate(LONG, seed=3, **options)
        np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav", 24_000), whole.audio)
        assert tuple(segments) == whole.segments

        output, kills = tmp_path / "b.wav", 0
        while True:
            try:
                again = reading.read(
                    bark,
                    LONG,
                    output,
                    seed=3,
                    subtype="float",
                    progress=killed_after(25 + 10 * kills),
                    timestamps=tmp_path / "b.srt",
                    **options,
                )
                break
            except Killed:
                kills += 1
                assert not output.exists()
        assert kills >= 3
        assert output.read_bytes() == (tmp_path / "a.wav").read_bytes()
        assert again == segments and (tmp_path / "b.srt").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.srt", "b.wav"]

    def test_a_seed_that_was_drawn_is_kept(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        with pytest.raises(Killed):
            reading.read(bark, LONG, tmp_path / "a.wav", progress=killed_after(40), **READ)
        seed = json.loads((tmp_path / "a.wav.part" / "state.json").read_text())["seed"]
        assert reading.read(bark, LONG, tmp_path / "a.wav", **READ)[0].seed == seed

    def test_other_settings_are_refused(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        with pytest.raises(Killed):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=killed_after(40), **READ)
        with pytest.raises(reading.ReadingError, match=r"with other settings.*\n.*seed: it was 1, and is 2 now"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=2, **READ)
        with pytest.raises(reading.ReadingError, match="text: it was"):
            reading.read(bark, LONG + "x.", tmp_path / "a.wav", seed=1, **READ)
        state = tmp_path / "a.wav.part" / "state.json"
        state.write_text("{")
        with pytest.raises(reading.ReadingError, match="is damaged"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, **READ)
        state.unlink()
        with pytest.raises(reading.ReadingError, match=r"has no state\.json"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, **READ)

    def test_pauses_count_as_text_and_white_space_does_not(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        with pytest.raises(Killed):
            reading.read(bark, LONG + "[pause 0.1s]", tmp_path / "a.wav", seed=1, progress=killed_after(40), **READ)
        with pytest.raises(reading.ReadingError, match="text: it was"):
            reading.read(bark, LONG + "[pause 5s]", tmp_path / "a.wav", seed=1, **READ)
        again = LONG.replace(" ", "  ") + "\n\n[pause .1s]\n"
        segments = reading.read(bark, again, tmp_path / "a.wav", seed=1, **READ)
        end = len(audio_files.read(tmp_path / "a.wav", 24_000)) / 24_000
        assert abs(end - segments[-1].end - 0.1) < 1e-4

    def test_nothing_is_left_where_nothing_was_begun(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        with pytest.raises(ValueError, match="progress is 5"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=5, **READ)
        assert not list(tmp_path.iterdir())
        (tmp_path / "a.wav.part").write_text("")
        with pytest.raises(reading.ReadingError, match="is not a folder"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, **READ)

    @pytest.mark.parametrize("length", [241, 250])
    def test_long_names(self, bark, tmp_path, length):  # type: ignore[no-untyped-def]
        path = tmp_path / ("n" * (length - 4) + ".wav")
        assert reading.read(bark, "ab. cd.", path, seed=1, **READ)
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        "changes",
        [
            {"parts": 10**6},
            {"parts": -1},
            {"parts": True},
            {"samples": -4},
            {"samples": 10**9},
            {"voices": [1]},
            {"voices": [["x", "none.safetensors"]]},
            {"settled": [{}]},
            {"seed": None},
            {},
        ],
        ids=str,
    )
    def test_damage_is_named(self, bark, tmp_path, changes):  # type: ignore[no-untyped-def]
        options = {**READ, "split": Split(voice="previous")}
        with pytest.raises(Killed):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=killed_after(60), **options)
        state = tmp_path / "a.wav.part" / "state.json"
        old = json.loads(state.read_text())
        assert old["parts"] > 0
        state.write_text(json.dumps(old | changes))
        if not changes:
            table = tmp_path / "a.wav.part" / "segments.jsonl"
            table.write_bytes(b"\0" * table.stat().st_size)
        with pytest.raises(reading.ReadingError, match=r"is damaged.*remove "):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, **options)

    def test_another_process_that_went_on_meanwhile(self, bark, tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
        options = {**READ, "split": Split(voice="previous")}
        settings = reading._settings

        def and_the_other(*arguments):  # type: ignore[no-untyped-def]
            monkeypatch.setattr(reading, "_settings", settings)
            with contextlib.suppress(Killed):
                reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=killed_after(goes), **options)
            return settings(*arguments)

        with pytest.raises(Killed):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=killed_after(40), **options)
        goes = 60
        monkeypatch.setattr(reading, "_settings", and_the_other)
        with pytest.raises(Killed):  # goes on from where the other stopped
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, progress=killed_after(3), **options)
        goes = 10**6
        monkeypatch.setattr(reading, "_settings", and_the_other)
        with pytest.raises(reading.ReadingError, match="another process has finished"):
            reading.read(bark, LONG, tmp_path / "a.wav", seed=1, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]

    @pytest.mark.parametrize("left", ["hidden", "finished"])
    def test_what_a_kill_at_the_borders_leaves_is_no_hindrance(self, bark, tmp_path, monkeypatch, left):  # type: ignore[no-untyped-def]
        part = tmp_path / "a.wav.part"
        if left == "hidden":  # while the first state was written
            part.mkdir()
            (part / ".state.json.0a0b.part").write_text("{")
        else:  # after the output was complete

            def kill(folder, **_):  # type: ignore[no-untyped-def]
                (folder / "state.json").unlink()
                raise Killed

            monkeypatch.setattr(reading.shutil, "rmtree", kill)
            with pytest.raises(Killed):
                reading.read(bark, "abc", tmp_path / "a.wav", seed=1, sampling=LEAST)
            monkeypatch.undo()
        assert len(reading.read(bark, "abc", tmp_path / "a.wav", seed=1, sampling=LEAST)) == 1
        assert not part.exists()

    def test_one_process_at_a_time(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        def again(*_: object) -> None:
            with pytest.raises(reading.ReadingError, match="is being written by another process"):
                reading.read(bark, "abc", tmp_path / "a.wav", seed=1, sampling=LEAST)

        reading.read(bark, "abc", tmp_path / "a.wav", seed=1, sampling=LEAST, progress=again)

    def test_numpys_numbers(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        how = LEAST.replace(text_temperature=np.float32(0.7))
        for _ in range(2):
            reading.read(bark, "abc", tmp_path / "a.wav", seed=np.int64(3), sampling=how)

    def test_other_weights_are_refused(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        output = tmp_path / "a.wav"
        with pytest.raises(Killed):
            reading.read(bark, LONG, output, seed=1, progress=killed_after(40), **READ)
        with pytest.raises(reading.ReadingError, match="weights: it was"):
            reading.read(models.model(seed=1), LONG, output, seed=1, **READ)
        reading.read(models.model(), LONG, output, seed=1, **READ)  # the same weights in another object go on
        assert output.exists()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"output": "a.xyz"}, ValueError, "its ending must be one of"),
            ({"output": "none/a.wav"}, FileNotFoundError, "There is no folder"),
            ({"subtype": "pcm24"}, ValueError, r"The subtype is 'pcm24': \.wav has float or pcm16"),
            ({"timestamps": "a.txt"}, ValueError, r"its ending must be \.srt or \.json"),
            ({"timestamps": "none/a.srt"}, FileNotFoundError, "There is no folder"),
            ({"text": ["a", "b"]}, TextError, "text is a list: one text is read"),
        ],
    )
    def test_what_could_not_be_written_is_refused_at_once(self, bark, tmp_path, monkeypatch, options, error, message):  # type: ignore[no-untyped-def]
        monkeypatch.chdir(tmp_path)
        told = []
        given = {"text": "abc", "output": "a.wav", "progress": lambda *news: told.append(news), **options}
        with pytest.raises(error, match=message):
            reading.read(bark, **given)
        assert not told and list(tmp_path.iterdir()) == []

    def test_a_text_of_one_call(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        [segment] = reading.read(bark, "abc", tmp_path / "a.wav", seed=1, subtype="float", sampling=LEAST)
        whole = bark.generate("abc", seed=1, sampling=LEAST)
        near(audio_files.read(tmp_path / "a.wav", 24_000), whole.audio)
        assert segment == whole.segments[0]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"split": 1.0}, SplitError, "split is 1.0: it must be True, False or a bark_jax.Split"),
            ({"latency": "none"}, ValueError, "latency is 'none': choose one of exact, low"),
            ({"text": ["a"]}, TextError, "text is a list: a stream speaks one text"),
            ({"text": " "}, TextError, "must hold at least one character"),
            ({"text": "[pause]"}, TextError, "something to say"),
            ({"seed": -1}, bark_jax.SamplingError, "seed is -1"),
            ({"voice": {"ANN": None}, "split": False}, VoiceError, "a cast of ANN, and split is False"),
            ({"voice": {"ANN": "nobody"}, "text": "ANN: a"}, VoiceError, "There is no voice 'nobody'"),
            ({"voice": {"ANN": None}}, TextError, "has no speaker"),
            ({"voice": {3: None}}, VoiceError, "a cast maps names to voices, and has 3"),
            ({"progress": 5}, ValueError, "progress is 5: it must be None, True, False or a function"),
            ({"voice": {" ": None}}, VoiceError, "a cast maps names to voices, and has ' '"),
        ],
    )
    def test_at_once(self, bark, options, error, message):  # type: ignore[no-untyped-def]
        with pytest.raises(error, match=message):
            bark.stream(**{"text": "abc", **options})

    def test_asynchronous_streams_refuse_at_once_too(self, bark):  # type: ignore[no-untyped-def]
        with pytest.raises(TextError, match="text is a int"):
            bark.astream(3)

    def test_a_cast_of_nobody(self, bark):  # type: ignore[no-untyped-def]
        with pytest.raises(VoiceError, match="voice is empty"):
            bark.stream("ANN: abc", voice={})

    def test_parts_that_max_duration_cuts_are_told_of(self, bark):  # type: ignore[no-untyped-def]
        never = Sampling(allow_early_stop=False, max_duration_s=0.5)
        with pytest.warns(BarkWarning, match=r"was cut after 0\.5 s \(max_duration_s is 0\.5"):
            bark.generate(LONG, seed=1, sampling=never)
        with warnings.catch_warnings():
            warnings.simplefilter("error", BarkWarning)
            bark.generate("abc", seed=1, sampling=never)

    def test_greedy_parts_are_not_spoken_again(self, bark):  # type: ignore[no-untyped-def]
        greedy = Sampling.greedy().replace(max_duration_s=2.0)
        speech = bark.generate(LONG, seed=1, sampling=greedy, split=Split(retries=5))
        assert {segment.attempts for segment in speech.segments} == {1}

    def test_tags_are_no_unknown_characters(self, bark):  # type: ignore[no-untyped-def]
        with warnings.catch_warnings():
            warnings.simplefilter("error", BarkWarning)
            bark.stream("ab [pause] cd")

    def test_a_stranger_is_told_of(self, bark):  # type: ignore[no-untyped-def]
        with pytest.warns(BarkWarning, match=r"'CARL:' begins a line and is not of the cast \(ANN\)"):
            bark.stream("ANN: abc.\nCARL: x", voice={"ANN": None})

    def test_an_item_is_named(self, bark):  # type: ignore[no-untyped-def]
        with pytest.raises(TextError, match=r"item 1: The text has '\[pause x\]'"):
            bark.generate(["abc", "a [pause x] b"])


def test_frames_per_semantic_token_of_the_longest_call() -> None:
    config = models.config()
    assert tokens.n_frames(config.coarse, config.semantic.max_tokens) == 336


def test_a_new_text_does_not_compile(bark) -> None:  # type: ignore[no-untyped-def]
    from bark_jax import coarse, semantic

    jitted = (semantic.advance, semantic.insert, coarse.advance, coarse.fill, coarse.extend, fine.advance)
    count = lambda: [f._cache_size() for f in (*jitted, codec._decode_chunk)]  # noqa: E731
    how = {"voice": a_voice(bark), "sampling": LEAST}
    list(bark.stream("abc", seed=1, **how))
    before = count()
    list(bark.stream("one two three", seed=2, **how))
    list(bark.stream("x [pause] y", seed=3, **how))
    assert count() == before


def test_chunks_tell_where_they_belong(bark) -> None:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    chunks = list(bark.stream("x y. [pause 0.1s] z", seed=1, sampling=LEAST))
    assert sorted({chunk.segment for chunk in chunks}) == [0, 1]
    assert {chunk.text.strip() for chunk in chunks} == {"x y.", "z"}
    assert 0 < sum(chunk.duration for chunk in chunks) < time.perf_counter() - start + 60
