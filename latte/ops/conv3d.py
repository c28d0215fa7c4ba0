"""Convolutions and maxima of videos over frames, height and width, padded as TensorFlow's SAME does.

A native video is the native images of `latte.ops.conv` side by side: (B, T, H, W, C) on CPU (`latte.ops.cpu_videos`),
(B, T, C, H, W) elsewhere. There a convolution over frames is one over images that have the frames it spans in their
channels, and one of stride 2 is one of stride 1 over cells of 2 x 2 x 2 pixels: Ascend has kernels for these.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import ops

from latte.ops import cpu_videos
from latte.ops.conv import _convolve
from latte.ops.target import channels_last
from latte.runtime.tensors import narrow


def conv3d(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int = 1) -> ms.Tensor:
    """Convolve a native video, in the dtype of `x`; weight (out, in, k, k, k) and bias (out,) as in PyTorch.

    The cases that I3D has: k = 1; k = 3; an odd k with stride 2. Of an axis of n elements n / stride are left, rounded
    up; of the zeros that this needs at its ends, the odd one comes last.
    """
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    if channels_last():
        return cpu_videos.convolve(x, weight, bias, stride)
    out, channels, k, _, _ = weight.shape
    padding = 0
    if k == 1:
        weight = weight.reshape(out, channels, 1, 1)
    elif stride == 1:
        x, padding = _stacked(_padded(x, 1, 1, 1), k), 1
        weight = weight.transpose(0, 2, 1, 3, 4).reshape(out, k * channels, k, k)
    else:
        x, weight = _stacked(_cells(x, k), (k + 1) // 2), _cells_of_kernel(weight)
    b, t, c, h, w = x.shape
    y = _convolve(x.reshape(b * t, c, h, w), weight, bias, 1, padding)
    return y.reshape(b, t, *y.shape[1:])


def max_pool3d(x: ms.Tensor, window: tuple[int, int, int], stride: tuple[int, int, int]) -> ms.Tensor:
    """Return the largest elements of a native video without negative ones in windows over (T, H, W).

    Sizes and padding are those of `conv3d`, for strides of 1 or 2.
    """
    if channels_last():
        return cpu_videos.max_pool(x, window, stride)
    x = _largest(x, 4, window[2], stride[2])
    x = _largest(x, 3, window[1], stride[1])
    return _largest(x, 1, window[0], stride[0])


def _largest(x: ms.Tensor, axis: int, window: int, stride: int) -> ms.Tensor:
    """Return the largest elements of windows along one axis; zeros at its ends change nothing."""
    if window == 1:
        return x
    n, shape = x.shape[axis], x.shape
    count, before = cpu_videos.same_padding(n, window, stride)
    cells = count + (window - 1) // stride
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    x = _padded(x.reshape(outer, n, inner), 1, before, cells * stride - before - n)
    x = x.reshape(outer, cells, stride * inner)
    parts = []
    for i in range(window):
        part, first = x, i % stride * inner
        if stride > 1:
            part = narrow(part, 2, first, first + inner)
        parts.append(narrow(part, 1, i // stride, i // stride + count))
    y = parts[0]
    for part in parts[1:]:
        y = ops.maximum(y, part)
    return y.reshape(*shape[:axis], count, *shape[axis + 1 :])


def _padded(x: ms.Tensor, axis: int, before: int, after: int) -> ms.Tensor:
    """Return a tensor with zeros at both ends of an axis."""
    parts = [x]
    if before:
        parts = [ops.zeros((*x.shape[:axis], before, *x.shape[axis + 1 :]), x.dtype), *parts]
    if after:
        parts = [*parts, ops.zeros((*x.shape[:axis], after, *x.shape[axis + 1 :]), x.dtype)]
    return ops.concat(parts, axis) if len(parts) > 1 else x


def _stacked(x: ms.Tensor, count: int) -> ms.Tensor:
    """Return a video (B, T, C, H, W) whose frames have the channels of `count` neighbours, the first frame first."""
    length = x.shape[1] - count + 1
    return ops.concat([narrow(x, 1, i, i + length) for i in range(count)], 2)


def _cells(x: ms.Tensor, k: int) -> ms.Tensor:
    """Return a video (B, T, C, H, W) padded for a kernel of k and stride 2, its cells of 2 x 2 x 2 as channels."""
    sizes = []
    for axis in (1, 3, 4):
        n = x.shape[axis]
        count, before = cpu_videos.same_padding(n, k, 2)
        cells = count + (k - 1) // 2
        x = _padded(x, axis, before, 2 * cells - before - n)
        sizes.append(cells)
    b, c = x.shape[0], x.shape[2]
    t, h, w = sizes
    x = x.reshape(b * t, 2, c, h, 2, w, 2).transpose(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(b, t, 8 * c, h, w)


def _cells_of_kernel(weight: ms.Tensor) -> ms.Tensor:
    """Return a kernel (out, C, k, k, k) with an odd k as one for the stacked cells, (out, 8 C n, n, n), 2 n = k + 1."""
    out, c, k, _, _ = weight.shape
    n = (k + 1) // 2
    for axis in (2, 3, 4):
        weight = _padded(weight, axis, 0, 1)
    weight = weight.reshape(out * c, n, 2, n, 2, n, 2).transpose(0, 1, 2, 4, 6, 3, 5)  # (out C, n, 2, 2, 2, n, n)
    return weight.reshape(out, c, 8 * n, n, n).transpose(0, 2, 1, 3, 4).reshape(out, 8 * n * c, n, n)
