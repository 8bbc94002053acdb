"""The sampler: its distribution, its filters against an obvious numpy version, its settings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bark_jax import sampling, settings
from bark_jax.sampling import Draw
from bark_jax.settings import Sampling, SamplingError


def reference_filter(logits, top_k, top_p):  # type: ignore[no-untyped-def]
    """Suno's filters, written out slowly: remove what comes after the candidate that crosses top_p, then all but k."""
    kept = list(np.argsort(-logits, kind="stable"))
    if top_p is not None:
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        total, n = 0.0, 0
        for index in kept:
            n += 1
            total += probs[index]
            if total > top_p:
                break
        kept = kept[:n]
    if top_k is not None:
        kept = kept[:top_k]
    out = np.full_like(logits, -np.inf)
    out[kept] = logits[kept]
    return out


@pytest.mark.parametrize("top_k", [None, 1, 3, 50, 99, 100, 1000])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 0.999, 1.0])
def test_filters(top_k, top_p):  # type: ignore[no-untyped-def]
    how = Draw.of([Sampling(top_k=top_k, top_p=top_p)], "semantic")
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(0, 3, 100).astype(np.float32)
        ours = sampling.filter_logits(jnp.asarray(logits), how.top_k[0], how.top_p[0])
        expected = reference_filter(logits.astype(np.float64), top_k, top_p)
        if top_p == 1.0:  # whether the last candidates' sum exceeds 1 is a matter of rounding
            assert np.isfinite(ours).sum() >= min(top_k or 100, 95)
        else:
            np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected))
        np.testing.assert_array_equal(np.asarray(ours)[np.isfinite(ours)], logits[np.isfinite(ours)])


def chi_square(counts, probs):  # type: ignore[no-untyped-def]
    """How many standard deviations the statistic lies from its mean (candidates expected under 5 times are pooled)."""
    expected = probs * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k, top_p", [(None, None), (7, None), (None, 0.8), (20, 0.95)])
def test_distribution(temperature, top_k, top_p):  # type: ignore[no-untyped-def]
    n, candidates = 40_000, 60
    logits = np.random.default_rng(3).normal(0, 0.8, candidates).astype(np.float32)
    keys = sampling.stage_keys([11], "semantic")
    noise = jax.vmap(lambda s: sampling.gumbel(keys, s[None], (candidates,))[0])(jnp.arange(n))
    kept = logits if top_k is None and top_p is None else reference_filter(logits, top_k, top_p)
    how = Draw.of([Sampling(text_temperature=temperature, top_k=top_k, top_p=top_p)], "semantic")
    filtered = sampling.filter_logits(jnp.asarray(logits), how.top_k[0], how.top_p[0])
    drawn = jax.vmap(lambda g: sampling.draw(filtered, g, how.temperature[0]))(noise)
    probs = np.exp((kept - kept.max()) / temperature)
    probs /= probs.sum()
    counts = np.bincount(np.asarray(drawn), minlength=candidates)
    assert counts[probs == 0].sum() == 0
    assert abs(chi_square(counts, probs)) < 4
    # The test itself can fail: the same draws do not fit another temperature.
    other = np.exp((kept - kept.max()) / (temperature * 1.2))
    assert chi_square(counts, other / other.sum()) > 6


def test_zero_temperature_is_argmax_with_the_first_of_equals():
    logits = jnp.array([1.0, 3.0, 3.0, 2.0])
    noise = jnp.array([100.0, 0.0, 50.0, 0.0])
    assert int(sampling.draw(logits, noise, jnp.float32(0.0))) == 1
    assert int(sampling.draw(logits, noise, jnp.float32(1.0))) == 0


def test_noise_of_a_row_does_not_depend_on_the_batch():
    keys = sampling.stage_keys([1, 2, 3], "coarse")
    together = sampling.gumbel(keys, jnp.array([4, 5, 6]), (32,))
    for i in range(3):
        alone = sampling.gumbel(keys[i : i + 1], jnp.array([4 + i]), (32,))
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize(
    "settings",
    [
        {"text_temperature": -0.1},
        {"coarse_temperature": math.nan},
        {"fine_temperature": math.inf},
        {"text_temperature": "hot"},
        {"text_temperature": None},
        {"top_k": 0},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_eos_p": -0.2},
        {"min_eos_p": 2},
        {"max_duration_s": -1},
        {"max_duration_s": math.nan},
        {"allow_early_stop": "yes"},
        {"max_coarse_history": 0},
        {"max_coarse_history": 60.5},
    ],
)
def test_bad_settings_are_refused_by_name(settings):  # type: ignore[no-untyped-def]
    with pytest.raises(SamplingError, match=next(iter(settings))):
        Sampling(**settings)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", True, np.float32(3)])
def test_bad_seeds_are_refused(seed):  # type: ignore[no-untyped-def]
    with pytest.raises(SamplingError, match="seed"):
        settings.check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int64(5), np.uint64(2**64 - 1)])
def test_good_seeds_are_integers(seed):  # type: ignore[no-untyped-def]
    assert settings.check_seed(seed) == int(seed)


def test_settings_are_frozen_and_replaceable():
    how = Sampling()
    with pytest.raises(AttributeError):
        how.top_k = 3  # type: ignore[misc]
    assert how.replace(top_k=3).top_k == 3 and how.top_k is None
    assert Sampling.greedy().text_temperature == 0
