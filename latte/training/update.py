"""The second half of a training step: the host decides about the gradients, and queues what they change.

It is no graph: a graph would hold its inputs, gradients as large as the weights, until it is called again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from latte.ops import move_towards
from latte.runtime import device, graphs
from latte.runtime.tensors import clear
from latte.training.collective import join_parts, own_part, sum_over_ranks
from latte.training.host import HostAdamW, move_average
from latte.training.optim import global_norm, unscale_factor
from latte.training.stacks import spread

if TYPE_CHECKING:
    from latte.training.step import TrainStep

SUMS = ("loss", "mse", "bound", "batches", "grad_norm", "updates", "skipped_videos")  # sums since the last report
MAX_LOSS_SCALE = 2.0**24


class CompiledStep:
    """A training step as a function of its batches."""

    def __init__(self, step: TrainStep):
        self.step, self.gradients = step, graphs.compile_training(step.construct)
        self.numbers: list[ms.Tensor] = []  # of the batches since the last step

    def __call__(self, *batch: ms.Tensor) -> ms.Tensor:
        """Train on a batch and return its mean loss, a () float32 tensor; every `accumulation` calls weights change."""
        return self.finish(self.gradients(*batch))

    def finish(self, results: tuple[ms.Tensor, ...]) -> ms.Tensor:
        """Do what follows the gradients of a batch, the results of the step's cell; return the loss."""
        loss, numbers, *gradients = results
        del results
        step, accumulation = self.step, self.step.options.accumulation
        self.numbers.append(numbers)
        if len(self.numbers) < accumulation:
            set_counter(step.batch, len(self.numbers))
            return loss
        norm = None
        if step.accumulates:
            gradients = list(step.accumulated if step.shares_gradients else sum_over_ranks(step.accumulated))
            norm = global_norm(tuple(gradients), step.parts)
        rows = [tensor.asnumpy() for tensor in self.numbers]  # the host waits for the device here, and nowhere else
        self.numbers = []
        set_counter(step.batch, 0)
        self._decide(rows, rows[-1][4] if norm is None else np.float32(norm.asnumpy()), gradients)
        for total in step.accumulated:
            clear(total)
        return ms.Tensor(rows[-1][0], ms.float32)

    def _decide(self, rows: list[np.ndarray], norm: np.float32, gradients: list[ms.Tensor]) -> None:
        """Update the weights by these gradients of all ranks, unless an element is not finite, and count."""
        step, options = self.step, self.step.options
        count = options.accumulation * device.current().data_ranks  # those that share frames have parts of one loss
        scale = np.float32(step.loss_scale.asnumpy()) * np.float32(count)
        norm = norm * (np.float32(1) / scale)
        taken, skipped = int(step.step.asnumpy()), int(step.skipped.asnumpy())
        finite = bool(np.isfinite(norm))
        if finite:
            limit = options.max_grad_norm if taken >= options.start_clip_step else math.inf
            learning_rate = float(step.learning_rates[taken])
            self._update(gradients, unscale_factor(norm, scale, limit), learning_rate, taken - skipped)
        else:
            set_counter(step.skipped, skipped + 1)
        sums = step.sums.asnumpy().copy()
        for loss, mse, bound, videos, *_ in rows:
            sums += np.array([loss, mse, bound, 1, 0, 0, videos], np.float32)
        sums += np.array([0, 0, 0, 0, *((norm, 1) if finite else (0, 0)), 0], np.float32)
        set_counter(step.sums, sums)
        if options.loss_scale_window:
            self._rescale(finite)
        set_counter(step.step, taken + 1)

    def _update(self, gradients: list[ms.Tensor], factor: np.float32, learning_rate: float, taken: int) -> None:
        """Update weights and EMA weights by gradients times `factor`; `taken`: the updates before this one."""
        step = self.step
        step.optimizer.begin(learning_rate, taken)
        for number, group in enumerate(step.groups):
            gradient, gradients[number] = gradients[number], None  # so that its memory is free as soon as it is used
            if group.is_part and not step.shares_gradients:
                gradient = own_part(gradient)
            if isinstance(step.optimizer, HostAdamW):
                self._update_on_host(step.optimizer, number, gradient, factor)
                continue
            if factor != 1:
                gradient = gradient * float(factor)
            weights = step.optimizer.update(number, gradient)
            gathers = bool(group.shapes)  # in its block
            whole = join_parts(weights) if group.is_part and not gathers else weights
            if step.has_ema:
                new = weights if step.shares_gradients else whole
                move_towards(step.ema_weights[number], new, 1 - step.options.ema_decay)
            if (step.stacks or group.is_part) and not gathers:
                spread(group, whole, step.weights)

    def _update_on_host(self, optimizer: HostAdamW, number: int, gradient: ms.Tensor, factor: np.float32) -> None:
        """Do the same for one of the buffers where AdamW and the EMA weights are on the host."""
        step, group = self.step, self.step.groups[number]
        new = optimizer.new_weights(number, gradient.asnumpy(), factor)
        part = ms.Tensor(new)
        whole = join_parts(part) if group.is_part else part
        if step.has_ema:
            if group.is_part and not step.shares_gradients:
                new = whole.asnumpy()
            move_average(step.ema_weights[number], new, 1 - step.options.ema_decay)
        spread(group, whole, step.weights)

    def _rescale(self, finite: bool) -> None:
        """Halve the loss scale after an overflow; double it after loss_scale_window steps without one."""
        step = self.step
        good = int(step.good_steps.asnumpy()) + 1 if finite else 0
        grows = good >= step.options.loss_scale_window
        if grows or not finite:
            scale = np.float32(step.loss_scale.asnumpy()) * np.float32(2 if grows else 0.5)
            step.set_loss_scale(float(np.clip(scale, 1, MAX_LOSS_SCALE)))
        set_counter(step.good_steps, 0 if grows else good)


def set_counter(counter: ms.Parameter, value: Any) -> None:
    """Set a parameter that no graph reads, on the host."""
    counter.set_data(ms.Tensor(value, counter.dtype))
