"""Convolutions and maxima of videos (B, T, H, W, C) on a CPU: rows of C numbers are gathered, then multiplied.

MindSpore's own convolution over frames runs at 1 % of the machine's speed on CPUs with AVX-512. And its compiler takes
longer for calls of functions than for operations, so that a graph has few, and none of `latte.ops.cpu_images`.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.primitive import constexpr

from latte.ops.cpu_images import even_spans

STRIP = 1 << 23  # elements of what is gathered at once: 32 MB
STRIPS = 8  # at most, as a graph takes time and memory to compile; longer videos have larger strips

_bias_add, _matmul = ops.BiasAdd(), ops.MatMul(transpose_b=True)
_gather, _join, _join_second, _maximum = ops.Gather(), ops.Concat(0), ops.Concat(1), ops.Maximum()
_after = ops.Depend()  # x, once something else is there: strips that ran side by side would all be in memory


def same_padding(n: int, window: int, stride: int) -> tuple[int, int]:
    """Return how many windows an axis of n elements has, and how many zeros are before the first element."""
    count = -(-n // stride)
    return count, max((count - 1) * stride + window - n, 0) // 2


def _windows(n: int, window: int, stride: int) -> np.ndarray:
    """Return which elements are in each window over n, (windows, window), with SAME padding around them."""
    count, before = same_padding(n, window, stride)
    return np.arange(count)[:, None] * stride - before + np.arange(window)


def _rows(shape: tuple[int, ...], axes: list[np.ndarray]) -> np.ndarray:
    """Return which rows of videos (B, T, H, W) are in the windows over T, H and W, (windows, elements of a window).

    Where a window reaches over an end, it is the row behind all others, which is to be of zeros.
    """
    b, t, h, w = shape
    frame, y, x = (
        axis.reshape(*[1] * i, len(axis), 1, 1, axis.shape[1], *[1] * (2 - i)) for i, axis in enumerate(axes)
    )
    inside = (frame >= 0) & (frame < t) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    video = np.arange(b).reshape(b, *[1] * 6)
    rows = np.where(inside, ((video * t + frame) * h + y) * w + x, b * t * h * w)
    return rows.reshape(b * len(axes[0]) * len(axes[1]) * len(axes[2]), -1).astype(np.int32)


@constexpr
def _strips(shape: tuple[int, ...], channels: int, k: int, padded: bool) -> list[tuple[ms.Tensor, int]]:
    """Return for each strip of windows of k * k * k where they find their elements, and how many they are."""
    axes = [_windows(n, k, 1) if padded else np.arange(n - k + 1)[:, None] + np.arange(k) for n in shape[1:]]
    rows = _rows(shape, axes)
    parts = min(max(rows.size * channels // STRIP, 1), STRIPS)
    return [(ms.Tensor(rows[a:b].reshape(-1)), b - a) for a, b in even_spans(len(rows), parts)]


@constexpr
def _cells(shape: tuple[int, ...], k: int) -> tuple[tuple[int, ...], ms.Tensor, ms.Tensor]:
    """Return what makes a convolution with an odd k and stride 2 one of cells of 2 x 2 x 2 pixels, without padding.

    These are the cells (B, T, H, W), where they find their pixels, and where a kernel of (k + 1) / 2 cells finds its.
    """
    half = np.arange(k + 1).reshape(-1, 2)
    axes = []
    for n in shape[1:]:
        windows = _windows(n, k, 2)
        axes.append(windows[0, 0] + np.arange(2 * len(windows) + k - 1).reshape(-1, 2))
    cells = (shape[0], *(len(axis) for axis in axes))
    pixels, kernel = _rows(shape, axes), _rows((1, k, k, k), [half, half, half])
    return cells, ms.Tensor(pixels.reshape(-1)), ms.Tensor(kernel.reshape(-1))


@constexpr
def _maxima(shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]) -> list[list[ms.Tensor]]:
    """Return for each axis with windows where their first, second, ... elements are, once the axes before are done."""
    found, shape = [], tuple(shape)
    for axis in (3, 2, 1):  # along rows of pixels first
        if window[axis - 1] > 1:
            axes = [np.arange(n)[:, None] for n in shape[1:]]
            axes[axis - 1] = _windows(shape[axis], window[axis - 1], stride[axis - 1])
            found.append([ms.Tensor(np.ascontiguousarray(rows)) for rows in _rows(shape, axes).T])
            shape = (*shape[:axis], len(axes[axis - 1]), *shape[axis + 1 :])
    return found


def convolve(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int) -> ms.Tensor:
    """Do what `latte.ops.conv3d` says."""
    b, t, h, w, c = x.shape
    out, _, k, _, _ = weight.shape
    rows = x.reshape(b * t * h * w, c)
    if k == 1:
        return _bias_add(_matmul(rows, weight.reshape(out, c)), bias).reshape(b, t, h, w, out)
    kernel = weight.transpose(0, 2, 3, 4, 1).reshape(out, k * k * k, c)
    shape = (b, t, h, w)
    if stride == 2:
        shape, pixels, of_kernel = _cells(shape, k)
        k = (k + 1) // 2
        rows = _gather(_join((rows, ops.zeros((1, c), x.dtype))), pixels, 0).reshape(-1, 8 * c)
        kernel = _gather(_join_second((kernel, ops.zeros((out, 1, c), x.dtype))), of_kernel, 1)
        c = 8 * c
    rows, kernel = _join((rows, ops.zeros((1, c), x.dtype))), kernel.reshape(out, k * k * k * c)
    parts, last = [], rows
    for index, count in _strips(shape, c, k, stride == 1):
        taps = _gather(_after(rows, last), index, 0).reshape(count, k * k * k * c)
        last = _bias_add(_matmul(taps, kernel), bias)
        parts.append(last)
    return _join(parts).reshape(b, -(-t // stride), -(-h // stride), -(-w // stride), out)


def max_pool(x: ms.Tensor, window: tuple[int, int, int], stride: tuple[int, int, int]) -> ms.Tensor:
    """Do what `latte.ops.max_pool3d` says."""
    b, t, h, w, c = x.shape
    y, zeros = x.reshape(b * t * h * w, c), ops.zeros((1, c), x.dtype)
    for indices in _maxima((b, t, h, w), window, stride):
        rows = _join((y, zeros))
        y = _gather(rows, indices[0], 0)
        for index in indices[1:]:
            y = _maximum(y, _gather(rows, index, 0))
    return y.reshape(b, -(-t // stride[0]), -(-h // stride[1]), -(-w // stride[2]), c)
