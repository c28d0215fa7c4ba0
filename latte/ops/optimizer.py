"""The update of Adam (Kingma and Ba, 2015, algorithm 1)."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops import ascend
from latte.runtime.tensors import on_ascend

_adam = ops.Adam()


def adam(
    weight: ms.Parameter,
    moment1: ms.Parameter,
    moment2: ms.Parameter,
    power1: ms.Tensor,
    power2: ms.Tensor,
    learning_rate: ms.Tensor,
    beta1: ms.Tensor,
    beta2: ms.Tensor,
    eps: ms.Tensor,
    gradient: ms.Tensor,
    decay: ms.Tensor | None,
) -> ms.Tensor:
    """Update a weight and its moments in place, and return the new weight.

    All are float32; gradient has the shape of the weight, the others are (), power1 and power2 being the betas to the
    power of the step. The epsilon is added to the root before the bias correction. With `decay`, the weight is
    multiplied by it first (Loshchilov and Hutter, 2019, algorithm 2).
    """
    if on_ascend():
        return ascend.adam(weight, moment1, moment2, power1, power2, learning_rate, beta1, beta2, eps, gradient, decay)
    if decay is not None:  # the gradient is there once the weight is smaller
        gradient = ops.depend(gradient, ops.assign(weight, weight * decay))
    updated = _adam(weight, moment1, moment2, power1, power2, learning_rate, beta1, beta2, eps, gradient)
    return ops.depend(weight, updated)
