"""Operators of Ascend: its fused attention kernel, and its product with int8 weights."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops
from mindspore.ops.auto_generate import WeightQuantBatchMatmul

FLASH_BATCH = 2048  # the fused kernel takes no larger batch; temporal attention has one row per patch

_int8_matmul = WeightQuantBatchMatmul(transpose_weight=True)


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
