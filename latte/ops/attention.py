"""Attention, through one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.primitive import constexpr

from latte.ops import ascend, cpu
from latte.ops.blockwise import UNLIMITED, blockwise_attention
from latte.ops.linear import linear
from latte.ops.target import attends_in_blocks, only_infers
from latte.runtime.tensors import on_ascend, on_cpu, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_qk = ops.BatchMatMul(transpose_b=True)
_av = ops.BatchMatMul()
_softmax, _tile = ops.Softmax(-1), ops.Tile()


def attention(
    q: ms.Tensor,
    k: ms.Tensor,
    v: ms.Tensor,
    heads: int,
    scale: float,
    flash: bool,
    bias: ms.Tensor | None = None,
    whole: bool = False,
) -> ms.Tensor:
    """Return softmax(scale q k^T + bias) v, the attention of Vaswani et al. (2017), equation 1.

    q (N, L, heads * width), k and v (N, S, heads * width) -> (N, L, heads * width). `bias` float32, of four axes that
    broadcast to (N, heads, L, S), holds what is added to the scores: 0 and a large negative number for a mask.
    `flash` takes Ascend's fused kernel (float16 or bfloat16, width a multiple of 16), for which a bias of (N, 1, 1, S)
    only says which keys to discard, those where it is negative. Otherwise the softmax is in float32.
    `whole` is set inside a block that is recomputed: all scores exist at once there, as the block is forgotten.
    """
    attend = _attention_of(flash)
    return attend(q, k, v, heads, scale, bias, whole)


def _unfused(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, bias: ms.Tensor | None, whole: bool
) -> ms.Tensor:
    n, length, channels = q.shape
    q, k, v = [swap(a.reshape(n, a.shape[1], heads, -1)) for a in (q * scale, k, v)]  # (N, heads, L or S, width)
    return swap(_exact(q, k, v, bias, whole)).reshape(n, length, channels)  # (N, L, heads * width)


def _exact(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor | None, whole: bool) -> ms.Tensor:
    """Attend with q (N, H, L, width) and k, v (N, H, S, width), each head by itself."""
    attend = _exact_of(bias is not None, whole)
    return attend(q, k, v, bias)


def _by_blocks(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: None) -> ms.Tensor:
    flat = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]  # (N H, L or S, width)
    return blockwise_attention(*flat).reshape(q.shape)


def _in_one_block(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: None) -> ms.Tensor:
    flat = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]  # (N H, L or S, width)
    return blockwise_attention(flat[0], flat[1], flat[2], UNLIMITED).reshape(q.shape)


def _at_once(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: None) -> ms.Tensor:
    p = _softmax(_qk(q, k).astype(ms.float32))  # (N, H, L, S)
    return _av(p.astype(v.dtype), v)


def _biased(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    scores = _qk(q, k).astype(ms.float32)  # (N, H, L, S)
    times = tuple([scores.shape[i] // bias.shape[i] for i in range(4)])
    p = _softmax(scores + _tile(bias, times))  # tiled, as what broadcasts keeps memory: see `latte.ops.norm`
    return _av(p.astype(v.dtype), v)


def self_attention(
    x: ms.Tensor,
    qkv: tuple,
    proj: tuple,
    heads: int,
    scale: float,
    temporal: bool,
    flash: bool,
    whole: bool = False,
    rotary: bool = False,
) -> ms.Tensor:
    """Attend over the T patches of each frame, or over the F frames of each patch.

    x (B, F, T, D); `qkv` is (weight, bias) of a joint input projection or three such pairs, `proj` that of the output;
    `flash` and `whole` are those of `attention`. `rotary`, not with `flash`, rotates queries and keys by their places.
    """
    attend = _self_attention_of(flash, rotary)
    return attend(x, qkv, proj, heads, scale, temporal, whole, rotary)


# What chooses a function does not call it: `latte.ops.recompute` says why.
def _self_attention_of(flash: bool, rotary: bool) -> Callable:
    return _fused_self_attention if flash and not rotary else _exact_self_attention


def _attention_of(flash: bool) -> Callable:
    return ascend.fused_attention if flash else _unfused


def _exact_of(biased: bool, whole: bool) -> Callable:
    if biased:
        return _biased
    if not attends_in_blocks():
        return _at_once
    return _in_one_block if whole else _by_blocks


def _projection_of(parts: int, three: bool) -> Callable:
    if parts == 3:
        return _separate
    return _three if three else _joint


def _turn_of(rotary: bool) -> Callable:
    return _rotated if rotary else _as_it_is


def _heads_of(parts: int) -> Callable:
    return _joint_heads if parts == 2 and on_cpu() else _swapped_heads


def _exact_self_attention(
    x: ms.Tensor, qkv: tuple, proj: tuple, heads: int, scale: float, temporal: bool, whole: bool, rotary: bool
) -> ms.Tensor:
    """Attend without the fused kernel: the axis in question changes places with all heads (and patches) at once."""
    b, f, t, width = x.shape
    heads_of, turn = _heads_of(len(qkv)), _turn_of(rotary)
    q, k, v = heads_of(x, qkv, heads, temporal)  # (B, T heads, F, width) or (B F, heads, T, width)
    q, k = turn(q * scale, width // heads), turn(k, width // heads)
    return linear(swap(_exact(q, k, v, None, whole)).reshape(b, f, t, -1), *proj)


def _as_it_is(x: ms.Tensor, width: int) -> ms.Tensor:
    return x


def _rotated(x: ms.Tensor, width: int) -> ms.Tensor:
    """Return x (N, H, L, padded width) with neighbouring elements 2i and 2i + 1 rotated by place * 10000^(-2i / width).

    It is equation 34 of Su et al. (2021). What a head is padded with stays.
    """
    length, padded = x.shape[2], x.shape[3]
    cos, sin = _angles(length, width, padded, False), _angles(length, width, padded, True)  # (1, 1, L, padded width)
    turned = linear(x, _quarter_turn(padded).astype(x.dtype), None)
    return x * cos.astype(x.dtype) + turned * sin.astype(x.dtype)


@constexpr
def _angles(length: int, width: int, padded: int, sine: bool) -> ms.Tensor:
    frequencies = np.zeros(padded // 2)
    frequencies[: width // 2] = 10000.0 ** (-2 * np.arange(width // 2) / width)
    angles = np.outer(np.arange(length), frequencies.repeat(2))
    return ms.Tensor((np.sin(angles) if sine else np.cos(angles))[None, None].astype(np.float32))


@constexpr
def _quarter_turn(width: int) -> ms.Tensor:
    """Return the matrix (width, width) of (x_0, x_1, ...) -> (-x_1, x_0, ...), as `linear` takes it."""
    matrix = np.zeros((width, width), np.float32)
    even = np.arange(0, width, 2)
    matrix[even, even + 1], matrix[even + 1, even] = -1, 1
    return ms.Tensor(matrix)


def _swapped_heads(x: ms.Tensor, qkv: tuple, heads: int, temporal: bool) -> list[ms.Tensor]:
    b, f, t, _ = x.shape
    shape = (b, f, t * heads, -1) if temporal else (b * f, t, heads, -1)
    return [swap(part.reshape(shape)) for part in _project(x, qkv)]


def _joint_heads(x: ms.Tensor, qkv: tuple, heads: int, temporal: bool) -> tuple[ms.Tensor, ...]:
    """Do the same without splitting the joint product: what exchanges the axes also takes it apart."""
    b, f, t, _ = x.shape
    shape = (b, f, t, 3, heads, -1) if temporal else (b * f, t, 1, 3, heads, -1)
    return cpu.split_heads(linear(x, *qkv).reshape(shape))


def _fused_self_attention(
    x: ms.Tensor, qkv: tuple, proj: tuple, heads: int, scale: float, temporal: bool, whole: bool, rotary: bool
) -> ms.Tensor:
    """Do the same by the fused kernel.

    Patches and frames change places once before and once after all products, unless the kernel takes them as they lie:
    those of a single video, where it trains.
    """
    over_rows = temporal and x.shape[0] == 1 and x.shape[2] <= ascend.FLASH_BATCH and not only_infers()
    folds = temporal and not over_rows
    x = x.transpose(0, 2, 1, 3) if folds else x
    a, b, length, _ = x.shape  # (B, F, T, D) or (B, T, F, D)
    attend = _rows_attention_of(only_infers() or (not over_rows and a * b > ascend.FLASH_BATCH))
    y = attend(_project(x, qkv), (a * b, length), heads, scale, over_rows)
    y = linear(y.reshape(a, b, length, -1), *proj)
    return y.transpose(0, 2, 1, 3) if folds else y


def _rows_attention_of(by_parts: bool) -> Callable:
    return _attend_to_rows if by_parts else ascend.self_attention


def _attend_to_rows(
    parts: Sequence[ms.Tensor], rows: tuple[int, int], heads: int, scale: float, over_rows: bool
) -> ms.Tensor:
    q, k, v = [part.reshape(*rows, -1) for part in parts]
    return attention(q, k, v, heads, scale, True)


def _project(x: ms.Tensor, qkv: tuple) -> Sequence[ms.Tensor]:
    """Return q, k, v, each (B, F, T, D) or, on Ascend, (B F T, D)."""
    project = _projection_of(len(qkv), on_ascend() and not isinstance(qkv[0], tuple))
    return project(x, qkv)


def _three(x: ms.Tensor, qkv: tuple) -> Sequence[ms.Tensor]:
    weight, bias = qkv
    return ascend.joint_projection(x.reshape(-1, x.shape[3]), weight.astype(x.dtype), bias.astype(x.dtype))


def _separate(x: ms.Tensor, qkv: tuple) -> list[ms.Tensor]:
    return [linear(x, *qkv[i]) for i in range(3)]


def _joint(x: ms.Tensor, qkv: tuple) -> Sequence[ms.Tensor]:
    both = linear(x, *qkv)
    return split(both, both.shape[3] // 3, 3)


def swap(x: ms.Tensor) -> ms.Tensor:
    """Return x (N, A, B, width) with its middle axes exchanged, (N, B, A, width)."""
    return cpu.swap_axes(x) if on_cpu() else x.transpose(0, 2, 1, 3)
