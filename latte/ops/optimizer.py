"""The update of AdamW (Loshchilov and Hutter, 2019, algorithm 2) with PyTorch's bias correction and epsilon.

It is called outside graphs, operation by operation.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops

from latte.ops import ascend
from latte.runtime.tensors import on_ascend

_adam = ops.Adam()


def adam_step(
    learning_rate: float, taken: int, powers: tuple[np.float32, np.float32], betas: tuple[float, float], eps: float,
    weight_decay: float,
) -> tuple:  # fmt: skip
    """Return what all weights share in a step, for `adam`.

    taken: the steps before this one; powers: the betas to the power of this step.
    """
    if on_ascend():
        return learning_rate, ms.Tensor([taken], ms.float32), betas, eps, weight_decay
    one = np.float32(1)
    decay = one - np.float32(learning_rate) * np.float32(weight_decay) if weight_decay else None
    # MindSpore's fused Adam adds epsilon to the root before its bias correction, PyTorch behind it.
    shared = (*powers, learning_rate, *betas, np.float32(eps) * np.sqrt(one - powers[1]))
    return tuple(ms.Tensor(value, ms.float32) for value in shared), decay


def adam(
    step: tuple, weight: ms.Parameter, moment1: ms.Parameter, moment2: ms.Parameter, gradient: ms.Tensor
) -> ms.Parameter:
    """Update a weight and its moments in place, and return the weight.

    All are float32; gradient has the shape of the weight; step: of `adam_step`.
    """
    if on_ascend():
        ascend.adam(step, weight, moment1, moment2, gradient)
        return weight
    shared, decay = step
    if decay is not None:
        ops.assign(weight, weight * ms.Tensor(decay))
    _adam(weight, moment1, moment2, *shared, gradient)
    return weight


def move_towards(average: ms.Parameter, value: ms.Tensor, share: float) -> None:
    """Add to a parameter `share` of its distance to a value, in place."""
    if on_ascend():
        ascend.move_towards(average, value, share)
    else:
        ops.assign_add(average, (value - average) * ms.Tensor(share, ms.float32))
