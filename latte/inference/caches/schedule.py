"""Fixed schedules: which steps compute all blocks, and which add again what a range of blocks added before.

A block adds to its tokens, and what a range of blocks adds, its residual (out - in), changes slowly from one denoising
step to the next (MindIE's AttentionCache; LeMiCa, arXiv 2511.00090). When the steps are chosen before the sampling,
nothing is decided in it: the host never waits for the device, both halves of guidance stay one batch, and a video
depends on no other.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import mindspore as ms

from latte.diffusion.denoiser import in_passes
from latte.errors import UserError, quoted
from latte.io.atomic import atomic_path
from latte.io.json_files import check_numbers, read_json
from latte.ops import first_videos
from latte.runtime import device
from latte.runtime.collective import gather
from latte.runtime.tensors import split
from latte.weights.fingerprint import base_fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mindspore import nn

    from latte.inference.caches.base import Graphs, Step, Walk

NAMED = re.compile(r"(every|calls)([1-9]\d{0,3})(?:-order([012]))?")
ORDERS = (0, 2)
MOST = 4000  # network calls of a sampling: 1000 steps of a solver that calls twice, and more
KEYS = {"computed": list, "calls": int, "blocks": list, "order": int, "solver": str, "steps": int, "model": str}
REMEDY = "make it again with latte schedule"


@dataclass(frozen=True)
class Schedule:
    """The network calls in which all blocks are computed; in the others the residual of `blocks` is added again.

    order: 0 adds the last residual, 1 and 2 extrapolate the last two and three to the step's timestep by a polynomial
    in it, as far as there are so many. The timestep is what the network is told, and solvers with the spacing of the
    training walk it evenly.
    """

    computed: tuple[int, ...]  # their numbers, from 0 on, rising
    calls: int  # of the network in all
    blocks: tuple[int, int]  # first block of the range, and the one after its last
    order: int = 0
    solver: str | None = None  # that it was found with; None = any
    steps: int | None = None  # of this solver
    model: str | None = None  # fingerprint of the network that it was found with
    source: str = ""  # the file, for messages
    together: ClassVar[bool] = True

    def start(self, made: Graphs, walk: Walk) -> Scheduled:
        """Return what denoises a batch of videos; warns, once, if the network is not the one of the schedule."""
        if self.model and self.model != model_of(made.net):
            device.warn_once(
                f"{self.source} was found with other weights than these; latte schedule finds one for these"
            )
        return Scheduled(self, made)

    def check(self, walk: Walk) -> Schedule:
        """Return it; raises UserError if it is not for such a walk."""
        now = {"solver": walk.solver, "steps": walk.steps}
        for name, value in now.items():
            if (of := getattr(self, name)) not in (None, value):
                raise UserError(
                    f"{self.source} is a schedule for {name} {of}, but the sampling has {name} {value}; find one with "
                    f"latte schedule, or sample with {self.steps} steps of {self.solver}"
                )
        if self.calls != walk.calls or self.blocks[1] > walk.depth:
            raise UserError(
                f"{self.source} is a schedule for {self.calls} network calls and {self.blocks[1]} blocks or more, but "
                f"the sampling has {walk.calls} and {walk.depth}; find one for it with latte schedule"
            )
        return self

    def save(self, path: Path, **beside: Any) -> None:
        """Write it as JSON, with facts beside it that are for readers; raises UserError if the file cannot be written.

        It is written whole or not at all.
        """
        found = {name: getattr(self, name) for name in KEYS} | {"found": beside}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")


def named(name: str, walk: Walk) -> Schedule | None:
    """Return the schedule of all blocks that a name stands for, None if it is no such name.

    every<k> computes each k-th network call, calls<n> n of them, evenly spread; both compute the first and the last
    one. -order1 and -order2 behind it extrapolate. Raises UserError if there are not so many calls.
    """
    found = NAMED.fullmatch(name)
    if not found:
        return None
    kind, number, last = found[1], int(found[2]), walk.calls - 1
    if kind == "calls" and not min(2, walk.calls) <= number <= walk.calls:
        raise UserError(
            f"cache {name} asks for {number} network calls, but must ask for {min(2, walk.calls)} to {walk.calls} here"
        )
    chosen = range(0, last, number) if kind == "every" else evenly(number, walk.calls)
    return Schedule(tuple(sorted({0, *chosen, last})), walk.calls, (0, walk.depth), int(found[3] or 0), source=name)


def evenly(count: int, calls: int) -> list[int]:
    """Return the numbers of so many of the network calls, evenly spread, the first and the last one among them."""
    return [round(k * (calls - 1) / max(count - 1, 1)) for k in range(count)]


def read_schedule(path: str | Path) -> Schedule:
    """Return the schedule in a file of `latte schedule`; raises UserError if it is missing, damaged or impossible."""
    found = read_json(path, remedy=REMEDY)
    for key, kind in KEYS.items():
        if type(found.get(key)) is not kind:
            raise UserError(f"{path} is no schedule: {key} is {quoted(repr(found.get(key)), 60)}; {REMEDY}")
    check_numbers(found, {"calls": (1, MOST), "steps": (1, MOST), "order": ORDERS}, str(path))
    computed, blocks = found["computed"], found["blocks"]
    if any(type(number) is not int for number in [*computed, *blocks]) or len(blocks) != 2:
        raise UserError(f"{path} is no schedule: computed and blocks must be lists of whole numbers; {REMEDY}")
    rising = all(a < b for a, b in itertools.pairwise(computed))
    if not rising or computed[:1] != [0] or computed[-1] >= found["calls"] or not 0 <= blocks[0] < blocks[1]:
        raise UserError(
            f"{path} is no schedule: computed must rise from 0 to below {found['calls']}, and blocks be a range; "
            f"{REMEDY}"
        )
    values = {key: found[key] for key in KEYS} | {"computed": tuple(computed), "blocks": tuple(blocks)}
    return Schedule(**values, source=str(path))


def model_of(net: nn.Cell) -> str:
    """Return what identifies the weights of a network, in whatever dtype and layout its blocks hold them.

    These are the biases outside of the blocks, which every training changes.
    """
    biases = {p.name: p.asnumpy() for p in net.get_parameters() if p.ndim == 1 and "blocks." not in p.name}
    return base_fingerprint(biases)[:16]


class Scheduled:
    """Denoises a batch of videos by a schedule; each video has residuals of its own, one row each."""

    def __init__(self, schedule: Schedule, made: Graphs):
        self.schedule, self.made, self.computed = schedule, made, set(schedule.computed)
        self.history: list[tuple[float, tuple[ms.Tensor, ...]]] = []  # timestep, residual of each pass; newest first
        self.guided = False  # whether those residuals are of both halves
        self.passes = self.skipped = 0

    def __call__(self, step: Step, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the output; see `make_denoiser`.

        Where guidance begins, all is computed whatever the schedule says: the unconditional half has no residual yet.
        """
        if step.guided != self.guided:
            whole = x.shape[:2]
            self.history = [] if step.guided else [(at, conditional(kept, whole)) for at, kept in self.history]
            self.guided = step.guided
        self.passes += 1
        blocks = self.schedule.blocks
        if self.computes(step, x, t, *conditions) or not self.history:
            out, kept = computing(self.made, blocks, step.guided)(x, t, scale, *conditions)
            others = [each for each in self.history if each[0] != step.timestep]
            self.history = [(step.timestep, kept), *others][: self.schedule.order + 1]
            return out
        self.skipped += 1
        residuals = extrapolated(self.history, step.timestep)
        return reusing(self.made, blocks, step.guided)(x, t, scale, *residuals, *conditions)

    def computes(self, step: Step, x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor) -> bool:
        """Return whether a network call computes all blocks."""
        return step.number in self.computed


