"""Operators of the CPU, with gradients written out: its kernels of these are slow, or keep memory for ever.

Every operation that broadcasts keeps 16 bytes per element there, every transposition 8, as long as its graph lives; so
rows and columns are multiplied out, and axes exchanged by gathering rows.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.auto_generate import SigmoidGrad
from mindspore.ops.primitive import constexpr

from latte.ops.target import CustomGrad

LINEAR, CUBIC = 1.5957691216057308, 0.07135481627159896  # 2 sqrt(2/pi), and that times 0.044715

_sigmoid_grad, _bias_add = SigmoidGrad(), ops.BiasAdd()
_matmul = ops.MatMul(transpose_b=True)
_times = ops.MatMul()  # the product for the gradient of the input
_transposed_times = ops.MatMul(transpose_a=True)  # and of the weight
_batched = ops.BatchMatMul()
_rows_batched = ops.BatchMatMul(transpose_b=True)
_columns_batched = ops.BatchMatMul(transpose_a=True)
_gather, _join_rows, _tile = ops.Gather(), ops.Concat(1), ops.Tile()
_thirds = {axis: ops.Split(axis, 3) for axis in (0, 2, 3)}


def column_sums(x: ms.Tensor) -> ms.Tensor:
    """Return the sum of the rows of a matrix (N, D), as (D,); as a product it is several times faster on CPU."""
    return _times(ops.ones((1, x.shape[0]), x.dtype), x).reshape(x.shape[1])


class Affine(CustomGrad):
    """x W^T + b with a gradient of b that does not need the CPU's slow kernel of it."""

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Return the result; where there are more outputs, they are for the gradient."""
        return _bias_add(_matmul(x, weight), bias)

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        return _times(d, weight), _transposed_times(d, x), column_sums(d)


affine = Affine()


class Gelu(CustomGrad):
    """x * sigmoid(2 u) and its slope, which is all that the gradient needs: few passes over memory."""

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the result; where there are more outputs, they are for the gradient."""
        square = x * x
        s = ops.sigmoid(x * (LINEAR + CUBIC * square))
        return x * s, s + _sigmoid_grad(s, x) * (LINEAR + 3 * CUBIC * square)

    def bprop(self, x: ms.Tensor, out: tuple, d: tuple) -> tuple:
        """Return the gradients of the inputs."""
        return (d[0] * out[1],)


gelu_and_slope = Gelu()


