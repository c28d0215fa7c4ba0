"""The videos that a run makes at its checkpoints, always from the same seeds and conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latte.diffusion.solvers import Solver
from latte.inference.latents import LatentSampler, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from mindspore import nn

    from latte.components.codec import Codec
    from latte.data.loader import TrainingSource

Arrays = tuple[np.ndarray, ...]


def conditions_of(source: TrainingSource, count: int) -> tuple[Arrays, Arrays]:
    """Return what the network takes besides x and t for so many videos, and as much of none; both empty without one.

    They are the classes in turn, or the captions of the first videos of the data.
    """
    if source.num_classes:
        return (np.arange(count, dtype=np.int32) % source.num_classes,), (np.full(count, source.num_classes, np.int32),)
    if source.text:
        text, places, null = source.text
        return (text[places[np.arange(count) % len(places)]],), (null[None].repeat(count, 0),)
    if source.captions:
        first = [source.captions.padded(k % len(source.captions.captions)) for k in range(count)]
        null = [source.captions.padded(None)] * count
        return tuple(map(np.stack, zip(*first, strict=True))), tuple(map(np.stack, zip(*null, strict=True)))
    return (), ()


class Previews:
    """Makes `count` videos of DDIM, video k with the seed k, of which the network is compiled for the first time only.

    `shape` is (F, L, h, w). The weights of `net` may be updated in place (`ops.assign`) between two calls.
    """

    def __init__(
        self,
        net: nn.Cell,
        codec: Codec,
        shape: tuple[int, ...],
        source: TrainingSource,
        *,
        count: int,
        steps: int,
        guidance_scale: float,
    ):
        conditions, null = conditions_of(source, count)
        scale = guidance_scale if conditions else 1.0
        self.codec, self.latents = codec, LatentSampler(net)
        self.request = Request(
            seeds=range(count),
            shape=shape,
            conditions=conditions,
            null=null if scale != 1 else (),
            num_inference_steps=steps,
            sampler=Solver("ddim"),
            guidance_scale=scale,
        )

    def make(self, on_step: Callable[[int], Any] = lambda count: None) -> np.ndarray:
        """Return the videos (count, F, H, W, 3) uint8; `on_step` is told how many went through the network."""
        return np.stack([self.codec.decode(video) for video in self.latents.sample(self.request, on_step)])
