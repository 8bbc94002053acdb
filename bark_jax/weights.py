"""The native checkpoint: a folder of ``config.json``, ``tokenizer.json`` and one safetensors file per network.

`Writer` makes such a folder completely or not at all; `read` fills the networks of a folder's config and refuses
anything that does not fit. Knows tensors by their path in the module tree ("blocks.0.attn.c_attn.weight"), and nothing
of where they came from: other formats are the converter's (``convert/``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from bark_jax import files
from bark_jax.codec import Codec
from bark_jax.config import BarkConfig
from bark_jax.flat import Weights
from bark_jax.gpt import CausalGPT, FineGPT
from bark_jax.linear import Int8

NETWORKS = ("semantic", "coarse", "fine", "codec")
"""The four networks of a checkpoint, each a ``<name>.safetensors``, in the order of the data."""

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Float dtypes of weights. Only embeddings and linears of the three GPTs are lowered; see `is_matrix`."""

CHOICES = (*DTYPES, "int8")
"""What `read` offers: these, and `Int8`; see `lowered`."""


LOOKED_UP = ("wte.weight", "wpe.weight")
"""Tables of the GPTs of which a step reads single rows, and with which nothing is multiplied."""


class CheckpointError(ValueError):
    """A checkpoint folder that is incomplete, damaged, or does not match its own config."""


def build(config: BarkConfig, network: str, *, seed: int = 0) -> Any:
    """One randomly initialised network of `config` ("semantic", "coarse", "fine" or "codec")."""
    kind, part = {
        "semantic": (CausalGPT, config.semantic.network),
        "coarse": (CausalGPT, config.coarse.network),
        "fine": (FineGPT, config.fine.network),
        "codec": (Codec, config.codec),
    }[network]
    return kind(part, rngs=nnx.Rngs(seed))  # type: ignore[arg-type]


def abstract(config: BarkConfig, network: str) -> Any:
    """One network of `config` without memory: every leaf is a `jax.ShapeDtypeStruct` in float32."""
    return nnx.eval_shape(lambda: build(config, network))


def networks(config: BarkConfig) -> dict[str, Any]:
    """The four networks of `config`, `abstract`, by name."""
    return {name: abstract(config, name) for name in NETWORKS}


