"""Sources → names, tensors and settings. Finds out what a folder holds, and opens it without trusting it.

Takes paths, gives `Found`: per network where its tensors are, and the settings that come with them. Pickles are read by
torch's restricted reader only, after a scan of our own that names what it refuses; there is no other way in. Tensors
are maps of the file: nothing is in memory before it is used. Knows nothing of bark_jax's tensor names.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch

from bark_jax import hub, text
from bark_jax.config import BarkConfig, SemanticConfig
from convert import ConversionError, names, transforms

CODEC_REPO = "facebook/encodec_24khz"
VOCABULARY_REPO = "google-bert/bert-base-multilingual-cased"

# ------------------------------------------------------------------------------------------------------------- pickles

GLOBALS = frozenset(
    [
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        *(f"torch.{kind}Storage" for kind in "Float Half BFloat16 Double Bool Byte Char Short Int Long".split()),
        "collections.OrderedDict",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
    ]
)
"""All that the published files import (and the plain storages of other dtypes)."""

_REFUSED_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
"""Other ways of a pickle to name or make an object; torch's own writer uses none of them."""

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before it wrote zip archives
MAX_PICKLE_BYTES = 32 * 2**20
"""Largest pickle inside an archive; that of the largest published file, with optimizer state, has under 1 MB."""


class Ignored:
    """Stands for an object of a class whose objects are not needed: what it held is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _scan_pickle(stream: BinaryIO, path: Path, ignored: Collection[str]) -> None:
    refused = _REFUSED_OPCODES - ({"NEWOBJ"} if ignored else set())  # torch's reader makes allowed classes alone by it
    strings = ["?", "?"]
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = None
            if opcode.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif opcode.name in refused:
                name = ".".join(strings[-2:]) if opcode.name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
                name = f"{name} (by the opcode {opcode.name})"
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument[:100]]
            if name is not None and name not in GLOBALS and name not in ignored:
                raise ConversionError(
                    f"{path} is refused: its pickle names {name}, which no Bark checkpoint needs and which could run "
                    f"code. Allowed are {', '.join(sorted(GLOBALS))}"
                )
    except ConversionError:
        raise
    except Exception as error:  # pickletools raises whatever the broken bytes lead to
        raise ConversionError(f"{path} is damaged: it holds no valid pickle ({_line(error)})") from None


def _scan(path: Path, ignored: Collection[str]) -> bool:
    """Refuse what torch should not even begin to read. Returns whether the file is an archive (and can be mapped)."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        if start == _LEGACY:
            file.seek(0)
            for _ in range(5):  # magic number, protocol, machine, content, storage keys; then raw numbers
                _scan_pickle(file, path, ignored)
            return False
    if not start.startswith(b"PK\x03\x04"):
        raise ConversionError(
            f"{path} is not a checkpoint of torch: it must be a zip archive as torch.save writes it"
            + ("" if start else " (the file is empty)")
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            roots = {member.filename.split("/")[0] for member in members}
            seen: set[str] = set()
            for member in members:
                parts = member.filename.split("/")
                if member.filename in seen or ".." in parts or "" in parts[:-1] or "\\" in member.filename:
                    raise ConversionError(f"{path} is refused: its archive has the member {member.filename!r}")
                seen.add(member.filename)
                if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                    raise ConversionError(
                        f"{path} is refused: {member.filename} is compressed ({member.compress_size:,} to "
                        f"{member.file_size:,} bytes), and torch.save compresses nothing"
                    )
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ConversionError(f"{path} is refused: its members overlap")
            pickles = [name for name in seen if name.endswith(".pkl")]
            if len(roots) != 1 or pickles != [f"{next(iter(roots))}/data.pkl"]:
                raise ConversionError(f"{path} is not a checkpoint of torch: it must hold one folder with one data.pkl")
            if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
                raise ConversionError(f"{path} is refused: its data.pkl is larger than {MAX_PICKLE_BYTES:,} bytes")
            order = f"{next(iter(roots))}/byteorder"
            if order in seen and archive.read(order).strip() != b"little":
                raise ConversionError(f"{path} is refused: it was written on a big-endian machine")
            _scan_pickle(io.BytesIO(archive.read(pickles[0])), path, ignored)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} is damaged or cut short: {_line(error)}") from None
    return True


