"""From noise to latents: a network with guidance, compiled once, and a solver."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from latte.diffusion.timesteps import StepCount

Conditions = Sequence[np.ndarray]  # what the network takes after x and t; one row per video


@dataclass(frozen=True)
class Request:
    """Which videos to sample, and how; conditions and all arrays with a B have one row per video."""

    seeds: Sequence[int]  # one per video, for its noise
    shape: tuple[int, int, int, int]  # (F, C, h, w)
    conditions: Conditions = ()
    null: Conditions = ()  # the conditions that guidance steers away from
    num_inference_steps: StepCount = 250
    solver: Solver = field(default_factory=lambda: Solver("ddpm"))
    guidance_scale: float = 1.0
    temporal: bool = True  # False: a text-to-video network skips its temporal blocks
    latents: np.ndarray | None = None  # (B, F, C, h, w) standard normal noise, in place of the first noise of the seeds
    held: np.ndarray | None = None  # (B, n, C, h, w) latents of the conditioning frames
    held_frames: Sequence[int] = ()  # the positions of the conditioning frames in the video
    strength: float = 1.0  # below 1: start from copies of the conditioning frames and do this share of the steps
    feature_cache: float = 0.0  # threshold, see `ReusingDenoiser`; 0 = every block in every step

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


def nearest(held: np.ndarray, places: Sequence[int], frames: int) -> np.ndarray:
    """Return latents (B, F, C, h, w) in which each frame is a copy of the nearest conditioning frame.

    held: latents (B, n, C, h, w) of the conditioning frames; places: their n positions; frames: F.
    """
    rows = [int(np.abs(np.asarray(places) - frame).argmin()) for frame in range(frames)]
    return held[:, rows]


class LatentSampler:
    """A network that samples latents; it compiles one graph without guidance and one graph for all guidance scales."""

    def __init__(self, net: nn.Cell):
        self.net = net
        self.step_seconds: list[float] = []  # one per network call so far; the first call compiles
        self.skipped = 0.0  # share of the passes of the last request that skipped the inner blocks
        self._denoisers: dict[tuple, Any] = {}
        self._called: set[tuple] = set()  # the graphs that are compiled

    def sample(
        self,
        request: Request,
        on_step: Callable[[int], object] = lambda count: None,
        callback: Callable[[int, np.ndarray], np.ndarray | None] = lambda step, latents: None,
    ) -> np.ndarray:
        """Return scaled latents (B, F, C, h, w) float32; a video depends only on its seed and its condition.

        `on_step` gets the number of videos in each network call, `callback` the number of each step and the latents
        after it, which an array that it returns replaces. Where the device takes videos one by one, both are called for
        each video.
        Raises UserError if `latents` do not have the shape of the videos, or are not finite.
        """
        count = len(request.seeds)
        expected = (count, *request.shape)
        if request.latents is not None and np.shape(request.latents) != expected:
            raise UserError(f"latents are {np.shape(request.latents)}, but these videos take {expected}")
        if request.latents is not None and not np.isfinite(request.latents).all():
            raise UserError("latents hold values that are not finite; give standard normal noise")
        together = device.current().batches_videos or count == 1
        made = []
        for part in [request] if together else [request.one(k) for k in range(count)]:
            stream = NoiseStream(part.seeds, part.shape)
            latents = stream.normal() if part.latents is None else np.asarray(part.latents, np.float32)
            denoise, begin = self._denoiser(part), None
            model = self._model(denoise, part, on_step)
            if part.held is not None:
                steps = part.solver.steps(part.num_inference_steps)
                begin = nearest(part.held, part.held_frames, part.shape[0])
                model = holding(model, part.held, part.held_frames, steps)
            walk = part.solver.sample(model, latents, part.num_inference_steps, stream, begin, part.strength)
            latents = _walked(walk, callback)
            if isinstance(denoise, ReusingDenoiser):
                self.skipped = denoise.skipped / denoise.calls
            if part.held is not None:
                latents[:, list(part.held_frames)] = part.held
            made.append(latents)
        return np.concatenate(made)

    def predict(self, x: np.ndarray, t: np.ndarray, conditions: Conditions = ()) -> np.ndarray:
        """Return what the network predicts for x_t (B, F, C, h, w) at timesteps t (B,): float32 (B, F, C or 2C, h, w).

        It is one call of the graph that samples without guidance; conditions have one row per video.
        """
        count, frames, channels, height, width = x.shape
        request = Request(seeds=range(count), shape=(frames, channels, height, width), conditions=conditions)
        return self._model(self._denoiser(request), request, lambda count: None)(x, t)

    def _denoiser(self, request: Request) -> Callable:
        reuses, guided = request.feature_cache > 0, request.guidance_scale != 1
        key = _graph_of(request)
        self.net.temporal = request.temporal  # a graph keeps the value that it was compiled with, so the key has it
        if key not in self._denoisers and reuses:
            self._denoisers[key] = compiled_parts(self.net)
        elif key not in self._denoisers:
            denoise = make_denoiser(self.net, guided, device.current().batches_videos)
            self._denoisers[key] = graphs.compile_step(denoise)
        if reuses:
            return ReusingDenoiser(self._denoisers[key], guided, request.feature_cache)
        return self._denoisers[key]

    def _model(self, denoise: Callable, request: Request, on_step: Callable[[int], object]) -> Callable:
        """Return the function that a solver calls: NumPy arrays in, NumPy arrays out."""
        inputs = [ms.Tensor(np.ascontiguousarray(values)) for values in (*request.conditions, *request.null)]
        scale = ms.Tensor(np.float32(request.guidance_scale))  # (), an input, so that one graph serves every scale

        def model(x: np.ndarray, t: float | np.ndarray) -> np.ndarray:
            start = time.perf_counter()
            times = ms.Tensor(np.full(len(x), t, np.float32))  # (B,)
            with graphs.first_call("the network", self._called, (*_graph_of(request), x.shape)):
                out = denoise(ms.Tensor(x), times, scale, *inputs).asnumpy()
            self.step_seconds.append(time.perf_counter() - start)
            on_step(len(x))
            return out

        return model


def _graph_of(request: Request) -> tuple[bool | str, bool]:
    """Return what tells the graphs of a network apart: its parts or the whole, with guidance or without, temporal."""
    return "parts" if request.feature_cache > 0 else request.guidance_scale != 1, request.temporal


def _walked(
    walk: Generator[np.ndarray, np.ndarray | None, None], callback: Callable[[int, np.ndarray], np.ndarray | None]
) -> np.ndarray:
    """Return the last latents of a walk, after `callback` has seen, and maybe replaced, those of each step."""
    latents, step, changed = next(walk), 0, None
    while True:
        changed = callback(step, latents)
        latents = latents if changed is None else changed
        try:
            latents, step = walk.send(changed), step + 1
        except StopIteration:
            return latents
