"""Blocks that are computed again for their gradients, and what MindSpore 2.10 cannot compile.

Other places point here. The rules, each found with the error that breaking it gives:

- A function that is called in a branch cannot be compiled a second time inside a written-out gradient ("The func graph
  is empty"). `Recomputed` compiles a block there again, so what blocks call *chooses* a function in a branch and calls
  it behind: that is what functions named `_..._of` are for. Branches are on constants of the graph, never on tensors.
  A function that is chosen when the block is built cannot be one of its settings instead: where an argument of `ms.jit`
  is a function, the graph is compiled again at every call.
- `f(*arguments)` does not compile in a branch on a tensor; there, arguments are spelled out.
- A gradient that is written out (`CustomGrad.bprop`) calls no function with branches that the forward pass calls too,
  and none of MindSpore's own in Python, for the same reason.
- `Cell.recompute()` passes by written-out gradients, hence `Recomputed` where blocks are made of them. On Ascend it
  starts all blocks before the backward pass, and so saves next to nothing.
- On Ascend a branch on a tensor moves every parameter in it to the host and back, or does not compile; one that
  returns nothing calls Python. What a graph sets and then reads again, it copies by an operation compiled on line.
- A graph keeps what it was built with: attributes, global constants, results of `constexpr` for equal arguments, and
  weights unless they are changed in place (`ops.assign`).
- `self` must be spelled `self`; a lambda in a comprehension does not compile; `ms.jit` needs source in a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import ops

from latte.ops.target import CustomGrad

if TYPE_CHECKING:
    from collections.abc import Callable

# x, once something else is there: MindSpore orders nothing by itself.
_after = ops.Depend()
_gradients = ops.GradOperation(get_all=True, sens_param=True)


class Recomputed(CustomGrad):
    """A block's function of (inputs, weights) whose gradient keeps nothing but these and computes it again."""

    def __init__(self, forward: Callable, settings: tuple[Any, ...]):
        super().__init__()
        self.forward, self.settings = forward, settings

    def construct(self, inputs: tuple, weights: tuple) -> ms.Tensor:
        """Return the block's output."""
        return self.forward(*inputs, *weights, *self.settings)

    def bprop(self, inputs: tuple, weights: tuple, out: ms.Tensor, d: ms.Tensor) -> tuple[tuple, tuple]:
        """Return the gradients with respect to inputs and weights."""

        def again(inputs: tuple, weights: tuple) -> ms.Tensor:
            return self.forward(*inputs, *weights, *self.settings)

        # Only once the gradient has come this far, lest all blocks are computed again at once.
        return _gradients(again)((_after(inputs[0], d), *inputs[1:]), weights, d)
