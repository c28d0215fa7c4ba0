"""Videos longer than a network takes, and loops: windows over time with shared noise and fused predictions.

In each network call all windows of the video are denoised, and where they overlap their predictions are averaged
(MultiDiffusion, Bar-Tal et al., 2023, eq. 7), with weights that fall towards the ends of a window (FreeNoise, Qiu et
al., 2024, section 4.2). All windows have the noise of the first one, in another order (FreeNoise, section 4.1), so that
they begin alike. In a loop windows also cross the end of the video. Arrays are NumPy's or MindSpore's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte.diffusion.arrays import join, like
from latte.diffusion.noise import NoiseStream
from latte.errors import UserError

Model = Callable[[Any, float], Any]  # x (B, F, C, H, W), timestep -> (B, F, C or 2C, H, W), of one library


@dataclass(frozen=True)
class Windows:
    """Windows of `length` frames, a new one every `stride`, over a video of `frames`; in a loop over its end too."""

    frames: int
    length: int
    stride: int
    loop: bool = False
    shared: bool = True  # whether they share the noise of the first one
    autoregressive: bool = False  # whether they are made one after the other, the last one reaching over the end

    @property
    def starts(self) -> list[int]:
        """The first frame of each window; the last one ends with the video, or in a loop begins in it."""
        if self.autoregressive:
            return list(range(0, self.frames - self.length + self.stride, self.stride))
        if self.loop:
            return list(range(0, self.frames, self.stride))
        last = self.frames - self.length
        return [*range(0, last, self.stride), last]

    @property
    def weights(self) -> np.ndarray:
        """The share of each window in each frame (windows, F), float32: triangles over windows, scaled to sums of 1."""
        places = np.arange(self.length)
        triangle = np.minimum(places + 1, self.length - places)
        shares = np.zeros((len(self.starts), self.frames))
        for row, start in zip(shares, self.starts, strict=True):
            row[(start + places) % self.frames] = triangle
        return (shares / shares.sum(0)).astype(np.float32)


def choose_windows(
    frames: int,
    length: int,
    stride: int | None = None,
    loop: bool = False,
    shared: bool = True,
    autoregressive: bool = False,
) -> Windows | None:
    """Return windows of `length` frames for videos of `frames` frames; None if one window is the whole video.

    stride: frames between the starts of two windows; None = a quarter of a window, as FreeNoise has.
    Raises UserError if they do not fit.
    """
    if loop and autoregressive:
        raise UserError("a loop is not autoregressive: no window knows what comes after it; leave one of them out")
    if length == frames and not loop:
        return None
    if length > frames:
        raise UserError(
            f"window is {length}, but a video has {frames} frames; ask for more frames, or a smaller window"
        )
    if length < 2:
        raise UserError(f"window is {length}, but windows of fewer than 2 frames do not overlap")
    stride = stride or max(length // 4, 1)
    if not 1 <= stride < length:
        raise UserError(f"window_stride is {stride}, but must be from 1 to {length - 1}, so that windows overlap")
    return Windows(frames, length, stride, loop, shared, autoregressive)


def refuse_in_turn(of_all: Mapping[str, Any], strength: float) -> None:
    """Raise UserError if windows that are made one after the other are given what all of them have together."""
    for name, value in of_all.items():
        if value is not None:
            raise UserError(f"{name} is for videos that are denoised as a whole; leave it out with autoregressive")
    if strength != 1:
        raise UserError(f"strength {strength:g} is for videos that are denoised as a whole; leave out autoregressive")


def fused(models: Sequence[Model], windows: Windows) -> Model:
    """Return a model of whole videos (B, F, C, H, W) that fuses what the model of each window says of its frames.

    models: one for each window, so that each may keep what it needs for its next call; x of a window is (B, length, C,
    H, W). What they say of a frame is averaged with the weights of their windows.
    """
    starts, weights, frames = windows.starts, windows.weights[:, :, None, None, None], windows.frames
    shares: dict[tuple[int, int], Any] = {}  # (n, 1, 1, 1) of a window in a piece, brought to the device once

    def share(window: int, low: int, high: int, x: Any) -> Any:
        if (window, low) not in shares:
            shares[window, low] = like(weights[window, low:high], x)
        return shares[window, low]

    def model(x: Any, t: float) -> Any:
        parts = [each(_cut(x, start, windows.length), t) for each, start in zip(models, starts, strict=True)]
        pieces = []
        for low, high in _pieces(windows):
            terms = []
            for window, (part, start) in enumerate(zip(parts, starts, strict=True)):
                first = (low - start) % frames
                if first < windows.length:
                    terms.append(part[:, first : first + high - low] * share(window, low, high, part))
            pieces.append(sum(terms[1:], terms[0]))
        return join(pieces, 1)  # (B, F, C or 2C, H, W)

    return model


class SharedNoise(NoiseStream):
    """Noise of which all windows have the same frames, in another order: that of one window, shuffled and repeated.

    The order is a function of the video's seed. Where the stride divides the length, a window that begins at a multiple
    of the stride holds each frame of the noise once.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], windows: Windows) -> None:
        super().__init__(seeds, (windows.length, *shape[1:]))
        self.order = np.stack([frame_order(seed, windows) for seed in self.seeds])  # (B, F)

    def normal(self) -> np.ndarray:
        """The next noise of every video: (B, F, C, H, W) float32."""
        return np.take_along_axis(super().normal(), self.order[:, :, None, None, None], 1)


def frame_order(seed: int, windows: Windows) -> np.ndarray:
    """Return for each frame of a video the frame of the first window whose noise it has, (F,).

    Frames go by blocks of `stride`: each block is the one a window before it, shuffled.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    order = list(range(windows.length))
    while len(order) < windows.frames:
        start = len(order) - windows.length
        order += rng.permutation(order[start : start + windows.stride]).tolist()
    return np.array(order[: windows.frames])


def _pieces(windows: Windows) -> Iterator[tuple[int, int]]:
    """Yield the first frame, and the one after the last, of the pieces of a video in which the same windows lie."""
    bounds = {0, windows.frames}
    for start in windows.starts:
        bounds |= {start, (start + windows.length) % windows.frames}
    ordered = sorted(bounds)
    yield from itertools.pairwise(ordered)


def _cut(x: Any, start: int, length: int) -> Any:
    """Return the frames of a window (B, length, C, H, W), which may go on at the beginning of the video."""
    over = start + length - x.shape[1]
    return x[:, start : start + length] if over <= 0 else join([x[:, start:], x[:, :over]], 1)
