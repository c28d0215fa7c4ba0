"""Several trainings of one budget, one after the other, and a page that compares them.

Trainings and evaluations are processes of their own, as a process has one device, one arithmetic and one set of graphs.
What is on the disk decides what is left to do, so a stopped list goes on when it is started again.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latte.components import runs
from latte.components.loading import check
from latte.config import TrainConfig
from latte.config.parser import parse_config
from latte.data.clips import open_clip
from latte.errors import UserError
from latte.evaluation.curve import FOLDER
from latte.io.atomic import atomic_path
from latte.io.csv_files import write_csv
from latte.training.run_folder import newest_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.config.ablation import AblationConfig

SECONDS = re.compile(r"([\d.e+-]+) s per step")  # in the log of a run
COLUMNS = ("name", "steps", "parameters", "seconds_per_step", "held_out_loss")
OF_FVD = ("fvd", "fvd_low", "fvd_high")
SHOWN = 8  # frames of a strip
PAGE, TABLE, CURVES = "index.html", "ablation.csv", "curves.png"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A training of the list: its name, its config, the options that this gives, and its folder."""

    name: str
    config: str
    options: TrainConfig
    folder: Path

    @property
    def run(self) -> Path | None:
        """The folder of its run, if it was started."""
        return newest_run(str(self.folder))

    @property
    def step(self) -> int:
        """The step of its newest weights, 0 without any."""
        run = self.run
        try:
            return max(runs.weights_by_step(run), default=0) if run else 0
        except UserError:
            return 0


def entries(cfg: AblationConfig) -> list[Entry]:
    """Return the trainings of the list, their configs read and checked; raises UserError if one cannot be compared."""
    found = []
    for config in cfg.configs:
        words = ["-c", config] + ([f"--max_steps={cfg.max_steps}"] if cfg.max_steps else [])
        folder = Path(cfg.output_path) / Path(config).stem
        found.append(Entry(Path(config).stem, config, parse_config(TrainConfig, words), folder))
    steps = {entry.name: entry.options.max_steps for entry in found}
    if None in steps.values() or len(set(steps.values())) > 1:
        said = ", ".join(f"{name} {value or 'no max_steps'}" for name, value in steps.items())
        raise UserError(f"trainings are compared after as many steps, but these have {said}; give --max_steps")
    if text := next((entry for entry in found if entry.options.condition == "text"), None):
        raise UserError(f"{text.config} is conditioned on text, of which `latte evaluate --run` makes no samples")
    return found


def dry_run(cfg: AblationConfig) -> str:
    """Return what would be trained and measured; raises UserError as `run` does."""
    lines = []
    for entry in entries(cfg):
        total, step = entry.options.max_steps or 0, entry.step
        state = "is trained" if step >= total else f"goes on from step {step}" if step else "is to be trained"
        lines.append(f"{entry.name}: {state}, {total} steps, in {entry.run or entry.folder}")
    lines.append(f"each checkpoint is compared with {cfg.real} by {', '.join(cfg.metrics)}")
    lines.append(f"then {Path(cfg.output_path) / PAGE} is written")
    return "\n".join(lines)


def run(cfg: AblationConfig) -> Path:
    """Train and measure what is not there yet, and return the page, which is written anew after each training.

    Raises UserError if a config, a training or an evaluation fails; what is done stays.
    """
    found, page = entries(cfg), Path(cfg.output_path) / PAGE
    for number, entry in enumerate(found, 1):
        if entry.step < (entry.options.max_steps or 0):
            given = [f"--output_path={entry.folder}", "--resume=auto"]
            given += [f"--max_steps={cfg.max_steps}"] if cfg.max_steps else []
            _call(entry, "train", ["-c", entry.config, *given])
        _call(entry, "evaluate", _measuring(cfg, entry))
        write_page(cfg, found[:number])
    return page


def _measuring(cfg: AblationConfig, entry: Entry) -> list[str]:
    given: dict[str, Any] = {
        "run": entry.run,
        "real": cfg.real,
        "sampling_steps": cfg.sampling_steps,
        "sampler": cfg.sampler,
        "guidance_scale": cfg.guidance_scale,
        "device_target": entry.options.device_target,
        "i3d": cfg.i3d,
    }
    return [f"--{key}={value}" for key, value in given.items() if value is not None] + ["--metrics", *cfg.metrics]


def _call(entry: Entry, command: str, words: Sequence[str]) -> None:
    """Call a command of latte, whose output is this process's; raises UserError if it fails."""
    done = subprocess.run([sys.executable, "-m", "latte", command, *words], check=False)
    if done.returncode:
        raise UserError(
            f"latte {command} of {entry.config} has ended with code {done.returncode}, and has said why; start the "
            "ablation again when that is mended, and it goes on from there"
        )


