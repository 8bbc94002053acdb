"""`bark_jax.linear`: what is not tested as a part of the networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bark_jax.linear import Dropout, Int8, _noise, matmul


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


class TestInt8:
    def weight(self, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def test_it_is_the_nearest(self) -> None:
        weight = self.weight(3, 5, 40) * np.logspace(-3, 3, 5, dtype=np.float32)[:, None]
        weight[1, 2] = 0
        low = Int8.of(weight)
        assert low.values.dtype == np.int8 and low.scale.shape == (3, 5) and (low.scale > 0).all()
        assert low.shape == weight.shape and low.ndim == 3 and low.size == weight.size
        assert np.abs(low.values.astype(int)).max(axis=-1)[0].tolist() == [127] * 5
        assert (np.abs(np.asarray(low) - weight) <= 0.5001 * low.scale[..., None]).all()
        assert not np.asarray(low[1])[2].any()
        np.testing.assert_array_equal(np.asarray(low[2][1:3]), np.asarray(low)[2, 1:3])
        np.testing.assert_array_equal(low.astype(np.float32), np.asarray(low))
        np.testing.assert_array_equal(Int8.of(np.asarray(low)).values, low.values)

    def test_products_are_those_of_the_rounded_numbers(self) -> None:
        weight, x = Int8.of(self.weight(24, 64)), self.weight(6, 64, seed=1) * np.logspace(-3, 3, 6)[:, None]
        x = x.astype(np.float32)
        x[4] = 0
        scale = np.where(np.abs(x).max(1) > 0, np.abs(x).max(1), 1) / np.float32(127)
        rounded = np.rint(x / scale[:, None]) * scale[:, None]
        wanted = rounded.astype(np.float64) @ np.asarray(weight, np.float64).T
        made = np.asarray(jax.jit(matmul)(x, jax.device_put(weight)))
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
        assert not made[4].any()

    @pytest.mark.parametrize("shape", [(1,), (2,), (5,), (2, 3)])
    def test_a_row_is_the_same_in_every_batch(self, shape: tuple[int, ...]) -> None:
        weight, x = jax.device_put(Int8.of(self.weight(24, 64))), self.weight(*shape, 64, seed=1)
        made = np.asarray(jax.jit(matmul)(x, weight))
        assert made.shape == (*shape, 24)
        for at in np.ndindex(*shape):
            np.testing.assert_array_equal(np.asarray(jax.jit(matmul)(x[at][None], weight))[0], made[at])
