"""`--profile FROM:TO`: steps traced by MindSpore's profiler, and a table of the operations that took longest."""

from __future__ import annotations

import contextlib
import csv
import logging
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mindspore import profiler
from mindspore.profiler import ProfilerActivity

from latte.errors import UserError
from latte.io.csv_files import write_csv
from latte.runtime import device

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("latte")
FOLDER = "profile"  # in the folder of a run, or beside the videos
SHOWN = 10  # operations in the table
ACTIVITIES = {"Ascend": ProfilerActivity.NPU, "GPU": ProfilerActivity.GPU}  # beside the CPU's, which all have


class _Times(NamedTuple):
    """Files with the times of operations that MindSpore writes into a trace, and their columns."""

    files: str
    name: str
    calls: str | None  # None: one row per call
    time: str
    unit: float  # in seconds


# The first of these that a trace has. Ascend, in two levels of detail; GPU; CPU.
TIMES = (
    _Times("op_statistic*.csv", "OP Type", "Count", "Total Time(us)", 1e-6),
    _Times("kernel_details*.csv", "Type", None, "Duration(us)", 1e-6),
    _Times("gpu_op_type_info_*.csv", "op_type", "type_occurrences", "total_time(us)", 1e-6),
    _Times("cpu_op_type_info_*.csv", "op_type", "type_occurrences", "total_compute_time", 1e-3),
)


class Operation(NamedTuple):
    """One kind of operation in a trace."""

    name: str
    calls: int
    seconds: float
    share: float  # of the seconds of all operations


def check_span(span: tuple[int, int] | None, steps: int) -> None:
    """Raise UserError if a trace would begin behind the last one of so many steps."""
    if span is not None and span[0] > steps:
        raise UserError(f"profile is {span[0]}:{span[1]}, but the last step is {steps}; let FROM be at most {steps}")


class Profile:
    """Traces the steps of `span`, counted from 1, into a folder; without a span it does nothing.

    `begin` is called before each step and `done` after it. A run that goes on behind the first step to trace, as one
    that is resumed by itself with the options that it was started with, traces nothing, and a line says so.
    With several ranks each one writes a trace of its own, all side by side as MindStudio Insight wants them.
    """

    def __init__(self, span: tuple[int, int] | None, folder: Path):
        self.span, self.folder = span, folder / FOLDER
        self._profiler: profiler.profile | None = None
        self._begun: tuple[float, int] | None = None  # time and steps done at the start of the first traced step
        self._done = self._told = 0  # steps; of these, what the profiler was told

    def begin(self, done: int, steps: int = 1) -> None:
        """Note that the step after so many steps begins now, and begin the trace if it is the one.

        steps: how many the device takes before the next call; then a trace has all of them.
        """
        self._done = done
        if self.span is None:
            return
        first, last = self.span
        if self._profiler is not None:
            device.synchronize()  # what was handed over belongs to the steps before
            self._tell()
        elif done >= first:
            log.warning("profile %d:%d traces nothing, because the run goes on from step %d", first, last, done)
            self.span = None
        elif steps > 1 and done + steps >= first:
            self._start(0, -(-(last - done) // steps) * steps)
        elif steps == 1 and done + 1 >= max(first - 1, 1):  # a step earlier, for the profiler to warm up
            self._start(first - 1 - done, last - first + 1)
        if self._profiler is not None and self._begun is None and done + steps >= first:
            self._begun = time.perf_counter(), done

    def done(self, steps: int) -> None:
        """Note that so many steps are done, and end the trace if that was its last one."""
        self._done = steps
        if self.span is not None and steps >= self.span[1]:
            self.close()

    def step(self, *_: object) -> None:
        """Note that a step is done and the next one begins; as a callback of a pipeline, whatever it is given."""
        self.done(self._done + 1)
        self.begin(self._done)

    def close(self) -> None:
        """End the trace, also before its last step, and log and write the table; twice is as good as once."""
        if self._profiler is None:
            return
        device.synchronize()
        seconds = time.perf_counter() - self._begun[0] if self._begun else 0.0
        with contextlib.redirect_stdout(sys.stderr):  # it tells how far it is, and stdout is for results
            self._tell()
            self._profiler.stop()
        self._profiler, self.span = None, None
        if self._begun and self._done > self._begun[1]:
            self._report(self._begun[1] + 1, self._done, seconds)

    def _tell(self) -> None:
        assert self._profiler is not None
        for _ in range(self._done - self._told):
            self._profiler.step()
        self._told = self._done

    def _start(self, warm_up: int, steps: int) -> None:
        here = device.current()
        chosen = [ProfilerActivity.CPU, *filter(None, [ACTIVITIES.get(here.target)])]
        detail = profiler._ExperimentalConfig(  # as MindStudio Insight wants it: with communication and pipelines
            profiler_level=profiler.ProfilerLevel.Level1, aic_metrics=profiler.AicoreMetrics.PipeUtilization
        )
        self._profiler = profiler.profile(
            activities=chosen,
            schedule=profiler.schedule(wait=0, warmup=warm_up, active=steps, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(str(self.folder), f"rank{here.rank}"),
            start_profile=False,
            experimental_config=detail,
        )
        device.synchronize()
        self._told = self._done
        self._profiler.start()

    def _report(self, first: int, last: int, seconds: float) -> None:
        rank = device.current().rank
        traces = sorted(self.folder.glob(f"rank{rank}_*"), key=lambda path: path.stat().st_mtime)
        operations = read_operations(traces[-1]) if traces else []
        if not operations:
            where = self.folder
            log.warning("profile: MindSpore's profiler wrote no times of operations to %s; see what it says", where)
            return
        file = self.folder / f"operations-rank{rank}.csv"
        write_operations(operations, file)
        table = describe(operations)
        log.info(
            "traced steps %d to %d, %.2f s, of which operations took %.2f s; all of them: %s, the trace: %s\n%s",
            first,
            last,
            seconds,
            sum(operation.seconds for operation in operations),
            file,
            traces[-1],
            table,
        )


def read_operations(trace: Path) -> list[Operation]:
    """Return the operations of a trace that MindSpore wrote, the one that took longest first; [] if there are none."""
    for times in TIMES:
        sums: dict[str, list[float]] = {}
        for path in sorted(trace.rglob(times.files)):
            with path.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    found = sums.setdefault(row[times.name], [0, 0.0])
                    found[0] += int(row[times.calls]) if times.calls else 1
                    found[1] += float(row[times.time]) * times.unit
        if sums:
            whole = sum(seconds for _, seconds in sums.values()) or 1.0
            listed = [Operation(name, int(n), seconds, seconds / whole) for name, (n, seconds) in sums.items()]
            return sorted(listed, key=lambda operation: (-operation.seconds, operation.name))
    return []


def write_operations(operations: list[Operation], path: Path) -> None:
    """Write all operations as a CSV file; raises UserError if it cannot be written."""
    rows = [(each.name, each.calls, f"{each.seconds:.6f}", f"{each.share:.4f}") for each in operations]
    write_csv(path, Operation._fields, rows)


def describe(operations: list[Operation]) -> str:
    """Return a table of the operations that took longest."""
    shown = operations[:SHOWN]
    width = max(len("operation"), *(len(each.name) for each in shown))
    lines = [f"{'operation':{width}}  {'calls':>8}  {'seconds':>9}  {'share':>6}"]
    lines += [f"{each.name:{width}}  {each.calls:8,}  {each.seconds:9.3f}  {each.share:6.1%}" for each in shown]
    return "\n".join(lines)