def results(cfg: AblationConfig, entry: Entry) -> dict[str, Any]:
    """Return a row of the table: what is known of the last checkpoint of a training, None for what is not."""
    run = entry.run or entry.folder
    seconds = [float(match[1]) for match in SECONDS.finditer(_text(run / "log.txt"))]
    held_out = _rows(run / "eval.csv")
    row = {
        "name": entry.name,
        "steps": entry.step,
        "parameters": check(runs.newest_weights(run), "latte").parameter_count if entry.step else None,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "held_out_loss": float(held_out[-1]["loss"]) if held_out else None,
    }
    for metric in cfg.metrics:
        measured = [each for each in _rows(run / FOLDER / f"{metric}.csv") if int(each["step"]) == entry.step]
        for column in OF_FVD:
            value = measured[-1][column] if measured else ""
            row[column.replace("fvd", metric, 1)] = float(value) if value else None
    return row


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(path).splitlines()))


def write_page(cfg: AblationConfig, found: Sequence[Entry]) -> None:
    """Write the table, the curves, the strips and the page that shows them; raises UserError if one cannot be."""
    folder = Path(cfg.output_path)
    columns = (*COLUMNS, *(column.replace("fvd", metric, 1) for metric in cfg.metrics for column in OF_FVD))
    table = sorted((results(cfg, entry) for entry in found), key=lambda row: _order(row, cfg.metrics[0]))
    write_csv(folder / TABLE, columns, table)
    _plot(cfg, found, folder / CURVES)
    strips = {entry.name: name for entry in found if (name := _strip(entry, folder))}
    cells = "".join(f"<th>{html.escape(column.replace('_', ' '))}</th>" for column in columns)
    lines = [f"<tr>{cells}</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_shown(row[column])}</td>" for column in columns) + "</tr>" for row in table]
    images = [
        f"<h2>{html.escape(row['name'])}</h2><img src='{html.escape(strips[row['name']])}' alt='samples'>"
        for row in table
        if row["name"] in strips
    ]
    body = [
        "<!doctype html><meta charset='utf-8'><title>Ablation</title>",
        "<style>body{font:16px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}"
        "td:first-child{text-align:left}img{max-width:100%;image-rendering:pixelated}</style>",
        f"<h1>Ablation: {len(found)} trainings of {found[0].options.max_steps} steps</h1>",
        f"<p>Compared with {html.escape(str(cfg.real))}: {', '.join(cfg.metrics)} of the last checkpoint with an "
        f"interval of 95 %, {cfg.sampling_steps} steps of {cfg.sampler}, guidance {cfg.guidance_scale:g}; the best "
        "first.</p>",
        f"<table>{''.join(lines)}</table><img src='{CURVES}' alt='curves'>",
        *images,
    ]
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text("\n".join(body) + "\n", encoding="utf-8")


def _order(row: dict[str, Any], metric: str) -> float:
    return math.inf if row[metric] is None else row[metric]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else html.escape(value)
    )


def _plot(cfg: AblationConfig, found: Sequence[Entry], path: Path) -> None:
    from matplotlib.figure import Figure  # takes a second to import; draws without a display

    figure = Figure(figsize=(8, 3 * (1 + len(cfg.metrics))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1 + len(cfg.metrics), 1, sharex=True))
    sources = [("eval.csv", "loss", "loss on held-out videos")]
    sources += [(f"{FOLDER}/{metric}.csv", "fvd", metric) for metric in cfg.metrics]
    for panel, (file, column, title) in zip(panels, sources, strict=True):
        for entry in found:
            rows = _rows((entry.run or entry.folder) / file)
            panel.plot(
                [int(row["step"]) for row in rows],
                [float(row[column]) for row in rows],
                marker="o",
                markersize=3,
                label=entry.name,
            )
        panel.set(title=title)
        panel.grid(alpha=0.3)
    panels[0].legend(ncols=2, fontsize=8)
    panels[-1].set(xlabel="step")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _strip(entry: Entry, folder: Path) -> str | None:
    """Write some frames of a training's newest samples beside each other, and return the name of the image."""
    samples = list(((entry.run or entry.folder) / "samples").glob("*.gif"))
    if not samples:
        return None
    clip = open_clip(max(samples))
    frames = clip.read(np.linspace(0, clip.length - 1, min(SHOWN, clip.length)).round().astype(int))
    name = f"{entry.name}.png"
    with atomic_path(folder / name) as temporary:
        Image.fromarray(np.concatenate(list(frames), 1)).save(temporary, format="png")
    return name
