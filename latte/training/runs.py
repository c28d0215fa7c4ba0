"""One folder a run: options, checkpoints, log, metrics, samples; and which run to go on with."""

from __future__ import annotations

import fcntl
import logging
import time
from pathlib import Path
from typing import IO

from latte.errors import UserError

log = logging.getLogger("latte")
CONFIG_FILE = "config.yaml"


def find_run(output_path: str, resume: str | None, name: str) -> Path:
    """Return the folder of a run: a new one; for "auto" the newest of output_path, if any; else the one that is named.

    Raises UserError if there is no such run, or the folder cannot be made.
    """
    root = Path(output_path)
    if resume == "auto":
        runs = [path.parent for path in root.glob(f"*/{CONFIG_FILE}")]
        if runs:
            return max(runs, key=lambda run: (run / CONFIG_FILE).stat().st_mtime_ns)
    elif resume:
        named = Path(resume)
        named = named.parent if named.is_file() else named
        named = named.parent if named.name == "ckpt" else named
        if not (named / CONFIG_FILE).is_file():
            raise UserError(f"resume: {resume} is not the folder of a run, which has a {CONFIG_FILE}; or say auto")
        return named
    stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1000):
        folder = root / (f"{stamp}-{number}" if number else stamp)
        try:
            (folder / "ckpt").mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"output_path {root} cannot be written: {error.strerror}") from error
    raise UserError(f"output_path {root} has a thousand runs of this second")


def lock(folder: Path) -> IO[str]:
    """Keep other processes out of a run until the returned file is closed; raises UserError if one is in it."""
    file = open(folder / ".lock", "w")  # noqa: SIM115, it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"{folder} is in use by another training process; stop it, or start a new run") from None
    return file


def log_to(folder: Path) -> None:
    """Write the log to log.txt of the run too, after what is there."""
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
