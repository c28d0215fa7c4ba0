"""Weights of a block of which each rank holds a part: gathered before the block computes, and again for its gradient.

This is stage 3 of ZeRO (Rajbhandari et al., 2020). A block's weights lie one after the other in one row, filled up with
zeros so that all ranks divide it; each holds its part in float32. One AllGather, in the dtype that the block computes
in, brings the row together, and one ReduceScatter in float32 sums its gradient over all ranks to their parts.

A row is gathered while the block before computes, and in the backward pass while the block behind does. MindSpore
launches the operations of a graph one after the other, each as soon as its inputs are there, exchanges on a stream of
their own, and has the stream that computes wait where a result is first used. So all that is needed is what a gathering
waits for. Forward that is the input of the block before, which each block returns besides its output, and the next one
takes as `before`. The gradient of `before` brings the other way that the gradient of the next block's output is there.
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
    from collections.abc import Callable

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
        # A CPU has no ReduceScatter, and no streams: what ranks exchange must come in one order at all of them.
        self.scatters = self.ahead = here.target != "CPU"

    def construct(self, inputs: tuple, leaves: tuple) -> tuple[Tensor, Tensor]:
        """Return the block's output and its tokens; the first input is the tokens, and what the last block returned."""
        x, before = inputs[0]
        row = self.row(leaves, before if self.ahead else x)
        return self.compute((x, *inputs[1:]), self.cut(_after(row, x), leaves)), x

    def bprop(self, inputs: tuple, leaves: tuple, out: tuple, d: tuple) -> tuple[tuple, tuple]:
        """Return the gradients of inputs and leaves; that of `before` is there once that of the output is."""
        x, before = inputs[0]
        row = _after(self.row(leaves, d[1] if self.ahead else d[0]), d[0])
        found, weights = self.gradients((x, *inputs[1:]), self.cut(row, leaves), d[0])
        found, parts = self.of_leaves(found, weights)
        return ((found[0], _after(before, row)), *found[1:]), parts

    def whole(self, leaves: tuple, begun: Tensor) -> tuple:
        """Return all weights, gathered once `begun` is there."""
        return self.cut(self.row(leaves, begun), leaves)

    def row(self, leaves: tuple, begun: Tensor) -> Tensor:
        """Return the row (n,), gathered once `begun` is there: else those of all blocks would be there at once."""
        return ops.AllGather()(_after(self.own(leaves[0]), begun))

    def own(self, part: Tensor) -> Tensor:
        """Return this rank's part of the row, in the dtype that it is gathered in.

        It is a tensor of its own: MindSpore copies a parameter that `Depend` takes, on Ascend on line.
        """
        return read(part) if self.copies else _cast(part, self.dtype)

    def cut(self, row: Tensor, leaves: tuple) -> tuple:
        """Return all weights, of which the row has those that ranks share."""
        found, weights = (), ()
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


class _Ended(CustomGrad):
    """The output of the last block; its weights are gathered for the backward pass once its gradient is there."""

    def construct(self, chained: tuple[Tensor, Tensor]) -> Tensor:
        """Return the tokens."""
        return chained[0]

    def bprop(self, chained: tuple[Tensor, Tensor], out: Tensor, d: Tensor) -> tuple:
        """Return the gradient, and what the last block began with once that is there."""
        return ((d, _after(chained[1], d)),)


_ended = _Ended()


def begun(x: Tensor, own: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return what the first block takes; own: what is gathered one block ahead, this rank's part of each row.

    They are computed now, as MindSpore would do so only when nothing else is left to do; the first row is gathered
    before the second.
    """
    return (_after(x, own) if own else x), ops.stop_gradient(x)


def once_there(parts: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return sums of gradients once others are there: the blocks would wait for whatever reads one earlier."""
    found = ()
    for part in parts:
        found = (*found, _after(part, others))  # type: ignore[assignment]
    return found


def ended(x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return the tokens that the last block gives."""
    return _ended(x) if isinstance(x, tuple) else x


def on_tokens(function: Callable, x: Tensor | tuple[Tensor, Tensor], *others: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Return `function` of the tokens that go from one block to the next, with what the last block began with."""
    return (function(x[0], *others), x[1]) if isinstance(x, tuple) else function(x, *others)
