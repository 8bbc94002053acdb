"""A native checkpoint folder → Suno's files or a Hugging Face folder: ``python -m convert.export SRC DST --format hf``.

`export` writes what Suno's, EnCodec's and transformers' own code load; `suno_file` writes one of Suno's ``.pt`` files
from a network in memory. Names and layouts are the tables of ``names`` read backwards, so that ``convert`` gives the
same tensors again. Weights are written as float32 whatever the checkpoint stores: a wider copy of the same numbers.

What a format cannot say is refused by name. torch is needed for Suno's format only. Knows nothing of training or of
adapters.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bark_jax import text, weights
from bark_jax.config import BarkConfig, CodecConfig, FineGPTConfig, GPTConfig
from bark_jax.files import absent, new_folder, replacing
from bark_jax.hub import STAGES
from bark_jax.settings import Sampling
from convert import names, run

FORMATS = ("suno", "hf")
SIZES = ("large", "small")
ENCODEC_CODEBOOKS = 32
"""Codebooks of encodec's 24 kHz model (24 kbit/s, 0.75 each). Its loader wants all of them; Bark speaks the first 8."""
ENCODEC_FILE = "encodec_24khz-d7cc33bc.th"
"""What encodec calls the published file, and looks for."""

Tensors = Mapping[str, np.ndarray]


class ExportError(ValueError):
    """A model, or an argument, that the format cannot carry: the message names field, value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What an export did; ``str()`` is the text that the command prints."""

    source: Path
    destination: Path
    format: str
    files: dict[str, int]
    """Files written, and their sizes in bytes."""
    parameters: dict[str, int]
    """Numbers of the native checkpoint that were written, by network."""
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"exported {self.source} as {self.format}"]
        lines += [f"  {network:<8} {count:>13,} parameters, float32" for network, count in self.parameters.items()]
        lines += [f"  wrote  {name}  {size / 1e6:,.1f} MB" for name, size in self.files.items()]
        lines += [f"  note: {note}" for note in self.notes]
        lines.append(f"wrote {self.destination}  {sum(self.files.values()) / 1e6:,.1f} MB in {self.seconds:.1f} s")
        return "\n".join(lines)


def export(
    src: str | Path,
    dst: str | Path,
    *,
    format: str,
    size: str = "large",
    networks: Mapping[str, Mapping[str, Any]] | None = None,
    log: Callable[[str], Any] | None = None,
) -> Report:
    """Write a native checkpoint in another format.

    Args:
      src: a native checkpoint folder.
      dst: the folder to make: complete afterwards, or absent.
      format: "suno" for ``text_2.pt``, ``coarse_2.pt``, ``fine_2.pt``, ``vocab.txt`` and, where encodec's 24 kHz model
        can hold the codec, ``encodec_24khz-<hash>.th``; "hf" for what ``transformers.BarkModel`` and ``BarkProcessor``
        load.
      size: "large" or "small": under which of Suno's names the files are written, ``text_2.pt`` or ``text.pt``. Suno's
        code takes the sizes of a network from the file, so either name fits any network. Without meaning for "hf".
      networks: tensors by native name that take the place of the folder's, by network ("semantic", ...), as a training
        run has them: float32, bfloat16 or float16, of numpy or JAX.
      log: receives one line at a time about what takes long.

    Raises:
      ExportError: the format cannot carry this model. All reasons are listed. Nothing is written.
      CheckpointError, ConfigError, TokenizerError: `src` is not a sound native checkpoint, or `networks` does not fit
        its config. Nothing is written.
      ModuleNotFoundError: torch is not installed, and the format is Suno's.
      FileExistsError: `dst` exists and is not an empty folder.
      OSError: a file cannot be read or written, or the disk is full. Nothing is left behind.
    """
    started = time.monotonic()
    for name, value, choices in (("format", format, FORMATS), ("size", size, SIZES)):
        if value not in choices:
            raise ExportError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    if format == "suno":
        _need_torch()
    model = _Model(Path(src), networks or {}, log or (lambda line: None))
    destination = Path(os.path.abspath(Path(dst).expanduser()))
    problems = (_suno_problems if format == "suno" else _hf_problems)(model.config)
    if model.has_lexicon:
        problems.append("tokenizer.json has a lexicon: neither Suno's code nor transformers knows such a thing")
    if problems:
        raise ExportError("\n  ".join([f"{src} cannot be exported as {format}:", *problems]))
    with new_folder(destination) as folder:
        notes = (
            _write_suno(model, folder, destination, size) if format == "suno" else _write_hf(model, folder, destination)
        )
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    parameters = {
        network: sum(math.prod(shape) for shape in model.shapes(network).values()) for network in weights.NETWORKS
    }
    return Report(
        source=Path(src),
        destination=destination,
        format=format,
        files=files,
        parameters=parameters,
        seconds=time.monotonic() - started,
        notes=tuple(notes),
    )


