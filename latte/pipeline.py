"""From labels and seeds to videos."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np

from latte import device
from latte.codec import Codec
from latte.diffusion.samplers import NoiseStream, coefficients, make_step, sample_loop
from latte.diffusion.schedule import create_schedule
from latte.errors import UserError
from latte.models import Latte

Progress = Callable[[int], None]


def random_label(seed: int, num_classes: int) -> int:
    """Return the class that a video draws from its seed, by a stream of its own beside that of the noise."""
    return int(np.random.Generator(np.random.Philox(key=[seed, 1])).integers(num_classes))


class LattePipeline:
    """A Latte network, an autoencoder and one compiled denoising step for every solver and guidance scale used."""

    def __init__(self, net: Latte, codec: Codec):
        self.net = net
        self.codec = codec
        self.step_seconds: list[float] = []  # of every network call so far; the first one compiles
        self._steps: dict[tuple[str, float], Callable] = {}

    def __call__(
        self,
        seeds: Sequence[int],
        conditions: np.ndarray | None = None,
        null_condition: np.ndarray | None = None,
        *,
        num_inference_steps: int | str = 250,
        solver: str = "ddpm",
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        on_step: Progress | None = None,
        on_frames: Progress | None = None,
    ) -> np.ndarray:
        """Return a video a seed, (B, F, H, W, 3) uint8; a video depends on its seed and condition only.

        conditions: labels (B,) or CLIP text (B, 77, 768). null_condition: what guidance steers away from, one
        or one a video; by default the null label. `on_step` and `on_frames` are told of progress.
        Raises UserError for impossible settings.
        """
        latents = self.sample_latents(
            seeds, conditions, null_condition, num_inference_steps, solver, eta, guidance_scale, on_step
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
        solver: str,
        eta: float,
        guidance_scale: float,
        on_step: Progress | None = None,
    ) -> np.ndarray:
        """Return scaled latents (B, F, C, h, w) float32 of a video a seed; the arguments are those of the pipeline."""
        if not device.current().batches_videos and len(seeds) > 1:
            parts = [None if conditions is None else conditions[i : i + 1] for i in range(len(seeds))]
            rest = (null_condition, num_inference_steps, solver, eta, guidance_scale, on_step)
            return np.concatenate([self.sample_latents([s], c, *rest) for s, c in zip(seeds, parts, strict=True)])
        schedule = create_schedule(num_inference_steps)
        coefs = coefficients(solver, schedule, eta)
        config = self.net.config
        stream = NoiseStream(seeds, (config.num_frames, config.in_channels, *config.latent_size))
        step = self._timed(self._step(solver, guidance_scale), on_step)
        inputs = self._conditions(len(seeds), conditions, null_condition, guidance_scale)
        x = ms.Tensor(stream.normal())  # (B, F, C, h, w)
        for _, latents in sample_loop(step, x, stream, schedule.timesteps, coefs, inputs):
            x = latents
        return x.asnumpy()

    def _step(self, solver: str, guidance_scale: float) -> Callable:
        key = (solver, guidance_scale)
        if key not in self._steps:
            batched = device.current().batches_videos
            self._steps[key] = device.compile_step(make_step(self.net, solver, guidance_scale, batched))
        return self._steps[key]

    def _timed(self, step: Callable, on_step: Progress | None) -> Callable:
        def timed(x: ms.Tensor, *rest: ms.Tensor) -> ms.Tensor:
            start = time.perf_counter()
            x = step(x, *rest)
            x.asnumpy()  # wait for the device: kernels run behind the program's back
            self.step_seconds.append(time.perf_counter() - start)
            if on_step:
                on_step(x.shape[0])
            return x

        return timed

    def _conditions(
        self, batch: int, conditions: np.ndarray | None, null: np.ndarray | None, scale: float
    ) -> tuple[ms.Tensor, ...]:
        """Return what the step takes after its coefficients: nothing, the conditions, or conditions and null ones."""
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
