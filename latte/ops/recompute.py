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

from latte.runtime.tensors import CustomGrad

if TYPE_CHECKING:
    from collections.abc import Callable

# x, once something else is there: MindSpore orders nothing by itself.
_after = ops.Depend()
_gradients = ops.GradOperation(get_all=True, sens_param=True)


class Recomputed(CustomGrad):
    """A block's function of (inputs, weights) whose gradient keeps nothing but these and computes it again.

    The weights come one after the other, and `groups` says how they were nested, see `flattened`: MindSpore's gradient
    of taking one of a tuple makes zeros of all others, as large as they are, and adds them up. `inputs` is how many the
    function takes; those that do not come are None.
    """

    def __init__(self, forward: Callable, settings: tuple[Any, ...], groups: tuple, inputs: int):
        super().__init__()
        self.forward, self.settings, self.groups, self.inputs = forward, settings, groups, inputs

    def construct(self, inputs: tuple, leaves: tuple) -> ms.Tensor:
        """Return the block's output."""
        return self.compute(inputs, leaves)

    def compute(self, inputs: tuple, weights: tuple) -> ms.Tensor:
        """Return `forward` of inputs and weights, nested as they were."""
        given = (*inputs, *((None,) * (self.inputs - len(inputs))))
        return self.forward(*given, *self.nested(weights), *self.settings)

    def nested(self, nodes: tuple) -> tuple:
        """Return weights as `forward` takes them."""
        for group in self.groups:
            made = ()
            for i in group:
                made = (*made, nodes[i] if isinstance(i, int) else i)  # type: ignore[assignment]
            nodes = (*nodes, made)
        return nodes[-1]

    def bprop(self, inputs: tuple, leaves: tuple, out: ms.Tensor, d: ms.Tensor) -> tuple[tuple, tuple]:
        """Return the gradients with respect to inputs and leaves."""
        return self.gradients(inputs, leaves, d)

    def gradients(self, inputs: tuple, weights: tuple, d: ms.Tensor) -> tuple[tuple, tuple]:
        """Return the gradients with respect to inputs and weights, from that of the output."""
        count = len(inputs)

        def again(*tensors: ms.Tensor) -> ms.Tensor:
            return self.compute(tensors[:count], tensors[count:])

        # Only once the gradient has come this far, lest all blocks are computed again at once.
        found = _gradients(again)(_after(inputs[0], d), *inputs[1:], *weights, d)
        return found[:count], found[count:]


def flattened(weights: tuple) -> tuple[list[tuple[int, ...]], tuple[tuple[int | float | None, ...], ...]]:
    """Return where the tensors of nested tuples are, as paths of numbers, and how to nest them again.

    That is a group for each tuple, inner ones first: numbers of tensors, or of groups before, which are counted behind
    the tensors; None and floats stand for themselves.
    """
    paths: list[tuple[int, ...]] = []
    groups: list[list] = []

    def visit(node: Any, path: tuple[int, ...]) -> Any:
        if node is None or isinstance(node, float):
            return node
        if isinstance(node, tuple):
            groups.append([visit(each, (*path, i)) for i, each in enumerate(node)])
            return ("group", len(groups) - 1)
        paths.append(path)
        return ("tensor", len(paths) - 1)

    visit(weights, ())
    first = {"tensor": 0, "group": len(paths)}
    return paths, tuple(tuple(first[i[0]] + i[1] if isinstance(i, tuple) else i for i in group) for group in groups)