# --------------------------------------------------------------------------------------------------- the native side


class _Model:
    """A native folder, opened one network at a time."""

    def __init__(self, folder: Path, replaced: Mapping[str, Mapping[str, Any]], log: Callable[[str], Any]):
        needed = [network for network in weights.NETWORKS if network not in replaced]
        wanted = ("config.json", "tokenizer.json", *(f"{network}.safetensors" for network in needed))
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise weights.CheckpointError(
                f"{folder} has no {missing[0]}: an export starts from a native checkpoint, a folder of "
                f"{', '.join(wanted)}"
            )
        strangers = sorted(set(replaced) - set(weights.NETWORKS))
        if strangers:
            raise ExportError(f"networks has {strangers[0]!r}: choose among {', '.join(weights.NETWORKS)}")
        self.folder, self.log = folder, log
        self.config = BarkConfig.load(folder / "config.json")
        self.tokenizer = text.load_tokenizer(folder / "tokenizer.json", self.config.semantic)
        self.has_lexicon = "lexicon" in json.loads((folder / "tokenizer.json").read_bytes())
        self._replaced = replaced

    def shapes(self, network: str) -> dict[str, tuple[int, ...]]:
        return _shapes(self.config, network)

    def read(self, network: str) -> dict[str, np.ndarray]:
        """The tensors of a network by name, checked against the config, in float32."""
        self.log(f"{network}: reading")
        if network in self._replaced:
            return _checked(network, self.shapes(network), self._replaced[network])
        return weights.read_network(self.folder / f"{network}.safetensors", self.config, network)


@functools.lru_cache(maxsize=16)
def _shapes(config: BarkConfig, network: str) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape. Kept, because it means tracing every constructor of the network."""
    return {name: tuple(leaf.shape) for name, leaf in weights.names(weights.abstract(config, network)).items()}


def _checked(network: str, wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    problems = [f"{network} lacks {name} {shape}" for name, shape in wanted.items() if name not in given]
    problems += [f"{network} holds an unknown tensor {name}" for name in sorted(set(given) - set(wanted))]
    tensors = {}
    for name in [name for name in wanted if name in given]:
        array = np.asarray(given[name])
        if array.shape != wanted[name]:
            problems.append(f"{network}: {name} has shape {array.shape}, the config asks for {wanted[name]}")
        elif array.dtype not in (np.float32, np.float16, weights.DTYPES["bfloat16"]):
            problems.append(f"{network}: {name} is {array.dtype}: choose float32, bfloat16 or float16")
        elif not weights.all_finite(array):
            problems.append(f"{network}: {name} holds NaN or infinity")
        else:
            tensors[name] = array.astype(np.float32, copy=False)
    weights.refuse(problems, "these tensors cannot be exported")
    return tensors


# ------------------------------------------------------------------------------------------------- tables, backwards

_GROUP = re.compile(r"\(([^()?][^()]*)\)")
_AXES = {"conv": (2, 1, 0), "up": (0, 2, 1)}
"""Our axes of a convolution's weight in torch's order; both orders undo themselves."""


def source_tensors(network: str, layout: str, config: BarkConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors of a network under the names and in the layout of a source format: `convert`'s tables, inverted.

    Args:
      network: "semantic", "coarse", "fine" or "codec".
      layout: "suno" or "hf"; for the codec "encodec" or "hf".
      tensors: by native name.

    Returns:
      By source name, without any prefix: views of `tensors` where the numbers are the same.
    """
    return _backwards(names.table(network, layout, config), tensors)


