"""One training step as one compiled graph: loss, gradients, mean over ranks, clipping, AdamW, EMA weights."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import mint, nn, ops

from latte.components.codec import LOGVAR_RANGE
from latte.diffusion.loss import DiffusionLoss
from latte.runtime import device
from latte.runtime.tensors import assign, assign_add, mean, narrow, read, rows, split, stack
from latte.training.collective import is_shared, join_parts, own_part, sum_over_ranks
from latte.training.optim import AdamW, clip_factor, global_norm, multiply, update_ema

if TYPE_CHECKING:
    from latte.models import AutoencoderKL, Latte
    from latte.models.latte_t2v import LatteT2V

SUMS = ("loss", "mse", "bound", "batches", "grad_norm", "updates", "skipped_videos")  # sums since the last report
MAX_LOSS_SCALE = 2.0**24

_map = ops.HyperMap()
_add = ops.MultitypeFuncGraph("accumulate")
_clear = ops.MultitypeFuncGraph("clear")
_plus = ops.MultitypeFuncGraph("plus")
_or_zero = ops.MultitypeFuncGraph("or_zero")
_keep = ops.MultitypeFuncGraph("keep")


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The settings of a training step; `latte.config.train` explains the options behind them."""

    accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = math.inf  # infinity = no clipping
    start_clip_step: int = 0
    ema_decay: float = 0.9999
    loss_scale: float = 1.0
    loss_scale_window: int = 0  # 0 = the loss scale is static
    scale_factor: float = 0.18215
    images: int = 0  # single images after the frames of each video
    zero_stage: int = 0


class TextToVideo(nn.Cell):
    """A LatteT2V that takes text and mask as one argument, because the loss passes one condition."""

    def __init__(self, net: LatteT2V):
        super().__init__()
        self.net = net

    def construct(self, x: ms.Tensor, t: ms.Tensor, condition: tuple[ms.Tensor, ms.Tensor]) -> ms.Tensor:
        """Return the output (B, F, 2C, H, W) of the network; condition: text (B, S, D) and mask (B, S)."""
        return self.net(x, t, condition[0], condition[1])


