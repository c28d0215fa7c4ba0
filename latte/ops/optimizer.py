"""The update of Adam (Kingma and Ba, 2015, algorithm 1)."""

from __future__ import annotations

import mindspore as ms
from mindspore import ops

from latte.ops import ascend
from latte.runtime.tensors import on_ascend

_adam = ops.Adam()


def adam(
    step: tuple, weight: ms.Parameter, moment1: ms.Parameter, moment2: ms.Parameter, gradient: ms.Tensor
) -> ms.Tensor:
    """Update a weight and its moments in place, and return the new weight.

    All are float32; gradient has the shape of the weight. `step` holds what all weights share, () tensors: the betas to
    the power of the step, the learning rate, the betas, the epsilon, which is added to the root before the bias
    correction, and what the weight is multiplied by first (Loshchilov and Hutter, 2019, algorithm 2), or None.
    """
    if on_ascend():
        return ascend.adam(step, weight, moment1, moment2, gradient)
    power1, power2, learning_rate, beta1, beta2, eps, decay = step
    if decay is not None:  # the gradient is there once the weight is smaller
        gradient = ops.depend(gradient, ops.assign(weight, weight * decay))
    updated = _adam(weight, moment1, moment2, power1, power2, learning_rate, beta1, beta2, eps, gradient)
    return ops.depend(weight, updated)
