"""Operators of Ascend that have a kernel of CANN's operator library where MindSpore's usual forms have none."""

from __future__ import annotations

import mindspore as ms
from mindspore import mint, ops
from mindspore.ops.auto_generate import WeightQuantBatchMatmul

FLASH_BATCH = 2048  # the fused kernel takes no larger batch; temporal attention has one row per patch

_int8_matmul = WeightQuantBatchMatmul(transpose_weight=True)


def affine(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return x W^T + b, (N, out), for x (N, in), weight (out, in) and bias (out,), all of one dtype."""
    return mint.nn.functional.linear(x, weight, bias)


def layer_norm(x: ms.Tensor, eps: float) -> ms.Tensor:
    """Return (x - mean) / sqrt(var + eps) over the last axis of float32 `x`."""
    return mint.nn.functional.layer_norm(x, (x.shape[-1],), None, None, eps)


def group_norm(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float) -> ms.Tensor:
    """Return the group norm of images (N, C, H, W), weight and bias (C,), all float32."""
    return mint.nn.functional.group_norm(x, groups, weight, bias, eps)


def conv2d(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int, padding: int | tuple[int, int]) -> ms.Tensor:
    """Convolve images (N, C, H, W); weight (out, C, k, l), bias (out,), all of one dtype, padding of height and width.

    With stride 2 and a kernel of 3 the one row and column of zeros are below and on the right, as the autoencoder's.
    """
    if stride == 2 and weight.shape[2] == 3:
        return mint.nn.functional.conv2d(mint.nn.functional.pad(x, (0, 1, 0, 1)), weight, bias, 2, 0)
    return mint.nn.functional.conv2d(x, weight, bias, stride, padding)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def embedding(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Return the rows of a table (N, D) that integer `index` of any shape names, as (*index.shape, D)."""
    return mint.nn.functional.embedding(index, table)


def adam(
    weight: ms.Parameter,
    moment1: ms.Parameter,
    moment2: ms.Parameter,
    power1: ms.Tensor,
    power2: ms.Tensor,
    learning_rate: ms.Tensor,
    beta1: ms.Tensor,
    beta2: ms.Tensor,
    eps: ms.Tensor,
    gradient: ms.Tensor,
) -> ms.Tensor:
    """Do what `latte.ops.adam` says; CANN's AdamW takes its learning rate as a constant of the graph, so it is no use."""
    mean = moment1 + (gradient - moment1) * (1 - beta1)
    square = moment2 + (gradient * gradient - moment2) * (1 - beta2)
    rate = learning_rate * ops.sqrt(1 - power2) / (1 - power1)  # ()
    moved = weight - rate * mean / (ops.sqrt(square) + eps)
    weight = ops.depend(weight, (ops.assign(moment1, mean), ops.assign(moment2, square)))
    return ops.assign(weight, moved)


def int8_matmul(x: ms.Tensor, matrix: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    """Return x (scale * matrix)^T, (N, out), without the scaled matrix in memory.

    x (N, in) float16 or bfloat16, matrix (out, in) int8, scale (out,) of any float dtype, cast to that of `x`.
    """
    return _int8_matmul(x, matrix, scale.astype(x.dtype), None, None, None, None)


def fused_attention(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, bias: ms.Tensor | None, whole: bool
) -> ms.Tensor:
    """Return softmax(scale q k^T) v by the fused kernel, in parts of FLASH_BATCH without a bias.

    q (N, L, heads * width), k and v (N, S, heads * width), float16 or bfloat16, width a multiple of 16. A bias
    (N, 1, 1, S) discards the keys where it is negative. `whole` is ignored: the kernel never holds all scores.
    """
    n, length, _ = q.shape
    if bias is not None:
        return _flash(q, k, v, heads, scale, ops.broadcast_to(bias < 0, (n, 1, length, k.shape[1])))
    if n <= FLASH_BATCH:
        return _flash(q, k, v, heads, scale)
    starts = range(0, n, FLASH_BATCH)
    parts = [
        _flash(q[i : i + FLASH_BATCH], k[i : i + FLASH_BATCH], v[i : i + FLASH_BATCH], heads, scale) for i in starts
    ]
    return ops.concat(parts, 0)


def _flash(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None = None
) -> ms.Tensor:
    """Call the fused kernel; it leaves out the keys where `discard` (N, 1, L, S) is true."""
    mode = 0 if discard is None else 1  # 1: the mask is whole, no band of it
    return ops.flash_attention_score(
        q, k, v, heads, attn_mask=discard, scalar_value=scale, input_layout="BSH", sparse_mode=mode
    )
