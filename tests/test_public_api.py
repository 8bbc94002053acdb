"""The public door: names and signatures that must not drift, what a call gives back, and the README's examples."""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import bark_jax
import suno_like
from bark_jax import Bark, Chunk, Sampling, Segment, Speech, Split, Voice, VoiceError, audio

ROOT = Path(__file__).parents[1]
SHORT = Sampling(max_duration_s=0.3)
OPTIONS = "voice=None, seed=None, sampling=Sampling(), adapter=None, progress=None"
SPLIT = OPTIONS.replace("progress", "split=True, progress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return suno_like.save(tmp_path_factory.mktemp("public") / "model")


@pytest.fixture(scope="module")
def bark(folder):
    return bark_jax.load(folder, device="cpu")


@pytest.fixture(scope="module")
def speech(bark):
    return bark.generate("Hello, you!", voice="v2/en_speaker_6", seed=7, sampling=SHORT)


class TestNames:
    def test_all(self):
        assert bark_jax.__all__ == [
            "AdapterError", "Bark", "BarkConfig", "BarkWarning", "CheckpointError", "Chunk", "ConfigError", "HubError",
            "Sampling", "SamplingError", "Segment", "Speech", "Split", "SplitError", "TextError", "Voice", "VoiceError",
            "generate", "load",
        ]  # fmt: skip

    def test_each_is_there_and_so_are_the_modules(self):
        """In a new process, where nothing has imported them yet."""
        program = (
            "import bark_jax; assert not {*bark_jax.__all__} - {*dir(bark_jax)}\n"
            "print(bark_jax.audio.__name__, [name for name in bark_jax.__all__ if not hasattr(bark_jax, name)])\n"
            "print(hasattr(bark_jax, 'nothing'), hasattr(bark_jax, '_nothing'), bark_jax.Sampling is bark_jax.Sampling)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:2] == ["bark_jax.audio []", "False False True"]

    @pytest.mark.parametrize(
        ("function", "signature"),
        [
            (
                bark_jax.load,
                "(model='bark-nano', *, dtype=None, device=None, mesh=None, rows=None, adapters=None, offload=False, "
                "revision=None, local_files_only=False, sizes=None)",
            ),
            (bark_jax.generate, "(text, *, model='bark-nano', **options)"),
            (Bark.load, "(model='bark-nano', **options)"),
            (Bark.generate, f"(self, text, *, {SPLIT})"),
            (Bark.stream, f"(self, text, *, {SPLIT}, latency='exact')"),
            (Bark.astream, "(self, text, **options)"),
            (Bark.clone, "(self, audio, sample_rate=None, *, consent=None)"),
            (Bark.count_tokens, "(self, text)"),
            (Bark.check, f"(self, text, *, {SPLIT.removesuffix(', progress=None')})"),
            (Bark.digest, "(self)"),
            (Bark.text_to_semantic, f"(self, text, *, {OPTIONS})"),
            (Bark.semantic_to_coarse, f"(self, semantic, *, {OPTIONS})"),
            (Bark.coarse_to_fine, f"(self, coarse, *, {OPTIONS})"),
            (Bark.decode, "(self, fine)"),
            (Bark.encode, "(self, audio, sample_rate=None)"),
            (Bark.voices, "(self)"),
            (Bark.bases, "(self)"),
            (Speech.save, "(self, path, *, subtype=None, about=None, mark=None)"),
            (Bark.about, "(self, speech, *, voice=None, sampling=Sampling(), adapter=None)"),
            (Voice.load, "(path, name=None)"),
            (Voice.save, "(self, path)"),
            (Sampling.greedy, "()"),
        ],
    )
    def test_signatures(self, function, signature):
        given = inspect.signature(function)
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in given.parameters.values()]
        shown = str(given.replace(parameters=bare, return_annotation=inspect.Signature.empty))
        assert shown.replace(repr(Sampling()), "Sampling()") == signature

    def test_sampling(self):
        fields = {field.name: field.default for field in dataclasses.fields(Sampling)}
        assert list(fields.items()) == [
            ("text_temperature", 0.7),
            ("coarse_temperature", 0.7),
            ("fine_temperature", 0.5),
            ("top_k", None),
            ("top_p", None),
            ("min_eos_p", 0.2),
            ("max_duration_s", None),
            ("allow_early_stop", True),
            ("max_coarse_history", None),  # the model's own most, 630 for Bark
        ]
        greedy = Sampling.greedy()
        assert greedy == Sampling(text_temperature=0, coarse_temperature=0, fine_temperature=0)
        assert hash(greedy) == hash(Sampling.greedy())
        with pytest.raises(dataclasses.FrozenInstanceError):
            greedy.top_k = 3  # type: ignore[misc]

    def test_fields(self):
        assert [field.name for field in dataclasses.fields(Voice)] == ["semantic", "coarse", "fine", "model", "consent"]
        names = [field.name for field in dataclasses.fields(Speech)]
        assert names == [
            "audio", "sample_rate", "text", "seed", "ended", "rows", "semantic", "coarse", "fine", "model", "segments",
            "timings", "last",
        ]  # fmt: skip
        assert isinstance(inspect.getattr_static(Speech, "voice"), property)
        assert [field.name for field in dataclasses.fields(Segment)] == [
            "text", "start", "end", "seed", "ended", "attempts",
        ]  # fmt: skip
        assert [field.name for field in dataclasses.fields(Chunk)] == [
            "audio", "sample_rate", "start", "segment", "text",
        ]  # fmt: skip
        assert {field.name: field.default for field in dataclasses.fields(Split)} == {
            "voice": None, "max_duration_s": None, "retries": 2, "pause_s": 0.3, "trim": True, "language": None,
        }  # fmt: skip

    def test_errors_are_of_the_two_kinds(self):
        for name in (
            "AdapterError",
            "CheckpointError",
            "ConfigError",
            "SamplingError",
            "SplitError",
            "TextError",
            "VoiceError",
        ):
            assert issubclass(getattr(bark_jax, name), ValueError)
        assert issubclass(bark_jax.HubError, OSError)
        assert issubclass(bark_jax.BarkWarning, UserWarning)


def test_without_torch_a_model_loads_and_conversion_says_what_it_needs(folder, tmp_path):
    (tmp_path / "suno").mkdir()
    for name in ("text.pt", "coarse.pt", "fine.pt"):
        (tmp_path / "suno" / name).write_bytes(b"")
    program = f"""
import sys
BLOCKED = ("torch", "torchaudio", "transformers", "encodec", "bark")
sys.modules.update(dict.fromkeys(BLOCKED))
import bark_jax
print(bark_jax.load({str(folder)!r}, device="cpu").voices()[:2])
try:
    bark_jax.load({str(tmp_path / "suno")!r})
except ModuleNotFoundError as error:
    print(error)
print([name for name in BLOCKED if sys.modules[name] is not None])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    voices, needs, imported = done.stdout.strip().split("\n")
    assert voices == str(suno_like.NAMES)
    assert "torch" in needs and "bark-jax[convert]" in needs
    assert imported == "[]"


class TestReadme:
    def test_every_example_runs(self, folder, tmp_path, monkeypatch):
        """As written: folders of the names that the examples load stand in the current folder."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("BARK_JAX_SUNO_MODEL", str(folder))
        for name in ("suno/bark-small", "models/small"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).symlink_to(folder)
        monkeypatch.setattr("bark_jax.suno.generation._model", None)
        readme = (ROOT / "README.md").read_text("utf-8")
        examples = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
        assert len(examples) >= 3
        seen: dict[str, object] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bark_jax.BarkWarning)  # 40 tokens are this model's limit
            for example in examples:
                names: dict[str, object] = {}
                exec(compile(example, "README.md", "exec"), names)
                seen.update(names)
        assert (tmp_path / "hello.wav").stat().st_size > 1_000
        assert (tmp_path / "mine.npz").exists()
        codes, wave = seen["codes"], seen["audio"]
        assert isinstance(codes, np.ndarray) and codes.shape == (8, suno_like.N_FRAMES)
        assert isinstance(wave, np.ndarray) and wave.dtype == np.float32

    def test_the_module_level_call(self, folder, monkeypatch):
        a, b = (bark_jax.generate("Hello", model=str(folder), seed=3, sampling=SHORT) for _ in range(2))
        np.testing.assert_array_equal(a.audio, b.audio)
        assert bark_jax._loaded(str(folder)) is bark_jax._loaded(str(folder))


