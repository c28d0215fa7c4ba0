"""Operators of Ascend: its fused attention kernels, and its product with int8 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import mint, ops
from mindspore.ops.auto_generate import WeightQuantBatchMatmul

from latte.ops.target import only_infers

if TYPE_CHECKING:
    from collections.abc import Callable

# The fused kernels take no larger batch; temporal attention has one row per patch. MindSpore documents 2k for
# FlashAttentionScore (CANN's later pages have more), and CANN 64k for PromptFlashAttention.
FLASH_BATCH = 2048
PROMPT_BATCH = 65536
NO_BAND = 2**31 - 1  # the keys behind a query that it may attend to: all

_int8_matmul = WeightQuantBatchMatmul(transpose_weight=True)


def int8_matmul(x: ms.Tensor, matrix: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    """Return x (scale * matrix)^T, (N, out), without the scaled matrix in memory.

    x (N, in) float16 or bfloat16, matrix (out, in) int8, scale (out,) of any float dtype, cast to that of `x`.
    """
    return _int8_matmul(x, matrix, scale.astype(x.dtype), None, None, None, None)


def fused_attention(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, bias: ms.Tensor | None, whole: bool
) -> ms.Tensor:
    """Return softmax(scale q k^T) v by the card's fused kernel, without a bias in parts that it takes.

    q (N, L, heads * width), k and v (N, S, heads * width), float16 or bfloat16, width a multiple of 16. A bias
    (N, 1, 1, S) discards the keys where it is negative. `whole` is ignored: the kernels never hold all scores.
    """
    n, length, _ = q.shape
    attend, limit = _kernel_of(only_infers())
    if bias is not None:
        return attend(q, k, v, heads, scale, ops.broadcast_to(bias < 0, (n, 1, length, k.shape[1])), 1)
    if n <= limit:
        return attend(q, k, v, heads, scale, None, 0)
    parts = []
    for start in range(0, n, limit):
        size = min(limit, n - start)
        qi, ki, vi = [mint.narrow(each, 0, start, size) for each in (q, k, v)]  # views
        parts.append(attend(qi, ki, vi, heads, scale, None, 0))
    return ops.concat(parts, 0)


def _kernel_of(infers: bool) -> tuple[Callable, int]:
    """Return one of the next two, with its largest batch; `latte.ops.recompute` says why it is not called here.

    They leave out the keys where `discard` (N, 1, L, S) is true; `mode` is 1 with it: the mask is whole, no band of it.
    """
    return (_prompt, PROMPT_BATCH) if infers else (_flash, FLASH_BATCH)


def _flash(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    return ops.flash_attention_score(
        q, k, v, heads, attn_mask=discard, scalar_value=scale, input_layout="BSH", sparse_mode=mode
    )


def _prompt(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    # inner_precise 0: scores and softmax stay in float32. The default next_tokens would discard later keys.
    return ops.prompt_flash_attention(
        q, k, v, attn_mask=discard, num_heads=heads, scale_value=scale, next_tokens=NO_BAND, input_layout="BSH",
        sparse_mode=mode, inner_precise=0,
    )  # fmt: skip
