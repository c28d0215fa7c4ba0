"""A run on Weights & Biases or SwanLab, through their own packages, where the option `tracker` asks for it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from latte.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger("latte")
PROJECT = "latte"
# What the two call the name of a run and the folder for their files, and how to do without their server.
PLACES = {"wandb": ("name", "dir"), "swanlab": ("experiment_name", "logdir")}
REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "swanlab": "run `swanlab login`, or set SWANLAB_MODE=local",
}


def check(name: str | None) -> None:
    """Raise UserError if the package of a tracker is not installed; MindSpore is not imported for that."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(f"tracker {name} needs its package: pip install {name}; or leave tracker out")


class Tracker:
    """A run that is followed elsewhere; a resumed one is the same there. Raises UserError if it cannot be begun."""

    def __init__(self, name: str, folder: Path, options: Mapping[str, Any]):
        check(name)
        self.name, self.package = name, importlib.import_module(name)
        called, place = PLACES[name]
        known = hashlib.sha256(folder.name.encode()).hexdigest()[:21]  # SwanLab takes 21 characters
        given = {called: folder.name, place: str(folder), "id": known, "resume": "allow", "config": dict(options)}
        try:
            self.package.init(project=PROJECT, **given)
        except Exception as error:  # whatever the package raises: it has no common class
            why = first_line(error)
            raise UserError(f"tracker {name} cannot start: {why}; {REMEDIES[name]}, or leave tracker out") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars of a step."""
        self._try(lambda: self.package.log(dict(values), step=step))

    def log_video(self, name: str, file: Path, step: int) -> None:
        """Send a GIF of a step."""
        self._try(lambda: self.package.log({name: self.package.Video(str(file))}, step=step))

    def close(self) -> None:
        """Wait until all is sent."""
        self._try(self.package.finish)

    def _try(self, call: Callable[[], Any]) -> None:
        """Call the package; where that fails, a line says so, as a training does not end for it."""
        try:
            call()
        except Exception as error:
            log.warning("tracker %s: %s", self.name, first_line(error))
