"""The name of a model → a local folder, and where converted models are kept.

A folder on this machine wins; otherwise ``owner/name`` is fetched from the Hugging Face hub into the hub's own cache,
and only the files that are needed: a published Bark holds the same weights up to three times. This file reads none.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bark_jax import voice as voices

NATIVE = (
    "config.json",
    "tokenizer.json",
    "semantic.safetensors",
    "coarse.safetensors",
    "fine.safetensors",
    "codec.safetensors",
)
"""Files of a converted model, all of them needed."""
BESIDE = ("units.safetensors", "training.json", "voices")
"""What it may have besides: the network that takes semantic ids from audio, how its stages want to be trained
(`bark_jax.train.config.advice`), presets."""
STAGES = {"text": "semantic", "coarse": "coarse", "fine": "fine"}
"""Suno's name of a stage, which is the stem of its files (``text_2.pt`` is large, ``text.pt`` small), → its network."""
TEXT_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
_FILE = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*){0,5}")


class HubError(OSError):
    """A model or file that is neither on this machine nor to be had; the message says what to do."""


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form ``owner/name``: letters, digits, ``_``, ``-``, single dots, up to 96 characters."""
    return len(model) <= 96 and bool(_HUB_ID.fullmatch(model)) and ".." not in model and "--" not in model


def resolve(
    model: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
    small: bool = False,
) -> Path:
    """A folder on this machine that holds the model.

    Args:
      model: a folder (``~`` is expanded), or a hub id such as ``suno/bark``. A folder wins over a hub id of that name.
      revision: branch, tag or commit of the hub repository; None is its main branch. Not for folders.
      local_files_only: take from the hub's cache only, without any network access.
      allow_patterns: file patterns to fetch instead of the choice of `plan`.
      small: which of Suno's ``.pt`` files to choose where both sizes are there.

    Raises:
      HubError: no such folder, not a hub id, not found, not permitted, incomplete, or no network and not in the cache.
    """
    text = os.fspath(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(text, str) or not text or "\0" in text:
        raise HubError(f"The model is {text!r}: it must be a folder, or a hub id such as 'suno/bark'")
    try:
        folder = Path(text).expanduser()
        exists, is_folder = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, ~ of an unknown user
        raise HubError(f"The model {text[:80]!r} is no folder: {_reason(error)}") from None
    if is_folder:
        if revision is not None:
            raise HubError(f"The revision is {revision!r}, but {folder} is a folder: revisions belong to hub ids")
        return folder
    if exists:
        raise HubError(f"{folder} is a file: the model must be the folder that holds it")
    if isinstance(model, Path) or not is_hub_id(text):
        raise HubError(
            f"There is no folder {text[:200]!r}"
            + ("" if isinstance(model, Path) else ", and it is no hub id either (these look like 'suno/bark')")
        )
    _check_revision(revision)
    files = None
    if not local_files_only and not _offline():
        files = _list(text, revision)
    if files is None:
        folder_ = _cached_snapshot(text, revision)
        if folder_ is None:
            raise _unreachable(text, revision, local_files_only)
        if allow_patterns is None:
            plan(_names(folder_), small=small, source=f"the cached copy of {text}")
        return folder_
    patterns = plan(files, small=small, source=text) if allow_patterns is None else list(allow_patterns)
    return _snapshot(text, revision, patterns)


def plan(files: Iterable[str], *, small: bool = False, source: str = "the folder") -> list[str]:
    """Which files of a repository to fetch.

    A converted model comes first, then Hugging Face's format (safetensors before ``pytorch_model.bin``; one file holds
    all networks and the codec), then Suno's ``.pt`` files, which carry optimizer state and are three times as large.

    Raises:
      HubError: none of the three is complete.
    """
    files = sorted(files)
    have = set(files)
    extra = [name for name in files if name in TEXT_FILES or name in ("generation_config.json", voices.JSON_NAME)]
    if have.issuperset(NATIVE):
        more = [name for name in files if name.partition("/")[0] in BESIDE]
        return sorted({*NATIVE, *more, *extra})
    if "config.json" in have:
        for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
            if f"{stem}.{ending}" in have:
                return sorted({"config.json", f"{stem}.{ending}", *extra})
            if f"{stem}.{ending}.index.json" in have:
                shards = [name for name in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.{ending}", name)]
                return sorted({"config.json", f"{stem}.{ending}.index.json", *shards, *extra})
    chosen = []
    for stage in STAGES:
        names = (f"{stage}.pt", f"{stage}_2.pt") if small else (f"{stage}_2.pt", f"{stage}.pt")
        found = [name for name in names if name in have]
        if found:
            chosen.append(found[0])
    if len(chosen) == len(STAGES):
        codec = [name for name in files if re.fullmatch(r"encodec_24khz[\w.-]*\.th", name)]
        return sorted({*chosen, *codec, *extra})
    shown = ", ".join(files[:12]) + (", ..." if len(files) > 12 else "")
    raise HubError(
        f"{source} holds no whole Bark: it must have {', '.join(NATIVE)}; or config.json with model.safetensors or "
        f"pytorch_model.bin; or text, coarse and fine .pt files. It has {shown or 'no files'}"
    )


def listing(repo: str, *, revision: str | None = None, local_files_only: bool = False) -> list[str] | None:
    """Names of the files of a hub repository; of its cached copy where the hub is not to be asked; None if neither is.

    Raises:
      HubError: not a hub id, not found, or not permitted.
    """
    _check_revision(revision)
    files = None if local_files_only or _offline() else _list(repo, revision)
    if files is not None:
        return files
    folder = _cached_snapshot(repo, revision)
    return None if folder is None else _names(folder)


def file(repo: str, name: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """One file of a hub repository, from the hub's cache if it is there.

    Raises:
      HubError: not a hub id, an unsafe file name, not found, or no network and not in the cache.
    """
    return _files(repo, [name], revision, local_files_only)[0]


def voice(repo: str, name: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """One voice preset of a hub repository in Hugging Face's layout, fetched when it is first asked for.

    Args:
      repo: for example ``suno/bark``.
      name: for example ``v2/en_speaker_6``, in ``speaker_embeddings/NAME_{semantic,coarse,fine}_prompt.npy``.

    Returns:
      The semantic file, for `Voice.load`.

    Raises:
      VoiceError: an unsafe name.
      HubError: the repository has no such voice, or no network and not in the cache.
    """
    voices.check_name(name)
    names = [f"speaker_embeddings/{name}_{part}_prompt.npy" for part in voices.PARTS]
    return _files(repo, names, revision, local_files_only)[0]


def cache_dir() -> Path:
    """The folder for converted models, made if need be (readable by its owner only).

    ``$BARK_JAX_HOME``, else ``bark_jax`` in the user's cache: ``$XDG_CACHE_HOME`` or ``~/.cache``, on Windows
    ``%LOCALAPPDATA%``.

    Raises:
      HubError: it cannot be made, or is not a folder.
    """
    home = os.environ.get("BARK_JAX_HOME")
    if home:
        path = Path(home).expanduser()
    else:
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        if os.path.isabs(xdg):  # the XDG specification has relative values ignored
            base = Path(xdg)
        elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
            base = Path(os.environ["LOCALAPPDATA"])
        else:
            base = Path("~/.cache").expanduser()
        path = base / "bark_jax"
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HubError(f"The cache folder {path} cannot be made ({_reason(error)}): set BARK_JAX_HOME") from None
    return path


# The hub. Its library raises errors of several other libraries, some of them no OSError, and they change with its
# version: whatever is not known to be the answer "no" counts as "not reachable".


def _offline() -> bool:
    import huggingface_hub.constants

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _check_revision(revision: str | None) -> None:
    if revision is not None and (
        not isinstance(revision, str) or not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision
    ):
        raise HubError(f"The revision is {revision!r}: it must be a branch, a tag or a commit of the repository")


def _refused(error: Exception, repo: str, revision: str | None) -> HubError | None:
    """What the hub said, if it was reached and said no."""
    from huggingface_hub import errors

    at = "" if revision is None else f" at revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repo} asks for consent: accept its terms on huggingface.co, then set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"The hub has no model {repo}, or it is private: check the name, or set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision!r}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return HubError(f"{repo}{at} lacks a file: {error}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and status < 500 and status not in (408, 429):
        return HubError(f"The hub refused {repo}{at} with status {status}: {_line(error)}")
    return None


def _list(repo: str, revision: str | None) -> list[str] | None:
    """The files of a repository; None if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=20)
    except Exception as error:
        refused = _refused(error, repo, revision)
        if refused is not None:
            raise refused from None
        return None
    return [sibling.rfilename for sibling in info.siblings or []]


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        refused = _refused(error, repo, revision)
        raise refused or HubError(
            f"Fetching {repo} failed: {_line(error)}. Try again (what is complete is kept), or pass a local folder"
        ) from None


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found: Any = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    for name in ("config.json", "text_2.pt", "text.pt", "tokenizer.json", "vocab.txt"):
        found = _cached(repo, name, revision)
        if found is not None:
            return found.parent
    return None


