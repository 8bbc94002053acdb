"""HuBERT and the quantizer equal transformers' and torch's on random weights; files of every published form load."""

from __future__ import annotations

import contextlib
import json
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("convert")

import jax.numpy as jnp  # noqa: E402

import bark_jax  # noqa: E402
import models  # noqa: E402
from bark_jax import hubert, units  # noqa: E402
from bark_jax.hubert import HubertConfig  # noqa: E402
from bark_jax.weights import CheckpointError  # noqa: E402
from bark_jax.weights import names as tensor_names  # noqa: E402
from convert import ConversionError  # noqa: E402
from convert.units import convert_units, main  # noqa: E402

N_UNITS = 200
"""Of the model of `models`."""


def theirs(seed: int = 0) -> torch.nn.Module:
    """transformers' model with two blocks more than are needed, narrower than HuBERT-base."""
    torch.manual_seed(seed)
    config = transformers.HubertConfig(
        hidden_size=128, num_hidden_layers=11, num_attention_heads=2, intermediate_size=160, conv_dim=[32] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = transformers.HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Quantizer(torch.nn.Module):
    """The modules of gitmylo's ``CustomTokenizer``, by its names; version 1 has `intermediate`."""

    def __init__(self, version: int):
        super().__init__()
        self.lstm = torch.nn.LSTM(128, 48, 2, batch_first=True)
        if version:
            self.intermediate = torch.nn.Linear(48, 64)
        self.fc = torch.nn.Linear(64 if version else 48, N_UNITS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(x)
        return self.fc(self.intermediate(x) if hasattr(self, "intermediate") else x)


def quantizer(path: Path, version: int = 0) -> Quantizer:
    """Saved as the community's are: a state dict, and beside it in the archive what it is."""
    torch.manual_seed(version)
    made = Quantizer(version)
    with torch.no_grad():  # torch's first weights would name one id for everything
        for name, parameter in made.named_parameters():
            parameter.mul_(4.0 if "weight" in name else 0.1)
    torch.save(made.state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/.info", json.dumps({"input_size": 128, "hidden_size": 48, "version": version}))
    return made


def fairseq(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state under fairseq's names."""
    out = {}
    for name, tensor in model.state_dict().items():
        for a, b in (
            ("feature_projection.layer_norm", "layer_norm"),
            ("feature_projection.projection", "post_extract_proj"),
            ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
            ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
            ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
            (".attention.", ".self_attn."),
            (".feed_forward.intermediate_dense", ".fc1"),
            (".feed_forward.output_dense", ".fc2"),
            ("masked_spec_embed", "mask_emb"),
        ):
            name = name.replace(a, b)
        if name.startswith("feature_extractor"):
            name = name.replace("0.layer_norm", "0.2").replace(".conv.weight", ".0.weight")
        elif name.startswith("encoder.layers") and ".layer_norm." in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        out[name] = tensor
    return out | {"final_proj.weight": torch.zeros(3, 4), "label_embs_concat": torch.zeros(2)}


@contextlib.contextmanager
def fairseq_object(module: str, name: str) -> Iterator[Any]:
    """An object of a class of fairseq's, as its pickles have them; the module is there no longer than this."""
    made = types.ModuleType(module)
    made.__dict__[name] = type(name, (), {"__module__": module})
    value = made.__dict__[name]()
    value.__dict__ |= {"symbols": ["<s>", "<pad>"], "indices": {"<s>": 0, "<pad>": 1}, "unk_index": 3}
    parents = {module[:i]: types.ModuleType(module[:i]) for i, c in enumerate(module) if c == "."}
    with pytest.MonkeyPatch.context() as patch:
        for key, one in (parents | {module: made}).items():
            patch.setitem(sys.modules, key, one)
        yield value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hubert")


@pytest.fixture(scope="module")
def model(place: Path) -> torch.nn.Module:
    made = theirs()
    made.save_pretrained(place / "hf")
    with fairseq_object("fairseq.data.dictionary", "Dictionary") as dictionary:  # as in the published file
        content = {"model": fairseq(made), "args": None, "task_state": {"dictionaries": [dictionary]}}
        torch.save(content, place / "fairseq.pt")
    torch.save({f"hubert.{name}": x for name, x in made.state_dict().items()}, place / "old.bin")
    return made


def loaded(place: Path, source: str, version: int = 0) -> tuple[hubert.Hubert, Quantizer]:
    folder = models.save(place / f"model-{source}-{version}")
    made = quantizer(place / f"quantizer-{source}-{version}.pth", version)
    path = convert_units(place / source, place / f"quantizer-{source}-{version}.pth", folder, log=lambda *_: None)
    network = units.load(path)
    assert isinstance(network, hubert.Hubert)
    return network, made


@pytest.fixture(scope="module")
def ours(place: Path, model: torch.nn.Module) -> tuple[hubert.Hubert, Quantizer]:
    return loaded(place, "hf")


def clip(n: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@pytest.mark.parametrize("n", [400, 719, 720, 5_000, 32_000, 50_001])
def test_features_and_ids_equal_theirs(model: torch.nn.Module, ours: tuple[hubert.Hubert, Quantizer], n: int) -> None:
    network, made = ours
    audio = clip(n)
    with torch.no_grad():
        states = model(torch.from_numpy(audio)[None], output_hidden_states=True).hidden_states[9]
        logits = made(states)[0].numpy()
    features = network.features(jnp.asarray(audio[None]), jnp.array([n]))
    np.testing.assert_allclose(features[0], states[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(network.quantize(features)[0], logits, atol=1e-4)
    ids = units.encode(network, audio)
    assert ids.shape == ((n - 400) // 320 + 1,) and ids.dtype == np.int32
    top = np.sort(logits, axis=1)
    sure = top[:, -1] - top[:, -2] > 1e-4
    np.testing.assert_array_equal(ids[sure], logits.argmax(1)[sure])
    assert n < 30_000 or len(set(ids)) > 3


def test_padding_and_neighbours_change_nothing(ours: tuple[hubert.Hubert, Quantizer]) -> None:
    network, _ = ours
    a, b = clip(9_000), clip(20_000, 1)
    batch = np.zeros((2, 24_000), np.float32)
    batch[0, :9_000], batch[1, :20_000] = a, b
    batch[0, 9_000:] = 7.0  # what is beyond the end does not count, whatever it is
    together = network.features(jnp.asarray(batch), jnp.array([9_000, 20_000]))
    for row, audio in zip(together, (a, b), strict=True):
        alone = network.features(jnp.asarray(audio[None]), jnp.array([len(audio)]))[0]
        np.testing.assert_allclose(row[: len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize(("source", "version"), [("fairseq.pt", 0), ("old.bin", 1)])
def test_other_files_give_the_same(
    place: Path, model: torch.nn.Module, ours: tuple[hubert.Hubert, Quantizer], source: str, version: int
) -> None:
    network, made = loaded(place, source, version)
    audio = clip(8_000)[None]
    features = network.features(jnp.asarray(audio), jnp.array([8_000]))
    mine, first = tensor_names(network), tensor_names(ours[0])
    same = [name for name in first if not name.startswith(("lstm", "head", "middle"))]  # all but the quantizer's
    assert len(same) > 100
    for name in same:
        # The folded weight norm is a sum, which torch adds otherwise where an array lies otherwise in memory.
        np.testing.assert_allclose(mine[name], first[name], rtol=1e-5 * (name == "positions.weight"), err_msg=name)
    np.testing.assert_allclose(features, ours[0].features(jnp.asarray(audio), jnp.array([8_000])), atol=1e-5)
    with torch.no_grad():
        logits = made(torch.from_numpy(np.array(features)))[0].numpy()
    np.testing.assert_allclose(network.quantize(features)[0], logits, atol=1e-4)
    assert bool(network.config.middle) == bool(version)


def test_other_classes_in_a_file_of_fairseqs_are_refused(place: Path, model: torch.nn.Module) -> None:
    with fairseq_object("fairseq.data.dictionary", "Other") as other:
        torch.save({"model": fairseq(model), "task_state": other}, place / "other.pt")
    with pytest.raises(ConversionError, match=r"names fairseq\.data\.dictionary\.Other"):
        convert_units(place / "other.pt", place / "quantizer-hf-0.pth", models.save(place / "another"))


def test_a_model_with_it_takes_ids_from_audio(place: Path, ours: tuple[hubert.Hubert, Quantizer]) -> None:
    bark = bark_jax.load(place / "model-hf-0", device="cpu")
    audio = clip(24_000)
    ids = bark.audio_to_semantic(audio, 16_000)
    np.testing.assert_array_equal(ids, units.encode(ours[0], audio))
    at_24 = bark.audio_to_semantic(bark_jax.audio.resample(audio, 16_000, 24_000))
    assert abs(len(at_24) - len(ids)) <= 1


def test_the_published_sizes() -> None:
    config = HubertConfig()
    assert (config.hop, config.rate_hz) == (320, 50.0)
    for n in (0, 399, 400, 719, 720, 160_000):
        assert config.frames(n) == max(0, (n - 400) // 320 + 1)
    assert hubert._least(config) == 400
    from flax import nnx

    from bark_jax.weights import names

    def count(config: HubertConfig) -> tuple[int, int]:
        module = nnx.eval_shape(lambda: hubert.Hubert(config, rngs=nnx.Rngs(0)))
        sizes = {name: leaf.size for name, leaf in names(module).items()}
        tail = sum(n for name, n in sizes.items() if name.startswith(("lstm", "head", "middle")))
        return sum(sizes.values()) - tail, tail

    base, v0 = count(config)
    assert base == 73_107_328 - 128  # 73.1 M of HuBERT-base's 94.4 M, less the sizes of the weight norm, folded in
    assert v0 == 25_995_024 - 2 * 4 * 1024  # torch keeps two biases per layer, which are added here
    assert count(HubertConfig(middle=4096))[1] == 60_913_424 - 2 * 4 * 1024


class TestErrors:
    @pytest.mark.parametrize(
        ("audio", "message"),
        [
            (np.zeros(399, np.float32), "399 samples: a first semantic id takes 400"),
            (np.zeros((2, 400), np.float32), "must be mono"),
            (np.zeros(400, np.int16), "dtype int16"),
            (np.full(400, np.nan, np.float32), "NaN"),
            (np.zeros(16_000 * 121, np.float32), r"121\.0 s: HuBERT reads up to 120 s"),
        ],
    )
    def test_audio(self, ours: tuple[hubert.Hubert, Quantizer], audio: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            units.encode(ours[0], audio)

    def test_files(
        self, place: Path, model: torch.nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = models.save(tmp_path / "model")
        quantizer(tmp_path / "good.pth")
        state = model.state_dict()
        torch.save(
            {name: x for name, x in state.items() if "layers.3.attention.q_proj" not in name}, tmp_path / "less.bin"
        )
        torch.save({**state, "more": torch.zeros(1)}, tmp_path / "more.bin")
        torch.save({"fc.weight": torch.zeros(3, 2)}, tmp_path / "bad.pth")
        (tmp_path / "empty").mkdir()
        for hub, quant, message in (
            ("less.bin", "good.pth", r"blocks\.3\.query\.weight: it is missing"),
            ("more.bin", "good.pth", "is not HuBERT-base: it has more"),
            (place / "hf", "bad.pth", "is not a quantizer of HuBERT's features: it lacks fc.bias"),
            (place / "hf", place / "fairseq.pt", "is not a quantizer|is not a Bark checkpoint"),
            ("empty", "good.pth", "has no weights"),
        ):
            with pytest.raises(ConversionError, match=message):
                convert_units(tmp_path / hub, tmp_path / quant, folder, log=lambda *_: None)
        with pytest.raises(FileNotFoundError, match="There is no"):
            convert_units(tmp_path / "none", tmp_path / "good.pth", folder)
        assert not (folder / "units.safetensors").exists()
        assert main([str(place / "hf"), str(tmp_path / "good.pth"), str(folder)]) == 0
        assert main([str(place / "hf"), str(tmp_path / "good.pth"), str(folder)]) == 1
        assert "exists: remove it" in capsys.readouterr().err

    def test_ids_of_another_model(self, place: Path, ours: tuple[hubert.Hubert, Quantizer]) -> None:
        with pytest.raises(CheckpointError, match="n_units 200: the model's is 10000"):
            units.check_fit(ours[0].config, bark_jax.config.suno((1, 1, 16)))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_layer": 0}, "n_layer is 0"),
            ({"kernels": (10, 3)}, "2 kernels and 7 strides"),
            ({"n_head": 7}, "n_head and position_groups must divide it"),
            ({"width": True}, "width is True"),
        ],
    )
    def test_configs(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HubertConfig(**changes)  # type: ignore[arg-type]
