"""Learning rates, AdamW, EMA weights and the norm of gradients, as parts of a compiled step."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindcv.scheduler import create_scheduler
from mindspore import nn, ops

from latte.errors import UserError
from latte.ops import adam, sum_of_squares
from latte.runtime.tensors import add_all, assign, assign_add

SCHEDULERS = {"constant": "constant", "cosine": "cosine_decay", "polynomial": "polynomial_decay"}  # mindcv's names
CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_

_map = ops.HyperMap()
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_update = ops.MultitypeFuncGraph("update")
_ema = ops.MultitypeFuncGraph("ema")
_multiply = ops.MultitypeFuncGraph("multiply")


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


def global_norm(gradients: tuple[ms.Tensor, ...]) -> ms.Tensor:
    """Return the 2-norm of all gradients, a () float32 tensor; it is not finite if an element is not."""
    return ops.sqrt(add_all(_map(_sum_of_squares, gradients)))


@_multiply.register("Tensor", "Tensor")
def _times(factor: ms.Tensor, tensor: ms.Tensor) -> ms.Tensor:
    return tensor * factor


def multiply(tensors: tuple[ms.Tensor, ...], factor: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return all tensors, each multiplied by a () tensor."""
    return _map(ops.partial(_multiply, factor), tensors)


def clip_factor(norm: ms.Tensor, limit: float) -> ms.Tensor:
    """Return the factor that brings gradients of this norm down to a norm of at most `limit`."""
    return ops.minimum(limit / (norm + CLIP_EPS), ms.Tensor(1.0, ms.float32))


@_ema.register("Tensor", "Tensor", "Tensor")
def _move_ema(rest: ms.Tensor, ema: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
    return assign_add(ema, (weight - ema) * rest)


def update_ema(
    ema_weights: tuple[ms.Parameter, ...],
    weights: tuple[ms.Tensor, ...],
    decay: float,
    applies: ms.Tensor | None = None,
) -> None:
    """Set each EMA weight to decay * EMA weight + (1 - decay) * weight, in place, unless `applies`, (), is false."""
    rest = ms.Tensor(1 - decay, ms.float32)  # Python computes 1 - decay in float64
    if applies is not None:
        rest = ops.where(applies, rest, ops.zeros_like(rest))
    _map(ops.partial(_ema, rest), ema_weights, weights)


class AdamW(nn.Cell):
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) with the bias correction and the epsilon of PyTorch.

    `weights` are updated in place. MindSpore's fused Adam adds epsilon to the root before its bias correction; given
    epsilon * sqrt(1 - beta2^t) it computes the same as PyTorch.
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

    def construct(
        self, gradients: tuple[ms.Tensor, ...], learning_rate: ms.Tensor, applies: ms.Tensor | None = None
    ) -> tuple[ms.Tensor, ...]:
        """Update the weights and return their new values.

        gradients: float32, one per weight, learning_rate: a () float32 tensor. Where `applies`, a () bool tensor, is
        false, gradients must be 0, and nothing changes.
        """
        beta1, beta2 = self.beta1, self.beta2
        power1, power2 = self.power1 * beta1, self.power2 * beta2
        if applies is None:
            assign(self.power1, power1)
            assign(self.power2, power2)
        else:
            kept1, kept2 = ops.where(applies, power1, self.power1), ops.where(applies, power2, self.power2)
            assign(self.power1, kept1)
            assign(self.power2, kept2)
            learning_rate = ops.where(applies, learning_rate, ops.zeros_like(learning_rate))
            beta1 = ops.where(applies, beta1, ops.ones_like(beta1))
            beta2 = ops.where(applies, beta2, ops.ones_like(beta2))
        decay = 1 - learning_rate * self.weight_decay if self.weight_decay else None
        step = (power1, power2, learning_rate, beta1, beta2, self.eps * ops.sqrt(1 - power2), decay)
        return _map(ops.partial(_update, step), self.weights, self.moment1, self.moment2, gradients)


_update.register("Tuple", "Tensor", "Tensor", "Tensor", "Tensor")(adam)
