"""A model and what was trained on it → one model: networks in the place of its own, adapters added to its weights.

Takes a native checkpoint folder and files of the trainer (``coarse.safetensors``, ``adapter.safetensors``); gives
tensors, or a native folder. Other formats are the converter's (`convert.export`). Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bark_jax import adapters, hub, weights
from bark_jax.config import BarkConfig
from bark_jax.weights import CheckpointError

Tensors = dict[str, np.ndarray]


def changed(
    base: str | Path, networks: Sequence[str | Path] = (), adapter_files: Sequence[str | Path] = ()
) -> dict[str, Tensors]:
    """The networks that differ from the base's, by name: tensors in float32.

    Args:
      base: a native checkpoint folder; of networks that are replaced it needs no file.
      networks: files of whole networks, named after them: ``semantic.safetensors``, ``coarse.safetensors``,
        ``fine.safetensors`` (or ``codec.safetensors``).
      adapter_files: adapters, added to the weights that they were trained on. They may change each network once.

    Raises:
      CheckpointError, ConfigError: a network that is damaged, or does not fit the base's config.
      AdapterError: an adapter that is damaged, or that was trained on another base.
      ValueError: a file that is not named after a network, or a network that is named twice.
      OSError: a file cannot be read.
    """
    base = Path(base)
    config = BarkConfig.load(base / "config.json")
    files: dict[str, Path] = {}
    for file in map(Path, networks):
        if file.stem not in weights.NETWORKS or file.suffix != ".safetensors":
            choices = ", ".join(f"{name}.safetensors" for name in weights.NETWORKS)
            raise ValueError(f"{file} is not the file of a network: it must be named {choices}")
        if file.stem in files:
            raise ValueError(f"{file.stem} is given twice, as {files[file.stem]} and as {file}: give it once")
        files[file.stem] = file
    out = {network: weights.read_network(file, config, network) for network, file in files.items()}
    if adapter_files:
        joined = adapters.join([adapters.read(file, config) for file in adapter_files])
        for network in joined.networks:
            whole = out.get(network)
            if whole is None:
                whole = weights.read_network(base / f"{network}.safetensors", config, network)
            out[network] = adapters.merge(whole, network, joined)
    return out


def native(dst: str | Path, base: str | Path, replaced: Mapping[str, Tensors]) -> Path:
    """Write a native folder: the base with some networks replaced (see `changed`), the others as they are, in float32.

    What the base has besides, `hub.BESIDE`, goes with it. The folder is complete afterwards, or absent.

    Raises:
      FileExistsError: `dst` exists and is not an empty folder.
      CheckpointError: a network is neither in the base nor among the replaced ones, or is damaged.
      OSError: something cannot be read or written.
    """
    base = Path(base)
    config = BarkConfig.load(base / "config.json")
    if not (base / "tokenizer.json").is_file():
        raise CheckpointError(f"{base} has no tokenizer.json, which a native checkpoint holds")
    with weights.Writer(dst, config, (base / "tokenizer.json").read_text("utf-8")) as writer:
        for network in weights.NETWORKS:
            writer.write(
                network, replaced.get(network) or weights.read_network(base / f"{network}.safetensors", config, network)
            )
        for name in hub.BESIDE:
            if (base / name).exists():
                writer.keep(base / name)
    return Path(dst)
