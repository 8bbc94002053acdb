"""Law 2 and law 4: what must be equal within bark_jax itself. Needs no torch.

Cached = uncached, row of a batch = the request alone, reloaded = original; nothing recompiles, nothing copies a cache.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bark_jax
import models
from bark_jax import coarse, codec, fine, sampling, semantic, tokens, weights
from bark_jax.gpt import KVCache
from bark_jax.linear import Int8
from bark_jax.rows import TOGETHER
from bark_jax.settings import Sampling, segment_seed
from bark_jax.voice import Voice

GREEDY = Sampling.greedy()


@pytest.fixture(scope="module")
def bark():  # type: ignore[no-untyped-def]
    return models.model()


def a_voice(bark, n=40, seed=0):  # type: ignore[no-untyped-def]
    return Voice.from_dict(models.voice(bark.config, n, seed), model=bark.config.fingerprint)


class TestCachedEqualsUncached:
    @pytest.mark.parametrize("prompt", [1, 7, 64])
    def test_steps_after_a_prefill_give_the_whole_pass(self, bark, prompt):  # type: ignore[no-untyped-def]
        network = bark._engine.weights["semantic"].module
        total, rows = 80, 3
        ids = jnp.asarray(np.random.default_rng(0).integers(0, 200, (rows, total)), jnp.int32)
        whole = network.logits(network.hidden(network.embed(ids)))
        cache = KVCache.zeros(network.config, rows, total)
        filled = network.prefill(network.embed(ids[:, :prompt]))
        cache = jax.tree.map(lambda old, new: old.at[:, :prompt].set(new), cache, filled)
        step = jax.jit(
            lambda cache, ids, t: network.decode_step(
                cache, ids, jnp.full((rows,), t), t, jnp.broadcast_to(jnp.arange(total) <= t, (rows, total))
            )
        )
        for t in range(prompt, total):
            cache, hidden = step(cache, ids[:, t], jnp.int32(t))
            np.testing.assert_allclose(network.logits(hidden), whole[:, t], atol=1e-4)

    def test_later_tokens_never_change_earlier_ones(self, bark):  # type: ignore[no-untyped-def]
        network = bark._engine.weights["coarse"].module
        ids = np.random.default_rng(1).integers(0, 200, (1, 50))
        other = ids.copy()
        other[0, 30:] = 7
        a, b = (network.hidden(network.embed(jnp.asarray(x))) for x in (ids, other))
        np.testing.assert_array_equal(a[0, :30], b[0, :30])
        assert np.abs(a[0, 30:] - b[0, 30:]).max() > 1e-3

    @pytest.mark.parametrize("with_voice", [False, True])
    def test_coarse_windows_equal_prompts_computed_anew(self, bark, with_voice, monkeypatch):  # type: ignore[no-untyped-def]
        # What keeps its cache from window to window must give what Suno's way gives: every prompt from the start.
        words = np.random.default_rng(2).integers(0, 200, 90)
        voice = a_voice(bark, 10) if with_voice else None
        kept = bark.semantic_to_coarse(words, voice=voice, sampling=GREEDY)
        calls = []
        monkeypatch.setattr(coarse.Prompt, "extends", lambda self, config, step: bool(calls.append(step)))
        anew = bark.semantic_to_coarse(words, voice=voice, sampling=GREEDY)
        np.testing.assert_array_equal(kept, anew)
        assert len(calls) == -(-kept.size // bark.config.coarse.window)

    def test_some_windows_do_keep_their_cache(self, bark):  # type: ignore[no-untyped-def]
        config = bark.config.coarse
        p = coarse.prompt(config, np.zeros(90, np.int32), None, config.max_history)
        kept = [p.extends(config, step) for step in range(0, p.n_tokens, config.window)]
        assert not kept[0] and all(kept[1:9]) and not any(kept[12:])

    def test_sunos_first_eleven_windows_keep_theirs(self):  # type: ignore[no-untyped-def]
        config = bark_jax.config.suno((1, 1, 16)).coarse
        p = coarse.prompt(config, np.zeros(400, np.int32), None, 630)
        kept = [p.extends(config, step) for step in range(0, p.n_tokens, 60)]
        assert kept == [False] + [True] * 10 + [False] * (len(kept) - 11)


TEXTS = ["hello there", "x", "one two three four", "what a day!", "the end.", "abc", "zzz zzz", "why?"]


def same(a, b, exact=True):  # type: ignore[no-untyped-def]
    for part in ("semantic", "coarse", "fine"):
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part), err_msg=part)
    assert a.ended == b.ended and a.seed == b.seed
    if exact:
        np.testing.assert_array_equal(a.audio, b.audio)
    else:
        np.testing.assert_allclose(a.audio, b.audio, atol=1e-5)


@pytest.fixture(scope="module")
def wide():  # type: ignore[no-untyped-def]
    return models.model(rows=4)


class TestRowEqualsRequestAlone:
    def requests(self, bark):  # type: ignore[no-untyped-def]
        voices = [None, a_voice(bark), a_voice(bark, 4), a_voice(bark, 80, seed=1)]
        how = [
            Sampling(max_duration_s=2.0),
            Sampling(text_temperature=1.2, max_duration_s=0.5, allow_early_stop=False),
            Sampling(text_temperature=0.0, coarse_temperature=0.0, fine_temperature=0.0, max_duration_s=1.0),
            Sampling(max_coarse_history=60, max_duration_s=1.5),
        ]
        return [
            dict(text=text, voice=voices[i % 4], seed=2**40 + i, sampling=how[(i + i // 4) % 4])
            for i, text in enumerate(TEXTS)
        ]

    def test_bit_equal_whatever_the_slot_and_the_neighbours(self, wide):  # type: ignore[no-untyped-def]
        requests = self.requests(wide)
        alone = [wide.generate(**request) for request in requests]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [5, 0, 6, 2], [7, 7, 4, 1], [6, 3]):
            batch = wide.generate(
                [requests[i]["text"] for i in order],
                voice=[requests[i]["voice"] for i in order],
                seed=[requests[i]["seed"] for i in order],
                sampling=[requests[i]["sampling"] for i in order],
            )
            for i, speech in zip(order, batch, strict=True):
                same(speech, alone[i])
                assert speech.rows == 4

    def test_a_neighbour_that_filters_changes_nothing(self, wide):  # type: ignore[no-untyped-def]
        requests = self.requests(wide)
        alone = wide.generate(**requests[1])
        batch = wide.generate(
            [requests[1]["text"], "other"],
            voice=[requests[1]["voice"], None],
            seed=[requests[1]["seed"], 5],
            sampling=[requests[1]["sampling"], Sampling(top_k=3, top_p=0.5, max_duration_s=1.0)],
        )
        same(batch[0], alone)

    def test_across_row_counts_tokens_are_equal(self, bark, wide):  # type: ignore[no-untyped-def]
        for request in self.requests(bark)[:4]:
            same(bark.generate(**request), wide.generate(**request), exact=False)

    def test_across_row_counts_logits_are_close(self, bark):  # type: ignore[no-untyped-def]
        network = bark._engine.weights["semantic"].module
        ids = jnp.asarray(np.random.default_rng(5).integers(0, 200, (8, 40)), jnp.int32)
        together = network.logits(network.hidden(network.embed(ids)))
        for row in range(8):
            alone = network.logits(network.hidden(network.embed(ids[row : row + 1])))
            np.testing.assert_allclose(alone[0], together[row], atol=1e-4)

    def test_more_texts_than_rows(self, wide):  # type: ignore[no-untyped-def]
        how = Sampling(max_duration_s=0.3)
        many = wide.generate([f"text {i}" for i in range(9)], seed=list(range(9)), sampling=how)
        assert len(many) == 9
        same(many[8], wide.generate("text 8", seed=8, sampling=how))

    def test_bit_equal_in_a_row_that_others_had_before(self, wide):  # type: ignore[no-untyped-def]
        requests = self.requests(wide)
        requests += [{**requests[i], "seed": 100 + i, "text": requests[i]["text"] + " again"} for i in (3, 0, 5)]
        texts, how = self.as_lists(requests)
        many = wide.generate(texts, **how)
        assert len({len(speech.semantic) for speech in many}) > 4  # rows became free at different times
        for i in (0, 4, 5, 7, 8, 9, 10):
            same(many[i], wide.generate(**requests[i]))

    def test_bit_equal_with_a_chunk_ahead_as_on_accelerators(self, wide, monkeypatch):  # type: ignore[no-untyped-def]
        requests = self.requests(wide)
        texts, how = self.as_lists(requests)
        expected = wide.text_to_semantic(texts, **how)
        monkeypatch.setitem(semantic.AHEAD, "cpu", 1)
        for a, b in zip(wide.text_to_semantic(texts, **how), expected, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_passes_of_several_rows_give_the_same_tokens(self, wide, monkeypatch):  # type: ignore[no-untyped-def]
        requests = self.requests(wide)
        texts, how = self.as_lists(requests)
        expected = wide.generate(texts, **how)
        monkeypatch.setitem(TOGETHER, "cpu", 3)  # of 4 rows: the second pass is filled up
        for a, b in zip(wide.generate(texts, **how), expected, strict=True):
            same(a, b, exact=False)

    def test_a_batch_that_becomes_narrower_gives_the_same_tokens(self, bark, monkeypatch):  # type: ignore[no-untyped-def]
        taken: list[int] = []
        for stage in (semantic, coarse):
            take = stage.take
            monkeypatch.setattr(
                stage, "take", lambda c, s, rows, take=take: (taken.append(len(rows)), take(c, s, rows))[1]
            )
        requests = self.requests(bark)
        for i, request in enumerate(requests):
            request["sampling"] = request["sampling"].replace(max_duration_s=0.3 + 0.2 * i, allow_early_stop=False)
        texts, how = self.as_lists(requests)
        for speech, request in zip(bark.generate(texts, **how), requests, strict=True):
            assert speech.rows == 8
            same(speech, bark.generate(**request), exact=False)
        assert taken == [2, 2]  # of 8 rows, in both stages

    def test_rows_do_not_stand_idle_while_requests_wait(self, wide, monkeypatch):  # type: ignore[no-untyped-def]
        chunks: list[int] = []
        advance = semantic.advance
        monkeypatch.setattr(semantic, "advance", lambda *a, **k: (chunks.append(k["n"]), advance(*a, **k))[1])
        how = [Sampling(max_duration_s=d, allow_early_stop=False) for d in (4.0, 0.3, 0.3, 0.3) * 4]
        lengths = [len(ids) for ids in wide.text_to_semantic(["hello"] * 16, seed=list(range(16)), sampling=how)]
        best = sum(lengths) / 4
        assert best <= sum(chunks) < 1.25 * best  # one batch after the other would take 4 times the longest
        assert 4 * max(lengths) > 2.5 * best

    @staticmethod
    def as_lists(requests):  # type: ignore[no-untyped-def]
        columns = {name: [request[name] for request in requests] for name in requests[0]}
        return columns.pop("text"), columns

    def test_stages_one_by_one_give_the_whole(self, bark):  # type: ignore[no-untyped-def]
        for request in self.requests(bark)[:3]:
            whole = bark.generate(**request)
            text, rest = request["text"], {k: v for k, v in request.items() if k != "text"}
            words = bark.text_to_semantic(text, **rest)
            two = bark.semantic_to_coarse(words, **rest)
            eight = bark.coarse_to_fine(two, **rest)
            np.testing.assert_array_equal(words, whole.semantic)
            np.testing.assert_array_equal(two, whole.coarse)
            np.testing.assert_array_equal(eight, whole.fine)
            np.testing.assert_array_equal(bark.decode(eight), whole.audio)


class TestSeeds:
    HOW = Sampling(max_duration_s=1.0)

    def test_same_seed_same_speech(self, bark):  # type: ignore[no-untyped-def]
        first = bark.generate("hello", sampling=self.HOW)
        same(bark.generate("hello", seed=first.seed, sampling=self.HOW), first)

    def test_no_seed_draws_a_new_one(self, bark):  # type: ignore[no-untyped-def]
        long = Sampling(max_duration_s=1.0, allow_early_stop=False)  # two empty ones would be equal
        a, b = (bark.generate("hello", sampling=long) for _ in range(2))
        assert a.seed != b.seed and not np.array_equal(a.coarse, b.coarse)

    def test_both_halves_of_a_seed_count(self, bark):  # type: ignore[no-untyped-def]
        said = [bark.generate("hello", seed=s, sampling=self.HOW) for s in (1, 2**32 + 1, 2**63 + 1, 2**64 - 1)]
        assert len({s.coarse.tobytes() for s in said}) == 4

    def test_stages_segments_and_attempts_have_their_own_keys(self):  # type: ignore[no-untyped-def]
        seeds = [segment_seed(seed, s, a) for seed in (3, 4) for s in range(3) for a in range(3)]
        assert seeds[0] == 3 and all(0 <= seed < 2**64 for seed in seeds)
        keys = [sampling.stage_keys([seed], stage).tobytes() for seed in seeds for stage in sampling.STAGES]
        assert len(set(keys)) == 54

    def test_noise_does_not_depend_on_the_chunk(self, bark, monkeypatch):  # type: ignore[no-untyped-def]
        how = Sampling(max_duration_s=1.0)
        whole = bark.text_to_semantic("hello", seed=1, sampling=how)
        for n in (1, 5, 50):
            monkeypatch.setitem(semantic.CHUNK, "cpu", n)
            np.testing.assert_array_equal(bark.text_to_semantic("hello", seed=1, sampling=how), whole)


class TestReloaded:
    def test_equals_the_original(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        models.save(tmp_path / "model", bark.config)
        again = bark_jax.load(tmp_path / "model", device="cpu")
        for name in weights.NETWORKS:
            for a, b in zip(bark._engine.weights[name].leaves, again._engine.weights[name].leaves, strict=True):
                np.testing.assert_array_equal(a, b)
        how = Sampling(max_duration_s=0.5)
        same(again.generate("hello", seed=4, sampling=how), bark.generate("hello", seed=4, sampling=how))

    def test_bfloat16_rounds_tables_and_linears_only(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        models.save(tmp_path / "model", bark.config)
        low = bark_jax.load(tmp_path / "model", device="cpu", dtype="bfloat16")
        for name in weights.NETWORKS:
            full = weights.names(bark._engine.weights[name].module)
            for tensor, leaf in weights.names(low._engine.weights[name].module).items():
                lowered = name != "codec" and leaf.ndim >= 2
                assert leaf.dtype == (jnp.bfloat16 if lowered else jnp.float32), tensor
                np.testing.assert_allclose(np.asarray(leaf, np.float32), full[tensor], rtol=2**-8 if lowered else 0)
        speech = low.generate("hello", seed=4, sampling=Sampling(max_duration_s=0.5, allow_early_stop=False))
        assert np.isfinite(speech.audio).all() and speech.duration > 0.3

    def test_int8_rounds_what_is_multiplied_with(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        models.save(tmp_path / "model", bark.config)
        low = bark_jax.load(tmp_path / "model", device="cpu", dtype="int8")
        assert low.dtype == "int8" and low.parameters() == bark.parameters()
        for name in weights.NETWORKS:
            full = weights.names(bark._engine.weights[name].module)
            for tensor, leaf in weights.names(low._engine.weights[name].module).items():
                if name == "codec" or leaf.ndim < 2:
                    assert leaf.dtype == jnp.float32
                elif tensor in ("wte.weight", "wpe.weight"):
                    assert leaf.dtype == jnp.bfloat16
                else:
                    assert isinstance(leaf, Int8)
                    step = np.max(np.abs(full[tensor]), axis=-1, keepdims=True) / 127
                    assert (np.abs(np.asarray(leaf) - full[tensor]) <= 0.51 * step).all()
        how = Sampling(max_duration_s=0.5, allow_early_stop=False)
        speech = low.generate("hello", seed=4, sampling=how)
        assert np.isfinite(speech.audio).all() and speech.duration > 0.3
        four = bark_jax.load(tmp_path / "model", device="cpu", dtype="int8", rows=4)
        alone = four.generate("hello", seed=4, sampling=how)
        same(four.generate(["another text", "hello"], seed=[9, 4], sampling=how)[1], alone)

    def test_int8_networks_are_near_and_saved_as_they_are_used(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        models.save(tmp_path / "model", bark.config)
        config, tokenizer, low = weights.read(tmp_path / "model", dtype="int8")
        ids = jnp.asarray(np.random.default_rng(0).integers(0, 200, (2, 30)), jnp.int32)
        for name in ("semantic", "coarse"):
            full, rounded = (
                np.asarray(network.logits(network.hidden(network.embed(ids))))
                for network in (bark._engine.weights[name].module, low[name].module)
            )
            assert np.std(rounded - full) < 0.05 * np.std(full)
            assert np.mean(rounded.argmax(-1) == full.argmax(-1)) > 0.8
        weights.save(tmp_path / "again", config, tokenizer, low)
        _, _, again = weights.read(tmp_path / "again", dtype="int8")
        for name in weights.NETWORKS:
            for a, b in zip(low[name].leaves, again[name].leaves, strict=True):
                np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6)

    def test_a_voice_made_here_speaks_again(self, bark, tmp_path):  # type: ignore[no-untyped-def]
        how = Sampling(max_duration_s=1.0)
        first = bark.generate("hello", seed=4, sampling=how)
        first.voice.save(tmp_path / "me.npz")
        by_file = bark.generate("again", voice=tmp_path / "me.npz", seed=5, sampling=how)
        same(by_file, bark.generate("again", voice=first.voice, seed=5, sampling=how))


class TestEdges:
    def test_end_of_speech_as_first_token(self, bark):  # type: ignore[no-untyped-def]
        with pytest.warns(bark_jax.BarkWarning, match="empty"):
            speech = bark.generate("hello", seed=0, sampling=Sampling(min_eos_p=0.0))
        assert speech.ended and speech.audio.shape == (0,) and speech.audio.dtype == np.float32
        assert speech.semantic.shape == (0,) and speech.coarse.shape == (2, 0) and speech.fine.shape == (8, 0)
        with pytest.raises(bark_jax.VoiceError):
            _ = speech.voice

    def test_an_empty_row_beside_a_full_one(self, bark):  # type: ignore[no-untyped-def]
        how = [Sampling(min_eos_p=0.0), Sampling(max_duration_s=0.5, allow_early_stop=False)]
        with pytest.warns(bark_jax.BarkWarning, match="empty"):
            empty, full = bark.generate(["a", "b"], seed=3, sampling=how)
        assert empty.duration == 0 and full.duration > 0

    def test_the_limit_warns_and_is_not_an_end(self, bark):  # type: ignore[no-untyped-def]
        with pytest.warns(bark_jax.BarkWarning, match="limit of 224"):
            speech = bark.generate("hello", seed=0, sampling=Sampling(allow_early_stop=False))
        assert not speech.ended and len(speech.semantic) == 224
        assert speech.fine.shape[1] == tokens.n_frames(bark.config.coarse, 224)

    @pytest.mark.parametrize("seconds, count", [(0.0, 1), (1 / 49.9, 2), (0.5, 25), (4.0, 200), (100.0, 224)])
    def test_durations(self, bark, seconds, count):  # type: ignore[no-untyped-def]
        how = Sampling(allow_early_stop=False, max_duration_s=seconds)
        assert len(bark.text_to_semantic("hello", seed=0, sampling=how)) == count

    def test_temperature_zero_ignores_seed_and_min_eos_p(self, bark):  # type: ignore[no-untyped-def]
        how = GREEDY.replace(max_duration_s=1.0)
        a = bark.generate("hello", seed=1, sampling=how)
        b = bark.generate("hello", seed=2, sampling=how.replace(min_eos_p=0.0))
        np.testing.assert_array_equal(a.audio, b.audio)

    def test_top_k_of_one_is_greedy(self, bark):  # type: ignore[no-untyped-def]
        how = Sampling(top_k=1, min_eos_p=None, max_duration_s=1.0)
        a = bark.text_to_semantic("hello", seed=1, sampling=how)
        b = bark.text_to_semantic("hello", seed=2, sampling=GREEDY.replace(max_duration_s=1.0))
        np.testing.assert_array_equal(a, b)

    def test_one_semantic_token_is_one_frame(self, bark):  # type: ignore[no-untyped-def]
        two = bark.semantic_to_coarse(np.array([5]), seed=0, sampling=GREEDY)
        assert two.shape == (2, 1)
        assert bark.decode(bark.coarse_to_fine(two, sampling=GREEDY)).shape == (320,)


def programs():  # type: ignore[no-untyped-def]
    """How many programs each jitted function of the pipeline has compiled."""
    jitted = (semantic.insert, semantic.take, semantic.advance, coarse.insert, coarse.take, coarse.fill, coarse.extend)
    jitted += (coarse.advance, fine.advance)
    return [f._cache_size() for f in (*jitted, codec._decode_chunk, sampling._stage_keys)]


def test_a_new_text_seed_setting_or_voice_never_recompiles(bark):  # type: ignore[no-untyped-def]
    short = Sampling(max_duration_s=0.4)
    long = Sampling(allow_early_stop=False, max_duration_s=3.0)
    # Each program once: without a voice and with one, short and beyond the history.
    bark.generate("warm", seed=0, sampling=long)
    bark.generate("up", voice=a_voice(bark), seed=0, sampling=long)
    before = programs()
    rng = np.random.default_rng(0)
    for i in range(12):
        voice = None if i % 3 == 0 else a_voice(bark, int(rng.integers(2, 60)) // 2 * 2, seed=i)
        how = (short, long)[i % 2].replace(
            text_temperature=float(rng.uniform(0, 2)),
            coarse_temperature=float(rng.uniform(0, 2)),
            fine_temperature=float(rng.uniform(0, 2)),
            min_eos_p=float(rng.uniform(0.1, 1)),
            max_coarse_history=int(rng.integers(12, 121)),
            max_duration_s=float(rng.uniform(0.05, 4)),
        )
        bark.generate("words " * int(rng.integers(1, 5)), voice=voice, seed=int(rng.integers(2**62)), sampling=how)
    assert programs() == before


def test_models_of_one_config_share_their_programs(bark):  # type: ignore[no-untyped-def]
    how = Sampling(max_duration_s=0.4)
    bark.generate("warm up", seed=0, sampling=how)
    before = programs()
    models.model(bark.config, seed=1).generate("hello", seed=0, sampling=how)
    assert programs() == before


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("filtered", [False, True])
def test_no_copy_the_size_of_a_cache_in_the_compiled_steps(bark, rows, filtered):  # type: ignore[no-untyped-def]
    config = bark.config
    how, heads = [Sampling(max_coarse_history=120)] * rows, config.semantic.network.n_head
    state = semantic.empty(config.semantic, rows)
    keys = sampling.stage_keys([1] * rows, "semantic")
    step = semantic.advance.lower(
        bark._engine.weights["semantic"],
        config.semantic,
        state,
        semantic.Settings.of(config.semantic, how),
        keys,
        n=8,
        filtered=filtered,
    )
    models.check_copies(step.compile().as_text(), state.cache.keys[0].shape, config.semantic.network.n_layer)

    state = coarse.empty(config.coarse, rows)
    step = coarse.advance.lower(
        bark._engine.weights["coarse"],
        config.coarse,
        state,
        coarse.Settings.of(how, [coarse.prompt(config.coarse, np.zeros(9, np.int32), None, 120)] * rows),
        keys,
        filtered=filtered,
    )
    assert state.cache.keys[0].shape[0] == rows * heads
    models.check_copies(step.compile().as_text(), state.cache.keys[0].shape, config.coarse.network.n_layer)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_low_weights_are_never_widened_as_a_whole(rows, dtype):  # type: ignore[no-untyped-def]
    """A loop that begins by making float32 of a table or a matrix costs more time and memory than low weights save."""
    made = models.config((2, 2, 256)).semantic
    made = dataclasses.replace(made, network=dataclasses.replace(made.network, input_vocab_size=20_000))
    module = weights.abstract(dataclasses.replace(models.config(), semantic=made), "semantic")
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in weights.names(module).items()}
    low = {name: weights.lowered("semantic", name, tensor, dtype) for name, tensor in zeros.items()}
    step = semantic.advance.lower(
        weights.Weights.of(weights.fill(module, jax.tree.map(jnp.asarray, low))),
        made,
        semantic.empty(made, rows),
        semantic.Settings.of(made, [GREEDY] * rows),
        sampling.stage_keys([1] * rows, "semantic"),
        n=8,
        filtered=False,
    )
    smallest = min(tensor.nbytes for tensor in zeros.values() if tensor.ndim == 2 and tensor.shape[0] > 256)
    assert step.compile().memory_analysis().temp_size_in_bytes < smallest, (rows, dtype)


def test_64_bit_mode_changes_nothing(bark, tmp_path):  # type: ignore[no-untyped-def]
    models.save(tmp_path / "model", bark.config)
    how = "bark_jax.Sampling(max_duration_s=1.0, allow_early_stop=False)"
    script = f"""
