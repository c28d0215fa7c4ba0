"""Pyramid Attention Broadcast (Zhao et al., 2024, arXiv 2408.12588): the output of an attention serves several calls.

In the middle of a sampling the attentions differ little from call to call, over patches most, to the text least. Which
call computes which is fixed by its number and timestep: the host waits for nothing, and a video depends on no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from latte.diffusion.denoiser import in_passes
from latte.errors import UserError
from latte.inference.caches.schedule import conditional
from latte.models.parts import CROSS, SPATIAL, TEMPORAL, caller, count_kept, run_in_parts
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import mindspore as ms

    from latte.inference.caches.base import Graphs, Step, Walk

KINDS = (SPATIAL, TEMPORAL, CROSS)
LOW, HIGH = 100, 800  # outputs are used again between these timesteps only, as published


@dataclass(frozen=True)
class PAB:
    """Compute each attention in every n-th call: `ranges` has a digit for patches, frames and the text.

    Published for Latte-1 are 235, 347 and 469, in this order of speed. Networks without a text ignore the last digit.
    """

    ranges: int
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (111 <= self.ranges <= 999) or "0" in str(self.ranges):
            raise UserError(f"cache pab:{self.ranges} must be three digits from 1 to 9, for patches, frames and text")

    def start(self, made: Graphs, walk: Walk) -> Broadcast:
        """Return what denoises a batch of videos; raises UserError for a network whose blocks have two attentions."""
        if any(block.both for block in made.net.blocks):
            raise UserError(
                f"cache pab:{self.ranges} is for networks with one attention per block, not for variants 3 and 4; take "
                "teacache or a schedule"
            )
        return Broadcast(self, made)

    def computed(self, step: Step) -> tuple[str, ...]:
        """Return the kinds of attention that a network call computes."""
        every = dict(zip(KINDS, map(int, str(self.ranges)), strict=True))
        between = LOW < step.timestep < HIGH
        return tuple(kind for kind in KINDS if not between or step.number % every[kind] == 0)


class Broadcast:
    """Denoises a batch of videos; it keeps the output of each attention, with a row for each video and pass."""

    def __init__(self, method: PAB, made: Graphs):
        self.method, self.made = method, made
        self.kept: tuple[ms.Tensor, ...] = ()
        self.guided = False  # whether those are of both halves
        self.passes = self.skipped = 0

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output; see `make_denoiser`. Where guidance begins, all is computed."""
        self.passes += 1
        net = self.made.net
        count = count_kept(net, x.shape[1])
        if step.guided != self.guided:
            self.kept = () if step.guided else conditional(self.kept, x.shape[:2], count)
            self.guided = step.guided
        computed = self.method.computed(step) if self.kept else KINDS
        if not net.reads_text and CROSS not in computed:
            computed = (*computed, CROSS)  # there is none: one graph less
        self.skipped += SPATIAL not in computed
        kept = () if computed == KINDS else self.kept
        out, self.kept = broadcasting(self.made, computed, count if kept else 0, step.guided)(
            x, t, scale, *kept, *conditions
        )
        return out


def broadcasting(made: Graphs, computed: tuple[str, ...], count: int, guided: bool) -> Callable:
    """Return the graph (x, t, scale, *kept, *conditions) -> (output, outputs of all attentions of each pass).

    count: how many outputs each pass is given.
    """

    def build() -> Callable:
        net, call = made.net, caller()

        def run(x: ms.Tensor, t: ms.Tensor, kept: Sequence[ms.Tensor], conditions: Sequence[ms.Tensor]) -> tuple:
            tokens, context = net.embed(x, t, *conditions)  # (B, F, T, D)
            tokens, new = run_in_parts(net, tokens, context, kept, computed, call)
            return net.finish(tokens, context), new

        return in_passes(run, guided, device.current().batches_videos, kept=count)

    return made.get("the network", build, "attentions", computed, count, guided)
