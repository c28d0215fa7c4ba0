"""Sequence parallelism by frames: which axis of the tokens is cut into parts, one for each rank of a group.

Tokens (B, F, T, D) lie with some frames at each rank. Before attention over frames one AllToAll gives every rank some
patches of all frames, and after it another gives the frames back; all else computes on the frames that are there (DSP;
Zhao et al., 2024, arXiv 2403.10266). What does not divide is filled up with zeros, and cut off where a rank has all of
the axis, so that no padding is attended to. Parts lie in the order of the ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.auto_generate import SliceExt
from mindspore.ops.primitive import constexpr

from latte.ops.attention import swap
from latte.ops.shared_weights import on_tokens
from latte.runtime.collective import (
    gather_outside,
    group_in_graph,
    members_in_graph,
    own_place,
    place,
    rows_in_graph,
    size,
)
from latte.runtime.tensors import CustomGrad, in_graph, narrow, on_ascend, on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from latte.runtime.layout import Kind

FRAMES, PATCHES = 1, 2  # axes of tokens
KIND: Kind = "sequence"  # of the group


_take, _slice = ops.Gather(), SliceExt()


# In a gradient that is written out only primitives: `latte.ops.recompute` says why.
class RowsInGraph(CustomGrad):
    """Rows x (n, ...) to the ranks and one row from each, in a graph of a device without AllToAll: all are gathered."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return one row from each rank."""
        rows = ops.AllGather(group_in_graph(KIND))(x.reshape(1, -1))  # (ranks, n ...)
        rows = rows.reshape(rows.shape[0] * x.shape[0], -1)
        return _take(rows, rows_in_graph(KIND), 0).reshape(x.shape)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of the rows, which goes the same ways back."""
        rows = ops.AllGather(group_in_graph(KIND))(d.reshape(1, -1))
        rows = rows.reshape(rows.shape[0] * d.shape[0], -1)
        return (_take(rows, rows_in_graph(KIND), 0).reshape(d.shape),)


class RowsOutside(CustomGrad):
    """The same on CPU, outside graphs."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return one row from each rank."""
        return gather_outside(x, KIND)[:, place(KIND)]

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of the rows."""
        return (gather_outside(d, KIND)[:, place(KIND)],)


class PartsInGraph(CustomGrad):
    """The parts x (...) of all ranks as (n, ...).

    All ranks go on with the same, so the gradient that one of them computes is that of all, and it takes its own part.
    """

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the parts in the order of the ranks."""
        rows = ops.AllGather(group_in_graph(KIND))(x.reshape(1, -1))
        return _take(rows, members_in_graph(KIND), 0).reshape(-1, *x.shape)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of this rank's part."""
        return (_take(d.reshape(d.shape[0], -1), own_place(KIND), 0).reshape(x.shape),)


class PartsOnAscend(CustomGrad):
    """The same by operations that have a kernel of CANN's operator library."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the parts in the order of the ranks."""
        return ops.AllGather(group_in_graph(KIND))(x.reshape(1, -1)).reshape(-1, *x.shape)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of this rank's part."""
        return (_slice(d, 0, place(KIND), place(KIND) + 1, 1).reshape(x.shape),)


class PartsOutside(CustomGrad):
    """The same on CPU, outside graphs."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the parts in the order of the ranks."""
        return gather_outside(x, KIND)

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of this rank's part."""
        return (d[place(KIND)],)


_rows_in_graph, _rows_outside = RowsInGraph(), RowsOutside()
_parts_in_graph, _parts_on_ascend, _parts_outside = PartsInGraph(), PartsOnAscend(), PartsOutside()


# What chooses a function does not call it.
def _rows_of(ascend: bool, outside: bool) -> Callable:
    if ascend:
        return _all_to_all
    return _gather_rows_outside if outside else _gather_rows


def _all_to_all(x: ms.Tensor) -> ms.Tensor:
    return ops.AlltoAll(size(KIND), 0, 0, group_in_graph(KIND))(x)


def _gather_rows(x: ms.Tensor) -> ms.Tensor:
    return _rows_in_graph(x)


def _gather_rows_outside(x: ms.Tensor) -> ms.Tensor:
    return _rows_outside(x)


def _parts_of(ascend: bool, outside: bool) -> Callable:
    if ascend:
        return _gather_parts_on_ascend
    return _gather_parts_outside if outside else _gather_parts


def _gather_parts(x: ms.Tensor) -> ms.Tensor:
    return _parts_in_graph(x)


def _gather_parts_on_ascend(x: ms.Tensor) -> ms.Tensor:
    return _parts_on_ascend(x)


def _gather_parts_outside(x: ms.Tensor) -> ms.Tensor:
    return _parts_outside(x)


