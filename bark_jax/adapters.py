"""Low-rank adapters: their files, several of them on one network, and merging one into the weights.

An adapter is, for some linears W of a network, a pair A (r, in), B (out, r): it makes W + scale · B A out of W, with
scale = alpha / r. A file holds one or more networks' pairs and what they were trained on. `attach` lays any number of
adapters beside a network, so that each row of a batch chooses its own or none; `merge` adds one to the weights. Knows
the linears of the three GPTs and nothing of training, texts or audio.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from bark_jax import weights as checkpoints
from bark_jax.config import BarkConfig
from bark_jax.files import replacing
from bark_jax.flat import Weights, beside
from bark_jax.linear import ChosenLowRank, Linear, LowRank, inner

FORMAT = "bark-jax-adapter-1"
"""``format`` in the metadata of an adapter file."""

NETWORKS = ("semantic", "coarse", "fine")
"""Networks that can have adapters."""

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The linears of every block, as the ends of their paths ("blocks.0.attn.c_attn")."""

MAX_VALUE = 1e6
"""Largest size of a value. Every row of a batch is multiplied with every adapter and the products of those it does not
use are set to 0, which an infinite product would survive."""

_MAX_HEADER_BYTES = 1 << 20
"""A file for all linears of Suno's large model has a header of about 60 kB."""

_DTYPES = tuple(checkpoints.DTYPES.values())
_METADATA = ("format", "fingerprint", "networks")
_PART = {"rank": int, "alpha": float, "targets": list, "base": str, "notes": dict}

Module = TypeVar("Module", bound=nnx.Module)


class AdapterError(ValueError):
    """An adapter, or a file of one, that is damaged, contradicts itself, or does not fit the model."""


# --- what an adapter is -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """An adapter's share of one network.

    Raises:
      AdapterError: arrays of other shapes than (rank, in) and (out, rank), of different ranks, of another dtype than
        float32 or bfloat16, or with values that are not finite or beyond `MAX_VALUE`; an alpha beyond its range.
    """

    tensors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Path of a linear ("blocks.0.attn.c_attn") → A (rank, in) and B (out, rank), float32 or bfloat16."""
    alpha: float
    """The adapter is scaled by alpha / rank."""
    base: str
    """`base_digest` of the network that it was trained on."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Whatever its maker wants to remember; nothing depends on it."""

    def __post_init__(self) -> None:
        if not self.tensors:
            raise AdapterError("an adapter has no tensors: it must have a pair a, b for at least one linear")
        tensors = {path: (np.asarray(a), np.asarray(b)) for path, (a, b) in self.tensors.items()}
        object.__setattr__(self, "tensors", tensors)
        rank = self.rank
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha <= MAX_VALUE:
            raise AdapterError(f"alpha is {str(self.alpha)[:40]}: it must be a number above 0, at most {MAX_VALUE:g}")
        for path, pair in tensors.items():
            _target(path)
            for name, array, axis in (("a", pair[0], 0), ("b", pair[1], 1)):
                if array.dtype not in _DTYPES:
                    raise AdapterError(f"{path}.{name} is {array.dtype}: choose float32 or bfloat16")
                if array.ndim != 2 or array.shape[axis] != rank or not array.size:
                    shape = f"({rank}, in)" if name == "a" else f"(out, {rank})"
                    raise AdapterError(
                        f"{path}.{name} has shape {array.shape}: with rank {rank}, that of the first a, it is {shape}"
                    )
                if not checkpoints.all_finite(array):
                    raise AdapterError(f"{path}.{name} holds NaN or infinity: all values must be finite")
                most = float(np.max(np.abs(array)))
                if most > MAX_VALUE:
                    raise AdapterError(f"{path}.{name} holds a value of size {most:.3g}: the limit is {MAX_VALUE:g}")
        if not all(isinstance(x, str) for item in self.notes.items() for x in item):
            raise AdapterError(f"notes are {str(self.notes)[:80]}: they must be strings, by names that are strings")

    @property
    def rank(self) -> int:
        a, _ = next(iter(self.tensors.values()))
        return a.shape[0] if a.ndim == 2 else 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def targets(self) -> tuple[str, ...]:
        """Those of `TARGETS` that it changes, in some block."""
        used = {_target(path) for path in self.tensors}
        return tuple(target for target in TARGETS if target in used)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank changes of one or more networks.

    Raises:
      AdapterError: a network that cannot have adapters, or no network at all.
    """

    networks: Mapping[str, Part]
    """Name of a network ("semantic", "coarse", "fine") → what changes in it."""
    fingerprint: str = "suno"
    """Names the model's token space, see `BarkConfig.fingerprint`."""

    def __post_init__(self) -> None:
        if not self.networks:
            raise AdapterError(f"an adapter has no networks: it must have at least one of {', '.join(NETWORKS)}")
        for network in self.networks:
            _known(network)

    def noted(self, **notes: str) -> Adapter:
        """The same with more notes at every network."""
        parts = {name: dataclasses.replace(one, notes={**one.notes, **notes}) for name, one in self.networks.items()}
        return dataclasses.replace(self, networks=parts)


