"""The affine map of every linear layer, and the rows of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import ops

from latte.ops import ascend, cpu
from latte.ops.target import multiplies_int8
from latte.runtime.tensors import in_graph, on_ascend, on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

_matmul = ops.MatMul(transpose_b=True)  # (out, in) weights as PyTorch keeps them; also oneDNN's fastest form
_bias_add = ops.BiasAdd()

_times = ops.MatMul()


def sum_of_squares(x: ms.Tensor) -> ms.Tensor:
    """Return the sum of the squares of all elements, a scalar; as a product it takes a third of the time on CPU."""
    if on_cpu():
        return _times(x.reshape(1, -1), x.reshape(-1, 1)).reshape(())
    return ops.square(x).sum()


def linear(x: ms.Tensor, weight: ms.Tensor | tuple, bias: ms.Tensor | None = None) -> ms.Tensor:
    """Return x W^T + b in the dtype of `x`, without a bias x W^T.

    x (..., in), weight (out, in), bias (out,); master weights of another dtype are cast, equal dtypes cost nothing.
    A tuple stands for a weight. (matrix, down (r, in), up (out, r), factor) is matrix + factor up down, the low-rank
    adaptation of Hu et al. (2021), which is never multiplied out. (int8 matrix, scale (out,) float32) is the matrix
    with its rows times the scale; it may stand for the matrix of the former.
    """
    product = _product_of(weight)
    return product(x, weight, bias)


def _product_of(weight: ms.Tensor | tuple) -> Callable:
    """Return one of the next three; `latte.ops.recompute` says why they are not called here."""
    if isinstance(weight, tuple):
        return _int8_affine if len(weight) == 2 else _adapted
    return _affine


def _adapted(x: ms.Tensor, weight: tuple, bias: ms.Tensor | None) -> ms.Tensor:
    matrix, down, up, factor = weight
    added = factor * _affine(_affine(x, down, None), up, None)  # the factor may come as a float32 tensor
    product = _product_of(matrix)
    return product(x, matrix, bias) + added.astype(x.dtype)


def _int8_affine(x: ms.Tensor, weight: tuple, bias: ms.Tensor | None) -> ms.Tensor:
    """Return x W^T + b for W = scale * matrix, which is whole in memory only during this product, if at all."""
    matrix, scale = weight
    rows = x.reshape(-1, x.shape[-1])
    if multiplies_int8(x.dtype):
        y = ascend.int8_matmul(rows, matrix, scale)  # (N, out)
    elif x.dtype == ms.float32 and rows.shape[0] < matrix.shape[1]:  # the product is smaller than the matrix
        y = _matmul(rows, matrix.astype(ms.float32)) * scale  # float16 would overflow here
    else:
        y = _matmul(rows, (matrix.astype(ms.float32) * scale.reshape(-1, 1)).astype(x.dtype))
    if bias is not None:
        y = _plus(y, bias.astype(x.dtype))
    return y.reshape(*x.shape[:-1], matrix.shape[0])


def _affine(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor | None) -> ms.Tensor:
    rows, weight = x.reshape(-1, x.shape[-1]), weight.astype(x.dtype)
    if bias is None:
        y = _matmul(rows, weight)  # (N, out)
    elif on_cpu():
        y = cpu.affine(rows, weight, bias.astype(x.dtype))
    elif on_ascend():
        y = ascend.affine(rows, weight, bias.astype(x.dtype))
    else:
        y = _bias_add(_matmul(rows, weight), bias.astype(x.dtype))
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _plus(x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return x (N, D) plus a bias (D,)."""
    return x + bias if on_ascend() else _bias_add(x, bias)


def lookup(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Return the rows of a table (N, D) that integer `index` of any shape names, as (*index.shape, D)."""
    if on_ascend():
        return ascend.embedding(table, index)
    if on_cpu() and not in_graph():  # gathering from a parameter keeps its memory for ever, from a view does not
        table = ms.Tensor(table)
    return ops.gather(table, index, 0)
