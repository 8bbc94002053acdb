"""Random checkpoints, written by torch in the formats in which Bark and EnCodec are published.

Takes sizes, a seed and a folder; gives files that Suno's code, EnCodec's and Hugging Face's load. The values are
random, but scaled so that greedy speech is diverse: positions, earlier tokens, text and voice all change what comes
next. Holds no tests, and knows nothing of bark_jax.

Names, top-level keys and pickle globals are those of the published ``.pt``, ``.th`` and ``.bin`` files.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import json
import math
import pickle
import re
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

STAGES = ("text", "coarse", "fine")
VOCABULARIES = {"text": (129_600, 10_048), "coarse": (12_096, 12_096), "fine": (1056, 1056)}
SEMANTIC_EOS = 10_000
FIRST_SPEECH_POSITION = 256  # the position whose output is the first semantic token

Size = tuple[int, int, int]
State = "OrderedDict[str, torch.Tensor]"


def suno_name(stage: str, small: bool) -> str:
    """File name of a stage, as Suno publishes it: ``text.pt`` is the small one, ``text_2.pt`` the large one."""
    return f"{stage}.pt" if small else f"{stage}_2.pt"


# ---------------------------------------------------------------------------------------------------- GPT weights


def _normal(generator: torch.Generator, *shape: int, std: float) -> torch.Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _table(generator: torch.Generator, rows: int, width: int, std: float) -> torch.Tensor:
    """Rows of equal length: in narrow models the longest rows of a head would win everywhere."""
    table = _normal(generator, rows, width, std=1.0)
    return table.mul_(std * math.sqrt(width) / table.norm(dim=1, keepdim=True))


def gpt_state(
    stage: str,
    size: Size,
    *,
    bias: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    eos_scale: float = 1.0,
    eos_at: int | None = None,
    block_size: int = 1024,
    vocabulary: tuple[int, int] | None = None,
    masks: bool = False,
    tied: bool = True,
    n_codes_given: int = 1,
) -> OrderedDict[str, torch.Tensor]:
    """State dict of one of Suno's networks, without the compile prefix.

    Standard deviations, for width d and L layers: embeddings and positions 0.7 each (so that the same token at another
    place gives another answer), attention projections such that scores have one of about 2 (each position listens to a
    handful of others, not to the average), what blocks add to the residual stream about 1 in all, logits about
    ``3 * scale``.

    Args:
      stage: "text", "coarse" or "fine".
      size: layers, heads, width.
      eos_scale: factor on the head's row of end-of-speech (text only). 1: about one step in 10,000 ends the speech,
        1.5: one in 200, 2: one in 40. 0: never.
      eos_at: greedy speech ends after exactly this many tokens, at any text (overrides `eos_scale`).
      masks: write the ``attn.bias`` buffers of older torch versions.
      tied: fine only; False gives heads of their own (no published file has them).
    """
    layers, _, d = size
    n_in, n_out = vocabulary or VOCABULARIES[stage]
    g = torch.Generator().manual_seed(seed * 3 + STAGES.index(stage))
    unit = d**-0.5
    added = (2 / max(layers, 2)) ** 0.5
    state: OrderedDict[str, torch.Tensor] = OrderedDict()

    def norm(name: str, with_bias: bool, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = gain * (1 + _normal(g, d, std=0.1))
        if with_bias:
            state[f"{name}.bias"] = gain * _normal(g, d, std=0.05)

    def linear(name: str, out: int, into: int, std: float) -> None:
        state[f"{name}.weight"] = _normal(g, out, into, std=std)
        if bias:
            state[f"{name}.bias"] = _normal(g, out, std=0.05)

    fine = stage == "fine"
    if fine:
        for i in range(8):
            table = state[f"transformer.wtes.{i}.weight"] = _table(g, n_in, d, 0.5)
            table[1024:] *= 0.3  # the pad is part of every frame that is predicted: let the codes say more than it
    else:
        state["transformer.wte.weight"] = _normal(g, n_in, d, std=0.7)
    state["transformer.wpe.weight"] = _normal(g, block_size, d, std=0.7)
    for i in range(layers):
        h = f"transformer.h.{i}"
        norm(f"{h}.ln_1", bias or fine)
        if masks and not fine:
            state[f"{h}.attn.bias"] = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
        linear(f"{h}.attn.c_attn", 3 * d, d, 2**0.5 * unit)
        linear(f"{h}.attn.c_proj", d, d, added * unit)
        norm(f"{h}.ln_2", bias or fine)
        linear(f"{h}.mlp.c_fc", 4 * d, d, unit)
        linear(f"{h}.mlp.c_proj", d, 4 * d, added * 0.5 * unit)
    if fine:
        # The heads are the embeddings, so the last norm alone can set the size of the logits.
        norm("transformer.ln_f", True, gain=3 * scale * unit / 0.5)
        for i in range(8 - n_codes_given):
            table = state[f"transformer.wtes.{i + 1}.weight"]
            state[f"lm_heads.{i}.weight"] = table if tied else _table(g, n_out, d, 0.5)
        return state
    norm("transformer.ln_f", bias)
    head = state["lm_head.weight"] = _table(g, n_out, d, 3 * scale * unit)
    if stage == "text":
        head[SEMANTIC_EOS] *= eos_scale
        if eos_at is not None:
            # One direction of the residual stream is set by the position alone and read by the end-of-speech row.
            u = torch.zeros(d)
            u[: d // 2], u[d // 2 :] = unit, -unit
            first = FIRST_SPEECH_POSITION + eos_at
            positions = state["transformer.wpe.weight"]
            positions[:first] -= 1.5 * math.sqrt(d) * u
            positions[first:] += 1.5 * math.sqrt(d) * u
            head -= (head @ u)[:, None] * u
            head[SEMANTIC_EOS] = 60 * scale * unit * u
    return state


def gpt_args(
    stage: str,
    size: Size,
    *,
    bias: bool = False,
    block_size: int = 1024,
    vocabulary: tuple[int, int] | None = None,
    single_vocabulary: bool = False,
    n_codes_given: int = 1,
) -> dict[str, Any]:
    """``model_args`` of a ``.pt`` file; `single_vocabulary` writes the older key ``vocab_size``."""
    layers, heads, d = size
    n_in, n_out = vocabulary or VOCABULARIES[stage]
    args: dict[str, Any] = {"n_layer": layers, "n_head": heads, "n_embd": d, "block_size": block_size, "bias": bias}
    args["dropout"] = 0.0
    if single_vocabulary:
        args["vocab_size"] = n_in
    else:
        args["input_vocab_size"], args["output_vocab_size"] = n_in, n_out
    if stage == "fine":
        args["n_codes_total"], args["n_codes_given"] = 8, n_codes_given
    return args


class _OldNumpyPickler(pickle._Pickler):  # type: ignore[misc, name-defined]
    """Writes numpy's scalar constructor under the name it had before numpy 2, as in the published files."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is np._core.multiarray.scalar:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\nscalar\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _save(content: Any, path: Path, *, numpy_names: str = "published") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if numpy_names == "published":
        module = types.SimpleNamespace(__name__="pickle", Pickler=_OldNumpyPickler, dumps=pickle.dumps)
        torch.save(content, path, pickle_module=module)
    else:
        torch.save(content, path)
    return path


