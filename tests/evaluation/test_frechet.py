"""Distances between sets of features, against SciPy's formula and against what is known of normal distributions."""

import numpy as np
import pytest
from support.features import CASES, features
from support.golden_values import recorded

from latte.evaluation.frechet import Statistics, bootstrap, frechet_distance, kernel_distance, statistics

GOLDEN = recorded("frechet")


def distance(a, b):
    return frechet_distance(statistics(a), statistics(b))


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_the_formula_of_the_official_code_also_where_clips_are_fewer_than_features(name):
    assert distance(*features(name)) == pytest.approx(float(GOLDEN[name]), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_set_is_at_no_distance_from_itself(name):
    a, _ = features(name)
    assert distance(a, a) <= 1e-12 * np.trace(statistics(a).covariance)


def test_it_is_the_distance_of_normal_distributions_on_axes():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 5)), rng.uniform(0, 3, (2, 5))
    found = frechet_distance(*(Statistics(m, np.diag(d**2)) for m, d in zip(means, deviations, strict=True)))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_covariance_is_over_n_and_exact_far_from_zero():
    a = np.random.default_rng(0).normal([1e4, 0, -1e4], size=(1500, 3))
    mean, covariance = statistics(a)
    np.testing.assert_allclose(mean, a.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(a, rowvar=False, bias=True), atol=1e-12)


def test_counts_are_repetitions():
    a = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    counts = np.random.default_rng(1).integers(0, 4, 600)
    for found, expected in zip(statistics(a, counts), statistics(np.repeat(a, counts, axis=0)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_interval_is_as_wide_as_distances_of_new_draws_vary():
    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(100, 4)), 1.3 * rng.normal(size=(100, 4)) + 0.5

    low, high = np.quantile([distance(*draw()) for _ in range(300)], [0.025, 0.975])
    a, b = draw()
    interval = bootstrap(a, b, 300)
    assert interval.low < distance(a, b) < interval.high
    assert 0.7 < (interval.high - interval.low) / (high - low) < 1.6
    assert interval == bootstrap(a, b, 300) != bootstrap(a, b, 300, seed=1)


def test_the_kernel_distance_is_the_mean_over_all_pairs_without_a_clip_and_itself():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def mean(x, y):
        return np.mean([kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(y) if x is not y or i != j])

    assert kernel_distance(a, b) == pytest.approx(mean(a, a) + mean(b, b) - 2 * mean(a, b), rel=1e-12)
    with pytest.raises(ValueError, match="two clips"):
        kernel_distance(a[:1], b)