def conditional(kept: Sequence[ms.Tensor], whole: tuple[int, int], count: int = 1) -> tuple[ms.Tensor, ...]:
    """Return what was kept of the conditional half: of the first of two passes, or of the first rows of one.

    whole: the videos of a half, and their frames. count: how many tensors each pass keeps.

    Of two groups of ranks that share guidance the first one sends it to the other.
    """
    if device.current().guidance > 1:
        return tuple(split(gather(each, "guidance"), 1, 0)[0].reshape(each.shape) for each in kept)
    if len(kept) > count:
        return tuple(kept[:count])
    videos, frames = whole
    return tuple(first_videos(each, videos, (2 * videos, frames)) for each in kept)


def weights_at(positions: Sequence[float], at: float) -> list[float]:
    """Return the weights of values at some positions in their polynomial (Lagrange's) at another position."""
    return [math.prod((at - other) / (one - other) for other in positions if other != one) for one in positions]


def extrapolated(history: Sequence[tuple[float, Sequence[ms.Tensor]]], timestep: float) -> tuple[ms.Tensor, ...]:
    """Return the residual of each pass at a timestep, from those at others, in their dtype.

    They are summed in float32; nothing here waits for the device.
    """
    if len(history) == 1:
        return tuple(history[0][1])
    weights = weights_at([at for at, _ in history], timestep)
    sums = []
    for values in zip(*(kept for _, kept in history), strict=True):
        terms = [value.astype(ms.float32) * weight for value, weight in zip(values, weights, strict=True)]
        sums.append(sum(terms[1:], terms[0]).astype(values[0].dtype))
    return tuple(sums)


