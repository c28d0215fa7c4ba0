"""Shared by the tests of weights: where the files are, every dtype, equality of every bit."""

from pathlib import Path

import numpy as np

from latte.weights.torch_file import read_torch_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WEIGHTS = FIXTURES / "weights"
LATTE = {
    "hidden_size": 64,
    "depth": 4,
    "num_heads": 4,
    "patch_size": 2,
    "input_size": 8,
    "num_frames": 4,
    "in_channels": 4,
    "learn_sigma": True,
    "condition": "class",
    "num_classes": 5,
    "variant": 1,
    "patch_embedding": "uniform",
    "injection": "adaln",
    "temporal_position": "absolute",
    "prediction_type": "epsilon",
    "distill_steps": 0,
    "condition_frames": 0,
}


def same(left, right):
    assert list(left) == list(right)
    for key, array in left.items():
        assert array.dtype == right[key].dtype and array.shape == right[key].shape, key
        assert array.tobytes() == right[key].tobytes(), key


def kinds():
    """Tensors of every dtype, in an order that sorts neither by name nor by size."""
    obj = read_torch_file(WEIGHTS / "kinds_zip.pt")
    return {key: value for key, value in obj.items() if isinstance(value, np.ndarray)}
