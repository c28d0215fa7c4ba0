"""Find the fixed schedule of a number of network calls on a user's own model: LeMiCa's search (arXiv 2511.00090).

For each pair of network calls (i, j) that are not too far apart, one run measures what the last latents lose if the
residual of call i serves all calls between the two, everything else being computed. A schedule is a path over such
pairs. The one whose errors, sorted from the largest on, come first in the order of a dictionary is taken: its worst
error is the least possible, and then its second worst, and so on.

The errors of pairs do not simply add up, least of all where residuals are extrapolated. So the better one of it and of
evenly spread calls is refined: a call is moved to a neighbour where a sampling shows that this is better.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mindspore as ms
import numpy as np
from tqdm import tqdm

from latte.errors import UserError
from latte.inference import videos
from latte.inference.caches.schedule import Schedule, computing, conditional, evenly, extrapolated, model_of, reusing
from latte.inference.inputs import asked_steps, check_interval, choose_inputs, guidance, latent_shape, make_conditions
from latte.inference.latents import Request
from latte.io.atomic import atomic_path, check_writable
from latte.io.csv_files import write_csv
from latte.runtime.tensors import uploaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latte.config.schedule import ScheduleConfig
    from latte.inference.latents import LatentSampler
    from latte.inference.pipeline import LattePipeline
    from latte.inference.videos import Plan

log = logging.getLogger("latte")
COLUMNS = ("calls", "largest_pair_error", "found", "even")
MEASURED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # of all calls: where found and even schedules are sampled, to compare them
Pair = tuple[int, int]  # a computed call and the next computed one, which is the number of calls behind the last one


class Found(NamedTuple):
    """A schedule, and the errors of its pairs that are not zero, falling."""

    errors: tuple[float, ...]
    computed: tuple[int, ...]


def pairs_of(calls: int, max_gap: int) -> list[Pair]:
    """Return the pairs of calls with 1 to `max_gap` - 1 calls between them."""
    return [(i, j) for i in range(calls) for j in range(i + 2, min(i + max_gap, calls) + 1)]


def cost(calls: int, max_gap: int, counts: Sequence[int]) -> int:
    """Return the network calls per video: the full run, the ends of the runs of all pairs, the measured schedules."""
    return calls + sum(calls - j for _, j in pairs_of(calls, max_gap)) + 2 * sum(counts)


def refined(
    start: tuple[int, ...], error: float, measure: Callable[[tuple[int, ...]], float], calls: int, trials: int
) -> tuple[tuple[int, ...], float]:
    """Return a schedule with a smaller measured error than `start`, or it, and its error, after so many measurements.

    One computed call after the other, but for the first, is moved by one, until no move is better.
    """
    best, tried = start, {start}
    moves = [(place, by) for place in range(1, len(start)) for by in (-1, 1)]
    waiting = list(moves)
    while waiting and trials:
        place, by = waiting.pop(0)
        moved = tuple(sorted({*best[:place], best[place] + by, *best[place + 1 :]}))
        if len(moved) < len(best) or moved[-1] >= calls or moved in tried:
            continue
        tried.add(moved)
        trials -= 1
        if (now := measure(moved)) < error:
            best, error, waiting = moved, now, [*waiting, *moves]
    return best, error


def error_table(
    sampler: LatentSampler,
    request: Request,
    blocks: tuple[int, int],
    order: int,
    max_gap: int,
    on_call: Callable[[int], object] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the errors (calls, calls + 1) of all pairs for one video, and its latents (1, F, C, h, w) of the full run.

    An error is the root mean square of the difference of the last latents, relative to that of these latents; infinite
    for pairs that are no option. All runs are rows of one walk of the solver, so that each takes the full run's results
    up to its first call, whatever the solver remembers. To extrapolate, a pair takes the residuals of calls as far
    apart before it as its own two are. `on_call` gets the number of network calls of each step.
    """
    calls = request.solver.calls(request.num_inference_steps)
    pairs, made = pairs_of(calls, max_gap), sampler.graphs
    made.net.temporal = request.temporal
    follow, null = ([uploaded(each) for each in part] for part in (request.conditions, request.null))
    scale, numbers = uploaded(np.float32(request.guidance_scale)), itertools.count()
    residuals: dict[int, tuple[float, tuple[ms.Tensor, ...], bool]] = {}  # of the full run: timestep, passes, guided
    begins: list[int] = []  # calls in which guidance begins

    def history(i: int, j: int, guided: bool) -> list[tuple[float, tuple[ms.Tensor, ...]]]:
        places = [i - k * (j - i) for k in range(order + 1)]
        found: dict[float, tuple[ms.Tensor, ...]] = {}
        for at, kept, both in (residuals[place] for place in places if place >= 0):
            if both or not guided:
                found.setdefault(at, conditional(kept, (1, request.shape[0])) if both and not guided else kept)
        return list(found.items())

    def model(x: np.ndarray, t: float) -> np.ndarray:
        call, guided = next(numbers), request.guides_at(t)
        if guided and call and not residuals[call - 1][2]:
            begins.append(call)
        conditions, times = (*follow, *null) if guided else follow, ms.Tensor(np.full(1, t, np.float32))

        def whole(row: np.ndarray) -> tuple[np.ndarray, tuple[ms.Tensor, ...]]:
            out, kept = computing(made, blocks, guided)(ms.Tensor(row), times, scale, *conditions)
            on_call(1)
            return out.asnumpy(), kept

        first, kept = whole(x[:1])
        residuals[call] = (t, kept, guided)
        residuals.pop(call - (order + 1) * max_gap, None)
        outs = [first]
        for row, (i, j) in zip(np.split(x, len(x))[1:], pairs, strict=True):
            if call <= i:
                outs.append(first)
            elif call >= j or any(i < begin for begin in begins):
                outs.append(whole(row)[0])
            else:
                kept = extrapolated(history(i, j, guided), t)
                out = reusing(made, blocks, guided)(ms.Tensor(row), times, scale, *kept, *conditions)
                outs.append(out.asnumpy())
        return np.concatenate(outs)

    stream = request.noise()
    start = np.repeat(next(stream), 1 + len(pairs), axis=0)
    *_, last = request.solver.sample(model, start, request.num_inference_steps, stream)
    errors = np.full((calls, calls + 1), np.inf)
    errors[range(calls), range(1, calls + 1)] = 0.0
    for (i, j), row in zip(pairs, last[1:], strict=True):
        if not any(i < begin < j for begin in begins):
            errors[i, j] = relative_error(row, last[0])
    return errors, last[:1]