def join(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter out of several for different networks, such as one for each stage.

    Raises:
      AdapterError: two of them change the same network, or they are for models of different token spaces.
    """
    networks: dict[str, Part] = {}
    for adapter in adapters:
        twice = [network for network in adapter.networks if network in networks]
        if twice:
            raise AdapterError(f"two adapters for {', '.join(twice)} cannot be one: give each a name of its own")
        networks.update(adapter.networks)
    fingerprints = sorted({adapter.fingerprint for adapter in adapters})
    if len(fingerprints) > 1:
        raise AdapterError(f"adapters for models of the token spaces {', '.join(fingerprints)} cannot be one")
    return Adapter(networks, *fingerprints)


def base_digest(network: nnx.Module | Mapping[str, Any]) -> str:
    """What an adapter remembers of the network it was trained on: 16 hexadecimal digits.

    They are those of a SHA-256 over the layer norms, which are float32 in every copy of a model, and over the signs of
    the position table, which survive rounding to bfloat16 or float16. So a rounded copy has the same digest, and a
    model that was trained further has another one, unless these tensors were frozen.

    Args:
      network: a network, or its tensors by name; with adapters in it or without.
    """
    tensors = checkpoints.names(network) if isinstance(network, nnx.Module) else network
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if re.search(r"(^|\.)ln_\w+\.(weight|bias)$", name):
            data = np.asarray(tensors[name], "<f4").tobytes()
        elif name == "wpe.weight":
            data = np.packbits(np.signbit(np.asarray(tensors[name]).astype(np.float32))).tobytes()
        else:
            continue
        digest.update(f"{name}{list(tensors[name].shape)}".encode())
        digest.update(data)
    return digest.hexdigest()[:16]


# --- adapters in a network --------------------------------------------------------------------------------------------


def linears(network: nnx.Module, targets: Iterable[str] = TARGETS) -> dict[str, Any]:
    """Path → linear of all linears of the blocks that the targets name: a `Linear`, or the `LowRank` in its place.

    Raises:
      AdapterError: a target that is not one of `TARGETS`.
    """
    chosen = list(targets)
    for target in chosen:
        if target not in TARGETS:
            raise AdapterError(f"target {target!r} is unknown: choose from {', '.join(TARGETS)}")
    blocks: Any = network.blocks  # type: ignore[attr-defined]
    found = {}
    for i, block in enumerate(blocks):
        for target in TARGETS:
            if target in chosen:
                part, name = target.split(".")
                found[f"blocks.{i}.{target}"] = getattr(getattr(block, part), name)
    return found


def shapes(network: nnx.Module, ranks: Mapping[str, int]) -> dict[str, tuple[Any, Any, Any]]:
    """What `wrap` takes, without memory: path → float32 `jax.ShapeDtypeStruct` of a (r, in), b (out, r), gate (1, r).

    Args:
      ranks: path of a linear, see `linears`, → rank.
    """
    out = {}
    for path, rank in ranks.items():
        n_out, n_in = _linear(network, path).weight.shape
        out[path] = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rank, n_in), (n_out, rank), (1, rank)))
    return out  # type: ignore[return-value]


def wrap(network: Module, pairs: Mapping[str, tuple[Any, Any, Any]], *, kind: type[LowRank] = LowRank) -> Module:
    """A copy of the network with a `LowRank` in the place of each linear that `pairs` names; the arrays are shared.

    For ``wrapped = wrap(abstract, shapes(abstract, dict.fromkeys(linears(abstract), 32)))`` the new tensors are called
    "blocks.0.attn.c_attn.a", ".b" and ".gate", and the linear's own "blocks.0.attn.c_attn.base.weight".

    Args:
      network: a GPT whose leaves are arrays or `jax.ShapeDtypeStruct`, without adapters in the named places.
      pairs: path of a linear → a (r, in), b (out, r) and gate (1 or rows, r), of the same kinds.
      kind: what is put there; `ChosenLowRank` speaks, a plain `LowRank` learns.
    """
    leaves, structure = jax.tree.flatten(network)
    copy = jax.tree.unflatten(structure, leaves)
    for path, (a, b, gate) in pairs.items():
        parent, _, name = path.rpartition(".")
        owner: Any = copy
        base = _linear(copy, path)
        for step in parent.split("."):
            owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
        setattr(owner, name, kind(base, a, b, gate))
    return copy


class Adapted:
    """A network with adapters beside its linears; `rows` chooses per row of a batch. Made by `attach`."""

    def __init__(self, weights: Weights, gates: Sequence[tuple[np.ndarray, Sequence[int]]], n: int):
        self.weights, self._gates, self._n = weights, gates, n

    def rows(self, indices: Sequence[int], weights: Weights | None = None) -> Weights:
        """The network for a batch of ``len(indices)`` rows.

        Only the row count decides which program runs it, never which adapters the rows use.

        Args:
          indices: of each row, 0 for no adapter, i for the i-th of the adapters.
          weights: a copy of `weights` in another place, which is used instead.
        """
        wrong = [i for i in indices if not 0 <= i <= self._n]
        if wrong:
            raise ValueError(f"adapter index {wrong[0]} is out of range: it must be 0 (none) to {self._n}")
        weights = self.weights if weights is None else weights
        leaves = list(weights.leaves)
        chosen = np.asarray(indices, np.int64)
        for table, places in self._gates:
            gate = beside(leaves[places[0]], table[chosen])
            for place in places:
                leaves[place] = gate
        return Weights(tuple(leaves), weights.structure)


def attach(weights: Weights, network: str, adapters: Sequence[Adapter], names: Sequence[str] | None = None) -> Adapted:
    """Lay adapters beside a network. Those without a part for this network leave it as it is.

    Within a batch a row gives what it gives alone with its adapter at the same row count, and a row without an adapter
    what the network itself gives, bit for bit on CPUs.

    Args:
      weights: of the network; its arrays are used, not copied.
      network: "semantic", "coarse" or "fine".
      adapters: numbered from 1, see `Adapted.rows`. Their weights take the dtype of the linear that they change;
        float32 beside one of 8 bits.
      names: what errors call them; None: their numbers.

    Raises:
      AdapterError: an adapter changes a linear that the network lacks, has other shapes, or was trained on another
        base.
    """
    _known(network)
    module = weights.module
    parts = [adapter.networks.get(network) for adapter in adapters]
    for number, part in enumerate(parts, 1):
        if part is not None:
            try:
                _check_fit(part, network, linears(module))
                _check_base(part, network, module)
            except AdapterError as error:
                called = repr(names[number - 1]) if names else number
                raise AdapterError(f"adapter {called}: {error}") from None
    pairs, tables = {}, {}
    for path, linear in linears(module).items():
        # Of each adapter: its pair for this linear, or nothing.
        touching = [(i, p, *p.tensors[path]) for i, p in enumerate(parts, 1) if p is not None and path in p.tensors]
        if not touching:
            continue
        weight = linear.weight.get_value()
        low_in = np.concatenate([np.asarray(a, np.float32) for _, _, a, _ in touching])
        low_out = np.concatenate([np.asarray(b, np.float32) for _, _, _, b in touching], axis=1)
        table, start = np.zeros((len(adapters) + 1, len(low_in)), np.float32), 0
        for i, part, _, _ in touching:
            table[i, start : start + part.rank] = part.scale
            start += part.rank
        place = inner(weight)
        dtype = np.float32 if place.dtype == np.int8 else place.dtype
        a, b = (beside(place, x.astype(dtype)) for x in (low_in, low_out))
        tables[path] = table
        pairs[path] = a, b, beside(place, np.zeros((1, len(table[0])), np.float32))
    wrapped = Weights.of(wrap(module, pairs, kind=ChosenLowRank))
    numbers = {id(leaf): i for i, leaf in enumerate(wrapped.leaves)}
    # Linears whose adapters have the same ranks and scales, which is most of them, share one gate.
    shared: dict[tuple[tuple[int, ...], bytes], tuple[np.ndarray, list[int]]] = {}
    for path, table in tables.items():
        _, places = shared.setdefault((table.shape, table.tobytes()), (table, []))
        places.append(numbers[id(pairs[path][2])])
    return Adapted(wrapped, list(shared.values()), len(adapters))


def merge(network: nnx.Module | Mapping[str, Any], name: str, adapter: Adapter) -> dict[str, Any]:
    """The tensors of a network with an adapter added to its weights: W + scale · B A.

    Args:
      network: a network without adapters, or its tensors by name.
      name: "semantic", "coarse" or "fine".
      adapter: if it has no part for this network, nothing changes.

    Returns:
      Tensors by name. The changed ones are numpy float32 of whatever dtype W was, computed in float64, so rounded
      once; the others are those given.

    Raises:
      AdapterError: as for `attach`.
    """
    tensors = dict(checkpoints.names(network) if isinstance(network, nnx.Module) else network)
    part = adapter.networks.get(_known(name))
    if part is None:
        return tensors
    known = {key.removesuffix(".weight"): leaf for key, leaf in tensors.items() if key.endswith(".weight")}
    _check_fit(part, name, {path: leaf for path, leaf in known.items() if path.endswith(TARGETS)})
    _check_base(part, name, tensors)
    for path, (a, b) in part.tensors.items():
        change = part.scale * (b.astype(np.float64) @ a.astype(np.float64))
        tensors[f"{path}.weight"] = (np.asarray(known[path]).astype(np.float64) + change).astype(np.float32)
    return tensors


# --- files ------------------------------------------------------------------------------------------------------------


def save(path: str | Path, adapter: Adapter) -> None:
    """Write an adapter as safetensors: completely, or not at all.

    Tensors are called "NETWORK.LINEAR.a" and "NETWORK.LINEAR.b" and keep their dtype. The metadata are ``format``,
    ``fingerprint``, and ``networks``: JSON with rank, alpha, targets, base and notes of each.

    Raises:
      AdapterError: the path does not end in ``.safetensors``.
      OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path} ends in {path.suffix!r}: an adapter is a .safetensors file")
    tensors, parts = {}, {}
    for network, part in adapter.networks.items():
        parts[network] = {
            "rank": part.rank,
            "alpha": float(part.alpha),
            "targets": list(part.targets),
            "base": part.base,
            "notes": dict(part.notes),
        }
        for linear, (a, b) in part.tensors.items():
            tensors[f"{network}.{linear}.a"] = np.ascontiguousarray(a)
            tensors[f"{network}.{linear}.b"] = np.ascontiguousarray(b)
    metadata = {"format": FORMAT, "fingerprint": adapter.fingerprint, "networks": json.dumps(parts)}
    with replacing(path) as part:
        part.write_bytes(checkpoints.serialized(tensors, metadata))


