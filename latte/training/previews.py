"""The videos that a run samples at each checkpoint, always with the same seeds and conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latte.diffusion.solvers import Solver
from latte.inference.inputs import effective_guidance
from latte.inference.latents import LatentSampler, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from mindspore import nn

    from latte.components.codec import Codec
    from latte.data.loader import TrainingSource

Arrays = tuple[np.ndarray, ...]


def conditions_of(source: TrainingSource, count: int) -> tuple[Arrays, Arrays]:
    """Return the conditions of `count` videos and the null conditions; both are empty for an unconditional network.

    They are labels (B,) int32 that go through the classes in turn, or the text embeddings of the first videos or
    captions of the data.
    """
    if source.num_classes:
        return (np.arange(count, dtype=np.int32) % source.num_classes,), (np.full(count, source.num_classes, np.int32),)
    if source.text:
        text, places, null = source.text
        return (text[places[np.arange(count) % len(places)]],), (null[None].repeat(count, 0),)
    if source.captions:
        first = [source.captions.padded(k % len(source.captions.captions)) for k in range(count)]
        empty = [source.captions.padded(None)] * count
        return tuple(map(np.stack, zip(*first, strict=True))), tuple(map(np.stack, zip(*empty, strict=True)))
    return (), ()


class Previews:
    """Samples `count` videos with DDIM or another solver, video k with seed k; the network is compiled only once.

    shape: (F, L, h, w) of a video's latents. The weights of `net` may be updated in place (`ops.assign`) between calls.
    """

    def __init__(
        self,
        net: nn.Cell,
        codec: Codec,
        shape: tuple[int, int, int, int],
        source: TrainingSource,
        *,
        count: int,
        steps: int,
        guidance_scale: float,
        solver: Solver | None = None,
    ):
        conditions, null = conditions_of(source, count)
        scale = effective_guidance(guidance_scale) if conditions else 1.0
        self.codec, self.latents = codec, LatentSampler(net)
        self.request = Request(
            seeds=range(count),
            shape=shape,
            conditions=conditions,
            null=null if scale != 1 else (),
            num_inference_steps=steps,
            solver=solver or Solver("ddim"),
            guidance_scale=scale,
        )

    def make(self, on_step: Callable[[int], Any] = lambda count: None) -> np.ndarray:
        """Return the videos (count, F, H, W, 3) uint8; `on_step` gets the number of videos in each network call."""
        return np.stack([self.codec.decode(video) for video in self.latents.sample(self.request, on_step)])
