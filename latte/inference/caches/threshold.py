"""Skip most of a network in the steps where its tokens hardly change, by a threshold.

What the inner blocks add to the tokens changes slowly from one denoising step to the next. If the tokens after the
first two blocks are close to the tokens of an earlier step, the sum that the other blocks added there is added again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from latte.diffusion.denoiser import guide
from latte.diffusion.gaussian import float32
from latte.inference.caches.base import relative_change
from latte.runtime import device
from latte.runtime.collective import gather
from latte.runtime.tensors import split

if TYPE_CHECKING:
    from collections.abc import Callable

    import mindspore as ms

    from latte.inference.caches.base import Graphs, Step, Walk

FIRST = 2  # blocks that always run


@dataclass(frozen=True)
class Threshold:
    """Skip the inner blocks while the tokens change by less than `threshold`, relative to their mean size.

    0.05 skips about half of the passes. The host waits for the device in every pass, to decide.
    """

    threshold: float
    together: ClassVar[bool] = False

    def start(self, made: Graphs, walk: Walk) -> ReusingDenoiser:
        """Return what denoises a video."""
        return ReusingDenoiser(compiled_parts(made), self.threshold)


@dataclass
class Memory:
    """The tokens after the first blocks and what the other blocks added, both from the last full pass."""

    tokens: ms.Tensor | None = None
    added: ms.Tensor | None = None


class ReusingDenoiser:
    """Denoises a video; both halves of guidance are passes of their own, and decide for themselves."""

    def __init__(self, parts: tuple[Callable, Callable, Callable], threshold: float):
        self.begin, self.middle, self.end = parts
        self.threshold = threshold
        self.memories = Memory(), Memory()  # for the conditional and the unconditional pass
        self.passes = self.skipped = 0

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the guided output (B, F, C or 2C, H, W) float32; see `make_denoiser`."""
        if not step.guided:
            return float32(self._run(self.memories[0], x, t, *conditions))
        half = len(conditions) // 2
        if (here := device.current()).guidance > 1:
            own = conditions[here.half * half : (here.half + 1) * half]
            out = float32(self._run(self.memories[here.half], x, t, *own))
            cond, uncond = [each.reshape(out.shape) for each in split(gather(out, "guidance"), 1, 0)]
            return guide(cond, uncond, scale, x.shape[2])
        cond = self._run(self.memories[0], x, t, *conditions[:half])
        uncond = self._run(self.memories[1], x, t, *conditions[half:])
        return guide(cond, uncond, scale, x.shape[2])

    def _run(self, memory: Memory, *inputs: ms.Tensor) -> ms.Tensor:
        tokens, context = self.begin(*inputs)
        self.passes += 1
        if (
            memory.tokens is not None
            and relative_change([tokens], [memory.tokens], inputs[0].shape[:2]) < self.threshold
        ):
            self.skipped += 1
            return self.end(tokens + memory.added, *context)
        last = self.middle(tokens, *context)
        memory.tokens, memory.added = tokens, last - tokens
        return self.end(last, *context)


def compiled_parts(made: Graphs) -> tuple[Callable, Callable, Callable]:
    """Return the first two blocks, the other blocks and the final layer, a graph each if the device compiles steps."""
    net = made.net
    first, last = min(FIRST, len(net.blocks)), len(net.blocks)

    def begin(*inputs: ms.Tensor) -> tuple[ms.Tensor, tuple]:
        tokens, context = net.embed(*inputs)
        return net.run_blocks(tokens, context, 0, first), context

    def middle(tokens: ms.Tensor, *context: Any) -> ms.Tensor:
        return net.run_blocks(tokens, context, first, last)

    def end(tokens: ms.Tensor, *context: Any) -> ms.Tensor:
        return net.finish(tokens, context)

    return (
        made.get("the first blocks", lambda: begin),
        made.get("the other blocks", lambda: middle),
        made.get("the final layer", lambda: end),
    )