def read(path: str | Path, config: BarkConfig) -> Adapter:
    """Read an adapter for a model of the given sizes. Its base is compared when it meets the weights, in `attach`.

    Raises:
      AdapterError: not an adapter file, or not one for this model; up to 20 wrong tensors are named together.
      OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory: name the file in it, adapter.safetensors", str(path))
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise AdapterError(f"{path} is cut off, or no safetensors file: it has {size:,} bytes")
    if length > _MAX_HEADER_BYTES:
        raise AdapterError(
            f"{path} has a header of {length:,} bytes: the limit for an adapter is {_MAX_HEADER_BYTES:,}"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return _parse(file, str(path), config)
    except safetensors.SafetensorError as error:
        raise AdapterError(f"{path} is no safetensors file, or a broken one: {error}") from None


def _parse(file: Any, source: str, config: BarkConfig) -> Adapter:
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise AdapterError(f"{source} has format {str(metadata.get('format'))[:40]!r}: an adapter has {FORMAT!r}")
    if set(metadata) != set(_METADATA):
        keys = ", ".join(sorted(metadata))[:200]
        raise AdapterError(f"{source} has the metadata {keys}: an adapter has {', '.join(_METADATA)}")
    fingerprint = metadata["fingerprint"]
    if fingerprint != config.fingerprint:
        raise AdapterError(
            f"{source} is for a model of the token space {fingerprint[:80]!r}: this model's is {config.fingerprint!r}"
        )
    try:
        about = json.loads(metadata["networks"])
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{source} has broken metadata: networks is not JSON: {error}") from None
    if not isinstance(about, dict) or not about:
        raise AdapterError(
            f"{source} has broken metadata: networks is {str(about)[:80]}: it must be an object, by name"
        )
    for network, values in about.items():
        where = f"{source}: networks: {network[:40]}"
        if network not in NETWORKS:
            raise AdapterError(f"{where} is unknown: choose from {', '.join(NETWORKS)}")
        if not isinstance(values, dict) or set(values) != set(_PART):
            given = ", ".join(sorted(values))[:200] if isinstance(values, dict) else str(values)[:80]
            raise AdapterError(f"{where} has {given}: it must have {', '.join(_PART)}")
        for key, kind in _PART.items():
            if type(values[key]) is not kind and not (kind is float and type(values[key]) is int):
                raise AdapterError(f"{where}: {key} is {str(values[key])[:80]}: it must be of type {kind.__name__}")
    tensors = _tensors(file, source, config, about)
    networks = {}
    for network, values in about.items():
        where = f"{source}: {network}"
        if not tensors[network]:
            raise AdapterError(f"{where} has no tensors: it must have a pair a, b for at least one linear")
        try:
            part = Part(tensors[network], values["alpha"], values["base"], values["notes"])
        except AdapterError as error:
            raise AdapterError(f"{where}: {error}") from None
        if list(part.targets) != values["targets"]:
            given = str(values["targets"])[:120]
            raise AdapterError(f"{where}: targets is {given}, its tensors are for {list(part.targets)}")
        networks[network] = part
    return Adapter(networks, fingerprint)


def _tensors(
    file: Any, source: str, config: BarkConfig, about: Mapping[str, Any]
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Network → path → pair. Names, shapes and dtypes are compared with the config before any tensor is read."""
    wanted: dict[str, tuple[int, int]] = {}
    for network, values in about.items():
        rank = values["rank"]
        for path, (n_out, n_in) in _sizes(config, network).items():
            wanted[f"{network}.{path}.a"], wanted[f"{network}.{path}.b"] = (rank, n_in), (n_out, rank)
    found, problems = set(file.keys()), []
    for name in sorted(found):
        network = name.partition(".")[0]
        view = file.get_slice(name)
        stored, shape = view.get_dtype(), tuple(view.get_shape())
        stem, twin = name[:-2], name[:-1] + ("b" if name.endswith(".a") else "a")
        if network not in about:
            problems.append(f"{name[:120]} belongs to no network of its metadata: {', '.join(about)}")
        elif name not in wanted:
            problems.append(
                f"{name[:120]} is unknown: names are {network}.blocks.0.{TARGETS[0]}.a or .b, with blocks 0 to "
                f"{getattr(config, network).network.n_layer - 1} and {', '.join(TARGETS)}"
            )
        elif twin not in found:
            problems.append(f"{name} is alone: {stem} must have both a and b")
        elif shape != wanted[name]:
            problems.append(
                f"{name} has shape {shape}, the model and rank {about[network]['rank']} ask for {wanted[name]}"
            )
        elif stored not in ("F32", "BF16"):
            problems.append(f"{name} is {stored}: choose F32 or BF16")
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise AdapterError(f"{source} does not fit the model:\n  {shown}{more}")
    tensors: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {network: {} for network in about}
    for name in wanted:  # in the order of the network
        if name in found and name.endswith(".a"):
            network, _, path = name[:-2].partition(".")
            tensors[network][path] = file.get_tensor(name), file.get_tensor(f"{name[:-1]}b")
    return tensors


