"""What users get wrong: every case is an error of the right kind whose message names value, rule or choices.

Nothing is computed (the stages refuse to run here) and nothing is written.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import bark_jax
import models
import suno_like
from bark_jax import (
    BarkWarning,
    CheckpointError,
    ConfigError,
    HubError,
    Sampling,
    SamplingError,
    TextError,
    VoiceError,
    engine,
)
from bark_jax.text import TokenizerError, build_tokenizer
from bark_jax.voice import UnknownVoiceError, Voice

CONFIG = models.config()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A native checkpoint that loads; tests damage copies of it."""
    return suno_like.write(tmp_path_factory.mktemp("native") / "good", CONFIG, models.tokenizer_json())


@pytest.fixture(scope="module")
def bark(good):
    return bark_jax.load(good, device="cpu")


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage ran on bad input")

    for module, names in (
        (engine.semantic, ["generate", "run"]),
        (engine.coarse, ["generate", "run"]),
        (engine.fine, ["generate", "fill"]),
        (engine.codec, ["decode", "encode", "Decoding"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = Path(os.environ["BARK_JAX_HOME"])
    before = sorted(home.rglob("*"))
    yield
    assert [path for path in sorted(home.rglob("*")) if path not in before and path.name != "converted"] == []


def prompt(**changes: Any) -> dict[str, Any]:
    """A voice that fits, with parts changed; None leaves one out."""
    whole = {**models.voice(CONFIG), "model": "test", **changes}
    return {name: value for name, value in whole.items() if value is not None}


def ids(*shape: int, value: int = 1) -> np.ndarray:
    return np.full(shape, value)


def test_what_is_changed_here_is_good_otherwise(bark):
    assert Voice.from_dict(prompt()).check(CONFIG) is None
    with pytest.raises(AssertionError, match="a stage ran"):
        bark.generate("hello", voice=prompt(), seed=1)
    for call in (
        lambda: bark.semantic_to_coarse(ids(3), voice=prompt()),
        lambda: bark.coarse_to_fine(ids(2, 3)),
        lambda: bark.decode(ids(8, 3)),
        lambda: bark.encode(np.zeros(9, np.float32)),
    ):
        with pytest.raises(AssertionError, match="a stage ran"):
            call()


# Arguments of generate. Each row: arguments, error, what the message must say.

ARGUMENTS = {
    "text None": ({"text": None}, TextError, "NoneType: it must be a str"),
    "text number": ({"text": 3}, TextError, "int: it must be a str"),
    "text bytes": ({"text": b"hello"}, TextError, "bytes: it must be a str"),
    "text dictionary": ({"text": {"text": "a"}}, TextError, "dict: it must be a str"),
    "text array": ({"text": np.array(["a"])}, TextError, r"for several texts, a list of str"),
    "text nested": ({"text": [["a"]]}, TextError, "item 0: The text is a list"),
    "text empty": ({"text": ""}, TextError, "'': it must hold at least one character"),
    "text white": ({"text": " \n\t\u00a0"}, TextError, "not white space"),
    "text control": ({"text": "\x00\x07\u200b"}, TextError, "has no tokens: the tokenizer drops control"),
    "text surrogate": ({"text": "a\ud800"}, TextError, r"lone surrogate U\+D800 at position 1"),
    "text long": ({"text": "a " * 40, "split": False}, TextError, "40 tokens, 8 more than the limit of 32"),
    "text of a list": ({"text": ["a", "b", ""]}, TextError, "item 2: The text is ''"),
    "text long in a list": ({"text": ["a", "a " * 33], "split": False}, TextError, "item 1: .*33 tokens, 1 more"),
    "voice number": ({"voice": 3}, VoiceError, "int: it must be a name, a path, a dictionary or a Voice"),
    "voice array": ({"voice": ids(3)}, VoiceError, "ndarray: it must be a name"),
    "voice unknown": ({"voice": "v2/en_speaker_6"}, UnknownVoiceError, "There is no voice 'v2/en_speaker_6'"),
    "voice unsafe": ({"voice": "../secret"}, VoiceError, "'../secret' is not the name of a voice: a name looks like"),
    "voice absolute": ({"voice": "/etc/passwd"}, VoiceError, "is not the name of a voice"),
    "voice empty": ({"voice": ""}, VoiceError, "'' is not the name of a voice"),
    "voice file": ({"voice": "no/such.npz"}, FileNotFoundError, "no/such.npz"),
    "voice ending": ({"voice": Path("voice.txt")}, FileNotFoundError, "voice.txt: a voice is a Suno .npz"),
    "voice folder": ({"voice": Path(__file__).parent}, VoiceError, "is a folder: name a voice in it"),
    "voice dot": ({"voice": Path()}, VoiceError, "names no file"),
    "voice NUL": ({"voice": "a\0.npz"}, VoiceError, "names no file"),
    "voice surrogate": ({"voice": "\ud800.npz"}, VoiceError, "names no file"),
    "voice surrogate in a list": (
        {"text": ["a", "b"], "voice": [None, "\ud800.npz"]}, VoiceError, "item 1: .*names no file",
    ),
    "voice keys": ({"voice": prompt(fine_prompt=None)}, VoiceError, "lacks fine_prompt: the keys are semantic_prompt"),
    "voice unknown key": ({"voice": prompt(speaker=1)}, VoiceError, "unknown key 'speaker': the keys are"),
    "voice of another model": ({"voice": prompt(model="suno")}, VoiceError, "of model 'suno', .* is 'test'"),
    "voice semantic range": ({"voice": prompt(semantic_prompt=ids(40, value=200))}, VoiceError, "200: .* 0 to 199"),
    "voice negative": ({"voice": prompt(semantic_prompt=ids(40, value=-1))}, VoiceError, "holds -1: tokens are 0"),
    "voice float": ({"voice": prompt(semantic_prompt=np.zeros(40))}, VoiceError, "float64: tokens are integers"),
    "voice code range": ({"voice": prompt(coarse_prompt=ids(2, 60, value=64))}, VoiceError, "holds 64: .* 0 to 63"),
    "voice fine range": ({"voice": prompt(fine_prompt=ids(8, 60, value=64))}, VoiceError, "fine holds 64: .* 0 to 63"),
    "voice rank": ({"voice": prompt(fine_prompt=ids(60))}, VoiceError, r"\(60,\): it must be \(codebooks, frames\)"),
    "voice codebooks": ({"voice": prompt(coarse_prompt=ids(3, 60))}, VoiceError, "coarse has 3 codebook.*has 2"),
    "voice fine codebooks": ({"voice": prompt(fine_prompt=ids(7, 60))}, VoiceError, "fine has 7 codebook.*has 8"),
    "voice lengths": ({"voice": prompt(coarse_prompt=ids(2, 30))}, VoiceError, "30 coarse frames for 40 .*about 60"),
    "voice one token": (
        {"voice": prompt(semantic_prompt=ids(1), coarse_prompt=ids(2, 1))}, VoiceError, "1 token: .*at least 2",
    ),
    "voice empty part": ({"voice": prompt(semantic_prompt=ids(0))}, VoiceError, r"empty, shape \(0,\)"),
    "voice in a list": (
        {"text": ["a", "b"], "voice": [prompt(), prompt(model="x")]}, VoiceError, "item 1: The voice is of model 'x'",
    ),
    "voices too few": ({"text": ["a", "b"], "voice": [None]}, ValueError, "voice has 1 items for 2 inputs"),
    "voices for one": ({"voice": [None]}, ValueError, "voice is a list of 1, but there is one input"),
    "seed negative": ({"seed": -1}, SamplingError, r"seed is -1: it must be an integer of 0 to 2\*\*64 - 1"),
    "seed large": ({"seed": 2**64}, SamplingError, "seed is 18446744073709551616: it must be"),
    "seed float": ({"seed": 1.0}, SamplingError, "seed is 1.0: it must be an integer"),
    "seed text": ({"seed": "7"}, SamplingError, "seed is '7': it must be an integer"),
    "seed bool": ({"seed": True}, SamplingError, "seed is True: it must be an integer"),
    "seed in a list": ({"text": ["a", "b"], "seed": [1, -2]}, SamplingError, "item 1: seed is -2"),
    "seeds too many": ({"text": ["a", "b"], "seed": (1, 2, 3)}, ValueError, "seed has 3 items for 2 inputs"),
    "sampling None": ({"sampling": None}, SamplingError, "sampling is None: it must be a bark_jax.Sampling"),
    "sampling dictionary": ({"sampling": {"top_k": 5}}, SamplingError, "it must be a bark_jax.Sampling"),
    "sampling in a list": ({"text": ["a"], "sampling": [0.7]}, SamplingError, "item 0: sampling is 0.7"),
    "samplings too few": ({"text": ["a", "b"], "sampling": [Sampling()]}, ValueError, "sampling has 1 items for 2"),
    "history of another model": (
        {"sampling": Sampling(max_coarse_history=630)}, SamplingError, "history is 630: it must be 12 to 120",
    ),
    "progress": ({"progress": "bar"}, ValueError, r"progress is 'bar': it must be None, True, False or a function"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS, ids=str)
def test_arguments(bark, case):
    arguments, error, words = ARGUMENTS[case]
    with pytest.raises(error, match=words):
        bark.generate(**{"text": "hello", **arguments})


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("text_temperature", -0.1, "-0.1: it must be 0"),
        ("coarse_temperature", float("nan"), "nan: it must be 0"),
        ("fine_temperature", float("inf"), "inf: it must be 0"),
        ("text_temperature", "0.7", "'0.7': it must be 0"),
        ("fine_temperature", None, "None: it must be 0"),
        ("top_k", 0, "0: it must be an integer of 1 or more, or None"),
        ("top_k", 2.5, "2.5: it must be an integer"),
        ("top_k", True, "True: it must be an integer"),
        ("top_p", 0.0, "0.0: it must be greater than 0 and at most 1"),
        ("top_p", 1.5, "1.5: it must be greater than 0 and at most 1"),
        ("min_eos_p", -0.2, "-0.2: it must be 0 to 1, or None"),
        ("max_duration_s", -1, "-1: it must be seconds, 0 or more"),
        ("allow_early_stop", "no", "'no': it must be True or False"),
        ("max_coarse_history", 0, "0: it must be an integer"),
    ],
)
def test_settings(setting, value, words):
    with pytest.raises(SamplingError, match=f"{setting} is {words}"):
        Sampling(**{setting: value})


STAGES = {
    "semantic None": ("semantic_to_coarse", (None,), {}, r"object\[\]: it must be integers"),
    "semantic text": ("semantic_to_coarse", ("abc",), {}, "it must be integers"),
    "semantic float": ("semantic_to_coarse", (np.zeros(3),), {}, r"semantic is float64\[3\]: .* integers \(n,\)"),
    "semantic bool": ("semantic_to_coarse", (np.ones(3, bool),), {}, "bool.*it must be integers"),
    "semantic rank": ("semantic_to_coarse", (ids(2, 3),), {}, r"int64\[2, 3\]: it must be integers \(n,\)"),
    "semantic empty": ("semantic_to_coarse", (ids(0),), {}, r"shape \(0,\): it is empty"),
    "semantic large": ("semantic_to_coarse", (ids(3, value=200),), {}, "values 200 to 200: they must be 0 to 199"),
    "semantic huge": ("semantic_to_coarse", (np.array([2**63], np.uint64),), {}, "they must be 0 to 199"),
    "semantic negative": ("semantic_to_coarse", (ids(3, value=-1),), {}, "values -1 to -1: they must be 0 to 199"),
    "semantic flat list": ("semantic_to_coarse", ([1, 2],), {}, r"semantic\[0\] is int64\[\]: it must be integers"),
    "semantic ragged": ("semantic_to_coarse", ([[[1], [1, 2]]],), {}, r"semantic\[0\] cannot be made an array"),
    "semantic in a list": ("semantic_to_coarse", ([ids(3), ids(3, value=999)],), {}, r"semantic\[1\] has values 999"),
    "coarse voice in a list": (
        "semantic_to_coarse", ([ids(3), ids(3)],), {"voice": [None, {}]}, "item 1: The voice lacks semantic_prompt",
    ),
    "coarse seeds": ("semantic_to_coarse", ([ids(3), ids(3)],), {"seed": [1]}, "seed has 1 items for 2 inputs"),
    "coarse seed": ("semantic_to_coarse", (ids(3),), {"seed": -1}, "seed is -1"),
    "coarse sampling": ("semantic_to_coarse", (ids(3),), {"sampling": 0.7}, "sampling is 0.7"),
    "coarse rank": ("coarse_to_fine", (ids(3),), {}, r"coarse is int64\[3\]: .*\(codebooks, frames\)"),
    "coarse float": ("coarse_to_fine", (np.zeros((2, 3)),), {}, r"float64\[2, 3\]: it must be integers"),
    "coarse no frames": ("coarse_to_fine", (ids(2, 0),), {}, r"shape \(2, 0\): it is empty"),
    "coarse no codebooks": ("coarse_to_fine", (ids(0, 3),), {}, r"\[0\] codebooks: it must have 1 to 7"),
    "coarse all codebooks": ("coarse_to_fine", (ids(8, 3),), {}, r"\[8\] codebooks: it must have 1 to 7"),
    "coarse mixed": ("coarse_to_fine", ([ids(2, 3), ids(3, 3)],), {}, "the same number in every item"),
    "coarse range": ("coarse_to_fine", (ids(2, 3, value=64),), {}, "values 64 to 64: they must be 0 to 63"),
    "coarse in a list": ("coarse_to_fine", ([ids(2, 3), ids(2, 3, value=-3)],), {}, r"coarse\[1\] has values -3"),
    "fine voice": ("coarse_to_fine", (ids(2, 3),), {"voice": "nobody"}, "There is no voice 'nobody'"),
    "fine rank": ("decode", (ids(3),), {}, r"fine is int64\[3\]"),
    "fine float": ("decode", (np.zeros((8, 3)),), {}, "float64.*it must be integers"),
    "fine many codebooks": ("decode", (ids(9, 3),), {}, "fine has 9 codebooks: it must have 1 to 8"),
    "fine no codebooks": ("decode", ([ids(8, 3), ids(0, 3)],), {}, r"fine\[1\] has 0 codebooks: it must have 1 to 8"),
    "fine range": ("decode", ([ids(8, 3, value=64)],), {}, r"fine\[0\] has values 64 to 64: they must be 0 to 63"),
    "audio None": ("encode", (None,), {}, "audio is object.*it must be mono float samples"),
    "audio path": ("encode", ("clip.wav",), {}, "it must be mono float samples"),
    "audio integers": ("encode", (ids(9),), {}, r"audio is int64\[9\]: it must be mono float"),
    "audio stereo": ("encode", (np.zeros((2, 9), np.float32),), {}, r"float32\[2, 9\]: it must be mono"),
    "audio empty": ("encode", (np.zeros(0, np.float32),), {}, "audio is empty: it must hold at least 1 sample"),
    "audio NaN": ("encode", (np.full(3, np.nan),), {}, "NaN, infinity or .*: all samples must be finite"),
    "audio in a list": ("encode", ([np.zeros(9), np.full(9, np.inf)],), {}, r"audio\[1\] holds NaN, infinity"),
    "rate small": ("encode", (np.zeros(9),), {"sample_rate": 10}, "rate is 10: .* 1000 to 384000"),
    "rate text": ("encode", (np.zeros(9),), {"sample_rate": "16k"}, "rate is '16k': it must be a whole number"),
    "rate fraction": ("encode", (np.zeros(9),), {"sample_rate": 16000.5}, "rate is 16000.5: it must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", STAGES, ids=str)
def test_stages(bark, case):
    name, arguments, options, words = STAGES[case]
    with pytest.raises(ValueError, match=words):
        getattr(bark, name)(*arguments, **options)


# Where models come from.

PLACES = {
    "None": ({"model": None}, HubError, "None: it must be a folder, or a hub id"),
    "empty": ({"model": ""}, HubError, "'': it must be a folder, or a hub id"),
    "no folder": ({"model": "./none"}, HubError, "no folder './none', and it is no hub id"),
    "no path": ({"model": Path("none")}, HubError, "no folder 'none'"),
    "hub id": ({"model": "suno/../bark"}, HubError, "no hub id either"),
    "a file": ({"model": __file__}, HubError, "is a file: the model must be the folder"),
    "revision": ({"model": "suno/bark", "revision": "../x"}, HubError, "'../x': it must be a branch, a tag or"),
    "revision of a folder": ({"model": ".", "revision": "main"}, HubError, "revisions belong to hub ids"),
    "dtype": ({"dtype": "int7"}, ValueError, "'int7': choose one of float32, bfloat16, int8"),
    "dtype type": ({"dtype": np.float32}, ValueError, "choose one of float32, bfloat16"),
    "dtype list": ({"dtype": ["float32"]}, ValueError, "choose one of float32, bfloat16"),
    "device": ({"device": "metal"}, ValueError, "'metal': choose 'cpu', 'gpu', 'tpu', a jax.Device, or None"),
    "device number": ({"device": 0}, ValueError, "device is 0: choose 'cpu'"),
    "no such device": ({"device": "tpu"}, ValueError, "'tpu', but JAX finds none: there is cpu"),
    "size": ({"model": "suno/bark", "sizes": {"text": "tiny"}}, ValueError, "'tiny'.* to 'small' or 'large'"),
    "size of what": ({"model": "suno/bark", "sizes": {"codec": "small"}}, ValueError, "map text, coarse, fine to"),
    "sizes": ({"model": "suno/bark", "sizes": "small"}, ValueError, "sizes is 'small': it must map"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES, ids=str)
def test_places(case):
    options, error, words = PLACES[case]
    with pytest.raises(error, match=words):
        bark_jax.load(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "HF_HUB_OFFLINE is set. Pass a local folder"), ({"local_files_only": True}, "local_files_only is set")],
)
def test_offline(tmp_path, monkeypatch, options, words):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(HubError, match=f"suno/bark is not in the cache .*{words}"):
        bark_jax.load("suno/bark", **options)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "4"])