def relative_error(latents: np.ndarray, full: np.ndarray) -> float:
    """Return the root mean square of the difference of latents to those of the full run, relative to that of these."""
    return float(
        np.sqrt(np.square(latents.astype(np.float64) - full).mean() / np.square(full.astype(np.float64)).mean())
    )


def best_paths(errors: np.ndarray, most: int) -> dict[int, Found]:
    """Return for each number of computed calls, up to `most`, the path over pairs with the best sorted errors.

    errors: (calls, calls + 1), infinite where there is no pair. Adding one error to two lists of errors does not change
    which of them comes first, so the best path to a call is made of best paths (dynamic programming).
    """
    calls = len(errors)
    into = [np.flatnonzero(np.isfinite(errors[:, j])) for j in range(calls + 1)]
    best: dict[int, Found] = {0: Found((), ())}
    found = {}
    for count in range(1, most + 1):
        longer: dict[int, Found] = {}
        for j in range(1, calls + 1):
            for i in into[j].tolist():
                if i not in best:
                    continue
                more = (float(errors[i, j]),) if errors[i, j] > 0 else ()
                path = Found(tuple(sorted((*best[i].errors, *more), reverse=True)), (*best[i].computed, i))
                if j not in longer or path < longer[j]:
                    longer[j] = path
        best = longer
        if calls in best:
            found[count] = best[calls]
    return found