def gather(
    adapters: Mapping[str, str | Path | Adapter | Sequence[str | Path | Adapter]], config: BarkConfig
) -> dict[str, Adapter]:
    """What `load` was given, by name: files are read, and several for different networks become one.

    Raises:
      AdapterError: a name that is not a string of 1 to 100 printable characters, a value that is neither path nor
        `Adapter`, or whatever is wrong with a file.
      OSError: a file cannot be read.
    """
    if not isinstance(adapters, Mapping):
        raise AdapterError(f"adapters is {str(adapters)[:80]!r}: it must be a mapping such as {{'name': 'path'}}")
    out = {}
    for name, given in adapters.items():
        if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable():
            raise AdapterError(
                f"the name of an adapter is {str(name)[:120]!r}: it must be 1 to 100 printable characters"
            )
        items: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if not items:
            raise AdapterError(f"adapter {name!r} is an empty list: it must be a path, or several")
        for item in items:
            if not isinstance(item, str | Path | Adapter):
                raise AdapterError(f"adapter {name!r} is {str(item)[:80]!r}: it must be a path or an Adapter")
        read_in = [item if isinstance(item, Adapter) else read(item, config) for item in items]
        try:
            out[name] = join(read_in)
        except AdapterError as error:
            raise AdapterError(f"adapter {name!r}: {error}") from None
        if out[name].fingerprint != config.fingerprint:  # one that was never a file
            raise AdapterError(
                f"adapter {name!r} is for a model of the token space {out[name].fingerprint[:80]!r}: this model's is "
                f"{config.fingerprint!r}"
            )
    return out


