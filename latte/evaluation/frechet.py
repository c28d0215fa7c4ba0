"""Distances between two sets of features: Frechet, with its bootstrap interval, and kernel (polynomial MMD)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 512  # features that are float64 at once
LEVEL = 0.95  # of the interval


class Statistics(NamedTuple):
    """Mean (D,) and biased covariance (D, D), over N, of features; float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Interval(NamedTuple):
    """An interval of LEVEL around a distance."""

    low: float
    high: float


def statistics(features: np.ndarray, counts: np.ndarray | None = None) -> Statistics:
    """Return the statistics of features (N, D), each counted `counts` (N,) times; the sums are float64.

    Centred before it is squared, which sums of squares less the square of the mean would not be exact enough for.
    """
    weights = np.ones(len(features)) if counts is None else counts.astype(np.float64)
    mean = np.zeros(features.shape[1])
    for start in range(0, len(features), ROWS):
        mean += weights[start : start + ROWS] @ features[start : start + ROWS].astype(np.float64)
    mean /= weights.sum()
    covariance = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), ROWS):
        centred = features[start : start + ROWS] - mean
        covariance += (centred * weights[start : start + ROWS, None]).T @ centred
    return Statistics(mean, covariance / weights.sum())


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared Frechet distance of two normal distributions.

    With S = L L^T the trace of the root is the sum of the singular values of L1^T L2: the eigenvalues of S1 S2 are
    their squares. So no root of an eigenvalue near 0 is taken, where rounding would count most, and the result is real
    for covariances of any rank. Dowson and Landau 1982; Heusel et al. 2017.
    """
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return max(float(difference @ difference + traces - 2 * root), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return L (D, rank) with L L^T = S; eigenvalues that rounding alone can explain are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    draws: int,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Interval:
    """Return how far the Frechet distance of features (N, D), (M, D) may lie from that of other N and M clips.

    Both sets are drawn again with repetition `draws` times. Repetition makes the distance larger, as fewer clips do, so
    the middle LEVEL of the distances is moved from their mean to the distance of the sets. That the distance of N clips
    is larger than that of all clips is not in the interval.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        counts = [np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x)) for x in (a, b)]
        found.append(frechet_distance(statistics(a, counts[0]), statistics(b, counts[1])))
        progress()
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(found)
    distance = frechet_distance(statistics(a), statistics(b))
    return Interval(max(distance + float(low), 0.0), distance + float(high))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared MMD of features (N, D), (M, D) by the kernel (x y / D + 1)^3; it may be below 0.

    Binkowski et al. 2018, over all pairs at once and not over subsets. Raises ValueError for a single clip.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a kernel distance takes two clips or more")
    within = [(_kernel_sum(x, x) - _kernel_diagonal(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(sum(within) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    y = y.astype(np.float64)
    parts = (x[start : start + ROWS].astype(np.float64) for start in range(0, len(x), ROWS))
    return sum(float(((part @ y.T / x.shape[1] + 1) ** 3).sum()) for part in parts)


def _kernel_diagonal(x: np.ndarray) -> float:
    return float((((x.astype(np.float64) ** 2).sum(1) / x.shape[1] + 1) ** 3).sum())
