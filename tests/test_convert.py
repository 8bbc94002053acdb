"""Laws of the converter: what goes in comes out, bit for bit; what does not belong is refused; nothing is half done.

Sources are written by torch and by transformers' own classes in the published formats (``checkpoints``); results are
compared with Suno's, EnCodec's and transformers' own networks, or bit for bit with the tensors that went in.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax.numpy as jnp  # noqa: E402
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402

import checkpoints as C  # noqa: E402
from bark_jax import weights  # noqa: E402
from bark_jax.config import BarkConfig  # noqa: E402
from bark_jax.text import load_tokenizer  # noqa: E402
from convert import ConversionError, convert  # noqa: E402
from convert import __main__ as command  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"text": (2, 2, 8), "coarse": (1, 2, 12), "fine": (1, 2, 16)}
CODEC = {"n_filters": 4, "dimension": 16}
NETWORKS = {"text": "semantic", "coarse": "coarse", "fine": "fine"}


def quiet(line: str) -> None:
    """Swallow progress lines."""


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    return C.write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt")


@pytest.fixture(scope="session")
def suno(tmp_path_factory, vocabulary) -> Path:
    """A whole folder as Suno publishes it, with codec and vocabulary: converts offline. Not to be changed."""
    folder = tmp_path_factory.mktemp("suno")
    C.write_suno(folder, SIZES, masks=True)
    C.write_encodec(folder, **CODEC)
    shutil.copy(vocabulary, folder)
    return folder


@pytest.fixture(scope="session")
def converted(suno, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(suno, folder, log=quiet)
    return folder


@pytest.fixture(scope="session")
def hf(tmp_path_factory, vocabulary) -> Path:
    """A Hugging Face folder with the same weights as `suno`. Not to be changed."""
    folder = C.write_hf(tmp_path_factory.mktemp("hf"), SIZES, codec=CODEC)
    shutil.copy(vocabulary, folder)
    return folder


@pytest.fixture
def copy(tmp_path):
    """Copy a folder, to be broken."""

    def make(folder: Path) -> Path:
        target = tmp_path / "source"
        shutil.copytree(folder, target)
        return target

    return make


def tensors(folder: Path, network: str) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / f"{network}.safetensors")


def assert_same(a: Path, b: Path, networks=weights.NETWORKS) -> None:
    for network in networks:
        left, right = tensors(a, network), tensors(b, network)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert np.array_equal(left[name], right[name]), (network, name)


def expected_gpt(state) -> dict[str, np.ndarray]:
    """What Suno's state dict must become, by string replacement alone."""
    out, tables = {}, {}
    for name, tensor in state.items():
        if name.endswith(".attn.bias") or name.startswith("lm_heads."):
            continue
        if name.startswith("transformer.wtes."):
            tables[int(name.split(".")[2])] = tensor.numpy()
            continue
        out[re.sub(r"^h\.", "blocks.", name.removeprefix("transformer."))] = tensor.numpy()
    if tables:
        out["wtes.weight"] = np.stack([tables[q] for q in range(8)])
    return out


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (SIZES, {"small": True, "masks": True}),
        (SIZES, {"small": False, "bias": True, "numpy_names": "current", "prefix": False, "optimizer_state": False}),
        (
            {"text": (1, 4, 16), "coarse": (3, 1, 8), "fine": (2, 3, 24)},
            {
                "small": {"text": True, "coarse": False, "fine": True},
                "single_vocabulary": ("coarse", "fine"),
                "seed": 4,
            },
        ),
        (
            {"text": (1, 1, 8), "coarse": (1, 1, 8), "fine": (2, 1, 8)},
            {"bias": True, "masks": True, "single_vocabulary": (), "seed": 5},
        ),
    ],
    ids=["small", "large-bias-numpy2-unprefixed", "mixed", "bias-masks"],
)
def test_every_tensor_of_suno_arrives_bit_for_bit(tmp_path, vocabulary, sizes, options):
    source = tmp_path / "suno"
    C.write_suno(source, sizes, **options)
    C.write_encodec(source, **CODEC)
    report = convert(source, tmp_path / "out", tokenizer=vocabulary, log=quiet)
    config = BarkConfig.load(tmp_path / "out" / "config.json")
    bias, seed = options.get("bias", False), options.get("seed", 0)
    for stage, network in NETWORKS.items():
        part = getattr(config, network).network
        assert (part.n_layer, part.n_head, part.n_embd) == sizes[stage]
        assert part.bias == bias
        expected = expected_gpt(C.gpt_state(stage, sizes[stage], bias=bias, seed=seed))
        found = tensors(tmp_path / "out", network)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert np.array_equal(found[name], tensor), name
        assert report.parameters[network] == sum(tensor.size for tensor in expected.values())
    assert config.fine.network.tied and report.tied
    weights.read(tmp_path / "out")  # complete, finite, of the config's shapes


def test_pickles_carry_the_published_globals_in_both_spellings(tmp_path):
    for spelling, module in (("published", b"numpy.core."), ("current", b"numpy._core")):
        path = C.write_suno_stage(tmp_path / f"{spelling}.pt", "fine", (1, 1, 8), numpy_names=spelling)
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        assert b"c" + module in content
        for name in (
            b"torch._utils\n_rebuild_tensor_v2",
            b"torch\nFloatStorage",
            b"collections\nOrderedDict",
            b"numpy\ndtype",
            b"_codecs\nencode",
        ):
            assert name in content


