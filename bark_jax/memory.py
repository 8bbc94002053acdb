"""What a model takes of a device's memory, computed from its config before anything is loaded.

Weights and caches only: what a stage computes with comes on top.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bark_jax import weights
from bark_jax.config import BarkConfig
from bark_jax.placement import Place
from bark_jax.speech import BarkWarning

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@functools.lru_cache(maxsize=1)
def _shapes(config: BarkConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Network → tensor → shape. Kept: every dtype that is asked about needs them."""
    return {
        network: {name: leaf.shape for name, leaf in weights.names(module).items()}
        for network, module in weights.networks(config).items()
    }


def of_weights(config: BarkConfig, dtype: str) -> dict[str, int]:
    """Bytes of each network's weights under one of `weights.CHOICES`."""
    found = {}
    for network, shapes in _shapes(config).items():
        found[network] = 0
        for name, shape in shapes.items():
            kind = weights.stored(network, name, shape, dtype)
            scales = 4 * math.prod(shape[:-1]) if kind == "int8" else 0
            found[network] += BYTES[kind] * math.prod(shape) + scales
    return found


def of_row(config: BarkConfig, dtype: str) -> int:
    """Bytes that a row of a batch takes in the larger of the two caches; `dtype` is the cache's."""
    slots = (
        config.semantic.text_length + config.semantic.max_tokens,
        config.coarse.semantic_length + config.coarse.max_history + config.coarse.window,
    )
    parts = (config.semantic.network, config.coarse.network)
    return max(2 * part.n_layer * part.n_embd * n * BYTES[dtype] for part, n in zip(parts, slots, strict=True))


def need(config: BarkConfig, dtype: str, *, offload: bool = False) -> int:
    """Bytes of a device for the weights: of all networks, or with `offload` of the largest."""
    sizes = of_weights(config, dtype).values()
    return max(sizes) if offload else sum(sizes)


def fitting(folder: Path, dtype: str, places: Sequence[Place], *, offload: bool, chosen: bool) -> list[Place]:
    """Those of the places that a model fits; warns (`BarkWarning`) of those that it does not.

    Args:
      chosen: the user has chosen each of them, so that all must do; otherwise the first must.

    Raises:
      MemoryError: it names what is needed, what there is, and what would fit.
    """
    path = folder / "config.json"
    if not path.is_file():  # whoever reads the folder says what is wrong with it
        return list(places)
    config, fit = BarkConfig.load(path), []
    for place in places:
        try:
            for device in place.devices:
                stats = device.memory_stats() if device.process_index == jax.process_index() else None
                if stats:
                    refuse(config, dtype, stats, str(device), offload=offload, parts=len(place.devices))
        except MemoryError as error:
            if chosen or not fit:
                raise
            warnings.warn(f"{error}. It is left out", BarkWarning, stacklevel=3)
            continue
        fit.append(place)
    return fit


def refuse(
    config: BarkConfig, dtype: str, stats: Mapping[str, Any], device: str, *, offload: bool, parts: int = 1
) -> None:
    """`fitting` by what a device says: ``bytes_limit`` and ``bytes_in_use`` of `jax.Device.memory_stats`.

    Args:
      parts: devices that share the weights.
    """
    limit = stats.get("bytes_limit")
    if limit is None:
        return
    free, asked = limit - stats.get("bytes_in_use", 0), need(config, dtype, offload=offload) // parts
    if asked <= free:
        return
    ways = [(d, o) for o in (False, True) for d in weights.CHOICES if need(config, d, offload=o) // parts <= free]
    fitting = [f'dtype="{d}"' + (", offload=True" if o else "") for d, o in ways]
    choices = "; ".join(fitting) if fitting else "a smaller model, or another device"
    raise MemoryError(
        f"The weights take {asked / 1e6:,.0f} MB in {dtype}{', offloaded' if offload else ''}, and {device} has "
        f"{free / 1e6:,.0f} MB free of {limit / 1e6:,.0f}: choose {choices}"
    )
