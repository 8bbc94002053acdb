"""HuBERT-base and a quantizer → ``units.safetensors``: ``python -m convert.units HUBERT QUANTIZER MODEL``.

Takes Hugging Face's ``facebook/hubert-base-ls960`` (a folder, or its weight file) or fairseq's
``hubert_base_ls960.pt``, and a community quantizer (``quantifier_hubert_base_ls960_14.pth`` and its kin, versions 0
and 1). Writes the file into a converted Bark model, for `Bark.audio_to_semantic` and cloning. Every tensor is used once
or listed as left out: HuBERT's later blocks, and what only its training needs.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bark_jax import units
from bark_jax.config import BarkConfig
from bark_jax.hubert import Hubert, HubertConfig
from bark_jax.weights import names as tensor_names
from convert import ConversionError, read, run
from convert.transforms import fold_weight_norm

_FAIRSEQ = ("fairseq.data.dictionary.Dictionary",)
"""What fairseq's file holds besides tensors and plain values."""

QUANTIZER = "quantifier_hubert_base_ls960_14.pth"

# Ours → (Hugging Face's, fairseq's); {} is the number of a layer.
_NAMES = {
    "convs.{}": ("feature_extractor.conv_layers.{}.conv", "feature_extractor.conv_layers.{}.0"),
    "channel_norm": ("feature_extractor.conv_layers.0.layer_norm", "feature_extractor.conv_layers.0.2"),
    "feature_norm": ("feature_projection.layer_norm", "layer_norm"),
    "projection": ("feature_projection.projection", "post_extract_proj"),
    "positions": ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    "norm": ("encoder.layer_norm", "encoder.layer_norm"),
    "blocks.{}.query": ("encoder.layers.{}.attention.q_proj", "encoder.layers.{}.self_attn.q_proj"),
    "blocks.{}.key": ("encoder.layers.{}.attention.k_proj", "encoder.layers.{}.self_attn.k_proj"),
    "blocks.{}.value": ("encoder.layers.{}.attention.v_proj", "encoder.layers.{}.self_attn.v_proj"),
    "blocks.{}.out": ("encoder.layers.{}.attention.out_proj", "encoder.layers.{}.self_attn.out_proj"),
    "blocks.{}.norm_1": ("encoder.layers.{}.layer_norm", "encoder.layers.{}.self_attn_layer_norm"),
    "blocks.{}.mlp_in": ("encoder.layers.{}.feed_forward.intermediate_dense", "encoder.layers.{}.fc1"),
    "blocks.{}.mlp_out": ("encoder.layers.{}.feed_forward.output_dense", "encoder.layers.{}.fc2"),
    "blocks.{}.norm_2": ("encoder.layers.{}.final_layer_norm", "encoder.layers.{}.final_layer_norm"),
}
_LEFT_OUT = re.compile(r"masked_spec_embed|mask_emb|final_proj\..*|label_embs_concat|lm_head\..*|classifier\..*")
_NORMED = (("weight_v", "weight_g"), ("parametrizations.weight.original1", "parametrizations.weight.original0"))
"""Names of direction and size under weight norm, old and new."""


def convert_units(
    hubert: str | Path, quantizer: str | Path, model: str | Path, *, log: Callable[[str], Any] = print
) -> Path:
    """Write ``units.safetensors`` into a converted model.

    Args:
      hubert: a Hugging Face folder, or a file of tensors (.safetensors, .bin, .pt).
      quantizer: a ``.pth`` of gitmylo's ``CustomTokenizer``.
      model: the folder of a converted Bark model.

    Returns:
      The file.

    Raises:
      ConversionError: files that are damaged, refused, or not these networks; all problems of a file are named.
      FileExistsError: the model has a ``units.safetensors`` already.
      OSError: a file cannot be read or written.
    """
    folder = Path(model)
    target = folder / "units.safetensors"
    bark = BarkConfig.load(folder / "config.json")
    if target.exists():
        raise FileExistsError(f"{target} exists: remove it to make it anew")
    first, layers = _hubert(Path(hubert), log)
    second, sizes = _quantizer(Path(quantizer))
    config = HubertConfig(n_layer=layers, **first.pop("config"), **sizes)  # type: ignore[arg-type]
    tensors = {**first, **second}
    wanted = _shapes(config)
    problems = [f"{name}: it is missing" for name in wanted if name not in tensors]
    problems += [
        f"{name} has shape {tensors[name].shape}: it must have {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise ConversionError(
            "\n  ".join([f"{hubert} and {quantizer} are not HuBERT-base and its quantizer:", *problems[:20]])
        )
    units.check_fit(config, bark)
    units.save(target, config, tensors)
    log(f"{target}: HuBERT to layer {layers}, quantizer version {1 if config.middle else 0}")
    return target


def _shapes(config: HubertConfig) -> dict[str, tuple[int, ...]]:
    from flax import nnx

    module = nnx.eval_shape(lambda: Hubert(config, rngs=nnx.Rngs(0)))
    return {name: leaf.shape for name, leaf in tensor_names(module).items()}


def _open(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        files = read._weight_files(path)
        if not files:
            raise ConversionError(f"{path} has no weights: it must hold model.safetensors or pytorch_model.bin")
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"There is no {path}")
    inside = ""
    if files[0].suffix == ".pt":  # fairseq puts its state under "model"
        content = read.load_pickle(files[0], _FAIRSEQ)
        inside = "model" if isinstance(content, dict) and "model" in content else ""
    return read.Source("hf", tuple(files), inside=inside, ignored=_FAIRSEQ).open()


