"""`bark_jax.spectra`: against numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bark_jax import spectra


def test_stft_is_numpys() -> None:
    audio = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float32)
    real, imaginary = spectra.stft(jnp.asarray(audio), 64, 16)
    window = np.hanning(65)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(audio, 64, axis=1)[:, ::16]
    wanted = np.fft.rfft(frames * window) / np.sqrt(np.sum(window**2))
    assert real.shape == wanted.shape
    np.testing.assert_allclose(real, wanted.real, atol=1e-5)
    np.testing.assert_allclose(imaginary, wanted.imag, atol=1e-5)


def test_mel_filters_cover_everything() -> None:
    table = spectra.mel_filters(1024, 80, 24_000)
    assert table.shape == (513, 80) and np.all(table >= 0)
    np.testing.assert_allclose(table.sum(axis=0), 1, atol=1e-5)
    peaks = table.argmax(axis=0)
    assert np.all(np.diff(peaks) >= 0) and peaks[0] <= 2 and peaks[-1] > 480


def test_a_tone_is_loudest_in_its_band() -> None:
    tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(9600) / 24_000)[None]
    found = np.asarray(spectra.log_mel(tone, 960, 240, 80, 24_000))
    band = int(np.argmax(spectra.mel_filters(960, 80, 24_000)[40]))  # 40 bins of 25 Hz
    assert found.shape == (1, 37, 80) and set(found.argmax(axis=-1)[0].tolist()) <= {band - 1, band, band + 1}
    assert float(found.min()) >= np.log(1e-5) - 1e-4


def test_hops_must_divide() -> None:
    with pytest.raises(ValueError, match="hop is 7"):
        spectra.stft(jnp.zeros((1, 100)), 16, 7)