def test_codec_equals_encodec_bit_for_bit(converted, suno):
    reference = C.encodec_model(suno / C.CODEC_FILE, **CODEC)
    with torch.no_grad():
        reference.decode([(torch.zeros(1, 8, 4, dtype=torch.long), None)])  # weight norm is applied by a forward pass
        reference.encoder(torch.zeros(1, 1, 640))
    ours = tensors(converted, "codec")
    conv = reference.encoder.model[0].conv.conv
    assert np.array_equal(ours["encoder.conv_in.weight"], conv.weight.detach().permute(2, 1, 0).numpy())
    assert np.array_equal(ours["encoder.conv_in.bias"], conv.bias.detach().numpy())
    for stage in range(4):
        up = reference.decoder.model[3 + 3 * stage].convtr.convtr
        assert np.array_equal(ours[f"decoder.stages.{stage}.up.weight"], up.weight.detach().permute(0, 2, 1).numpy())
        block = reference.decoder.model[4 + 3 * stage]
        for module, name in ((block.block[1], "conv1"), (block.block[3], "conv2"), (block.shortcut, "shortcut")):
            found = ours[f"decoder.stages.{stage}.residuals.0.{name}.weight"]
            assert np.array_equal(found, module.conv.conv.weight.detach().permute(2, 1, 0).numpy())
        down = reference.encoder.model[3 + 3 * stage].conv.conv
        assert np.array_equal(
            ours[f"encoder.stages.{stage}.down.weight"], down.weight.detach().permute(2, 1, 0).numpy()
        )
    lstm = reference.encoder.model[13].lstm
    assert np.array_equal(ours["encoder.lstm.layers.1.weight_hh"], lstm.weight_hh_l1.detach().numpy())
    summed = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().numpy()
    assert np.array_equal(ours["encoder.lstm.layers.0.bias"], summed)
    books = np.stack([layer._codebook.embed.numpy() for layer in reference.quantizer.vq.layers[:8]])
    assert np.array_equal(ours["quantizer.codebooks"], books)


def test_logits_equal_sunos(converted, suno):
    _, _, loaded = weights.read(converted)
    ids = np.random.default_rng(0).integers(0, 12_000, (2, 40))
    for stage, network in (("text", "semantic"), ("coarse", "coarse")):
        module = loaded[network].module
        ours = module.logits(module.hidden(module.embed(jnp.asarray(ids)))[:, -1])
        with torch.no_grad():
            theirs, _ = C.suno_model(suno / f"{stage}.pt")(torch.from_numpy(ids))
        np.testing.assert_allclose(ours, theirs[:, 0].numpy(), atol=1e-4)
    codes = ids[0, :, None] * np.arange(1, 9) % 1056
    with torch.no_grad():
        theirs = C.suno_model(suno / "fine.pt")(5, torch.from_numpy(codes)[None])
    np.testing.assert_allclose(loaded["fine"].module(5, jnp.asarray(codes[None])), theirs.numpy(), atol=1e-4)


def test_heads_of_other_codebooks_are_untied(tmp_path, suno, vocabulary):
    """With two codebooks given, Suno's head of codebook k shares the table of codebook k - 1: ours cannot."""
    source = tmp_path / "suno"
    C.write_suno(source, {k: v for k, v in SIZES.items() if k != "fine"})
    C.write_suno_stage(source / "fine.pt", "fine", SIZES["fine"], n_codes_given=2)
    report = convert(source, tmp_path / "out", tokenizer=vocabulary, codec=suno / C.CODEC_FILE, log=quiet)
    assert not report.tied
    _, _, loaded = weights.read(tmp_path / "out")
    codes = np.random.default_rng(0).integers(0, 1024, (1, 30, 8))
    for codebook in (2, 7):
        with torch.no_grad():
            theirs = C.suno_model(source / "fine.pt")(codebook, torch.from_numpy(codes))
        np.testing.assert_allclose(loaded["fine"].module(codebook, jnp.asarray(codes)), theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_norm": "new"},
        {"safetensors": True},
        {"safetensors": True, "weight_norm": "new"},
        {"safetensors": True, "weight_norm": "new", "max_shard_size": "2MB"},
    ],
    ids=["bin-old", "bin-new", "safetensors-old", "safetensors-new", "sharded"],
)
def test_hugging_face_gives_what_suno_gives(tmp_path, vocabulary, converted, options):
    source = C.write_hf(tmp_path / "hf", SIZES, codec=CODEC, **options)
    assert ("max_shard_size" in options) == (source / "model.safetensors.index.json").exists()
    report = convert(source, tmp_path / "out", tokenizer=vocabulary, log=quiet)
    assert report.tied
    assert_same(tmp_path / "out", converted)
    assert (tmp_path / "out" / "config.json").read_text() == (converted / "config.json").read_text()


@pytest.mark.parametrize("safe", [False, True])
def test_untied_heads_of_hugging_face(tmp_path, vocabulary, safe):
    source = C.write_hf(tmp_path / "hf", SIZES, codec=CODEC, tied=False, bias=True, safetensors=safe, weight_norm="new")
    report = convert(source, tmp_path / "out", tokenizer=vocabulary, log=quiet)
    assert not report.tied
    config, _, loaded = weights.read(tmp_path / "out")
    assert not config.fine.network.tied and config.fine.network.bias
    codes = np.random.default_rng(0).integers(0, 1024, (1, 30, 8))
    with torch.no_grad():
        theirs = C.hf_model(source).fine_acoustics(4, torch.from_numpy(codes)).logits
    np.testing.assert_allclose(loaded["fine"].module(4, jnp.asarray(codes)), theirs.numpy(), atol=1e-4)


def test_heads_that_equal_the_tables_count_as_tied(tmp_path, hf, copy):
    source = copy(hf)
    tree = json.loads((source / "config.json").read_text())
    tree["fine_acoustics_config"]["tie_word_embeddings"] = False
    (source / "config.json").write_text(json.dumps(tree))
    assert convert(source, tmp_path / "out", log=quiet).tied


@pytest.mark.parametrize("kind", ["file", "hf-safetensors", "hf-bin", "folder"])
def test_codec_from_elsewhere(tmp_path, copy, suno, converted, kind):
    source = copy(suno)
    (source / C.CODEC_FILE).rename(tmp_path / C.CODEC_FILE)
    if kind == "file":
        codec = tmp_path / C.CODEC_FILE
    elif kind == "folder":
        codec = tmp_path / "folder"
        codec.mkdir()
        (tmp_path / C.CODEC_FILE).rename(codec / C.CODEC_FILE)
    else:
        safe = kind == "hf-safetensors"
        codec = C.write_hf_encodec(tmp_path / "codec", safetensors=safe, weight_norm="new" if safe else "old", **CODEC)
    convert(source, tmp_path / "out", codec=codec, log=quiet)
    assert_same(tmp_path / "out", converted, ["codec"])


