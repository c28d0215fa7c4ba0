"""From noise to latents: a network with guidance, compiled once, and a solver."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.diffusion.arrays import as_array, like
from latte.diffusion.fixed_frames import holding, showing
from latte.diffusion.noise import NoiseStream
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.caches import Graphs, Nothing, Step, Walk
from latte.inference.windows import SharedNoise, Windows, fused
from latte.runtime import device
from latte.runtime.tensors import uploaded

if TYPE_CHECKING:
    from mindspore import nn

    from latte.diffusion.arrays import Latents
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
        if self.windows and self.windows.autoregressive:
            return NoiseStream(self.seeds, (self.windows.length, *self.shape[1:]))
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
        callback: Callable[[int, np.ndarray], np.ndarray | None] | None = None,
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

        def run(part: Request, stream: NoiseStream) -> np.ndarray:
            nonlocal passes, skipped
            denoisers = [self._denoiser(part) for _ in (part.windows.starts if part.windows else [0])]
            stays = device.current().compile_scope == "step"  # latents, on the accelerator
            pace = Pace(self.step_seconds, partial(on_step, len(part.seeds)), stays)
            latents = _walked(self._walk(denoisers, part, stream, stays, pace), callback)
            pace.end()
            passes += sum(denoise.passes for denoise in denoisers)
            skipped += sum(denoise.skipped for denoise in denoisers)
            if part.held is not None:
                latents[:, list(part.held_frames)] = part.held
            return latents

        for part in [request] if together else [request.one(k) for k in range(count)]:
            in_turn = part.windows and part.windows.autoregressive
            made.append(_in_turn(part, run) if in_turn else run(part, part.noise()))
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

    def _walk(
        self, denoisers: Sequence[Denoiser], request: Request, stream: NoiseStream, stays: bool, pace: Pace
    ) -> Generator:
        """Return the walk of a request: latents after each step, with `stays` as tensors on the device.

        denoisers: one for each window over time, or one. stream: the noise of its videos from here on.
        """
        place: Callable[[np.ndarray], Latents] = uploaded if stays else np.asarray
        begin = None
        start = place(stream.normal() if request.latents is None else np.asarray(request.latents, np.float32))
        models = [self._model(denoise, request, stays, pace) for denoise in denoisers]
        if request.held is not None:
            models = [self._showing(each, request, window, start) for window, each in enumerate(models)]
        model = fused(models, request.windows) if request.windows else models[0]
        if request.held is not None:
            steps = request.solver.steps(request.num_inference_steps)
            begin = place(nearest(request.held, request.held_frames, request.shape[0]))
            model = holding(model, request.held, request.held_frames, steps, start)
        noises = map(place, stream)
        return request.solver.sample(model, start, request.num_inference_steps, noises, begin, request.strength)

    def _showing(self, model: Callable, request: Request, window: int, latents: Latents) -> Callable:
        """Return the model of a window that shows the network conditioning frames if it was trained to be given them.

        They must be the first frames of the window, and not more than in the training. Raises UserError where ranks
        share frames, whose timesteps would differ.
        """
        windows, places, held = request.windows, list(request.held_frames), request.held
        start, length = (windows.starts[window], windows.length) if windows else (0, request.shape[0])
        there = [(place - start) % request.shape[0] for place in places]
        rows = sorted((k for k in range(len(there)) if there[k] < length), key=lambda k: there[k])
        first = [there[k] for k in rows]
        if held is None or first != list(range(len(first))) or not 0 < len(first) <= self.net.config.condition_frames:
            return model
        if device.current().sequence > 1:
            raise UserError(
                "a network that was trained with condition_frames is given frames with a timestep of their own, which "
                "ranks that share frames do not have; leave out sequence_parallel, or the frames"
            )
        return showing(model, held[:, rows], first, latents[:, :length])

    def _model(self, denoise: Denoiser, request: Request, stays: bool, pace: Pace) -> Callable:
        """Return the function that a solver calls; with `stays` it takes and returns tensors on the device."""
        follow, null = ([uploaded(values) for values in part] for part in (request.conditions, request.null))
        rescaled = (request.guidance_scale, request.guidance_rescale)
        given = rescaled if request.guidance_rescale else request.guidance_scale
        scale = uploaded(np.asarray(given, np.float32))  # () or (2,), an input, so that one graph serves every scale
        zeros = uploaded(np.zeros(len(request.seeds), np.float32))  # (B,)
        numbers, calls = itertools.count(), request.solver.calls(request.num_inference_steps, request.strength)

        def model(x: Latents, t: float | np.ndarray) -> Latents:
            top = float(np.max(t))  # a timestep for all frames, or one for each, (F,)
            step = Step(next(numbers), calls, top, request.guides_at(top))
            times = zeros + t if np.ndim(t) == 0 else zeros.reshape(-1, 1) + uploaded(np.asarray(t, np.float32))
            conditions = (*follow, *null) if step.guided else follow
            out = denoise(step, x if stays else ms.Tensor(x), times, scale, *conditions)  # times (B,) or (B, F)
            out = out if stays else out.asnumpy()
            pace.called()
            return out

        return model


def _in_turn(request: Request, run: Callable[[Request, NoiseStream], np.ndarray]) -> np.ndarray:
    """Return latents (B, F, C, h, w) of windows each of which is given the frames that are there already.

    Those are the last ones of the window before it, and conditioning frames of the video. `run` samples one window.
    """
    windows, stream = request.windows, request.noise()
    assert windows is not None
    frames = np.zeros((len(request.seeds), 0, *request.shape[1:]), np.float32)
    for start in windows.starts:
        there, end = frames.shape[1], start + windows.length
        rows = [k for k, place in enumerate(request.held_frames) if there <= place < end]
        places = [*range(there - start), *(request.held_frames[k] - start for k in rows)]
        held = [frames[:, start:], *([request.held[:, rows]] if request.held is not None else [])]
        part = replace(
            request,
            shape=(windows.length, *request.shape[1:]),
            held=np.concatenate(held, 1) if places else None,
            held_frames=places,
            windows=None,
        )
        frames = np.concatenate([frames, run(part, stream)[:, there - start :]], 1)
    return frames[:, : windows.frames]


class Pace:
    """Tells how far the device is and how long its calls take.

    ahead: let the host prepare a call while the device is still busy with the one before, but no more than one, so that
    a progress bar shows what is done.
    """

    def __init__(self, seconds: list[float], on_step: Callable[[], object], ahead: bool):
        self.seconds, self.on_step, self.ahead = seconds, on_step, ahead
        self.before: Callable[[], None] | None = None
        self.last = time.perf_counter()

    def called(self) -> None:
        """Note a call of the network, and wait for it, or for the one before it if the host may be ahead."""
        self.end()
        self.before = device.landmark()
        if not self.ahead:
            self.end()

    def end(self) -> None:
        """Wait until all calls are done."""
        if self.before is None:
            return
        self.before()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.before, self.last = None, now
        self.on_step()


def _walked(
    walk: Generator[Latents, Latents | None, None],
    callback: Callable[[int, np.ndarray], np.ndarray | None] | None,
) -> np.ndarray:
    """Return the last latents of a walk, after `callback` has seen, and maybe replaced, those of each step."""
    latents, step = next(walk), 0
    while True:
        changed = None if callback is None else callback(step, as_array(latents))
        latents = latents if changed is None else like(changed, latents)
        try:
            latents, step = walk.send(None if changed is None else latents), step + 1
        except StopIteration:
            return as_array(latents)
