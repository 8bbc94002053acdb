"""`bark_jax.compilation` and `Bark.warmup`: what is compiled, when, and where it is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bark_jax
import models
from bark_jax import compilation
from bark_jax.settings import Sampling

SPEAK = """
import sys, jax, bark_jax
from jax import monitoring
found = []
monitoring.register_event_listener(lambda event, **_: found.append(event))
bark = bark_jax.load(sys.argv[1], device="cpu")
bark.warmup()
counts = [sum(event.endswith(f"/cache_{what}") for event in found) for what in ("hits", "misses")]
print(jax.config.jax_compilation_cache_dir, *counts)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compilation") / "model"
    models.save(path, models.config())
    return path


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has decided nothing about JAX's cache, with a home of their own."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("BARK_JAX_HOME", str(tmp_path / "home"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "home"
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_a_second_process_reads_what_the_first_compiled(folder: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    env["BARK_JAX_HOME"] = str(tmp_path / "home")
    outputs = []
    for _ in range(2):
        command = [sys.executable, "-W", "error::bark_jax.BarkWarning", "-c", SPEAK, str(folder)]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=600)
        outputs.append(done.stdout.split())
    kept = tmp_path / "home" / "compiled"
    assert [path for path, *_ in outputs] == [str(kept)] * 2
    (_, hits, misses), (_, hits_again, misses_again) = outputs
    assert int(hits) == 0 and int(misses) > 5
    assert int(hits_again) > 5 and int(misses_again) < 0.3 * int(misses)
    assert any(kept.iterdir())
    if os.name == "posix":
        assert kept.stat().st_mode & 0o777 == 0o700


def test_what_the_user_decided_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undecided: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compilation.keep() == tmp_path / "mine" and not undecided.exists()
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compilation.keep() is None and not undecided.exists()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert compilation.keep() == undecided / "compiled" == Path(jax.config.jax_compilation_cache_dir)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("which", "mode"), [("compiled", 0o770), ("compiled", 0o707), ("", 0o720)])
def test_a_folder_that_others_may_write_to_is_refused(undecided: Path, which: str, mode: int) -> None:
    (undecided / "compiled").mkdir(parents=True, mode=0o700)
    undecided.chmod(0o700)
    (undecided / which).chmod(mode)
    with pytest.warns(bark_jax.BarkWarning, match=f"can be written to by others \\(mode {mode:o}\\)"):
        assert compilation.keep() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_place_that_is_no_folder(undecided: Path) -> None:
    undecided.mkdir()
    (undecided / "compiled").write_text("")
    with pytest.warns(bark_jax.BarkWarning, match="Compiled programs are not kept"):
        assert compilation.keep() is None


def test_after_a_warmup_nothing_is_compiled(folder: Path) -> None:
    from test_equalities import a_voice, programs

    bark = bark_jax.load(folder, device="cpu")
    assert bark.warmup([1, 3]) > 0
    before = programs()
    long = Sampling(max_duration_s=2.0, allow_early_stop=False)
    bark.generate("hello", seed=1, sampling=long)
    bark.generate("hello", voice=a_voice(bark), seed=1)
    bark.generate(["one", "two", "three"], seed=1, sampling=[long, Sampling(max_duration_s=0.3), long])
    assert programs() == before
    bark.warmup(filtered=True)
    filtered = programs()
    assert filtered != before
    bark.generate("hello", seed=1, sampling=Sampling(top_p=0.9, max_duration_s=1.0))
    assert programs() == filtered


@pytest.mark.parametrize("rows", [0, -1, 1.5, "two", [1, 0], True])
def test_row_counts_that_cannot_be(folder: Path, rows: object) -> None:
    with pytest.raises(ValueError, match="rows is"):
        bark_jax.load(folder, device="cpu").warmup(rows)  # type: ignore[arg-type]


def test_a_warmup_leaves_speech_as_it_is(folder: Path) -> None:
    how = Sampling(max_duration_s=0.5)
    plain, warm = bark_jax.load(folder, device="cpu"), bark_jax.load(folder, device="cpu")
    warm.warmup()
    np.testing.assert_array_equal(warm.generate("hi", seed=3, sampling=how), plain.generate("hi", seed=3, sampling=how))
