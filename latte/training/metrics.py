"""The metrics of a run: metrics.csv, TensorBoard events and loss.png."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError
from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# No times: a resumed run must write the same bytes as an uninterrupted one. Times go to TensorBoard and to the log.
COLUMNS = ("step", "epoch", "loss", "mse", "bound", "grad_norm", "learning_rate", "loss_scale", "skipped_steps")
LOSSES = {"loss": "loss", "mse": "mean squared error", "bound": "VLB term"}
PANELS = {"grad_norm": "gradient norm", "learning_rate": "learning rate", "loss_scale": "loss scale"}
FLUSH_SECONDS = 10  # of TensorBoard events; a killed run loses at most these
# How the log shows the values that only TensorBoard gets; `others` of `Trainer`.
IN_LOG = {
    "seconds_per_step": "{:.3g} s per step",
    "videos_per_second": "{:.3g} videos per second",
    "images_per_second": "{:.3g} images per second",
    "memory_gib": "peak memory {:.2f} GiB",
    "bad_videos": "{:.0f} bad videos",
}


class Metrics:
    """The metrics files of a run; it drops rows after `step`, because a resumed run writes them again.

    Raises UserError if metrics.csv has other columns or cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # takes a second to import

        self.folder, self.file = folder, folder / "metrics.csv"
        rows = [row for row in read_metrics(self.file) if int(row["step"]) <= step] if self.file.exists() else []
        with atomic_path(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        # Also at step 0: a run that died before its first checkpoint starts again in the same folder.
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def write(self, values: Mapping[str, float], others: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; `others` go only to TensorBoard. Raises UserError if the row cannot be written."""
        try:
            with self.file.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(values)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error
        for name, value in {**values, **others}.items():
            if name != "step":
                self._events.add_scalar(name, value, int(values["step"]))

    def plot(self) -> None:
        """Draw loss.png: the loss and its terms, gradient norm, learning rate and loss scale; nothing without rows."""
        rows = read_metrics(self.file)
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
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a metrics.csv; leave out half a row that a killed process may have written.

    Raises UserError if the file has other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(line for line in file if line.endswith("\n")))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path} does not begin with the columns {','.join(COLUMNS)}; move it away to begin a new one")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)]


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