class TestSpeech:
    def test_what_is_in_it(self, bark, speech):
        n, frames = len(speech.semantic), speech.fine.shape[1]
        assert n == 15 and frames == int(n * 75 / 49.9)
        assert speech.coarse.shape == (2, frames) and speech.fine.shape == (8, frames)
        np.testing.assert_array_equal(speech.coarse, speech.fine[:2])
        assert speech.audio.shape == (320 * frames,) and speech.audio.dtype == np.float32
        assert all(part.dtype == np.int32 for part in (speech.semantic, speech.coarse, speech.fine))
        assert (speech.sample_rate, speech.text, speech.seed, speech.rows) == (24_000, "Hello, you!", 7, 1)
        assert speech.model == bark.config.fingerprint == "suno"
        assert speech.duration == pytest.approx(frames / 75)
        assert speech.segments == (Segment("Hello, you!", 0.0, speech.duration, 7, speech.ended),)
        assert list(speech.timings) == ["semantic", "coarse", "fine", "codec"]
        assert all(seconds > 0 for seconds in speech.timings.values())

    def test_is_an_array(self, speech):
        assert np.asarray(speech) is speech.audio
        assert np.array(speech) is not speech.audio
        assert np.asarray(speech, np.float64).dtype == np.float64
        np.testing.assert_array_equal(np.concatenate([speech, speech]), np.tile(speech.audio, 2))

    def test_repr(self, speech):
        assert (
            repr(speech)
            == f"Speech({speech.duration:.2f} s at 24000 Hz, text='Hello, you!', seed=7, ended={speech.ended})"
        )

    @pytest.mark.parametrize(
        ("name", "options", "tolerance"),
        [("a.wav", {}, 2**-16), ("a.wav", {"subtype": "float"}, 0), ("a.WAV", {"subtype": "pcm16"}, 2**-16),
         ("a.flac", {}, 2**-16), ("a.ogg", {}, 0.2)],
    )  # fmt: skip
    def test_save(self, tmp_path, name, options, tolerance):
        made = suno_like.speech()
        made.save(tmp_path / name, **options)
        read = audio.read(tmp_path / name, 24_000)
        assert read.shape == made.audio.shape
        np.testing.assert_allclose(read, made.audio, atol=tolerance)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_only_sixteen_bits_clip(self, tmp_path):
        loud = suno_like.speech(audio=np.array([0.0, 1.5, -1.5], np.float32))
        loud.save(tmp_path / "float.wav", subtype="float")
        loud.save(tmp_path / "pcm.wav")
        np.testing.assert_array_equal(audio.read(tmp_path / "float.wav", 24_000), loud.audio)
        np.testing.assert_allclose(audio.read(tmp_path / "pcm.wav", 24_000), [0, 1, -1], atol=1e-4)

    def test_player(self):
        page = suno_like.speech()._repr_html_()
        assert page.startswith('<audio controls src="data:audio/wav;base64,UklGR')
        assert html.escape("Hi <you>") in page and "<you>" not in page and "seed 7" in page
        empty = suno_like.speech(audio=np.zeros(0, np.float32))._repr_html_()
        assert "empty speech" in empty and "<audio" not in empty and "<you>" not in empty

    def test_voice(self, speech, tmp_path):
        assert speech.voice == Voice(speech.semantic, speech.coarse, speech.fine, "suno")
        speech.voice.save(tmp_path / "mine.npz")
        assert Voice.load(tmp_path / "mine.npz") == speech.voice
        nothing = suno_like.speech(semantic=np.zeros(0, np.int32))
        with pytest.raises(VoiceError, match="empty"):
            _ = nothing.voice