# --- checks -----------------------------------------------------------------------------------------------------------


def _known(network: str) -> str:
    if network not in NETWORKS:
        raise AdapterError(f"network {network!r} cannot have adapters: choose from {', '.join(NETWORKS)}")
    return network


def _target(path: str) -> str:
    """The target that a path ends in."""
    match = re.fullmatch(r"blocks\.(?:0|[1-9]\d*)\.(\w+\.\w+)", path)
    if match is None or match[1] not in TARGETS:
        raise AdapterError(f"linear {path[:120]!r} is unknown: choose blocks.N with one of {', '.join(TARGETS)}")
    return match[1]


def _linear(network: nnx.Module, path: str) -> Linear:
    linear = linears(network, [_target(path)]).get(path)
    if linear is None:
        last = len(network.blocks) - 1  # type: ignore[attr-defined]
        raise AdapterError(f"linear {path!r} is not in the network: its blocks are 0 to {last}")
    if isinstance(linear, LowRank):
        raise AdapterError(f"linear {path!r} has adapters already: give the network without them")
    return linear


def _check_fit(part: Part, network: str, known: Mapping[str, Any]) -> None:
    """Whether a part's linears are those of a network (path → linear or weight), in shape too."""
    for path, (a, b) in part.tensors.items():
        if path not in known:
            raise AdapterError(f"{network} has no linear {path!r} without adapters: its linears are {_some(known)}")
        n_out, n_in = getattr(known[path], "weight", known[path]).shape
        if (a.shape[1], b.shape[0]) != (n_in, n_out):
            raise AdapterError(
                f"{path}: a {a.shape} and b {b.shape} do not fit the {network} network, whose linear has {n_in} inputs "
                f"and {n_out} outputs"
            )


def _check_base(part: Part, network: str, base: nnx.Module | Mapping[str, Any]) -> None:
    digest = base_digest(base)
    if part.base != digest:
        raise AdapterError(
            f"trained on another {network} network: on base {part.base[:40]!r}, and this one is {digest!r}; `bark-jax "
            "info` shows the bases of a model"
        )


@lru_cache(maxsize=len(NETWORKS))
def _sizes(config: BarkConfig, network: str) -> dict[str, tuple[int, int]]:
    """Path → (out, in) of a network's linears; kept, because building even a network without memory takes its time."""
    return {path: linear.weight.shape for path, linear in linears(checkpoints.abstract(config, network)).items()}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" … {names[-1]}" if len(names) > 4 else "")