def _backwards(table: names.Table, tensors: Tensors) -> dict[str, np.ndarray]:
    ways = [_Way(rule) for rule in table.rules]
    out: dict[str, np.ndarray] = {}
    for target, array in tensors.items():
        found: dict[str, list[str]] = {}
        transforms = set()
        for way in ways:
            for role, source in way.sources(target, len(array)):
                found.setdefault(role, []).append(source)
                transforms.add(way.rule.transform)
        if len(transforms) != 1:
            raise KeyError(f"the table has {len(transforms)} ways to write {target}: it must have one")
        for role, part in _parts(transforms.pop(), array).items():
            # Weight norm has two spellings. The older comes first, and every version of every reader knows it.
            out[found[role][0]] = part
    return out


class _Way:
    """A rule of ``names``, from target to source."""

    def __init__(self, rule: names.Rule):
        self.rule = rule
        groups = _GROUP.findall(rule.pattern)
        pieces = re.split(r"\\(\d)", rule.target)  # literal, number of a group, literal, ...
        self._target = re.compile(
            "".join(f"(?P<g{p}>{groups[int(p) - 1]})" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
        )
        self._source = [re.sub(r"\\(.)", r"\1", piece) for piece in _GROUP.split(rule.pattern)[::2]]

    def sources(self, target: str, length: int) -> Iterator[tuple[str, str]]:
        """(role, source name) of the parts that a target of `length` rows is made of; none if it is not this rule's."""
        match = self._target.fullmatch(target)
        if match is None:
            return
        known = {int(key[1:]): value for key, value in match.groupdict().items()}
        number = re.fullmatch(r"\\(\d)", self.rule.role)
        if number is None:
            yield self.rule.role, self._name(known)
            return
        for i in range(length):
            yield str(i), self._name({**known, int(number[1]): str(i)})

    def _name(self, groups: Mapping[int, str]) -> str:
        return "".join(part + groups.get(i + 1, "") for i, part in enumerate(self._source))


def _parts(transform: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """What the transform of that name makes `array` of, by role."""
    if transform == "copy":
        return {"x": array}
    if transform == "stack":
        return {str(i): part for i, part in enumerate(array)}
    if transform == "add":
        return {"ih": array, "hh": np.zeros_like(array)}
    g, v = split_weight_norm(np.ascontiguousarray(array.transpose(_AXES[transform])))
    return {"g": g, "v": v}


def split_weight_norm(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(g, v) with g · v / ‖v‖ = `weight` along the first axis; g is the norm of each row, v a multiple of it.

    Where torch is installed, its own routine takes the norm, and gives `weight` back to the last bit on this machine.
    Otherwise the norm is correct to float32, and the last bit of what torch then computes may differ.
    """
    flat = weight.reshape(len(weight), -1)
    # Powers of two change no digit, and keep the squares of very small weights from vanishing.
    _, exponent = np.frexp(np.abs(flat).max(axis=1))
    v = np.ldexp(flat, -exponent[:, None])
    zero = ~flat.any(axis=1)
    v[zero] = 1  # a row of zeros has no direction
    try:
        import torch
    except ImportError:
        norm = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=1)).astype(np.float32)
    else:
        v_ = torch.from_numpy(v.reshape(weight.shape))
        norm = torch._weight_norm_interface(v_, torch.ones(len(v), 1, 1), 0)[1].numpy().reshape(-1)
    g = np.ldexp(norm, exponent)
    g[zero] = 0
    return g.reshape(-1, 1, 1), v.reshape(weight.shape)


def _codec_tensors(layout: str, codec: CodecConfig, tensors: Tensors, codebooks: int) -> dict[str, np.ndarray]:
    """The codec in a source layout, with `codebooks` codebooks and the buffers of their training."""
    books = tensors["quantizer.codebooks"]
    spare = np.zeros((codebooks - len(books), *books.shape[1:]), np.float32)
    tensors = {**tensors, "quantizer.codebooks": np.concatenate([books, spare])}
    wide = dataclasses.replace(codec, n_codebooks=codebooks)
    out = _backwards(names.codec_table(layout, wide), tensors)
    for name in [name for name in out if name.endswith(".embed")]:
        stem, book = name.removesuffix("embed"), out[name]
        out[f"{stem}inited"] = np.ones(1, np.float32)
        out[f"{stem}cluster_size"] = np.ones(len(book), np.float32)
        out[f"{stem}embed_avg"] = book.copy()
    return out


# -------------------------------------------------------------------------------------------------------------- Suno


def suno_file(
    stage: str,
    config: BarkConfig,
    tensors: Mapping[str, Any],
    path: str | Path,
    *,
    best_val_loss: float = math.nan,
) -> int:
    """Write one network as one of Suno's ``.pt`` files, complete or not at all.

    Args:
      stage: "text", "coarse" or "fine".
      config: of the model that the network belongs to.
      tensors: of the network, by native name; arrays that numpy can read.
      path: the file to make. Suno's code looks for ``text_2.pt``, ``coarse_2.pt``, ``fine_2.pt`` (large), ``text.pt``,
        ``coarse.pt``, ``fine.pt`` (small).
      best_val_loss: shown by Suno's code when it loads the file.

    Returns:
      The size of the file in bytes.

    Raises:
      ExportError: Suno's code cannot run this network, or there is no such stage.
      CheckpointError: tensors that do not fit the config, or are not finite.
      FileExistsError: `path` exists. `OSError` if it cannot be written.
      ModuleNotFoundError: torch is not installed.
    """
    if stage not in STAGES:
        raise ExportError(f"stage is {stage!r}: choose one of {', '.join(STAGES)}")
    _need_torch()
    network = STAGES[stage]
    problems = _suno_problems(config, networks=(network,))
    if problems:
        raise ExportError("\n  ".join([f"the {stage} network cannot be exported as suno:", *problems]))
    path = Path(os.path.abspath(path))
    checked = _checked(network, _shapes(config, network), tensors)
    absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        return _save_stage(stage, config, checked, part, path, best_val_loss)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError(
            "exporting to Suno's format needs torch: pip install 'bark-jax[convert]'", name="torch"
        ) from None


def _suno_problems(config: BarkConfig, networks: Sequence[str] = tuple(STAGES.values())) -> list[str]:
    """Where a model differs from the constants of Suno's code (``bark/generation.py``), which no file can change."""
    problems = []
    for network in networks:
        part = getattr(config, network)
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name != "network" and value != field.default:
                problems.append(f"{network}.{field.name} is {value!r}: Suno's code has {field.default!r} only")
    if "fine" in networks and config.fine.n_codebooks != 8:
        problems.append(f"fine.network.n_codes_total is {config.fine.n_codebooks}: Suno's code has 8 only")
    if config.fingerprint != "suno":
        problems.append(
            f"fingerprint is {config.fingerprint!r}: Suno's files cannot say so, and stand for 'suno' tokens only"
        )
    return problems


def _write_suno(model: _Model, folder: Path, destination: Path, size: str) -> list[str]:
    vocabulary = _vocabulary(model)
    for stage, network in STAGES.items():
        name = f"{stage}.pt" if size == "small" else f"{stage}_2.pt"
        _save_stage(stage, model.config, model.read(network), folder / name, destination / name, math.nan)
    (folder / "vocab.txt").write_text(vocabulary, "utf-8", newline="\n")
    codec = model.config.codec
    standard = dataclasses.replace(CodecConfig(), n_codebooks=codec.n_codebooks)
    odd = [
        field.name for field in dataclasses.fields(codec) if getattr(codec, field.name) != getattr(standard, field.name)
    ]
    if odd:
        shown = ", ".join(f"{name} = {getattr(codec, name)!r} (not {getattr(standard, name)!r})" for name in odd)
        return [
            "the codec was left out: Suno's code has encodec's 24 kHz model only, and this one has "
            f"{shown}. What Suno's code makes of the tokens of this model is not what bark_jax makes of them"
        ]
    tensors = _codec_tensors("encodec", codec, model.read("codec"), ENCODEC_CODEBOOKS)
    path = folder / "encodec_24khz.th"
    _torch_save(_torch_tensors(tensors), path, destination / path.name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    named = path.rename(folder / f"encodec_24khz-{digest}.th")
    return [
        f"Suno's code looks for the codec in torch's hub folder, as {ENCODEC_FILE}: put {named.name} there so named, "
        "unless this model's codec is the published one",
        f"codebooks {codec.n_codebooks + 1} to {ENCODEC_CODEBOOKS} of {named.name} are zeros: the checkpoint has "
        f"{codec.n_codebooks}, and zeros change no sound",
    ]


def _save_stage(stage: str, config: BarkConfig, tensors: Tensors, path: Path, shown: Path, best_val_loss: float) -> int:
    """Write a ``.pt`` file to `path`; errors name `shown`. Returns its size."""
    import torch

    network = STAGES[stage]
    part = getattr(config, network).network
    own = {name: tensor for name, tensor in tensors.items() if name != "lm_heads.weight"}
    state = _torch_tensors(source_tensors(network, "suno", config, own))
    if isinstance(part, FineGPTConfig):
        for i, head in enumerate(_heads(part, tensors)):
            table = names.FINE_TABLES["suno"].format(i + 1)
            if not np.array_equal(head, state[table].numpy()):
                raise ExportError(
                    f"fine.network.tied is {part.tied} with n_codes_given = {part.n_codes_given}, and the head of "
                    f"codebook {part.n_codes_given + i} differs from the table of codebook {i + 1}: Suno's code makes "
                    "the two one tensor"
                )
            state[f"lm_heads.{i}.weight"] = state[table]
    content = {
        "model": state,
        "model_args": _suno_args(part),
        "best_val_loss": torch.tensor(best_val_loss),
    }
    return _torch_save(content, path, shown)


def _suno_args(part: GPTConfig | FineGPTConfig) -> dict[str, Any]:
    keys = [*names.SUNO_ARGS, "input_vocab_size", "output_vocab_size"]
    keys += ["n_codes_total", "n_codes_given"] if isinstance(part, FineGPTConfig) else []
    return {**{key: getattr(part, key) for key in keys}, "dropout": 0.0}


def _heads(part: FineGPTConfig, tensors: Tensors) -> np.ndarray:
    """(n_codes_total - n_codes_given, V, D): the heads of the fine network, wherever they are kept."""
    return tensors["wtes.weight"][part.n_codes_given :] if part.tied else tensors["lm_heads.weight"]


def _torch_tensors(tensors: Tensors) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.require(tensor, requirements=["C", "W"])) for name, tensor in tensors.items()}


def _torch_save(content: Any, path: Path, shown: Path) -> int:
    import torch

    try:
        with path.open("wb") as file:  # given a name, torch would write it into the file
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # its own writer reports a full disk as a RuntimeError
        state = content.get("model", content)
        size = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in state.values()}.values())
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"cannot write {shown} ({size:,} bytes): {line}") from error
    return path.stat().st_size


