"""Learning rates, AdamW, the average of the weights, and the norm of gradients, as parts of a compiled step."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindcv.scheduler import create_scheduler
from mindspore import nn, ops

from latte.errors import UserError
from latte.ops import sum_of_squares

SCHEDULERS = {"constant": "constant", "cosine": "cosine_decay", "polynomial": "polynomial_decay"}  # mindcv's names
CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_

_adam = ops.Adam()
_map = ops.HyperMap()
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_decay = ops.MultitypeFuncGraph("decay")
_update = ops.MultitypeFuncGraph("update")
_average = ops.MultitypeFuncGraph("average")
_multiply = ops.MultitypeFuncGraph("multiply")


def learning_rates(scheduler: str, start: float, end: float, warmup_steps: int, steps: int) -> np.ndarray:
    """Return the learning rate of each of `steps` steps, (steps,) float32.

    It grows linearly from 0 over `warmup_steps`; then it is constant, or goes to `end` along a cosine
    (Loshchilov and Hutter, 2017, equation 5) or a line. Raises UserError if the warm-up takes all steps.
    """
    rest = steps - warmup_steps
    if rest < 1:
        raise UserError(f"warmup_steps is {warmup_steps}, but there are only {steps} steps; see max_steps and epochs")
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


def global_norm(gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
    """Return the square root of the sum of all squares, a float32 scalar; it is not finite if any number is not."""
    return ops.sqrt(ops.addn(_map(_sum_of_squares, gradients)))


@_multiply.register("Tensor", "Tensor")
def _times(factor: ms.Tensor, tensor: ms.Tensor) -> ms.Tensor:
    return tensor * factor


def multiply(tensors: tuple[ms.Tensor, ...], factor: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return all tensors times a scalar."""
    return _map(ops.partial(_multiply, factor), tensors)


def clip_factor(norm: ms.Tensor, limit: float) -> ms.Tensor:
    """Return what gradients of this norm are multiplied with so that it is at most `limit`."""
    return ops.minimum(limit / (norm + CLIP_EPS), ms.Tensor(1.0, ms.float32))


@_average.register("Tensor", "Tensor", "Tensor")
def _move_average(rest: ms.Tensor, average: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
    return ops.assign_add(average, (weight - average) * rest)


def update_average(averages: tuple[ms.Parameter, ...], weights: tuple[ms.Parameter, ...], decay: float) -> None:
    """Set each average to decay * average + (1 - decay) * weight."""
    rest = ms.Tensor(1 - decay, ms.float32)  # the difference is taken in float64
    _map(ops.partial(_average, rest), averages, weights)


class AdamW(nn.Cell):
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) with bias correction and epsilon where PyTorch has them.

    `weights` are updated in place. The fused Adam of MindSpore adds epsilon to the uncorrected root; given
    epsilon * sqrt(1 - beta2^t) it computes what PyTorch computes.
    """

    def __init__(self, weights: list[ms.Parameter], betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__()
        self.weights = ms.ParameterTuple(weights)
        self.moment1 = self.weights.clone(prefix="adam_m", init="zeros")
        self.moment2 = self.weights.clone(prefix="adam_v", init="zeros")
        self.power1 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta1_power")
        self.power2 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta2_power")
        self.beta1, self.beta2 = (ms.Tensor(beta, ms.float32) for beta in betas)
        self.eps, self.weight_decay = eps, weight_decay

    def construct(self, gradients: tuple[ms.Tensor, ...], learning_rate: ms.Tensor) -> None:
        """Update the weights by float32 gradients."""
        power1, power2 = self.power1 * self.beta1, self.power2 * self.beta2
        ops.assign(self.power1, power1)
        ops.assign(self.power2, power2)
        eps = self.eps * ops.sqrt(1 - power2)
        if self.weight_decay:
            gradients = _map(ops.partial(_decay, 1 - learning_rate * self.weight_decay), self.weights, gradients)
        update = ops.partial(_update, power1, power2, learning_rate, self.beta1, self.beta2, eps)
        _map(update, self.weights, self.moment1, self.moment2, gradients)


@_decay.register("Tensor", "Tensor", "Tensor")
def _decayed(decay: ms.Tensor, weight: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    """Shrink the weight, and return its gradient, which is there only after that."""
    return ops.depend(gradient, ops.assign(weight, weight * decay))


@_update.register(*["Tensor"] * 10)
def _adam_of(
    power1: ms.Tensor,
    power2: ms.Tensor,
    learning_rate: ms.Tensor,
    beta1: ms.Tensor,
    beta2: ms.Tensor,
    eps: ms.Tensor,
    weight: ms.Tensor,
    moment1: ms.Tensor,
    moment2: ms.Tensor,
    gradient: ms.Tensor,
) -> ms.Tensor:
    return _adam(weight, moment1, moment2, power1, power2, learning_rate, beta1, beta2, eps, gradient)[0]