def computing(made: Graphs, blocks: tuple[int, int], guided: bool) -> Callable:
    """Return the graph of all blocks; see `all_blocks`."""
    return made.get("the network", lambda: all_blocks(made.net, blocks, guided), blocks, guided)


def reusing(made: Graphs, blocks: tuple[int, int], guided: bool) -> Callable:
    """Return the graph of all but a range of blocks; see `other_blocks`."""
    return made.get("the other blocks", lambda: other_blocks(made.net, blocks, guided), blocks, guided)


def all_blocks(net: nn.Cell, blocks: tuple[int, int], guided: bool) -> Callable:
    """Return a function (x, t, scale, *conditions) -> (output, (residual of each pass,)).

    A residual is (B or 2B, F, T, D), see `in_passes`: what the range of blocks has added to its tokens.
    """
    first, last = blocks

    def run(x: ms.Tensor, t: ms.Tensor, kept: Sequence[ms.Tensor], conditions: Sequence[ms.Tensor]) -> tuple:
        tokens, context = net.embed(x, t, *conditions)  # (B, F, T, D)
        tokens = net.run_blocks(tokens, context, 0, first)
        inner = net.run_blocks(tokens, context, first, last)
        out = net.run_blocks(inner, context, last, len(net.blocks))
        return net.finish(out, context), (inner - tokens,)

    return in_passes(run, guided, device.current().batches_videos)


def other_blocks(net: nn.Cell, blocks: tuple[int, int], guided: bool) -> Callable:
    """Return a function (x, t, scale, *residuals, *conditions) -> output, with a residual in place of a range."""
    first, last = blocks

    def run(x: ms.Tensor, t: ms.Tensor, kept: Sequence[ms.Tensor], conditions: Sequence[ms.Tensor]) -> tuple:
        tokens, context = net.embed(x, t, *conditions)  # (B, F, T, D)
        tokens = net.run_blocks(tokens, context, 0, first) + kept[0]
        out = net.run_blocks(tokens, context, last, len(net.blocks))
        return net.finish(out, context), ()

    passes = in_passes(run, guided, device.current().batches_videos, kept=1)

    def reuse(x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *inputs: ms.Tensor) -> ms.Tensor:
        return passes(x, t, scale, *inputs)[0]

    return reuse
