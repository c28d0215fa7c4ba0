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
from mindspore.ops.primitive import constexpr

from latte.runtime import device, layout
from latte.runtime.tensors import in_graph, narrow, on_ascend, on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from latte.runtime.layout import Kind

WORLD = ""  # the name of the group of all ranks, here


@constexpr(reuse_result=False)  # a rank may compute alone meanwhile, see `device.alone`
def size(kind: Kind) -> int:
    """Return the number of ranks in this rank's group of a kind."""
    return len(layout.members(device.current(), kind))


@constexpr(reuse_result=False)
def place(kind: Kind) -> int:
    """Return the place of this rank in its group of a kind."""
    here = device.current()
    return layout.members(here, kind).index(here.rank)


@constexpr(reuse_result=False)
def _group(kind: Kind) -> str:
    here = device.current()
    return layout.name(layout.members(here, kind), here.world_size) or WORLD


@constexpr(reuse_result=False)
def _members(kind: Kind) -> tuple[int, ...]:
    return tuple(layout.members(device.current(), kind))


def gather(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    """Return the tensors (...) of all ranks of a group, of one shape, as (ranks, ...)."""
    if size(kind) == 1:
        return x.expand_dims(0)
    collect = _gather_of(on_cpu(), in_graph(), _group(kind) == WORLD)
    return collect(x, kind).reshape(size(kind), *x.shape)


def all_to_all(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    """Return for x (ranks, ...), of which row r is for rank r, what is for this rank, one row from each rank."""
    exchange = _swap_of(on_ascend())
    return exchange(x, kind)


# What chooses a function does not call it: `latte.ops.recompute` says why.
def _swap_of(ascend: bool) -> Callable:
    return _all_to_all if ascend else _gathered_rows


def _gather_of(cpu: bool, compiled: bool, world: bool) -> Callable:
    if cpu and not compiled:
        return _outside
    return _within_world if cpu and not world else _inside


def _gathered_rows(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    everything = gather(x, kind)  # (ranks, ranks, ...): from rank, for rank
    return narrow(everything, 1, place(kind), place(kind) + 1).reshape(x.shape)


def _all_to_all(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    if _group(kind) == WORLD:
        return ops.AlltoAll(size(kind), 0, 0)(x)
    return ops.AlltoAll(size(kind), 0, 0, _group(kind))(x)


def _inside(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    flat = x.reshape(1, -1)
    if _group(kind) == WORLD:
        return ops.AllGather()(flat)
    return ops.AllGather(_group(kind))(flat)


def _within_world(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    everything = ops.AllGather()(x.reshape(1, -1))
    rows = [narrow(everything, 0, rank, rank + 1) for rank in _members(kind)]
    return ops.concat(rows, 0)


def _outside(x: ms.Tensor, kind: Kind) -> ms.Tensor:
    found = [ops.zeros_like(x) for _ in range(size(kind))]
    mint.distributed.all_gather(found, x.contiguous(), group=_group(kind) or None)
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
