"""What holds for every test: the CPU, few threads, no network, nothing left in the user's folders.

The environment is set here, before any test imports jax, torch or huggingface_hub, which read theirs once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.machinery
import os
import shutil
import socket
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

os.environ.update(
    JAX_PLATFORMS="cpu",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    # Conversions made on the way belong to this run only.
    BARK_JAX_HOME=tempfile.mkdtemp(prefix="bark_jax-tests-"),
)
atexit.register(shutil.rmtree, os.environ["BARK_JAX_HOME"], ignore_errors=True)
# Compiled programs are kept between runs: the second run of the jax-only tests takes a third of the time. Tests that
# count compilations count a program that is read from here as well.
CACHE = ROOT / ".cache"
CACHE.mkdir(mode=0o700, exist_ok=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
for name in ("BARK_JAX_VOICES", "BARK_JAX_SUNO_MODEL", "SUNO_USE_SMALL_MODELS", "SUNO_OFFLOAD_CPU", "JAX_ENABLE_X64"):
    os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    if "torch" in sys.modules:
        pytest.exit("torch was imported before conftest.py could limit its threads", returncode=4)
    try:
        from hypothesis import settings
    except ImportError:
        return
    # The same examples at every run: a failure in CI is a failure on the desk. The time of one example says nothing,
    # because the first one compiles.
    settings.register_profile("bark_jax", derandomize=True, deadline=None)
    settings.load_profile("bark_jax")


@pytest.fixture(autouse=True)
def _torch_threads() -> None:
    """One, before each test: on tiny networks two mostly wait for each other, on a busy machine 50 times as long."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> None:
    """From the first test on as after a model was loaded: with the kernels of this CPU, where it has some.

    Otherwise what a test sees would depend on whether one before it has loaded a model. BARK_JAX_NATIVE=0: without.
    """
    from bark_jax import kernels, native

    native.prepare()
    kernels.variant()


MAPPINGS = 20_000
"""Memory mappings of the process above which compiled programs are let go. Linux allows 65,530 (`vm.max_map_count`), a
program takes several, all tests together more than there are, and XLA crashes where it is refused one."""


@pytest.fixture(scope="module", autouse=True)
def _programs() -> Any:
    """After a file: let JAX forget the compiled programs, if there are many."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.is_file() and maps.read_bytes().count(b"\n") > MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


class NetworkError(OSError):
    """A test reached for the network."""


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Any:
    """Connections and look-ups beyond this machine fail; those within it (loopback, Unix sockets) work."""
    with pytest.MonkeyPatch.context() as patch:
        connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

        def check(host: Any) -> None:
            name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
            if name not in (None, "", "localhost", "::1", "0.0.0.0", "::") and not str(name).startswith("127."):
                raise NetworkError(f"tests must not use the network, and this one wants {name!r}")

        def guard(original: Any) -> Any:
            def guarded(self: socket.socket, address: Any, *rest: Any) -> Any:
                if self.family in (socket.AF_INET, socket.AF_INET6):
                    check(address[0])
                return original(self, address, *rest)

            return guarded

        def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
            check(host)
            return look_up(host, *rest, **options)

        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


def reference_module(name: str) -> types.ModuleType:
    """Import a module of ``bark`` or ``encodec``; skips the test where it is not installed.

    encodec imports torchaudio, for which no build matches the pinned torch, and needs nothing from it here. An empty
    module stands in, but only after transformers, which asks whether the real one is there.
    """
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if "torchaudio" not in sys.modules:
        try:
            importlib.import_module("torchaudio")
        except ImportError:
            stand_in = types.ModuleType("torchaudio")
            stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
            sys.modules["torchaudio"] = stand_in
    return pytest.importorskip(name)


@pytest.fixture(scope="session")
def reference() -> Any:
    """`reference_module`, as a fixture."""
    return reference_module
