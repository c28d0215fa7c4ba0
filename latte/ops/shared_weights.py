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
from latte.runtime.tensors import narrow, read

if TYPE_CHECKING:
    from mindspore import Tensor

# In a gradient that is written out only primitives: `latte.ops.recompute` says why.
_after, _cast, _join, _slice, _zeros = ops.Depend(), ops.Cast(), ops.Concat(0), ops.Slice(), ops.Zeros()


def row_length(shapes: tuple[tuple[int, ...], ...]) -> int:
    """Return the elements of a row of weights of these shapes, with the zeros that let all ranks divide it."""
    ranks = device.current().world_size
    return math.ceil(sum(map(math.prod, shapes)) / ranks) * ranks


class SharedRecomputed(Recomputed):
    """A block whose first leaf is this rank's part of some of its weights, (n / ranks,) float32; others are whole.

    shapes: of the weights that are gathered, in the order of the row; dtype: in which. order: for each weight of the
    block its place among those that are gathered, with the whole ones behind them.
    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...], dtype: ms.Type, order: tuple[int, ...], *of_block: Any):
        super().__init__(*of_block)
        here, ends = device.current(), [sum(map(math.prod, shapes[: k + 1])) for k in range(len(shapes))]
        self.dtype = ms.float32 if here.target == "CPU" else dtype  # a CPU's weights are, whatever it computes in
        self.places, self.order = tuple(zip([0, *ends[:-1]], ends, shapes, strict=True)), order
        self.back = tuple(order.index(k) for k in range(len(order)))
        self.missing = row_length(shapes) - ends[-1]
        self.size = row_length(shapes) // here.world_size
        self.first = here.rank * self.size  # element of the row that is this rank's
        self.copies = self.dtype == ms.float32 and here.target == "Ascend"
        self.scatters = here.target != "CPU"  # which has no ReduceScatter

    def whole(self, leaves: tuple, begun: Tensor) -> tuple:
        """Return all weights, gathered once `begun` is there: else those of all blocks would be there at once."""
        # A tensor of its own: MindSpore copies a parameter that `Depend` takes, on Ascend on line.
        part = read(leaves[0]) if self.copies else _cast(leaves[0], self.dtype)
        row, found, weights = ops.AllGather()(_after(part, begun)), (), ()  # (n,)
        for start, stop, shape in self.places:
            found = (*found, narrow(row, 0, start, stop).reshape(shape))  # type: ignore[assignment]
        found = (*found, *leaves[1:])
        for k in self.order:
            weights = (*weights, found[k])  # type: ignore[assignment]
        return weights

    def of_leaves(self, inputs: tuple, weights: tuple) -> tuple[tuple, tuple]:
        """Return the gradients of inputs and leaves; that of the part is summed before the next block begins."""
        row, others, shared = (), (), len(self.places)
        for k in self.back[:shared]:
            row = (*row, weights[k].reshape(-1))  # type: ignore[assignment]
        for k in self.back[shared:]:
            others = (*others, weights[k])  # type: ignore[assignment]
        if self.missing:
            row = (*row, _zeros((self.missing,), self.dtype))  # type: ignore[assignment]
        whole = _cast(_join(row), ms.float32)  # (n,)
        if self.scatters:
            part = ops.ReduceScatter()(whole)
        else:
            part = _slice(ops.AllReduce()(whole), (self.first,), (self.size,))
        return (_after(inputs[0], part), *inputs[1:]), (part, *others)
