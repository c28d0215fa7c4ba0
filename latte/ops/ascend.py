"""Operators of Ascend that have a kernel of CANN's operator library where MindSpore's usual forms have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import mint, ops
from mindspore.ops.auto_generate import AdamW, LerpScalar, WeightQuantBatchMatmul

from latte.ops.target import only_infers
from latte.runtime.tensors import assign

if TYPE_CHECKING:
    from collections.abc import Callable

# The fused kernels take no larger batch; temporal attention has one row per patch. MindSpore documents 2k for
# FlashAttentionScore (CANN's later pages have more), and CANN 64k for PromptFlashAttention.
FLASH_BATCH = 2048
PROMPT_BATCH = 65536
NO_BAND = 2**31 - 1  # the keys behind a query that it may attend to: all

_adamw, _lerp = AdamW(), LerpScalar()
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
    """Convolve images (N, C, H, W); weight (out, C, k, l), bias (out,), one dtype; padding: of height and width."""
    return mint.nn.functional.conv2d(x, weight, bias, stride, padding)


def pad(x: ms.Tensor, padding: tuple[int, int, int, int]) -> ms.Tensor:
    """Return images (N, C, H, W) with so many columns of zeros left and right, and rows above and below."""
    return mint.nn.functional.pad(x, padding)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def embedding(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Return the rows of a table (N, D) that integer `index` of any shape names, as (*index.shape, D)."""
    # Not mint's embedding: as it may change its table, everything behind it reads all weights anew, and each is copied.
    return mint.index_select(table, 0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def adam(step: tuple, weight: ms.Parameter, moment1: ms.Parameter, moment2: ms.Parameter, gradient: ms.Tensor) -> None:
    """Do what `latte.ops.adam` says, in one launch."""
    learning_rate, taken, betas, eps, weight_decay = step
    # The kernel adds 1 to the steps that were taken. moment2 stands for a maximum that is not kept.
    _adamw(weight, moment1, moment2, moment2, gradient, taken, learning_rate, *betas, weight_decay, eps, False, False)


def move_towards(average: ms.Parameter, value: ms.Tensor, share: float) -> None:
    """Do what `latte.ops.move_towards` says."""
    assign(average, _lerp(average, value, share))


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
    qs, ks, vs = [mint.split(each, limit, 0) for each in (q, k, v)]  # views
    parts = [attend(qs[i], ks[i], vs[i], heads, scale, None, 0) for i in range(len(qs))]
    return ops.concat(parts, 0)


def _kernel_of(infers: bool) -> tuple[Callable, int]:
    """Return one of the next two, with its largest batch; `latte.ops.recompute` says why it is not called here.

    They leave out the keys where `discard` (N, 1, L, S) is true; `mode` is 1 with it: the mask is whole, no band of it.
    """
    return (_prompt, PROMPT_BATCH) if infers else (_flash, FLASH_BATCH)


def _flash(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    # By position: a written-out gradient compiles this again, and keywords do not compile there. keep_prob is 1.
    return ops.flash_attention_score(
        q, k, v, heads, None, None, None, discard, None, None, None, 1.0, scale, NO_BAND, NO_BAND, 0, "BSH", mode
    )


def _prompt(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    # inner_precise 0: scores and softmax stay in float32. The default next_tokens would discard later keys.
    return ops.prompt_flash_attention(
        q, k, v, attn_mask=discard, num_heads=heads, scale_value=scale, next_tokens=NO_BAND, input_layout="BSH",
        sparse_mode=mode, inner_precise=0,
    )  # fmt: skip
