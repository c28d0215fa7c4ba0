"""Attention, through one function."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.primitive import constexpr

from latte.ops.blockwise import blockwise_attention
from latte.ops.linear import linear
from latte.ops.target import Operator, attends_in_blocks, on_cpu

FLASH_BATCH = 2048  # the fused kernel takes no larger batch; temporal attention has one row a patch

_qk = ops.BatchMatMul(transpose_b=True)
_av = ops.BatchMatMul()


def attention(
    q: ms.Tensor,
    k: ms.Tensor,
    v: ms.Tensor,
    heads: int,
    scale: float,
    flash: bool,
    bias: ms.Tensor | None = None,
) -> ms.Tensor:
    """Return softmax(scale q k^T + bias) v, the attention of Vaswani et al. (2017), equation 1.

    q (N, L, heads * width), k and v (N, S, heads * width) -> (N, L, heads * width). `bias` float32, of any shape that
    broadcasts to (N, heads, L, S), holds what is added to the scores: 0 and a large negative number for a mask.
    `flash` takes Ascend's fused kernel (float16 or bfloat16, width a multiple of 16); otherwise, and always with a
    bias, the product is exact, with the softmax in float32: a bias belongs to texts, whose S is short.
    """
    n, length, channels = q.shape
    if flash and bias is None:
        if n <= FLASH_BATCH:
            return _flash(q, k, v, heads, scale)
        starts = range(0, n, FLASH_BATCH)
        return ops.concat([_flash(*[a[i : i + FLASH_BATCH] for a in (q, k, v)], heads, scale) for i in starts], 0)
    q, k, v = [swap(a.reshape(n, a.shape[1], heads, -1)) for a in (q * scale, k, v)]  # (N, heads, L or S, width)
    return swap(_exact(q, k, v, bias)).reshape(n, length, channels)  # (N, L, heads * width)


def _flash(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float) -> ms.Tensor:
    return ops.flash_attention_score(q, k, v, heads, scalar_value=scale, input_layout="BSH")


def _exact(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor | None) -> ms.Tensor:
    """Attend with q (N, H, L, width) and k, v (N, H, S, width), each head by itself."""
    if bias is None and attends_in_blocks():
        flat = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]  # (N H, L or S, width)
        return blockwise_attention(*flat).reshape(q.shape)
    scores = _qk(q, k).astype(ms.float32)  # (N, H, L, S)
    if bias is not None:
        scores = scores + ops.broadcast_to(bias, scores.shape)  # as an operation of its own: see `latte.ops.norm`
    return _av(ops.softmax(scores, -1).astype(v.dtype), v)


def self_attention(
    x: ms.Tensor, qkv: tuple, proj: tuple, heads: int, scale: float, temporal: bool, flash: bool
) -> ms.Tensor:
    """Attend over the T patches of each frame, or over the F frames of each patch.

    x (B, F, T, D); `qkv` is (weight, bias) of a joint input projection or three such pairs, `proj` that of the output.
    """
    b, f, t, _ = x.shape
    q, k, v = _project(x, qkv)  # (B, F, T, D)
    if flash:
        q, k, v = [_fold(part, temporal) for part in (q, k, v)]  # (B F, T, D) or (B T, F, D)
        y = attention(q, k, v, heads, scale, True)
        y = swap(y.reshape(b, t, f, -1)) if temporal else y.reshape(b, f, t, -1)  # (B, F, T, D)
        return linear(y, *proj)
    # The axis that is attended over changes its place with all heads (and patches) at once.
    shape = (b, f, t * heads, -1) if temporal else (b * f, t, heads, -1)
    q, k, v = [swap(part.reshape(shape)) for part in (q * scale, k, v)]  # (B, T heads, F, width) or (B F, heads, T, w.)
    return linear(swap(_exact(q, k, v, None)).reshape(b, f, t, -1), *proj)


def _project(x: ms.Tensor, qkv: tuple) -> list[ms.Tensor]:
    """Return q, k, v, each (B, F, T, D)."""
    if len(qkv) == 3:
        return [linear(x, *qkv[i]) for i in range(3)]
    if on_cpu():
        # Splitting the weight is a copy of 16 MB; splitting the product would be one of 57 MB for XL/2.
        weights, biases = ops.chunk(qkv[0], 3, 0), ops.chunk(qkv[1], 3, 0)
        return [linear(x, weights[i], biases[i]) for i in range(3)]
    return ops.chunk(linear(x, *qkv), 3, -1)


def _fold(x: ms.Tensor, temporal: bool) -> ms.Tensor:
    b, f, t, d = x.shape
    return swap(x).reshape(b * t, f, d) if temporal else x.reshape(b * f, t, d)


def swap(x: ms.Tensor) -> ms.Tensor:
    """Return x (N, A, B, width) with its middle axes exchanged, (N, B, A, width)."""
    return _cpu_swap(x) if on_cpu() else x.transpose(0, 2, 1, 3)


class _CpuSwap(Operator):
    """The exchange by gathering rows: the CPU's kernel of transposition keeps eight bytes a number for ever."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        n, a, b, width = x.shape
        return ops.gather(x.reshape(n, a * b, width), _rows(a, b), 1).reshape(n, b, a, width)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        n, b, a, width = d.shape
        return (ops.gather(d.reshape(n, a * b, width), _rows(b, a), 1).reshape(n, a, b, width),)


_cpu_swap = _CpuSwap()


@constexpr
def _rows(a: int, b: int) -> ms.Tensor:
    """Return where the rows of (A, B) are found in the order of (B, A)."""
    return ms.Tensor(np.arange(a * b, dtype=np.int32).reshape(a, b).T.reshape(-1))
