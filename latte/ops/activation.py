"""Activations."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops.target import on_cpu


def silu(x: ms.Tensor) -> ms.Tensor:
    """Return x * sigmoid(x)."""
    return ops.silu(x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU (Hendrycks and Gimpel, 2016), 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    On CPU the same function is written x * sigmoid(2 u): the kernel of `ops.gelu` is six times slower there.
    """
    if on_cpu():
        return x * ops.sigmoid(x * (1.5957691216057308 + 0.07135481627159896 * (x * x)))
    return ops.gelu(x, approximate="tanh")
