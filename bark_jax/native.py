"""Compiles ``kernels.cc`` on this machine, once, and makes XLA know what is in it.

    the CPU's instructions ─▶ variant ─▶ a library in the user's private folder, compiled if it is not there ─▶ XLA

Needs Linux on x86-64 with AVX2, and a C++ compiler. Where something is missing, everything works without, with XLA's
own code. ``BARK_JAX_NATIVE=0`` leaves the kernels out, ``=avx2`` takes those for older processors.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import Future
from pathlib import Path

import jax
import jaxlib

from bark_jax import compilation, kernels
from bark_jax.speech import BarkWarning

SOURCE = Path(__file__).with_name("kernels.cc")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-w")
VARIANTS = {
    "avx512vnni": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
}
"""What a processor has to have, best first; with ``-m``, the compiler's flags. Linux writes some of them with a "_"."""
LONGEST_S = 60.0
"""Longest that a compiler may take; it takes 4 s."""

_lock = threading.Lock()
_begun: Future[str | None] | None = None
_why_not = "not asked for yet"


class _Missing(Exception):
    """Why there are no kernels, where nothing is wrong."""


def prepare() -> None:
    """Begin to make them ready, in a thread; of several calls in a process only the first does anything.

    What is compiled by XLA meanwhile loses no time by it. Warns (`BarkWarning`) if they should have been possible.
    """
    global _begun
    with _lock:
        if _begun is not None:
            return
        _begun = Future()
    kernels.expect(_begun)
    threading.Thread(target=_resolve, args=(_begun,), name="bark-jax-kernels").start()


def status() -> str:
    """For people: which kernels are in use, or why none are."""
    found = kernels.variant()
    return f"compiled for {found}" if found else f"none ({_why_not})"


def _forget() -> None:
    """In the child of a fork: the thread that was at it is not there."""
    global _lock, _begun
    _lock, _begun = threading.Lock(), None
    kernels.expect(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _resolve(future: Future[str | None]) -> None:
    global _why_not
    found, fault = None, None
    try:
        found = _ready()
    except _Missing as missing:
        _why_not = str(missing)
    except Exception as error:
        fault = error
        _why_not = f"{type(error).__name__}: {error}"
    finally:
        future.set_result(found)  # before all else: who waits for it would wait for ever
    if fault is not None:
        warnings.warn(
            f"The kernels for this CPU could not be made ({fault}): int8 weights and batches are slower without. "
            "BARK_JAX_NATIVE=0 leaves them out",
            BarkWarning,
            stacklevel=2,
        )


def _ready() -> str:
    variant = _variant(os.environ.get("BARK_JAX_NATIVE", ""))
    library = _library(variant)
    for name in kernels.NAMES:
        target = kernels.PREFIX + name
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return variant


def _variant(wish: str) -> str:
    """The first that the processor can run, or the one that is wished for."""
    if wish == "0":
        raise _Missing("BARK_JAX_NATIVE is 0")
    if wish and wish not in VARIANTS:
        raise ValueError(f"BARK_JAX_NATIVE is {wish!r}: choose one of 0, {', '.join(VARIANTS)}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise _Missing("there are some for Linux on x86-64 alone")
    has = _features(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
    for name, needs in VARIANTS.items():
        if has.issuperset(needs) and wish in ("", name):
            return name
    raise _Missing(f"the processor has no {wish or 'avx2'}")


def _features(cpuinfo: str) -> set[str]:
    """Of the first processor in ``/proc/cpuinfo``."""
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        if name.strip() == "flags":
            return set(values.replace("_", "").split())
    return set()


def _library(variant: str) -> ctypes.CDLL:
    """The compiled library, made if it is not there or damaged. Its name tells all that it was made from."""
    flags = [*FLAGS, *(f"-m{feature}" for feature in VARIANTS[variant])]
    here = [*platform.libc_ver(), os.environ.get("CXX", ""), jaxlib.__version__]
    made_from = "\n".join([SOURCE.read_text("utf-8"), *flags, *here])
    folder = compilation.private("native")
    path = folder / f"{variant}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    if path.is_file():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    command = [*_compiler(), *flags, "-I", jax.ffi.include_dir(), str(SOURCE)]
    for left in folder.glob("unfinished-*"):  # by processes that were killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * LONGEST_S:
                left.unlink()
    handle, name = tempfile.mkstemp(prefix="unfinished-", suffix=".so", dir=folder)
    os.close(handle)
    unfinished = Path(name)
    try:
        done = subprocess.run([*command, "-o", name], capture_output=True, text=True, timeout=LONGEST_S)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            raise OSError(f"{command[0]} failed: {' '.join(told[:1]).strip()}")
        library = ctypes.CDLL(name)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # of several processes that compile, the last one's stays
    finally:
        unfinished.unlink(missing_ok=True)
    return library


def _compiler() -> list[str]:
    chosen = os.environ.get("CXX")
    if chosen:
        return shlex.split(chosen)
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise _Missing(f"no C++ compiler: none of {', '.join(COMPILERS)} is installed")
