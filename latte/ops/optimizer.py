"""The update of AdamW (Loshchilov and Hutter, 2019, algorithm 2) with PyTorch's bias correction and epsilon."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops

from latte.ops import ascend
from latte.runtime.tensors import on_ascend

_adam = ops.Adam()


def host_scalar(value: float) -> Any:
    """Return a number for `adam_step` that differs from call to call, as a graph takes it without a new compilation.

    On Ascend that is a number of the host, as its kernel takes it, here twice the value, elsewhere a () float32 tensor.
    """
    return ms.mutable(2 * float(value)) if on_ascend() else ms.Tensor(value, ms.float32)


def adam_step(
    learning_rate: Any, taken: ms.Tensor, powers: tuple[ms.Tensor, ms.Tensor], betas: tuple[float, float], eps: float,
    weight_decay: float,
) -> tuple:  # fmt: skip
    """Return what all weights share in a step, for `adam`.

    learning_rate: of `host_scalar`; taken: (1,) float32, the steps before this one; powers: () float32, the betas to
    the power of this step.
    """
    if on_ascend():
        # What a graph is given lies on the device; computed with, which is done on the host, it is read once for all.
        return learning_rate * 0.5, taken, betas, eps, weight_decay
    power1, power2 = powers
    beta1, beta2 = ms.Tensor(betas[0], ms.float32), ms.Tensor(betas[1], ms.float32)
    decay = 1 - learning_rate * weight_decay if weight_decay else None
    # MindSpore's fused Adam adds epsilon to the root before its bias correction, PyTorch behind it.
    return power1, power2, learning_rate, beta1, beta2, eps * ops.sqrt(1 - power2), decay


def adam(
    step: tuple, weight: ms.Parameter, moment1: ms.Parameter, moment2: ms.Parameter, gradient: ms.Tensor
) -> ms.Tensor:
    """Update a weight and its moments in place, and return the new weight.

    All are float32; gradient has the shape of the weight; step: of `adam_step`.
    """
    if on_ascend():
        return ascend.adam(step, weight, moment1, moment2, gradient)
    power1, power2, learning_rate, beta1, beta2, eps, decay = step
    if decay is not None:  # the gradient is there once the weight is smaller
        gradient = ops.depend(gradient, ops.assign(weight, weight * decay))
    updated = _adam(weight, moment1, moment2, power1, power2, learning_rate, beta1, beta2, eps, gradient)
    return ops.depend(weight, updated)


def move_towards(average: ms.Parameter, value: ms.Tensor, share: float) -> ms.Tensor:
    """Set a parameter to itself plus `share` of its distance to a value, in place, and return it."""
    if on_ascend():
        return ascend.move_towards(average, value, share)
    return ops.assign_add(average, (value - average) * ms.Tensor(share, ms.float32))
