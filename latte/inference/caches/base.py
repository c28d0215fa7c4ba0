"""What all ways to skip work share: the walk they are made for, a step of it, the compiled graphs of a network.

A method is what a user asks for, with its settings. For each sampling of a batch of videos it starts an object that
takes the place of the denoiser, and keeps there what later steps need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from mindspore import ops

from latte.diffusion.denoiser import make_denoiser
from latte.runtime import collective, device, graphs
from latte.runtime.tensors import mean, narrow

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import mindspore as ms
    from mindspore import nn

    from latte.diffusion.solvers import Solver
    from latte.diffusion.timesteps import StepCount
    from latte.runtime.layout import Kind


@dataclass(frozen=True)
class Walk:
    """What a method is to know of a sampling before it begins."""

    solver: str
    steps: int  # of the solver
    calls: int  # of the network, which some solvers call twice per step
    depth: int  # blocks of the network
    guided: bool = False  # whether there are steps with guidance

    @classmethod
    def of(cls, solver: Solver, count: StepCount, strength: float, depth: int, guided: bool) -> Walk:
        """Return the walk of a solver; raises UserError as `Solver.steps` does."""
        steps = len(solver.steps(count, strength).timesteps)
        return cls(solver.name, steps, solver.calls(count, strength), depth, guided)


@dataclass(frozen=True)
class Step:
    """A network call of a sampling."""

    number: int  # from 0 on
    count: int  # of all
    timestep: float  # of all videos, on the scale of the training
    guided: bool  # whether the conditions are those to follow and then as many for "none"


class Denoiser(Protocol):
    """Denoises one batch of videos."""

    @property
    def passes(self) -> int:
        """How many passes through the network it has had."""

    @property
    def skipped(self) -> int:
        """How many of them left blocks out."""

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output (B, F, C or 2C, H, W) float32 for x (B, F, C, H, W), t (B,); see `make_denoiser`."""


def relative_change(
    new: Sequence[ms.Tensor], old: Sequence[ms.Tensor], whole: tuple[int, int], kind: Kind = "sequence"
) -> float:
    """Return mean |new - old| / mean |old|, each summed over the pairs of tensors; it waits for the device.

    The tensors are tokens (B, F, T, D) of videos (B, F) = whole, or this rank's part of them; the ranks of a group of
    that kind find the same.
    """
    pairs = list(zip(new, old, strict=False))
    if collective.size(kind) > 1:
        return _change_over_ranks(pairs, whole, kind)
    moved, size = (
        sum(parts[1:], parts[0])
        for parts in ([mean(ops.abs(a - b)) for a, b in pairs], [mean(ops.abs(b)) for _, b in pairs])
    )
    return float((moved / size).asnumpy())


def _change_over_ranks(pairs: Sequence[tuple[ms.Tensor, ms.Tensor]], whole: tuple[int, int], kind: Kind) -> float:
    sums, axis = np.zeros(2), 1 if whole[1] > 1 else 0
    start, stop, _ = collective.share_rows(whole[axis], "sequence")
    for a, b in pairs if stop > start else ():
        a, b = (narrow(each, axis, 0, stop - start) for each in (a, b))  # without what fills it up
        count = whole[0] * whole[1] * a.shape[2] * a.shape[3]
        share = a.size / count
        sums += [float(mean(ops.abs(each)).asnumpy()) * share for each in (a - b, b)]
    moved, size = collective.gather_arrays(sums.astype(np.float32), kind).astype(np.float64).sum(0)
    return float(moved / size)


class Method(Protocol):
    """A way to skip work, with its settings."""

    @property
    def together(self) -> bool:
        """Whether it may denoise several videos: False if it decides by what they look like."""

    def start(self, made: Graphs, walk: Walk) -> Denoiser:
        """Return what denoises one batch of videos."""


class Graphs:
    """The compiled graphs of a network, each made when it is first asked for."""

    def __init__(self, net: nn.Cell):
        self.net = net
        self.made: dict[tuple, Callable] = {}
        self._called: set[tuple] = set()  # the graphs that are compiled, by the shape of their first input too

    def get(self, what: str, build: Callable[[], Callable], *settings: Hashable) -> Callable:
        """Return the function that `build` returns, as one compiled graph if the device compiles steps.

        what: its name in the log. With other settings it is another graph, and so it is where `net.temporal` differs,
        whose value a graph keeps.
        """
        key = (what, self.net.temporal, *settings)
        if key not in self.made:
            compiled = graphs.compile_step(build())

            def call(*inputs: Any) -> Any:
                with graphs.first_call(what, self._called, (*key, inputs[0].shape)):
                    return compiled(*inputs)

            self.made[key] = call
        return self.made[key]

    def whole(self, guided: bool) -> Callable:
        """Return network and guidance as one graph; see `make_denoiser`."""
        batched = device.current().batches_videos
        return self.get("the network", lambda: make_denoiser(self.net, guided, batched), guided)


@dataclass(frozen=True)
class Nothing:
    """The method that skips nothing."""

    together: ClassVar[bool] = True

    def start(self, made: Graphs, walk: Walk) -> Denoiser:
        """Return what calls the whole network in every step."""
        return Plain(made)


class Plain:
    """Calls the whole network in every step."""

    def __init__(self, made: Graphs):
        self.made = made
        self.passes = self.skipped = 0

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output; see `make_denoiser`."""
        self.passes += 1
        return self.made.whole(step.guided)(x, t, scale, *conditions)
