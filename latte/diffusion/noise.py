"""The random numbers of sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class NoiseStream:
    """Standard normal noise of which each video has its own stream, keyed by that video's seed.

    A video's noise is the same in every batch, on every rank and device. ``shape`` is that of
    one video, (F, C, H, W). Raises UserError for a negative seed or none at all.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        if len(seeds) == 0 or min(seeds) < 0:
            raise UserError(f"seeds must be whole numbers from 0 on, one per video; got {list(seeds)}")
        self.seeds, self.shape = list(seeds), tuple(shape)
        self.generators = [np.random.Generator(np.random.Philox(int(seed))) for seed in seeds]

    def normal(self) -> np.ndarray:
        """The next noise of every video: (B, F, C, H, W) float32."""
        # Drawn in float64: a last-bit difference between platforms' logarithms then vanishes in the rounding.
        return np.stack([g.standard_normal(self.shape) for g in self.generators]).astype(np.float32)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return self.normal()
