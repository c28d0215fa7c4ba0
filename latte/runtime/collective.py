"""Communication within the groups of `latte.runtime.layout`, inside graphs and outside; for one rank it does nothing.

MindSpore has AllToAll on Ascend only; elsewhere all rows are gathered, and each rank takes its own. On CPU AllGather
knows the group of all ranks only, but outside graphs there is one within any group: so inside a graph all ranks gather,
and each takes what its group holds, as there all are in step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import mint, ops
from mindspore.communication import GlobalComm
from mindspore.ops.primitive import constexpr

from latte.runtime import device, layout
from latte.runtime.tensors import in_graph, on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from latte.runtime.layout import Kind

_take = ops.Gather()
_fresh = constexpr(reuse_result=False)  # as a rank may compute alone meanwhile, see `device.alone`


@_fresh
def size(kind: Kind) -> int:
    """Return the number of ranks in this rank's group of a kind."""
    return len(layout.members(device.current(), kind))


@_fresh
def place(kind: Kind) -> int:
    """Return the place of this rank in its group of a kind."""
    here = device.current()
    return layout.members(here, kind).index(here.rank)


@_fresh
def group_in_graph(kind: Kind) -> str:
    """Return the name of the group in which graphs gather for a group of a kind, which may be a larger one."""
    return GlobalComm.WORLD_COMM_GROUP if _gathers_all() else _group(kind)


@_fresh
def members_in_graph(kind: Kind) -> ms.Tensor:
    """Return the places (n,) int32 of the ranks of a group of a kind in the group in which graphs gather."""
    return ms.Tensor(_places(kind))


@_fresh
def rows_in_graph(kind: Kind) -> ms.Tensor:
    """Return where the rows for this rank are, (n,) int32, if all gather one row for each rank of their groups."""
    here = device.current()
    ranks = layout.members(here, kind)
    return ms.Tensor((_places(kind) * len(ranks) + ranks.index(here.rank)).astype(np.int32))


@_fresh
def own_place(kind: Kind) -> ms.Tensor:
    """Return the place of this rank in its group of a kind as a tensor (1,) int32."""
    here = device.current()
    return ms.Tensor(np.array([layout.members(here, kind).index(here.rank)], np.int32))


def _gathers_all() -> bool:
    return device.current().target == "CPU"


def _places(kind: Kind) -> np.ndarray:
    ranks = layout.members(device.current(), kind)
    return np.array(ranks if _gathers_all() else range(len(ranks)), np.int32)


def _group(kind: Kind) -> str:
    here = device.current()
    return layout.name(layout.members(here, kind), here.world_size) or GlobalComm.WORLD_COMM_GROUP


def gather(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    """Return the tensors (...) of all ranks of a group, of one shape, as (ranks, ...); it has no gradient."""
    if size(kind) == 1:
        return x.expand_dims(0)
    collect = _gather_of(on_cpu(), in_graph())
    return collect(x, kind)


# What chooses a function does not call it: `latte.ops.recompute` says why.
def _gather_of(cpu: bool, compiled: bool) -> Callable:
    if not cpu:
        return _own_group
    return _within_all if compiled else gather_outside


def _own_group(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    return ops.AllGather(group_in_graph(kind))(x.reshape(1, -1)).reshape(-1, *x.shape)


def _within_all(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    rows = ops.AllGather(group_in_graph(kind))(x.reshape(1, -1))
    return _take(rows, members_in_graph(kind), 0).reshape(-1, *x.shape)


def gather_outside(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    """Return what `gather` does, on CPU and outside graphs."""
    found = [ops.zeros_like(x) for _ in range(size(kind))]
    mint.distributed.all_gather(found, x.contiguous(), group=_group(kind))
    return ops.stack(found)


def gather_arrays(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Return the arrays (...) of all ranks of a group, of one shape, as (ranks, ...); each of them must call this."""
    if size(kind) == 1:
        return values[None]
    return gather(ms.Tensor(np.ascontiguousarray(values)), kind).asnumpy()


def share_rows(count: int, kind: Kind, unit: int = 1) -> tuple[int, int, int]:
    """Return the rows that this rank has of `count`, from and to, and how many each rank has, whole units of them.

    The last ranks may have fewer, or none.
    """
    each = -(-count // (unit * size(kind))) * unit
    start = min(place(kind) * each, count)
    return start, min(start + each, count), each


def join_rows(own: np.ndarray, count: int, each: int, kind: Kind) -> np.ndarray:
    """Return all `count` rows of which each rank has those that `share_rows` gave it; every rank must call this."""
    if size(kind) == 1:
        return own
    filled = np.zeros((each, *own.shape[1:]), own.dtype)
    filled[: len(own)] = own
    everything = gather_arrays(filled, kind)
    return everything.reshape(-1, *own.shape[1:])[:count]
