"""One training step: a compiled graph for the gradients of a batch, and one for AdamW and the EMA weights.

The host stands between them: it knows how many batches were accumulated and whether the gradients are finite.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.components.codec import LOGVAR_RANGE
from latte.diffusion.distillation import DistillationLoss
from latte.diffusion.loss import DiffusionLoss, Weighting
from latte.models.precision import set_trained_dtype
from latte.ops import join_parts, once_there, own_part
from latte.runtime import device
from latte.runtime.tensors import assign, mean, narrow, read, split, stack
from latte.training.collective import own_rows, sum_over_ranks, sum_to_parts
from latte.training.host import HostAdamW, moved
from latte.training.optim import AdamW, add_to, global_norm
from latte.training.sharing import share_blocks
from latte.training.stacks import buffer_of, groups_of, zeros_of
from latte.training.update import SUMS, CompiledStep, set_counter
from latte.weights.fingerprint import network_fingerprint

if TYPE_CHECKING:
    from latte.models import AutoencoderKL, Latte
    from latte.models.latte_t2v import LatteT2V


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
    offload: bool = False  # AdamW and the EMA weights are on the host
    loss_weighting: Weighting = "uniform"
    distill_steps: int = 0


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

    `as_function` gives the whole step; called as a cell, it only computes gradients. With `vae` the first input is
    pixels, else moments of the posterior. learning_rates: (steps,) float32, one per step. teacher: a frozen network to
    learn from, in options.distill_steps steps.
    Where the device stacks weights, those that are trained, their moments and EMA weights are in float32 buffers of
    like weights, `net` has copies in the dtype that it computes in, and the weights of `ema` are no longer needed.
    """

    def __init__(
        self,
        net: Latte | LatteT2V,
        ema: Latte | LatteT2V | None,
        vae: AutoencoderKL | None,
        learning_rates: np.ndarray,
        options: StepOptions,
        teacher: Latte | None = None,
    ):
        super().__init__()
        self.net, self.vae, self.options = net, vae, options
        self.takes_text = net.config.conditioning == "prompt"
        if teacher:
            self.loss: nn.Cell = DistillationLoss(net, teacher, options.distill_steps)
        else:
            self.loss = DiffusionLoss(TextToVideo(net) if self.takes_text else net, weighting=options.loss_weighting)
        self.takes_labels = net.config.conditioning == "class"
        self.learning_rates = learning_rates
        self.scales_loss = options.loss_scale != 1 or options.loss_scale_window > 0
        self.accumulates = options.accumulation > 1
        self._take_weights(net, ema)
        self._start_counting()
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, self.leaves, has_aux=True)

    def _take_weights(self, net: Latte | LatteT2V, ema: Latte | LatteT2V | None) -> None:
        """Choose what holds weights, EMA weights, moments and accumulated gradients, and fill it."""
        options = self.options
        self.names = [name for name, weight in net.parameters_and_names() if weight.requires_grad]
        by_name, ema_by_name = dict(net.parameters_and_names()), dict(ema.parameters_and_names()) if ema else {}
        self.weights = ms.ParameterTuple([by_name[name] for name in self.names])
        ema_weights = [ema_by_name[name] for name in self.names] if ema else []
        self.shapes = [weight.shape for weight in self.weights]  # with ZeRO stage 3 the networks have them no longer
        self.total, self.trained = (sum(weight.size for weight in each) for each in (by_name.values(), self.weights))
        parallel = device.current().world_size > 1
        self.start = network_fingerprint(net) if parallel else ""  # for the ranks to compare
        self.has_ema, self.stacks = ema is not None, device.current().stacks_weights
        blocks = share_blocks(net, ema, self.names) if parallel and options.zero_stage > 2 else []
        values, ema_values = (
            [w.asnumpy() for w in each] if self.stacks else [] for each in (self.weights, ema_weights)
        )
        if self.stacks:
            set_trained_dtype(net)
        # With ZeRO (Rajbhandari et al., 2020) a rank updates its part of a buffer and then gathers the other parts; in
        # stage 2 it has only this part of the gradients and EMA weights, which nothing but the update needs. In stage 3
        # the blocks' weights are in parts too, which come first among the groups, and among what gradients are of.
        of_blocks = [block.group for block in blocks]
        taken = {number for group in of_blocks for number in group.numbers}
        others = groups_of(self.weights, options.zero_stage, taken)
        self.groups = groups = [*of_blocks, *others]
        self.shared = [group.is_part for group in groups]
        self.shares_gradients = options.zero_stage > 1 and any(self.shared)  # and EMA weights
        self.parts = tuple(self.shared) if self.shares_gradients else ()  # of the gradients, for the graph
        self.gathered = len(blocks)  # groups whose weights are shared; their gradients come as sums
        self.ema = None if self.stacks or self.shares_gradients or options.offload else ema  # the network
        rest = [number for number in range(len(self.names)) if number not in taken]
        leaves = [block.part for block in blocks] + [self.weights[number] for number in rest]
        self.leaves = ms.ParameterTuple(leaves)  # of the graph
        places = {number: len(blocks) + place for place, number in enumerate(rest)}
        of_others = [tuple(places[number] for number in group.numbers) for group in others]
        self.numbers = [*((k,) for k in range(len(blocks))), *of_others]  # of the leaves in each group, for the graph
        if self.stacks:
            buffers = [buffer_of(group, values, f"weights.{k}") for k, group in enumerate(others)]
            averages = [buffer_of(group, ema_values, f"ema.{k}") for k, group in enumerate(others) if ema]
        else:
            buffers = [self.weights[number] for number in rest]
            averages = [ema_weights[number] for number in rest if ema]
        cuts = [group.is_part for group in others]
        if self.shares_gradients:
            averages = [_part(w, "ema") if cut else w for w, cut in zip(averages, cuts, strict=False)]
        del values, ema_values  # as large as the weights
        parts = [_part(buffer, "part") if cut else buffer for buffer, cut in zip(buffers, cuts, strict=True)]
        if options.offload:  # what the network computes with stays on the device
            averages = [moved(w) for w in averages]
            parts = [moved(part) if self.stacks or cut else part for part, cut in zip(parts, cuts, strict=True)]
        averages = [*(block.ema for block in blocks), *averages]
        self.ema_weights = tuple(averages) if options.offload else ms.ParameterTuple(averages) if ema else ()
        buffers, parts = ([block.part for block in blocks] + each for each in (buffers, parts))
        optimizer = HostAdamW if options.offload else AdamW
        self.optimizer = optimizer(parts, options.betas, options.eps, options.weight_decay)
        summed = (parts if self.shares_gradients else buffers) if self.accumulates else []
        sums = [zeros_of(buffer, f"sum.{k}") for k, buffer in enumerate(summed)]
        self.accumulated = ms.ParameterTuple(sums) if sums else ()

    def _start_counting(self) -> None:
        """Set what the host counts without asking the device, and the loss scale, which the graph reads."""
        self.batch = _counter("batch", 0, ms.int32)  # batches accumulated since the last step
        self.step = _counter("step", 0, ms.int32)  # optimizer steps so far, with the skipped ones
        self.skipped = _counter("skipped", 0, ms.int32)  # steps skipped because of an overflow
        self.good_steps = _counter("good_steps", 0, ms.int32)  # steps since the loss scale last changed
        self.loss_scale = _counter("loss_scale", self.options.loss_scale, ms.float32)
        self.scale = _counter("scale", self.options.loss_scale, ms.float32)
        self.sums = ms.Parameter(ms.Tensor(np.zeros(len(SUMS)), ms.float32), name="sums", requires_grad=False)

    def construct(
        self,
        x: ms.Tensor,
        posterior_noise: ms.Tensor,
        t: ms.Tensor,
        noise: ms.Tensor,
        skipped_videos: ms.Tensor,
        condition: ms.Tensor | None = None,
        mask: ms.Tensor | None = None,
    ) -> tuple[ms.Tensor, ...]:
        """Return the mean loss of a batch, a () float32 tensor, what the host is to know, and the buffers' gradients.

        x: pixels (B, F, 3, H, W) in [-1, 1], or moments (B, F, 2 L, h, w); posterior_noise, noise: (B, F, L, h, w);
        t: (B,) int32, or (B, 1 + frames) as `DiffusionLoss` takes it; skipped_videos: (B, n) int32, filled up with -1;
        condition: labels (B, 1 + images) int32, or CLIP text (B, 77, 768), or for a LatteT2V text (B, S, D) with its
        mask (B, S); with single images texts and masks are (B, 1 + images, ...).
        The second result is (5,) float32: loss, squared error, VLB term, skipped videos, and the norm of the gradients
        that follow, summed over ranks. With accumulation these are added to those of earlier batches instead.
        """
        if mask is not None:
            condition = (condition, mask)
        x_start = self.latents(x, posterior_noise)  # (B, F, L, h, w)
        scale = read(self.scale) if self.scales_loss else 1.0
        (_, loss, mse, bound), gradients = self.value_and_grad(x_start, t, noise, condition, scale)
        if self.gathered:
            gradients = once_there(gradients[: self.gathered], gradients[self.gathered :]) + gradients[self.gathered :]
        gradients = self.stacked(gradients)
        videos = (skipped_videos >= 0).astype(ms.float32).sum()
        norm = ops.zeros_like(loss)
        if self.shares_gradients:
            first = self.gathered
            gradients = gradients[:first] + sum_to_parts(gradients[first:], self.parts[first:])
        elif not self.accumulates:
            gradients = sum_over_ranks(gradients)
        if self.accumulates:
            add_to(self.accumulated, gradients)
            gradients = ()
        else:
            norm = global_norm(gradients, self.parts)
        return (loss, stack((loss, mse, bound, videos, norm)), *gradients)

    def stacked(self, gradients: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """Return the float32 gradients of the buffers, whose weights' gradients these are."""
        if not self.stacks:
            return gradients
        found = []
        for numbers in self.numbers:
            parts = [gradients[k] for k in numbers]
            whole = ops.concat(parts, 0) if len(parts) > 1 else parts[0]
            found.append(whole.astype(ms.float32))
        return tuple(found)

    def set_loss_scale(self, scale: float) -> None:
        """Set the loss scale for the batches to come."""
        set_counter(self.loss_scale, scale)
        assign(self.scale, ms.Tensor(scale, ms.float32))  # in place: compiled graphs do not see set_data

    def as_function(self) -> CompiledStep:
        """Return the step as a function of what `construct` takes, which returns the loss."""
        return CompiledStep(self)

    def latents(self, x: ms.Tensor, posterior_noise: ms.Tensor) -> ms.Tensor:
        """Return scaled latents drawn from the posterior of pixels or moments (Kingma and Welling, 2014, eq. 10)."""
        if self.vae is not None:
            b, f = x.shape[:2]
            own = self.vae.encode(own_part(x.reshape(b * f, *x.shape[2:]), 0))  # (B F, 2 L, h, w), or some of them
            moments = join_parts(own, 0, b * f)
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
            t = narrow(t, 1, 0, 1).reshape(-1) if t.ndim > 1 else t
            t = ops.repeat_interleave(t, images)  # (B n,)
            terms = self.loss(of_images[0], t, of_images[1], self.condition_of(condition, 1))
            share = images / x_start.shape[1]  # every frame has the same weight
            loss = loss * (1 - share) + mean(terms[0]) * share
            mse = mse * (1 - share) + mean(terms[1]) * share
            bound = bound * (1 - share) + mean(terms[2]) * share
        return loss * scale if self.scales_loss else loss, loss, mse, bound

    def condition_of(self, condition: Any, part: int) -> Any:
        """Return the condition of the network: for the videos (part 0), or for the single images (part 1)."""
        if condition is None or not (self.takes_labels or self.options.images):
            return condition
        first, last = (1, 1 + self.options.images) if part else (0, 1)
        if self.takes_text:
            return _rows(condition[0], first, last), _rows(condition[1], first, last)
        return _rows(condition, first, last)


def _rows(condition: ms.Tensor, first: int, last: int) -> ms.Tensor:
    """Return the rows from `first` to before `last` of each video's, (B, 1 + n, ...) -> (B (last - first), ...)."""
    return narrow(condition, 1, first, last).reshape(-1, *condition.shape[2:])


def _as_videos(images: ms.Tensor) -> ms.Tensor:
    """Return images (B, n, ...) as videos of one frame, (B n, 1, ...)."""
    return images.reshape(-1, 1, *images.shape[2:])


def _counter(name: str, value: float, dtype: ms.Type) -> ms.Parameter:
    return ms.Parameter(ms.Tensor(value, dtype), name=name, requires_grad=False)


def _part(buffer: ms.Parameter, name: str) -> ms.Parameter:
    values = own_rows(buffer.asnumpy())
    return ms.Parameter(ms.Tensor(values), name=f"{name}.{buffer.name}", requires_grad=False)
