"""The metrics of a run: metrics.csv and eval.csv, TensorBoard events, loss.png and eval.png."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.io.csv_files import write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tensorboardX import SummaryWriter

    from latte.training.tracker import Tracker

log = logging.getLogger("latte")
# No times: a resumed run must write the same bytes as an uninterrupted one. Times go to TensorBoard and to the log.
COLUMNS = ("step", "epoch", "loss", "mse", "bound", "grad_norm", "learning_rate", "loss_scale", "skipped_steps")
LOSSES = {"loss": "loss", "mse": "mean squared error", "bound": "VLB term"}
PANELS = {"grad_norm": "gradient norm", "learning_rate": "learning rate", "loss_scale": "loss scale"}
BINS = 10  # of the timesteps, in eval.csv
STEPS = 1000  # timesteps
EDGES = [(STEPS * k // BINS, STEPS * (k + 1) // BINS - 1) for k in range(BINS)]  # first and last timestep of each bin
OF_BINS = tuple(f"mse_{first:03d}_{last:03d}" for first, last in EDGES)
EVAL_COLUMNS = ("step", *LOSSES, *OF_BINS)
_ROW = re.compile(rb"\d{1,15}(,[-+.\deainf]{1,32})+")
BARS = "▁▂▃▄▅▆▇█"
FLUSH_SECONDS = 10  # of TensorBoard events; a killed run loses at most these
# How the log shows the values that only TensorBoard gets; `others` of `Trainer`.
IN_LOG = {
    "seconds_per_step": "{:.3g} s per step",
    "videos_per_second": "{:.3g} videos per second",
    "images_per_second": "{:.3g} images per second",
    "memory_gib": "peak memory {:.2f} GiB",
    "bad_videos": "{:.0f} bad videos",
}


class Table:
    """A CSV file of a run; it drops rows after `step`, because a resumed run writes them again.

    The file is a by-product: what is damaged in it is left out with a warning, and kept beside it. Raises UserError if
    the file cannot be written.
    """

    def __init__(self, file: Path, columns: Sequence[str], step: int):
        self.file, self.columns = file, columns
        rows, damage = read_metrics(self.file, step, columns)
        if damage:
            aside = self.file.with_name(f"{file.stem}-before-step-{step:08d}.csv")
            log.warning("%s: %s; the rest of it is kept, and the file as it was is %s", self.file, damage, aside.name)
            with atomic_path(aside) as temporary:
                temporary.write_bytes(self.file.read_bytes())
        write_csv(self.file, columns, rows)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows that are in the file and not damaged."""
        return read_metrics(self.file, columns=self.columns)[0]

    def write(self, values: Mapping[str, float]) -> None:
        """Add a row; raises UserError if it cannot be written."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                if not file.tell():
                    log.warning("%s was removed or emptied, and is begun anew", self.file)
                    writer.writeheader()
                writer.writerow(values)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error

    def sync(self) -> None:
        """Wait until the rows are on the disk; a checkpoint after this counts on them."""
        try:
            handle = os.open(self.file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except FileNotFoundError:
            pass  # removed by somebody; the next row begins it anew
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error


class Metrics:
    """The metrics files of a run that is at `step`; with `evaluates`, also those of its evaluations.

    What they say goes to TensorBoard too, if that is asked for, and to a tracker. Raises UserError if a file cannot be
    written.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        evaluates: bool = False,
        tensorboard: bool = True,
        tracker: Tracker | None = None,
    ):
        self.folder = folder
        self.table = Table(folder / "metrics.csv", COLUMNS, step)
        self.evaluations = Table(folder / "eval.csv", EVAL_COLUMNS, step) if evaluates else None
        self.tracker, self._events = tracker, None
        if tensorboard:
            from tensorboardX import SummaryWriter  # takes a second to import

            # Also at step 0: a run that died before its first checkpoint starts again in the same folder.
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    @property
    def file(self) -> Path:
        """The path of metrics.csv."""
        return self.table.file

    def write(self, values: Mapping[str, float], others: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; `others` go only to TensorBoard. Raises UserError if the row cannot be written."""
        self.table.write(values)
        self._show({**values, **others})

    def write_evaluation(self, values: Mapping[str, float]) -> None:
        """Add a row of EVAL_COLUMNS; raises UserError if it cannot be written."""
        assert self.evaluations is not None
        self.evaluations.write(values)
        self._show({name if name == "step" else f"held_out/{name}": value for name, value in values.items()})
        if self._events:
            add_histogram(self._events, "held_out/loss_by_timestep", [values[name] for name in OF_BINS], values["step"])

    def is_evaluated(self, step: int) -> bool:
        """Return whether there is a row of an evaluation at a step."""
        return self.evaluations is not None and any(int(row["step"]) == step for row in self.evaluations.rows)

    def _show(self, values: Mapping[str, float]) -> None:
        step, shown = int(values["step"]), {name: value for name, value in values.items() if name != "step"}
        if self._events:
            for name, value in shown.items():
                self._events.add_scalar(name, value, step)
        if self.tracker:
            self.tracker.log(shown, step)

    def show_samples(self, file: Path, shape: Sequence[int], step: int) -> None:
        """Show a GIF of samples, whose frames are (F, H, W, 3), which TensorBoard plays."""
        if self._events:
            add_gif(self._events, "samples", file, shape, step)
        if self.tracker:
            self.tracker.log_video("samples", file, step)

    def sync(self) -> None:
        """Wait until the rows are on the disk; a checkpoint after this counts on them."""
        for table in filter(None, (self.table, self.evaluations)):
            table.sync()

    def plot(self) -> None:
        """Draw loss.png and eval.png from the rows that there are."""
        self._plot_losses()
        if self.evaluations and (rows := self.evaluations.rows):
            plot_evaluations(rows, self.folder)

    def _plot_losses(self) -> None:
        """Draw the loss and its terms, gradient norm, learning rate and loss scale; nothing without rows."""
        rows = self.table.rows
        if not rows:
            return
        from matplotlib.figure import Figure  # takes a second to import; draws without a display

        data = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        below: list = [
            name for name in PANELS if name != "loss_scale" or np.ptp(data[name])
        ]  # it is always 1 except in float16
        figure = Figure(figsize=(9, 7), layout="constrained")
        figure.suptitle(self.folder.name)
        panels = figure.subplot_mosaic([["loss"] * len(below), below], height_ratios=[2, 1])
        for number, (name, label) in enumerate(LOSSES.items()):
            color = f"C{number}"
            panels["loss"].plot(data["step"], data[name], color=color, alpha=0.25, linewidth=0.8)
            panels["loss"].plot(data["step"], smoothed(data[name]), color=color, label=label)
        panels["loss"].legend()
        if all(np.nanmin(data[name]) > 0 for name in LOSSES):
            panels["loss"].set_yscale("log")
        for name in below:
            panels[name].plot(data["step"], data[name], linewidth=1)
        for name, panel in panels.items():
            panel.set(title=PANELS.get(name, "loss, smoothed over a twentieth of the run"), xlabel="step")
            panel.grid(alpha=0.3)
        with atomic_path(self.folder / "loss.png") as temporary:
            figure.savefig(temporary, dpi=110)

    def close(self) -> None:
        """Write the events that are still in memory."""
        if self._events:
            self._events.close()
        if self.tracker:
            self.tracker.close()


def add_histogram(events: SummaryWriter, name: str, means: Sequence[float], step: float) -> None:
    """Add a histogram over the timesteps to TensorBoard's events, whose bars are the `means` (BINS,) of each tenth."""
    heights = np.array(means, np.float64)
    centres = np.array([(first + last) / 2 for first, last in EDGES])
    events.add_histogram_raw(
        name,
        min=0,
        max=STEPS - 1,
        num=BINS,
        sum=float(heights @ centres),
        sum_squares=float(heights @ centres**2),
        bucket_limits=[last for _, last in EDGES],
        bucket_counts=heights.tolist(),
        global_step=int(step),
    )


def add_gif(events: SummaryWriter, name: str, file: Path, shape: Sequence[int], step: int) -> None:
    """Add a GIF with frames (F, H, W, 3) to TensorBoard's events as it is: tensorboardX would encode videos anew."""
    from tensorboardX.proto.summary_pb2 import Summary

    _, height, width, channels = shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=file.read_bytes())
    events.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def plot_evaluations(rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Draw eval.png in the folder of a run: the loss on held-out videos and its terms, and a curve for each bin."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    data = {name: np.array([float(row[name]) for row in rows]) for name in EVAL_COLUMNS}
    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(folder.name)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    for name, label in LOSSES.items():
        above.plot(data["step"], data[name], marker="o", markersize=3, label=label)
    above.set(title="loss on held-out videos")
    for number, (name, edges) in enumerate(zip(OF_BINS, EDGES, strict=True)):
        color = colormaps["viridis"](number / BINS)
        below.plot(data["step"], data[name], color=color, marker="o", markersize=3, label="{} to {}".format(*edges))
    below.set(title="mean squared error by timestep", xlabel="step")
    for panel in (above, below):
        if all(np.nanmin(line.get_ydata()) > 0 for line in panel.lines):
            panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_path(folder / "eval.png") as temporary:
        figure.savefig(temporary, dpi=110)


def read_metrics(
    path: Path, last: float = math.inf, columns: Sequence[str] = COLUMNS
) -> tuple[list[dict[str, str]], str]:
    """Return the rows of a table of a run up to the step `last`, and what is damaged in it, "" if nothing is.

    Half a row, which a killed process may have written at the end, is left out without a word; so is a missing file.
    Raises UserError if the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    rows: list[dict[str, str]] = []
    wrong = []  # numbers of lines
    for number, line in enumerate(lines, 1):
        row = _row(line, columns)
        if row is None or (rows and int(row["step"]) <= int(rows[-1]["step"])):
            wrong.append(number)
        elif int(row["step"]) <= last:
            rows.append(row)
    damage = []
    if lines and lines[0] != ",".join(columns).encode():
        damage.append("it does not begin with its columns")
    if found := [number for number in wrong if number > 1]:
        damage.append(f"{len(found)} of its rows are damaged and left out, the first in line {found[0]}")
    return rows, " and ".join(damage)


def _row(line: bytes, columns: Sequence[str]) -> dict[str, str] | None:
    """Return the values of a line by the names of their columns, or None if it is not such a row."""
    if line.count(b",") != len(columns) - 1 or not _ROW.fullmatch(line):
        return None
    texts = line.decode().split(",")
    try:
        list(map(float, texts))
    except ValueError:
        return None
    return dict(zip(columns, texts, strict=True))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean (N,) of values (N,) over a window of N / 20 values, which is cut off at both ends."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def describe(values: Mapping[str, float], others: Mapping[str, float]) -> str:
    """Return a line for the log; `others` are shown as IN_LOG has them."""
    return (
        f"step {values['step']:.0f}, epoch {values['epoch']:.2f}: loss {values['loss']:.5f} "
        f"(mean squared error {values['mse']:.5f}, VLB term {values['bound']:.5f}), "
        f"gradient norm {values['grad_norm']:.4f}, learning rate {values['learning_rate']:.3g}, "
        + ", ".join(IN_LOG[name].format(value) for name, value in others.items())
    )


def describe_losses(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a line with the course of the loss over the rows of metrics.csv; "" for fewer than two."""
    losses = np.array([float(row["loss"]) for row in rows])
    if len(losses) < 2:
        return ""
    course = sparkline(losses)
    return f"loss {course} {losses[0]:.4g} at step {rows[0]['step']}, {losses[-1]:.4g} at step {rows[-1]['step']}"


def sparkline(values: np.ndarray, width: int = 40) -> str:
    """Return values (N,) as at most `width` bars, each the mean of its share; what is not finite is a gap."""
    means = [part[np.isfinite(part)] for part in np.array_split(values, min(width, len(values)))]
    heights = np.array([part.mean() if len(part) else np.nan for part in means])
    if not np.isfinite(heights).any():
        return " " * len(heights)
    low, high = np.nanmin(heights), np.nanmax(heights)
    places = (heights - low) / max(high - low, 1e-30) * (len(BARS) - 1)
    return "".join(" " if np.isnan(place) else BARS[round(place)] for place in places)