def _files(repo: str, names: list[str], revision: str | None, local_files_only: bool) -> list[Path]:
    if not isinstance(repo, str) or not is_hub_id(repo):
        raise HubError(f"{repo!r} is not a hub id: these look like 'suno/bark'")
    _check_revision(revision)
    for name in names:
        if not _FILE.fullmatch(name) or ".." in name:
            raise HubError(f"{name!r} is not the name of a file in a repository")
    found = [_cached(repo, name, revision) for name in names]
    if None in found and not local_files_only and not _offline():
        if _list_for(repo, revision, names):
            folder = _snapshot(repo, revision, names)
            found = [path if (path := folder / name).is_file() else None for name in names]
    if None in found:
        raise _unreachable(repo, revision, local_files_only, ", ".join(names))
    return [path for path in found if path is not None]


def _list_for(repo: str, revision: str | None, names: list[str]) -> bool:
    files = _list(repo, revision)
    if files is None:
        return False
    missing = [name for name in names if name not in files]
    if missing:
        raise HubError(f"{repo} has no {', '.join(missing)}")
    return True


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _unreachable(repo: str, revision: str | None, local_files_only: bool, what: str = "") -> HubError:
    from huggingface_hub.constants import HF_HUB_CACHE

    if local_files_only:
        why = "local_files_only is set"
    elif _offline():
        why = "HF_HUB_OFFLINE is set"
    else:
        why = "huggingface.co cannot be reached"
    at = "" if revision is None else f" at revision {revision!r}"
    return HubError(
        f"{what + ' of ' if what else ''}{repo}{at} is not in the cache {HF_HUB_CACHE}, and {why}. Pass a local "
        f"folder, set HF_HOME to a cache that holds it, or fetch it once with a network: hf download {repo}"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or _line(error)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
