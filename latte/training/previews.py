"""The videos that a run makes at its checkpoints, always from the same seeds and conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import nn

from latte.components.codec import Codec
from latte.data.loader import TrainingSource
from latte.diffusion.solvers import Solver
from latte.inference.latents import LatentSampler, Request

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


def sample_videos(
    net: nn.Cell,
    codec: Codec,
    shape: tuple[int, ...],
    conditions: Arrays,
    nulls: Arrays,
    count: int,
    steps: int,
    guidance_scale: float,
    on_step: Callable[[int], Any],
) -> np.ndarray:
    """Return `count` videos (count, F, H, W, 3) uint8 of DDIM; video k has the seed k. `shape` is (F, L, h, w)."""
    scale = guidance_scale if conditions else 1.0
    request = Request(
        seeds=range(count),
        shape=shape,
        conditions=conditions,
        null=nulls if scale != 1 else (),
        num_inference_steps=steps,
        sampler=Solver("ddim"),
        guidance_scale=scale,
    )
    return np.stack([codec.decode(video) for video in LatentSampler(net).sample(request, on_step)])