def _vocabulary(model: _Model) -> str:
    """The text of a ``vocab.txt`` that makes the model's tokenizer."""
    ids = model.tokenizer.get_vocab(with_added_tokens=True)
    lines = sorted(ids, key=ids.__getitem__)
    same = not any("\n" in line or line.endswith("\r") for line in lines)
    if same:
        try:
            same = text.build_tokenizer(lines, model.config.semantic).to_str() == model.tokenizer.to_str()
        except text.TokenizerError:
            same = False
    if not same:
        kind = type(model.tokenizer.model).__name__
        raise ExportError(
            f"the tokenizer is a {kind} that differs from BERT's cased WordPiece on the same {len(lines):,} tokens: "
            "Suno's code has that one only"
        )
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------ Hugging Face


def _hf_problems(config: BarkConfig) -> list[str]:
    """Where a model differs from what transformers' Bark and EnCodec take for granted."""
    semantic, coarse, fine, codec = config.semantic, config.coarse, config.fine, config.codec
    size = codec.codebook_size
    rules = (
        ("coarse.code_offset", coarse.code_offset, semantic.vocab_size, "semantic.vocab_size"),
        ("coarse.n_codebooks", coarse.n_codebooks, 2, "2, for it alternates between two codebooks"),
        ("fine.pad_token", fine.pad_token, size, "codebook_size"),
        ("fine.hop", fine.hop, fine.max_history, "fine.max_history"),
    )
    problems = []
    for name, value, allowed, why in rules:
        if value != allowed:
            reason = f"{why} = {allowed}" if not why[0].isdigit() else why
            problems.append(f"{name} is {value}: transformers' Bark needs {reason}")
    for name in ("widths", "residual_layers"):
        if getattr(codec, name):
            problems.append(f"codec.{name} is {getattr(codec, name)}: transformers' EnCodec knows no such setting")
    if codec.lstm_layers < 1:
        problems.append(f"codec.lstm_layers is {codec.lstm_layers}: transformers' EnCodec needs 1 or more")
    if size < 2 or size & (size - 1):
        problems.append(f"codec.codebook_size is {size}: transformers' EnCodec needs a power of 2, 2 or more")
    return problems