def _hubert(path: Path, log: Callable[[str], Any], n_layer: int = 9) -> tuple[dict[str, Any], int]:
    """Our tensors of HuBERT up to block `n_layer`, and "config": what its tensors say of its sizes."""
    theirs = {name.removeprefix("hubert."): tensor for name, tensor in _open(path).items()}
    layout = 0 if any(name.startswith("feature_projection.") for name in theirs) else 1
    left = set(theirs)
    out: dict[str, Any] = {}

    def take(name: str) -> np.ndarray | None:
        tensor = theirs.get(name)
        if tensor is None:
            return None
        left.discard(name)
        return tensor.float().numpy()

    n_conv = len({name.split(".")[2] for name in theirs if name.startswith("feature_extractor.conv_layers.")})
    for ours, both in _NAMES.items():
        for i in range(n_conv if ours.startswith("convs") else n_layer if "{}" in ours else 1):
            source, target = both[layout].format(i), ours.format(i)
            for part in ("weight", "bias"):
                array = take(f"{source}.{part}")
                if array is not None and array.ndim == 3:  # (out, in, K) → (K, in, out)
                    array = array.transpose(2, 1, 0)
                if array is not None:
                    out[f"{target}.{part}"] = array
    for v, g in _NORMED:
        source = _NAMES["positions"][layout]
        if f"{source}.{v}" in theirs and f"{source}.{g}" in theirs:
            folded = fold_weight_norm(theirs[f"{source}.{v}"].float(), theirs[f"{source}.{g}"].float(), axis=2)
            out["positions.weight"] = folded.numpy().transpose(2, 1, 0)
            left -= {f"{source}.{v}", f"{source}.{g}"}
    later = {name for name in left if (at := re.match(r"encoder\.layers\.(\d+)\.", name)) and int(at[1]) >= n_layer}
    unused = {name for name in left if _LEFT_OUT.fullmatch(name)}
    if strangers := sorted(left - later - unused):
        raise ConversionError(f"{path} is not HuBERT-base: it has {', '.join(strangers[:8])}")
    if later or unused:
        log(f"left out: {len(later)} tensors of later blocks, {len(unused)} of training")
    kernels = tuple(out[f"convs.{i}.weight"].shape[0] for i in range(n_conv) if f"convs.{i}.weight" in out)
    sizes: dict[str, Any] = {}
    if kernels == HubertConfig.kernels and {"projection.weight", "positions.weight", "blocks.0.mlp_in.weight"} <= set(
        out
    ):
        width, conv_width = out["projection.weight"].shape
        position, group, _ = out["positions.weight"].shape
        sizes = {
            "conv_width": conv_width,
            "width": width,
            "ffn": out["blocks.0.mlp_in.weight"].shape[0],
            "n_head": max(1, width // 64),
            "position_kernel": position,
            "position_groups": width // group,
        }
    else:
        raise ConversionError(
            f"{path} is not HuBERT-base: its convolutions have kernels {kernels}, and must have {HubertConfig.kernels}"
        )
    return {**out, "config": sizes}, n_layer


def _quantizer(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Our tensors of a quantizer, and its sizes."""
    source = read.Source("hf", (path,), ignored=_FAIRSEQ)  # or HuBERT in its place would be called dangerous
    theirs = {name: tensor.float().numpy() for name, tensor in source.open().items()}
    layers = len([name for name in theirs if name.startswith("lstm.weight_ih_l")])
    out: dict[str, np.ndarray] = {}
    wanted: set[str] = set()
    for i in range(layers):
        parts = {part: f"lstm.{part}_l{i}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        wanted |= set(parts.values())
        if set(parts.values()) <= set(theirs):
            out |= {f"lstm.{i}.{part}": theirs[parts[part]] for part in ("weight_ih", "weight_hh")}
            out[f"lstm.{i}.bias"] = theirs[parts["bias_ih"]] + theirs[parts["bias_hh"]]
    linears = {"head": "fc"} | ({"middle": "intermediate"} if "intermediate.weight" in theirs else {})
    for ours, name in linears.items():
        for part in ("weight", "bias"):
            wanted.add(f"{name}.{part}")
            if f"{name}.{part}" in theirs:
                out[f"{ours}.{part}"] = theirs[f"{name}.{part}"]
    missing, strangers = sorted(wanted - set(theirs)), sorted(set(theirs) - wanted)
    if not layers or missing or strangers:
        shown = [*(f"lacks {name}" for name in missing[:4]), *(f"has {name}" for name in strangers[:4])]
        raise ConversionError(f"{path} is not a quantizer of HuBERT's features: it {', '.join(shown) or 'has no LSTM'}")
    return out, {
        "lstm_layers": layers,
        "lstm_width": out["lstm.0.weight_hh"].shape[1],
        "middle": out["middle.weight"].shape[0] if "middle.weight" in out else 0,
        "n_units": out["head.weight"].shape[0],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m convert.units", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("hubert", metavar="HUBERT", help="facebook/hubert-base-ls960: a folder or a file")
    parser.add_argument("quantizer", metavar="QUANTIZER", help=f"such as {QUANTIZER}")
    parser.add_argument("model", metavar="MODEL", help="folder of a converted model")
    arguments = parser.parse_args(argv)
    return run(lambda: convert_units(arguments.hubert, arguments.quantizer, arguments.model))


if __name__ == "__main__":
    sys.exit(main())
