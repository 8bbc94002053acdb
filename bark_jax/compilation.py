"""Where compiled programs are kept between processes: JAX's persistent cache, in a private folder of the user.

Compiling is most of what a first sentence takes. JAX can read programs back, but runs whatever lies in the folder that
it is told, so the folder must be nobody else's to write to. What the user has decided about JAX's cache, by environment
(``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE=0``) or `jax.config`, is left as it is.
"""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import jax

from bark_jax import hub
from bark_jax.speech import BarkWarning

LEAST_COMPILE_S = 0.1
"""Programs that compile faster are not kept. JAX's own limit is 1 s, which leaves out most of a small model's."""


def keep() -> Path | None:
    """Turn the cache on, in ``compiled`` of `hub.cache_dir`. Called by `bark_jax.load`.

    Returns:
      The folder in use, the user's own included; None where there is no cache. Warns (`BarkWarning`) where the folder
      cannot be made or could be written to by others: programs are then compiled anew in every process.
    """
    if not jax.config.jax_enable_compilation_cache:  # pyrefly: ignore[missing-attribute]
        return None
    chosen = jax.config.jax_compilation_cache_dir  # pyrefly: ignore[missing-attribute]
    if chosen:
        return Path(chosen)
    try:
        folder = private("compiled")
    except OSError as error:
        warnings.warn(
            f"Compiled programs are not kept ({error}): the first sentence of every process waits for them. Set "
            "BARK_JAX_HOME to a folder of your own, or JAX_ENABLE_COMPILATION_CACHE=0",
            BarkWarning,
            stacklevel=3,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_COMPILE_S)
    return folder


def private(name: str) -> Path:
    """A folder of that name in `hub.cache_dir`, made if need be, for what is going to be executed.

    Raises:
      OSError: it cannot be made, or could be written to by others.
    """
    home = hub.cache_dir()
    folder = home / name
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in (home, folder):
        _check_private(path)
    return folder


def _check_private(path: Path) -> None:
    """Raises `PermissionError` unless only this user may write to a folder. On Windows its place has to do."""
    about = path.stat()
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectoryError(f"{path} is not a folder")
    if os.name != "posix":
        return
    if about.st_uid not in (os.getuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written to by others (mode {stat.S_IMODE(about.st_mode):o})")
