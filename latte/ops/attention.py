"""Attention, through one function."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops.linear import linear
from latte.ops.target import on_cpu

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
    `flash` takes Ascend's fused kernel (float16 or bfloat16, width a multiple of 16), for which a bias of (N, 1, 1, S)
    only says which keys to discard, those where it is negative. Otherwise the softmax is in float32.
    """
    n, length, channels = q.shape
    if flash:
        if bias is not None:
            return _flash(q, k, v, heads, scale, ops.broadcast_to(bias < 0, (n, 1, length, k.shape[1])))
        if n <= FLASH_BATCH:
            return _flash(q, k, v, heads, scale)
        starts = range(0, n, FLASH_BATCH)
        return ops.concat([_flash(*[a[i : i + FLASH_BATCH] for a in (q, k, v)], heads, scale) for i in starts], 0)
    q = (q * scale).reshape(n, length, heads, -1).transpose(0, 2, 1, 3)  # (N, heads, L, width)
    k = k.reshape(n, k.shape[1], heads, -1).transpose(0, 2, 1, 3)  # (N, heads, S, width)
    v = v.reshape(n, v.shape[1], heads, -1).transpose(0, 2, 1, 3)  # (N, heads, S, width)
    scores = _qk(q, k).astype(ms.float32)  # (N, heads, L, S)
    if bias is not None:
        scores = scores + bias
    scores = ops.softmax(scores, -1).astype(v.dtype)
    return _av(scores, v).transpose(0, 2, 1, 3).reshape(n, length, channels)  # (N, L, heads * width)


def _flash(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None = None
) -> ms.Tensor:
    """Call the fused kernel; it leaves out the keys where `discard` (N, 1, L, S) is true."""
    mode = 0 if discard is None else 1  # 1: the mask is whole, no band of it
    return ops.flash_attention_score(
        q, k, v, heads, attn_mask=discard, scalar_value=scale, input_layout="BSH", sparse_mode=mode
    )


def self_attention(
    x: ms.Tensor, qkv: tuple, proj: tuple, heads: int, scale: float, temporal: bool, flash: bool
) -> ms.Tensor:
    """Attend over the T patches of each frame, or over the F frames of each patch.

    x (B, F, T, D); `qkv` is (weight, bias) of a joint input projection or three such pairs, `proj` that of the output.
    """
    if flash:
        return _fused_self_attention(x, qkv, proj, heads, scale, temporal)
    b, f, t, _ = x.shape
    q, k, v = [_fold(part, temporal) for part in _project(x, qkv)]  # (B F, T, D) or (B T, F, D)
    y = attention(q, k, v, heads, scale, False)
    y = y.reshape(b, t, f, -1).transpose(0, 2, 1, 3) if temporal else y.reshape(b, f, t, -1)  # (B, F, T, D)
    return linear(y, *proj)


def _fused_self_attention(x: ms.Tensor, qkv: tuple, proj: tuple, heads: int, scale: float, temporal: bool) -> ms.Tensor:
    """Do the same by the fused kernel: patches and frames change places once before and once after all products."""
    x = x.transpose(0, 2, 1, 3) if temporal else x
    a, b, length, _ = x.shape  # (B, F, T, D) or (B, T, F, D)
    q, k, v = [part.reshape(a * b, length, -1) for part in _project(x, qkv)]
    y = linear(attention(q, k, v, heads, scale, True).reshape(a, b, length, -1), *proj)
    return y.transpose(0, 2, 1, 3) if temporal else y


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
    return x.transpose(0, 2, 1, 3).reshape(b * t, f, d) if temporal else x.reshape(b * f, t, d)
