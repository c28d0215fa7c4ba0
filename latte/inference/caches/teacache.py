"""TeaCache (arXiv 2411.19108): skip all blocks while the modulated input of the first one has changed little.

The relative change from call to call goes through a polynomial that was fitted to the change of the output, and is
summed up; below a threshold the residual of all blocks is added again. The polynomial is the published one of Latte-1:
on other models it is no fit, and the threshold means something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import mindspore as ms
import numpy as np

from latte.inference.caches.base import relative_change
from latte.inference.caches.schedule import Schedule, Scheduled
from latte.runtime import device

if TYPE_CHECKING:
    from latte.inference.caches.base import Graphs, Step, Walk

LATTE_1 = np.poly1d([-2.46434137e03, 3.08044764e02, 8.07447667e01, -4.11385132e00, 1.11001402e-01])


@dataclass(frozen=True)
class TeaCache:
    """Skip all blocks while the sum of rescaled changes is below `threshold`: published are 0.1 (slow), 0.2 (fast).

    Each video decides for itself, both halves of guidance together. The host waits for the device once per call.
    """

    threshold: float
    together: ClassVar[bool] = False

    def start(self, made: Graphs, walk: Walk) -> Measured:
        """Return what denoises a video."""
        return Measured(self.threshold, Schedule((), walk.calls, (0, walk.depth)), made)


class Measured(Scheduled):
    """Denoises a video, and computes all blocks where it has changed enough."""

    def __init__(self, threshold: float, schedule: Schedule, made: Graphs):
        super().__init__(schedule, made)
        self.threshold, self.sum = threshold, 0.0
        self.inputs: list[ms.Tensor] = []  # of the first block in the last call, one per half of guidance
        self.shared = False  # whether another group of ranks had the other half then

    def computes(self, step: Step, x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor) -> bool:
        """Return whether a network call computes all blocks: the first, the last, and where the sum is large enough."""
        net, half = self.made.net, len(conditions) // 2 if step.guided else len(conditions)

        def normed(x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
            return net.first_norm(*net.embed(x, t, *conditions))

        graph = self.made.get("the first norm", lambda: normed)
        halves = [conditions[:half], *([conditions[half:]] if step.guided else [])]
        shared = step.guided and device.current().guidance > 1  # then this rank has one of them
        if shared:
            halves = halves[device.current().half :][:1]
        inputs = [graph(x, t, *each).astype(ms.float32) for each in halves]
        before, self.inputs = self.inputs, inputs  # compared over the halves that both calls have
        if shared and not self.shared and device.current().half:
            before = []
        self.shared = shared
        if step.number in (0, step.count - 1):
            self.sum = 0.0
            return True
        self.sum += float(LATTE_1(relative_change(inputs, before, x.shape[:2], "video" if shared else "sequence")))
        if self.sum < self.threshold:
            return False
        self.sum = 0.0
        return True
