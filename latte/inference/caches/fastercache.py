"""FasterCache's guidance cache (arXiv 2410.19355): run the unconditional half of guidance in some calls only.

What tells the two predicted noises apart changes slowly. In the other calls it is added to the conditional one, its low
frequencies stronger in the first part of these calls, its high ones in the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import mindspore as ms
import numpy as np

from latte.diffusion.denoiser import guide, in_passes
from latte.errors import UserError
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latte.inference.caches.base import Graphs, Step, Walk

BEGIN, TURN = 18 / 50, 45 / 50  # shares of the calls: from where halves are left out, where the weights change
STRONGER = 1.1


@dataclass(frozen=True)
class FasterCache:
    """Run both halves of guidance in each `every`-th call only, from the 18th of 50 on; published is 5."""

    every: int
    together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if device.current().guidance > 1:
            raise UserError("cache fastercache leaves halves of guidance out, which cfg_parallel shares; choose one")

    def start(self, made: Graphs, walk: Walk) -> HalfGuided:
        """Return what denoises a batch of videos."""
        return HalfGuided(self.every, made)


class HalfGuided:
    """Denoises a batch of videos; it keeps low and high frequencies of the last difference of the halves."""

    def __init__(self, every: int, made: Graphs):
        self.every, self.made = every, made
        self.bands: tuple[np.ndarray, np.ndarray] | None = None  # low and high, (B, F, C, H, W) float32
        self.passes = self.skipped = 0

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output; see `make_denoiser`."""
        self.passes += 2 if step.guided else 1
        if not step.guided:
            return self.made.whole(False)(x, t, scale, *conditions)
        begin = round(BEGIN * step.count)
        late = step.number - begin
        if self.bands is None or late < 0 or late % self.every == 0:
            out, kept = with_halves(self.made)(x, t, scale, *conditions)
            if step.number + self.every >= begin:  # before that no call needs them
                self.bands = bands(difference(kept, x.shape[0], x.shape[2]))
            return out
        self.skipped += 1
        follow = conditions[: len(conditions) // 2]
        cond = self.made.whole(False)(x, t, scale, *follow)  # (B, F, C or 2C, H, W)
        low, high = self.bands
        first = step.number < round(TURN * step.count)
        added = STRONGER * low + high if first else low + STRONGER * high
        rest = np.zeros((*low.shape[:2], cond.shape[2] - low.shape[2], *low.shape[3:]), np.float32)
        uncond = cond + ms.Tensor(np.concatenate((added, rest), axis=2, dtype=np.float32))
        return guide(cond, uncond, scale, x.shape[2])


def difference(kept: Sequence[ms.Tensor], rows: int, channels: int) -> np.ndarray:
    """Return the unconditional minus the conditional noise (B, F, C, H, W), of the outputs of one or two passes."""
    outs = np.concatenate([each.asnumpy().astype(np.float32) for each in kept])[:, :, :channels]
    return outs[rows:] - outs[:rows]


def bands(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the low and the high frequencies of images (..., H, W), float32, which sum up to them.

    Low are those within min(H, W) // 5 of the zero frequency.
    """
    height, width = values.shape[-2:]
    down, across = (np.fft.fftfreq(size) * size for size in (height, width))
    near = down[:, None] ** 2 + across**2 <= (min(height, width) // 5) ** 2
    low = np.fft.ifft2(np.fft.fft2(values) * near).real.astype(np.float32)
    return low, values - low


def with_halves(made: Graphs) -> Callable:
    """Return the graph of network and guidance that also returns the output of each pass."""

    def run(x: ms.Tensor, t: ms.Tensor, kept: Sequence[ms.Tensor], conditions: Sequence[ms.Tensor]) -> tuple:
        out = made.net(x, t, *conditions)
        return out, (out,)

    return made.get("the network", lambda: in_passes(run, True, device.current().batches_videos), "halves")
