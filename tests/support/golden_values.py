"""Shared by tests: golden values, the tiny checkpoints, and errors relative to the largest golden value."""

from pathlib import Path

import numpy as np

from latte.components.loading import load_model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ROOT = FIXTURES.parents[1]


def recorded(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a fixture, integers as int32, which is what graphs take."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {key: a.astype(np.int32) if a.dtype == np.int64 else a for key, a in arrays.items()}


def error(actual, expected) -> float:
    """Return the largest deviation relative to the largest expected value."""
    actual = actual.asnumpy() if hasattr(actual, "asnumpy") else np.asarray(actual)
    assert actual.shape == expected.shape, f"{actual.shape} instead of {expected.shape}"
    return float(np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max())


def tiny(kind: str = "uncond", weights: str = "ema", **options):
    """Return the network of a tiny official checkpoint: "uncond" or "class"."""
    return load_model(FIXTURES / f"latte_{kind}.pt", weights=weights, **options)