def load_pickle(path: Path, ignored: Collection[str] = ()) -> Any:
    """The content of a file of ``torch.save``, tensors as maps of the file.

    Args:
      ignored: classes of the file whose objects are not needed, by name; an `Ignored` stands for each of them.

    Raises:
      ConversionError: damaged, or its pickle asks for anything beyond `GLOBALS` and `ignored`. No code of it runs.
    """
    mapped = _scan(path, ignored)
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8")),
        *((Ignored, name) for name in ignored),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ...: the file decides which
        raise ConversionError(f"{path} cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# ------------------------------------------------------------------------------------------------------------- sources


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the tensors of one network are."""

    layout: str
    """Which table of ``names`` fits: "suno", "hf" or "encodec"."""
    files: tuple[Path, ...]
    prefix: str = ""
    """Of a file that holds several networks, the tensors of this one start so."""
    inside: str = ""
    """Key of the state dict, if it is not the whole content."""
    ignored: tuple[str, ...] = ()
    """As of `load_pickle`."""

    def open(self) -> dict[str, torch.Tensor]:
        """The tensors by name, without prefixes. Dropping the last of them closes the files."""
        tensors: dict[str, torch.Tensor] = {}
        for path in self.files:
            for name, tensor in _tensors(path, self.prefix, self.inside, self.ignored).items():
                short = name.removeprefix(self.prefix).removeprefix("_orig_mod.")
                if short in tensors:
                    raise ConversionError(f"{path} holds {name} twice, with and without the prefix of torch.compile")
                tensors[short] = tensor
        return tensors


@dataclasses.dataclass
class Found:
    """What a conversion reads."""

    folder: Path
    networks: dict[str, Source]
    """By network: "semantic", "coarse", "fine", "codec"."""
    settings: dict[str, Any]
    """Of Suno's files the ``model_args`` by network; of Hugging Face "config" and "generation"; "codec" if apart."""
    tokenizer: Path
    files: list[Path]
    notes: list[str]
    tie: bool = True
    """Whether heads that are absent may be taken from the tables."""


def _tensors(path: Path, prefix: str, inside: str, ignored: Collection[str] = ()) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in list(file.keys()) if name.startswith(prefix)}
        except safetensors.SafetensorError as error:
            raise ConversionError(f"{path} is damaged or no safetensors file: {_line(error)}") from None
    content = load_pickle(path, ignored)
    state = content.get(inside) if inside and isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise ConversionError(f"{path} is not a Bark checkpoint: it holds no table of tensors{_at(inside)}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(
                f"{path} is not a Bark checkpoint: {str(name)[:80]!r}{_at(inside)} is {type(tensor).__name__}, "
                "where a tensor must be"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ConversionError(f"{path}: {name} is sparse, quantized or without data: it must be a plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(
                f"{path}: {name} claims shape {tuple(tensor.shape)}, its data has "
                f"{tensor.untyped_storage().nbytes():,} bytes: it must be a plain tensor"
            )
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _at(inside: str) -> str:
    return f" under the key {inside!r}" if inside else ""


def shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in source.open().items()}


def strangers(found: Found) -> list[str]:
    """Tensors of a Hugging Face file that belong to none of the four networks, as problems."""
    prefixes = tuple(names.HF_PREFIXES.values())
    problems = []
    if found.networks["semantic"].layout == "hf":
        for path in found.networks["semantic"].files:
            for name in _tensors(path, "", ""):
                if not name.startswith(prefixes):
                    problems.append(f"{path.name}: {name} belongs to none of Bark's networks")
    return problems


