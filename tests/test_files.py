"""`bark_jax.files`: whole or absent, whatever the name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bark_jax.files import new_folder, replacing


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    for text in ("old", "new"):
        with replacing(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyError), replacing(path) as part:
        part.write_text("broken")
        raise KeyError
    with pytest.raises(FileNotFoundError, match="no/file"), replacing(tmp_path / "no" / "file") as part:
        part.write_text("nowhere")
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_text() == "new"


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    with replacing(path) as part:
        part.write_text("x")
    assert path.read_text() == "x"


@pytest.mark.parametrize("name", ["new", "empty", "link", "dangling", "漢" * 84])
def test_a_folder_appears_when_it_is_whole(tmp_path: Path, name: str) -> None:
    for real in ("empty", "target"):
        (tmp_path / real).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    with new_folder(tmp_path / name) as folder:
        (folder / "a").write_text("x")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text("y")
        assert not (tmp_path / name / "a").exists()
    assert (tmp_path / name / "a").read_text() == "x" and (tmp_path / name / "inner" / "b").read_text() == "y"
    with pytest.raises(FileExistsError, match="is there already"), new_folder(tmp_path / name):
        pass
    assert not [path for path in os.listdir(tmp_path) if path.startswith(".")]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "b") as folder:
        (folder / "c").touch()
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []
