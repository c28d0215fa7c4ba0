"""FasterCache's guidance cache (arXiv 2410.19355): run the unconditional half of guidance in some calls only.

What tells the two predicted noises apart changes slowly. In the other calls it is added to the conditional one, its low
frequencies stronger in the first part of these calls, its high ones in the last. Which calls these are is fixed by
their numbers: the host waits for nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from mindspore import ops

from latte.diffusion.denoiser import guide, in_passes
from latte.diffusion.gaussian import float32
from latte.errors import UserError
from latte.inference.caches.base import Nothing
from latte.runtime import device
from latte.runtime.tensors import narrow, uploaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import mindspore as ms

    from latte.inference.caches.base import Graphs, Method, Step, Walk

BEGIN, TURN = 18 / 50, 45 / 50  # shares of the calls: from where halves are left out, where the weights change
STRONGER = 1.1


@dataclass(frozen=True)
class FasterCache:
    """Run both halves of guidance in each `every`-th call only, from the 18th of 50 on; published is 5.

    within: the method that skips work in the passes that are left, in each half by itself.
    """

    every: int
    within: Method = field(default_factory=Nothing)

    def __post_init__(self) -> None:
        if device.current().guidance > 1:
            raise UserError("cache fastercache leaves halves of guidance out, which cfg_parallel shares; choose one")

    @property
    def together(self) -> bool:
        """Whether it may denoise several videos."""
        return self.within.together

    def start(self, made: Graphs, walk: Walk) -> HalfGuided:
        """Return what denoises a batch of videos."""
        return HalfGuided(self, made, walk)


class HalfGuided:
    """Denoises a batch of videos; it keeps low and high frequencies of the last difference of the halves."""

    def __init__(self, method: FasterCache, made: Graphs, walk: Walk):
        self.every, self.made = method.every, made
        self.halves = [method.within.start(made, walk) for _ in range(2)]  # the conditional and the other one
        self.as_one = isinstance(method.within, Nothing) and device.current().batches_videos
        self.bands: tuple[ms.Tensor, ms.Tensor] | None = None  # low and high, (B, F, C, H, W) float32
        self.waves: ms.Tensor | None = None  # see `low_frequencies`
        self.left_out = self.both = 0  # halves that were not run, calls that ran both as one batch

    @property
    def passes(self) -> int:
        """How many passes it has had, with those that were left out."""
        return sum(half.passes for half in self.halves) + self.left_out + 2 * self.both

    @property
    def skipped(self) -> int:
        """How many of them left blocks out, or all."""
        return sum(half.skipped for half in self.halves) + self.left_out

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output; see `make_denoiser`."""
        plain, half = dataclasses.replace(step, guided=False), len(conditions) // 2
        if not step.guided:
            return self.halves[0](plain, x, t, scale, *conditions)
        begin, (rows, _, channels) = round(BEGIN * step.count), x.shape[:3]
        late = step.number - begin
        needed = step.number + self.every >= begin  # by a later call
        if self.bands is None or late < 0 or late % self.every == 0:
            if self.as_one:
                self.both += 1
                out, (both,) = with_halves(self.made)(x, t, scale, *conditions)  # (B, ...), (2B, ...)
                cond, uncond = narrow(both, 0, 0, rows), narrow(both, 0, rows, 2 * rows)
            else:
                cond = self.halves[0](plain, x, t, scale, *conditions[:half])  # (B, F, C or 2C, H, W)
                uncond = self.halves[1](plain, x, t, scale, *conditions[half:])
                out = guide(cond, uncond, scale, channels)
            if needed:
                if self.waves is None:
                    self.waves = uploaded(low_frequencies(*x.shape[-2:]))
                moved = float32(narrow(uncond, 2, 0, channels)) - float32(narrow(cond, 2, 0, channels))
                self.bands = bands(moved, self.waves)
            return out
        self.left_out += 1
        cond = self.halves[0](plain, x, t, scale, *conditions[:half])  # (B, F, C or 2C, H, W)
        low, high = self.bands
        first = step.number < round(TURN * step.count)
        added = STRONGER * low + high if first else low + STRONGER * high
        uncond = narrow(cond, 2, 0, channels) + added  # (B, F, C, H, W)
        if cond.shape[2] > channels:
            uncond = ops.concat((uncond, narrow(cond, 2, channels, cond.shape[2])), axis=2)
        return guide(cond, uncond, scale, channels)


def bands(values: ms.Tensor, waves: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """Return the low and the high frequencies of videos (B, F, C, H, W) float32, which sum up to them.

    waves: their `low_frequencies` (N, H * W). Each video has products of its own, so that it does not depend on how
    many there are, even in its last bits.
    """
    size = values.shape[-2] * values.shape[-1]
    lows = []
    for row in range(values.shape[0]):
        images = narrow(values, 0, row, row + 1)  # (1, F, C, H, W)
        lows.append(ops.matmul(ops.matmul(images.reshape(-1, size), waves.T), waves).reshape(images.shape))
    low = ops.concat(lows, axis=0)
    return low, values - low


@functools.cache
def low_frequencies(height: int, width: int) -> np.ndarray:
    """Return an orthonormal basis (N, H * W) float32 of images that have low frequencies only.

    Low are those within min(H, W) // 5 of the zero frequency; a product with the basis leaves what a Fourier transform,
    a circular mask and the inverse transform leave.
    """
    reach = min(height, width) // 5
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = (down**2 + across**2 <= reach**2) & ((down > 0) | ((down == 0) & (across >= 0)))  # one of k and -k
    y, x = np.mgrid[:height, :width]
    angles = 2 * np.pi * (np.outer(down[near], y) / height + np.outer(across[near], x) / width)  # (n, H * W)
    waves = np.concatenate((np.cos(angles), np.sin(angles)))
    lengths = np.linalg.norm(waves, axis=1, keepdims=True)
    kept = lengths[:, 0] > 1e-6 * height * width  # not the sine of the zero frequency
    return (waves[kept] / lengths[kept]).astype(np.float32)


def with_halves(made: Graphs) -> Callable:
    """Return the graph of network and guidance that also returns the output of both halves."""

    def run(x: ms.Tensor, t: ms.Tensor, kept: Sequence[ms.Tensor], conditions: Sequence[ms.Tensor]) -> tuple:
        out = made.net(x, t, *conditions)
        return out, (out,)

    return made.get("the network", lambda: in_passes(run, True, True), "halves")