def _write_hf(model: _Model, folder: Path, destination: Path) -> list[str]:
    tokenizer_config, notes = _hf_tokenizer(model)
    documents = {
        "config.json": _hf_config(model.config),
        "generation_config.json": _hf_generation(model.config),
        "tokenizer_config.json": tokenizer_config,
    }
    for name, tree in documents.items():
        (folder / name).write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
    (folder / "tokenizer.json").write_text(model.tokenizer.to_str(), "utf-8")

    # The header of the file comes first and names every tensor, so the shapes are found out on arrays of no size.
    blank = {
        network: {name: np.broadcast_to(np.float32(0), shape) for name, shape in model.shapes(network).items()}
        for network in weights.NETWORKS
    }
    layout = {network: _hf_tensors(network, model.config, blank[network]) for network in weights.NETWORKS}
    shapes = {name: part.shape for parts in layout.values() for name, part in parts.items()}
    masks = {}
    for network in ("semantic", "coarse"):
        part = getattr(model.config, network).network
        for i in range(part.n_layer):
            masks[f"{names.HF_PREFIXES[network]}layers.{i}.attn.bias"] = part.block_size
    path, size = folder / "model.safetensors", sum(4 * math.prod(s) for s in shapes.values())
    try:
        with path.open("wb") as file:
            _header(file, shapes, {name: (1, 1, n, n) for name, n in masks.items()})
            for network in weights.NETWORKS:
                parts = _hf_tensors(network, model.config, model.read(network))
                for name in layout[network]:
                    file.write(np.ascontiguousarray(parts[name]).data.cast("B"))
                del parts
            for n in masks.values():  # last: one byte a number, so that every float before lies on a multiple of four
                file.write(np.tril(np.ones((n, n), bool)).data.cast("B"))
    except OSError as error:
        raise OSError(f"cannot write {destination / path.name} ({size:,} bytes): {error}") from error
    return notes


