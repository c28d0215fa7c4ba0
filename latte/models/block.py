"""Cells that are compiled: blocks, whose graph equal cells share, and whole networks."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import nn

from latte.ops import begun
from latte.ops.recompute import Recomputed, flattened
from latte.ops.shared_weights import SharedRecomputed
from latte.runtime import device, graphs
from latte.runtime.tensors import in_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Pair = tuple[Any, Any]  # (weight, bias) of a layer; the weight may be a tuple, see `latte.ops.linear`


class Block(nn.Cell):
    """A cell whose forward is a function of (inputs, weights, settings).

    A subclass lists its layers and settings once, with `takes`; each layer gives its own weights, usually a pair
    (weight, bias), so that int8 matrices and LoRA adapters reach every block. Where the compile scope is the block, all
    cells with the same function, settings and shapes run through one compiled graph, each with its own weights. Inside
    a larger graph the function is part of that graph.
    """

    forward: Callable
    in_strips: Callable | None = None  # the same without gradients, from Python, where the compile scope is the block
    recomputed: Recomputed | None = None
    shared: tuple[ms.Parameter, ...] = ()  # this rank's part of weights that the ranks share, see `share`
    quantizes: bool = True  # whether its matrices may be int8
    independent_axis: int | None = None  # of tokens (B, F, T, D): 1 if frames, 2 if patches do not see each other

    def takes(self, *layers: nn.Cell | None, **settings: Any) -> None:
        """Note what `forward` takes after its inputs: the weights of these layers, then these constants, in order.

        None stands for a layer that this block does not have.
        """
        # Not as attributes of the cell: it would list the weights a second time, under a second name.
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "names", tuple(settings))
        object.__setattr__(self, "constants", tuple(settings.values()))

    def weights(self) -> tuple[Any, ...]:
        """Return the weights of each layer in the order that `forward` takes them."""
        return tuple([None if layer is None else layer.weights() for layer in self.layers])

    def settings(self) -> tuple[Any, ...]:
        """Return the constants that `forward` takes last."""
        return self.constants

    def construct(self, *inputs: ms.Tensor) -> ms.Tensor:
        """Return `forward` of the inputs, as part of the surrounding graph.

        Where ranks share weights, tokens go from block to block with what the last one began with.
        """
        if isinstance(inputs[0], tuple) and len(self.shared) == 0:
            return self.alone(inputs[0][0], *inputs[1:]), inputs[0][1]
        return self.alone(*inputs)

    def alone(self, *inputs: ms.Tensor) -> ms.Tensor:
        """Return `forward` of the inputs, by a gradient that computes it again or not."""
        if self.recomputed is not None:
            tensors = ()
            for each in inputs:
                if each is not None:
                    tensors = (*tensors, each)  # type: ignore[assignment]
            return self.recomputed(tensors, self.leaves())
        return self.forward(*inputs, *self.weights(), *self.settings())

    def recompute(self) -> None:
        """Keep only the block's input in training, and compute the rest again for its gradient.

        Attention that takes the setting `whole` then has all scores of this block at once.
        """
        if device.current().compiler_recomputes:
            super().recompute()
            return
        self._recompute_by(*flattened(self.weights()))

    def share(
        self, part: ms.Parameter, shared: Sequence[int], shapes: tuple[tuple[int, ...], ...], dtype: ms.Type
    ) -> None:
        """Hold only this rank's part of some weights, which are gathered where the block computes; it is recomputed.

        shared: the numbers of these weights, in the order of `flattened`, and their shapes; what they are now is not
        looked at any more. dtype: in which they are gathered.
        """
        paths, groups = flattened(self.weights())
        places = {k: place for place, k in enumerate([*shared, *(k for k in range(len(paths)) if k not in shared)])}
        order = tuple(places[k] for k in range(len(paths)))
        self._recompute_by([path for k, path in enumerate(paths) if k not in shared], groups, shapes, dtype, order)
        object.__setattr__(self, "shared", (part,))

    def _recompute_by(self, paths: list[tuple[int, ...]], groups: tuple, *sharing: Any) -> None:
        pairs = zip(self.names, self.constants, strict=True)
        settings = tuple(True if name == "whole" else value for name, value in pairs)
        inputs = len(inspect.signature(self.forward).parameters) - len(self.weights()) - len(settings)
        recomputed: Callable = SharedRecomputed if sharing else Recomputed
        object.__setattr__(self, "paths", tuple(paths))
        object.__setattr__(self, "recomputed", recomputed(*sharing, self.forward, settings, groups, inputs))

    def leaves(self) -> tuple[Any, ...]:
        """Return what `recomputed` takes as weights: the part that is shared, and those that `paths` leads to."""
        leaves, weights = self.shared, self.weights()
        for path in self.paths:
            leaf = weights
            for i in path:
                leaf = leaf[i]
            leaves = (*leaves, leaf)
        return leaves

    def __call__(self, *inputs: ms.Tensor) -> ms.Tensor:
        """Return `forward` of the inputs through the graph that equal cells share."""
        if self.in_strips is not None and device.current().compile_scope == "block":
            return self.in_strips(*inputs, *self.weights(), *self.settings())
        weights = self.weights()
        if self.shared and self.recomputed is not None:
            weights = self.recomputed.nested(self.recomputed.whole(self.leaves(), inputs[0]))
        return graphs.call_block(self.forward, inputs, weights, self.settings(), self.axis_for(inputs))

    def axis_for(self, inputs: tuple) -> int | None:
        """Return the axis along which parts of the tokens may go through one after another.

        It is none of frames where each of them has a condition (B F, D) of its own.
        """
        shape = inputs[0].shape
        own = len(inputs) > 1 and inputs[1] is not None and inputs[1].shape[0] != shape[0]
        return None if own and self.independent_axis == 1 else self.independent_axis


def begin(x: ms.Tensor, blocks: Sequence[Block]) -> Any:
    """Return what the first of these blocks takes as tokens x; `latte.ops.ended` takes what the last one gives."""
    own, shares = (), False
    for block in blocks if in_graph() else ():
        if len(block.shared) > 0:
            shares = True
            if block.recomputed.ahead:  # type: ignore
                own = (*own, ms.ops.stop_gradient(block.recomputed.own(block.shared[0])))  # type: ignore
    return begun(x, own) if shares else x


class Network(nn.Cell):
    """A cell that is called as one compiled graph where the compile scope is the step.

    `temporal` says whether blocks over frames run where there are frames. A graph keeps the value it was built with, so
    there is one for each value here; whoever compiles a network as part of something else does the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temporal = True
        self._graphs: dict[bool, Callable] = {}

    def __call__(self, *inputs: Any) -> ms.Tensor:
        """Return `construct` of the inputs."""
        if device.current().compile_scope != "step":
            return super().__call__(*inputs)
        if self.temporal not in self._graphs:
            self._graphs[self.temporal] = graphs.compile_step(self._new_call())
        return self._graphs[self.temporal](*inputs)

    def _new_call(self) -> Callable:
        """Return a function of its own for each graph, as MindSpore keeps one graph per function."""

        def call(*inputs: Any) -> ms.Tensor:
            return self.construct(*inputs)

        return call