def request_of(cfg: ScheduleConfig, pipe: LattePipeline, plan: Plan) -> Request:
    """Return the request for the videos that the search looks at: the first ones of the sampling."""
    config, numbers = plan.network.config, list(range(cfg.search_videos))
    shown, scale = choose_inputs(cfg, config, numbers), guidance(cfg, config)
    conditions, null = make_conditions(
        config,
        pipe.prompts,
        (shown.get("prompt"), shown.get("negative_prompt", "")),
        shown.get("class_labels"),
        (shown.get("prompt_embeds"), shown.get("negative_prompt_embeds")),
        scale != 1,
        cfg.mask_feature,
    )
    return Request(
        seeds=[cfg.seed + k for k in numbers],
        shape=latent_shape(cfg, config, plan.vae.config.downsampling),
        conditions=conditions,
        null=null,
        num_inference_steps=asked_steps(cfg, config),
        solver=plan.solver,
        guidance_scale=scale,
        guidance_interval=check_interval(cfg.guidance_interval, scale),
        temporal=cfg.enable_temporal_attentions,
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be searched, after all checks."""

    plan: Plan
    blocks: tuple[int, int]
    counts: tuple[int, ...]  # computed calls of the schedules that are sampled to compare them

    @property
    def calls(self) -> int:
        """The network calls without a schedule."""
        return self.plan.walk.calls

    def cost(self, cfg: ScheduleConfig) -> int:
        """Return the network calls of the search."""
        return cfg.search_videos * (cost(self.calls, cfg.max_gap, self.counts) + cfg.refine * cfg.calls)


def check(cfg: ScheduleConfig) -> Task:
    """Check the options and files; raises UserError for everything that would stop the search."""
    plan = videos.check(cfg)
    config = plan.network.config
    calls = plan.walk.calls
    first, last = cfg.blocks or (0, config.depth)
    if last > config.depth:
        raise UserError(f"blocks are {first} to {last}, but {cfg.checkpoint} has {config.depth}; name a range of these")
    fewest = math.ceil(calls / cfg.max_gap)
    if not fewest <= cfg.calls <= calls:
        raise UserError(
            f"calls is {cfg.calls}, but must be from {fewest} to {calls} for {calls} network calls and max_gap "
            f"{cfg.max_gap}; change one of them"
        )
    there = cfg.num_samples * len(cfg.prompts or [None])
    if cfg.search_videos > there:
        raise UserError(f"search_videos is {cfg.search_videos}, but there are {there} videos; raise num_samples")
    check_writable(str(Path(cfg.schedule_file).resolve().parent), "schedule_file")
    points = {round(share * calls) for share in MEASURED}
    counts = sorted({cfg.calls, *(point for point in points if fewest <= point < calls and point > 1)})
    return Task(plan, (first, last), tuple(counts))


def dry_run(cfg: ScheduleConfig) -> str:
    """Check options and files and describe the search and its cost; raises UserError as `check` does."""
    task = check(cfg)
    return (
        f"a schedule of {cfg.calls} of {task.calls} network calls of {task.plan.walk.solver}, for blocks "
        f"{task.blocks[0]} to {task.blocks[1] - 1}, found on {cfg.search_videos} videos by {task.cost(cfg):,} network "
        f"calls, which is {task.cost(cfg) / task.calls:.0f} times those of one video, in {cfg.schedule_file}"
    )


def find(cfg: ScheduleConfig) -> str:
    """Search, write the schedule with its table and plot, and return a report; raises UserError as `check` does."""
    task = check(cfg)
    pipe = videos.build_pipeline(cfg, task.plan)
    request = request_of(cfg, pipe, task.plan)
    singles = [request.one(k) for k in range(cfg.search_videos)]
    with tqdm(total=task.cost(cfg), desc="searching", unit="call", smoothing=0.1) as bar:
        tables = [error_table(pipe.latents, each, task.blocks, cfg.order, cfg.max_gap, bar.update) for each in singles]
        errors = np.mean([table for table, _ in tables], axis=0)
        found = best_paths(errors, max(task.counts))
        if cfg.calls not in found:
            raise UserError(
                f"there is no schedule of {cfg.calls} calls in which guidance begins; raise calls or max_gap"
            )

        def measure(computed: tuple[int, ...]) -> float:
            return _measured(pipe, cfg, task, singles, tables, computed, bar.update)

        rows: list[tuple[Any, ...]] = []
        for count in sorted(found):
            measured: list[float | None] = [None, None]
            if count in task.counts:
                measured = [measure(found[count].computed), measure(tuple(evenly(count, task.calls)))]
            rows.append((count, found[count].errors[0] if found[count].errors else 0.0, *measured))
        told = dict(zip(COLUMNS, next(row for row in rows if row[0] == cfg.calls), strict=True))
        starts = [(told["found"], found[cfg.calls].computed), (told["even"], tuple(evenly(cfg.calls, task.calls)))]
        error, start = min(starts)
        computed, error = refined(start, error, measure, task.calls, cfg.refine)
    file = Path(cfg.schedule_file)
    write_csv(file.with_suffix(".csv"), COLUMNS, rows)
    _plot(file.with_suffix(".png"), rows, cfg, task, error)
    schedule = dataclasses.replace(_schedule(cfg, task, computed), model=model_of(pipe.net))
    schedule.save(file, checkpoint=str(cfg.checkpoint), seeds=list(request.seeds), **told, refined=error)
    even = f"calls{cfg.calls}" + (f"-order{cfg.order}" if cfg.order else "")
    return (
        f"{file}: computes network calls {', '.join(map(str, schedule.computed))} of {task.calls}\n"
        f"relative error of the last latents {error:.4f}; found by pairs {told['found']:.4f}; evenly spread, --cache "
        f"{even}, {told['even']:.4f}\n{file.with_suffix('.csv')}\n{file.with_suffix('.png')}"
    )


def _schedule(cfg: ScheduleConfig, task: Task, computed: tuple[int, ...]) -> Schedule:
    walk = task.plan.walk
    return Schedule(computed, walk.calls, task.blocks, cfg.order, walk.solver, walk.steps)


def _measured(
    pipe: LattePipeline,
    cfg: ScheduleConfig,
    task: Task,
    singles: Sequence[Request],
    tables: Sequence[tuple[np.ndarray, np.ndarray]],
    computed: tuple[int, ...],
    on_call: Callable[[int], object],
) -> float:
    """Return the mean error of videos that are sampled with a schedule; `on_call` gets the calls of each."""
    method, found = _schedule(cfg, task, computed), []
    for single, (_, full) in zip(singles, tables, strict=True):
        found.append(relative_error(pipe.latents.sample(dataclasses.replace(single, cache=method)), full))
        on_call(len(computed))
    return float(np.mean(found))


def _plot(path: Path, rows: Sequence[tuple], cfg: ScheduleConfig, task: Task, error: float) -> None:
    from matplotlib.figure import Figure  # takes a second to import; draws without a display

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    columns = {name: np.array([row[k] for row in rows], float) for k, name in enumerate(COLUMNS)}
    panel.plot(columns["calls"], columns["largest_pair_error"], color="0.6", label="largest error of a pair")
    for name, label in (("found", "schedule found by pairs, sampled"), ("even", "evenly spread calls, sampled")):
        known = np.isfinite(columns[name])
        panel.plot(columns["calls"][known], columns[name][known], marker="o", markersize=4, label=label)
    panel.plot([cfg.calls], [error], "k*", markersize=10, label="the schedule that was written")
    panel.set(
        title=f"{task.plan.walk.solver}, {task.calls} calls without a schedule",
        xlabel="computed network calls",
        ylabel="relative error of the last latents",
        ylim=(0, None),
    )
    panel.grid(alpha=0.3)
    panel.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
