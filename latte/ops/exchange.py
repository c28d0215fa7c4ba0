"""Sequence parallelism by frames: which axis of the tokens is cut into parts, one for each rank of a group.

Tokens (B, F, T, D) lie with some frames at each rank. Before attention over frames one AllToAll gives every rank some
patches of all frames, and after it another gives the frames back; all else computes on the frames that are there (DSP;
Zhao et al., 2024, arXiv 2403.10266). What does not divide is filled up with zeros, and cut off where a rank has all of
the axis, so that no padding is attended to. Parts lie in the order of the ranks.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.primitive import constexpr

from latte.ops.attention import swap
from latte.ops.target import CustomGrad
from latte.runtime import collective
from latte.runtime.collective import place, size
from latte.runtime.tensors import narrow

FRAMES, PATCHES = 1, 2  # axes of tokens


class AllToAll(CustomGrad):
    """Rows x (ranks, ...) to the ranks; the gradient goes the same ways back."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return one row from each rank."""
        return collective.all_to_all(x, "sequence")

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of the rows."""
        return (collective.all_to_all(d, "sequence"),)


class Gather(CustomGrad):
    """The parts x (...) of all ranks as (ranks, ...).

    All ranks go on with the same, so the gradient that one of them computes is that of all, and it takes its own part.
    """

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the parts in the order of the ranks."""
        return collective.gather(x, "sequence")

    def bprop(self, x: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradient of this rank's part."""
        return (narrow(d, 0, place("sequence"), place("sequence") + 1).reshape(x.shape),)


_all_to_all, _gather = AllToAll(), Gather()


def exchange(tokens: ms.Tensor, scatter: int, gather: int) -> ms.Tensor:
    """Cut one axis of tokens into parts for the ranks, and join the parts of the other axis that the ranks hold.

    scatter, gather: 1 for frames or 2 for patches; the one that is cut must divide by the number of ranks n. Frames to
    gather: (B, F / n, T, D) -> (B, F, T / n, D). The gradient is the exchange with the axes swapped.
    """
    b, f, t, d = tokens.shape
    ranks = size("sequence")
    if gather == FRAMES:  # (B, F / n, T, D)
        part = t // ranks * d
        rows = _first_to_second(tokens.reshape(1, b * f, ranks, part))  # for each rank (B F / n, T / n D)
        rows = _all_to_all(rows.reshape(ranks, b * f, part))  # from each rank
        return _first_to_second(rows.reshape(1, ranks, b, f * part)).reshape(b, ranks * f, t // ranks, d)
    part = f // ranks * t * d  # of (B, F, T / n, D)
    rows = _first_to_second(tokens.reshape(1, b, ranks, part))
    rows = _all_to_all(rows.reshape(ranks, b, part))
    return _first_to_second(rows.reshape(1, ranks, b * f // ranks, t * d)).reshape(b, f // ranks, ranks * t, d)


def _first_to_second(x: ms.Tensor) -> ms.Tensor:
    """Return x (1, A, B, width) as (1, B, A, width)."""
    if x.shape[1] == 1 or x.shape[2] == 1:
        return x.reshape(1, x.shape[2], x.shape[1], x.shape[3])
    return swap(x)


def to_patches(tokens: ms.Tensor, frames: int) -> ms.Tensor:
    """Return some patches of all `frames` for a rank's frames of all patches: (B, F / n, T, D) -> (B, F, T / n, D)."""
    if size("sequence") == 1:
        return tokens
    return narrow(exchange(fill(tokens, PATCHES), scatter=PATCHES, gather=FRAMES), FRAMES, 0, frames)


def to_frames(tokens: ms.Tensor, patches: int) -> ms.Tensor:
    """Return the opposite of `to_patches`, with all `patches`: (B, F, T / n, D) -> (B, F / n, T, D)."""
    if size("sequence") == 1:
        return tokens
    return narrow(exchange(fill(tokens, FRAMES), scatter=FRAMES, gather=PATCHES), PATCHES, 0, patches)


def own_part(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Return this rank's part of x along axis 0, 1 or 2, which may be filled up with zeros at the last ranks."""
    ranks = size("sequence")
    if ranks == 1:
        return x
    x = fill(x, axis)
    each = x.shape[axis] // ranks
    return narrow(x, axis, place("sequence") * each, (place("sequence") + 1) * each)


def join_parts(part: ms.Tensor, axis: int, length: int) -> ms.Tensor:
    """Return the whole of which each rank has a part along axis 0 or 1, of this length, as it was before `own_part`."""
    if size("sequence") == 1:
        return part
    parts, shape = _gather(part), part.shape  # (n, ...)
    whole = parts if axis == 0 else _first_to_second(parts.reshape(1, parts.shape[0], shape[0], -1))
    lead = (-1,) if axis == 0 else (shape[0], -1)
    return narrow(whole.reshape(*lead, *shape[axis + 1 :]), axis, 0, length)


def fill(x: ms.Tensor, axis: int) -> ms.Tensor:
    """Return x with zeros behind it along an axis, so that its length divides by the number of ranks."""
    missing = -x.shape[axis] % size("sequence")
    if missing == 0:
        return x
    shape = (*x.shape[:axis], missing, *x.shape[axis + 1 :])
    return ops.concat((x, _zeros(shape, x.dtype)), axis)


@constexpr
def _zeros(shape: tuple[int, ...], dtype: ms.Type) -> ms.Tensor:
    return ms.Tensor(np.zeros(shape, np.float32)).astype(dtype)


def share_videos(x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor | None) -> tuple:
    """Return this rank's frames of videos x (B, F, ...), with timesteps and conditions; of images (B, 1, ...) some.

    Only images are shared with what belongs to them, one row each, as they have no frames to share.
    """
    if size("sequence") == 1:
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
