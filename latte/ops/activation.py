"""Activations."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops import ascend, cpu
from latte.runtime.tensors import on_ascend, on_cpu

_gelu = ops.GeLU()


def silu(x: ms.Tensor) -> ms.Tensor:
    """Return x * sigmoid(x)."""
    return ops.silu(x)


def quick_gelu(x: ms.Tensor) -> ms.Tensor:
    """Return x * sigmoid(1.702 x), the other form of GELU (Hendrycks and Gimpel, 2016), which CLIP has."""
    return x * ops.sigmoid(1.702 * x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU (Hendrycks and Gimpel, 2016), 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    On CPU the same function is written x * sigmoid(2 u): the kernel of `ops.gelu` is six times slower there.
    """
    if on_cpu():
        return cpu.gelu_and_slope(x)[0]
    return ascend.gelu(x) if on_ascend() else _gelu(x)
