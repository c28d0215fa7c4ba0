"""The videos that a run makes at its checkpoints, always from the same seeds and conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte import device
from latte.codec import Codec
from latte.data.loader import TrainingSource
from latte.diffusion.noise import NoiseStream
from latte.diffusion.samplers import make_denoiser
from latte.diffusion.solvers import Sampler

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
    batched = device.current().batches_videos
    denoise = device.compile_step(make_denoiser(net, scale, batched))
    size, videos = count if batched else 1, []
    for first in range(0, count, size):
        part = slice(first, first + size)
        inputs = [values[part] for values in (*conditions, *(nulls if scale != 1 else ()))]
        latents = _denoised(denoise, inputs, range(first, first + size), shape, steps, on_step)
        videos += [codec.decode(video) for video in latents]
    return np.stack(videos)


def _denoised(
    denoise: Callable,
    inputs: list[np.ndarray],
    seeds: range,
    shape: tuple[int, ...],
    steps: int,
    on_step: Callable[[int], Any],
) -> np.ndarray:
    """Return scaled latents (B, F, L, h, w)."""
    tensors = [ms.Tensor(np.ascontiguousarray(values)) for values in inputs]

    def model(x: np.ndarray, t: float) -> np.ndarray:
        out = denoise(ms.Tensor(x), ms.Tensor(np.full(len(x), t, np.float32)), *tensors).asnumpy()
        on_step(len(x))
        return out

    stream = NoiseStream(seeds, shape)
    latents = stream.normal()
    for x in Sampler("ddim").sample(model, latents, steps, stream):
        latents = x
    return latents
