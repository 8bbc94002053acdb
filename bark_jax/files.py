"""Files and folders that appear whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write a file to; it takes the name `path` at the end, and is gone after an error.

    Its name ends in ``.part``, by which a folder's owner knows what a killed process was writing.

    Raises:
      OSError: of the writing, naming `path`.
    """
    path = Path(os.path.abspath(path))
    part = path.with_name(f".{start_of_name(path)}.{secrets.token_hex(4)}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write to; it takes the name `path` at the end, and is gone after an error.

    What a killed process left behind goes when the next one makes the same folder.

    Raises:
      FileExistsError: `path` exists and is not an empty folder.
    """
    path = Path(os.path.realpath(path))  # a link to an empty folder, or to none, is as good as that folder
    absent(path, or_empty=True)
    # Named after machine and process, with a random end: others may be writing the same target, here or elsewhere.
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    prefix = f".{start_of_name(path)}.partial-{host}-"
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f"{glob.escape(prefix)}*"):
        pid = stale.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    folder = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                _sync(file)
        absent(path, or_empty=True)  # somebody else may have made it meanwhile
        if path.exists():
            path.rmdir()
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def absent(path: Path, *, or_empty: bool = False) -> None:
    """Raises `FileExistsError` if there is something at `path`, other than an empty folder if that will do."""
    if path.exists() and not (or_empty and path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, "is there already: choose another name, or remove it", str(path))


def lock(path: Path, taken: Exception) -> IO[str]:
    """Make a file and lock it until what is given is closed; nothing more where the system or the disk has no locks.

    Raises:
      taken: another process holds it.
    """
    file = path.open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise taken from None
        except OSError:  # a file system without locks
            pass
    return file


def start_of_name(path: Path) -> str:
    """Enough of a name to be recognised by: a hidden name must not be longer than file systems allow.

    Bytes that are not UTF-8, which names may have, are left out.
    """
    return os.fsencode(path.name)[:100].decode("utf-8", errors="ignore")


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: a name may get there before what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