def test_codec_argument_wins_over_the_one_inside(tmp_path, hf, converted):
    other = C.write_encodec(tmp_path, seed=9, **CODEC)
    report = convert(hf, tmp_path / "out", codec=other, log=quiet)
    assert any(str(other) in note for note in report.notes)
    assert_same(tmp_path / "out", converted, ["semantic", "coarse", "fine"])
    assert not np.array_equal(
        tensors(tmp_path / "out", "codec")["quantizer.codebooks"], tensors(converted, "codec")["quantizer.codebooks"]
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_filters": 2, "dimension": 8, "lstm_layers": 1},
        {"n_filters": 4, "dimension": 8, "n_residual_layers": 2, "lstm_layers": 0, "kernel_size": 5},
        {
            "n_filters": 8,
            "dimension": 12,
            "ratios": (10, 8, 4),
            "compress": 4,
            "last_kernel_size": 3,
            "residual_kernel_size": 5,
            "codebook_size": 1024,
            "n_codebooks": 8,
        },
    ],
)
def test_codec_sizes_are_read_from_the_shapes(tmp_path, copy, suno, sizes):
    source = copy(suno)
    C.write_encodec(source, **sizes)
    report = convert(source, tmp_path / "out", verify=True, log=quiet)
    config = BarkConfig.load(tmp_path / "out" / "config.json").codec
    for key, value in sizes.items():
        if key != "n_codebooks":
            assert getattr(config, key) == value
    assert sum("verified" in note for note in report.notes) == 4


def test_old_torch_files_without_an_archive_are_read(tmp_path, copy, suno, converted):
    source = copy(suno)
    state = torch.load(source / C.CODEC_FILE, weights_only=True)
    torch.save(state, source / C.CODEC_FILE, _use_new_zipfile_serialization=False)
    convert(source, tmp_path / "out", log=quiet)
    assert_same(tmp_path / "out", converted, ["codec"])