def names(module: nnx.Module) -> dict[str, Any]:
    """Tensor name → leaf (array or `jax.ShapeDtypeStruct`) of a module."""
    flat = nnx.to_flat_state(nnx.state(module))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def fill(module: nnx.Module, tensors: Mapping[str, Any]) -> Any:
    """The module over the given arrays in place of its own; names must match exactly (`read` checks them first)."""
    graph, state = nnx.split(module)
    flat = [(path, leaf.replace(tensors[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def is_matrix(network: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one that a low weight dtype applies to: tables and linears of a GPT, never norms or codec."""
    return network != "codec" and len(shape) >= 2


def stored(network: str, name: str, shape: tuple[int, ...], dtype: str) -> str:
    """What a tensor of a network is stored as under one of `CHOICES`: one of them.

    "int8" is for what is multiplied with: linears and heads, and the tables of a fine network that are its heads too.
    Tables that are only looked up become bfloat16.
    """
    if not is_matrix(network, shape):
        return "float32"
    return "bfloat16" if dtype == "int8" and name in LOOKED_UP else dtype


def lowered(network: str, name: str, tensor: np.ndarray, dtype: str) -> np.ndarray | Int8:
    """A tensor of a network as `stored` says."""
    kind = stored(network, name, tensor.shape, dtype)
    return Int8.of(tensor) if kind == "int8" else tensor.astype(DTYPES[kind], copy=False)


class Writer:
    """Context manager that writes a checkpoint folder: complete on success, absent after any error.

    Raises:
      FileExistsError: the target exists and is not an empty folder.
      OSError: the disk is full or the place cannot be written to; the message names path and size.
    """

    def __init__(self, folder: str | Path, config: BarkConfig, tokenizer_json: str):
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))
        self._config, self._tokenizer = config, tokenizer_json
        self._stack = contextlib.ExitStack()
        self._written: set[str] = set()

    def __enter__(self) -> Writer:
        self._temporary = self._stack.enter_context(files.new_folder(self.folder))
        return self

    def write(self, network: str, tensors: Mapping[str, np.ndarray]) -> int:
        """Write one network; returns the bytes of its tensors. Names and shapes are the caller's responsibility."""
        path = self._temporary / f"{network}.safetensors"
        size = sum(tensor.nbytes for tensor in tensors.values())
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        try:
            write_file(path, arrays)
        except safetensors.SafetensorError as error:  # it reports a full disk as its own error
            raise OSError(f"cannot write {path} ({size:,} bytes): {error}") from error
        self._written.add(network)
        return size

    def keep(self, source: Path) -> None:
        """Copy a file, or a folder of files, as it is."""
        if source.is_dir():
            shutil.copytree(source, self._temporary / source.name, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, self._temporary / source.name)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            missing = [name for name in NETWORKS if name not in self._written]
            if missing:
                raise CheckpointError(f"{self.folder}: network(s) {', '.join(missing)} were never written")
            (self._temporary / "tokenizer.json").write_text(self._tokenizer, "utf-8")
            (self._temporary / "config.json").write_text(self._config.to_json(), "utf-8")


def write_file(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """`safetensors.numpy.save_file`, with the mode that files usually have: the library's only their owner can read."""
    path.touch()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    path.chmod(mode)


def serialized(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A small safetensors file with its metadata in order: the library's order changes, and equals shall be equal."""
    file = safetensors.numpy.save(arrays, metadata)
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def is_native(folder: str | Path) -> bool:
    """Whether a folder looks like a native checkpoint (as opposed to something to convert)."""
    return all((Path(folder) / f"{name}.safetensors").exists() for name in NETWORKS)


def save(folder: str | Path, config: BarkConfig, tokenizer_json: str, modules: Mapping[str, Any]) -> None:
    """Write loaded or trained networks (modules or `Weights`, by network name) as a native checkpoint."""
    with Writer(folder, config, tokenizer_json) as writer:
        for network in NETWORKS:
            module = modules[network]
            module = module.module if isinstance(module, Weights) else module
            writer.write(network, {name: np.asarray(leaf) for name, leaf in names(module).items()})


def read(
    folder: str | Path, *, dtype: str = "float32", device: Any = None, host: bool = False
) -> tuple[BarkConfig, str, dict[str, Weights]]:
    """Load a native checkpoint.

    Args:
      folder: what `Writer` made.
      dtype: one of `CHOICES`, for the tables and linears of the GPTs (`lowered`). Norms, biases and the codec stay
        float32.
      device: a `jax.Device` or sharding; None is JAX's default device.
      host: leave numpy's arrays in the memory of the host, to be placed later.

    Returns:
      The config, the text of ``tokenizer.json``, and the four networks by name.

    Raises:
      CheckpointError: a file is missing or damaged, a tensor is missing, unknown, of another shape, or not finite.
        All problems of the folder are reported together.
      ConfigError: ``config.json`` is not valid.
    """
    folder = Path(folder)
    if dtype not in CHOICES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(CHOICES)}")
    for name in ("config.json", "tokenizer.json", *(f"{network}.safetensors" for network in NETWORKS)):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}: a native checkpoint holds config.json, tokenizer.json and "
                f"{', '.join(f'{network}.safetensors' for network in NETWORKS)}"
            )
    config = BarkConfig.load(folder / "config.json")
    problems: list[str] = []
    loaded: dict[str, Weights] = {}
    for network, module in networks(config).items():
        tensors = _tensors(folder / f"{network}.safetensors", module, problems)
        if problems:
            continue
        for name, tensor in tensors.items():
            low: Any = lowered(network, name, tensor, dtype)
            tensors[name] = low if host else jax.device_put(low, device)
        loaded[network] = Weights.of(fill(module, tensors))
    refuse(problems, f"{folder} cannot be loaded")
    try:
        tokenizer_json = (folder / "tokenizer.json").read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'} is not UTF-8 text: {error}") from None
    return config, tokenizer_json, loaded


def read_network(path: str | Path, config: BarkConfig, network: str) -> dict[str, np.ndarray]:
    """One network's file → its tensors by name, in float32, checked against the config.

    Raises:
      CheckpointError: the file is missing or damaged, or a tensor is missing, unknown, of another shape or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: the file of network {network} is needed")
    return read_module(path, abstract(config, network))


def read_module(path: str | Path, module: nnx.Module) -> dict[str, np.ndarray]:
    """A file's tensors by name, in float32, checked against a module of shapes.

    Raises:
      CheckpointError: the file is damaged or missing, or a tensor is missing, unknown, of another shape or not finite.
    """
    path, problems = Path(path), list[str]()
    found = _tensors(path, module, problems)
    refuse(problems, f"{path} cannot be used")
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in found.items()}


def _tensors(path: Path, module: nnx.Module, problems: list[str]) -> dict[str, np.ndarray]:
    """The tensors of a network's file that fit the module; what is wrong with others is added to `problems`."""
    wanted = {name: leaf.shape for name, leaf in names(module).items()}
    tensors: dict[str, np.ndarray] = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = set(file.keys())
            problems += [f"{path.name} lacks {name} {wanted[name]}" for name in wanted if name not in found]
            problems += [f"{path.name} holds an unknown tensor {name}" for name in sorted(found - set(wanted))]
            for name in wanted:
                if name not in found:
                    continue
                shape, stored = tuple(file.get_slice(name).get_shape()), file.get_slice(name).get_dtype()
                if shape != wanted[name]:
                    problems.append(f"{path.name}: {name} has shape {shape}, the config asks for {wanted[name]}")
                elif stored not in ("F32", "BF16", "F16"):
                    problems.append(f"{path.name}: {name} is {stored}: choose F32, BF16 or F16")
                elif all_finite(tensor := file.get_tensor(name)):
                    tensors[name] = tensor
                else:
                    problems.append(f"{path.name}: {name} holds NaN or infinity")
    except (safetensors.SafetensorError, OSError) as error:
        problems.append(f"{path.name} is damaged: {error}")
    return tensors


def refuse(problems: Sequence[str], what: str) -> None:
    """Raises `CheckpointError` if there are problems, with the first twenty of them, a line each."""
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise CheckpointError("\n  ".join([f"{what}:", *problems[:20], *more]))


def all_finite(tensor: np.ndarray) -> bool:
    """Whether a float tensor has neither NaN nor infinity; uses no memory worth mentioning."""
    if tensor.dtype == DTYPES["bfloat16"]:
        return not bool(np.any((tensor.view(np.uint16) & 0x7F80) == 0x7F80))
    # A sum in float64 cannot overflow, and NaN or infinity always survives it.
    return bool(np.isfinite(np.sum(tensor, dtype=np.float64)))
