"""A training as one HTML file: samples of every checkpoint, curves, options, metrics, the machine, the log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from latte.components.runs import options_of, run_of
from latte.config import TrainConfig, parse_config
from latte.config.values import show
from latte.errors import UserError, reason
from latte.io import html_page
from latte.io.json_files import read_bytes
from latte.training.metrics import COLUMNS, EVAL_COLUMNS, read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CURVES = ("loss.png", "eval.png", "evaluation/curve.png", "vae.png")
LIMIT = 64 << 20  # bytes of an image of a run
LAST = 10  # rows of a table, and lines of the log
WIDTH = 420  # pixels of a sample, at least; those of small networks are small
_SAMPLES = re.compile(r"step-(\d+)\.gif")
_MACHINE = "this run is on "  # how the line of the log begins


def machine_line(described: str) -> str:
    """Return the line of a log by which the gallery finds the machine."""
    return _MACHINE + described


def make_gallery(run: str | Path, target: Path) -> Path:
    """Write the page of a run, and return its path; raises UserError if that is no run, or cannot be written."""
    folder = run_of(run)
    if folder is None:
        raise UserError(f"{run} is not the folder of a training, which has config.yaml and ckpt in it; name one")
    html_page.save_page(target, folder.resolve().name, _parts(folder))
    return target


def _parts(run: Path) -> Iterator[str]:
    metrics, _ = read_metrics(run / "metrics.csv")
    measured, _ = read_metrics(run / "eval.csv", columns=EVAL_COLUMNS)
    log = _lines(run / "log.txt")
    cfg = parse_config(TrainConfig, ["-c", str(options_of(run))])
    standard = TrainConfig()
    options = {name: (value, getattr(standard, name)) for name, value in vars(cfg).items()}
    # A text-to-video run has no default to compare with, but the same options.
    differing = [(name, show(value)) for name, (value, default) in options.items() if value != default]
    machines = list(dict.fromkeys(line.partition(_MACHINE)[2] for line in log if _MACHINE in line))
    facts = [("network", f"{cfg.model_name or 'Latte-XL/2'}, {cfg.condition or 'unconditional'}")]
    if metrics:
        facts.append(("steps", metrics[-1]["step"]))
        facts.append(("loss at the last step", _short(metrics[-1]["loss"])))
    if measured:
        facts.append(("loss of held-out videos", _short(measured[-1]["loss"])))
    if log:
        facts.append(("first and last line of the log", f"{log[0][:19]}, {log[-1][:19]}"))
    facts.append(("machine", "; ".join(machines) or "not in the log"))
    yield html_page.table(facts)
    yield from _samples(run)
    yield from _curves(run)
    yield f"<h2>Options</h2>{html_page.table(differing)}"
    yield html_page.details("all options", html_page.table((name, show(value)) for name, (value, _) in options.items()))
    yield "<h2>Metrics</h2>"
    yield _rows(metrics, COLUMNS)
    if measured:
        yield f"<h2>Held-out videos</h2>{_rows(measured, EVAL_COLUMNS)}"
    yield f"<h2>Log</h2><pre>{html_page.text(chr(10).join(log[-LAST:]))}</pre>"


def _samples(run: Path) -> Iterator[str]:
    """Yield the samples of every checkpoint, the newest first."""
    found = [(int(match[1]), path) for path in _files(run / "samples") if (match := _SAMPLES.fullmatch(path.name))]
    yield f"<h2>Samples</h2>{'' if found else '<p>There are none yet.</p>'}"
    for step, path in sorted(found, reverse=True):
        yield html_page.figure(html_page.data_uri(read_bytes(path, LIMIT), "image/gif"), f"step {step}", WIDTH)


def _curves(run: Path) -> Iterator[str]:
    there = [run / name for name in CURVES if (run / name).is_file()]
    others = [path for path in _files(run / "evaluation") if path.suffix == ".png" and path not in there]
    if there or others:
        yield "<h2>Curves</h2>"
    for path in [*there, *others]:
        yield html_page.figure(html_page.data_uri(read_bytes(path, LIMIT), "image/png"), path.stem)


def _rows(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    """Return the last rows of a table, and all of them behind a click."""
    cells = [[_short(row[name]) for name in columns] for row in rows]
    shown = html_page.table(cells[-LAST:], columns)
    return shown + (html_page.details(f"all {len(cells)} rows", html_page.table(cells, columns)) if rows[LAST:] else "")


def _short(value: str) -> str:
    return value if value.isdecimal() else f"{float(value):.5g}"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason(error)}") from error
