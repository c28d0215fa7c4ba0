"""The metrics of a run: metrics.csv, TensorBoard events and loss.png."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger("latte")
# No times: a resumed run must write the same bytes as an uninterrupted one. Times go to TensorBoard and to the log.
COLUMNS = ("step", "epoch", "loss", "mse", "bound", "grad_norm", "learning_rate", "loss_scale", "skipped_steps")
LOSSES = {"loss": "loss", "mse": "mean squared error", "bound": "VLB term"}
PANELS = {"grad_norm": "gradient norm", "learning_rate": "learning rate", "loss_scale": "loss scale"}
_ROW = re.compile(rb"\d{1,15}(,[-+.\deainf]{1,32}){%d}" % (len(COLUMNS) - 1))
_HEADER = ",".join(COLUMNS).encode()
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

    The files are a by-product: what is damaged in them is left out with a warning, and kept beside metrics.csv. Raises
    UserError if a file cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # takes a second to import

        self.folder, self.file = folder, folder / "metrics.csv"
        rows, damage = read_metrics(self.file, step)
        if damage:
            aside = self.file.with_name(f"metrics-before-step-{step:08d}.csv")
            log.warning("%s: %s; the rest of it is kept, and the file as it was is %s", self.file, damage, aside.name)
            with atomic_path(aside) as temporary:
                temporary.write_bytes(self.file.read_bytes())
        with atomic_path(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        # Also at step 0: a run that died before its first checkpoint starts again in the same folder.
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def write(self, values: Mapping[str, float], others: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; `others` go only to TensorBoard. Raises UserError if the row cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if not file.tell():
                    log.warning("%s was removed or emptied, and is begun anew", self.file)
                    writer.writeheader()
                writer.writerow(values)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror}") from error
        for name, value in {**values, **others}.items():
            if name != "step":
                self._events.add_scalar(name, value, int(values["step"]))

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

    def plot(self) -> None:
        """Draw loss.png: the loss and its terms, gradient norm, learning rate and loss scale; nothing without rows."""
        rows, _ = read_metrics(self.file)
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


def read_metrics(path: Path, last: float = math.inf) -> tuple[list[dict[str, str]], str]:
    """Return the rows of a metrics.csv up to the step `last`, and what is damaged in it, "" if nothing is.

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
        row = _row(line)
        if row is None or (rows and int(row["step"]) <= int(rows[-1]["step"])):
            wrong.append(number)
        elif int(row["step"]) <= last:
            rows.append(row)
    damage = []
    if lines and lines[0] != _HEADER:
        damage.append("it does not begin with its columns")
    if found := [number for number in wrong if number > 1]:
        damage.append(f"{len(found)} of its rows are damaged and left out, the first in line {found[0]}")
    return rows, " and ".join(damage)


def _row(line: bytes) -> dict[str, str] | None:
    """Return the values of a line by COLUMNS, or None if it is not such a row."""
    if not _ROW.fullmatch(line):
        return None
    texts = line.decode().split(",")
    try:
        list(map(float, texts))
    except ValueError:
        return None
    return dict(zip(COLUMNS, texts, strict=True))


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