def exchange(tokens: ms.Tensor, scatter: int, gather: int) -> ms.Tensor:
    """Cut one axis of tokens into parts for the ranks, and join the parts of the other axis that the ranks hold.

    scatter, gather: 1 for frames or 2 for patches; the one that is cut must divide by the number of ranks n. Frames to
    gather: (B, F / n, T, D) -> (B, F, T / n, D). The gradient is the exchange with the axes swapped.
    """
    b, f, t, d = tokens.shape
    ranks, rows_of = size(KIND), _rows_of(on_ascend(), on_cpu() and not in_graph())
    if gather == FRAMES:  # (B, F / n, T, D)
        part = t // ranks * d
        rows = _first_to_second(tokens.reshape(1, b * f, ranks, part))  # for each rank (B F / n, T / n D)
        rows = rows_of(rows.reshape(ranks, b * f, part))  # from each rank
        return _first_to_second(rows.reshape(1, ranks, b, f * part)).reshape(b, ranks * f, t // ranks, d)
    part = f // ranks * t * d  # of (B, F, T / n, D)
    rows = _first_to_second(tokens.reshape(1, b, ranks, part))
    rows = rows_of(rows.reshape(ranks, b, part))
    return _first_to_second(rows.reshape(1, ranks, b * f // ranks, t * d)).reshape(b, f // ranks, ranks * t, d)


def _first_to_second(x: ms.Tensor) -> ms.Tensor:
    """Return x (1, A, B, width) as (1, B, A, width)."""
    if x.shape[1] == 1 or x.shape[2] == 1:
        return x.reshape(1, x.shape[2], x.shape[1], x.shape[3])
    return swap(x)


def to_patches(tokens: ms.Tensor, frames: int) -> ms.Tensor:
    """Return some patches of all `frames` for a rank's frames of all patches: (B, F / n, T, D) -> (B, F, T / n, D)."""
    return tokens if size(KIND) == 1 else on_tokens(_to_patches, tokens, frames)


def _to_patches(tokens: ms.Tensor, frames: int) -> ms.Tensor:
    return narrow(exchange(fill(tokens, PATCHES), scatter=PATCHES, gather=FRAMES), FRAMES, 0, frames)


def to_frames(tokens: ms.Tensor, patches: int) -> ms.Tensor:
    """Return the opposite of `to_patches`, with all `patches`: (B, F, T / n, D) -> (B, F / n, T, D)."""
    return tokens if size(KIND) == 1 else on_tokens(_to_frames, tokens, patches)


def _to_frames(tokens: ms.Tensor, patches: int) -> ms.Tensor:
    return narrow(exchange(fill(tokens, FRAMES), scatter=FRAMES, gather=PATCHES), PATCHES, 0, patches)


def own_part(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Return this rank's part of x along axis 0, 1 or 2, which may be filled up with zeros at the last ranks."""
    ranks = size(KIND)
    if ranks == 1:
        return x
    x = fill(x, axis)
    each = x.shape[axis] // ranks
    return narrow(x, axis, place(KIND) * each, (place(KIND) + 1) * each)


def join_parts(part: ms.Tensor, axis: int, length: int) -> ms.Tensor:
    """Return the whole of which each rank has a part along axis 0 or 1, of this length, as it was before `own_part`."""
    if size(KIND) == 1:
        return part
    parts_of, shape = _parts_of(on_ascend(), on_cpu() and not in_graph()), part.shape
    parts = parts_of(part)  # (n, ...)
    whole = parts if axis == 0 else _first_to_second(parts.reshape(1, parts.shape[0], shape[0], -1))
    lead = (-1,) if axis == 0 else (shape[0], -1)
    return narrow(whole.reshape(*lead, *shape[axis + 1 :]), axis, 0, length)


def fill(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Return x with zeros behind it along an axis, so that its length divides by the number of ranks."""
    missing = -x.shape[axis] % size(KIND)
    if missing == 0:
        return x
    shape = (*x.shape[:axis], missing, *x.shape[axis + 1 :])
    return ops.concat((x, _zeros(shape, x.dtype)), axis)


@constexpr
def _zeros(shape: tuple[int, ...], dtype: ms.Type) -> ms.Tensor:
    return ms.Tensor(np.zeros(shape, np.float32), dtype)


def share_videos(x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor | None) -> tuple:
    """Return this rank's frames of videos x (B, F, ...), with timesteps and conditions; of images (B, 1, ...) some.

    Only images are shared with what belongs to them, one row each, as they have no frames to share.
    """
    if size(KIND) == 1:
        return (x, t, *conditions)
    if x.shape[1] > 1:
        return (own_part(x, FRAMES), t, *conditions)
    found = [own_part(x, 0), own_part(t, 0)]
    for each in conditions:
        found.append(each if each is None else own_part(each, 0))  # noqa: PERF401, as MindSpore compiles no condition there
    return tuple(found)


def join_videos(x: ms.Tensor, whole: tuple[int, int]) -> ms.Tensor:
    """Return all frames of all videos, of shape (B, F) = whole, of which `share_videos` gave each rank a part."""
    if whole[1] > 1:
        return join_parts(x, FRAMES, whole[1])
    return join_parts(x, 0, whole[0])


def first_videos(x: ms.Tensor, videos: int, whole: tuple[int, int]) -> ms.Tensor:
    """Return this rank's part of the first videos, of its part x (B, F, ...) or (B / n, 1, ...) of (B, F) = whole.

    It is as `share_videos` would give it, so that rows of images go to other ranks. It has no gradient.
    """
    if size(KIND) == 1 or whole[1] > 1:
        return narrow(x, 0, 0, videos)
    return own_part(narrow(join_parts(x, 0, whole[0]), 0, 0, videos), 0)
