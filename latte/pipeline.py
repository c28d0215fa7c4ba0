"""From labels and seeds to videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np

from latte import device
from latte.codec import Codec
from latte.diffusion.noise import NoiseStream
from latte.diffusion.samplers import make_denoiser
from latte.diffusion.solvers import Sampler
from latte.errors import UserError
from latte.models import Latte

Progress = Callable[[int], None]


def random_label(seed: int, num_classes: int) -> int:
    """Return the class that a video draws from its seed, by a stream of its own beside that of the noise."""
    return int(np.random.Generator(np.random.Philox(key=[seed, 1])).integers(num_classes))


class LattePipeline:
    """A Latte network, an autoencoder and one compiled denoising graph for every guidance scale used."""

    def __init__(self, net: Latte, codec: Codec):
        self.net = net
        self.codec = codec
        self.step_seconds: list[float] = []  # of every network call so far; the first one compiles
        self._denoisers: dict[float, Callable] = {}

    def __call__(
        self,
        seeds: Sequence[int],
        conditions: np.ndarray | None = None,
        null_condition: np.ndarray | None = None,
        *,
        num_inference_steps: int | str = 250,
        solver: str | Sampler = "ddpm",
        guidance_scale: float = 1.0,
        on_step: Progress | None = None,
        on_frames: Progress | None = None,
    ) -> np.ndarray:
        """Return a video a seed, (B, F, H, W, 3) uint8; a video depends on its seed and condition only.

        conditions: labels (B,) or CLIP text (B, 77, 768). null_condition: what guidance steers away from, one
        or one a video; by default the null label. num_inference_steps: as many, or what else the solver's
        spacing takes. `on_step` is told how many videos went through the network, `on_frames` how many frames are done.
        Raises UserError for impossible settings.
        """
        latents = self.sample_latents(
            seeds, conditions, null_condition, num_inference_steps, solver, guidance_scale, on_step
        )
        return self.decode(latents, on_frames)

    def decode(self, latents: np.ndarray, on_frames: Progress | None = None) -> np.ndarray:
        """Return the videos (B, F, H, W, 3) uint8 of scaled latents (B, F, C, h, w)."""
        b, f = latents.shape[:2]
        frames = self.codec.decode(latents.reshape(b * f, *latents.shape[2:]), on_frames)
        return frames.reshape(b, f, *frames.shape[1:])

    def sample_latents(
        self,
        seeds: Sequence[int],
        conditions: np.ndarray | None,
        null_condition: np.ndarray | None,
        num_inference_steps: int | str,
        solver: str | Sampler,
        guidance_scale: float,
        on_step: Progress | None = None,
    ) -> np.ndarray:
        """Return scaled latents (B, F, C, h, w) float32 of a video a seed; the arguments are those of the pipeline."""
        if not device.current().batches_videos and len(seeds) > 1:
            parts = [None if conditions is None else conditions[i : i + 1] for i in range(len(seeds))]
            rest = (null_condition, num_inference_steps, solver, guidance_scale, on_step)
            return np.concatenate([self.sample_latents([s], c, *rest) for s, c in zip(seeds, parts, strict=True)])
        sampler, config = Sampler(solver) if isinstance(solver, str) else solver, self.net.config
        stream = NoiseStream(seeds, (config.num_frames, config.in_channels, *config.latent_size))
        inputs = self._conditions(len(seeds), conditions, null_condition, guidance_scale)
        model = self._model(self._denoiser(guidance_scale), inputs, on_step)
        latents = stream.normal()  # (B, F, C, h, w)
        for x in sampler.sample(model, latents, num_inference_steps, stream):
            latents = x
        return latents

    def _denoiser(self, guidance_scale: float) -> Callable:
        if guidance_scale not in self._denoisers:
            batched = device.current().batches_videos
            self._denoisers[guidance_scale] = device.compile_step(make_denoiser(self.net, guidance_scale, batched))
        return self._denoisers[guidance_scale]

    def _model(self, denoise: Callable, inputs: tuple[ms.Tensor, ...], on_step: Progress | None) -> Callable:
        """Return what a solver calls: NumPy in, NumPy out."""

        def model(x: np.ndarray, t: float) -> np.ndarray:
            start = time.perf_counter()
            times = ms.Tensor(np.full(len(x), t, np.float32))  # (B,)
            out = denoise(ms.Tensor(x), times, *inputs).asnumpy()
            self.step_seconds.append(time.perf_counter() - start)
            if on_step:
                on_step(len(x))
            return out

        return model

    def _conditions(
        self, batch: int, conditions: np.ndarray | None, null: np.ndarray | None, scale: float
    ) -> tuple[ms.Tensor, ...]:
        """Return what the network takes after x and t: nothing, the conditions, or conditions and null ones."""
        kind = self.net.config.condition
        if kind is None:
            if scale != 1:
                raise UserError(f"guidance_scale {scale:g} needs a conditional model; this one has no condition")
            return ()
        if conditions is None or len(conditions) != batch:
            raise UserError(f"this model is conditioned on {kind}: give one condition a video")
        dtype = np.int32 if kind == "class" else np.float32
        if kind == "class":
            classes = self.net.config.num_classes
            if np.min(conditions) < 0 or np.max(conditions) > classes:
                raise UserError(f"class labels are 0 to {classes - 1}; got {list(map(int, conditions))}")
            null = np.full(1, classes) if null is None else np.asarray(null)
        given = ms.Tensor(np.asarray(conditions, dtype))
        if scale == 1:
            return (given,)
        if null is None:
            raise UserError("guidance of a text model needs the embedding of the empty prompt as its null condition")
        null = np.broadcast_to(np.asarray(null, dtype), given.shape)  # one for all videos, or one a video
        return given, ms.Tensor(np.ascontiguousarray(null))