def test_tokenizer_from_vocab_txt_json_and_argument(tmp_path, copy, suno, converted):
    text = (converted / "tokenizer.json").read_text("utf-8")
    assert load_tokenizer(text).get_vocab_size() == 119_547
    source = copy(suno)
    (source / "vocab.txt").unlink()
    (source / "tokenizer.json").write_text(text, "utf-8")
    convert(source, tmp_path / "a", log=quiet)
    assert (tmp_path / "a" / "tokenizer.json").read_text("utf-8") == text
    (source / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    convert(source, tmp_path / "b", tokenizer=tmp_path, log=quiet)
    assert (tmp_path / "b" / "tokenizer.json").read_text("utf-8") == text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_dtypes_cast_tables_and_linears_only(tmp_path, suno, converted, dtype):
    report = convert(suno, tmp_path / "out", dtype=dtype, verify=True, log=quiet)
    assert report.dtype == dtype
    for network in ("semantic", "fine"):
        full = tensors(converted, network)
        for name, tensor in tensors(tmp_path / "out", network).items():
            if tensor.ndim < 2:
                assert tensor.dtype == np.float32 and np.array_equal(tensor, full[name])
            else:
                low = torch.from_numpy(full[name]).to(getattr(torch, dtype)).float().numpy()
                assert tensor.dtype.name == dtype and np.array_equal(tensor.astype(np.float32), low)
    assert_same(tmp_path / "out", converted, ["codec"])
    weights.read(tmp_path / "out", dtype="bfloat16")


def test_both_sizes_and_a_choice(tmp_path, copy, suno, converted):
    source = copy(suno)
    C.write_suno(source, {"text": (1, 1, 8), "fine": (1, 1, 8)}, small=False, seed=3)
    convert(source, tmp_path / "a", sizes="small", log=quiet)
    assert_same(tmp_path / "a", converted)
    report = convert(source, tmp_path / "b", sizes={"text": "large", "fine": "small"}, log=quiet)
    assert set(report.files) == {"text_2.pt", "coarse.pt", "fine.pt", C.CODEC_FILE}
    assert BarkConfig.load(tmp_path / "b" / "config.json").semantic.network.n_layer == 1
    assert_same(tmp_path / "b", converted, ["coarse", "fine"])


def test_generation_config_of_hugging_face_sets_the_ids(tmp_path, hf, copy):
    source = copy(hf)
    tree = json.loads((source / "generation_config.json").read_text())
    tree["semantic_config"]["max_new_tokens"] = 500
    tree["coarse_acoustics_config"]["max_coarse_history"] = 600
    (source / "generation_config.json").write_text(json.dumps(tree))
    convert(source, tmp_path / "out", log=quiet)
    config = BarkConfig.load(tmp_path / "out" / "config.json")
    assert (config.semantic.max_tokens, config.coarse.max_history, config.fine.max_history) == (500, 600, 512)


def test_report_tells_what_was_done(tmp_path, suno):
    lines: list[str] = []
    report = convert(suno, tmp_path / "out", log=lines.append)
    text = str(report)
    for word in ("text.pt", "semantic", "float32", "left out", "differs: not the file Suno published", str(tmp_path)):
        assert word in text
    assert report.written_bytes == 4 * sum(report.parameters.values())
    assert report.ignored == {"semantic": 2, "coarse": 1, "fine": 7, "codec": 32 * 3 + 24}
    assert lines and report.seconds > 0


def test_verify_notices_a_wrong_transform(tmp_path, suno, monkeypatch):
    from convert import transforms

    flipped = transforms.TRANSFORMS["up"]._replace(
        apply=lambda parts: transforms._convolution((0, 2, 1))(parts).flip(1)
    )
    monkeypatch.setitem(transforms.TRANSFORMS, "up", flipped)
    with pytest.raises(ConversionError, match="codec: converted and original weights disagree"):
        convert(suno, tmp_path / "out", verify=True, log=quiet)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ bad input


def edit(path: Path, change) -> None:
    """Change the content of a ``.pt`` file."""
    content = C.load_suno_file(path)
    change(content)
    C._save(content, path)


def on_model(change):
    def run(folder: Path, name: str = "text.pt") -> None:
        edit(folder / name, lambda content: change(content["model"]))

    return run


def on_args(**values):
    def run(folder: Path) -> None:
        edit(folder / "text.pt", lambda content: content["model_args"].update(values))

    return run


def _nan(state) -> None:
    state["_orig_mod.transformer.h.0.mlp.c_fc.weight"][3, 3] = float("nan")
    state["_orig_mod.transformer.ln_f.weight"][0] = float("inf")


def _write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def _cut(name: str, share: float):
    def run(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return run


def _hole(folder: Path) -> None:
    """A tensor that claims more than its storage holds, by strides of zero."""
    edit(folder / "text.pt", lambda content: content["model"].update(x=torch.zeros(1).expand(1 << 20, 1 << 20)))


def _codec(change):
    def run(folder: Path) -> None:
        state = torch.load(folder / C.CODEC_FILE, weights_only=True)
        change(state)
        torch.save(state, folder / C.CODEC_FILE)

    return run


BLOCK = "_orig_mod.transformer.h.0."
BAD_SUNO = {
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "holds no Bark.*no files"),
    "one file missing": (lambda f: (f / "coarse.pt").unlink(), r"lacks coarse.pt \(small\) or coarse_2.pt"),
    "both sizes": (
        lambda f: shutil.copy(f / "text.pt", f / "text_2.pt"),
        r"choose with --size small\|large or --text-size small\|large",
    ),
    "stages swapped": (lambda f: (f / "fine.pt").replace(f / "coarse.pt"), "lacks fine.pt"),
    "renamed coarse to text": (
        lambda f: shutil.copy(f / "coarse.pt", f / "text.pt"),
        "SemanticConfig.text_pad_token is 129595",
    ),
    "renamed text to fine": (lambda f: shutil.copy(f / "text.pt", f / "fine.pt"), "model_args lacks n_codes_total"),
    "renamed fine to text": (lambda f: shutil.copy(f / "fine.pt", f / "text.pt"), "unknown key.*n_codes_given"),
    "empty file": (_write("text.pt", b""), "is empty"),
    "text file": (_write("text.pt", b"version https://git-lfs.github.com/spec/v1\n"), "must be a zip archive"),
    "cut at half": (_cut("text.pt", 0.5), "damaged or cut short"),
    "cut by a byte": (lambda f: _cut("text.pt", 1 - 1e-7)(f), "damaged or cut short"),
    "tensor missing": (
        on_model(lambda s: s.pop(BLOCK + "attn.c_proj.weight")),
        r"nothing.*blocks.0.attn.c_proj.weight",
    ),
    "table missing": (on_model(lambda s: s.pop("_orig_mod.transformer.wte.weight")), "lacks transformer.wte.weight"),
    "layer missing": (
        on_model(lambda s: [s.pop(k) for k in list(s) if ".h.1." in k]),
        "the settings say 2 layers, the file holds 1",
    ),
    "extra tensor": (on_model(lambda s: s.update(adapter=torch.zeros(3))), r"adapter \(3,\) is unknown"),
    "extra bias": (
        on_model(lambda s: s.update({BLOCK + "mlp.c_fc.bias": torch.zeros(32)})),
        "the config has no place for blocks.0.mlp.c_fc.bias",
    ),
    "same name twice": (
        on_model(lambda s: s.update({"lm_head.weight": torch.zeros(10_048, 8)})),
        "twice, with and without the prefix",
    ),
    "wrong shape": (
        on_model(lambda s: s.update({BLOCK + "mlp.c_fc.weight": torch.zeros(31, 8)})),
        r"blocks.0.mlp.c_fc.weight must be \(32, 8\), its source gives \(31, 8\)",
    ),
    "transposed": (
        on_model(lambda s: s.update({BLOCK + "attn.c_attn.weight": torch.zeros(8, 24)})),
        r"must be \(24, 8\)",
    ),
    "nan": (on_model(_nan), "2 problems.*\n.*c_fc.weight holds NaN or infinity\n.*ln_f.weight holds NaN"),
    "integers": (
        on_model(lambda s: s.update({"_orig_mod.transformer.ln_f.weight": torch.zeros(8, dtype=torch.int64)})),
        "is torch.int64: weights must be floating point",
    ),
    "no tensor": (on_model(lambda s: s.update(x=[1, 2])), "'x'.*is list, where a tensor must be"),
    "tensor of holes": (_hole, r"claims shape \(1048576, 1048576\), its data has 4 bytes"),
    "sparse": (on_model(lambda s: s.update(x=torch.zeros(3).to_sparse())), "names torch._utils._rebuild_sparse_tensor"),
    "no model": (
        lambda f: edit(f / "text.pt", lambda c: c.pop("model")),
        "must hold model and model_args, it has model_",
    ),
    "no model_args": (lambda f: edit(f / "text.pt", lambda c: c.pop("model_args")), "must hold model and model_args"),
    "bare tensor": (
        lambda f: torch.save(torch.zeros(3), f / "text.pt"),
        "must hold model and model_args, it has no keys",
    ),
    "unknown setting": (on_args(rotary=True), "unknown key.*rotary"),
    "setting of wrong type": (on_args(n_layer="2"), "n_layer is '2': it must be a positive integer"),
    "setting of bool": (on_args(n_head=True), "n_head is True: it must be a positive integer"),
    "negative width": (on_args(n_embd=-8), "n_embd is -8"),
    "a billion layers": (on_args(n_layer=10**9), "n_layer is 1000000000: it must be 1 to 256"),
    "huge width": (on_args(n_embd=10**12), "the settings say .129600, 1000000000000"),
    "heads do not divide": (on_args(n_head=3), "multiple of n_head = 3"),
    "other vocabulary": (on_args(input_vocab_size=129_601), r"the settings say \(129601, 8\)"),
    "short context": (on_args(block_size=512), r"shape \(1024, 8\), the settings say \(512, 8\)"),
    "untied fine": (
        lambda f: edit(
            f / "fine.pt",
            lambda c: c["model"].update({"_orig_mod.lm_heads.2.weight": torch.zeros(1056, 16)}),
        ),
        "lm_heads.2.weight differs from transformer.wtes.3.weight",
    ),
    "codec missing tensor": (
        _codec(lambda s: s.pop("decoder.model.6.convtr.convtr.weight_g")),
        "is made of g and v, found v",
    ),
    "codec of lost codebook": (
        _codec(lambda s: s.pop("quantizer.vq.layers.3._codebook.embed")),
        "quantizer.codebooks is made of numbers 0 to n - 1, found 0, 1, 2, 4",
    ),
    "codec zero norm": (
        _codec(lambda s: s["encoder.model.0.conv.conv.weight_v"].zero_()),
        "encoder.conv_in.weight is not finite",
    ),
    "codec extra": (_codec(lambda s: s.update(lm=torch.zeros(2))), "lm .2,. is unknown"),
    "codec stereo": (
        _codec(lambda s: s.update({"encoder.model.0.conv.conv.weight_v": torch.zeros(4, 2, 7)})),
        "takes 2 channels",
    ),
    "codec 48 kHz": (
        _codec(lambda s: s.update({"encoder.model.0.conv.norm.weight": torch.zeros(4)})),
        "group norms, as encodec_48khz",
    ),
    "codec is something else": (lambda f: shutil.copy(f / "fine.pt", f / C.CODEC_FILE), "'model' is.*where a tensor"),
    "two codecs": (lambda f: shutil.copy(f / C.CODEC_FILE, f / "encodec_24khz-other.th"), "choose one with --codec"),
    "vocabulary of another size": (lambda f: C.write_vocabulary(f / "vocab.txt", 30_000), "30,000 tokens.*119,547"),
    "vocabulary of bytes": (_write("vocab.txt", b"\xff\xfe"), "not UTF-8"),
    "tokenizer of nonsense": (
        lambda f: ((f / "vocab.txt").unlink(), (f / "tokenizer.json").write_text("[1]")),
        "is not a tokenizer",
    ),
}


@pytest.mark.parametrize("case", BAD_SUNO)
def test_bad_suno_folders(tmp_path, suno, copy, case):
    breaking, message = BAD_SUNO[case]
    source = copy(suno)
    breaking(source)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(source, tmp_path / "out", log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_all_problems_of_all_networks_are_reported_together(tmp_path, suno, copy):
    source = copy(suno)
    on_model(lambda s: s.pop(BLOCK + "ln_1.weight"))(source)
    on_model(lambda s: s.update(extra=torch.zeros(1)))(source, "coarse.pt")
    on_model(lambda s: s.update({BLOCK + "mlp.c_proj.weight": torch.zeros(2, 2)}))(source, "fine.pt")
    _codec(lambda s: s.pop("decoder.model.0.conv.conv.bias"))(source)
    with pytest.raises(ConversionError) as error:
        convert(source, tmp_path / "out", log=quiet)
    for word in (
        "4 problems",
        "semantic: nothing",
        "coarse: extra",
        "fine: blocks.0.mlp.c_proj",
        "decoder.conv_in.bias",
    ):
        assert word in str(error.value)


def _settings(*path: str, **values):
    def run(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        place = tree
        for key in path:
            place = place[key]
        place.update(values)
        (folder / "config.json").write_text(json.dumps(tree))

    return run


def _generation(section: str, **values):
    def run(folder: Path) -> None:
        tree = json.loads((folder / "generation_config.json").read_text())
        (tree[section] if section else tree).update(values)
        (folder / "generation_config.json").write_text(json.dumps(tree))

    return run


def _bin(change):
    def run(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        change(state)
        torch.save(state, folder / "pytorch_model.bin")

    return run


BAD_HF = {
    "model type": (_settings(model_type="musicgen"), "model_type is 'musicgen'"),
    "unknown key": (_settings(rope_theta=1.0), "unknown key.*rope_theta"),
    "unknown key of a stage": (
        _settings("semantic_config", sliding_window=3),
        "semantic_config has unknown.*sliding_w",
    ),
    "not causal": (_settings("semantic_config", is_causal=False), "is_causal is False"),
    "stage of wrong kind": (_settings("fine_acoustics_config", model_type="semantic"), "model_type is 'semantic'"),
    "no stage": (_settings(semantic_config=None), "semantic_config is NoneType"),
    "missing size": (lambda f: _settings("semantic_config", num_layers=None)(f), "num_layers is None"),
    "more layers": (_settings("semantic_config", num_layers=5), "the settings say 5 layers, the file holds 2"),
    "codec norm": (_settings("codec_config", norm_type="time_group_norm"), "norm_type is 'time_group_norm'"),
    "codec not causal": (_settings("codec_config", use_causal_conv=False), "use_causal_conv is False"),
    "codec normalises": (_settings("codec_config", normalize=True), "normalize is True"),
    "codec padding": (_settings("codec_config", pad_mode="constant"), "pad_mode is 'constant'"),
    "codec activation": (_settings("codec_config", activation="snake"), "activation is 'snake'"),
    "codec chunks": (_settings("codec_config", chunk_length_s=1.0), "chunk_length_s is 1.0"),
    "codec stereo": (_settings("codec_config", audio_channels=2), "audio_channels is 2"),
    "codec ratios": (_settings("codec_config", upsampling_ratios="8542"), "upsampling_ratios is '8542'"),
    "codec rate": (_settings("codec_config", sampling_rate=16_000), "sample_rate is 24000: the networks have 16000"),
    "codec kind": (_settings("codec_config", model_type="dac"), "model_type is 'dac'"),
    "no codec settings": (_settings(codec_config=None), "codec_config is NoneType"),
    "config of nonsense": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds list"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "ids that clash": (
        _generation("semantic_config", eos_token_id=9),
        "eos_token_id is 9: it must equal pad_token = 10000",
    ),
    "ids out of range": (_generation("semantic_config", semantic_infer_token=200_000), "infer_token is 200000"),
    "codebook size": (_generation("", codebook_size=512), "codebook_size is 512"),
    "window too long": (_generation("fine_acoustics_config", max_fine_input_length=2048), "window is 2048"),
    "stray tensor": (_bin(lambda s: s.update(vocoder=torch.zeros(1))), "vocoder belongs to none"),
    "missing tensor": (_bin(lambda s: s.pop("coarse_acoustics.layernorm_final.weight")), "nothing.*ln_f.weight"),
    "nan": (_bin(lambda s: s["semantic.lm_head.weight"].fill_(float("nan"))), "lm_head.weight holds NaN"),
    "both kinds of weight norm": (
        _bin(
            lambda s: s.update(
                {
                    "codec_model.decoder.layers.0.conv.parametrizations.weight.original0": torch.ones(64, 1, 1),
                }
            )
        ),
        "decoder.conv_in.weight has two sources",
    ),
    "lost shard": (
        lambda f: (
            (f / "pytorch_model.bin").unlink(),
            (f / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
            ),
        ),
        "lacks model-00001-of-00001.safetensors",
    ),
    "shard elsewhere": (
        lambda f: (
            (f / "pytorch_model.bin").unlink(),
            (f / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "../../etc/model-00001-of-00001.safetensors"}})
            ),
        ),
        "beside it",
    ),
    "broken safetensors": (_write("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"), "no safetensors file"),
}


