"""The second half of a training step: what becomes of gradients in a graph, and what the host decides about them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn

from latte.runtime import device, graphs
from latte.runtime.tensors import assign, views
from latte.training.collective import join_parts, own_part, sum_over_ranks
from latte.training.optim import clear, global_norm, multiply, set_to, unscale_factor, update_ema

if TYPE_CHECKING:
    from latte.training.step import TrainStep

SUMS = ("loss", "mse", "bound", "batches", "grad_norm", "updates", "skipped_videos")  # sums since the last report
MAX_LOSS_SCALE = 2.0**24


class Total(nn.Cell):
    """The norm of accumulated gradients, which become their sums over ranks."""

    def __init__(self, step: TrainStep):
        super().__init__()
        self.accumulated = step.accumulated

    def construct(self) -> ms.Tensor:
        """Return the norm, a () float32 tensor."""
        if device.current().world_size == 1:
            return global_norm(self.accumulated)
        sums = sum_over_ranks(self.accumulated)
        set_to(self.accumulated, sums)
        return global_norm(sums)


class Update(nn.Cell):
    """The change of weights and EMA weights by the gradients of a step."""

    def __init__(self, step: TrainStep):
        super().__init__()
        options = step.options
        self.shared, self.stacks = step.shared, step.stacks
        self.numbers, self.rows = step.numbers, [group.rows for group in step.groups]
        self.weights, self.ema_weights, self.accumulated = step.weights, step.ema_weights, step.accumulated
        self.optimizer, self.has_ema, self.ema_decay = step.optimizer, step.has_ema, options.ema_decay
        self.accumulates = step.accumulates
        count = options.accumulation * device.current().world_size
        self.rescales = step.scales_loss or count > 1 or not math.isinf(options.max_grad_norm)

    def construct(
        self,
        factor: ms.Tensor,
        learning_rate: Any,
        taken: ms.Tensor,
        power1: ms.Tensor,
        power2: ms.Tensor,
        *gradients: ms.Tensor,
    ) -> ms.Tensor:
        """Update all by gradients times `factor`, () float32, and return it; the others are the optimizer's inputs."""
        own = self.accumulated if self.accumulates else gradients
        if any(self.shared):
            own = [own_part(g) if cut else g for g, cut in zip(own, self.shared)]  # noqa: B905, in a graph
        if self.rescales:
            own = multiply(tuple(own), factor)
        buffers = self.optimizer(tuple(own), learning_rate, taken, power1, power2)
        if any(self.shared):
            buffers = tuple([join_parts(b) if cut else b for b, cut in zip(buffers, self.shared)])  # noqa: B905
        if self.has_ema:
            update_ema(self.ema_weights, buffers, self.ema_decay)
        for numbers, rows, cut, buffer in zip(self.numbers, self.rows, self.shared, buffers):  # noqa: B905
            if self.stacks:
                for number, part in zip(numbers, views(buffer, rows)):  # noqa: B905
                    assign(self.weights[number], part)
            elif cut:
                assign(self.weights[numbers[0]], buffer)
        if self.accumulates:
            clear(self.accumulated)
        return factor


class CompiledStep:
    """A training step as a function; it also counts, and decides what a step comes to."""

    def __init__(self, step: TrainStep):
        self.step = step
        self.gradients = graphs.compile_training(step.construct)
        self.total = graphs.compile_training(Total(step).construct) if step.accumulates else None
        self.update = graphs.compile_training(Update(step).construct)
        self.numbers: list[ms.Tensor] = []  # of the batches since the last step

    def __call__(self, *batch: ms.Tensor) -> ms.Tensor:
        """Train on a batch and return its mean loss, a () float32 tensor; every `accumulation` calls weights change."""
        return self.finish(self.gradients(*batch))

    def finish(self, results: tuple[ms.Tensor, ...]) -> ms.Tensor:
        """Do what follows the gradients of a batch, the results of the step's cell; return the loss."""
        loss, numbers, *gradients = results
        step, accumulation = self.step, self.step.options.accumulation
        self.numbers.append(numbers)
        if len(self.numbers) < accumulation:
            set_counter(step.batch, len(self.numbers))
            return loss
        norm = None if self.total is None else self.total()
        rows = [tensor.asnumpy() for tensor in self.numbers]  # the host waits for the device here
        self.numbers = []
        set_counter(step.batch, 0)
        self._take(rows, rows[-1][4] if norm is None else np.float32(norm.asnumpy()), gradients)
        return ms.Tensor(rows[-1][0], ms.float32)

    def _take(self, rows: list[np.ndarray], norm: np.float32, gradients: list[ms.Tensor]) -> None:
        """Update the weights by these gradients of all ranks, unless an element is not finite, and count."""
        step, options = self.step, self.step.options
        with np.errstate(all="ignore"):
            scale = np.float32(step.loss_scale.asnumpy()) * np.float32(
                options.accumulation * device.current().world_size
            )
            norm = norm * (np.float32(1) / scale)
        taken, skipped = int(step.step.asnumpy()), int(step.skipped.asnumpy())
        finite = bool(np.isfinite(norm))
        if finite:
            limit = options.max_grad_norm if taken >= options.start_clip_step else math.inf
            factor = ms.Tensor(unscale_factor(norm, scale, limit), ms.float32)
            learning_rate = float(step.learning_rates.asnumpy()[taken])
            self.update(factor, *step.optimizer.inputs(learning_rate, taken - skipped), *gradients)
            step.optimizer.count()
        else:
            set_counter(step.skipped, skipped + 1)
            for total in step.accumulated:
                assign(total, mint.zeros_like(total))
        sums = step.sums.asnumpy().copy()
        for loss, mse, bound, videos, *_ in rows:
            sums += np.array([loss, mse, bound, 1, 0, 0, videos], np.float32)
        sums += np.array([0, 0, 0, 0, *((norm, 1) if finite else (0, 0)), 0], np.float32)
        set_counter(step.sums, sums)
        if options.loss_scale_window:
            self._rescale(finite)
        set_counter(step.step, taken + 1)

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
