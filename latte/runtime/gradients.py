"""MindSpore's `functional` as its sums see it, but with a sum of gradients that Ascend has a kernel for.

The gradients of two uses of a tensor are added by `F.addn`, which on Ascend would be compiled on line. MindSpore looks
functions up by the name of their module, so what it is to find instead must be a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspore import nn, ops
from mindspore.ops import functional
from mindspore.ops.composite.multitype_ops import add_impl

from latte.runtime.tensors import on_ascend

if TYPE_CHECKING:
    from mindspore import Tensor

GRADIENTS = "Gradients/sum"  # the scope by which MindSpore's recomputation tells gradients from what it repeats
_add, _addn = ops.Add(), ops.AddN()

globals().update({name: value for name, value in vars(functional).items() if not name.startswith("__")})


class _Sum(nn.Cell):
    """The sum of two gradients; a cell, because only a cell gives what it computes a scope."""

    def __init__(self) -> None:
        super().__init__()
        self._set_scope(GRADIENTS)

    def construct(self, gradients: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum."""
        return _add(gradients[0], gradients[1])


_sum = _Sum()


def addn(gradients: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of two gradients."""
    return _sum(gradients) if on_ascend() else _addn(gradients)


def replace_sum() -> None:
    """Have MindSpore's gradients add by `addn` of this module."""
    import latte.runtime.gradients as this

    add_impl.F = this