def _header(file: BinaryIO, floats: Mapping[str, tuple[int, ...]], masks: Mapping[str, tuple[int, ...]]) -> None:
    """The start of a safetensors file: the length of the JSON as 8 bytes, and the JSON, padded to a multiple of 8."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for kind, width, tensors in (("F32", 4, floats), ("BOOL", 1, masks)):
        for name, shape in tensors.items():
            start, end = end, end + width * math.prod(shape)
            tree[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(tree).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)


def _hf_tensors(network: str, config: BarkConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """Float tensors of a network by their names in a Bark of transformers."""
    if network == "codec":
        out = _codec_tensors("hf", config.codec, tensors, config.codec.n_codebooks)
    else:
        if network == "fine":  # tied heads as well: older versions of transformers do not find them in the tables
            tensors = {**tensors, "lm_heads.weight": _heads(config.fine.network, tensors)}
        out = source_tensors(network, "hf", config, tensors)
    return {names.HF_PREFIXES[network] + name: tensor for name, tensor in out.items()}


def _hf_tied(part: FineGPTConfig) -> bool:
    """Whether transformers may share heads and tables: it pairs head i with table i + 1, whatever codebook i is of."""
    return part.tied and part.n_codes_given == 1


def _hf_config(config: BarkConfig) -> dict[str, Any]:
    tree: dict[str, Any] = {"architectures": ["BarkModel"], "model_type": "bark"}
    if config.fingerprint != "suno":
        tree[names.HF_FINGERPRINT] = config.fingerprint
    for network in STAGES.values():
        part = getattr(config, network).network
        keys = names.HF_GPT | (names.HF_FINE if network == "fine" else {})
        kind = names.HF_PREFIXES[network].removesuffix(".")
        section = {theirs: getattr(part, ours) for theirs, ours in keys.items()}
        tree[f"{kind}_config"] = {"model_type": kind, **section, "dropout": 0.0}
        if network == "fine":
            tree[f"{kind}_config"]["tie_word_embeddings"] = _hf_tied(part)
    fixed = {key: values[-1] for key, values in names.HF_CODEC_FIXED.items() if key != "activation"}
    sizes = {theirs: getattr(config.codec, ours) for theirs, ours in names.HF_CODEC.items()}
    tree["codec_config"] = {**fixed, **sizes, "target_bandwidths": _bandwidths(config.codec)}
    return tree


def _bandwidths(codec: CodecConfig) -> list[float]:
    """Kilobits per second: all codebooks, and half of them, and a quarter, as many as there are.

    transformers derives the number of codebooks from the last one.
    """
    per_codebook = math.ceil(codec.frame_rate) * math.log2(codec.codebook_size)
    counts = [codec.n_codebooks]
    while len(counts) < 3 and counts[0] % 2 == 0:
        counts.insert(0, counts[0] // 2)
    rates = []
    for count in counts:
        rate = count * per_codebook / 1000
        while 1000 * rate // per_codebook < count:
            rate = math.nextafter(rate, math.inf)
        rates.append(rate)
    return rates


def _hf_generation(config: BarkConfig) -> dict[str, Any]:
    taste = Sampling()
    drawn = {"do_sample": True, "top_k": 0, "top_p": 1.0}
    tree: dict[str, Any] = {
        "model_type": "bark",
        "sample_rate": config.codec.sample_rate,
        "codebook_size": config.codec.codebook_size,
    }
    for network, extra in (
        ("semantic", {**drawn, "temperature": taste.text_temperature, "min_eos_p": taste.min_eos_p}),
        ("coarse", {**drawn, "temperature": taste.coarse_temperature}),
        ("fine", {"temperature": taste.fine_temperature, "n_fine_codebooks": config.fine.n_codebooks}),
    ):
        part = getattr(config, network)
        kind = names.HF_PREFIXES[network].removesuffix(".")
        values = {theirs: getattr(part, ours) for theirs, ours in names.HF_GENERATION[network].items()}
        whole = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in values.items()}
        tree[f"{kind}_config"] = {"model_type": kind, **whole, **extra}
    return tree


def _hf_tokenizer(model: _Model) -> tuple[dict[str, Any], list[str]]:
    """``tokenizer_config.json``, and notes on what transformers' processor will not know."""
    known = model.tokenizer.get_vocab(with_added_tokens=True)
    special = {f"{token[1:-1].lower()}_token": token for token in text.SPECIAL_TOKENS if token in known}
    tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.semantic.text_length,
        **special,
    }
    notes = []
    if "pad_token" not in special:
        notes.append("the tokenizer has no [PAD]: transformers' BarkProcessor needs a pad_token of your choice")
    length = model.config.semantic.text_length
    if length != 256:
        notes.append(f"transformers' BarkProcessor pads texts to 256 tokens: call it with max_length={length}")
    return tree, notes


# ----------------------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert.export", description="Write a native checkpoint as Suno's files or as a Hugging Face folder."
    )
    parser.add_argument("src", metavar="SRC", help="native checkpoint folder")
    parser.add_argument("dst", metavar="DST", help="folder to make")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--size", choices=SIZES, default="large", help="suno: text_2.pt (large) or text.pt (small)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 only if DST is complete."""
    arguments = _parser().parse_args(argv)
    return run(lambda: export(arguments.src, arguments.dst, format=arguments.format, size=arguments.size, log=print))


if __name__ == "__main__":
    sys.exit(main())
