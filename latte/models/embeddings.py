"""Fixed sine-cosine embeddings of positions (float64 tables) and of timesteps."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import ops


def sincos_1d(width: int, positions: np.ndarray) -> np.ndarray:
    """Return [sin(p w_i), cos(p w_i)] with w_i = 10000^(-2i/width) (Vaswani et al., 2017, section 3.5).

    positions (N,) -> (N, width) float64; `width` is even.
    """
    frequencies = 10000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(np.asarray(positions, np.float64).reshape(-1), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def frame_embedding(width: int, num_frames: int) -> np.ndarray:
    """Return the temporal embedding (1, F, width) as float32."""
    return sincos_1d(width, np.arange(num_frames))[None].astype(np.float32)


def patch_embedding(width: int, grid: tuple[int, int], span: float | None = None) -> np.ndarray:
    """Return the spatial embedding (1, h * w, width) of a patch grid (h, w) as float32, the horizontal half first.

    Patches are 1 apart, or with a `span` as far as makes both sides of the grid that long.
    """
    sides = [np.arange(n, dtype=np.float32) / np.float32(n / span if span else 1) for n in grid]
    rows, columns = np.meshgrid(*sides, indexing="ij")
    halves = [sincos_1d(width // 2, columns), sincos_1d(width // 2, rows)]
    return np.concatenate(halves, axis=1)[None].astype(np.float32)


def timestep_frequencies(width: int) -> np.ndarray:
    """Return w_i = 10000^(-2i/width) as (1, width / 2) float32; the CPU's `exp` is too coarse to make them there."""
    exponents = np.arange(width // 2, dtype=np.float32) * np.float32(-math.log(10000.0)) / np.float32(width // 2)
    return np.exp(exponents)[None]


def timestep_embedding(t: ms.Tensor, frequencies: ms.Tensor) -> ms.Tensor:
    """Return [cos(t w_i), sin(t w_i)], the cosines first.

    t (B,), frequencies (1, width / 2) -> (B, width) float32.
    """
    angles = t.astype(ms.float32).reshape(-1, 1) * frequencies  # (B, width / 2)
    return ops.concat((ops.cos(angles), ops.sin(angles)), -1)
