"""What a run writes about itself: metrics.csv, TensorBoard events, and the loss as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latte.errors import UserError
from latte.files import atomic_path

# No times: a resumed run must write what an uninterrupted one writes, byte for byte. Times go to TensorBoard.
COLUMNS = ("step", "epoch", "loss", "mse", "bound", "grad_norm", "learning_rate", "loss_scale", "skipped_steps")


class Metrics:
    """The files of a run; rows after `step` are those of an interrupted run and are written anew."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # takes a second to import

        self.folder, self.file = folder, folder / "metrics.csv"
        rows = [row for row in read_metrics(self.file) if int(row["step"]) <= step] if self.file.exists() else []
        with atomic_path(self.file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, values: Mapping[str, float], others: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; `others` go to TensorBoard only. Raises UserError if the disk is full."""
        try:
            with open(self.file, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(values)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error
        for name, value in {**values, **others}.items():
            if name not in ("step",):
                self._events.add_scalar(name, value, int(values["step"]))

    def plot(self) -> None:
        """Draw loss.png; nothing if there are no rows yet."""
        rows = read_metrics(self.file)
        if not rows:
            return
        from matplotlib.figure import Figure  # takes a second to import

        data = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        figure = Figure(figsize=(9, 7), layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        for panel, names in zip(
            panels, (("loss", "mse"), ("bound",), ("grad_norm",), ("learning_rate", "loss_scale")), strict=True
        ):
            for name in names:
                if name == "loss_scale" and len(set(data[name])) == 1:
                    continue
                axis = panel.twinx() if name == "loss_scale" else panel
                axis.plot(data["step"], data[name], label=name, color="C1" if name in ("mse", "loss_scale") else "C0")
                axis.set_ylabel(name if len(names) == 1 else ", ".join(names) if axis is panel else name)
            if names[0] in ("loss", "bound") and min(data[names[0]]) > 0:
                panel.set_yscale("log")
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)
            if len(names) > 1 and names[0] == "loss":
                panel.legend()
        with atomic_path(self.folder / "loss.png") as temporary:
            figure.savefig(temporary, dpi=110)

    def close(self) -> None:
        """Write what is still in memory."""
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a metrics.csv; a killed process may have left half of one, which is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(line for line in file if line.endswith("\n")) if None not in row.values()]


def describe(values: Mapping[str, float], others: Mapping[str, float]) -> str:
    """Return a line for the log."""
    return (
        f"step {values['step']:.0f}, epoch {values['epoch']:.2f}: loss {values['loss']:.5f} "
        f"(mse {values['mse']:.5f}, bound {values['bound']:.5f}), grad norm {values['grad_norm']:.4f}, "
        f"lr {values['learning_rate']:.3g}, " + ", ".join(f"{name} {value:.4g}" for name, value in others.items())
    )