def test_rows(good, rows):
    with pytest.raises(ValueError, match=f"rows is {rows!r}: it must be an integer of 1 or more, or None"):
        bark_jax.load(good, rows=rows)


def test_module_level_generate():
    """The bundled model's: an English one, whose voices have names of their own."""
    with pytest.raises(UnknownVoiceError, match=r"no voice 'v2/en_speaker_6'"):
        bark_jax.generate("hello", voice="v2/en_speaker_6")
    with pytest.raises(TextError, match=r"nothing to say|must hold at least one character"):
        bark_jax.generate(" ")


def test_a_fitting_voice_of_an_unknown_name_in_a_folder(good, tmp_path, monkeypatch):
    monkeypatch.setenv("BARK_JAX_VOICES", str(tmp_path / "voices"))
    (tmp_path / "voices").mkdir()
    Voice.from_dict(prompt()).save(tmp_path / "voices" / "anna.npz")
    bark = bark_jax.load(good)
    assert bark.voices() == ["anna"]
    with pytest.raises(UnknownVoiceError, match=r"no voice 'ana' .*nearest of 1 names are anna"):
        bark.generate("hello", voice="ana")


# Damaged checkpoints: what happens to the folder, error, words.


def damage(network: str, change: Any) -> Any:
    return lambda folder: (path := folder / f"{network}.safetensors").write_bytes(change(path.read_bytes()))


