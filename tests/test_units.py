"""`bark_jax.units`: rows alone and in batches, lengths, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import bark_jax
import models
from bark_jax import audio as audio_files
from bark_jax import hubert, tokens, units, weights

SMALL = units.UnitsConfig(width=16, n_blocks=3, n_units=40, n_mels=20)


@pytest.fixture(scope="module")
def network() -> units.LogMelUnits:
    return units.LogMelUnits(SMALL, rngs=nnx.Rngs(0))


def speech(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.3 * np.sin(np.cumsum(rng.uniform(0.01, 0.3, n))) + 0.02 * rng.standard_normal(n)).astype(np.float32)


def test_a_row_is_what_it_is_alone(network: units.LogMelUnits) -> None:
    a, b = speech(480 * 30), speech(480 * 50, 1)
    both = np.zeros((2, 480 * 60), np.float32)
    both[0, : len(a)], both[1, : len(b)] = a, b
    together = network(jnp.asarray(both), jnp.array([30, 50]))
    for row, clip in zip(together, (a, b), strict=True):
        alone = network(jnp.asarray(clip[None]))[0]
        np.testing.assert_allclose(row[: len(alone)], alone, atol=1e-4)
        np.testing.assert_array_equal(units.encode(network, clip), jnp.argmax(alone, axis=-1))


@pytest.mark.parametrize("n", [480, 959, 960, 480 * 100, 480 * 100 + 479, 480 * 101])
def test_lengths(network: units.LogMelUnits, n: int) -> None:
    found = units.encode(network, speech(n))
    assert found.shape == (n // 480,) and found.dtype == np.int32 and found.min() >= 0 and found.max() < 40


def test_few_lengths_are_compiled(network: units.LogMelUnits) -> None:
    units.encode(network, speech(480 * 99))
    before = hubert.likeliest._cache_size()
    for frames in (1, 40, 77, 100):
        units.encode(network, speech(480 * frames))
    assert hubert.likeliest._cache_size() == before


def test_a_frame_sees_its_own_time(network: units.LogMelUnits) -> None:
    def loudest(audio: jax.Array) -> jax.Array:
        return jnp.sum(network.spectrum(audio)[0, 40])

    gradient = np.abs(np.asarray(jax.grad(loudest)(jnp.asarray(speech(480 * 40)[None])))[0])
    centre = np.sum(gradient * np.arange(len(gradient))) / np.sum(gradient)
    assert abs(centre - 40 * 240) < 240


def test_bad_audio(network: units.LogMelUnits) -> None:
    for audio, words in (
        (np.zeros((2, 960), np.float32), "mono"),
        (np.zeros(960, np.int16), "floating point"),
        (np.full(960, np.nan, np.float32), "finite"),
        (np.zeros(479, np.float32), "a unit takes 480"),
    ):
        with pytest.raises(ValueError, match=words):
            units.encode(network, audio)
    with pytest.raises(ValueError, match="half of an even hop"):
        units.UnitsConfig(hop=481)
    with pytest.raises(ValueError, match="n_units is 0"):
        units.UnitsConfig(n_units=0)


def test_reloaded_is_original(network: units.LogMelUnits, tmp_path: Path) -> None:
    tensors = {name: np.asarray(leaf) for name, leaf in weights.names(network).items()}
    path = tmp_path / "units.safetensors"
    units.save(path, SMALL, tensors)
    again = units.load(path)
    clip = speech(480 * 70)
    assert again.config == SMALL
    np.testing.assert_array_equal(units.encode(again, clip), units.encode(network, clip))
    assert [file.name for file in tmp_path.iterdir()] == ["units.safetensors"]


def test_damaged_files_are_refused(network: units.LogMelUnits, tmp_path: Path) -> None:
    tensors = {name: np.asarray(leaf) for name, leaf in weights.names(network).items()}
    path = tmp_path / "units.safetensors"
    units.save(path, SMALL, {name: x for name, x in tensors.items() if name != "head.bias"})
    with pytest.raises(weights.CheckpointError, match=r"does not fit its config: head\.bias"):
        units.load(path)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(weights.CheckpointError, match="has format 'None'"):
        units.load(path)
    path.write_bytes(b"no")
    with pytest.raises(weights.CheckpointError, match="broken"):
        units.load(path)
    about = {"format": units.FORMAT, "kind": "logmel", "config": '{"n_units": "x"}'}
    path.write_bytes(safetensors.numpy.save(tensors, about))
    with pytest.raises(weights.CheckpointError, match="broken config"):
        units.load(path)
    with pytest.raises(OSError):
        units.load(tmp_path / "absent.safetensors")


def test_a_model_reads_audio(tmp_path: Path) -> None:
    with pytest.raises(weights.CheckpointError, match="has no units"):
        bark_jax.load(models.save(tmp_path / "bare")).audio_to_semantic(speech(4800))
    folder = models.save_with_units(tmp_path / "model")
    network = units.load(folder / "units.safetensors")
    bark, config = bark_jax.load(folder), network.config
    clips = [speech(480 * 20), speech(480 * 33 + 5, 1)]
    for clip, ids in zip(clips, bark.audio_to_semantic(clips), strict=True):
        np.testing.assert_array_equal(ids, units.encode(network, clip))
    assert bark.audio_to_semantic(np.repeat(clips[0], 2), sample_rate=48_000).shape == (20,)
    for audio, words in ((np.full(4800, np.nan, np.float32), "NaN"), (speech(479), "a unit takes 480")):
        with pytest.raises(ValueError, match=words):
            bark.audio_to_semantic(audio)
    other = dataclasses.replace(config, n_units=7)
    units.save(folder / "units.safetensors", other, weights.names(units.LogMelUnits(other, rngs=nnx.Rngs(0))))
    with pytest.raises(weights.CheckpointError, match="n_units 7: the model's is 200"):
        bark_jax.load(folder)


def test_a_clip_becomes_a_voice(tmp_path: Path) -> None:
    bark = bark_jax.load(models.save_with_units(tmp_path / "model"))
    made = bark.config
    for n in (26_400, 26_401, 48_000 - 1, 100_003):
        audio = speech(n)
        voice = bark.clone(audio)
        ids, codes = bark.audio_to_semantic(audio), bark.encode(audio)
        n_ids = len(voice.semantic)
        assert len(ids) - n_ids <= 1 and voice.fine.shape[1] == tokens.n_frames(made.coarse, n_ids)
        np.testing.assert_array_equal(voice.semantic, ids[:n_ids])
        np.testing.assert_array_equal(voice.fine, codes[:, : voice.fine.shape[1]])
        np.testing.assert_array_equal(voice.coarse, voice.fine[:2])
        assert len(bark.generate("abc", voice=voice, sampling=bark_jax.Sampling(max_duration_s=0.3)).audio)
    audio_files.write(tmp_path / "clip.wav", speech(60_000), 24_000)
    from_file, from_array = bark.clone(tmp_path / "clip.wav"), bark.clone(speech(60_000))
    np.testing.assert_array_equal(from_file.fine, from_array.fine)
    for audio, options, words in (
        (speech(7_200), {}, r"the clip lasts 0\.30 s: a voice takes 1\.1 to 15 s"),
        (speech(24_000 * 16), {}, r"the clip lasts 16\.00 s"),
        (np.zeros(48_000, np.float32), {}, "the clip is silent"),
        (tmp_path / "clip.wav", {"sample_rate": 24_000}, "audio a file: files have their own"),
    ):
        with pytest.raises(ValueError, match=words):
            bark.clone(audio, **options)
    with pytest.raises(FileNotFoundError):
        bark.clone(tmp_path / "none.wav")
    hiss = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    with pytest.warns(bark_jax.BarkWarning, match="the clip is a poor prompt: its level changes by less than 12 dB"):
        bark.clone(hiss)
