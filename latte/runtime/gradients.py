"""MindSpore's `functional` as its gradients see it, but with a sum of them that Ascend has a kernel for.

The gradients of two uses of a tensor are added by `F.addn`, which on Ascend would be compiled on line. What MindSpore
leaves out of such a sum by itself are the zeros that it makes for the other parts of a tensor that was split; these are
constants here, which are seen where sums are. MindSpore looks functions up by the name of their module, so what it is
to find instead must be a module of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops import functional
from mindspore.ops.composite.multitype_ops import add_impl, zeros_like_impl
from mindspore.ops.primitive import constexpr

from latte.runtime.tensors import on_ascend

if TYPE_CHECKING:
    from mindspore import Tensor
    from mindspore import dtype as mstype

GRADIENTS = "Gradients/sum"  # the scope by which MindSpore's recomputation tells gradients from what it repeats
_add, _addn = ops.Add(), ops.AddN()

globals().update({name: value for name, value in vars(functional).items() if not name.startswith("__")})


@constexpr
def _zeros_of(shape: tuple[int, ...], dtype: mstype.Type) -> Tensor:
    return ms.Tensor(np.zeros(shape, np.float32), dtype)


@constexpr(check=False)
def _is_zero(gradient: Tensor | None) -> bool:
    """Return whether a gradient is a constant of zeros; what is computed in the graph comes as None."""
    return gradient is not None and not np.any(gradient.asnumpy())


class _Sum(nn.Cell):
    """The sum of two gradients; a cell, because only a cell gives what it computes a scope."""

    def __init__(self) -> None:
        super().__init__()
        self._set_scope(GRADIENTS)

    def construct(self, gradients: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum, of which zeros are left out."""
        first, second = gradients
        if _is_zero(second):
            return first
        if _is_zero(first):
            return second
        return _add(first, second)


_sum = _Sum()


def addn(gradients: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum of two gradients."""
    return _sum(gradients) if on_ascend() else _addn(gradients)


def zeros_like(x: Tensor) -> Tensor:
    """Return zeros, the gradient of what is not used."""
    return _zeros_of(x.shape, x.dtype) if on_ascend() else ops.zeros_like(x)


def replace_sum() -> None:
    """Have MindSpore's gradients take `addn` and `zeros_like` of this module."""
    import latte.runtime.gradients as this

    add_impl.F = zeros_like_impl.F = this