def write_suno_stage(
    path: Path,
    stage: str,
    size: Size,
    *,
    bias: bool = False,
    seed: int = 0,
    prefix: bool = True,
    optimizer_state: bool = True,
    numpy_names: str = "published",
    single_vocabulary: bool | None = None,
    block_size: int = 1024,
    vocabulary: tuple[int, int] | None = None,
    n_codes_given: int = 1,
    **recipe: Any,
) -> Path:
    """Write one of Suno's ``.pt`` files; see `write_suno`."""
    shape = {"bias": bias, "block_size": block_size, "vocabulary": vocabulary, "n_codes_given": n_codes_given}
    state = gpt_state(stage, size, seed=seed, **shape, **recipe)
    single = stage == "coarse" if single_vocabulary is None else single_vocabulary
    content: dict[str, Any] = {
        "model": OrderedDict((f"_orig_mod.{k}" if prefix else k, v) for k, v in state.items()),
        "model_args": gpt_args(stage, size, single_vocabulary=single, **shape),
        "iter_num": 1000,
        "best_val_loss": np.float32(2.5),
        "config": {"dataset": stage, "learning_rate": 3e-4},
    }
    if optimizer_state:
        weights = {v.data_ptr(): v for k, v in state.items() if not k.endswith(".attn.bias")}
        moments = {
            i: {"step": 1000, "exp_avg": torch.zeros_like(v), "exp_avg_sq": torch.full_like(v, 1e-8)}
            for i, v in enumerate(weights.values())
        }
        groups = [{"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "params": list(moments)}]
        content["optimizer"] = {"state": moments, "param_groups": groups}
    return _save(content, Path(path), numpy_names=numpy_names)


def write_suno(
    folder: Path,
    sizes: Mapping[str, Size],
    *,
    small: bool | Mapping[str, bool] = True,
    bias: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    eos_scale: float = 1.0,
    eos_at: int | None = None,
    optimizer_state: bool = True,
    masks: bool = False,
    prefix: bool = True,
    numpy_names: str = "published",
    single_vocabulary: Container[str] = ("coarse",),
    block_size: int = 1024,
) -> dict[str, Path]:
    """Write ``text.pt``, ``coarse.pt``, ``fine.pt`` (or ``_2``) and return their paths by stage.

    Args:
      sizes: (layers, heads, width) by stage; a stage that is left out is not written.
      small: which file names, per stage if a mapping.
      scale, eos_scale, eos_at, masks: see `gpt_state`.
      optimizer_state: add two copies of all weights, as Adam's state makes the published files three times as large.
      numpy_names: "published" (``numpy.core``) or "current" (what this numpy writes, ``numpy._core`` from version 2).
      single_vocabulary: stages whose ``model_args`` have ``vocab_size`` instead of the input and output sizes.
    """
    paths = {}
    for stage, size in sizes.items():
        is_small = small if isinstance(small, bool) else small[stage]
        recipe = {"scale": scale, "masks": masks}
        if stage == "text":
            recipe |= {"eos_scale": eos_scale, "eos_at": eos_at}
        paths[stage] = write_suno_stage(
            Path(folder) / suno_name(stage, is_small),
            stage,
            size,
            bias=bias,
            seed=seed,
            prefix=prefix,
            optimizer_state=optimizer_state,
            numpy_names=numpy_names,
            single_vocabulary=stage in single_vocabulary,
            block_size=block_size,
            **recipe,
        )
    return paths


# ------------------------------------------------------------------------------------------ the reference's own code


def reference(name: str) -> Any:
    """Import a module of Suno's ``bark`` or of ``encodec``, for which torchaudio need not be installed.

    An empty module stands in for torchaudio. It must come after transformers, which looks for the real one.
    """
    import transformers  # noqa: F401

    if "torchaudio" not in sys.modules:
        try:
            importlib.import_module("torchaudio")
        except ImportError:
            stand_in = types.ModuleType("torchaudio")
            stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
            sys.modules["torchaudio"] = stand_in
    return importlib.import_module(name)


@contextlib.contextmanager
def _suno_globals() -> Iterator[None]:
    scalar = np._core.multiarray.scalar
    kinds = [np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
    names: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), scalar, *kinds]
    with torch.serialization.safe_globals(names):
        yield


def load_suno_file(path: Path) -> dict[str, Any]:
    """The content of a ``.pt`` file, as torch reads it."""
    with _suno_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


def suno_model(path: Path, stage: str | None = None) -> torch.nn.Module:
    """Suno's own network (``bark.model.GPT`` or ``bark.model_fine.FineGPT``) with the weights of a ``.pt`` file.

    `stage` defaults to what the file is named after.
    """
    path = Path(path)
    stage = stage or path.stem.split("_")[0]
    model, model_fine = reference("bark.model"), reference("bark.model_fine")
    content = load_suno_file(path)
    args = dict(content["model_args"])
    if "vocab_size" in args:
        args["input_vocab_size"] = args["output_vocab_size"] = args.pop("vocab_size")
    if stage == "fine":
        network = model_fine.FineGPT(model_fine.FineGPTConfig(**args))
    else:
        network = model.GPT(model.GPTConfig(**args))
    state = {k.removeprefix("_orig_mod."): v for k, v in content["model"].items() if not k.endswith(".attn.bias")}
    missing, extra = network.load_state_dict(state, strict=False)
    if extra or [k for k in missing if not k.endswith(".attn.bias")]:
        raise AssertionError(f"the fixture does not fit Suno's network: missing {missing}, extra {extra}")
    return network.eval()


def suno_models(folder: Path, codec: torch.nn.Module | None = None, tokenizer: Any = None) -> dict[str, Any]:
    """The content of ``bark.generation.models`` for a folder of `write_suno`, so that Suno's functions run on it."""
    models: dict[str, Any] = {}
    for stage in STAGES:
        for small in (True, False):
            path = Path(folder) / suno_name(stage, small)
            if path.exists():
                models[stage] = suno_model(path, stage)
    if "text" in models:
        models["text"] = {"model": models["text"], "tokenizer": tokenizer}
    if codec is not None:
        models["codec"] = codec
    return models


# ---------------------------------------------------------------------------------------------------------- EnCodec

CODEC = {
    "dimension": 128,
    "n_filters": 32,
    "ratios": (8, 5, 4, 2),
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "dilation_base": 2,
    "compress": 2,
    "lstm_layers": 2,
    "n_codebooks": 32,
    "codebook_size": 1024,
}
"""Sizes of ``encodec_24khz``; the keyword arguments of `encodec_state`, `write_encodec` and `write_hf` change them."""

CODEC_FILE = "encodec_24khz-d7cc33bc.th"


def _codec_convolutions(sizes: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...], float]]:
    """(network and layer, "conv" | "up" | "lstm", torch's weight shape, gain) of all layers, in the published order."""
    f, dim, ratios = sizes["n_filters"], sizes["dimension"], sizes["ratios"]
    k, last, small = sizes["kernel_size"], sizes["last_kernel_size"], sizes["residual_kernel_size"]

    def residual(path: str, width: int) -> Iterator[tuple[str, str, tuple[int, ...], float]]:
        hidden = width // sizes["compress"]
        yield f"{path}.block.1", "conv", (hidden, width, small), 1.3
        yield f"{path}.block.3", "conv", (width, hidden, 1), 1.0
        yield f"{path}.shortcut", "conv", (width, width, 1), 0.8

    width, i = f, 0
    yield f"encoder.{i}", "conv", (f, 1, k), 25.0  # speech is quiet
    i += 1
    for ratio in reversed(ratios):
        for _ in range(sizes["n_residual_layers"]):
            yield from residual(f"encoder.{i}", width)
            i += 1
        yield f"encoder.{i + 1}", "conv", (2 * width, width, 2 * ratio), 1.3
        width, i = 2 * width, i + 2
    if sizes["lstm_layers"]:
        yield f"encoder.{i}", "lstm", (width,), 2.0
        i += 1
    yield f"encoder.{i + 1}", "conv", (dim, width, last), 1.3

    yield "decoder.0", "conv", (width, dim, k), 1.0
    i = 1
    if sizes["lstm_layers"]:
        yield f"decoder.{i}", "lstm", (width,), 2.0
        i += 1
    for ratio in ratios:
        yield f"decoder.{i + 1}", "up", (width, width // 2, 2 * ratio), 1.3
        width, i = width // 2, i + 2
        for _ in range(sizes["n_residual_layers"]):
            yield from residual(f"decoder.{i}", width)
            i += 1
    yield f"decoder.{i + 1}", "conv", (1, width, last), 0.15


def encodec_state(*, seed: int = 0, **sizes: Any) -> OrderedDict[str, torch.Tensor]:
    """State dict of encodec 0.1.1's causal, mono, weight-normalised model, with the names of its ``.th`` file.

    Scaled so that sound of ordinary loudness gives states of about unit size; each codebook's vectors are as large as
    what a codebook of random vectors should subtract from the residual that the earlier ones leave.
    """
    sizes = {**CODEC, **sizes}
    g = torch.Generator().manual_seed(seed + 1000)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for path, kind, shape, gain in _codec_convolutions(sizes):
        network, layer = path.split(".", 1)
        name = f"{network}.model.{layer}"
        if kind == "lstm":
            h = shape[0]
            for i in range(sizes["lstm_layers"]):
                state[f"{name}.lstm.weight_ih_l{i}"] = _normal(g, 4 * h, h, std=gain * h**-0.5)
                state[f"{name}.lstm.weight_hh_l{i}"] = _normal(g, 4 * h, h, std=0.5 * h**-0.5)
                state[f"{name}.lstm.bias_ih_l{i}"] = _normal(g, 4 * h, std=0.05)
                state[f"{name}.lstm.bias_hh_l{i}"] = _normal(g, 4 * h, std=0.05)
            continue
        name += ".conv.conv" if kind == "conv" else ".convtr.convtr"
        # Each output of a transposed convolution hears two of the kernel's taps per input channel.
        fan_in = shape[1] * shape[2] if kind == "conv" else shape[0] * 2
        v = _normal(g, *shape, std=gain * fan_in**-0.5)
        state[f"{name}.bias"] = _normal(g, shape[1] if kind == "up" else shape[0], std=0.02 * min(gain, 1.0))
        size = v.flatten(1).norm(dim=1).view(-1, 1, 1)
        stretch = torch.empty(shape[0], 1, 1).uniform_(0.5, 2.0, generator=g)
        state[f"{name}.weight_g"] = size
        state[f"{name}.weight_v"] = v * stretch  # its length does not matter, and tests should notice who thinks so
    bits = math.log2(sizes["codebook_size"]) / sizes["dimension"]
    kept = 4.0**-bits  # share of the variance that the best code of `bits` bits per dimension leaves
    for q in range(sizes["n_codebooks"]):
        layer = f"quantizer.vq.layers.{q}._codebook"
        state[f"{layer}.inited"] = torch.ones(1)
        state[f"{layer}.cluster_size"] = torch.rand(sizes["codebook_size"], generator=g) * 100
        std = max(((1 - kept) * kept**q) ** 0.5, 0.02)
        embed = _normal(g, sizes["codebook_size"], sizes["dimension"], std=std)
        state[f"{layer}.embed"] = embed
        state[f"{layer}.embed_avg"] = embed * 3
    return state


def write_encodec(path: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Write the ``.th`` file of encodec 0.1.1 (a bare state dict). A folder gets the published file name."""
    path = Path(path)
    return _save(encodec_state(seed=seed, **sizes), path if path.suffix == ".th" else path / CODEC_FILE)


def encodec_model(path: Path, bandwidth: float = 6.0, **sizes: Any) -> torch.nn.Module:
    """encodec's own model with the weights of a ``.th`` file; `sizes` as in `write_encodec`."""
    sizes = {**CODEC, **sizes}
    seanet, model, quantization = (reference(f"encodec.{name}") for name in ("modules.seanet", "model", "quantization"))
    shared = {
        "channels": 1,
        "causal": True,
        "norm": "weight_norm",
        "lstm": sizes["lstm_layers"],
        **{k: v for k, v in sizes.items() if k not in ("lstm_layers", "n_codebooks", "codebook_size", "ratios")},
    }
    shared["ratios"] = list(sizes["ratios"])
    encoder, decoder = seanet.SEANetEncoder(**shared), seanet.SEANetDecoder(**shared)
    quantizer = quantization.ResidualVectorQuantizer(
        dimension=sizes["dimension"], n_q=sizes["n_codebooks"], bins=sizes["codebook_size"]
    )
    network = model.EncodecModel(
        encoder, decoder, quantizer, [1.5, 3.0, 6.0, 12.0, 24.0], 24_000, 1, name="encodec_24khz"
    )
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.set_target_bandwidth(bandwidth)
    return network.eval()


# ----------------------------------------------------------------------------------------------------- Hugging Face

_HF_STAGES = {"text": "semantic", "coarse": "coarse_acoustics", "fine": "fine_acoustics"}
_HF_NAMES = (
    ("transformer.wtes.", "input_embeds_layers."),
    ("transformer.wte.", "input_embeds_layer."),
    ("transformer.wpe.", "position_embeds_layer."),
    ("transformer.ln_f.", "layernorm_final."),
    ("transformer.h.", "layers."),
    (".ln_1.", ".layernorm_1."),
    (".ln_2.", ".layernorm_2."),
    (".attn.c_attn.", ".attn.att_proj."),
    (".attn.c_proj.", ".attn.out_proj."),
    (".mlp.c_fc.", ".mlp.in_proj."),
    (".mlp.c_proj.", ".mlp.out_proj."),
)


def _hf_gpt(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for old, new in _HF_NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def _hf_codec(state: Mapping[str, torch.Tensor], weight_norm: str) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        name = name.replace(".model.", ".layers.").replace(".conv.conv.", ".conv.").replace(".convtr.convtr.", ".conv.")
        name = name.replace("quantizer.vq.layers", "quantizer.layers").replace("._codebook.", ".codebook.")
        if weight_norm == "new":
            name = name.replace(".weight_g", ".parametrizations.weight.original0")
            name = name.replace(".weight_v", ".parametrizations.weight.original1")
        renamed[name] = tensor
    return renamed


def _hf_codec_config(sizes: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {**CODEC, **sizes}
    return {
        "hidden_size": sizes["dimension"],
        "num_filters": sizes["n_filters"],
        "upsampling_ratios": list(sizes["ratios"]),
        "kernel_size": sizes["kernel_size"],
        "last_kernel_size": sizes["last_kernel_size"],
        "residual_kernel_size": sizes["residual_kernel_size"],
        "num_residual_layers": sizes["n_residual_layers"],
        "dilation_growth_rate": sizes["dilation_base"],
        "compress": sizes["compress"],
        "num_lstm_layers": sizes["lstm_layers"],
        "codebook_size": sizes["codebook_size"],
    }


GENERATION_CONFIG = {
    "_from_model_config": True,
    "model_type": "bark",
    "sample_rate": 24000,
    "codebook_size": 1024,
    "semantic_config": {
        "model_type": "semantic",
        "do_sample": True,
        "eos_token_id": 10000,
        "max_input_semantic_length": 256,
        "max_new_tokens": 768,
        "semantic_infer_token": 129599,
        "semantic_pad_token": 10000,
        "semantic_rate_hz": 49.9,
        "semantic_vocab_size": 10000,
        "temperature": 0.7,
        "text_encoding_offset": 10048,
        "text_pad_token": 129595,
        "top_k": 50,
        "top_p": 1.0,
    },
    "coarse_acoustics_config": {
        "model_type": "coarse_acoustics",
        "coarse_infer_token": 12050,
        "coarse_rate_hz": 75,
        "coarse_semantic_pad_token": 12048,
        "do_sample": True,
        "eos_token_id": None,
        "max_coarse_history": 630,
        "max_coarse_input_length": 256,
        "n_coarse_codebooks": 2,
        "sliding_window_len": 60,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 1.0,
    },
    "fine_acoustics_config": {
        "model_type": "fine_acoustics",
        "max_fine_history_length": 512,
        "max_fine_input_length": 1024,
        "n_fine_codebooks": 8,
        "temperature": 0.5,
        "top_k": 50,
        "top_p": 1.0,
    },
    "transformers_version": "4.31.0.dev0",
}


def write_hf(
    folder: Path,
    sizes: Mapping[str, Size],
    *,
    safetensors: bool = False,
    tied: bool = True,
    weight_norm: str = "old",
    bias: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    eos_scale: float = 1.0,
    eos_at: int | None = None,
    block_size: int = 1024,
    codec: Mapping[str, Any] | None = None,
    max_shard_size: str | None = None,
) -> Path:
    """Write a Hugging Face Bark folder: config.json, generation_config.json and the weights in one file or shards.

    The weights of the three networks are those that `write_suno` writes for the same seed. transformers' own classes
    build the model and must accept every tensor, so names and shapes are theirs; ``pytorch_model.bin`` holds
    the whole state dict with the mask buffers, as the published one does, and safetensors what ``save_pretrained``
    keeps (of a tied pair, one).

    Args:
      weight_norm: "old" for ``weight_g`` and ``weight_v``, "new" for ``parametrizations.weight.original0`` and ``1``.
      codec: keyword arguments of `encodec_state`.
      max_shard_size: such as "2MB" (safetensors with the new names only).
    """
    import safetensors.torch as st
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    codec = dict(codec or {})
    networks = {}
    for stage in STAGES:
        layers, heads, d = sizes[stage]
        n_in, n_out = VOCABULARIES[stage]
        networks[stage] = {
            "num_layers": layers,
            "num_heads": heads,
            "hidden_size": d,
            "block_size": block_size,
            "input_vocab_size": n_in,
            "output_vocab_size": n_out,
            "bias": bias,
        }
    networks["fine"]["tie_word_embeddings"] = tied
    config = transformers.BarkConfig(
        semantic_config=networks["text"],
        coarse_acoustics_config=networks["coarse"],
        fine_acoustics_config=networks["fine"],
        codec_config={"model_type": "encodec", **_hf_codec_config(codec)},
    )
    model = transformers.BarkModel(config).eval()
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for stage, prefix in _HF_STAGES.items():
        recipe: dict[str, Any] = {"bias": bias, "seed": seed, "scale": scale, "block_size": block_size}
        recipe |= {"eos_scale": eos_scale, "eos_at": eos_at} if stage == "text" else {}
        tensors = gpt_state(stage, sizes[stage], masks=False, tied=tied, **recipe)
        state.update({f"{prefix}.{k}": v for k, v in _hf_gpt(tensors).items()})
    codec_state = encodec_state(seed=seed, **codec)
    state.update({f"codec_model.{k}": v for k, v in _hf_codec(codec_state, "new").items()})
    missing, extra = model.load_state_dict(state, strict=False)
    if extra or [k for k in missing if not k.endswith(".attn.bias")]:
        raise AssertionError(f"the fixture does not fit transformers' model: missing {missing}, extra {extra}")
    for stage in ("semantic", "coarse_acoustics"):
        for i in range(getattr(config, f"{stage}_config").num_layers):
            mask = torch.ones(block_size, block_size, dtype=torch.bool).tril().view(1, 1, block_size, block_size)
            state[f"{stage}.layers.{i}.attn.bias"] = mask
    if weight_norm == "old":
        state = OrderedDict(
            (
                k.replace("parametrizations.weight.original0", "weight_g").replace(
                    "parametrizations.weight.original1", "weight_v"
                ),
                v,
            )
            for k, v in state.items()
        )
    if not safetensors:
        config.architectures = ["BarkModel"]
        config.save_pretrained(folder)
        _save(state, folder / "pytorch_model.bin")
    elif weight_norm == "new":
        shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        model.save_pretrained(folder, **shards)
    else:
        config.architectures = ["BarkModel"]
        config.save_pretrained(folder)
        seen: set[int] = set()
        kept = {}
        for name, tensor in state.items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                kept[name] = tensor.contiguous()
        st.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n")
    return folder


def hf_model(folder: Path) -> torch.nn.Module:
    """transformers' own Bark with the weights of `write_hf`."""
    import transformers

    return transformers.BarkModel.from_pretrained(folder).eval()


class HuggingFace:
    """The stages of transformers' Bark, greedy, with the generation settings of its folder; numpy in and out.

    Args:
      folder: of `write_hf`.
      place, dtype: torch's device and the model's dtype.
    """

    def __init__(self, folder: Path, place: str = "cpu", dtype: torch.dtype = torch.float32):
        from transformers.models.bark import generation_configuration_bark as configs

        self.torch: Any = hf_model(folder).to(place, dtype)
        self.place = place
        settings = json.loads((folder / "generation_config.json").read_text("utf-8"))
        self.semantic_settings = configs.BarkSemanticGenerationConfig(**settings["semantic_config"])
        self.coarse_settings = configs.BarkCoarseGenerationConfig(**settings["coarse_acoustics_config"])
        self.fine_settings = configs.BarkFineGenerationConfig(**settings["fine_acoustics_config"])

    def semantic(self, inputs: Mapping[str, Any], **options: Any) -> np.ndarray:
        """Semantic ids (n,), without the end of speech, of what transformers' processor gives."""
        with torch.no_grad():
            ids = self.torch.semantic.generate(
                **inputs, semantic_generation_config=self.semantic_settings, do_sample=False, **options
            )
        ids = ids[0].cpu().numpy()
        return ids[: int((ids == 10_000).argmax())] if (ids == 10_000).any() else ids

    def coarse(self, words: np.ndarray, prompt: Any, **options: Any) -> np.ndarray:
        """Coarse ids (2 · F,)."""
        with torch.no_grad():
            ids = self.torch.coarse_acoustics.generate(
                self._ids(words),
                history_prompt=prompt,
                semantic_generation_config=self.semantic_settings,
                coarse_generation_config=self.coarse_settings,
                do_sample=False,
                **options,
            )
        return ids[0].cpu().numpy()

    def fine(self, ids: np.ndarray, prompt: Any, temperature: float | None = None) -> np.ndarray:
        """Codes (8, F) of coarse ids; a temperature of None is argmax."""
        codes = self.torch.fine_acoustics.generate(
            self._ids(ids),
            history_prompt=prompt,
            semantic_generation_config=self.semantic_settings,
            coarse_generation_config=self.coarse_settings,
            fine_generation_config=self.fine_settings,
            temperature=temperature,
        )
        return codes[0].cpu().numpy()

    def audio(self, codes: np.ndarray) -> np.ndarray:
        """Audio (320 · F,) float32 of codes (8, F)."""
        with torch.no_grad():
            return self.torch.codec_decode(self._ids(codes))[0].float().cpu().numpy()

    def _ids(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64))[None].to(self.place)


def write_hf_encodec(
    folder: Path, *, safetensors: bool = True, weight_norm: str = "new", seed: int = 0, **sizes: Any
) -> Path:
    """Write a Hugging Face EnCodec folder, as ``facebook/encodec_24khz``."""
    import safetensors.torch as st
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.EncodecConfig(**_hf_codec_config(sizes))
    config.architectures = ["EncodecModel"]
    state = _hf_codec(encodec_state(seed=seed, **sizes), weight_norm)
    transformers.EncodecModel(config).load_state_dict(_hf_codec(encodec_state(seed=seed, **sizes), "new"))
    config.save_pretrained(folder)
    if safetensors:
        st.save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    else:
        _save(OrderedDict(state), folder / "pytorch_model.bin")
    return folder


def write_vocabulary(path: Path, n: int = 119_547) -> Path:
    """Write a ``vocab.txt`` of the multilingual model's size: its special tokens, letters, and made-up words."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in (*range(33, 127), *range(0xA1, 0x180), *range(0x400, 0x460))]
    words += letters + [f"##{c}" for c in letters]
    words += [f"word{i}" for i in range(n - len(words))]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(words[:n]) + "\n", "utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- bark.cpp

GGML_MAGIC = 0x67676D6C
_GGML_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}


def ggml_name(name: str) -> str:
    """What bark.cpp calls a tensor of Suno's: ``transformer.h.3.ln_1.weight`` is ``model/h3/ln_1/g``."""
    path, kind = name.removeprefix("transformer.").rsplit(".", 1)
    path = re.sub(r"^h\.", "h", path).replace(".", "/")
    path = re.sub(r"^(wte|lm_head)s(?=/)", r"\1", path)
    if path in ("wte", "lm_head"):
        path += "/0"
    if path.startswith(("wte/", "lm_head/")) or path == "wpe":
        return f"model/{path}"
    return f"model/{path}/" + ("b" if kind == "bias" else "g" if "ln_" in path else "w")


def _ggml_integers(file: BinaryIO, *values: int) -> None:
    file.write(struct.pack(f"<{len(values)}i", *values))


def _ggml_tensor(file: BinaryIO, name: str, tensor: torch.Tensor, half: bool) -> None:
    values = tensor.contiguous().numpy().astype(np.float16 if half else np.float32)
    label = name.encode()
    _ggml_integers(file, values.ndim, len(label), _GGML_TYPES[values.dtype], *reversed(values.shape))
    file.write(label)
    file.write(values.tobytes())


def write_ggml(
    path: Path,
    sizes: Mapping[str, Size],
    vocabulary: Path,
    *,
    seed: int = 0,
    codec: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """Write the one file that bark.cpp loads (its ggml format of 2024): vocabulary, three networks, EnCodec.

    The weights are those that `write_suno` and `write_encodec` write for the same seed, matrices in float16. But the
    text head's rows after the end of speech are zero: Suno's code cuts these ids off, bark.cpp would draw them.

    Args:
      vocabulary: a ``vocab.txt``.
      codec: keyword arguments of `encodec_state`; bark.cpp knows EnCodec's ratios and number of layers only.
      recipe: `scale`, and for the text network `eos_scale` and `eos_at`, of `gpt_state`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        words = vocabulary.read_text("utf-8").splitlines()
        _ggml_integers(file, GGML_MAGIC, len(words))
        for word in words:
            label = word.encode()
            _ggml_integers(file, len(label))
            file.write(label)
        for stage in STAGES:
            options = {k: v for k, v in recipe.items() if stage == "text" or not k.startswith("eos_")}
            state = gpt_state(stage, sizes[stage], seed=seed, **options)
            if stage == "text":
                state["lm_head.weight"][SEMANTIC_EOS + 1 :] = 0
            layers, heads, width = sizes[stage]
            fine = stage == "fine"
            # The norms of the fine network have biases.
            _ggml_integers(file, layers, heads, width, len(state["transformer.wpe.weight"]), int(fine))
            _ggml_integers(file, *VOCABULARIES[stage], 7 if fine else 1, 8 if fine else 1, 1, len(state))
            for name, tensor in state.items():
                _ggml_tensor(file, ggml_name(name), tensor, tensor.ndim > 1 and "wpe" not in name)
        shape = {**CODEC, **(codec or {})}
        sizes_written = ("dimension", "n_filters", "kernel_size", "residual_kernel_size", "codebook_size")
        _ggml_integers(file, GGML_MAGIC, 1, *(shape[k] for k in sizes_written))
        _ggml_integers(file, 24, 24_000, 1)  # kbit/s of all codebooks, Hz, float16
        weights = encodec_state(seed=seed, **(codec or {}))
        for name, tensor in weights.items():
            if name.endswith(".weight_v"):
                name = name.removesuffix("_v")
                tensor = torch._weight_norm(tensor, weights[name + "_g"], 0)
            elif name.endswith((".weight_g", ".inited", ".cluster_size", ".embed_avg")):
                continue
            _ggml_tensor(file, name, tensor, tensor.ndim > 1 and not name.endswith(".embed"))
    return path
