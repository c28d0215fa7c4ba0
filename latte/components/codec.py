"""Between pixels, moments and latents: the autoencoder applied to videos, a slice of frames at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from latte.io.video import to_uint8
from latte.models.temporal_decoder import FRAMES_AT_ONCE
from latte.runtime import collective, device, graphs
from latte.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latte.models import AutoencoderKL

LOGVAR_RANGE = (-30.0, 20.0)  # what Stable Diffusion clamps the posterior's log-variance to


class Codec:
    """An autoencoder and the factor that gives its latents variance one; None is the autoencoder's own."""

    def __init__(
        self,
        vae: AutoencoderKL,
        scale_factor: float | None = None,
        frames_per_slice: int = 0,
        tile: int = 0,
        dtype: str = "fp32",
    ):
        vae.dtype = device.autoencoder_dtype(dtype)
        self.vae, self.tile = vae, tile  # pixels per side of what is decoded at once; 0 = all
        self.scale_factor = scale_factor or vae.config.scaling_factor
        self.frames_per_slice = frames_per_slice or device.current().frames_per_slice
        self._encode = _on_arrays(vae.encode)
        self._decode = _on_arrays(vae.decode)

    def cache_settings(self, image_size: int) -> dict[str, Any]:
        """Return this codec's settings for a cache of moments of square frames, by the names of the options."""
        side = image_size // self.vae.config.downsampling
        weights = {name: weight.asnumpy() for name, weight in self.vae.parameters_and_names()}
        return {
            "vae_checkpoint": fingerprint(weights),
            "sd_scale_factor": self.scale_factor,
            "image_size": image_size,
            "frame_shape": [2 * self.vae.config.latent_channels, side, side],
        }

    def moments(self, frames: np.ndarray) -> np.ndarray:
        """Return mean and log-variance of the posterior of each frame.

        frames (N, 3, H, W) float32 in [-1, 1] -> (N, 2 L, H / 8, W / 8) float32.
        """
        return np.concatenate(list(self._slices(self._encode, frames, self.frames_per_slice)))

    def sample(self, moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return scaled latents (N, L, h, w) of the posterior with `moments` (N, 2 L, h, w) and standard `noise`."""
        mean, logvar = np.split(moments, 2, axis=1)
        return (mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * noise) * np.float32(self.scale_factor)

    def decode_together(
        self,
        latents: np.ndarray,
        progress: Callable[[int], object] | None = None,
        frames_per_slice: int | None = None,
        as_bytes: bool = True,
    ) -> np.ndarray:
        """Return what `decode` does, to every rank of those with the same video, each of which decodes some frames.

        Frames that a temporal decoder sees at once stay together.
        """
        unit = (frames_per_slice or FRAMES_AT_ONCE) if self.vae.config.temporal_decoder else 1
        start, stop, each = collective.share_rows(len(latents), "video", unit)
        if each >= len(latents):  # a rank has them all
            return self.decode(latents, progress, frames_per_slice, as_bytes)
        begin = min(start, len(latents) - 1)  # a rank without frames takes part with the last one
        own = self.decode(latents[begin : max(stop, begin + 1)], progress, frames_per_slice, as_bytes)
        return collective.join_rows(own[: stop - start], len(latents), each, "video")

    def decode(
        self,
        latents: np.ndarray,
        progress: Callable[[int], object] | None = None,
        frames_per_slice: int | None = None,
        as_bytes: bool = True,
    ) -> np.ndarray:
        """Return the pixels of one video's scaled latents: (F, L, h, w) float32 -> (F, 8 h, 8 w, 3).

        They are uint8, or else float32 from 0 to 1. `progress` is called with the number of frames each slice adds. The
        frames of different videos may come together unless the decoder is temporal.
        """
        together = self.vae.config.temporal_decoder
        size = frames_per_slice or (FRAMES_AT_ONCE if together else self.frames_per_slice)
        frames = []
        for images in self._slices(self._decoded, latents / np.float32(self.scale_factor), size, not together):
            floats = np.clip(np.moveaxis(images, 1, -1) / 2 + 0.5, 0, 1)
            frames.append(to_uint8(images) if as_bytes else floats)
            if progress:
                progress(len(images))
        return np.concatenate(frames)

    def _decoded(self, z: np.ndarray) -> np.ndarray:
        """Return the images of latents that are not scaled, in overlapping tiles if that is asked for.

        A tile overlaps its neighbours by a quarter or more, and its weight falls to its edges.
        """
        side, times = self.tile // self.vae.config.downsampling, self.vae.config.downsampling
        height, width = z.shape[2:]
        if not side or (height <= side and width <= side):
            return self._decode(z)
        rows, columns = _tile_starts(height, side), _tile_starts(width, side)
        h, w = min(side, height), min(side, width)
        weight = np.outer(_hat(h * times), _hat(w * times)).astype(np.float32)
        shape = (len(z), self.vae.config.out_channels, height * times, width * times)
        total, weights = np.zeros(shape, np.float32), np.zeros(shape[2:], np.float32)
        for y in rows:
            for x in columns:
                image = self._decode(z[:, :, y : y + h, x : x + w])
                there = np.s_[y * times : (y + h) * times, x * times : (x + w) * times]
                total[:, :, there[0], there[1]] += image * weight
                weights[there] += weight
        return total / weights

    def _slices(self, function: Callable, images: np.ndarray, size: int, fill: bool = True) -> Iterator[np.ndarray]:
        """Apply `function` to slices; with `fill`, the last one is padded, so that one size is compiled."""
        size = min(size, len(images))
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], fill * (size - len(part)), axis=0)])
            yield function(filled)[: len(part)]


def _on_arrays(function: Callable) -> Callable:
    """Return a function of tensors, compiled, as one of NumPy arrays."""
    compiled = graphs.compile_step(function)
    return lambda x: compiled(ms.Tensor(np.ascontiguousarray(x, np.float32))).asnumpy()


def _tile_starts(length: int, side: int) -> list[int]:
    """Return where tiles of one side begin that cover a length and overlap by a quarter or more."""
    count = 1 if length <= side else math.ceil((length - side) / (side * 3 // 4)) + 1
    return [round(k * (length - side) / max(count - 1, 1)) for k in range(count)]


def _hat(length: int) -> np.ndarray:
    """Return weights that grow from the edges to the middle of a tile, (length,)."""
    ramp = np.arange(1, length + 1)
    return np.minimum(ramp, ramp[::-1]) / length