@pytest.mark.parametrize("case", BAD_HF)
def test_bad_hugging_face_folders(tmp_path, hf, copy, case):
    breaking, message = BAD_HF[case]
    source = copy(hf)
    breaking(source)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(source, tmp_path / "out", log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_bad_arguments(tmp_path, suno, converted):
    (tmp_path / "file").write_text("here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    out = tmp_path / "out"
    for arguments, options, kind, message in (
        ((suno, out), {"dtype": "int8"}, ValueError, "dtype is 'int8': choose one of float32"),
        ((suno, out), {"sizes": "medium"}, ValueError, "is 'medium': choose small or large"),
        ((suno, out), {"sizes": {"codec": "small"}}, ValueError, "size of codec"),
        ((suno, out), {"sizes": "large"}, ValueError, r"no large text, only text.pt \(small\)"),
        ((suno, out), {"codec": tmp_path / "none.th"}, ValueError, "codec .*none.th does not exist"),
        ((suno, out), {"codec": tmp_path / "full"}, ValueError, "holds no encodec_24khz"),
        ((suno, out), {"codec": tmp_path / "file"}, ValueError, "must be a zip archive"),
        ((suno, out), {"tokenizer": tmp_path / "none.txt"}, ValueError, "tokenizer .*none.txt does not exist"),
        ((suno, out), {"tokenizer": tmp_path / "full"}, ValueError, "neither vocab.txt nor tokenizer.json"),
        ((converted, out), {}, ValueError, "converted already"),
        ((tmp_path / "nowhere", out), {}, OSError, "no folder"),
        ((tmp_path / "file", out), {}, OSError, "is a file"),
        ((suno, tmp_path / "full"), {}, OSError, "not an empty folder"),
        ((suno, tmp_path / "file"), {}, OSError, "not an empty folder"),
        ((suno, tmp_path / "file" / "out"), {}, OSError, "file"),
        ((suno, suno), {}, OSError, "not an empty folder"),
    ):
        with pytest.raises(kind, match=message):
            convert(*arguments, **options, log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_an_empty_destination_is_filled(tmp_path, suno, converted):
    (tmp_path / "out").mkdir()
    convert(suno, tmp_path / "out", log=quiet)
    assert_same(tmp_path / "out", converted)


# ------------------------------------------------------------------------------------------------------ hostile pickles


def _unicode(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _call(name: str, argument: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + b"(" + _unicode(argument) + b"tR"


def _top(model: bytes = b"}", arguments: bytes = b"}", more: bytes = b"") -> bytes:
    return b"\x80\x02}(" + _unicode("model") + model + _unicode("model_args") + arguments + more + b"u."


def _archive(
    path: Path, content: bytes, *, members=(), compression=zipfile.ZIP_STORED, name="archive/data.pkl"
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
        for member, data in members:
            archive.writestr(member, data)


GADGETS = """
    os.system posix.system nt.system subprocess.Popen subprocess.check_output pty.spawn builtins.eval
    builtins.exec __builtin__.eval builtins.__import__ builtins.getattr builtins.open importlib.import_module
    runpy.run_path runpy._run_code pickle.loads _pickle.loads torch.load torch.hub.load torch.jit.load
    torch.storage._load_from_bytes torch.serialization.load torch._utils._rebuild_wrapper_subclass
    torch._tensor._rebuild_from_type_v2 numpy.load numpy.testing._private.utils.runstring functools.partial
    operator.attrgetter shutil.rmtree ctypes.CDLL webbrowser.open code.InteractiveInterpreter sys.exit
    socket.socket timeit.timeit bdb.Bdb.run
""".split()


def _sentinel_command(name: str, sentinel: Path) -> str:
    python = ("eval", "exec", "runstring", "timeit", "Bdb.run", "_run_code")
    return f"open({str(sentinel)!r}, 'w')" if name.endswith(python) else f"touch {sentinel}"


def _refuse(folder: Path, out: Path, message: str = "is refused") -> None:
    before = time.monotonic()
    with pytest.raises(ConversionError, match=message):
        convert(folder, out, log=quiet)
    assert time.monotonic() - before < 5
    assert not out.exists()


@pytest.mark.parametrize("gadget", GADGETS)
def test_callables_in_pickles_are_refused_by_name(tmp_path, suno, gadget):
    source, sentinel = tmp_path / "source", tmp_path / "sentinel"
    source.mkdir()
    for path in suno.iterdir():
        (source / path.name).symlink_to(path)
    call = _call(gadget, _sentinel_command(gadget, sentinel))
    (source / "text.pt").unlink()
    places = {
        "model": _top(model=call),
        "settings": _top(arguments=b"}(" + _unicode("bias") + call + b"u"),
        "deep inside": _top(more=_unicode("optimizer") + b"}(" + _unicode("state") + b"](" + call + b"eu"),
    }
    for content in places.values():
        _archive(source / "text.pt", content)
        _refuse(source, tmp_path / "out", f"text.pt is refused: its pickle names {gadget}")
    assert not sentinel.exists()


class _Runs:
    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("protocol", range(6))
def test_real_pickles_of_every_protocol_are_refused(tmp_path, suno, copy, protocol):
    source, sentinel = copy(suno), tmp_path / "sentinel"
    _archive(source / "fine.pt", pickle.dumps({"model": {}, "model_args": _Runs(sentinel)}, protocol))
    _refuse(source, tmp_path / "out")
    assert not sentinel.exists()


def test_other_opcodes_that_make_objects_are_refused(tmp_path, suno, copy):
    source, sentinel = copy(suno), tmp_path / "sentinel"
    command_ = _unicode(f"touch {sentinel}")
    for model in (
        b"(" + command_ + b"ios\nsystem\n",  # INST
        b"(cos\nsystem\n" + command_ + b"o",  # OBJ
        _unicode("os") + _unicode("system") + b"\x93(" + command_ + b"tR",  # STACK_GLOBAL
        b"ccollections\nOrderedDict\n)\x81",  # NEWOBJ
        b"\x82\x01",  # EXT1
        b"Pfile\n",  # PERSID
    ):
        _archive(source / "text.pt", _top(model=model))
        _refuse(source, tmp_path / "out")
    assert not sentinel.exists()


@pytest.mark.parametrize("name", [C.CODEC_FILE, "pytorch_model.bin", "text.pt"])
def test_hostile_files_of_every_kind_and_old_format(tmp_path, suno, hf, copy, name):
    source, sentinel = copy(hf if name == "pytorch_model.bin" else suno), tmp_path / "sentinel"
    path = source / name
    torch.save({"model": {}, "model_args": {}, "x": _Runs(sentinel)}, path)
    _refuse(source, tmp_path / "out")
    torch.save({"x": _Runs(sentinel)}, path, _use_new_zipfile_serialization=False)
    _refuse(source, tmp_path / "out")
    path.write_bytes(pickle.dumps(_Runs(sentinel)))
    _refuse(source, tmp_path / "out", "must be a zip archive")
    with tarfile.open(path, "w") as archive:  # what torch wrote before 0.2
        for member in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(_Runs(sentinel))
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    _refuse(source, tmp_path / "out", "must be a zip archive")
    assert not sentinel.exists()


def test_hostile_archives(tmp_path, suno, copy):
    source, out = copy(suno), tmp_path / "out"
    path, plain = source / "text.pt", _top()
    with zipfile.ZipFile(suno / "text.pt") as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    content = next(data for name, data in good.items() if name.endswith("data.pkl"))
    cases = [
        (dict(content=plain, members=[("../evil", b"x")]), "member '../evil'"),
        (dict(content=plain, members=[("archive/../../evil", b"x")]), "member 'archive/../../evil'"),
        (dict(content=plain, members=[("/evil", b"x")]), "member '/evil'"),
        (dict(content=plain, members=[("archive\\..\\evil", b"x")]), r"is refused|must hold one folder"),
        (dict(content=plain, members=[("other/data.pkl", plain)]), "one folder with one data.pkl"),
        (dict(content=plain, name="archive/model.pkl"), "one folder with one data.pkl"),
        (dict(content=plain, members=[("archive/byteorder", b"big")]), "big-endian"),
        (dict(content=plain + b"\0" * (64 << 20), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (dict(content=plain + b"\0" * (33 << 20)), "larger than"),
        (
            dict(content=plain, members=[("archive/data/0", b"\0" * (1 << 20))], compression=zipfile.ZIP_BZIP2),
            "compressed",
        ),
        (dict(content=content), "cannot be read"),  # names storages that are not there
        (dict(content=plain[:-1]), "no valid pickle"),
        (dict(content=b""), "no valid pickle"),
        (dict(content=b"\x80\x02" + b"(" * 100_000 + b"."), "cannot be read|must hold"),
        (dict(content=b"\x80\x02\x8e" + struct.pack("<Q", 1 << 62)), "no valid pickle"),
        (dict(content=b"\x80\x02X" + struct.pack("<I", 0xFFFFFFF0) + b"a"), "no valid pickle"),
        (dict(content=b"\x80\x02]r\xff\xff\xff\x7f."), "must hold model"),
    ]
    for options, message in cases:
        _archive(path, **options)
        _refuse(source, out, message)
    data = bytearray((suno / "text.pt").read_bytes())
    with zipfile.ZipFile(suno / "text.pt") as archive:
        first = archive.infolist()[0]
    data[first.header_offset + 30 + len(first.filename) + 40] ^= 0xFF  # a flipped byte in the pickle, against its CRC
    path.write_bytes(data)
    _refuse(source, out, "damaged|no valid pickle|cannot be read")
    with pytest.warns(UserWarning, match="Duplicate"):
        _archive(path, plain, members=[("archive/data.pkl", plain)])
    _refuse(source, out, "member 'archive/data.pkl'")


def test_random_damage_never_raises_anything_else(tmp_path, suno, copy):
    """Flip bytes in the parts of a file that are read first: the only errors are ours."""
    source, random = copy(suno), np.random.default_rng(0)
    good = (suno / "fine.pt").read_bytes()
    refused = 0
    for n in range(30):
        data = bytearray(good)
        place = 64 + int(random.integers(0, 6000)) if n % 2 else len(data) - 1 - int(random.integers(0, 4000))
        data[place] ^= 1 << int(random.integers(0, 8))
        (source / "fine.pt").write_bytes(data)
        try:
            convert(source, tmp_path / f"out{n}", log=quiet)
        except ValueError:
            refused += 1
            assert not (tmp_path / f"out{n}").exists()
        else:
            shutil.rmtree(tmp_path / f"out{n}")
    assert refused > 10


def test_torch_load_is_never_called_without_weights_only(suno, tmp_path, monkeypatch):
    calls = []
    original = torch.load

    def spy(*args, **kwargs):
        calls.append(kwargs.get("weights_only"))
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    convert(suno, tmp_path / "out", log=quiet)
    assert calls and set(calls) == {True}


def test_old_or_missing_torch_is_refused(tmp_path, suno, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ConversionError, match=r"torch is 2.9.1\+cpu: it must be 2.10 or newer"):
        convert(suno, tmp_path / "out", log=quiet)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bark-jax\[convert\]'"):
        convert(suno, tmp_path / "out", log=quiet)


# --------------------------------------------------------------------------------------- the command, and what stops it


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
del sys.argv[1]
runpy.run_module("convert", run_name="__main__", alter_sys=True)
"""


def run(*arguments, environment=None, limit: int | None = None) -> subprocess.CompletedProcess:
    """Run the command; `limit` is the largest file in bytes that the kernel lets it write."""
    start = ["-m", "convert"] if limit is None else ["-c", LIMITED, str(limit)]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_success_and_failure(tmp_path, suno, converted):
    done = run(suno, tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "verified against torch" in done.stdout and f"wrote {tmp_path / 'out'}" in done.stdout
    assert_same(tmp_path / "out", converted)
    again = run(suno, tmp_path / "out")
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and len(again.stderr.splitlines()) == 1


def test_command_usage(capsys, tmp_path, suno):
    for arguments in ([], [str(suno)], [str(suno), "x", "--dtype", "int4"], [str(suno), "x", "--fast"]):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    assert "--text-size" in capsys.readouterr().out
    assert command.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_command_chooses_sizes(tmp_path, suno, copy):
    source = copy(suno)
    C.write_suno(source, {"text": (1, 1, 8)}, small=False)
    assert command.main([str(source), str(tmp_path / "out")]) == 1
    assert command.main([str(source), str(tmp_path / "out"), "--size", "small", "--text-size", "large"]) == 0
    assert BarkConfig.load(tmp_path / "out" / "config.json").semantic.network.n_layer == 1


def test_missing_codec_or_vocabulary_without_network(tmp_path, suno, copy):
    source = copy(suno)
    (source / "vocab.txt").rename(tmp_path / "vocab.txt")
    home = {"HF_HOME": str(tmp_path / "hub")}
    done = run(source, tmp_path / "out", environment=home)
    assert done.returncode == 1 and "no vocabulary: pass --tokenizer PATH" in done.stderr
    (source / C.CODEC_FILE).unlink()
    done = run(source, tmp_path / "out", "--tokenizer", tmp_path / "vocab.txt", environment=home)
    assert done.returncode == 1 and "no EnCodec: pass --codec PATH" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    done = run("suno/bark", tmp_path / "out", environment=home)
    assert done.returncode == 1 and "suno/bark" in done.stderr and "HF_HUB_OFFLINE" in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs POSIX resource limits")
def test_disk_full_leaves_nothing(tmp_path, suno):
    done = run(suno, tmp_path / "out", limit=1 << 20)  # the kernel refuses to write beyond 1 MB per file
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "semantic.safetensors" in done.stderr and "bytes" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
def test_unwritable_destination(suno):
    with pytest.raises(OSError):
        convert(suno, "/proc/self/bark", log=quiet)


def test_killed_conversion_leaves_no_folder_and_the_next_one_cleans_up(tmp_path, suno, copy, converted):
    source = copy(suno)
    C.write_suno(source, {"coarse": (2, 2, 128)}, optimizer_state=False)  # long enough to be caught in the act
    command_ = [sys.executable, "-m", "convert", str(source), str(tmp_path / "out" / "model")]
    process = subprocess.Popen(command_, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    (tmp_path / "out").mkdir()
    deadline = time.monotonic() + 100
    while not any((tmp_path / "out").iterdir()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = list((tmp_path / "out").iterdir())
    assert len(left) == 1 and left[0].name.startswith(".model.partial-")
    with pytest.raises(OSError):
        weights.BarkConfig.load(left[0] / "config.json")
    convert(source, tmp_path / "out" / "model", log=quiet)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert_same(tmp_path / "out" / "model", converted, ["semantic", "fine", "codec"])


MEMORY = """
import resource, sys
from convert import convert
report = convert(sys.argv[1], sys.argv[2], dtype=sys.argv[3], log=lambda line: None)
print(report.written_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["suno", "hf"])
def test_peak_memory(tmp_path, suno, hf, vocabulary, kind, dtype):
    """At most 2.5 times what is written, over what a tiny conversion needs; the sources hold three times as much."""

    def measure(source: Path, out: str) -> tuple[int, int]:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(source), str(tmp_path / out), dtype],
            cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
        )  # fmt: skip
        written, peak = map(int, done.stdout.split())
        return written, peak

    sizes = {"text": (2, 2, 192), "coarse": (2, 2, 192), "fine": (2, 2, 192)}
    big = tmp_path / "big"
    if kind == "suno":
        C.write_suno(big, sizes)
        C.write_encodec(big, **CODEC)
    else:
        C.write_hf(big, sizes, codec=CODEC)
    shutil.copy(vocabulary, big)
    base_written, base = measure(suno if kind == "suno" else hf, "a")
    written, peak = measure(big, "b")
    assert peak - base < 2.5 * (written - base_written)
    assert (written - base_written) > 50e6


def test_report_names_published_files_that_match(tmp_path, monkeypatch, suno):
    """The md5 is compared only where the size is plausible, and never fails the conversion."""
    import hashlib

    from convert import check

    path = suno / "text.pt"
    size = path.stat().st_size
    assert check.published([path], quiet) == ["text.pt differs: not the file Suno published"]
    monkeypatch.setitem(check.PUBLISHED, "text.pt", ("0" * 32, size))
    assert check.published([path], quiet) == ["text.pt differs: not the file Suno published"]
    monkeypatch.setitem(check.PUBLISHED, "text.pt", (hashlib.md5(path.read_bytes()).hexdigest(), size))
    assert check.published([path], quiet) == ["text.pt matches the published file"]


def test_fixtures_are_diverse(tmp_path):
    """Law 1 asks for it: greedy speech of the random models must not be a loop that hides mistakes."""
    generation = C.reference("bark.generation")
    C.write_suno(tmp_path, {"text": (2, 2, 32), "coarse": (2, 2, 32), "fine": (2, 2, 32)}, optimizer_state=False)

    class Words:
        def encode(self, text, add_special_tokens=False):
            return [ord(letter) * 97 for letter in text]

    generation.models.clear()
    generation.models.update(C.suno_models(tmp_path, tokenizer=Words()))
    options = {"silent": True, "use_kv_caching": True}
    semantic, other = (
        generation.generate_text_semantic(text, temp=1e-5, min_eos_p=None, max_gen_duration_s=5, **options)
        for text in ("hello there", "good evening")
    )
    coarse = generation.generate_coarse(semantic[:200], temp=1e-5, **options)
    fine = generation.generate_fine(coarse, temp=None, silent=True)
    generation.models.clear()
    shared = min(len(semantic), len(other))
    assert len(set(semantic)) >= 100 and np.mean(semantic[:shared] == other[:shared]) < 0.5
    assert len(set(coarse[0])) + len(set(coarse[1])) >= 200
    assert all(len(set(row)) >= 100 for row in fine)
    assert isinstance(C.gpt_state("fine", (1, 1, 8)), OrderedDict)
