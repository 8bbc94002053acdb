"""`bark_jax.linear`: what is not tested as a part of the networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bark_jax.linear import Dropout, _noise


def test_noise_is_uniform_and_unrelated_between_keys_and_positions() -> None:
    made = np.stack([np.asarray(_noise(jax.random.key(i), (16, 33, 257))) for i in range(12)]).astype(np.int64)
    assert made.min() >= 0 and made.max() < 65_536
    expected = made.size / 256
    chi_squared = np.sum((np.bincount(made.ravel() >> 8, minlength=256) - expected) ** 2 / expected)
    assert 150 < chi_squared < 380  # 255 degrees of freedom: five standard deviations around
    unit = (made - 32_767.5) / 65_536 * 12**0.5
    flat = unit.reshape(12, -1)
    related = np.abs(np.corrcoef(flat) - np.eye(12)).max() * flat.shape[1] ** 0.5
    assert related < 5
    for axis in (1, 2, 3):
        a, b = unit.take(range(unit.shape[axis] - 1), axis), unit.take(range(1, unit.shape[axis]), axis)
        assert abs(np.mean(a * b)) * a.size**0.5 < 5
    a, b = unit[..., :128], unit[..., 129:]  # both halves of a word
    assert abs(np.mean(a * b)) * a.size**0.5 < 5


@pytest.mark.parametrize("rate", [1e-4, 0.05, 0.5, 0.999, 1 - 1e-9])
def test_dropout_keeps_its_share_and_the_mean(rate: float) -> None:
    x = jnp.full((40, 100, 257), 2.0)
    y = np.asarray(Dropout(jax.random.key(3), rate=rate)(x))
    share = min(round(rate * 65_536), 65_535) / 65_536
    kept = y != 0
    assert abs(np.mean(~kept) - share) < 5 * (share * (1 - share) / y.size) ** 0.5 + 1e-9
    np.testing.assert_allclose(y[kept], 2 / (1 - share), rtol=1e-5)
    assert np.array_equal(y, Dropout(jax.random.key(3), rate=rate)(x))
    assert Dropout(jax.random.key(3))(x) is x
