"""What a run writes about itself: metrics.csv, TensorBoard events, and the loss as a picture."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError
from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# No times: a resumed run must write what an uninterrupted one writes, byte for byte. Times go to TensorBoard.
COLUMNS = ("step", "epoch", "loss", "mse", "bound", "grad_norm", "learning_rate", "loss_scale", "skipped_steps")
LOSSES = {"loss": "loss", "mse": "mean squared error", "bound": "variational bound"}
PANELS = {"grad_norm": "gradient norm", "learning_rate": "learning rate", "loss_scale": "loss scale"}
FLUSH_SECONDS = 10  # the most that a killed run loses of TensorBoard


class Metrics:
    """The files of a run; rows after `step` are those of an interrupted run and are written anew.

    Raises UserError if metrics.csv is none, or cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # takes a second to import

        self.folder, self.file = folder, folder / "metrics.csv"
        rows = [row for row in read_metrics(self.file) if int(row["step"]) <= step] if self.file.exists() else []
        with atomic_path(self.file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        # Also at step 0: a run that died before its first checkpoint starts again in the same folder.
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def write(self, values: Mapping[str, float], others: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; `others` go to TensorBoard only. Raises UserError if the disk is full."""
        try:
            with open(self.file, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(values)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error
        for name, value in {**values, **others}.items():
            if name != "step":
                self._events.add_scalar(name, value, int(values["step"]))

    def plot(self) -> None:
        """Draw loss.png: the loss and its terms, below them what explains them; nothing if there are no rows yet."""
        rows = read_metrics(self.file)
        if not rows:
            return
        from matplotlib.figure import Figure  # takes a second to import; draws without a display

        data = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        below = [name for name in PANELS if name != "loss_scale" or np.ptp(data[name])]  # it is 1 but in float16
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
        """Write what is still in memory."""
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a metrics.csv; a killed process may have left half of one, which is left out.

    Raises UserError if it has other columns.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(line for line in file if line.endswith("\n")))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path} does not begin with the columns {','.join(COLUMNS)}; move it away to begin a new one")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean of values (N,) over a twentieth of them, at the ends over those that are there."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def describe(values: Mapping[str, float], others: Mapping[str, float]) -> str:
    """Return a line for the log."""
    return (
        f"step {values['step']:.0f}, epoch {values['epoch']:.2f}: loss {values['loss']:.5f} "
        f"(mse {values['mse']:.5f}, bound {values['bound']:.5f}), grad norm {values['grad_norm']:.4f}, "
        f"lr {values['learning_rate']:.3g}, " + ", ".join(f"{name} {value:.4g}" for name, value in others.items())
    )
