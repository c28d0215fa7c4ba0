"""Learning rates, AdamW, EMA weights and the norm of gradients, as parts of a compiled step."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindcv.scheduler import create_scheduler
from mindspore import mint, nn, ops

from latte.errors import UserError
from latte.ops import adam, adam_step, host_scalar, move_towards, sum_of_squares
from latte.runtime.tensors import add_all, assign, assign_add

SCHEDULERS = {"constant": "constant", "cosine": "cosine_decay", "polynomial": "polynomial_decay"}  # mindcv's names
CLIP_EPS = 1e-6  # PyTorch's, in clip_grad_norm_

_map = ops.HyperMap()
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_update = ops.MultitypeFuncGraph("update")
_ema = ops.MultitypeFuncGraph("ema")
_multiply = ops.MultitypeFuncGraph("multiply")
_add = ops.MultitypeFuncGraph("add_to")
_set = ops.MultitypeFuncGraph("set_to")
_clear = ops.MultitypeFuncGraph("clear")


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


@_add.register("Tensor", "Tensor")
def _add_to(total: ms.Tensor, tensor: ms.Tensor) -> ms.Tensor:
    return assign_add(total, tensor)


def add_to(totals: tuple[ms.Parameter, ...], tensors: tuple[ms.Tensor, ...]) -> None:
    """Add to each parameter a tensor, in place."""
    _map(_add, totals, tensors)


@_set.register("Tensor", "Tensor")
def _set_to(parameter: ms.Tensor, tensor: ms.Tensor) -> ms.Tensor:
    return assign(parameter, tensor)


def set_to(parameters: tuple[ms.Parameter, ...], tensors: tuple[ms.Tensor, ...]) -> None:
    """Set each parameter to a tensor, in place."""
    _map(_set, parameters, tensors)


@_clear.register("Tensor")
def _set_to_zero(total: ms.Tensor) -> ms.Tensor:
    return assign(total, mint.zeros_like(total))  # `ops.zeros_like` becomes a constant as large as the weight


def clear(totals: tuple[ms.Parameter, ...]) -> None:
    """Set parameters to zero, in place."""
    _map(_clear, totals)


def clip_factor(norm: ms.Tensor, limit: float) -> ms.Tensor:
    """Return the factor that brings gradients of this norm down to a norm of at most `limit`."""
    return ops.minimum(limit / (norm + CLIP_EPS), ms.Tensor(1.0, ms.float32))


def unscale_factor(norm: np.float32, scale: np.float32, limit: float) -> np.float32:
    """Return the factor that divides gradients by `scale` and brings their `norm`, after it, down to at most `limit`.

    All are float32, as a graph would compute them.
    """
    factor = np.float32(1) / scale
    return (
        factor if math.isinf(limit) else factor * min(np.float32(limit) / (norm + np.float32(CLIP_EPS)), np.float32(1))
    )


@_ema.register("Number", "Tensor", "Tensor")
def _move_ema(share: float, ema: ms.Tensor, weight: ms.Tensor) -> ms.Tensor:
    return move_towards(ema, weight, share)


def update_ema(ema_weights: tuple[ms.Parameter, ...], weights: tuple[ms.Tensor, ...], decay: float) -> None:
    """Set each EMA weight to decay * EMA weight + (1 - decay) * weight, in place."""
    _map(ops.partial(_ema, 1 - decay), ema_weights, weights)  # Python computes 1 - decay in float64


class AdamW(nn.Cell):
    """AdamW (Loshchilov and Hutter, 2019, algorithm 2) with the bias correction and the epsilon of PyTorch.

    `weights` are updated in place. A step is `optimizer(gradients, *optimizer.inputs(...))`, then `optimizer.count()`.
    """

    def __init__(self, weights: list[ms.Parameter], betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__()
        self.weights = ms.ParameterTuple(weights)
        self.moment1 = self.weights.clone(prefix="adam_m", init="zeros")
        self.moment2 = self.weights.clone(prefix="adam_v", init="zeros")
        self.power1 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta1_power")
        self.power2 = ms.Parameter(ms.Tensor(1.0, ms.float32), name="beta2_power")
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def construct(
        self,
        gradients: tuple[ms.Tensor, ...],
        learning_rate: Any,
        taken: ms.Tensor,
        power1: ms.Tensor,
        power2: ms.Tensor,
    ) -> tuple[ms.Tensor, ...]:
        """Update the weights and return their new values; gradients: float32, one per weight, the rest of `inputs`."""
        step = adam_step(learning_rate, taken, (power1, power2), self.betas, self.eps, self.weight_decay)
        return _map(ops.partial(_update, step), self.weights, self.moment1, self.moment2, gradients)

    def inputs(self, learning_rate: float, taken: int) -> tuple:
        """Return what a call of the compiled step takes from the host; `taken`: the steps before this one."""
        powers = [ms.Tensor(power, ms.float32) for power in self._powers()]
        return (host_scalar(learning_rate), ms.Tensor([taken], ms.float32), *powers)

    def count(self) -> None:
        """Note that the weights were updated."""
        for parameter, power in zip((self.power1, self.power2), self._powers(), strict=True):
            parameter.set_data(ms.Tensor(power, ms.float32))

    def _powers(self) -> list[np.float32]:
        """Return the betas to the power of the next step, multiplied step by step in float32 as states hold them."""
        powers = (self.power1, self.power2)
        return [np.float32(p.asnumpy()) * np.float32(beta) for p, beta in zip(powers, self.betas, strict=True)]


_update.register("Tuple", "Tensor", "Tensor", "Tensor", "Tensor")(adam)