class TestCalls:
    def test_a_list_in_a_list_out(self, bark):
        one = bark.generate("Hello", seed=1, sampling=SHORT)
        for texts in (["Hello"], ("Hello",)):
            many = bark.generate(texts, seed=[1], sampling=[SHORT])
            assert isinstance(many, list) and len(many) == 1
            np.testing.assert_array_equal(many[0].audio, one.audio)
        assert bark.generate([]) == bark.text_to_semantic([]) == bark.decode([]) == bark.encode([]) == []

    def test_one_value_serves_all_and_a_list_each(self, bark):
        both = bark.generate(["Hello", "You"], voice=["v2/de_speaker_3", None], seed=(1, 2), sampling=SHORT)
        assert [speech.seed for speech in both] == [1, 2] and [speech.text for speech in both] == ["Hello", "You"]
        same = bark.generate(["Hello", "Hello"], voice="v2/de_speaker_3", seed=1, sampling=SHORT)
        np.testing.assert_array_equal(same[0].audio, same[1].audio)
        np.testing.assert_array_equal(same[0].semantic, both[0].semantic)
        unseeded = bark.generate(["Hello", "Hello"], sampling=SHORT)
        assert unseeded[0].seed != unseeded[1].seed

    def test_stages_take_lists_too(self, bark, speech):
        words = bark.text_to_semantic(["Hello, you!"], voice="v2/en_speaker_6", seed=7, sampling=SHORT)
        np.testing.assert_array_equal(words[0], speech.semantic)
        two = bark.semantic_to_coarse(words, voice=["v2/en_speaker_6"], seed=[7])
        np.testing.assert_array_equal(two[0], speech.coarse)
        eight = bark.coarse_to_fine(tuple(two), voice="v2/en_speaker_6", seed=7)
        np.testing.assert_array_equal(eight[0], speech.fine)
        np.testing.assert_array_equal(bark.decode(eight)[0], speech.audio)

    def test_voices_in_every_form_mean_the_same(self, bark, speech, tmp_path):
        assert set(suno_like.NAMES) <= set(bark.voices())
        made = suno_like.voice(suno_like.NAMES.index("v2/en_speaker_6"))
        for ending in ("npz", "safetensors", "npy"):
            made.save(tmp_path / f"v.{ending}")
        forms = [made, made.to_dict(), tmp_path / "v.npz", str(tmp_path / "v.safetensors"), tmp_path / "v.npy"]
        for form in forms:
            words = bark.text_to_semantic("Hello, you!", voice=form, seed=7, sampling=SHORT)
            np.testing.assert_array_equal(words, speech.semantic)

    @pytest.mark.parametrize("n", [1, 319, 320, 321, 9_000])
    def test_encode_and_decode(self, bark, n):
        clip = (0.1 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
        codes = bark.encode(clip)
        assert codes.shape == (8, -(-n // 320)) and codes.dtype == np.int32
        assert codes.min() >= 0 and codes.max() < 1024
        again = bark.decode(codes)
        assert again.shape == (codes.shape[1] * 320,) and again.dtype == np.float32
        assert bark.encode(again).shape == codes.shape

    def test_fewer_codebooks_decode_too(self, bark, speech):
        three = bark.decode(speech.fine[:3])
        assert three.shape == speech.audio.shape and not np.array_equal(three, speech.audio)
        mixed = bark.decode([speech.fine[:3], speech.fine])
        np.testing.assert_allclose(mixed[0], three, atol=1e-5)
        np.testing.assert_allclose(mixed[1], speech.audio, atol=1e-5)

    def test_encode_resamples(self, bark):
        clip = np.sin(np.arange(4_410) / 9).astype(np.float32)
        at_24k = audio.resample(clip, 44_100, 24_000)
        assert at_24k.shape == (2_400,)
        np.testing.assert_array_equal(bark.encode(clip, sample_rate=44_100), bark.encode(at_24k))
        np.testing.assert_array_equal(bark.encode([clip], 44_100)[0], bark.encode(at_24k, 24_000))
        assert bark.encode(clip).shape == (8, 14) and bark.encode(clip, 44_100).shape == (8, 8)

    def test_progress(self, bark, capsys):
        calls: list[tuple[str, int, int]] = []
        bark.generate(["Hello", "You"], seed=1, sampling=SHORT, progress=lambda *call: calls.append(call))
        stages = list(dict.fromkeys(stage for stage, _, _ in calls))
        assert stages == ["semantic", "coarse", "fine"]
        for stage in stages:
            done = [done for name, done, _ in calls if name == stage]
            totals = {total for name, _, total in calls if name == stage}
            assert len(totals) == 1 and done == sorted(done) and done[-1] == totals.pop()
        assert calls == sorted(calls, key=lambda call: stages.index(call[0]))
        bark.generate("Hello", seed=1, sampling=SHORT, progress=True)  # stderr is no terminal here
        assert capsys.readouterr() == ("", "")

    def test_progress_on_a_terminal(self, bark, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        bark.generate("Hello", seed=1, sampling=SHORT, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        for stage in ("semantic", "coarse", "fine"):
            assert re.search(rf"{stage}: 100%", err)

    def test_repr_and_attributes(self, bark, folder):
        assert repr(bark) == f"Bark({str(folder)!r}, float32, {bark.device})"
        assert bark.device.platform == "cpu" and bark.dtype == "float32"
        counts = bark.parameters()
        assert list(counts) == ["semantic", "coarse", "fine", "codec"] and min(counts.values()) > 1_000
