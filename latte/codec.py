"""Between pixels, moments and latents: the autoencoder applied to videos, a slice of frames at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import numpy as np

from latte import device
from latte.data.cache import fingerprint
from latte.models import AutoencoderKL
from latte.video import to_uint8

LOGVAR_RANGE = (-30.0, 20.0)  # what Stable Diffusion clamps the posterior's log-variance to


class Codec:
    """An autoencoder and the factor that gives its latents variance one; None is the autoencoder's own."""

    def __init__(self, vae: AutoencoderKL, scale_factor: float | None = None, frames_per_slice: int = 0):
        self.vae = vae
        self.scale_factor = scale_factor or vae.config.scaling_factor
        self.frames_per_slice = frames_per_slice or device.current().frames_per_slice
        self._encode = device.compile_step(vae.encode)
        self._decode = device.compile_step(vae.decode)

    def cache_settings(self, image_size: int) -> dict[str, Any]:
        """Return what this codec means for a cache of moments of square frames, by the names of the options."""
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
        return np.concatenate(list(self._slices(self._encode, frames)))

    def sample(self, moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return scaled latents (N, L, h, w) of the posterior with `moments` (N, 2 L, h, w) and standard `noise`."""
        mean, logvar = np.split(moments, 2, axis=1)
        return (mean + np.exp(0.5 * np.clip(logvar, *LOGVAR_RANGE)) * noise) * np.float32(self.scale_factor)

    def decode(self, latents: np.ndarray, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the pixels of scaled latents: (N, L, h, w) float32 -> (N, 8 h, 8 w, 3) uint8.

        `progress` is called with the number of frames each slice adds.
        """
        frames = []
        for images in self._slices(self._decode, latents / np.float32(self.scale_factor)):
            frames.append(to_uint8(images))
            if progress:
                progress(len(images))
        return np.concatenate(frames)

    def _slices(self, function: Callable, images: np.ndarray) -> Iterator[np.ndarray]:
        """Apply `function` to slices of one size, so that it is compiled once; the last one is filled up."""
        size = min(self.frames_per_slice, len(images))
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            yield function(ms.Tensor(np.ascontiguousarray(filled, np.float32))).asnumpy()[: len(part)]
