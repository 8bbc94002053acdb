"""The recipe of bark-nano: what can be tested without its teachers."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

import optax
import safetensors.numpy
from flax import nnx

from bark_jax import codec as codecs
from bark_jax import library, weights
from bark_jax import units as networks
from bark_jax.codec import Codec
from bark_jax.config import CodecConfig
from recipes.bark_nano import corpus, critic, evaluate, foretell, listen, rows, sentences, sounds, train_codec, units
from recipes.bark_nano.first_weights import filter_bank, first_weights

LANGUAGES = {"a": 11, "b": 4, "e": 3, "j": 5}
NAMES = [
    *(f"{language}{'fm'[i % 2]}_{language}{i}" for language, n in LANGUAGES.items() for i in range(n)),
    *corpus.HELD_OUT,
    *corpus.UNUSABLE,
]
SMALL = CodecConfig(n_filters=4, dimension=8, ratios=(4, 4), lstm_layers=1, n_codebooks=3, codebook_size=16)


class TestSentences:
    def test_they_are_many_different_and_complete(self) -> None:
        made = list(itertools.islice(sentences.everyday(), 6000))
        assert len(set(made)) == 6000 and made == list(itertools.islice(sentences.everyday(), 6000))
        for text in made:
            assert text.isascii() or "£" in text, text
            assert re.fullmatch(r"[A-Z0-9][^{}_]*[.?!]", text) and "  " not in text and len(text) < 110, text
            assert not re.search(r"\b[Aa] [aeiou]|\bthe an?\b|\ban? an?\b", text), text
        assert not set(made) & set(sentences.HARVARD) and len(set(sentences.HARVARD)) == 40

    def test_every_template_is_used(self) -> None:
        made = list(itertools.islice(sentences.everyday(), len(sentences.TEMPLATES)))
        for template in sentences.TEMPLATES:
            start = template.partition("{")[0].strip()
            assert any(text.startswith(start) for text in made), template

    def test_numbers(self) -> None:
        for n, words in ((0, "zero"), (40, "forty"), (99, "ninety-nine"), (105, "one hundred and five")):
            assert sentences.number(n) == words
        assert sentences.number(2005) == "two thousand and five"
        assert sentences.number(9999) == "nine thousand nine hundred and ninety-nine"

    def test_transcripts(self, tmp_path: Path) -> None:
        lines = [
            "1\tIn being “comparatively” modern,",
            "2\tShort.",
            "3\t" + "long " * 40,
            "4\tthe café [he said] is closed",
        ]
        (tmp_path / "x.tsv").write_text("\n".join(lines), "utf-8")
        assert list(sentences.transcripts(tmp_path / "x.tsv")) == [
            "In being comparatively modern.",
            "The cafe he said is closed.",
        ]


class TestPlan:
    @pytest.fixture
    def transcripts(self, tmp_path: Path) -> Path:
        path = tmp_path / "t.tsv"
        path.write_text(
            "\n".join(f"{i}\tThis is line {sentences.number(i)} of a long book" for i in range(900)), "utf-8"
        )
        return path

    @pytest.fixture
    def clips(self, transcripts: Path) -> list[corpus.Clip]:
        return corpus.plan(transcripts, NAMES, bulk_hours=0.5, n_speakers=30, minutes=0.5)

    def test_held_out_is_held_out(self, clips: list[corpus.Clip]) -> None:
        heldout = [clip for clip in clips if clip.split == "heldout"]
        trained = [clip for clip in clips if clip.split != "heldout"]
        voices = {clip.voice for clip in heldout}
        assert len(voices) == 12 and len({clip.voice for clip in trained}) == 31
        assert not voices & {clip.voice for clip in trained}
        assert not {clip.text for clip in heldout} & {clip.text for clip in trained}
        for clip in trained:
            assert not {*clip.colour, *clip.melody} & {*corpus.HELD_OUT, *corpus.UNUSABLE}
        shared = {clip.text for clip in heldout if clip.voice == corpus.HELD_OUT[0]}
        assert len(shared & {clip.text for clip in heldout if clip.voice == "heldout_f00"}) >= 10
        voices_of = collections.Counter(text for _, text in {(clip.voice, clip.text) for clip in heldout})
        assert len(voices_of) == corpus.N_HELD_OUT_SENTENCES and min(voices_of.values()) == 2

    def test_ids_are_unique_and_hours_are_met(self, clips: list[corpus.Clip]) -> None:
        assert len({clip.id for clip in clips}) == len(clips)
        for voice, seconds in (("hibari", 1800), ("mix_f00", 30)):
            planned = sum(
                corpus.SECONDS_PER_CHARACTER * len(clip.text) + corpus.SECONDS_AROUND
                for clip in clips
                if clip.voice == voice
            )
            assert seconds <= planned <= seconds + 20
        assert {clip.split for clip in clips} == {"train", "validation", "heldout"}

    def test_more_minutes_change_no_clip_that_was_there(
        self, clips: list[corpus.Clip], transcripts: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("pyarrow")
        from bark_jax.train import data

        more = corpus.plan(transcripts, NAMES, bulk_hours=0.5, n_speakers=30, minutes=0.5, named_minutes=1.0)
        before = {clip.id: clip for clip in clips}
        assert before == {clip.id: clip for clip in more if clip.id in before}
        new = [clip for clip in more if clip.id not in before]
        named = {name for name in NAMES if name[0] in "ab"} - {*corpus.HELD_OUT, *corpus.UNUSABLE}
        assert {clip.voice for clip in new} == named and {clip.teacher for clip in new} == {"kokoro"}
        assert not {clip.text for clip in new} & {clip.text for clip in clips if clip.split == "heldout"}

        kept = [clip for clip in clips if clip.split != "heldout"][:-1]  # one that whisper refused
        data.write(
            tmp_path / "rows.parquet", ({"id": clip.id, "split": "train", "semantic": np.arange(4)} for clip in kept)
        )
        left = {clip.id for clip in corpus.missing(more, tmp_path / "rows.parquet")}
        heldout = {clip.id for clip in clips if clip.split == "heldout"}
        assert left == {clip.id for clip in more} - heldout - {clip.id for clip in kept}

        coded = {"id": kept[0].id, "split": "train", "semantic": np.arange(100), "fine": np.zeros((8, 150), int)}
        data.write(tmp_path / "rows.parquet", [coded, {"id": kept[1].id, "split": "train", "semantic": np.arange(4)}])
        of, heard = corpus.known(more, tmp_path / "rows.parquet")
        assert {clip.id for clip in of} == heldout | {clip.id for clip in kept[:2]}
        assert heard == [{"id": kept[0].id, "seconds": 2.0, "errors": 0, "words": 0}]

    def test_mixes(self) -> None:
        found = corpus.speakers(30, NAMES)
        assert found == corpus.speakers(30, NAMES)
        for speaker in found:
            for part in (speaker.style.colour, speaker.style.melody):
                assert sum(part.values()) == pytest.approx(1, abs=0.01)
            assert len({name[1] for name in [*speaker.style.colour, *speaker.style.melody]}) == 1
            assert all(name[0] in "ab" for name in speaker.style.melody)
        with pytest.raises(ValueError, match="5 speakers"):
            corpus.speakers(5, NAMES)

    def test_what_a_kill_tore_is_heard_again_and_nothing_else_is_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clips = [corpus.Clip(f"v/{i}", "v", "kokoro", "train", "A.", False, 1.0, 0, {}, {}) for i in range(3)]
        corpus.write_lines(tmp_path / "plan.jsonl", [clip.__dict__ for clip in clips])
        for clip in clips:
            path = corpus.audio_path(tmp_path, clip.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        monkeypatch.setattr(listen, "load", lambda path: np.zeros(100, np.float32))  # the files are empty

        class Whisper:
            def compare(self, pack: Any) -> Any:
                return [(clip, 2.0, 0, 1) for clip, _ in pack]

        line = '{"id": "v/0", "seconds": 2.0, "errors": 0, "words": 1}\n'
        (tmp_path / "heard.jsonl").write_text(line + line.replace("v/0", "v/1")[:-9])
        corpus.check(tmp_path, Whisper())
        assert set(corpus.good(tmp_path)) == {"v/0", "v/1", "v/2"}

    def test_what_cannot_be_planned_or_recorded_is_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "metadata.csv").write_text("LJ001-0001|A text of another format.|The same.\n" * 300)
        with pytest.raises(ValueError, match=r"metadata\.csv has 0 lines that can be read: more than 200"):
            corpus.heldout_sentences(tmp_path / "metadata.csv")
        with pytest.raises(FileNotFoundError, match="has no recordings"):
            corpus.record(tmp_path, tmp_path / "nothing")
        for wrong in (["plan", "--minutes", "-1"], ["plan", "--bulk-hours", "nan"], ["speak", "--workers", "0"]):
            with pytest.raises(SystemExit):
                corpus.main([*wrong, "--work", str(tmp_path)])
            assert f"{wrong[1]} is {float(wrong[2]):g}" in capsys.readouterr().err.replace("1.0", "1")

    def test_half_written_lines_are_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "heard.jsonl").write_text('{"id": "a"}\n{"id": "b', "utf-8")
        assert [row["id"] for row in corpus.read_lines(tmp_path / "heard.jsonl")] == ["a"]
        with pytest.raises(FileNotFoundError, match="plan"):
            corpus.read_plan(tmp_path)

    def test_trim(self) -> None:
        audio = np.zeros(24_000, np.float32)
        audio[10_000:12_000] = 0.5
        assert len(corpus.trim(audio)) == 2000 + 2 * 2400 - 1
        assert len(corpus.trim(np.zeros(5, np.float32))) == 5


class TestListen:
    @pytest.mark.parametrize(
        ("wanted", "heard", "expected"),
        [
            ("a b c", "a b c", [0, 0, 0]),
            ("a b c", "a x c", [0, 1, 0]),
            ("a b c", "a c", [0, 1, 0]),
            ("a b", "a b x y", [0, 2]),
            ("a b", "x a b", [1, 0]),
            ("a b", "", [1, 1]),
            ("", "a", []),
        ],
    )
    def test_errors_are_counted_where_they_are(self, wanted: str, heard: str, expected: list[int]) -> None:
        assert listen.errors(wanted.split(), heard.split()).tolist() == expected


class TestCritic:
    def test_distance_is_zero_for_equals_and_grows(self) -> None:
        rng = np.random.default_rng(1)
        a = jnp.asarray(rng.standard_normal((1, 6000)), jnp.float32)
        near, far = a + 0.01, a * 0.1
        found = [float(critic.loudness_distance(x, a, 24_000)) for x in (a, near, far)]
        assert found[0] == 0 < found[1] < found[2]

    def test_level_does_not_matter_and_loud_bands_do(self) -> None:
        n = jnp.arange(24_000) / 24_000
        low, high = (jnp.sin(2 * jnp.pi * hz * n)[None].astype(jnp.float32) for hz in (500, 4000))
        speech = 0.3 * low + 0.003 * high
        without_loud, without_faint = (
            float(critic.loudness_distance(jnp.asarray(x), jnp.asarray(speech), 24_000))
            for x in (0.003 * high, 0.3 * low)
        )
        assert without_loud > 2 * without_faint > 0
        quiet = float(critic.loudness_distance(0.03 * low, 0.1 * speech, 24_000))
        np.testing.assert_allclose(quiet, without_faint, rtol=0.02)

    def test_what_is_masked_does_not_count_and_what_is_added_counts_most(self) -> None:
        n = jnp.arange(24_000) / 24_000
        low, high = (0.3 * jnp.sin(2 * jnp.pi * hz * n)[None].astype(jnp.float32) for hz in (500, 3000))

        def distance(made: jax.Array, source: jax.Array) -> float:
            return float(critic.audible_distance(made, source, 24_000))

        assert distance(low, low) < 1e-3 and distance(1.5 * low, low) < 1e-3  # 3.5 dB: a fifth louder
        assert distance(2.5 * low, low) > 0.1
        missing, added = distance(low, low + high), distance(low + high, low)
        assert added > 2 * missing > 0.1
        assert np.isfinite(jax.grad(lambda x: critic.audible_distance(x, low, 24_000))(0 * low)).all()

    def test_halves_of_the_scales_are_all_of_them(self) -> None:
        rng = np.random.default_rng(2)
        a, b = (jnp.asarray(np.repeat(0.1 * rng.standard_normal((1, 6000)), 2, axis=0), jnp.float32) for _ in range(2))
        assert sorted(x for half in critic.HALVES for x in half) == sorted(critic.MELS)
        split, whole = critic.split_loudness_distance(a, b, 24_000), critic.loudness_distance(a, b, 24_000)
        np.testing.assert_allclose(split, whole, rtol=1e-5)

    def test_content_is_what_a_network_of_units_hears(self) -> None:
        config = networks.UnitsConfig(width=16, n_blocks=1, n_units=10)
        heard = networks.LogMelUnits(config, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(3)
        a = jnp.asarray(0.1 * rng.standard_normal((2, 9600)), jnp.float32)

        def distance(x: jax.Array) -> jax.Array:
            return critic.content_distance(heard, x, a)

        nearly = float(distance(a + 0.01 * a[:, ::-1]))
        # Not quite 0: the convolution of some CPUs adds the last positions of a batch in another order.
        assert 0 <= float(distance(a)) < 1e-6 < 1e-3 < nearly < float(distance(a[:, ::-1]))
        gradient = np.asarray(jax.grad(distance)(a + 0.01 * a[:, ::-1]))
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0

    @pytest.mark.parametrize("kind", critic.KINDS)
    def test_critics_learn_what_a_copy_is(self, kind: str) -> None:
        real = jnp.asarray(0.1 * speech_like(2, 2400))
        copy = real + 0.05 * jax.random.normal(jax.random.key(0), real.shape)
        critics = critic.Critics((256, 512), 8, kind=kind, rngs=nnx.Rngs(0))
        module, params = nnx.eval_shape(lambda: critics), weights.names(critics)
        rate = optax.adam(5e-3)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            found, gradient = jax.value_and_grad(lambda x: critic.critic_loss(weights.fill(module, x), real, copy))(
                params
            )
            updates, state = rate.update(gradient, state)
            return optax.apply_updates(params, updates), state, found

        state, losses = rate.init(params), []
        for _ in range(60):
            params, state, found = step(params, state)
            losses.append(float(found))
        assert losses[-1] < 0.4  # 0.5 is the least without telling them apart
        trained = weights.fill(module, params)
        marks, matching = map(float, critic.copy_losses(trained, real, copy))
        same = list(map(float, critic.copy_losses(trained, real, real)))
        assert marks > 1.1 * same[0] and matching > 0.01 and same[1] < 1e-6


class TestFirstWeights:
    CONFIG = dataclasses.replace(SMALL, n_filters=2, ratios=(1, 160), widths=(8, 24, 2), residual_layers=(2, 0))

    def test_a_wave_is_heard_where_it_belongs(self) -> None:
        codec = Codec(self.CONFIG, rngs=nnx.Rngs(0))
        tensors = {name: np.asarray(x) for name, x in weights.names(codec).items()}
        before = {name: x.copy() for name, x in tensors.items()}
        made = first_weights(tensors, self.CONFIG)
        assert {name: x.shape for name, x in made.items()} == {name: x.shape for name, x in tensors.items()}
        for name, x in before.items():
            np.testing.assert_array_equal(tensors[name], x)
        waves, _ = filter_bank(24, 160, 24_000)
        loud = np.argmax(np.abs(waves @ made["encoder.stages.0.down.weight"][:, 0]), axis=0)
        np.testing.assert_array_equal(loud, np.arange(24))
        full = weights.fill(codec, {name: jnp.asarray(x, jnp.float32) for name, x in made.items()})
        size = np.std(np.asarray(full.decoder(full.encoder(jnp.asarray(speech_like(3, 3200))))))
        assert 1e-3 < size < 10

    def test_residual_units_begin_near_their_shortcuts(self) -> None:
        tensors = weights.names(Codec(self.CONFIG, rngs=nnx.Rngs(0)))
        made = first_weights({name: np.asarray(x) for name, x in tensors.items()}, self.CONFIG)
        names = [name for name in made if name.endswith(".shortcut.weight")]
        assert len(names) == 4
        for name in names:
            np.testing.assert_array_equal(made[name][0], np.eye(24))


def speech_like(rows: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.standard_normal((rows, samples)), axis=1)
    return (0.5 * np.sin(x)).astype(np.float32)


class TestQuantizer:
    def test_it_is_the_codecs(self) -> None:
        codec = Codec(SMALL, rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(1), (2, 9, SMALL.dimension))
        tables = codec.quantizer.codebooks[...]
        seen = train_codec.quantize(x, tables, jnp.array([3, 3]))
        codes = codec.quantize(x)
        np.testing.assert_allclose(seen.vectors, codec.embed(codes), atol=1e-5)
        for i in range(3):
            np.testing.assert_array_equal(seen.counts[i], np.bincount(np.ravel(codes[:, i]), minlength=16))
        two = train_codec.quantize(x, tables, jnp.array([3, 1]))
        np.testing.assert_allclose(two.vectors[1], codec.embed(codes[:, :1])[1], atol=1e-5)
        np.testing.assert_allclose(two.vectors[0], seen.vectors[0], atol=1e-5)
        assert two.counts.sum(axis=1).tolist() == [18, 9, 9]

    def test_the_gradient_goes_past_it(self) -> None:
        tables = Codec(SMALL, rngs=nnx.Rngs(0)).quantizer.codebooks[...]
        x = jax.random.normal(jax.random.key(1), (1, 4, SMALL.dimension))
        gradient = jax.grad(lambda x: jnp.sum(train_codec.quantize(x, tables, jnp.array([2])).vectors * 3))(x)
        np.testing.assert_allclose(gradient, 3, atol=1e-6)

    def test_running_means_find_the_means_and_dead_codes_come_back(self) -> None:
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((16, 8)) * 5
        config = CodecConfig(n_filters=4, dimension=8, ratios=(4, 4), lstm_layers=1, n_codebooks=1, codebook_size=16)
        start = np.tile(centres[0], (1, 16, 1))  # all codes in one place: fifteen of them are dead
        books = train_codec.Books(jnp.ones((1, 16)), jnp.asarray(start, jnp.float32))
        for step in range(600):
            x = centres[rng.integers(0, 16, 128)] + 0.01 * rng.standard_normal((128, 8))
            seen = train_codec.quantize(jnp.asarray(x[None], jnp.float32), books.vectors, jnp.array([1]))
            books = train_codec.update(books, seen, 0.9, jnp.array([1]), jax.random.key(step))
        distance = np.linalg.norm(np.asarray(books.vectors[0])[None] - centres[:, None], axis=-1).min(axis=1)
        before = np.linalg.norm(centres - centres[0], axis=-1)
        assert np.mean(distance < 0.05) >= 0.5 and distance.mean() < 0.5 * before.mean()
        assert len(np.unique(np.asarray(books.vectors[0]).round(3), axis=0)) >= 12
        first = train_codec.first_books(np.repeat(centres, 20, axis=0), config)
        assert first.vectors.shape == (1, 16, 8) and np.isfinite(first.vectors).all()


class TestMatrices:
    def test_dead_codes_are_given_vectors_that_their_codebook_was_given(self) -> None:
        books = train_codec.Books(jnp.full((2, 8), 1e-5).at[:, 0].set(1.0), jnp.zeros((2, 8, 1)))
        x = jnp.asarray(np.arange(12.0).reshape(2, 6, 1), jnp.float32)
        active = jnp.array([2, 1])
        seen = train_codec.quantize(x, books.vectors, active)
        seen = seen._replace(left=jnp.stack([x.reshape(12, 1)] * 2))
        revived = np.asarray(train_codec.update(books, seen, 0.9, active, jax.random.key(0)).vectors)[:, 1:, 0]
        assert revived[0].max() > 5 and revived[1].max() < 5.001  # the second row is without the second codebook
        off = train_codec.update(books, seen, 0.9, jnp.array([1, 1]), jax.random.key(0))
        np.testing.assert_allclose(off.vectors[1, 1:], 0, atol=1e-3)

    def test_every_weight_is_one_but_those_next_to_the_waveform(self) -> None:
        module = nnx.eval_shape(lambda: Codec(train_codec.CONFIG, rngs=nnx.Rngs(0)))
        tensors = {name: x for name, x in weights.names(module).items() if name != train_codec.BOOKS}
        found = train_codec.matrices(tensors)
        assert set(found) == set(tensors)
        others = {name for name, axes in found.items() if axes is None and name.endswith("weight")}
        assert others == {"encoder.conv_in.weight", "decoder.conv_out.weight"}
        sides = {}
        for name, axes in found.items():
            if axes is not None:
                shape = tensors[name].shape
                sides[name] = tuple(np.prod([shape[i] for i in x]) for x in (axes.reduction_axis, axes.output_axis))
        width, ratio = train_codec.CONFIG.widths[0], train_codec.CONFIG.ratios[-1]
        assert sides["encoder.stages.0.down.weight"] == (4 * ratio, width)
        assert sides["decoder.stages.1.up.weight"] == (width, 4 * ratio)
        assert sides["decoder.stages.0.residuals.0.conv1.weight"] == (3 * width, width // 2)

    def test_the_first_step_is_the_nearest_rotation(self) -> None:
        """Of a gradient with singular values 0.3 to 1; the matrix is (24, 16), so a step of rate r has size r · 0.2 ·
        sqrt(24)."""
        settings = dataclasses.replace(RUN, warmup=0, steps=10, muon_rate=1e-2, muon_rounds=8)
        optimizer = train_codec.Trainer(settings, SMALL).optimizer
        rng = np.random.default_rng(0)
        left, _ = np.linalg.qr(rng.standard_normal((24, 24)))
        right, _ = np.linalg.qr(rng.standard_normal((16, 16)))
        gradient = (left[:, :16] * np.linspace(0.3, 1, 16)) @ right
        tensors = {"x.weight": jnp.zeros((3, 8, 16)), "x.bias": jnp.zeros(16)}
        given = {"x.weight": jnp.asarray(gradient.reshape(3, 8, 16), jnp.float32), "x.bias": jnp.ones(16)}
        updates, _ = optimizer.update(given, optimizer.init(tensors), tensors)
        step = np.asarray(updates["x.weight"]).reshape(24, 16)
        sizes = np.linalg.svd(step, compute_uv=False)
        np.testing.assert_allclose(sizes, 1e-2 * 0.2 * np.sqrt(24), rtol=0.35)  # the iteration ends near 1, not at it
        cosine = -np.sum(step * (left[:, :16] @ right)) / np.linalg.norm(step) / 4
        assert cosine > 0.97
        assert (
            0.9e-3 < -float(updates["x.bias"][0]) < 1.5e-3 and np.ptp(updates["x.bias"]) == 0
        )  # Adam's, with Nesterov


RUN = train_codec.Settings(
    batch=2, seconds=0.2, steps=5, quantize_from=2, critics_from=3, warmup=2, critic_filters=2, critic_windows=(256,)
)
HEARD = networks.LogMelUnits(networks.UnitsConfig(width=16, n_blocks=1, n_units=10), rngs=nnx.Rngs(0))


class TestForetell:
    def test_a_code_is_foretold_from_what_is_known_before_it(self) -> None:
        network = foretell.Foreteller(10, 16, 8, width=16, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        units = jnp.asarray(rng.integers(10, size=(2, 20)))
        voice, *vectors = (
            jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 16), *[(2, 30, 8)] * 2)
        )
        first, second = network(units, voice, (vectors[0], vectors[1]))
        assert first.shape == second.shape == (2, 30, 16)
        changed = [x.at[:, 12].add(1.0) for x in vectors]
        for moved, begins in (((changed[0], vectors[1]), 12), ((vectors[0], changed[1]), 13)):
            now = network(units, voice, moved)
            np.testing.assert_array_equal(now[0], first)
            differs = np.any(np.asarray(now[1] != second), axis=(0, 2))
            assert np.flatnonzero(differs)[0] == begins

    def test_a_vector_is_drawn_to_what_is_foretold_and_from_what_is_common(self) -> None:
        table = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
        share, even = jnp.array([0.5, 0.5]), jnp.zeros((1, 1, 2))
        x = jnp.array([[[0.1, 0.3]]])
        slope = jax.grad(foretell.unforetold)
        assert abs(float(foretell.unforetold(x, table, share, even))) < 1e-6
        np.testing.assert_allclose(slope(x, table, share, even), 0, atol=1e-6)
        assert slope(x, table, share, jnp.array([[[2.0, 0.0]]]))[0, 0, 0] > 0  # downhill is to the left
        assert slope(x, table, jnp.array([0.2, 0.8]), even)[0, 0, 0] > 0
        to_logits = jax.grad(foretell.unforetold, argnums=3)(x, table, share, jnp.array([[[2.0, 0.0]]]))
        np.testing.assert_array_equal(to_logits, 0)

    def test_surprise_is_in_nats(self) -> None:
        codes = jnp.array([[3, 0]])
        assert float(foretell.surprise(jnp.zeros((1, 2, 16)), codes)) == pytest.approx(np.log(16))
        assert float(foretell.surprise(50.0 * jax.nn.one_hot(codes, 16), codes)) < 1e-6


class TestTrainer:
    @pytest.mark.parametrize(
        ("name", "value", "rule"),
        [
            ("batch", 0, "1 to "),
            ("steps", -3, "0 to "),
            ("seconds", 0.0, "0.01 to 60"),
            ("all_books", 2.0, "0.0 to 1.0"),
            ("commit", float("nan"), "0.0 to "),
            ("critic_dtype", "float61", "choose one of float32, bfloat16"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, name: str, value: Any, rule: str) -> None:
        with pytest.raises(ValueError, match=f"{name} is {value!r}: .*{rule}"):
            dataclasses.replace(RUN, **{name: value})

    def test_crops_must_be_whole_frames(self) -> None:
        with pytest.raises(ValueError, match="a crop must be a whole number of frames"):
            train_codec.Trainer(dataclasses.replace(RUN, seconds=0.0101), SMALL)

    def test_a_decoder_is_not_trained_alone_from_nothing(self, tmp_path: Path) -> None:
        settings = dataclasses.replace(RUN, trained="decoder")
        with pytest.raises(ValueError, match="it needs a codec whose encoder and codebooks it keeps, --begin FILE"):
            train_codec.train(tmp_path, settings, minutes=1, save_minutes=1, log_every=1)
        assert not (tmp_path / "codec").exists()

    def test_a_decoder_may_be_trained_alone(self) -> None:
        with pytest.raises(ValueError, match="trained is 'encoder': choose one of all, decoder"):
            train_codec.Trainer(dataclasses.replace(RUN, trained="encoder"), SMALL)
        with pytest.raises(ValueError, match="critic_kind is 'mel': choose one of stft, frames"):
            train_codec.Trainer(dataclasses.replace(RUN, critic_kind="mel"), SMALL)
        trainer = train_codec.Trainer(dataclasses.replace(RUN, trained="decoder", quantize_from=0, warmup=0), SMALL)
        state = trainer.start()
        before = trainer.exported(state)
        for number in range(2):
            state, metrics = trainer.step(state, 0.1 * speech_like(2, 4800), number)
            if number == 0:  # what is exported has nothing of the weights that were begun with
                for name, tensor in state.params.items():
                    np.testing.assert_allclose(state.average[name], tensor, atol=1e-7)
        assert "commit" not in metrics and np.isfinite(float(metrics["loss"]))
        for name, tensor in trainer.exported(state).items():
            same = np.array_equal(tensor, before[name])
            assert same != name.startswith("decoder."), name

    def test_content_and_what_is_foretold_need_a_listener_and_count_where_there_is_one(self) -> None:
        for name in ("content", "foretold"):
            with pytest.raises(ValueError, match=rf"{name} is 0\.5: it needs a network"):
                train_codec.Trainer(dataclasses.replace(RUN, **{name: 0.5}), SMALL)
        settings = dataclasses.replace(RUN, content=0.5, foretold=0.5, all_books=0.5, quantize_from=0, warmup=0)
        trainer = train_codec.Trainer(settings, SMALL, listener=HEARD)
        state = trainer.start()
        names, old = set(trainer.exported(state)), {name: np.array(x) for name, x in state.params.items()}
        state, metrics = trainer.step(state, 0.1 * speech_like(2, 4800), 0)
        assert 0 < float(metrics["content"]) < float(metrics["loss"])
        assert np.isfinite(float(metrics["foretold"])) and float(metrics["nats_0"]) > 0
        changed = {name for name, x in state.params.items() if not np.array_equal(x, old[name])}
        assert "encoder.conv_in.weight" in changed and f"{train_codec.FORETELLER}first.weight" in changed
        assert names == set(trainer.exported(state)) == set(weights.names(Codec(SMALL, rngs=nnx.Rngs(0))))

    def test_what_was_not_trained_is_not_exported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(train_codec.Trainer.__init__, "__defaults__", (SMALL, None, None))
        with pytest.raises(FileNotFoundError, match="no checkpoint: train first"):
            train_codec.export(tmp_path)
        assert not (tmp_path / "codec").exists()

    def test_a_folder_has_one_run_and_its_settings(self, tmp_path: Path) -> None:
        one = train_codec.Run(tmp_path / "codec")
        with pytest.raises(FileExistsError, match="another run is at work"):
            train_codec.Run(tmp_path / "codec")
        one.remember(RUN)
        one.remember(dataclasses.replace(RUN, steps=7))
        assert train_codec.kept_settings(tmp_path / "codec") == dataclasses.replace(RUN, steps=7)
        for name, value in (("critic_filters", 4), ("foretold", 0.5)):
            with pytest.raises(ValueError, match=f"{name} is {value}, and was {getattr(RUN, name)} in the run"):
                one.remember(dataclasses.replace(RUN, **{name: value}))
        (tmp_path / "codec" / "settings.json").write_text('{"batch": 2, "sec')
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            one.remember(RUN)

    def test_a_run_that_diverged_is_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        soundfile = pytest.importorskip("soundfile")
        monkeypatch.setattr(train_codec.Trainer.__init__, "__defaults__", (SMALL, None, None))
        (tmp_path / "recordings" / "train").mkdir(parents=True)
        (tmp_path / "plan.jsonl").touch()
        soundfile.write(tmp_path / "recordings" / "train" / "0.flac", 0.5 * np.ones(24_000), 24_000)
        made = train_codec.Trainer(RUN, SMALL)
        broken = {name: np.asarray(x) * 1e30 for name, x in made.exported(made.start()).items()}
        weights.write_file(tmp_path / "begin.safetensors", broken)
        with pytest.raises(ValueError, match=r"at step 1 the loss is .*lower rates"):
            train_codec.train(
                tmp_path, RUN, minutes=1e9, save_minutes=1e9, log_every=1, begin=tmp_path / "begin.safetensors"
            )
        assert not any((tmp_path / "codec" / "checkpoints").iterdir())

    def test_what_fails_in_the_thread_of_the_crops_is_raised(self, tmp_path: Path) -> None:
        soundfile = pytest.importorskip("soundfile")
        for name, rate, channels in (("slow", 8000, 1), ("two", 24_000, 2)):
            soundfile.write(tmp_path / f"{name}.flac", np.zeros((4800, channels)), rate)
            with pytest.raises(ValueError, match=rf"{name}\.flac has {channels} channels at {rate} Hz"):
                train_codec.Crops([], [tmp_path / f"{name}.flac"], RUN, 24_000)
        soundfile.write(tmp_path / "good.flac", np.zeros(4800), 24_000)
        crops = train_codec.Crops([], [tmp_path / "good.flac"], RUN, 24_000)
        crops.real = [[]]
        with pytest.raises(ValueError, match="high <= 0"):
            next(crops.ahead(0))

    def test_a_run_may_begin_with_a_codec(self) -> None:
        trainer = train_codec.Trainer(RUN, SMALL)
        made = trainer.exported(trainer.start())
        made = {name: x + 0.01 for name, x in made.items()}
        for name, tensor in trainer.exported(trainer.start(made)).items():
            np.testing.assert_allclose(tensor, made[name], atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_two_devices_do_what_one_does(self, dtype: str, tmp_path: Path) -> None:
        script = f"""if True:
            import dataclasses, jax, numpy as np
            from tests.test_bark_nano import RUN, SMALL
            from recipes.bark_nano.train_codec import Trainer
            settings = dataclasses.replace(RUN, critic_dtype={dtype!r})
            audio = 0.1 * np.random.default_rng(0).standard_normal((5, 2, 4800)).astype(np.float32)
            found = []
            for devices in (jax.devices()[:1], jax.devices()):
                trainer = Trainer(settings, SMALL, devices)
                state, losses = trainer.start(), []
                for number, batch in enumerate(audio):
                    state, metrics = trainer.step(state, batch, number)
                    losses.append([float(metrics[name]) for name in sorted(metrics)])
                assert len(state.params["encoder.conv_in.weight"].sharding.device_set) == len(devices)
                found.append(losses)
            for one, two in zip(*found, strict=True):
                np.testing.assert_allclose(two, one, rtol={2e-3 if dtype == "float32" else 2e-2})
            try:
                Trainer(dataclasses.replace(settings, batch=3), SMALL)
            except ValueError as error:
                assert "multiple of the 2 devices" in str(error)
                print("done")
        """
        env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        root = Path(__file__).parents[1]
        child = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True, timeout=600
        )
        assert child.stdout.strip() == "done", child.stderr


class TestRun:
    @pytest.mark.slow
    def test_resumed_is_uninterrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        soundfile = pytest.importorskip("soundfile")
        monkeypatch.setattr(train_codec.Trainer.__init__, "__defaults__", (SMALL, None, None))
        t = np.arange(24_000) / 24_000
        (tmp_path / "recordings" / "train").mkdir(parents=True)
        (tmp_path / "plan.jsonl").touch()
        for i in range(3):
            wave = 0.5 * np.sin(2 * np.pi * (200 + 100 * i) * t)
            soundfile.write(tmp_path / "recordings" / "train" / f"{i}.flac", wave, 24_000)

        def run(folder: Path, *minutes: float) -> dict[str, np.ndarray]:
            (folder / "recordings").mkdir(parents=True, exist_ok=True)
            if folder != tmp_path:
                (folder / "recordings" / "train").symlink_to(tmp_path / "recordings" / "train")
                (folder / "plan.jsonl").touch()
            for limit in minutes:
                train_codec.train(folder, RUN, minutes=limit, save_minutes=1e9, log_every=1)
            return safetensors.numpy.load_file(train_codec.export(folder))

        whole = run(tmp_path, 1e9)
        assert set(whole) == set(train_codec.weights.names(Codec(SMALL, rngs=nnx.Rngs(0))))
        lines = (tmp_path / "codec" / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 5 and "critic" in lines[-1] and "commit" not in lines[0]
        parts = run(tmp_path / "again", 0.0, 1e9)  # a step, then the rest
        for name, tensor in whole.items():
            np.testing.assert_array_equal(parts[name], tensor)
            assert tensor.dtype == weights.DTYPES["bfloat16"]


class TestRows:
    @pytest.mark.parametrize("labels", range(1, 9))
    @pytest.mark.parametrize("frames", range(2, 12))
    def test_units_and_codes_cover_the_same_time(self, labels: int, frames: int) -> None:
        semantic, fine = rows.fit(np.arange(labels), np.zeros((8, frames)))
        assert fine.shape[1] == len(semantic) * 3 // 2 and len(semantic) >= 1
        assert len(semantic) == labels or (len(semantic) + 1) * 3 // 2 > frames

    def test_speakers_of_recordings(self) -> None:
        assert rows.voice_of("recordings/train/103-1240-0000") == "recorded-103"
        assert rows.voice_of("recordings/train/LJ001-0029") == "recorded-LJ001"

    @pytest.fixture
    def work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two clips that were understood, one that was not, one held out, one recording."""
        soundfile = pytest.importorskip("soundfile")
        monkeypatch.setattr(evaluate, "CONFIG", SMALL)
        rng = np.random.default_rng(0)
        clips, heard = [], []
        for i, split in enumerate(("train", "validation", "train", "heldout")):
            clips.append(corpus.Clip(f"v{i}/0", f"v{i}", "kokoro", split, f"Line {i}.", False, 1.0, 0, {}, {}))
            heard.append({"id": f"v{i}/0", "seconds": 2.0, "errors": 3 * (i == 2), "words": 3})
        (tmp_path / "plan.jsonl").write_text("".join(json.dumps(clip.__dict__) + "\n" for clip in clips))
        (tmp_path / "heard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heard))
        for i, id_ in enumerate([*(clip.id for clip in clips), "recordings/train/19-1-0"]):
            recording = id_.startswith("recordings")
            path = tmp_path / f"{id_}.flac" if recording else corpus.audio_path(tmp_path, id_)
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(24_000 + 777 * i), 24_000)
        for made in ("codec", "units"):
            (tmp_path / made).mkdir()
        tensors = weights.names(Codec(SMALL, rngs=nnx.Rngs(0)))
        safetensors.numpy.save_file(
            {name: np.asarray(x) for name, x in tensors.items()}, tmp_path / "codec" / "codec.safetensors"
        )
        save_units(tmp_path, seed=0)
        return tmp_path

    def test_rows_are_what_the_trainer_reads(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(rows, "CLIPS_AT_ONCE", 3)
        rows.write(work)
        files = sorted((work / "rows").glob("*.parquet"))
        found = {row["id"]: row for file in files for row in pq.read_table(file).to_pylist()}
        assert [file.name for file in files] == ["recorded-00000.parquet", "said-00000.parquet"]
        assert set(found) == {"v0/0", "v1/0", "recordings/train/19-1-0"}
        one, recording = found["v1/0"], found["recordings/train/19-1-0"]
        assert (one["split"], one["text"], one["voice"]) == ("validation", "Line 1.", "v1")
        assert (recording["split"], recording["text"], recording["voice"]) == ("train", None, "recorded-19")
        codec = Codec(SMALL, rngs=nnx.Rngs(0))
        audio = listen.load(corpus.audio_path(work, "v1/0"), SMALL.sample_rate)
        wanted = np.asarray(codecs.encode(codec, audio))[:, : len(one["semantic"]) * 3 // 2]
        np.testing.assert_array_equal(one["fine"], wanted)
        assert one["coarse"] is None  # it would be the first codebooks of fine
        network = networks.load(work / "units" / "units.safetensors")
        assert len(one["semantic"]) >= len(audio) // 480 - 1
        np.testing.assert_array_equal(one["semantic"], networks.encode(network, audio)[: len(one["semantic"])])

    def test_rows_of_another_codec_get_the_codes_of_this_one(
        self, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(rows, "CLIPS_AT_ONCE", 3)
        other = Codec(SMALL, rngs=nnx.Rngs(1))
        before = work / "other.safetensors"
        safetensors.numpy.save_file({name: np.asarray(x) for name, x in weights.names(other).items()}, before)
        rng = np.random.default_rng(0)
        given: list[dict[str, Any]] = [
            {"id": f"a/{n}", "split": "train", "text": "A.", "voice": "a", "semantic": [1] * n, "fine": codes}
            for n, codes in ((n, rng.integers(16, size=(3, n * 3 // 2))) for n in (40, 20, 30, 42))
        ]
        given.append({"id": "b/0", "split": "train", "text": "B.", "voice": "b", "semantic": [2, 3]})
        rows.data.write(work / "old" / "said-00000.parquet", given)
        with pytest.raises(FileNotFoundError, match=r"has no \.parquet files"):
            rows.write_recoded(work, work / "audio", before)
        for _ in range(2):
            rows.write_recoded(work, work / "old", before)
        found = {row["id"]: row for row in pq.read_table(work / "rows" / "said-00000.parquet").to_pylist()}
        assert found.keys() == {row["id"] for row in given} and found["b/0"]["fine"] is None
        this = Codec(SMALL, rngs=nnx.Rngs(0))
        for row in given[:-1]:
            wanted = codecs.encode(this, np.asarray(codecs.decode(other, np.asarray(row["fine"], np.int32))))
            np.testing.assert_array_equal(found[row["id"]]["fine"], wanted)
            assert found[row["id"]]["semantic"] == row["semantic"] and found[row["id"]]["text"] == "A."
        with pytest.raises(SystemExit):
            rows.main(["--recode", str(work / "old")])
        assert "--recode ROWS and --before CODEC go together" in capsys.readouterr().err

    def test_a_corpus_that_has_grown_gets_its_other_rows(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(rows, "CLIPS_PER_FILE", 1)
        lines = (work / "heard.jsonl").read_text().splitlines(keepends=True)
        (work / "heard.jsonl").write_text(lines[1])
        rows.write(work)
        (work / "heard.jsonl").write_text("".join(lines))
        rows.write(work)
        files = sorted((work / "rows").glob("*.parquet"))
        assert [file.name for file in files] == [
            "recorded-00000.parquet", "said-00000.parquet", "said-00001.parquet"
        ]  # fmt: skip
        assert [rows.there(work / "rows", file.name) for file in files[1:]] == [{"v1/0"}, {"v0/0"}]
        (work / "heard.jsonl").write_text("")
        for path in (work / "recordings" / "train").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match="no clips that were understood and no recordings"):
            rows.write(work)

    def test_bulk_rows_have_text_and_units_alone(self, work: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        clips = [dataclasses.replace(clip, teacher="hibari") for clip in corpus.read_plan(work)[:3]]
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(corpus.audio_path(work, "v1/0"), np.zeros(12_000), 24_000)  # too short to be used
        corpus.write_lines(work / "plan.jsonl", [clip.__dict__ for clip in clips])
        rows.write_bulk(work)
        (file,) = (work / "rows").glob("*.parquet")
        found = pq.read_table(file).to_pylist()
        assert [row["id"] for row in found] == ["v0/0", "v2/0"]  # refused by whisper or not
        network = networks.load(work / "units" / "units.safetensors")
        for row in found:
            audio = listen.load(corpus.audio_path(work, row["id"]), SMALL.sample_rate)
            np.testing.assert_array_equal(row["semantic"], networks.encode(network, audio))
            assert row["fine"] is None and row["coarse"] is None and row["text"] == f"Line {row['id'][1]}."

    def test_voices_at_other_paces(self, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(rows, "CLIPS_AT_ONCE", 3)
        rows.write(work)
        clips = [dataclasses.replace(clip, teacher="hibari") for clip in corpus.read_plan(work)[2:]]
        corpus.write_lines(work / "plan.jsonl", [clip.__dict__ for clip in clips])
        rows.write_shifted(work, work / "rows")
        (file,) = (work / "shifted").glob("*.parquet")
        found = {row["id"]: row for row in pq.read_table(file).to_pylist()}
        slow, fast = rows.paces("v0")
        assert rows.SLOWER[0] <= slow <= rows.SLOWER[1] < rows.FASTER[0] <= fast <= rows.FASTER[1]
        names = {f"v0/0x{pace:.4f}": f"v0x{pace:.4f}" for pace in (slow, fast)}  # v1 is for validation
        (bulk,) = set(found) - set(names)
        assert bulk.startswith("v2/0x") and float(bulk[5:]) in rows.BULK_PACES
        said = pq.read_table(work / "rows" / "said-00000.parquet").to_pylist()
        (original,) = (row for row in said if row["id"] == "v0/0")
        codec = Codec(SMALL, rngs=nnx.Rngs(0))
        for name, voice in names.items():
            row = found[name]
            assert (row["voice"], row["split"], row["text"]) == (voice, "train", None)
            audio = rows.at_pace(np.asarray(codecs.decode(codec, np.array(original["fine"]))), float(name[5:]))
            n = len(row["semantic"]) * 3 // 2
            np.testing.assert_array_equal(row["fine"], np.asarray(codecs.encode(codec, audio))[:, :n])
            assert len(audio) == round(16 * 75 / float(name[5:]))  # 75 frames of this codec's
        before = file.read_bytes()
        rows.write_shifted(work, work / "rows")  # nothing is left to do
        assert file.read_bytes() == before and len(list((work / "shifted").glob("*.parquet"))) == 1
        save_units(work, seed=1)
        with pytest.raises(ValueError, match="was made with another units than"):
            rows.write_shifted(work, work / "rows")
        with pytest.raises(FileNotFoundError, match="it is no folder of"):
            rows.write_shifted(work, work / "audio")

    def test_a_pace_moves_pitch_and_length(self) -> None:
        tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000).astype(np.float32)
        fast = rows.at_pace(tone, 1.2)
        assert len(fast) == 20_000
        peak = np.abs(np.fft.rfft(fast)).argmax() * 24_000 / len(fast)
        assert abs(peak - 528) < 3

    def test_it_goes_on_and_refuses_another_codec(self, work: Path) -> None:
        rows.write(work)
        (made,) = (work / "rows").glob("said-*.parquet")
        before = made.read_bytes()
        made.unlink()
        codec = work / "codec" / "codec.safetensors"
        tensors = safetensors.numpy.load_file(codec)
        louder = {name: x * (1.5 if name.startswith("decoder.") else 1) for name, x in tensors.items()}
        safetensors.numpy.save_file(louder, codec)  # another decoder gives the same codes
        rows.write(work)
        assert made.read_bytes() == before
        other = {name: x * (1.5 if name.startswith("encoder.") else 1) for name, x in tensors.items()}
        safetensors.numpy.save_file(other, codec)
        with pytest.raises(ValueError, match="another codec or other units"):
            rows.write(work)
        safetensors.numpy.save_file(tensors, codec)
        save_units(work, seed=1)
        with pytest.raises(ValueError, match="another codec or other units"):
            rows.write(work)
        (work / "rows" / "made-from.json").unlink()
        with pytest.raises(FileExistsError, match="made-from"):
            rows.write(work)

    def test_units_are_learnt_from_what_was_read_aloud(self, work: Path) -> None:
        assert [clip.id for clip in units.read_aloud(work, bulk=0)] == ["v0/0", "v3/0"]  # one to train on, one held out

    def test_rows_get_other_units(self, work: Path) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        rows.write(work)
        ((_, before),) = [(path, pq.read_table(path).to_pylist()) for path in (work / "rows").glob("said-*.parquet")]
        (work / "rows").rename(work / "before")
        save_units(work, seed=1)
        audio = corpus.audio_path(work, "v0/0")
        kept = audio.read_bytes()
        audio.unlink()
        with pytest.raises(FileNotFoundError, match=r"v0/0\.flac: `corpus speak` or `rows --copies` makes it"):
            rows.write_relabelled(work, work / "before")
        audio.write_bytes(kept)
        rows.write_relabelled(work, work / "before")
        ((path, now),) = [(path, pq.read_table(path).to_pylist()) for path in (work / "rows").glob("said-*.parquet")]
        network = networks.load(work / "units" / "units.safetensors")
        for old, new in zip(before, now, strict=True):
            heard = networks.encode(network, listen.load(corpus.audio_path(work, new["id"]), SMALL.sample_rate))
            np.testing.assert_array_equal(new["semantic"], heard[: len(new["semantic"])])
            assert {**old, "semantic": 0} == {**new, "semantic": 0}
        written = path.stat().st_mtime_ns
        rows.write_relabelled(work, work / "before")
        assert path.stat().st_mtime_ns == written

    def test_copies_are_what_the_codec_makes_of_rows(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pq = pytest.importorskip("pyarrow.parquet")
        monkeypatch.setattr(rows, "CONFIG", dataclasses.replace(SMALL, sample_rate=24_000))
        rows.write(work)
        there = corpus.audio_path(work, "v0/0").read_bytes()
        corpus.audio_path(work, "v1/0").unlink()
        rows.write_copies(work, work / "rows")
        assert corpus.audio_path(work, "v0/0").read_bytes() == there
        (table,) = (pq.read_table(path) for path in (work / "rows").glob("said-*.parquet"))
        (row,) = (row for row in table.to_pylist() if row["id"] == "v1/0")
        codec = evaluate.load_codec(work / "codec" / "codec.safetensors")
        wanted = codecs.decode(codec, np.array(row["fine"], np.int32))
        copy = listen.load(corpus.audio_path(work, "v1/0"), 24_000)
        np.testing.assert_allclose(copy, np.clip(wanted, -1, 1), atol=1e-4)

    def test_what_was_not_labelled_is_said_before_anything_is_judged(self, work: Path) -> None:
        with pytest.raises(ValueError, match="v3/0 has no units to compare with, as 1 have none: run `units align`"):
            evaluate.check_labels(work)


def save_units(work: Path, *, seed: int) -> None:
    config = networks.UnitsConfig(width=16, n_blocks=2, n_units=40, n_mels=20)
    network = networks.LogMelUnits(config, rngs=nnx.Rngs(seed))
    networks.save(work / "units" / "units.safetensors", config, weights.names(network))


class TestSounds:
    """Phonemes, and where they are."""

    def test_they_are_what_is_heard_of_a_reading(self) -> None:
        assert sounds.sounds("ˈæftəɹ, jˌuː") == [
            *(("ˈæ", 0), ("f", 0), ("t", 0), ("ə", 0), ("ɹ", 0)),
            *(("j", 2), ("u", 0)),
        ]
        assert sounds.sounds("ðə kˈæt") == [("ð", 0), ("ə", 0), ("k", 1), ("ˈæ", 0), ("t", 0)]

    def test_pauses_may_be_at_the_ends_and_between_words(self) -> None:
        said, names = [("a", 0), ("b", 1), ("c", 0), ("a", 2)], ["_", "a", "b", "c"]
        assert sounds.states(said, names).tolist() == [0, 1, 0, 2, 3, 0, 1, 0]
        assert sounds.states(said, names, least=2).tolist() == [0, 1, 2, 3, 0, 1, 0]

    @pytest.mark.parametrize("seed", range(4))
    def test_the_likeliest_way_is_the_best_of_all(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ways = [np.array([0, 1, 0, 2, 0]), np.array([0, 3, 0])]
        lengths = np.array([6, 4])
        scores = rng.standard_normal((2, 6, 4)).astype(np.float32)
        found = sounds.likeliest(scores, lengths, ways)
        for i, (way, length) in enumerate(zip(ways, lengths, strict=True)):
            best = max(every_way(way, length), key=lambda path: worth(path, way, scores[i]))
            np.testing.assert_array_equal(found[i], way[list(best)])

    def test_a_clip_has_a_frame_for_every_sound(self) -> None:
        with pytest.raises(ValueError, match="a clip has 1 frames and 2 sounds"):
            sounds.likeliest(np.zeros((1, 1, 3), np.float32), np.array([1]), [np.array([0, 1, 0, 2, 0])])

    @pytest.mark.parametrize("total", (10, 17, 50))
    def test_every_sound_has_units_and_the_widest_the_most(self, total: int) -> None:
        n = units.shares([9.0, 1.0, 5.0, 0.0, 2.0], total, first=3)
        assert n.sum() == total and n[0] == 3 and n.min() >= 1
        assert n[2] >= n[4] >= n[1] >= n[3] == 1


def every_way(way: np.ndarray, length: int) -> list[tuple[int, ...]]:
    """All ways of `length` frames through states, where pauses may be left out."""
    paths = [(state,) for state in (0, 1)]
    for _ in range(length - 1):
        paths = [
            (*path, path[-1] + step)
            for path in paths
            for step in (0, 1, 2)
            if path[-1] + step < len(way) and (step < 2 or way[path[-1] + 1] == 0)
        ]
    return [path for path in paths if path[-1] >= len(way) - 2]


def worth(path: tuple[int, ...], way: np.ndarray, scores: np.ndarray) -> float:
    moves = sum(sounds.STAY if a == b else sounds.GO for a, b in itertools.pairwise(path))
    return float(moves + sum(scores[t, way[state]] for t, state in enumerate(path)))


def test_units_and_audio_of_a_crop_are_of_the_same_time() -> None:
    config = networks.UnitsConfig()
    clips = []
    for frames in (30, 80):
        labels = np.arange(100, 100 + frames)
        clips.append((np.repeat(labels * 100, config.hop).astype(np.int16), labels.astype(np.uint16)))
    audio, found = units.crops(clips, np.random.default_rng(0), 12, 1.0, config)
    assert audio.shape == (12, 24_000) and found.shape == (12, 50)
    for row, labels in zip(audio.reshape(12, 50, config.hop).mean(axis=-1), found, strict=True):
        known = labels >= 0
        assert known.sum() in (30, 50)
        np.testing.assert_allclose(row[known] / row[0], labels[known] / labels[0], atol=0.02)
        np.testing.assert_allclose(row[~known] / row[0], 0, atol=0.02)


TONES = {"a": 300.0, "b": 900.0, "c": 2500.0}
"""Of the sounds of a language of three."""


def test_units_are_learnt_from_clips_and_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile, _ = pytest.importorskip("soundfile"), pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    clips, truth = [], {}
    for i in range(14):
        said = "".join(a for a in rng.choice([*TONES], 8))
        split, voice = "heldout" if i > 11 else "train", f"v{i % 3}"
        clips.append(corpus.Clip(f"{voice}/{i}", voice, "kokoro", split, said, False, 1.0, 0, {}, {}))
        lasts = rng.integers(4, 9, len(said))
        truth[clips[-1].id] = np.repeat([1 + [*TONES].index(sound) for sound in said], lasts)
        wave = np.concatenate(
            [np.sin(2 * np.pi * TONES[s] * np.arange(480 * n) / 24_000) for s, n in zip(said, lasts, strict=True)]
        )
        path = corpus.audio_path(tmp_path, clips[-1].id)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * wave + 1e-4 * rng.standard_normal(len(wave)), 24_000)
    corpus.write_lines(tmp_path / "plan.jsonl", [clip.__dict__ for clip in clips])
    heard = [{"id": clip.id, "seconds": 2.0, "errors": 0, "words": 1} for clip in clips]
    corpus.write_lines(tmp_path / "heard.jsonl", heard)
    monkeypatch.setattr(units, "CODES", 6)
    monkeypatch.setattr(units, "RARE", 20)
    monkeypatch.setattr(units, "N_PAUSES", 1)
    monkeypatch.setattr(units, "N_UNITS", 6)
    units.align(tmp_path, bulk=0, rounds=(30, 30), read=lambda text, *, british: text)
    right = [np.load(units.sound_path(tmp_path, id_)) == known for id_, known in truth.items()]
    assert np.mean(np.concatenate(right)) > 0.85
    units.cluster(tmp_path, bulk=0)
    of_sound = units.sound_of_units(tmp_path)
    assert len(of_sound) == 6 and set(of_sound) == {0, 1, 2, 3}
    for clip in clips:
        labels, known = (np.load(path(tmp_path, clip.id)) for path in (units.label_path, units.sound_path))
        np.testing.assert_array_equal(of_sound[labels], known)

    settings = {"bulk": 0, "batch": 2, "seconds": 0.4, "rate": 2e-3, "minutes": 1e9}
    units.train(tmp_path, steps=3, **settings)
    path = tmp_path / "units" / "units.safetensors"
    before = path.read_bytes()
    assert networks.encode(networks.load(path), np.zeros(9600, np.float32)).shape == (20,)
    units.train(tmp_path, steps=3, **settings)  # there is nothing to do
    assert path.read_bytes() == before
    monkeypatch.setattr(units, "N_UNITS", 5)
    with pytest.raises(ValueError, match="was made with other clusters: remove it"):
        units.cluster(tmp_path, bulk=0)
    with pytest.raises(FileNotFoundError, match="run `units align` first"):
        units.cluster(tmp_path / "elsewhere", bulk=0)


def test_units_are_judged_by_frame_and_by_sentence(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("rapidfuzz")
    (tmp_path / "units").mkdir()
    save_units(tmp_path, seed=0)
    network = networks.load(tmp_path / "units" / "units.safetensors")
    rng = np.random.default_rng(0)
    pitch = np.repeat(rng.uniform(0.02, 1, (2, 10)), 2400, axis=1)  # ten tones a second
    said = {f"Line {i}.": 0.5 * np.sin(np.cumsum(x)) for i, x in enumerate(pitch)}
    clips = [
        corpus.Clip(f"{voice}/{i}", voice, "kokoro", "heldout", text, False, 1.0, 0, {}, {})
        for voice in ("a", "b")
        for i, text in enumerate(said)
    ]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(clip.__dict__) + "\n" for clip in clips))
    for clip in clips:
        path, labels = corpus.audio_path(tmp_path, clip.id), units.label_path(tmp_path, clip.id)
        for folder in (path.parent, labels.parent):
            folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, said[clip.text] * (1.0 if clip.voice == "a" else 0.9), 24_000)
        known = networks.encode(network, listen.load(path, 24_000)).astype(np.uint16)
        known[::5] += 1  # 10 of 50 frames
        np.save(labels, known)
    np.savez(units.clusters_path(tmp_path), n=np.array([1, 39]))
    found = evaluate.judge_units(tmp_path)
    assert found == {"unit_agreement": pytest.approx(0.8), "unit_order": 1.0}
    lines = (tmp_path / "evaluation" / "codec" / "units.jsonl").read_text().splitlines()
    for line, clip in zip(lines, clips, strict=True):
        row = json.loads(line)
        assert 40 <= row.pop("sound") <= 50 and row == {"clip": clip.id, "right": 40, "frames": 50}


def test_spectra_of_other_voices_keep_their_time() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.repeat(rng.standard_normal((6, 100, 1)), 80, axis=2) + np.linspace(-1, 1, 80), jnp.float32)
    made = units.disturbed(x, jax.random.key(0))
    assert made.shape == x.shape and np.isfinite(made).all()
    for before, after in zip(np.asarray(x).mean(axis=-1), np.asarray(made), strict=True):
        level = np.median(after, axis=-1)
        same = np.abs(level - before - np.median(level - before)) < 0.3
        assert 0.6 <= same.mean() <= 1.0
    assert not np.array_equal(made, units.disturbed(x, jax.random.key(1)))


def test_kept_rows_are_of_the_kept_codec_and_units() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    made = Path(rows.__file__).parent / "made"
    if not (made / "rows").is_dir():
        pytest.skip("made/rows is not in the source distribution")
    about = json.loads((made / "rows" / "made-from.json").read_text())
    shipped = library.BUNDLED_FOLDER
    assert about == rows.made_from(shipped / "codec.safetensors", shipped / "units.safetensors")
    ids: set[str] = set()
    for path in sorted((made / "rows").glob("*.parquet")):
        found = pq.read_table(path, columns=["id", "split", "text", "voice"]).to_pydict()
        assert set(found["split"]) <= {"train", "validation"} and all(found["text"])
        assert not {name for name in found["voice"] if name.startswith("heldout") or name in corpus.HELD_OUT}
        assert not ids & set(found["id"])
        ids |= set(found["id"])
    assert len(ids) == 15_398 + 10_657


def test_recipe_needs_no_teacher_to_import() -> None:
    assert not {"hibari", "onnxruntime", "faster_whisper"} & set(sys.modules)