class NormRows(CustomGrad):
    """The adaptive norm of x (B, R, D) and its gradient, as matrix products and passes over equal shapes.

    The kernel of LayerNorm takes twice as long and that of its gradient four times, and every operation that broadcasts
    keeps two tables of indices, four times as large as its result, for ever: so columns and rows are multiplied out.
    """

    def construct(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Return the result; where there are more outputs, they are for the gradient."""
        batch, rows, width = x.shape
        sums, row = ops.ones((batch, width, 1), ms.float32), ops.ones((batch, 1, width), ms.float32)
        mean = _batched(x, sums) / width  # (B, R, 1)
        centered = x - _batched(mean, row)
        var = _batched(centered * centered, sums) / width
        y = centered * _batched(ops.rsqrt(var + 1e-6), (1 + scale).reshape(batch, 1, width))
        if batch == 1:
            return _bias_add(y.reshape(rows, width), shift.reshape(width)).reshape(x.shape), mean, var
        return y + repeat_rows(shift, rows), mean, var

    def bprop(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor, out: tuple, d: tuple) -> tuple:
        """Return the gradients of the inputs."""
        batch, rows, width = x.shape
        dy, mean, var = d[0], out[1], out[2]
        r = ops.rsqrt(var + 1e-6)  # (B, R, 1)
        gamma, product = (1 + scale).reshape(batch, 1, width), dy * x
        mean_g = _rows_batched(dy, gamma) / width  # (B, R, 1), of g = gamma dy
        mean_gx = r * (_rows_batched(product, gamma) / width - mean * mean_g)  # of g times the normed x
        of_x = r * r * mean_gx
        constant = r * mean_g - of_x * mean
        ones = ops.ones((batch, 1, width), ms.float32)
        dx = dy * _batched(r, gamma) - x * _batched(of_x, ones) - _batched(constant, ones)
        shifted = r * mean
        dscale = _columns_batched(product, r) - _columns_batched(dy, shifted)  # (B, D, 1)
        dshift = _columns_batched(dy, ops.ones((batch, rows, 1), ms.float32))
        return dx, dshift.reshape(batch, width), dscale.reshape(batch, width)


norm_rows = NormRows()


class GatedRows(CustomGrad):
    """x + gate * y without broadcasting."""

    def construct(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
        """Return the result; where there are more outputs, they are for the gradient."""
        b, f, t, d = x.shape
        return x + y * repeat_rows(gate, f * t).reshape(b, f, t, d)

    def bprop(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        batch, f, t, width = x.shape
        ones = ops.ones((batch, f * t, 1), x.dtype)
        dgate = _columns_batched((d * y).reshape(batch, f * t, width), ones).reshape(batch, width)
        return d, dgate, d * repeat_rows(gate, f * t).reshape(d.shape)


gated_rows = GatedRows()


def repeat_rows(row: ms.Tensor, count: int) -> ms.Tensor:
    """Return (B, count, D) of a row (B, D) each."""
    return _tile(row.reshape(row.shape[0], 1, row.shape[1]), (1, count, 1))


class SwapAxes(CustomGrad):
    """The exchange by gathering rows: the CPU's kernel of transposition keeps eight bytes per element for ever."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the result; where there are more outputs, they are for the gradient."""
        n, a, b, width = x.shape
        return _gather(x.reshape(n, a * b, width), _rows(a, b), 1).reshape(n, b, a, width)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        n, b, a, width = d.shape
        return (_gather(d.reshape(n, a * b, width), _rows(b, a), 1).reshape(n, a, b, width),)


swap_axes = SwapAxes()


class SplitHeads(CustomGrad):
    """The joint product (N, A, B, 3, heads, width) to q, k, v, each (N, B heads, A, width), in the same way."""

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Return the result; where there are more outputs, they are for the gradient."""
        n, a, b, _, heads, width = x.shape
        rows, shape = x.reshape(n, a * b * 3 * heads, width), (n, b * heads, a, width)
        q = _gather(rows, _rows_of_part(a, b, heads, 0), 1).reshape(shape)
        k = _gather(rows, _rows_of_part(a, b, heads, 1), 1).reshape(shape)
        v = _gather(rows, _rows_of_part(a, b, heads, 2), 1).reshape(shape)
        return q, k, v

    def bprop(self, x: ms.Tensor, out: tuple, d: tuple) -> tuple:
        """Return the gradients of the inputs."""
        n, a, b, _, heads, width = x.shape
        shape = (n, b * heads * a, width)
        rows = _join_rows((d[0].reshape(shape), d[1].reshape(shape), d[2].reshape(shape)))
        return (_gather(rows, _rows_of_joint(a, b, heads), 1).reshape(x.shape),)


split_heads = SplitHeads()


def _kernel_rows(weight: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return the three rows of a kernel (out, in, 3, 3), each as a matrix (out, 3 in)."""
    out, channels = weight.shape[0], weight.shape[1]
    return _thirds[0](weight.transpose(2, 0, 3, 1).reshape(3 * out, 3 * channels))


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


class Conv3(CustomGrad):
    """The 3 x 3 convolution; its gradients are written out, as those of the slices would be many more operations."""

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Return the result; where there are more outputs, they are for the gradient."""
        return _rows_times_kernel(_neighbours(x), weight, bias, (*x.shape[:3], weight.shape[0]))

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        # With respect to x it is the convolution with the kernel turned by 180 degrees, out and in exchanged.
        rows = _thirds[2](weight)
        turned = ops.concat((rows[2], rows[1], rows[0]), 2)
        columns = _thirds[3](turned)
        turned = ops.concat((columns[2], columns[1], columns[0]), 3).transpose(1, 0, 2, 3)  # (in, out, 3, 3)
        dx = _rows_times_kernel(_neighbours(d), turned, ops.zeros((x.shape[3],), x.dtype), x.shape)
        d = d.reshape(-1, d.shape[3])  # (N H W, out)
        rows = _neighbours(x)
        kernel = (_transposed_times(d, rows[0]), _transposed_times(d, rows[1]), _transposed_times(d, rows[2]))
        kernel = ops.concat(kernel, 1).reshape(d.shape[1], 3, 3, x.shape[3])  # (out, row, column, in)
        return dx, kernel.transpose(0, 3, 1, 2), column_sums(d)


conv3 = Conv3()


def conv3_stride2(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return the 3 x 3 convolution of stride 2 with a row and a column of zeros below and on the right.

    x (N, H, W, C) with H and W even, weight (out, C, 3, 3), bias (out,) -> (N, H / 2, W / 2, out).
    """
    n, h, w, c = x.shape
    first = ops.chunk(x.reshape(n, h, w // 2, 2 * c), 2, -1)[0]  # (N, H, W / 2, C), the even columns
    third = ops.concat((first[:, :, 1:], ops.zeros((n, h, 1, c), x.dtype)), 2)  # the even columns to their right
    x = ops.concat((x.reshape(n, h, w // 2, 2 * c), third), -1)  # (N, H, W / 2, 3C)
    even, odd = ops.chunk(x.reshape(n, h // 2, (w // 2) * 6 * c), 2, -1)  # (N, H / 2, W / 2 * 3C), rows of pixels
    below = ops.concat((even[:, 1:], ops.zeros((n, 1, (w // 2) * 3 * c), x.dtype)), 1)
    rows = (even.reshape(-1, 3 * c), odd.reshape(-1, 3 * c), below.reshape(-1, 3 * c))
    return _rows_times_kernel(rows, weight, bias, (n, h // 2, w // 2, weight.shape[0]))


@constexpr
def _rows(a: int, b: int) -> ms.Tensor:
    """Return where the rows of (A, B) are found in the order of (B, A)."""
    return ms.Tensor(np.arange(a * b, dtype=np.int32).reshape(a, b).T.reshape(-1))


@constexpr
def _rows_of_part(a: int, b: int, heads: int, part: int) -> ms.Tensor:
    """Return where the rows of q, k or v (B, heads, A) are found in (A, B, 3, heads)."""
    rows = np.arange(a * b * 3 * heads, dtype=np.int32).reshape(a, b, 3, heads)[:, :, part]
    return ms.Tensor(rows.transpose(1, 2, 0).reshape(-1))


@constexpr
def _rows_of_joint(a: int, b: int, heads: int) -> ms.Tensor:
    """Return where the rows of (A, B, 3, heads) are found in q, k and v (B, heads, A), one after another."""
    rows = np.arange(3 * b * heads * a, dtype=np.int32).reshape(3, b, heads, a)
    return ms.Tensor(rows.transpose(3, 1, 0, 2).reshape(-1))