def refuse_existing(folder: Path) -> None:
    """Raise `FileExistsError` early if a folder cannot be the destination."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: choose another destination, or remove it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 64 * 2**20:
            raise ConversionError(f"{path} has {path.stat().st_size:,} bytes: no config is that long")
        tree = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} is not valid JSON: {_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConversionError(f"{path} holds {type(tree).__name__}: it must hold one JSON object")
    return tree


def _weight_files(folder: Path) -> list[Path]:
    """The weight file of a Hugging Face folder, or its shards; safetensors before pickles; empty if there are none."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        path, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
        if path.is_file():
            return [path]
        if not index.is_file():
            continue
        mapping = _read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise ConversionError(f"{index} has no weight_map: it must say which file holds which tensor")
        pattern = re.compile(rf"{stem}-\d+-of-\d+\.{ending}")
        files = set(mapping.values())
        wrong = [str(name) for name in files if not isinstance(name, str) or not pattern.fullmatch(name)]
        if wrong:
            raise ConversionError(
                f"{index} names {wrong[0][:80]!r}: its files must be {stem}-…-of-….{ending} beside it"
            )
        paths = [folder / name for name in sorted(files)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ConversionError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
        return paths
    return []


def find(
    src: str | Path,
    *,
    codec: str | Path | None,
    tokenizer: str | Path | None,
    sizes: str | Mapping[str, str] | None,
    local_files_only: bool,
    log: Callable[[str], Any],
) -> Found:
    """Find what `src` holds, and what it lacks elsewhere; see `convert.convert`."""
    choice = _choice(sizes)
    patterns = None
    if isinstance(src, str) and hub.is_hub_id(src) and not Path(src).is_dir():
        log(f"{src} is no folder here: asking the hub")
        if choice:
            chosen = [f"{stage}.pt" if choice.get(stage) == "small" else f"{stage}_2.pt" for stage in hub.STAGES]
            patterns = [*chosen, "encodec_24khz*.th", "vocab.txt", "tokenizer.json"]
    folder = hub.resolve(src, allow_patterns=patterns, local_files_only=local_files_only)
    if all((folder / f"{network}.safetensors").is_file() for network in names.HF_PREFIXES):
        raise ConversionError(f"{folder} is converted already: load it as it is")
    codec_path = None if codec is None else _existing(codec, "the codec")
    tokenizer_path = None if tokenizer is None else _existing(tokenizer, "the tokenizer")

    there = {stage: _suno_files(folder, stage) for stage in hub.STAGES}
    config_path = folder / "config.json"
    notes: list[str] = []
    weight_files: list[Path] = []
    if config_path.is_file() and not choice:
        weight_files = _weight_files(folder)
    networks: dict[str, Source] = {}
    settings: dict[str, Any] = {}
    if weight_files:
        tree = _read_json(config_path)
        if tree.get("model_type") != "bark":
            raise ConversionError(f"{config_path}: model_type is {tree.get('model_type')!r}: it must be 'bark'")
        settings["config"] = tree
        if (folder / "generation_config.json").is_file():
            settings["generation"] = _read_json(folder / "generation_config.json")
        for network, prefix in names.HF_PREFIXES.items():
            networks[network] = Source("hf", tuple(weight_files), prefix)
        if any(there.values()):
            notes.append(f"took {weight_files[0].name}; the .pt files beside it were not needed (--size chooses them)")
        if codec_path is None and not networks["codec"].open():
            networks.pop("codec")
    elif any(there.values()):
        for stage, path in _choose(folder, there, choice).items():
            networks[hub.STAGES[stage]] = Source("suno", (path,), inside="model")
    else:
        raise ConversionError(
            f"{folder} holds no Bark: it must have text, coarse and fine .pt files (text.pt or text_2.pt, ...), or "
            f"config.json with model.safetensors or pytorch_model.bin. It has {_listing(folder)}"
        )
    files = [path for network in networks.values() for path in network.files]
    if codec_path is not None or "codec" not in networks:
        networks["codec"], settings["codec"] = _codec(folder, codec_path, local_files_only, log)
        files += networks["codec"].files
        if weight_files and codec_path is not None:
            notes.append(f"took the codec from {codec_path}, not the one in {weight_files[0].name}")
    return Found(
        folder=folder,
        networks=networks,
        settings=settings,
        tokenizer=_tokenizer(folder, tokenizer_path, local_files_only, log),
        files=list(dict.fromkeys(files)),
        notes=notes,
    )


def _existing(path: str | Path, what: str) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise ConversionError(f"{what} {path} does not exist")
    return path


def _listing(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    return (", ".join(found[:12]) + (", ..." if len(found) > 12 else "")) or "no files"


def _choice(sizes: str | Mapping[str, str] | None) -> dict[str, str]:
    choice = dict.fromkeys(hub.STAGES, sizes) if isinstance(sizes, str) else dict(sizes or {})
    for stage, size in choice.items():
        if stage not in hub.STAGES or size not in ("small", "large"):
            raise ConversionError(
                f"size of {stage} is {size!r}: choose small or large for {', '.join(hub.STAGES)}, or one for all"
            )
    return choice


def _suno_files(folder: Path, stage: str) -> dict[str, Path]:
    """Size → path of the files of a stage that are there: ``text.pt`` is small, ``text_2.pt`` large."""
    both = {"small": folder / f"{stage}.pt", "large": folder / f"{stage}_2.pt"}
    return {size: path for size, path in both.items() if path.is_file()}


def _choose(folder: Path, there: Mapping[str, Mapping[str, Path]], choice: Mapping[str, str]) -> dict[str, Path]:
    chosen, problems = {}, []
    for stage, options in there.items():
        wanted = choice.get(stage)
        if not options:
            problems.append(f"lacks {stage}.pt (small) or {stage}_2.pt (large)")
        elif wanted is not None and wanted not in options:
            problems.append(f"has no {wanted} {stage}, only {', '.join(f'{p.name} ({s})' for s, p in options.items())}")
        elif wanted is None and len(options) > 1:
            problems.append(
                f"has {' and '.join(f'{p.name} ({s})' for s, p in options.items())}: choose with --size small|large or "
                f"--{stage}-size small|large"
            )
        else:
            chosen[stage] = options[wanted] if wanted else next(iter(options.values()))
    if problems:
        raise ConversionError("\n  ".join([f"{folder} cannot be converted:", *(f"it {p}" for p in problems)]))
    return chosen


def _codec(folder: Path, path: Path | None, local_files_only: bool, log: Callable[[str], Any]) -> tuple[Source, Any]:
    """(source, settings) of EnCodec; the settings of a ``.th`` file are None, for its shapes tell them."""
    if path is None:
        found = sorted(folder.glob("encodec_24khz*.th"))
        if len(found) > 1:
            raise ConversionError(
                f"{folder} has {', '.join(p.name for p in found)}: choose one with --codec, or remove the others"
            )
        if found:
            return Source("encodec", (found[0],)), None
        log(f"no encodec_24khz*.th in {folder}: asking the hub for {CODEC_REPO}")
        try:
            hub.file(CODEC_REPO, "config.json", local_files_only=local_files_only)
            path = hub.file(CODEC_REPO, "model.safetensors", local_files_only=local_files_only).parent
        except OSError as error:
            raise hub.HubError(
                f"no EnCodec: pass --codec PATH (encodec_24khz-d7cc33bc.th or a folder of {CODEC_REPO}), or put the "
                f"file into {folder}. From the hub: {error}"
            ) from None
    if path.is_file():
        if path.suffix == ".safetensors":
            raise ConversionError(f"the codec {path} is one file of a Hugging Face folder: pass the folder")
        return Source("encodec", (path,)), None
    if (path / "config.json").is_file() and _weight_files(path):
        tree = _read_json(path / "config.json")
        return Source("hf", tuple(_weight_files(path))), tree
    found = sorted(path.glob("encodec_24khz*.th"))
    if len(found) != 1:
        raise ConversionError(
            f"the codec {path} holds {len(found) or 'no'} encodec_24khz*.th, and no config.json with model.safetensors "
            f"or pytorch_model.bin. It has {_listing(path)}"
        )
    return Source("encodec", (found[0],)), None


def _tokenizer(folder: Path, path: Path | None, local_files_only: bool, log: Callable[[str], Any]) -> Path:
    place = folder if path is None else path
    if place.is_file():
        return place
    for name in ("vocab.txt", "tokenizer.json"):
        if (place / name).is_file():
            return place / name
    if path is not None:
        raise ConversionError(f"the tokenizer folder {path} has neither vocab.txt nor tokenizer.json")
    log(f"no vocab.txt or tokenizer.json in {folder}: asking the hub for {VOCABULARY_REPO}")
    try:
        return hub.file(VOCABULARY_REPO, "vocab.txt", local_files_only=local_files_only)
    except OSError as error:
        raise hub.HubError(
            "no vocabulary: pass --tokenizer PATH (vocab.txt of bert-base-multilingual-cased, or a tokenizer.json), or "
            f"put it into {folder}. From the hub: {error}"
        ) from None


def vocabulary(path: Path, config: SemanticConfig) -> str:
    """The text of ``tokenizer.json`` from a ``vocab.txt`` or a ``tokenizer.json``."""
    if path.suffix != ".json":
        return text.build_tokenizer(path, config).to_str()
    text.load_tokenizer(path, config)  # it is one, and the model's
    return path.read_text("utf-8")


# -------------------------------------------------------------------------------------------------------------- config


def model(found: Found) -> tuple[BarkConfig, dict[str, str | None]]:
    """The config of what was found, and what the tie check decided (see `transforms.ties`)."""
    networks: dict[str, Any] = {}
    hf = found.settings.get("config")
    if hf is not None:
        where = str(found.folder / "config.json")
        networks.update(names.hf_networks(hf, where))
        found.tie = hf["fine_acoustics_config"].get("tie_word_embeddings", True) is not False
    else:
        for stage, network in hub.STAGES.items():
            path = found.networks[network].files[0]
            content = load_pickle(path)
            if not isinstance(content, dict) or "model" not in content or "model_args" not in content:
                keys = ", ".join(str(k)[:40] for k in list(content)[:12]) if isinstance(content, dict) else "no keys"
                raise ConversionError(
                    f"{path} is not a Bark checkpoint: it must hold model and model_args, it has {keys}"
                )
            networks[network] = names.suno_network(stage, content["model_args"], f"{path}: model_args")
            del content
    problems: list[str] = []
    for network, part in networks.items():
        problems += _contradictions(network, part, found.networks[network])
    if problems:
        raise ConversionError("\n  ".join([f"{found.folder} cannot be converted:", *problems]))

    fine = found.networks["fine"]
    tied, moved = transforms.ties(fine, networks["fine"], strict=fine.layout == "suno", tie=found.tie)
    networks["fine"] = dataclasses.replace(networks["fine"], tied=tied)
    codebooks = networks["fine"].n_codes_total
    codec, settings = found.networks["codec"], found.settings.get("codec")
    if codec.layout == "encodec":
        codec_config = names.codec_shape(shapes(codec), str(codec.files[0]))
        codec_config = dataclasses.replace(codec_config, n_codebooks=codebooks)
    else:
        tree = settings if settings is not None else (hf or {}).get("codec_config")
        where = str(codec.files[0].parent / "config.json") + ("" if settings is not None else ": codec_config")
        codec_config = names.hf_codec(tree, where, codebooks)
    if hf is not None:
        generation = str(found.folder / "generation_config.json")
        fingerprint = hf.get(names.HF_FINGERPRINT, "suno")
        if not isinstance(fingerprint, str):
            raise ConversionError(f"{found.folder}: {names.HF_FINGERPRINT} is {fingerprint!r}: it must be a string")
        tree = found.settings.get("generation")
        return names.hf_config(networks, codec_config, tree, generation, fingerprint), moved
    return names.suno_config(networks, codec_config), moved


def _contradictions(network: str, config: Any, source: Source) -> list[str]:
    """Where the settings and the tensors disagree on sizes: said plainly, and before anything of that size is made."""
    found = shapes(source)
    suno = source.layout == "suno"
    block = re.compile(r"transformer\.h\.(\d{1,6})\." if suno else r"layers\.(\d{1,6})\.")
    layers = {int(match[1]) for name in found if (match := block.match(name))}
    problems = []
    if layers and len(layers) != config.n_layer:
        problems.append(f"{network}: the settings say {config.n_layer} layers, the file holds {len(layers)}")
    if network == "fine":
        table = names.FINE_TABLES[source.layout].format(0)
    else:
        table = "transformer.wte.weight" if suno else "input_embeds_layer.weight"
    positions = "transformer.wpe.weight" if suno else "position_embeds_layer.weight"
    for name, shape in (
        (table, (config.input_vocab_size, config.n_embd)),
        (positions, (config.block_size, config.n_embd)),
    ):
        if name not in found:
            problems.append(f"{network}: {source.files[0].name} lacks {source.prefix}{name} {shape}")
        elif found[name] != shape:
            problems.append(f"{network}: {name} has shape {found[name]}, the settings say {shape}")
    return problems
