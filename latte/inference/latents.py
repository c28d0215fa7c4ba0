"""From noise to latents: a network with guidance, compiled once, and a solver."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.diffusion.fixed_frames import holding, showing
from latte.diffusion.noise import NoiseStream
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.caches import Graphs, Nothing, Step, Walk
from latte.inference.windows import SharedNoise, Windows, fused
from latte.runtime import device

if TYPE_CHECKING:
    from mindspore import nn

    from latte.diffusion.timesteps import StepCount
    from latte.inference.caches import Denoiser, Method

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
    guidance_rescale: float = 0.0  # share of the guided noise that gets the conditional one's standard deviation
    temporal: bool = True  # False: a text-to-video network skips its temporal blocks
    latents: np.ndarray | None = None  # (B, F, C, h, w) standard normal noise, in place of the first noise of the seeds
    held: np.ndarray | None = None  # (B, n, C, h, w) latents of the conditioning frames
    held_frames: Sequence[int] = ()  # the positions of the conditioning frames in the video
    strength: float = 1.0  # below 1: start from copies of the conditioning frames and do this share of the steps
    cache: Method = field(default_factory=Nothing)  # a way to skip work
    guidance_interval: tuple[float, float] | None = None  # timesteps to guide at, both included; None = all
    windows: Windows | None = None  # over time, for videos that the network does not take as a whole

    def noise(self) -> NoiseStream:
        """Return the noise of its videos, of which each has its own."""
        if self.windows and self.windows.shared:
            return SharedNoise(self.seeds, self.shape, self.windows)
        return NoiseStream(self.seeds, self.shape)

    def guides_at(self, timestep: float) -> bool:
        """Return whether a step at this timestep is guided (Kynkaanniemi et al., 2024, eq. 5, by timesteps)."""
        low, high = self.guidance_interval or (-np.inf, np.inf)
        return self.guidance_scale != 1 and low <= timestep <= high

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
        self.skipped = 0.0  # share of the passes of the last request that left blocks out
        self.graphs = Graphs(net)

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
        together = count == 1 or (device.current().batches_videos and request.cache.together)
        made, passes, skipped = [], 0, 0
        for part in [request] if together else [request.one(k) for k in range(count)]:
            stream = part.noise()
            latents = stream.normal() if part.latents is None else np.asarray(part.latents, np.float32)
            denoisers = [self._denoiser(part) for _ in (part.windows.starts if part.windows else [0])]
            models, begin = [self._model(denoise, part, on_step) for denoise in denoisers], None
            if part.held is not None:
                models = [self._showing(each, part, window) for window, each in enumerate(models)]
            model = fused(models, part.windows) if part.windows else models[0]
            if part.held is not None:
                steps = part.solver.steps(part.num_inference_steps)
                begin = nearest(part.held, part.held_frames, part.shape[0])
                model = holding(model, part.held, part.held_frames, steps)
            walk = part.solver.sample(model, latents, part.num_inference_steps, stream, begin, part.strength)
            latents = _walked(walk, callback)
            if part.held is not None:
                latents[:, list(part.held_frames)] = part.held
            made.append(latents)
            passes += sum(denoise.passes for denoise in denoisers)
            skipped += sum(denoise.skipped for denoise in denoisers)
        self.skipped = skipped / passes
        return np.concatenate(made)

    def predict(self, x: np.ndarray, t: np.ndarray, conditions: Conditions = ()) -> np.ndarray:
        """Return what the network predicts for x_t (B, F, C, h, w) at timesteps t (B,): float32 (B, F, C or 2C, h, w).

        It is one call of the graph that samples without guidance; conditions have one row per video.
        """
        inputs = [ms.Tensor(np.ascontiguousarray(values)) for values in conditions]
        self.net.temporal = True
        scale = ms.Tensor(np.float32(1.0))
        return self.graphs.whole(False)(ms.Tensor(x), ms.Tensor(np.asarray(t, np.float32)), scale, *inputs).asnumpy()

    def _denoiser(self, request: Request) -> Denoiser:
        self.net.temporal = request.temporal
        walk = Walk.of(
            request.solver,
            request.num_inference_steps,
            request.strength,
            len(self.net.blocks),
            request.guidance_scale != 1,
        )
        return request.cache.start(self.graphs, walk)

    def _showing(self, model: Callable, request: Request, window: int) -> Callable:
        """Return the model of a window that shows the network conditioning frames if it was trained to be given them.

        They must be the first frames of the window, and not more than in the training.
        """
        windows, places, held = request.windows, list(request.held_frames), request.held
        start, length = (windows.starts[window], windows.length) if windows else (0, request.shape[0])
        there = [(place - start) % request.shape[0] for place in places]
        rows = sorted((k for k in range(len(there)) if there[k] < length), key=lambda k: there[k])
        first = [there[k] for k in rows]
        if held is None or first != list(range(len(first))) or not 0 < len(first) <= self.net.config.condition_frames:
            return model
        return showing(model, held[:, rows], first)

    def _model(self, denoise: Denoiser, request: Request, on_step: Callable[[int], object]) -> Callable:
        """Return the function that a solver calls: NumPy arrays in, NumPy arrays out."""
        follow, null = (
            [ms.Tensor(np.ascontiguousarray(values)) for values in part] for part in (request.conditions, request.null)
        )
        rescaled = (request.guidance_scale, request.guidance_rescale)
        given = rescaled if request.guidance_rescale else request.guidance_scale
        scale = ms.Tensor(np.asarray(given, np.float32))  # () or (2,), an input, so that one graph serves every scale
        numbers, calls = itertools.count(), request.solver.calls(request.num_inference_steps, request.strength)

        def model(x: np.ndarray, t: float | np.ndarray) -> np.ndarray:
            start, top = time.perf_counter(), float(np.max(t))
            step = Step(next(numbers), calls, top, request.guides_at(top))
            times = ms.Tensor(np.broadcast_to(np.float32(t), (len(x), *np.shape(t))).copy())  # (B,), or (B, F)
            conditions = (*follow, *null) if step.guided else follow
            out = denoise(step, ms.Tensor(x), times, scale, *conditions).asnumpy()
            self.step_seconds.append(time.perf_counter() - start)
            on_step(len(x))
            return out

        return model


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