class TrainStep(nn.Cell):
    """A network, its EMA weights, and everything else that a training step changes, as parameters.

    A call takes a batch and returns its loss; every `accumulation` calls the weights change. With `vae` the first input
    is pixels, else moments of the posterior. learning_rates: (steps,) float32, one per step.
    """

    def __init__(
        self,
        net: Latte | LatteT2V,
        ema: Latte | LatteT2V | None,
        vae: AutoencoderKL | None,
        learning_rates: np.ndarray,
        options: StepOptions,
    ):
        super().__init__()
        self.net, self.ema, self.vae, self.options = net, ema, vae, options
        takes_text = net.config.conditioning == "prompt"
        self.loss = DiffusionLoss(TextToVideo(net) if takes_text else net)
        self.takes_labels = net.config.conditioning == "class"
        self.names = [name for name, weight in net.parameters_and_names() if weight.requires_grad]
        by_name, ema_by_name = dict(net.parameters_and_names()), dict(ema.parameters_and_names()) if ema else {}
        self.weights = ms.ParameterTuple([by_name[name] for name in self.names])
        self.ema_weights = ms.ParameterTuple([ema_by_name[name] for name in self.names]) if ema else ()
        # With ZeRO-1 (Rajbhandari et al., 2020) a rank updates its part of a weight and then gathers the other parts.
        self.shared = [is_shared(weight, options.zero_stage) for weight in self.weights]
        parts = [_part(weight) if cut else weight for weight, cut in zip(self.weights, self.shared, strict=True)]
        self.optimizer = AdamW(parts, options.betas, options.eps, options.weight_decay)
        self.branches = device.current().branches_in_graphs
        self.scales_loss = options.loss_scale != 1 or options.loss_scale_window > 0
        accumulates = options.accumulation > 1
        self.accumulated = self.weights.clone(prefix="sum", init="zeros") if accumulates else ()
        self.learning_rates = ms.Tensor(learning_rates, ms.float32)
        self.batch = _counter("batch", 0, ms.int32)  # batches accumulated since the last step
        self.step = _counter("step", 0, ms.int32)  # optimizer steps so far, with the skipped ones
        self.skipped = _counter("skipped", 0, ms.int32)  # steps skipped because of an overflow
        self.good_steps = _counter("good_steps", 0, ms.int32)  # steps since the loss scale last changed
        self.loss_scale = _counter("loss_scale", options.loss_scale, ms.float32)
        self.sums = ms.Parameter(ms.Tensor(np.zeros(len(SUMS)), ms.float32), name="sums", requires_grad=False)
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, self.weights, has_aux=True)

    def construct(
        self,
        x: ms.Tensor,
        posterior_noise: ms.Tensor,
        t: ms.Tensor,
        noise: ms.Tensor,
        skipped_videos: ms.Tensor,
        condition: ms.Tensor | None = None,
        mask: ms.Tensor | None = None,
    ) -> ms.Tensor:
        """Train on a batch and return its mean loss, a () float32 tensor.

        x: pixels (B, F, 3, H, W) in [-1, 1], or moments (B, F, 2 L, h, w); posterior_noise, noise: (B, F, L, h, w);
        t: (B,) int32; skipped_videos: (B, n) int32, filled up with -1; condition: labels (B, 1 + images) int32, or
        CLIP text (B, 77, 768), or for a LatteT2V text (B, S, D) with its mask (B, S).
        """
        if mask is not None:
            condition = (condition, mask)
        x_start = self.latents(x, posterior_noise)  # (B, F, L, h, w)
        scale = read(self.loss_scale) if self.scales_loss else 1.0
        (_, loss, mse, bound), gradients = self.value_and_grad(x_start, t, noise, condition, scale)
        one, zero = ops.ones_like(loss), ops.zeros_like(loss)
        videos = (skipped_videos >= 0).astype(ms.float32).sum()
        assign_add(self.sums, stack((loss, mse, bound, one, zero, zero, videos)))
        if self.options.accumulation == 1:
            self.update(gradients, scale)
        elif not self.branches:
            self.accumulate(gradients, scale)
        else:
            _map(_add, self.accumulated, gradients)
            batch = self.batch + 1
            if batch == self.options.accumulation:
                self.update(self.accumulated, scale)
                _map(_clear, self.accumulated)
                batch = batch * 0
            assign(self.batch, batch)
        return loss

    def accumulate(self, gradients: tuple[ms.Tensor, ...], scale: ms.Tensor) -> None:
        """Take the gradients of a batch without a branch: always update, but by nothing until the last batch."""
        batch = read(self.batch) + 1
        last = batch == self.options.accumulation
        sums = _map(_plus, self.accumulated, gradients)
        self.update(sums, scale, last)
        _map(ops.partial(_keep, ops.logical_not(last)), self.accumulated, sums)
        assign(self.batch, ops.where(last, 0, batch).astype(ms.int32))

    def latents(self, x: ms.Tensor, posterior_noise: ms.Tensor) -> ms.Tensor:
        """Return scaled latents drawn from the posterior of pixels or moments (Kingma and Welling, 2014, eq. 10)."""
        if self.vae is not None:
            b, f = x.shape[:2]
            moments = self.vae.encode(x.reshape(b * f, *x.shape[2:]))  # (B F, 2 L, h, w)
            x = ops.stop_gradient(moments.reshape(b, f, *moments.shape[1:]))
        centre, logvar = split(x, x.shape[2] // 2, 2)  # (B, F, L, h, w)
        std = ops.exp(0.5 * ops.clamp(logvar, *LOGVAR_RANGE))
        return (centre + std * posterior_noise) * self.options.scale_factor

    def scaled_loss(
        self, x_start: ms.Tensor, t: ms.Tensor, noise: ms.Tensor, condition: Any, scale: ms.Tensor | float = 1.0
    ) -> tuple[ms.Tensor, ...]:
        """Return the mean loss of a batch times the loss scale; then the loss, its squared error and its VLB term."""
        images = self.options.images
        frames = x_start.shape[1] - images
        of_video = [narrow(a, 1, 0, frames) if images else a for a in (x_start, noise)]
        terms = self.loss(of_video[0], t, of_video[1], self.condition_of(condition, 0))  # 3 x (B,)
        loss, mse, bound = mean(terms[0]), mean(terms[1]), mean(terms[2])
        if images:
            of_images = [_as_videos(narrow(a, 1, frames, a.shape[1])) for a in (x_start, noise)]  # (B n, 1, L, h, w)
            t = ops.repeat_interleave(t, images)  # (B n,)
            terms = self.loss(of_images[0], t, of_images[1], self.condition_of(condition, 1))
            share = images / x_start.shape[1]  # every frame has the same weight
            loss = loss * (1 - share) + mean(terms[0]) * share
            mse = mse * (1 - share) + mean(terms[1]) * share
            bound = bound * (1 - share) + mean(terms[2]) * share
        return loss * scale if self.scales_loss else loss, loss, mse, bound

    def condition_of(self, condition: Any, part: int) -> Any:
        """Return the condition of the network: for the videos (part 0), or for the single images (part 1)."""
        if not self.takes_labels:
            return condition
        first, last = (1, condition.shape[1]) if part else (0, 1)
        return narrow(condition, 1, first, last).reshape(-1)

    def update(self, gradients: tuple[ms.Tensor, ...], scale: ms.Tensor, last: ms.Tensor | None = None) -> ms.Tensor:
        """Update the weights by the accumulated gradients of all ranks, unless an element is not finite.

        With `last`, a () bool tensor, nothing changes where it is false.
        Return the norm of the gradients: a branch that returns None would have MindSpore call Python from the graph.
        """
        options = self.options
        count = options.accumulation * device.current().world_size
        gradients = sum_over_ranks(gradients)
        if self.scales_loss:
            gradients = multiply(gradients, 1 / (scale * count))
        elif count > 1:
            gradients = multiply(gradients, ms.Tensor(1 / count, ms.float32))
        norm = global_norm(gradients)
        finite = ops.isfinite(norm)
        applies = finite if last is None else ops.logical_and(finite, last)
        step = read(self.step)
        if not self.branches:
            zeroed = _map(ops.partial(_or_zero, applies), gradients)  # what is not finite is not so times 0 either
            self.apply(zeroed, norm, step, applies)
        elif finite:
            norm = self.apply(gradients, norm, step, None)
        one, zero = ops.ones_like(norm), ops.zeros_like(norm)
        seen, counted = ops.where(applies, norm, zero), ops.where(applies, one, zero)
        assign_add(self.sums, stack((zero, zero, zero, zero, seen, counted, zero)))
        done = one if last is None else ops.where(last, one, zero)  # () float32, 1 for a step
        assign(self.skipped, self.skipped + (done - counted).astype(ms.int32))
        if options.loss_scale_window:
            self.rescale(finite, scale, last)
        assign(self.step, step + done.astype(ms.int32))
        return norm

    def apply(
        self, gradients: tuple[ms.Tensor, ...], norm: ms.Tensor, step: ms.Tensor, applies: ms.Tensor | None
    ) -> ms.Tensor:
        """Clip the gradients, update weights and EMA weights, all unless `applies` is false; return the norm."""
        options = self.options
        if not math.isinf(options.max_grad_norm):
            factor = clip_factor(norm, options.max_grad_norm)
            factor = ops.where(step >= options.start_clip_step, factor, ops.ones_like(factor))
            if applies is not None:
                factor = ops.where(applies, factor, ops.ones_like(factor))
            gradients = multiply(gradients, factor)
        learning_rate = rows(self.learning_rates, step.reshape(1)).reshape(())
        if not any(self.shared):
            weights = self.optimizer(gradients, learning_rate, applies)
        else:
            own = [own_part(g) if cut else g for g, cut in zip(gradients, self.shared)]  # noqa: B905, in a graph
            parts = self.optimizer(tuple(own), learning_rate, applies)
            weights = []
            for weight, part, cut in zip(self.weights, parts, self.shared):  # noqa: B905, in a graph
                joined = join_parts(part) if cut else part
                if cut:
                    assign(weight, joined)
                weights.append(joined)
        if self.ema is not None:
            update_ema(self.ema_weights, tuple(weights), options.ema_decay, applies)
        return norm

    def rescale(self, finite: ms.Tensor, scale: ms.Tensor, last: ms.Tensor | None) -> None:
        """Halve the loss scale after an overflow; double it after loss_scale_window steps without one."""
        before = read(self.good_steps)
        good = ops.where(finite, before + 1, 0)
        grow = good >= self.options.loss_scale_window
        factor = ops.where(finite, ops.where(grow, 2.0, 1.0), 0.5)
        rescaled, good = ops.clamp(scale * factor, 1.0, MAX_LOSS_SCALE), ops.where(grow, 0, good)
        if last is not None:
            rescaled, good = ops.where(last, rescaled, scale), ops.where(last, good, before)
        assign(self.loss_scale, rescaled)
        assign(self.good_steps, good.astype(ms.int32))


@_add.register("Tensor", "Tensor")
def _add_to(total: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return assign_add(total, gradient)


@_plus.register("Tensor", "Tensor")
def _sum(total: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return total + gradient


@_or_zero.register("Tensor", "Tensor")
def _zero_unless(condition: ms.Tensor, gradient: ms.Tensor) -> ms.Tensor:
    return ops.where(condition, gradient, ms.Tensor(0.0, ms.float32))


@_keep.register("Tensor", "Tensor", "Tensor")
def _keep_if(condition: ms.Tensor, total: ms.Tensor, value: ms.Tensor) -> ms.Tensor:
    return assign(total, _zero_unless(condition, value))


@_clear.register("Tensor")
def _set_to_zero(total: ms.Tensor) -> ms.Tensor:
    return assign(total, mint.zeros_like(total))  # `ops.zeros_like` becomes a constant as large as the weight


def _as_videos(images: ms.Tensor) -> ms.Tensor:
    """Return images (B, n, ...) as videos of one frame, (B n, 1, ...)."""
    return images.reshape(-1, 1, *images.shape[2:])


def _counter(name: str, value: float, dtype: ms.Type) -> ms.Parameter:
    return ms.Parameter(ms.Tensor(value, dtype), name=name, requires_grad=False)


def _part(weight: ms.Parameter) -> ms.Parameter:
    return ms.Parameter(own_part(weight), name=f"part.{weight.name}")
