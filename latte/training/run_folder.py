"""The folder of a run, with its options, checkpoints, log, metrics and samples; and which run to resume."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from latte.components.runs import CHECKPOINTS, CONFIG_FILE, options_of
from latte.config.parser import save_config
from latte.errors import UnreadableError, UserError, reason
from latte.io.atomic import sync_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from latte.config import TrainConfig

log = logging.getLogger("latte")
LOCK = ".lock"
_STATE = re.compile(r"state-\d{8}\.safetensors")
_STAMP = re.compile(r".*-\d{8}-\d{6}(-\d+)?")
_LATER = re.compile(r"config-from-step-(\d{8})\.yaml")


def find_run(output_path: str, resume: str | None, name: str) -> Path:
    """Return the folder of a run: a new one, or the one to resume.

    resume: None for a new run; "auto" for the newest run of output_path, or a new one if there is none; else a run's
    folder, its folder `ckpt`, or its newest state file. Only one rank may call this function, because it makes folders.
    Raises UserError if there is no such run, or the folder cannot be made, and UnreadableError if it cannot tell.
    """
    try:
        folder = newest_run(output_path) if resume == "auto" else _named_run(Path(resume)) if resume else None
        has_checkpoints = folder is not None and (folder / CHECKPOINTS).is_dir()
    except OSError as error:
        raise UnreadableError(f"cannot read {error.filename}: {error.strerror}; resume when it can be read") from error
    if folder is None:
        return create_run(output_path, name)
    if not has_checkpoints:  # they may lie on a disk that is away; the run's metrics must not be begun anew
        raise UserError(f"{folder} has no folder ckpt; bring it back, or leave resume out to start a new run")
    return folder


def create_run(output_path: str, name: str) -> Path:
    """Make the folder `<output_path>/<name>-<YYYYmmdd-HHMMSS>` with `ckpt` in it, and return it.

    A run that starts in the same second gets a number. Raises UserError if the folder cannot be made.
    """
    root = Path(output_path)
    stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1000):
        folder = root / (f"{stamp}-{number}" if number else stamp)
        try:
            (folder / CHECKPOINTS).mkdir(parents=True)
            for made in (folder, root):
                sync_folder(made)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise UserError(f"output_path {root} is or lies in a file; name a folder") from None
        except OSError as error:
            raise UserError(f"output_path {root} cannot be written: {reason(error)}; name another folder") from error
    raise UserError(f"output_path {root} has a thousand runs that started this second; start again")


def newest_run(output_path: str) -> Path | None:
    """Return the run of output_path that was started or resumed last, or None.

    It need not have a checkpoint: a run that died before its first one starts again in its own folder. An older run,
    which may have other options, must not take its place. Raises OSError if a folder cannot be read.
    """
    started = {}
    try:
        folders = list(Path(output_path).iterdir())  # `glob` passes over what it may not read
    except (FileNotFoundError, NotADirectoryError):
        return None  # `create_run` makes it, or tells why not
    for folder in folders:
        try:
            started[folder] = (folder / CONFIG_FILE).stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            continue  # no run
        except OSError:
            if _STAMP.fullmatch(folder.name):  # and no lost+found
                raise
    return max(started, key=lambda folder: started[folder], default=None)


def _named_run(named: Path) -> Path:
    is_state = named.is_file() and _STATE.fullmatch(named.name) is not None
    folder = named.parent if is_state else named
    folder = folder.parent if folder.name == CHECKPOINTS else folder
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"resume: {named} is not the folder of a run, because it has no {CONFIG_FILE}; name one, or auto"
        )
    if is_state and named.name != (newest := max(filter(_STATE.fullmatch, (p.name for p in named.parent.iterdir())))):
        raise UserError(f"resume: {named} is not the newest of its run, {newest} is; move the newer ones away first")
    return folder


def lock(folder: Path) -> BaseFileLock:
    """Lock a run until `release`, or the end of this process; raises UserError if another process has locked it.

    A loader's processes do not keep the lock, as they outlive a killed run for a moment. What a link points to is
    neither locked nor changed.
    """
    held = FileLock(folder / LOCK, blocking=False)
    try:
        held.acquire()
    except Timeout:
        raise UserError(f"{folder} is in use by another process; stop it, or name another folder") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be locked: {reason(error)}; make it writable, or start a new run") from error
    return held


def save_options(cfg: TrainConfig, folder: Path, step: int) -> None:
    """Write the options of a run, and note that it was started now.

    config.yaml holds the options of the start. A run that is resumed with others at `step` keeps it, and gets the
    others as config-from-step-<step>.yaml; those from after `step` go, because their steps are done again.
    Raises UserError if the file cannot be written.
    """
    own = folder / CONFIG_FILE
    try:
        names = [path.name for path in folder.iterdir()]
        for match in filter(None, map(_LATER.fullmatch, names)):
            if int(match[1]) >= max(step, 1):
                (folder / match[0]).unlink()
        in_effect = options_of(folder)
        target = folder / f"config-from-step-{step:08d}.yaml" if step and own.exists() else own
        save_config(dataclasses.replace(cfg, data_config=None, resume=None), target)
        if target != own:
            if target.read_bytes() == in_effect.read_bytes():
                target.unlink()
            own.touch()  # for `newest_run`
    except OSError as error:
        raise UserError(f"cannot write the options to {folder}: {error.strerror}") from error


def log_to(folder: Path) -> None:
    """Append the log also to log.txt of the run, on one rank only; raises UserError if it cannot be written."""
    try:
        handler = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")  # names of files
    except OSError as error:
        raise UserError(f"cannot write {folder / 'log.txt'}: {reason(error)}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
