"""Weights of a block of which each rank holds a part: gathered where the block computes, and again for its gradient.

This is stage 3 of ZeRO (Rajbhandari et al., 2020). A block's weights lie one after the other in one row, filled up with
zeros so that all ranks divide it; each holds its part in float32. One AllGather, in the dtype that the block computes
in, brings the row together, and one ReduceScatter in float32 sums its gradient over all ranks to their parts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import ops

from latte.ops.recompute import Recomputed
from latte.runtime import device
from latte.runtime.tensors import CustomGrad, narrow, read

if TYPE_CHECKING:
    from mindspore import Tensor

# In a gradient that is written out only primitives: `latte.ops.recompute` says why.
_after, _cast, _join, _slice, _zeros = ops.Depend(), ops.Cast(), ops.Concat(0), ops.Slice(), ops.Zeros()


def row_length(shapes: tuple[tuple[int, ...], ...]) -> int:
    """Return the elements of a row of weights of these shapes, with the zeros that let all ranks divide it."""
    ranks = device.current().world_size
    return math.ceil(sum(map(math.prod, shapes)) / ranks) * ranks


class Rounded(CustomGrad):
    """A part of weights in another dtype, whose gradient is that of the part itself, float32.

    It is always a tensor of its own: MindSpore copies a parameter that `Depend` takes, on Ascend on line.
    """

    def __init__(self, dtype: ms.Type):
        super().__init__()
        self.dtype, self.copies = dtype, dtype == ms.float32 and device.current().target == "Ascend"

    def construct(self, part: Tensor) -> Tensor:
        """Return the part."""
        return read(part) if self.copies else part.astype(self.dtype)

    def bprop(self, part: Tensor, out: Tensor, d: Tensor) -> tuple[Tensor]:
        """Return the gradient."""
        return (d,)


class GatheredWeights(CustomGrad):
    """Weights of some shapes and a dtype, of this rank's part (n / ranks,) of their row, with a gradient in float32."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], dtype: ms.Type):
        super().__init__()
        ends = [sum(map(math.prod, shapes[: k + 1])) for k in range(len(shapes))]
        self.places = tuple(zip([0, *ends[:-1]], ends, shapes, strict=True))
        length, here = row_length(shapes), device.current()
        self.dtype, self.missing, self.size = dtype, length - ends[-1], length // here.world_size
        self.first = here.rank * self.size  # element of the row that is this rank's

    def construct(self, part: Tensor) -> tuple[Tensor, ...]:
        """Return the weights of all ranks."""
        row, found = ops.AllGather()(part), ()  # (n,)
        for start, stop, shape in self.places:
            found = (*found, narrow(row, 0, start, stop).reshape(shape))  # type: ignore[assignment]
        return found

    def bprop(self, part: Tensor, out: tuple[Tensor, ...], d: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Return the gradient of the part, summed over all ranks."""
        return (ops.ReduceScatter()(self.row(d)),)

    def row(self, weights: tuple[Tensor, ...]) -> Tensor:
        """Return the row (n,) float32 of weights, or of their gradients."""
        found = ()
        for weight in weights:
            found = (*found, weight.reshape(-1))  # type: ignore[assignment]
        if self.missing:
            found = (*found, _zeros((self.missing,), self.dtype))  # type: ignore[assignment]
        return _cast(_join(found), ms.float32)


class GatheredOnCpu(GatheredWeights):
    """The same on CPU, which has no ReduceScatter: all is summed, and each rank takes its part."""

    def bprop(self, part: Tensor, out: tuple[Tensor, ...], d: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Return the gradient of the part, summed over all ranks."""
        return (_slice(ops.AllReduce()(self.row(d)), (self.first,), (self.size,)),)


class SharedRecomputed(Recomputed):
    """A block whose first leaf is this rank's part of some of its weights; the other leaves are whole.

    `order`: for each weight of the block its place among those that are gathered, with the whole ones behind them.
    """

    def __init__(self, gather: GatheredWeights, order: tuple[int, ...], *others: Any):
        super().__init__(*others)
        self.gather, self.round, self.order = gather, Rounded(gather.dtype), order

    def whole(self, leaves: tuple, begun: Tensor) -> tuple:
        """Return all weights, gathered once `begun` is there: else those of all blocks would be there at once."""
        known, found = (*self.gather(_after(self.round(leaves[0]), begun)), *leaves[1:]), ()
        for k in self.order:
            found = (*found, known[k])  # type: ignore[assignment]
        return found


def gathered(shapes: tuple[tuple[int, ...], ...], dtype: ms.Type) -> GatheredWeights:
    """Return the function that gathers weights of these shapes, for blocks that compute in a dtype."""
    if device.current().target == "CPU":
        return GatheredOnCpu(shapes, ms.float32)  # its weights are, whatever it computes in
    return GatheredWeights(shapes, dtype)
