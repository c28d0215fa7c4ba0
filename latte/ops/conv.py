"""Two-dimensional convolution and upsampling of images in the device's native layout.

Native is (N, C, H, W), except on CPU, where it is (N, H, W, C) and a convolution is a few matrix products: on many
CPUs MindSpore's own convolution runs at 1 % of the machine's speed.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops.cpu import column_sums
from latte.ops.linear import linear
from latte.ops.target import CustomGrad, channels_last

_matmul = ops.MatMul(transpose_b=True)
_transposed_matmul = ops.MatMul(transpose_a=True)
_bias_add = ops.BiasAdd()
_split = {axis: ops.Split(axis, 3) for axis in (0, 2, 3)}


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
        return _conv3_stride2(x, weight, bias) if stride == 2 else _conv3(x, weight, bias)
    if stride == 2:
        x = ops.pad(x, (0, 1, 0, 1))
        return _bias_add(ops.conv2d(x, weight, None, 2, "pad", 0), bias)
    return _bias_add(ops.conv2d(x, weight, None, 1, "pad", k // 2), bias)


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
    y = _bias_add(ops.conv2d(x, weight.reshape(out, channels, 3, 1), None, 1, "pad", (1, 0)), bias)
    return y.reshape(out, f, h, w).transpose(1, 0, 2, 3)  # (F, out, H, W)


def upsample_nearest(x: ms.Tensor) -> ms.Tensor:
    """Return the native image at twice its height and width, each pixel repeated."""
    if channels_last():
        n, h, w, c = x.shape
        x = ops.concat((x, x), -1).reshape(n, h, 1, 2 * w * c)  # each pixel twice in its row
        return ops.concat((x, x), 2).reshape(n, 2 * h, 2 * w, c)  # each row twice
    n, c, h, w = x.shape
    return ops.broadcast_to(x.reshape(n, c, h, 1, w, 1), (n, c, h, 2, w, 2)).reshape(n, c, 2 * h, 2 * w)


def _kernel_rows(weight: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return the three rows of a kernel (out, in, 3, 3), each as a matrix (out, 3 in)."""
    out, channels = weight.shape[0], weight.shape[1]
    return _split[0](weight.transpose(2, 0, 3, 1).reshape(3 * out, 3 * channels))


def _rows_times_kernel(rows: tuple, weight: ms.Tensor, bias: ms.Tensor, shape: tuple) -> ms.Tensor:
    """Sum, over the three kernel rows, of pixels with their horizontal neighbours (P, 3C) times (out, 3C)."""
    kernel = _kernel_rows(weight)
    y = _bias_add(_matmul(rows[0], kernel[0]), bias)
    y = y + _matmul(rows[1], kernel[1])
    y = y + _matmul(rows[2], kernel[2])
    return y.reshape(shape)


def _neighbours(x: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return the pixels above, at and below each pixel, each with its horizontal neighbours: 3 x (N H W, 3C)."""
    n, h, w, c = x.shape
    row = ops.zeros((n, 1, w, c), x.dtype)
    x = ops.concat((row, x, row), 1)  # (N, H + 2, W, C)
    column = ops.zeros((n, h + 2, 1, c), x.dtype)
    left = ops.concat((column, x[:, :, : w - 1]), 2)  # (N, H + 2, W, C), each pixel's left neighbour
    right = ops.concat((x[:, :, 1:], column), 2)
    x = ops.concat((left, x, right), -1).reshape(n, (h + 2) * w, 3 * c)  # (N, (H + 2) W, 3C)
    above, here, below = x[:, : h * w], x[:, w : (h + 1) * w], x[:, 2 * w :]
    return above.reshape(n * h * w, 3 * c), here.reshape(n * h * w, 3 * c), below.reshape(n * h * w, 3 * c)


class _Conv3(CustomGrad):
    """The 3 x 3 convolution; its gradients are written out, as those of the slices would be many more operations."""

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        return _rows_times_kernel(_neighbours(x), weight, bias, (*x.shape[:3], weight.shape[0]))

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        # With respect to x it is the convolution with the kernel turned by 180 degrees, out and in exchanged.
        rows = _split[2](weight)
        turned = ops.concat((rows[2], rows[1], rows[0]), 2)
        columns = _split[3](turned)
        turned = ops.concat((columns[2], columns[1], columns[0]), 3).transpose(1, 0, 2, 3)  # (in, out, 3, 3)
        dx = _rows_times_kernel(_neighbours(d), turned, ops.zeros((x.shape[3],), x.dtype), x.shape)
        d = d.reshape(-1, d.shape[3])  # (N H W, out)
        rows = _neighbours(x)
        kernel = (_transposed_matmul(d, rows[0]), _transposed_matmul(d, rows[1]), _transposed_matmul(d, rows[2]))
        kernel = ops.concat(kernel, 1).reshape(d.shape[1], 3, 3, x.shape[3])  # (out, row, column, in)
        return dx, kernel.transpose(0, 3, 1, 2), column_sums(d)


_conv3 = _Conv3()


def _conv3_stride2(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    n, h, w, c = x.shape
    first = ops.chunk(x.reshape(n, h, w // 2, 2 * c), 2, -1)[0]  # (N, H, W / 2, C), the even columns
    third = ops.concat((first[:, :, 1:], ops.zeros((n, h, 1, c), x.dtype)), 2)  # the even columns to their right
    x = ops.concat((x.reshape(n, h, w // 2, 2 * c), third), -1)  # (N, H, W / 2, 3C)
    even, odd = ops.chunk(x.reshape(n, h // 2, (w // 2) * 6 * c), 2, -1)  # (N, H / 2, W / 2 * 3C), rows of pixels
    below = ops.concat((even[:, 1:], ops.zeros((n, 1, (w // 2) * 3 * c), x.dtype)), 1)
    rows = (even.reshape(-1, 3 * c), odd.reshape(-1, 3 * c), below.reshape(-1, 3 * c))
    return _rows_times_kernel(rows, weight, bias, (n, h // 2, w // 2, weight.shape[0]))


def patch_projection(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, as_convolution: bool) -> ms.Tensor:
    """Return the linear image of every p x p patch of latents: a convolution of stride p, or one matrix product.

    x (B, F, C, H, W), weight (D, C, p, p), bias (D,) -> (B, F, T, D), the patches row by row. Both ways are the same
    function of the same weights; on CPU the matrix product serves for both.
    """
    b, f, c, height, width = x.shape
    d, _, p, _ = weight.shape
    h, w = height // p, width // p
    if as_convolution and not channels_last():
        y = ops.conv2d(x.reshape(b * f, c, height, width), weight, None, p, "pad", 0)  # (B F, D, h, w)
        return _bias_add(y, bias).reshape(b, f, d, h * w).transpose(0, 1, 3, 2)
    x = x.reshape(b, f, c, h, p, w, p).transpose(0, 1, 3, 5, 2, 4, 6)  # (B, F, h, w, C, p, p)
    return linear(x.reshape(b, f, h * w, c * p * p), weight.reshape(d, c * p * p), bias)
