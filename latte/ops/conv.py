"""Two-dimensional convolution and upsampling of images in the device's native layout.

Native is (N, C, H, W), except on CPU, where it is (N, H, W, C) and a convolution is a few matrix products
(`latte.ops.cpu_images`).
"""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops import ascend, cpu_images
from latte.ops.activation import silu
from latte.ops.linear import linear
from latte.ops.norm import group_norm
from latte.ops.target import channels_last
from latte.runtime.tensors import on_ascend

_matmul = ops.MatMul(transpose_b=True)
_bias_add = ops.BiasAdd()


def from_nchw(x: ms.Tensor) -> ms.Tensor:
    """Return the image (N, C, H, W) in the native layout."""
    return x.transpose(0, 2, 3, 1) if channels_last() else x


def to_nchw(x: ms.Tensor) -> ms.Tensor:
    """Return a native image as (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2) if channels_last() else x


def conv2d(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int = 1) -> ms.Tensor:
    """Convolve a native image, in the dtype of `x`.

    weight (out, in, k, k) and bias (out,) as in PyTorch. The cases that the autoencoder has: k = 1; k = 3, stride 1,
    padding 1; k = 3, stride 2 with one row and column of zeros below and on the right.
    """
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    out, channels, k, _ = weight.shape
    if channels_last():
        if k == 1:
            return linear(x, weight.reshape(out, channels), bias)
        return cpu_images.conv3_stride2(x, weight, bias) if stride == 2 else cpu_images.conv3(x, weight, bias)
    if stride == 2:
        x = ascend.pad(x, (0, 1, 0, 1)) if on_ascend() else ops.pad(x, (0, 1, 0, 1))
        return _convolve(x, weight, bias, 2, 0)
    return _convolve(x, weight, bias, 1, k // 2)


def _convolve(
    x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int, padding: int | tuple[int, int]
) -> ms.Tensor:
    """Convolve images (N, C, H, W); weight (out, C, k, l), bias (out,), padding of height and width."""
    if on_ascend():
        return ascend.conv2d(x, weight, bias, stride, padding)
    return _bias_add(ops.conv2d(x, weight, None, stride, "pad", padding), bias)


def conv_frames(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Convolve the native images of a video along its frames, three at a time, in the dtype of `x`.

    weight (out, in, 3, 1, 1) and bias (out,) as in PyTorch; frames before the first and after the last are zero.
    """
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    out, channels = weight.shape[0], weight.shape[1]
    if channels_last():
        f, h, w, _ = x.shape
        end = ops.zeros((h * w, channels), x.dtype)
        x = ops.concat((end, x.reshape(f * h * w, channels), end), 0)
        kernel = weight.reshape(out, channels, 3).transpose(2, 0, 1)  # (3, out, in)
        y = _bias_add(_matmul(x[: f * h * w], kernel[0]), bias)
        y = y + _matmul(x[h * w : (f + 1) * h * w], kernel[1])
        y = y + _matmul(x[2 * h * w :], kernel[2])
        return y.reshape(f, h, w, out)
    f, _, h, w = x.shape
    x = x.reshape(f, channels, h * w).transpose(1, 0, 2).reshape(1, channels, f, h * w)
    y = _convolve(x, weight.reshape(out, channels, 3, 1), bias, 1, (1, 0))
    return y.reshape(out, f, h, w).transpose(1, 0, 2, 3)  # (F, out, H, W)


def upsample_nearest(x: ms.Tensor) -> ms.Tensor:
    """Return the native image at twice its height and width, each pixel repeated."""
    if channels_last():
        return cpu_images.upsample(x)
    n, c, h, w = x.shape
    return ops.broadcast_to(x.reshape(n, c, h, 1, w, 1), (n, c, h, 2, w, 2)).reshape(n, c, 2 * h, 2 * w)


def upsample_conv(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return the native image at twice its size, then convolved as by `conv2d` with k = 3."""
    if channels_last():
        return cpu_images.upsample_conv3(x, weight.astype(x.dtype), bias.astype(x.dtype))
    return conv2d(upsample_nearest(x), weight, bias)


def norm_conv(
    x: ms.Tensor,
    norm: tuple[ms.Tensor, ms.Tensor],
    conv: tuple[ms.Tensor, ms.Tensor],
    groups: int,
    eps: float,
) -> ms.Tensor:
    """Return conv(silu(norm(x))) of a native image, a `group_norm` and a `conv2d` with k = 3.

    norm and conv are pairs (weight, bias).
    """
    if channels_last():
        n, h, w, c = x.shape
        weight, bias = norm[0].astype(ms.float32), norm[1].astype(ms.float32)
        rows = x.astype(ms.float32).reshape(n, h * w, c)
        scale, shift = cpu_images.group_scale_shift(rows, weight, bias, groups, eps)
        weight, bias = conv[0].astype(x.dtype), conv[1].astype(x.dtype)
        return cpu_images.scaled_silu_conv3(x, scale.astype(x.dtype), shift.astype(x.dtype), weight, bias)
    return conv2d(silu(group_norm(x, norm[0], norm[1], groups, eps)), conv[0], conv[1])


def patch_projection(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, as_convolution: bool) -> ms.Tensor:
    """Return the linear image of every p x p patch of latents: a convolution of stride p, or one matrix product.

    x (B, F, C, H, W), weight (D, C, p, p), bias (D,) -> (B, F, T, D), the patches row by row. Both ways are the same
    function of the same weights; on CPU the matrix product serves for both.
    """
    b, f, c, height, width = x.shape
    d, _, p, _ = weight.shape
    h, w = height // p, width // p
    if as_convolution and not channels_last():
        y = _convolve(x.reshape(b * f, c, height, width), weight, bias, p, 0)  # (B F, D, h, w)
        return y.reshape(b, f, d, h * w).transpose(0, 1, 3, 2)
    x = x.reshape(b, f, c, h, p, w, p).transpose(0, 1, 3, 5, 2, 4, 6)  # (B, F, h, w, C, p, p)
    return linear(x.reshape(b, f, h * w, c * p * p), weight.reshape(d, c * p * p), bias)