def tensors(network: str, change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / f"{network}.safetensors"
        arrays = dict(safetensors.numpy.load_file(path))
        change(arrays)
        safetensors.numpy.save_file(arrays, path)

    return apply


def header(network: str, change: Any) -> Any:
    def apply(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        tree = json.loads(data[8 : 8 + size])
        change(tree)
        text = json.dumps(tree).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return damage(network, apply)


def config(*path: str, value: Any = None, remove: bool = False) -> Any:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        part = tree
        for key in path[:-1]:
            part = part[key]
        if remove:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(tree))

    return apply


def write(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def poison(name: str, value: float) -> Any:
    return lambda arrays: arrays.__setitem__(name, np.full_like(arrays[name], value))


WPE = "wpe.weight"
NETWORK = ("semantic", "network")
DAMAGES = {
    "no config": (remove("config.json"), CheckpointError, "has no config.json: a native checkpoint holds"),
    "no tokenizer": (remove("tokenizer.json"), CheckpointError, "has no tokenizer.json"),
    "no semantic": (remove("semantic.safetensors"), CheckpointError, "has no semantic.safetensors"),
    "no codec": (remove("codec.safetensors"), CheckpointError, "has no codec.safetensors"),
    "cut off": (damage("semantic", lambda b: b[:-100]), CheckpointError, "semantic.safetensors is damaged"),
    "cut in the header": (damage("coarse", lambda b: b[:100]), CheckpointError, "coarse.safetensors is damaged"),
    "empty": (write("fine.safetensors", b""), CheckpointError, "fine.safetensors is damaged"),
    "more behind": (damage("codec", lambda b: b + b"xx"), CheckpointError, "codec.safetensors is damaged"),
    "a pickle": (write("fine.safetensors", b"\x80\x04cos\nsystem\n."), CheckpointError, "fine.safetensors is damaged"),
    "header bomb": (damage("fine", lambda b: struct.pack("<Q", 2**40) + b[8:]), CheckpointError, "fine.* is damaged"),
    "header of 2**64": (damage("fine", lambda b: b"\xff" * 8 + b[8:]), CheckpointError, "fine.* is damaged"),
    "huge shape": (
        header("semantic", lambda t: t[WPE].update(shape=[2**40, 2**40])), CheckpointError, "semantic.* is damaged",
    ),
    "offsets beyond": (
        header("semantic", lambda t: t[WPE].update(data_offsets=[0, 2**62])), CheckpointError, "semantic.* is damaged",
    ),
    "unsigned": (
        header("semantic", lambda t: t[WPE].update(dtype="U32")), CheckpointError, "wpe.* is U32: choose F32",
    ),
    "NaN": (tensors("coarse", poison(WPE, np.nan)), CheckpointError, "coarse.safetensors: wpe.weight holds NaN"),
    "infinity": (tensors("fine", poison("ln_f.bias", -np.inf)), CheckpointError, "ln_f.bias holds NaN or infinity"),
    "NaN in the codec": (
        tensors("codec", poison("quantizer.codebooks", np.nan)), CheckpointError, "quantizer.codebooks holds NaN",
    ),
    "renamed": (
        tensors("semantic", lambda a: a.update(position=a.pop(WPE))), CheckpointError,
        r"(?s)lacks wpe.weight \(256, 32\).*unknown tensor position",
    ),
    "one too many": (tensors("fine", lambda a: a.update(x=a[WPE])), CheckpointError, "fine.* unknown tensor x"),
    "shape": (
        tensors("semantic", lambda a: a.update({WPE: np.zeros((2, 2), np.float32)})), CheckpointError,
        r"wpe.weight has shape \(2, 2\), the config asks for \(256, 32\)",
    ),
    "transposed": (
        tensors("coarse", lambda a: a.update({WPE: np.ascontiguousarray(a[WPE].T)})), CheckpointError,
        r"has shape \(32, 256\), the config asks for \(256, 32\)",
    ),
    "integers": (
        tensors("semantic", lambda a: a.update({WPE: a[WPE].astype(np.int32)})), CheckpointError, "I32: choose",
    ),
    "float64": (
        tensors("semantic", lambda a: a.update({WPE: a[WPE].astype(np.float64)})), CheckpointError, "F64: choose",
    ),
    "more layers": (config(*NETWORK, "n_layer", value=3), CheckpointError, "lacks blocks.2.attn.c_attn.weight"),
    "fewer layers": (config(*NETWORK, "n_layer", value=1), CheckpointError, "unknown tensor blocks.1"),
    "vast width": (config(*NETWORK, "n_embd", value=2**40), CheckpointError, "the config asks for"),
    "not JSON": (write("config.json", b"{"), ConfigError, "config.json is not valid JSON"),
    "not UTF-8": (write("config.json", b"\xff\xfe"), ConfigError, "config.json is not UTF-8"),
    "no JSON": (write("config.json", b""), ConfigError, "config.json is not valid JSON"),
    "a list": (write("config.json", b"[1]"), ConfigError, "holds list: it must hold one JSON object"),
    "format": (config("format", value=2), ConfigError, "format 2: this version of bark_jax reads format 1"),
    "no format": (config("format", remove=True), ConfigError, "format None: .* reads format 1"),
    "unknown key": (config("speakers", value=3), ConfigError, "unknown key.* speakers: BarkConfig knows semantic"),
    "unknown inner key": (config(*NETWORK, "rope", value=1), ConfigError, "semantic: network has unknown key.* rope"),
    "missing key": (config("coarse", "network", remove=True), ConfigError, "coarse lacks key.* network"),
    "null": (config("semantic", value=None), ConfigError, "semantic is None: it must be a JSON object"),
    "text for a number": (config(*NETWORK, "n_embd", value="32"), ConfigError, "n_embd is '32': .* of type int"),
    "fraction": (config(*NETWORK, "n_embd", value=32.0), ConfigError, "n_embd is 32.0: it must be of type int"),
    "bool": (config(*NETWORK, "n_layer", value=True), ConfigError, "n_layer is True: it must be of type int"),
    "negative": (config(*NETWORK, "n_layer", value=-1), ConfigError, "n_layer is -1: it must be greater than 0"),
    "rate NaN": (config("semantic", "rate_hz", value=float("nan")), ConfigError, "rate_hz is nan"),
    "heads": (config(*NETWORK, "n_head", value=5), ConfigError, "n_embd is 32: it must be a multiple of n_head = 5"),
    "stages apart": (config("codec", "ratios", value=[2, 2]), ConfigError, "coarse.rate_hz is 75.0: .* needs 6000.0"),
    "fingerprint": (config("fingerprint", value=""), ConfigError, "fingerprint is ''"),
    "tokenizer of another size": (
        write("tokenizer.json", build_tokenizer(models.WORDS[:-1]).to_str().encode()), TokenizerError,
        "has 82 tokens: the model's text vocabulary has 83",
    ),
    "tokenizer cut off": (write("tokenizer.json", b'{"model": {'), TokenizerError, "tokenizer.json is not valid JSON"),
    "tokenizer empty": (write("tokenizer.json", b""), TokenizerError, "tokenizer.json is not valid JSON"),
    "tokenizer list": (write("tokenizer.json", b"[]"), TokenizerError, "it must hold one object"),
    "tokenizer of nothing": (
        write("tokenizer.json", b'{"model": {"vocab": {}}}'), TokenizerError, "tokenizer.json is not a tokenizer",
    ),
    "a path for a tokenizer": (write("tokenizer.json", b"/etc/passwd"), TokenizerError, "it must hold one object"),
}  # fmt: skip


def test_the_unchanged_copy_loads(good, tmp_path):
    shutil.copytree(good, tmp_path / "model")
    assert bark_jax.load(tmp_path / "model").config == CONFIG


@pytest.mark.parametrize("case", DAMAGES, ids=str)
def test_damaged_checkpoints(good, tmp_path, case):
    change, error, words = DAMAGES[case]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    change(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(error, match=words) as caught:
        bark_jax.load(folder)
    assert isinstance(caught.value, ValueError)
    assert sorted(folder.iterdir()) == before
    assert len(str(caught.value)) < 4_000


def test_all_problems_are_told_at_once(good, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    tensors("coarse", poison(WPE, np.nan))(folder)
    (folder / "fine.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"(?s)coarse.safetensors: wpe.weight holds NaN.*fine.safetensors is damaged"
    ):
        bark_jax.load(folder)


def test_saving_says_what_is_wrong(tmp_path):
    speech = suno_like.speech()
    for path, options, words in (
        ("a.aiff", {}, "'.aiff': the formats are .wav, .flac, .ogg, .mp3"),
        ("a", {}, "the formats are"),
        ("a.flac", {"subtype": "float"}, "'float': a .flac file has pcm16"),
        ("a.wav", {"subtype": "pcm24"}, "'pcm24': a .wav file has float or pcm16"),
    ):
        with pytest.raises(ValueError, match=words):
            speech.save(tmp_path / path, **options)
    with pytest.raises(FileNotFoundError):
        speech.save(tmp_path / "none" / "a.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OSError):
        speech.save(tmp_path / "folder.wav")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.wav"]


def test_there_are_enough_cases():
    assert len(ARGUMENTS) + len(STAGES) + len(PLACES) + len(DAMAGES) >= 150
    assert issubclass(BarkWarning, UserWarning)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000, "not valid JSON"), ('{"a":' * 100_000, "not valid JSON")],
    ids=["lists", "objects"],
)
def test_json_nested_too_deep(text, message):  # type: ignore[no-untyped-def]
    with pytest.raises(bark_jax.ConfigError, match=message):
        bark_jax.BarkConfig.from_json(text)


def test_a_config_of_thousands_of_layers_is_refused_at_once():
    with pytest.raises(bark_jax.ConfigError, match="n_layer is 1000: it must be 1 to 256"):
        bark_jax.config.suno((1000, 1, 16))


def test_a_tokenizer_that_is_no_text(tmp_path):  # type: ignore[no-untyped-def]
    folder = models.save(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(bark_jax.CheckpointError, match=r"tokenizer\.json is not UTF-8"):
        bark_jax.load(folder, device="cpu")
