"""`bark_jax.hub`: local folders, the choice of files, the hub's cache; never a network."""

import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from bark_jax import hub
from bark_jax.hub import HubError
from bark_jax.voice import PARTS, Voice, VoiceError

SUNO_FILES = ["text.pt", "coarse.pt", "fine.pt", "text_2.pt", "coarse_2.pt", "fine_2.pt"]
HF_FILES = ["config.json", "generation_config.json", "tokenizer.json", "vocab.txt", "speaker_embeddings_path.json"]
PRESETS = [f"speaker_embeddings/v2/en_speaker_6_{part}_prompt.npy" for part in PARTS]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a function that puts a repository into it as the hub's library does."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def put(repo: str, files: dict[str, bytes], revision: str = "main") -> Path:
        root = folder / f"models--{repo.replace('/', '--')}"
        commit = "0123456789" * 4
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        (root / "blobs").mkdir(exist_ok=True)
        for number, (name, data) in enumerate(files.items()):
            (root / "blobs" / str(number)).write_bytes(data)
            path = root / "snapshots" / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(os.path.relpath(root / "blobs" / str(number), path.parent))
        return root / "snapshots" / commit

    return put


# Folders


def test_a_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suno" / "bark").mkdir(parents=True)
    assert hub.resolve("suno/bark") == Path("suno/bark")
    assert hub.resolve(tmp_path) == hub.resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/suno") == tmp_path / "suno"
    with pytest.raises(HubError, match="revisions belong to hub ids"):
        hub.resolve(tmp_path, revision="main")


@pytest.mark.parametrize(
    "model",
    [
        "", "nothing", "./none", "../none", "/none/here", "a/b/c", "suno/bark/", "/suno/bark", "suno//bark", "a/..",
        "../../etc/passwd", "suno/../bark", "suno\\bark", "suno/ba rk", "suno/bark\n", "suno/bark\0", "-x/y", "x/-y",
        "x/.y", "http://x/y", "suno/bark@main", "suno/bark?x=1", "suno/bark#x", "x--y/z", "x/" + "y" * 100, "x" * 5_000,
        "~nobody9/x", "ünï/cödé", "a/b.", None, 3, b"suno/bark", ["suno/bark"],
    ],
)  # fmt: skip
def test_bad_names(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError) as error:
        hub.resolve(model)
    assert len(str(error.value)) < 500


def test_files_and_missing_paths(tmp_path):
    (tmp_path / "text.pt").write_bytes(b"")
    with pytest.raises(HubError, match="is a file"):
        hub.resolve(tmp_path / "text.pt")
    with pytest.raises(HubError, match="There is no folder"):
        hub.resolve(Path("suno/none"))  # a Path never means the hub


@pytest.mark.parametrize("model", ["suno/bark", "suno/bark-small", "a/b", "A_1/b.c-d_e", "0/0"])
def test_hub_ids(model):
    assert hub.is_hub_id(model)


# Which files


def test_plan_of_the_published_repository():
    files = [*SUNO_FILES, *HF_FILES, "pytorch_model.bin", ".gitattributes", "README.md", *PRESETS]
    assert hub.plan(files) == sorted([*HF_FILES, "pytorch_model.bin"])
    assert hub.plan([*files, "model.safetensors"]) == sorted([*HF_FILES, "model.safetensors"])


def test_plan_of_suno_files():
    assert hub.plan([*SUNO_FILES, "README.md"]) == ["coarse_2.pt", "fine_2.pt", "text_2.pt"]
    assert hub.plan(SUNO_FILES, small=True) == ["coarse.pt", "fine.pt", "text.pt"]
    mixed = ["text_2.pt", "coarse.pt", "fine.pt", "encodec_24khz-d7cc33bc.th", "vocab.txt", "evil.th"]
    assert hub.plan(mixed) == sorted(set(mixed) - {"evil.th"})


def test_plan_of_a_converted_model():
    beside = ["units.safetensors", "training.json", "voices/a.npz"]
    files = [*hub.NATIVE, *beside, "model.safetensors", "extra.bin", *SUNO_FILES]
    assert hub.plan(files) == sorted([*hub.NATIVE, *beside])


def test_plan_of_shards():
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files = ["config.json", "model.safetensors.index.json", *shards]
    assert hub.plan([*files, "pytorch_model.bin"]) == sorted(files)


@pytest.mark.parametrize("files", [[], ["README.md"], ["config.json"], ["text.pt", "fine.pt"], list(hub.NATIVE[1:])])
def test_plan_of_too_little(files):
    with pytest.raises(HubError, match="holds no whole Bark"):
        hub.plan(files)


# The hub's cache, without a network


