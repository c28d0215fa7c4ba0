"""From noise to latents: a network, its guidance compiled once, a solver, and what a user wants to see of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.diffusion.denoiser import make_denoiser
from latte.diffusion.fixed_frames import holding
from latte.diffusion.noise import NoiseStream
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.feature_cache import ReusingDenoiser, compiled_parts
from latte.runtime import device, graphs

Conditions = Sequence[np.ndarray]  # what the network takes after x and t, each with a row a video


@dataclass(frozen=True)
class Request:
    """Which videos are wanted, and how; conditions have a row a video, as has everything with a B."""

    seeds: Sequence[int]  # of each video's noise
    shape: tuple[int, int, int, int]  # (F, C, h, w)
    conditions: Conditions = ()
    null: Conditions = ()  # what guidance steers away from
    num_inference_steps: int | str = 250
    sampler: Solver = Solver("ddpm")
    guidance_scale: float = 1.0
    temporal: bool = True  # without, text to video leaves its blocks over frames out
    latents: np.ndarray | None = None  # (B, F, C, h, w) standard normal noise in place of the seeds' first
    held: np.ndarray | None = None  # (B, n, C, h, w) latents of given frames
    held_frames: Sequence[int] = ()  # their places
    strength: float = 1.0  # below 1: begin with the given frames in all places, with this part of the noise's way to go
    feature_cache: float = 0.0  # see `ReusingDenoiser`; 0 = every block in every step

    def one(self, number: int) -> Request:
        """Return the request for one of the videos."""
        rows = slice(number, number + 1)
        return replace(
            self,
            seeds=self.seeds[rows],
            conditions=tuple(values[rows] for values in self.conditions),
            null=tuple(values[rows] for values in self.null),
            latents=None if self.latents is None else self.latents[rows],
            held=None if self.held is None else self.held[rows],
        )


def nearest(request: Request) -> np.ndarray:
    """Return latents (B, F, C, h, w) that repeat, in every place, the given frame that is nearest to it."""
    places = np.asarray(request.held_frames)
    rows = [int(np.abs(places - frame).argmin()) for frame in range(request.shape[0])]
    return request.held[:, rows]


class LatentSampler:
    """A network with one compiled denoising graph, and one with guidance of any scale; it makes latents of videos."""

    def __init__(self, net: nn.Cell):
        self.net = net
        self.step_seconds: list[float] = []  # of every network call so far; the first one compiles
        self.skipped = 0.0  # share of the passes of the last request whose inner blocks were skipped
        self._denoisers: dict[tuple, Any] = {}

    def sample(
        self,
        request: Request,
        on_step: Callable[[int], None] = lambda count: None,
        callback: Callable[[int, np.ndarray], None] = lambda step, latents: None,
    ) -> np.ndarray:
        """Return scaled latents (B, F, C, h, w) float32; a video depends on its seed and condition only.

        `on_step` is told how many videos went through the network, `callback` the number of each step and the latents
        after it. Where the device takes videos one by one, it comes to both once a video.
        """
        count = len(request.seeds)
        expected = (count, *request.shape)
        if request.latents is not None and np.shape(request.latents) != expected:
            raise UserError(f"latents are {np.shape(request.latents)}, but these videos take {expected}")
        together = device.current().batches_videos or count == 1
        made = []
        for part in [request] if together else [request.one(k) for k in range(count)]:
            stream = NoiseStream(part.seeds, part.shape)
            latents = stream.normal() if part.latents is None else np.asarray(part.latents, np.float32)
            denoise, begin = self._denoiser(part), None
            model = self._model(denoise, part, on_step)
            if part.held is not None:
                steps, begin = part.sampler.steps(part.num_inference_steps), nearest(part)
                model = holding(model, part.held, part.held_frames, steps)
            walk = part.sampler.sample(model, latents, part.num_inference_steps, stream, begin, part.strength)
            for step, latents in enumerate(walk):
                callback(step, latents)
            if isinstance(denoise, ReusingDenoiser):
                self.skipped = denoise.skipped / denoise.calls
            if part.held is not None:
                latents[:, list(part.held_frames)] = part.held
            made.append(latents)
        return np.concatenate(made)

    def _denoiser(self, request: Request) -> Callable:
        reuses, guided = request.feature_cache > 0, request.guidance_scale != 1
        key = ("parts" if reuses else guided, request.temporal)
        self.net.temporal = request.temporal  # a graph keeps the value that it was built with, hence the key
        if key not in self._denoisers and reuses:
            self._denoisers[key] = compiled_parts(self.net)
        elif key not in self._denoisers:
            denoise = make_denoiser(self.net, guided, device.current().batches_videos)
            self._denoisers[key] = graphs.compile_step(denoise)
        if reuses:
            return ReusingDenoiser(self._denoisers[key], guided, request.feature_cache)
        return self._denoisers[key]

    def _model(self, denoise: Callable, request: Request, on_step: Callable[[int], None]) -> Callable:
        """Return what a solver calls: NumPy in, NumPy out."""
        inputs = [ms.Tensor(np.ascontiguousarray(values)) for values in (*request.conditions, *request.null)]
        scale = ms.Tensor(np.float32(request.guidance_scale))  # (), an input, so that one graph serves every scale

        def model(x: np.ndarray, t: float) -> np.ndarray:
            start = time.perf_counter()
            times = ms.Tensor(np.full(len(x), t, np.float32))  # (B,)
            out = denoise(ms.Tensor(x), times, scale, *inputs).asnumpy()
            self.step_seconds.append(time.perf_counter() - start)
            on_step(len(x))
            return out

        return model
