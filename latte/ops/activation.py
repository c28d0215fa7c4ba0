"""Activations."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops
from mindspore.ops.auto_generate import SigmoidGrad

from latte.ops.target import CustomGrad, on_cpu

_sigmoid_grad, _gelu = SigmoidGrad(), ops.GeLU()
LINEAR, CUBIC = 1.5957691216057308, 0.07135481627159896  # 2 sqrt(2/pi), and that times 0.044715


def silu(x: ms.Tensor) -> ms.Tensor:
    """Return x * sigmoid(x)."""
    return ops.silu(x)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU (Hendrycks and Gimpel, 2016), 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    On CPU the same function is written x * sigmoid(2 u): the kernel of `ops.gelu` is six times slower there.
    """
    if on_cpu():
        return _cpu_gelu(x)[0]
    return _gelu(x)


class _CpuGelu(CustomGrad):
    """x * sigmoid(2 u) and its slope, which is all that the gradient needs: few passes over memory."""

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        square = x * x
        s = ops.sigmoid(x * (LINEAR + CUBIC * square))
        return x * s, s + _sigmoid_grad(s, x) * (LINEAR + 3 * CUBIC * square)

    def bprop(self, x: ms.Tensor, out: tuple, d: tuple) -> tuple:
        return (d[0] * out[1],)


_cpu_gelu = _CpuGelu()
