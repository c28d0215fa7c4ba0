"""Checkpoints of a run: the weights to sample from in one file, everything that a resume needs in another."""

from __future__ import annotations

import logging
import re
import shutil
from typing import TYPE_CHECKING, Any

from latte.errors import UserError
from latte.io.atomic import sync_folder
from latte.weights.files import write_state_dict
from latte.weights.safetensors_file import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

log = logging.getLogger("latte")
GIB = 2**30
_STATE = re.compile(r"state-(\d{8})\.safetensors")
_LEFTOVER = re.compile(r"\.\w+-\d{8}-.+\.(ckpt|safetensors)")  # the temporary names of files.atomic_path


class Checkpoints:
    """The folder `ckpt` of a run; a checkpoint is there when its state file is, which is written last.

    The newest `keep_last` are kept, and those whose step is a multiple of `keep_every`, if that is not 0.
    """

    def __init__(self, folder: Path, keep_last: int = 3, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, in order."""
        names = [path.name for path in self.folder.glob("state-*")] if self.folder.is_dir() else []
        return sorted(int(match[1]) for match in map(_STATE.fullmatch, names) if match)

    def save(
        self,
        step: int,
        state: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
        kind: str = "ema",
        progress: Callable[[int], Any] = lambda count: None,
    ) -> Path:
        """Write a checkpoint, remove those that are not to be kept, and return the file of the weights.

        Raises UserError if the disk is too full or a file cannot be written; earlier checkpoints stay as they are.
        """
        weights_file = self.folder / f"{kind}-{step:08d}.ckpt"
        try:
            self._make_room(sum(array.nbytes for arrays in (state, weights) for array in arrays.values()))
            write_state_dict(weights_file, weights, metadata, progress)
            write_safetensors(self._state_file(step), state, metadata, progress)
            sync_folder(self.folder)  # before older ones go: a power cut must not find neither
            self._prune(step)
        except OSError as error:
            raise UserError(f"cannot write a checkpoint to {self.folder}: {error.strerror}") from error
        return weights_file

    def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the state of a step, as views into its file, and the metadata; raises UserError if it is damaged."""
        return read_safetensors(self._state_file(step))

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint that is whole, or None."""
        for step in reversed(self.steps()):
            try:
                self.load(step)
                return step
            except UserError as error:
                log.warning("%s; the checkpoint before it is taken", error)
        return None

    def _make_room(self, needed: int) -> None:
        """Remove what a process left that was killed while it wrote; raises UserError if `needed` bytes are not free.

        The space is asked for beforehand, because a file that is cut off fills the disk for everyone else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"{self.folder} has {free / GIB:.2f} GiB free, but a checkpoint needs {needed / GIB:.2f}; free some "
                "space and go on with --resume auto, or lower ckpt_max_keep"
            )

    def _prune(self, step: int) -> None:
        """Remove old checkpoints. Those after `step`, damaged or of a run that went back, displace no older one."""
        for old in [other for other in self.steps() if other <= step][: -self.keep_last]:
            if not self.keep_every or old % self.keep_every:
                self._state_file(old).unlink(missing_ok=True)
                for path in self.folder.glob(f"*-{old:08d}.ckpt"):
                    path.unlink(missing_ok=True)

    def _state_file(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}.safetensors"
