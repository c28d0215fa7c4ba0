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

from latte.runtime.tensors import CustomGrad

LINEAR, CUBIC = 1.5957691216057308, 0.07135481627159896  # 2 sqrt(2/pi), and that times 0.044715

_sigmoid_grad, _bias_add = SigmoidGrad(), ops.BiasAdd()
_matmul = ops.MatMul(transpose_b=True)
_times = ops.MatMul()  # the product for the gradient of the input
_transposed_times = ops.MatMul(transpose_a=True)  # and of the weight
_batched = ops.BatchMatMul()
_rows_batched = ops.BatchMatMul(transpose_b=True)
_columns_batched = ops.BatchMatMul(transpose_a=True)
_gather, _join_rows, _tile = ops.Gather(), ops.Concat(1), ops.Tile()


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
