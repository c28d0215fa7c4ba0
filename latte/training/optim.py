"""Learning rates, AdamW and the norm of gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindcv.scheduler import create_scheduler
from mindspore import ops

from latte.errors import UserError
from latte.ops import adam, adam_step, sum_of_squares
from latte.runtime.tensors import add_all, assign_add
from latte.training.collective import sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.training.host import HostBuffer

SCHEDULERS = {"constant": "constant", "cosine": "cosine_decay", "polynomial": "polynomial_decay"}  # mindcv's names
CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_

_map = ops.HyperMap()
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_add = ops.MultitypeFuncGraph("add_to")


def learning_rates(scheduler: str, start: float, end: float, warmup_steps: int, steps: int) -> np.ndarray:
    """Return the learning rate of each of `steps` steps, (steps,) float32.

    It grows linearly from 0 over `warmup_steps`, then stays constant or falls to `end` along a cosine (Loshchilov and
    Hutter, 2017, equation 5) or a line. Raises UserError if the warm-up takes all steps.
    """
    rest = steps - warmup_steps
    if rest < 1:
        raise UserError(
            f"warmup_steps is {warmup_steps}, but there are only {steps} steps; lower it, or raise max_steps or epochs"
        )
    table = create_scheduler(
        steps_per_epoch=1,  # so that mindcv's epochs are our steps
        scheduler=SCHEDULERS[scheduler],
        lr=start,
        min_lr=end,
        warmup_epochs=warmup_steps,
        decay_epochs=rest,
        decay_rate=1.0,  # the power of the polynomial
        num_epochs=steps,
    )
    return np.asarray(table[:steps], np.float32)


@_sum_of_squares.register("Tensor")
def _square_sum(gradient: ms.Tensor) -> ms.Tensor:
    return sum_of_squares(gradient)


def global_norm(gradients: tuple[ms.Tensor, ...], is_part: tuple[bool, ...] = ()) -> ms.Tensor:
    """Return the 2-norm of all gradients, a () float32 tensor; it is not finite if an element is not.

    is_part: of which of them each rank has other rows; then every rank must call this function.
    """
    squares = _map(_sum_of_squares, gradients)
    if len(is_part) == 0:
        return ops.sqrt(add_all(squares))
    own = add_all([squares[k] for k, cut in enumerate(is_part) if cut])
    total = sum_over_ranks((own,))[0]
    for k, cut in enumerate(is_part):
        if not cut:
            total = total + squares[k]
    return ops.sqrt(total)


@_add.register("Tensor", "Tensor")
def _add_to(total: ms.Tensor, tensor: ms.Tensor) -> ms.Tensor:
    return assign_add(total, tensor)


def add_to(totals: tuple[ms.Parameter, ...], tensors: tuple[ms.Tensor, ...]) -> None:
    """Add to each parameter a tensor, in place."""
    _map(_add, totals, tensors)


def unscale_factor(norm: np.float32, scale: np.float32, limit: float) -> np.float32:
    """Return the factor that divides gradients by `scale` and brings their `norm`, after it, down to at most `limit`.

    All are float32, as a graph would compute them.
    """
    factor, one = np.float32(1) / scale, np.float32(1)
    return factor if math.isinf(limit) else factor * min(np.float32(limit) / (norm + np.float32(CLIP_EPS)), one)


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) with the bias correction and the epsilon of PyTorch.

    A step is `begin` and then, for each of the weights, `update`.
    """

    def __init__(
        self, weights: Sequence[ms.Parameter | HostBuffer], betas: tuple[float, float], eps: float, weight_decay: float
    ):
        self.weights = weights
        self.moment1, self.moment2 = self._zeros("adam_m"), self._zeros("adam_v")
        # The betas to the power of the steps, multiplied step by step in float32.
        self.power1 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta1_power")
        self.power2 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta2_power")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.step: tuple = ()

    def begin(self, learning_rate: float, taken: int) -> None:
        """Begin a step; `taken`: the steps before it."""
        self.step = adam_step(learning_rate, taken, self.advance(), self.betas, self.eps, self.weight_decay)

    def advance(self) -> tuple[np.float32, np.float32]:
        """Return the betas to the power of the step that begins."""
        powers = []
        for power, beta in zip((self.power1, self.power2), self.betas, strict=True):
            powers.append(np.float32(power.asnumpy()) * np.float32(beta))
            power.set_data(ms.Tensor(powers[-1], ms.float32))
        return powers[0], powers[1]

    def update(self, number: int, gradient: ms.Tensor) -> ms.Tensor:
        """Update the weight of this number in place, and return it; gradient: float32, of its shape."""
        return adam(self.step, self.weights[number], self.moment1[number], self.moment2[number], gradient)

    def _zeros(self, prefix: str) -> Sequence[ms.Parameter | HostBuffer]:
        """Return zeros like each weight; the host gives them no memory, as they only go to the device."""
        arrays = [np.zeros(weight.shape, np.float32) for weight in self.weights]
        named = [
            (ms.Tensor.from_numpy(array), f"{prefix}.{w.name}") for array, w in zip(arrays, self.weights, strict=True)
        ]
        return ms.ParameterTuple([ms.Parameter(tensor, name=name, requires_grad=False) for tensor, name in named])
