"""Cut, join, look up, reduce and set tensors inside graphs, each by an operation that has a fast kernel on the device.

On Ascend MindSpore's usual forms (`x[:, a:b]`, `ops.split, gather, stack, addn, assign`, `x.mean`) have no kernel of
CANN's operator library: each shape of each would be compiled on line, and launched slowly. The forms here have one.
They copy: a view would be copied, unseen, by every operation behind it that wants elements in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops
from mindspore.ops.auto_generate import Clone, InplaceAddExt, InplaceCopy, InplaceZero, SliceExt, SplitTensor
from mindspore.ops.primitive import constexpr

from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mindspore import Parameter, Tensor

_slice, _split, _clone, _copy, _add, _zero = (
    SliceExt(),
    SplitTensor(),
    Clone(),
    InplaceCopy(),
    InplaceAddExt(),
    InplaceZero(),
)
_zeros, _joins = ops.Zeros(), [ops.Concat(axis) for axis in range(3)]


@constexpr
def on_ascend() -> bool:
    """Return whether the graph being compiled is for an Ascend."""
    return device.current().target == "Ascend"


@constexpr
def on_cpu() -> bool:
    """Return whether the graph being compiled is for a CPU."""
    return device.current().target == "CPU"


@constexpr(check=False)
def _is_none(function: Callable) -> bool:
    return function is None


def in_graph() -> bool:
    """Return whether a graph is being compiled: there, no function reaches what is computed meanwhile."""
    return _is_none(silent)


def silent() -> None:
    """Do nothing."""


class CustomGrad(nn.Cell):
    """A function with a gradient of its own, its `bprop`; one object serves for all calls."""

    def __del__(self) -> None:
        """Do nothing: at the end of the process the clean-up of cells fails, as its own module is gone by then."""


class _Narrow(CustomGrad):
    """`narrow` on Ascend, where MindSpore's gradient of a slice is zero in graphs."""

    def construct(self, x: Tensor, axis: int, start: int, stop: int) -> Tensor:
        """Return the elements."""
        return _slice(x, axis, start, stop, 1)

    def bprop(self, x: Tensor, axis: int, start: int, stop: int, out: Tensor, d: Tensor) -> tuple:
        """Return the gradient, which is zero for the elements that are not there."""
        before = (*x.shape[:axis], start, *x.shape[axis + 1 :])
        after = (*x.shape[:axis], x.shape[axis] - stop, *x.shape[axis + 1 :])
        parts = [d]
        if start:
            parts = [_zeros(before, d.dtype), *parts]
        if stop < x.shape[axis]:
            parts = [*parts, _zeros(after, d.dtype)]
        return _joins[axis](parts) if len(parts) > 1 else d, axis, start, stop


_narrow = _Narrow()


# What chooses a function does not call it: see `latte.ops.recompute`.
def _narrow_of(ascend: bool) -> Callable:
    return _narrow if ascend else _narrow_by_index


def _narrow_by_index(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    if axis == 0:
        return x[start:stop]
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]


def narrow(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Return the elements from `start` up to `stop` along `axis`, which is 0, 1 or 2."""
    return _narrow_of(on_ascend())(x, axis, start, stop)


def split(x: Tensor, size: int, axis: int) -> Sequence[Tensor]:
    """Return the parts of `size` elements along `axis`, in order; the last one may be shorter."""
    return _split(x, size, axis) if on_ascend() else ops.split(x, size, axis)


def views(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Return the parts of so many elements along the first axis, on Ascend views: only to be copied."""
    if len(sizes) == 1:
        return (x,)
    return mint.split(x, sizes, 0) if on_ascend() else ops.split(x, sizes, 0)


def mean(x: Tensor, axis: int | tuple[int, ...] | None = None, keep: bool = False) -> Tensor:
    """Return the mean along one or several axes, or of all elements; with `keep` the axes stay, of length 1."""
    if on_ascend():
        return mint.mean(x) if axis is None else mint.mean(x, axis, keep)
    return x.mean() if axis is None else x.mean(axis, keep_dims=keep)


def largest(x: Tensor, axis: int) -> Tensor:
    """Return the largest elements along an axis, which stays, of length 1."""
    return mint.amax(x, axis, True) if on_ascend() else x.max(axis, keepdims=True)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as one, along a new first axis."""
    return mint.stack(tensors, 0) if on_ascend() else ops.stack(tensors)


def add_all(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return mint.stack(tensors, 0).sum(0) if on_ascend() else ops.addn(tensors)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of a table (N, ...) that integer `index` (n,) names, as (n, ...)."""
    return mint.index_select(table, 0, index) if on_ascend() else ops.gather(table, index, 0)


def uploaded(values: np.ndarray | np.generic) -> Tensor:
    """Return an array as a tensor that lies on the device: a graph waits at each call for one that does not."""
    tensor = ms.Tensor(np.asarray(values, order="C"))
    return _clone(tensor) if on_ascend() else tensor


def read(parameter: Parameter) -> Tensor:
    """Return the value that a parameter has now.

    A parameter that a graph reads in several places, and sets, is copied at each by MindSpore, on Ascend on line.
    """
    return _clone(parameter) if on_ascend() else parameter


def assign(parameter: Parameter, value: Tensor) -> Tensor:
    """Set a parameter to a value of its shape and dtype, in place, and return it."""
    return _copy(parameter, value) if on_ascend() else ops.assign(parameter, value)


def assign_add(parameter: Parameter, value: Tensor) -> Tensor:
    """Add a value of its shape and dtype to a parameter, in place, and return it."""
    return _add(parameter, value, 1) if on_ascend() else ops.assign_add(parameter, value)


def clear(parameter: Parameter) -> None:
    """Set a parameter to zero, in place, outside graphs."""
    if on_ascend():
        _zero(parameter)
    else:
        ops.assign(parameter, ops.zeros_like(parameter))
