"""Fixed sine-cosine embeddings of positions (float64 tables), also for other grids, and of timesteps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops

from latte.errors import UserError
from latte.weights.mapped import verified

if TYPE_CHECKING:
    from collections.abc import Mapping

KERNEL = "x_embedder.proj.weight"  # what depends on the size of a patch: this, and the layer that puts pixels out
OUTPUTS = ("final_layer.linear.weight", "final_layer.linear.bias")


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


def interpolate_pos_embed(
    pos_embed: np.ndarray, grid: tuple[int, int], stored: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the position embedding (1, T, D) of one patch grid for another as (1, rows * columns, D) float32.

    Bicubic, as vision transformers do it: pixel centres aligned (not corners), borders repeated, no antialiasing.
    Raises UserError if `stored` is None and T is no square.
    """
    _, patches, width = pos_embed.shape
    stored = stored or (math.isqrt(patches),) * 2
    if math.prod(stored) != patches:
        raise UserError(f"pos_embed has {patches} patches, which are no square; it can only be used at its own size")
    image = verified(pos_embed).astype(np.float64).reshape(*stored, width)
    rows, columns = (_bicubic(old, new) for old, new in zip(stored, grid, strict=True))
    return np.einsum("yi,xj,ijd->yxd", rows, columns, image, optimize=True).reshape(1, -1, width).astype(np.float32)


def resize_patches(tensors: Mapping[str, np.ndarray], patch: int) -> dict[str, np.ndarray]:
    """Return the weights of a Latte or DiT with the first and last layer of another patch size, as float32.

    A patch is embedded as the patch of the old size is that it becomes when it is resized, and the pixels that come out
    are resized; bicubic. What fits already stays. A start for a training (compare Beyer et al., 2023, FlexiViT).
    """
    resized, kernel = dict(tensors), tensors.get(KERNEL)
    if kernel is None or kernel.ndim != 4 or kernel.shape[-1] == patch:
        return resized
    old = kernel.shape[-1]  # of (D, C, p, p)
    to_old, to_new = _bicubic(patch, old), _bicubic(old, patch)
    kernel = verified(kernel).astype(np.float64)
    resized[KERNEL] = np.einsum("iy,jx,dcij->dcyx", to_old, to_old, kernel, optimize=True).astype(np.float32)
    for name in OUTPUTS:
        values = verified(tensors[name]).astype(np.float64)  # (p p C, D) or (p p C,)
        pixels = values.reshape(old, old, len(values) // old**2, -1)
        pixels = np.einsum("yi,xj,ijcd->yxcd", to_new, to_new, pixels, optimize=True)
        resized[name] = pixels.reshape(-1, *values.shape[1:]).astype(np.float32)
    return resized


def _bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Return the matrix (new, old) that resamples a line by Keys' kernel; a = -0.75 is the choice of PyTorch."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        index = np.floor(position).astype(int) + tap
        d = np.abs(position - index)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(new), index.clip(0, old - 1)), np.where(d <= 1, near, far))
    return matrix


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