import sys, numpy as np, jax, bark_jax
assert jax.numpy.arange(2.0).dtype == "float64"
bark = bark_jax.load(sys.argv[1], device="cpu")
speech = bark.generate("hello", seed=5, sampling={how})
np.savez(sys.argv[2], semantic=speech.semantic, coarse=speech.coarse, fine=speech.fine, audio=speech.audio)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "model"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, env={**os.environ, "JAX_ENABLE_X64": "1"}, timeout=300)
    expected = bark.generate("hello", seed=5, sampling=Sampling(max_duration_s=1.0, allow_early_stop=False))
    with np.load(tmp_path / "out.npz") as out:
        for part in ("semantic", "coarse", "fine"):
            np.testing.assert_array_equal(out[part], getattr(expected, part))
        assert out["audio"].dtype == np.float32
        np.testing.assert_allclose(out["audio"], expected.audio, atol=1e-5)


def test_the_default_device_is_honoured(bark, tmp_path):  # type: ignore[no-untyped-def]
    models.save(tmp_path / "model", bark.config)
    script = """
import sys, jax, bark_jax
second = jax.devices()[1]
with jax.default_device(second):
    assert bark_jax.load(sys.argv[1]).device == second
assert bark_jax.load(sys.argv[1]).device == jax.devices()[0]
assert bark_jax.load(sys.argv[1], device=second).device == second
"""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], check=True, env=env, timeout=300)


def test_two_writers_of_one_folder_leave_one_complete_folder(bark, tmp_path):  # type: ignore[no-untyped-def]
    def tensors(name):  # type: ignore[no-untyped-def]
        return {key: np.asarray(leaf) for key, leaf in weights.names(bark._engine.weights[name].module).items()}

    first, second = (weights.Writer(tmp_path / "model", bark.config, models.tokenizer_json()) for _ in range(2))
    with pytest.raises(OSError), first:
        first.write("semantic", tensors("semantic"))
        with second:
            for name in weights.NETWORKS:
                second.write(name, tensors(name))
        for name in weights.NETWORKS[1:]:
            first.write(name, tensors(name))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    bark_jax.load(tmp_path / "model", device="cpu")