@pytest.mark.parametrize("how", ["unreachable", "offline", "local_files_only"])
def test_nothing_cached(cache, monkeypatch, how):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    reason = {"unreachable": "cannot be reached", "offline": "HF_HUB_OFFLINE", "local_files_only": "local_files_only"}[
        how
    ]
    only = how == "local_files_only"
    start = time.perf_counter()
    for call in (
        lambda: hub.resolve("suno/bark", local_files_only=only),
        lambda: hub.resolve("suno/bark", revision="v1.0", local_files_only=only),
        lambda: hub.voice("suno/bark", "v2/en_speaker_6", local_files_only=only),
        lambda: hub.file("google-bert/bert-base-multilingual-cased", "vocab.txt", local_files_only=only),
    ):
        with pytest.raises(
            HubError, match=rf"is not in the cache .*, and .*{reason}.*Pass a local folder, set HF_HOME"
        ):
            call()
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("only", [False, True])
def test_a_cached_model_is_found(cache, only):
    snapshot = cache("suno/bark", dict.fromkeys([*HF_FILES, "pytorch_model.bin"], b"x"))
    assert hub.resolve("suno/bark", local_files_only=only) == snapshot
    assert hub.resolve("suno/bark", revision=snapshot.name, local_files_only=only) == snapshot
    with pytest.raises(HubError, match="'v9'"):
        hub.resolve("suno/bark", revision="v9", local_files_only=only)
    small = cache("suno/bark-small", dict.fromkeys(SUNO_FILES, b"x"))
    assert hub.resolve("suno/bark-small", local_files_only=only) == small


def test_half_a_cached_model_is_not(cache):
    cache("suno/bark", dict.fromkeys(HF_FILES, b"x"))
    with pytest.raises(HubError, match="the cached copy of suno/bark holds no whole Bark"):
        hub.resolve("suno/bark")
    assert hub.resolve("suno/bark", allow_patterns=["config.json"]).is_dir()


def test_a_cached_voice_is_found(cache, tmp_path):
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 1024, (8, 30))
    made = Voice(rng.integers(0, 10_000, 20), fine[:2], fine)
    made.save(tmp_path / "x.npy")
    files = dict(zip(PRESETS, ((tmp_path / f"x_{part}_prompt.npy").read_bytes() for part in PARTS), strict=True))
    cache("suno/bark", files)
    assert Voice.load(hub.voice("suno/bark", "v2/en_speaker_6")) == made
    assert hub.file("suno/bark", PRESETS[0]).read_bytes() == files[PRESETS[0]]
    cache("suno/half", {PRESETS[0]: files[PRESETS[0]]})
    with pytest.raises(HubError, match="en_speaker_6_fine_prompt"):
        hub.voice("suno/half", "v2/en_speaker_6", local_files_only=True)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "", "a\\b", "x" * 200])
def test_unsafe_voices_and_files(cache, name):
    with pytest.raises(VoiceError, match="not the name of a voice"):
        hub.voice("suno/bark", name)
    with pytest.raises(HubError, match="not the name of a file"):
        hub.file("suno/bark", name if len(name) < 100 else f"{name}/../x")


@pytest.mark.parametrize("repo", ["bark", "../bark", "suno/bark/x", "", None, 3])
def test_unsafe_repositories(repo):
    for call in (lambda: hub.voice(repo, "announcer"), lambda: hub.file(repo, "vocab.txt")):
        with pytest.raises(HubError, match="not a hub id"):
            call()


@pytest.mark.parametrize("revision", ["", "../main", "a..b", "-x", "a b", "a//b", "x" * 300, 3])
def test_unsafe_revisions(cache, revision):
    for call in (
        lambda: hub.resolve("suno/bark", revision=revision),
        lambda: hub.voice("suno/bark", "announcer", revision=revision),
    ):
        with pytest.raises(HubError, match="revision"):
            call()


def test_answers_of_the_hub(cache, monkeypatch):
    """What the hub's library raises becomes a HubError that says what to do, whatever its class derives from."""
    errors = pytest.importorskip("huggingface_hub.errors")
    import huggingface_hub

    class Response:
        status_code = 404

    def raising(error):
        def call(*_, **__):
            raise error

        return call

    def made(cls):
        error = cls.__new__(cls)
        Exception.__init__(error, "secret details\nof several lines")
        error.response = Response()
        return error

    for cls, message in (
        (errors.RepositoryNotFoundError, "has no model suno/bark, or it is private"),
        (errors.GatedRepoError, "asks for consent"),
        (errors.RevisionNotFoundError, "no revision 'v1'"),
        (errors.HfHubHTTPError, "refused suno/bark at revision 'v1' with status 404"),
        (RuntimeError, "refused .* status 404"),
    ):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raising(made(cls)))
        with pytest.raises(HubError, match=message):
            hub.resolve("suno/bark", revision="v1")
    Response.status_code = 503
    with pytest.raises(HubError, match="cannot be reached"):
        hub.resolve("suno/bark", revision="v1")


def test_offline_by_environment(tmp_path):
    script = """
        from bark_jax import hub
        try:
            hub.resolve("suno/bark")
        except hub.HubError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HF_HUB_OFFLINE is set" in done.stdout and str(tmp_path) in done.stdout


# Where converted models are kept


def test_cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BARK_JAX_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if sys.platform != "win32":
        assert hub.cache_dir() == tmp_path / "home" / ".cache" / "bark_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache_dir() == tmp_path / "xdg" / "bark_jax"
    monkeypatch.setenv("BARK_JAX_HOME", str(tmp_path / "own"))
    path = hub.cache_dir()
    assert path == tmp_path / "own" and stat.S_IMODE(path.stat().st_mode) == 0o700
    assert hub.cache_dir() == path  # a second call finds it


def test_cache_dir_ignores_empty_and_relative_values(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BARK_JAX_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    if sys.platform != "win32":
        assert hub.cache_dir() == tmp_path / ".cache" / "bark_jax"


def test_cache_dir_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/inner"):
        monkeypatch.setenv("BARK_JAX_HOME", str(tmp_path / name))
        with pytest.raises(HubError, match="set BARK_JAX_HOME"):
            hub.cache_dir()
