"""Exact attention by blocks, whose memory grows linearly with the length, forward and backward.

The scores of a block are used and forgotten; backward, they are computed again. Sizes are known when a graph is
compiled, so the loops are unrolled.

Functions that a written-out gradient calls have no branches, and none of MindSpore's own in Python: what forward and
gradient both branch in, MindSpore 2.10 compiles once and finds empty the second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import ops
from mindspore.ops.auto_generate import SliceExt, SplitTensor
from mindspore.ops.primitive import constexpr

from latte.runtime import device
from latte.runtime.tensors import CustomGrad

if TYPE_CHECKING:
    from collections.abc import Callable

SCORES = 2**23  # that exist at once, at most: 32 MB in float32
UNLIMITED = 2**62
KEYS = 2048  # of a block, at most

_abt = ops.BatchMatMul(transpose_b=True)  # A B^T
_ab = ops.BatchMatMul()  # A B
_atb = ops.BatchMatMul(transpose_a=True)  # A^T B
_softmax, _add_n, _join, _join_rows = ops.Softmax(-1), ops.AddN(), ops.Concat(0), ops.Concat(1)
# x, computed after something else: without that, MindSpore computes all blocks side by side and holds all their scores.
_after = ops.Depend()
# What Ascend has kernels for, in place of ops.Split, of slices like x[:, a:b], and of x.max.
_split, _slice, _largest = SplitTensor(), SliceExt(), ops.ReduceMax(keep_dims=True)


def blockwise_attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, scores: int = 0, keys: int = KEYS) -> ms.Tensor:
    """Return softmax(q k^T) v with the softmax in float32.

    q (N, L, width), k and v (N, S, width) of one float dtype -> (N, L, width). No more than `scores` scores exist at
    once, by default SCORES, and where one of the N has more, those of `keys` keys. In blocks that are recomputed
    `scores` is UNLIMITED: a block is the unit there, and these loops could not be compiled.
    """
    scores = scores or SCORES
    count = _parts(q.shape[0], q.shape[1] * k.shape[1], scores)
    attend = _way(count)
    return attend(q, k, v, count, (scores, keys))


def _way(count: int) -> Callable:
    """Return one of the next three; see `latte.ops.recompute` on why they are not called here."""
    if count == 1:
        return _all_at_once
    return _some_by_some if count else _tile_by_tile


def _all_at_once(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, count: int, limits: tuple[int, int]) -> ms.Tensor:
    return _whole(q, k, v)


def _some_by_some(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, count: int, limits: tuple[int, int]) -> ms.Tensor:
    return _in_parts(count)(q, k, v)


def _tile_by_tile(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, count: int, limits: tuple[int, int]) -> ms.Tensor:
    return _tiled(limits)(q, k, v)[0]


@constexpr
def _parts(n: int, each: int, scores: int) -> int:
    """Return the least number of equal parts of n whose scores are not too many; 0 if already `each` is."""
    return next((count for count in range(1, n + 1) if n % count == 0 and n // count * each <= scores), 0)


class _Whole(CustomGrad):
    """The attention with all scores at once."""

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        p = _softmax(_abt(q, k).astype(ms.float32))  # (N, L, S)
        return _ab(p.astype(v.dtype), v)

    def bprop(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, y: ms.Tensor, dy: ms.Tensor) -> tuple[ms.Tensor, ...]:
        p = _softmax(_abt(q, k).astype(ms.float32))
        return _gradients(q, k, v, p, dy, _delta(y, dy))


class _InParts(CustomGrad):
    """The attention of some of the N after that of others, as each depends on the last one."""

    def __init__(self, count: int):
        super().__init__()
        self.equal_parts, self.count = ops.Split(0, count), count

    def split(self, x: ms.Tensor) -> list[ms.Tensor]:
        return self.equal_parts(x)

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        qs, ks, vs = self.split(q), self.split(k), self.split(v)
        done, last = [], q
        for i in range(self.count):
            p = _softmax(_abt(_after(qs[i], last), ks[i]).astype(ms.float32))
            last = _ab(p.astype(v.dtype), vs[i])
            done.append(last)
        return _join(done)

    def bprop(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, y: ms.Tensor, dy: ms.Tensor) -> tuple[ms.Tensor, ...]:
        qs, ks, vs, dys, deltas = self.split(q), self.split(k), self.split(v), self.split(dy), self.split(_delta(y, dy))
        dq, dk, dv, last = [], [], [], dy
        for i in range(self.count):
            qi, dyi, di = _after(qs[i], last), _after(dys[i], last), _after(deltas[i], last)
            found = _gradients(qi, ks[i], vs[i], _softmax(_abt(qi, ks[i]).astype(ms.float32)), dyi, di)
            last = found[0]
            dq.append(found[0])
            dk.append(found[1])
            dv.append(found[2])
        return _join(dq), _join(dk), _join(dv)


class _InPartsOnAscend(_InParts):
    def split(self, x: ms.Tensor) -> list[ms.Tensor]:
        return _split(x, x.shape[0] // self.count, 0)


class _Tiled(CustomGrad):
    """The attention by blocks of queries and keys, and the logarithm of each row's sum of exponentials (N, L, 1).

    Blocks of keys are put together by these (Milakov and Gimelshein, 2018; FlashAttention, Dao et al., 2022,
    algorithms 1 and 4).
    """

    def __init__(self, limits: tuple[int, int]):
        super().__init__()
        self.limits = limits

    def rows(self, x: ms.Tensor, i: int, a: int, b: int) -> ms.Tensor:
        return x[i : i + 1, a:b]

    def total(self, parts: list[ms.Tensor]) -> ms.Tensor:
        return _add_n(parts)

    def largest(self, x: ms.Tensor) -> ms.Tensor:
        return x.max(-1, keepdims=True)

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        rows, columns = _tiles(q.shape, k.shape[1], self.limits)
        outs, sums, last = [], [], q
        for i in range(q.shape[0]):
            blocks = []
            for a, b in rows:
                block = self.attend_rows(_after(self.rows(q, i, a, b), last), k, v, i, columns)
                last = block[0]
                blocks.append(block)
            outs.append(_join_rows([block[0] for block in blocks]))
            sums.append(_join_rows([block[1] for block in blocks]))
        return _join(outs), _join(sums)

    def bprop(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, out: tuple, d: tuple) -> tuple[ms.Tensor, ...]:
        rows, columns = _tiles(q.shape, k.shape[1], self.limits)
        dy, delta, last = d[0], _delta(out[0], d[0]), q
        dq, dk, dv = [], [], []
        for i in range(q.shape[0]):
            # Without annotations, as MindSpore compiles this function.
            of_rows, of_keys, of_values = [], [[] for _ in columns], [[] for _ in columns]  # type: ignore[var-annotated]
            for a, b in rows:
                of_row = []
                for j, (c, e) in enumerate(columns):
                    qi, kj, vj = _after(self.rows(q, i, a, b), last), self.rows(k, i, c, e), self.rows(v, i, c, e)
                    log_sums = _after(self.rows(out[1], i, a, b), last)
                    p = ops.exp(_abt(qi, kj).astype(ms.float32) - _columns(log_sums, e - c))
                    dyi, di = _after(self.rows(dy, i, a, b), last), _after(self.rows(delta, i, a, b), last)
                    found = _gradients(qi, kj, vj, p, dyi, di)
                    last = found[0]
                    of_row.append(found[0])
                    of_keys[j].append(found[1])
                    of_values[j].append(found[2])
                of_rows.append(self.total(of_row))
            dq.append(_join_rows(of_rows))
            dk.append(_join_rows([self.total(parts) for parts in of_keys]))
            dv.append(_join_rows([self.total(parts) for parts in of_values]))
        return _join(dq), _join(dk), _join(dv)

    def attend_rows(
        self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, i: int, columns: tuple
    ) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the attention of some queries of the i-th of N to all keys, and the logarithms of the sums."""
        (a, b), width = columns[0], v.shape[2]
        out, total = self.attend_block(q, self.rows(k, i, a, b), self.rows(v, i, a, b))
        for a, b in columns[1:]:
            new, log_sum = self.attend_block(q, self.rows(k, i, a, b), self.rows(v, i, a, b))
            larger = ops.maximum(total, log_sum)
            both = larger + ops.log(ops.exp(total - larger) + ops.exp(log_sum - larger))  # (N, L, 1)
            out = out * _columns(ops.exp(total - both), width) + new * _columns(ops.exp(log_sum - both), width)
            total = both
        return out.astype(v.dtype), total

    def attend_block(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the attention to one block of keys, and the logarithms of the sums, both in float32."""
        scores = _abt(q, k).astype(ms.float32)  # (N, L, S)
        p = _softmax(scores)
        # The largest probability is that of the largest score s: exp(s) over the sum.
        log_sum = self.largest(scores) - ops.log(self.largest(p))
        return _ab(p.astype(v.dtype), v).astype(ms.float32), log_sum


class _TiledOnAscend(_Tiled):
    def rows(self, x: ms.Tensor, i: int, a: int, b: int) -> ms.Tensor:
        return _slice(_slice(x, 0, i, i + 1, 1), 1, a, b, 1)

    def total(self, parts: list[ms.Tensor]) -> ms.Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def largest(self, x: ms.Tensor) -> ms.Tensor:
        return _largest(x, -1)


_whole = _Whole()
_made: dict[tuple, CustomGrad] = {}


@constexpr
def _in_parts(count: int) -> _InParts:
    """Return the one operator for this number of parts on the device of the graph."""
    kind = _InPartsOnAscend if device.current().target == "Ascend" else _InParts
    return _made.setdefault((kind, count), kind(count))


@constexpr
def _tiled(limits: tuple[int, int]) -> _Tiled:
    """Return the one operator for these limits on the device of the graph."""
    kind = _TiledOnAscend if device.current().target == "Ascend" else _Tiled
    return _made.setdefault((kind, limits), kind(limits))


@constexpr
def _tiles(shape: tuple[int, ...], size: int, limits: tuple[int, int]) -> tuple[tuple, ...]:
    """Return the spans of queries and of keys that are taken at once."""
    keys = min(limits[1], size)
    steps = ((shape[1], max(limits[0] // keys, 1)), (size, keys))
    return tuple(tuple((i, min(i + step, end)) for i in range(0, end, step)) for end, step in steps)


def _delta(y: ms.Tensor, dy: ms.Tensor) -> ms.Tensor:
    """Return the sums over the keys of P dP as those over the width of y dy (FlashAttention, appendix B.2)."""
    return _ab(y.astype(ms.float32) * dy.astype(ms.float32), ops.ones((y.shape[0], y.shape[2], 1), ms.float32))


def _gradients(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, p: ms.Tensor, dy: ms.Tensor, delta: ms.Tensor
) -> tuple[ms.Tensor, ...]:
    """Return the gradients with respect to q, k and v of a block with the probabilities p (N, L, S)."""
    dp = _abt(dy, v).astype(ms.float32)
    ds = (p * (dp - _columns(delta, k.shape[1]))).astype(q.dtype)
    return _ab(ds, k), _atb(ds, q), _atb(p.astype(dy.dtype), dy)


def _columns(x: ms.Tensor, width: int) -> ms.Tensor:
    """Return (N, L, 1) as (N, L, width), as a product: what broadcasts keeps tables of indices on a CPU."""
    return _ab(x, ops.ones((x.shape[0], 1, width), x.dtype))
