"""Checkpoints of a run, two files per checkpoint: the weights to sample from, and the state to resume from."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from latte.errors import UserError
from latte.io.atomic import check_room, sync_folder
from latte.weights.files import write_state_dict
from latte.weights.safetensors_file import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

log = logging.getLogger("latte")
_STATE = re.compile(r"state-(\d{8})\.safetensors")
_LEFTOVER = re.compile(r"\.\w+-\d{8}-.+\.(ckpt|safetensors)")  # the temporary names of `atomic_path`


class Checkpoints:
    """The folder `ckpt` of a run; a checkpoint is complete when it has its state file, which is written last.

    The newest `keep_last` checkpoints are kept, and, if `keep_every` is not 0, also every step that is its multiple.
    """

    def __init__(self, folder: Path, keep_last: int = 3, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints in ascending order."""
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
        """Write a checkpoint, remove old ones, and return the file of the weights.

        `progress` gets the number of bytes of each tensor that has been written.
        Raises UserError if the disk is too full or a file cannot be written; earlier checkpoints stay as they are.
        """
        weights_file = self.folder / f"{kind}-{step:08d}.ckpt"
        try:
            self._make_room(sum(array.nbytes for arrays in (state, weights) for array in arrays.values()))
            write_state_dict(weights_file, weights, metadata, progress)
            write_safetensors(self._state_file(step), state, metadata, progress)
            sync_folder(self.folder)  # before old ones go: after a power cut, one of them must be complete
            self._prune(step)
        except OSError as error:
            raise UserError(f"cannot write a checkpoint to {self.folder}: {error.strerror}") from error
        return weights_file

    def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the state of a step as views into its file, and its metadata; raises UserError if it is damaged."""
        return read_safetensors(self._state_file(step))

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint that is not damaged, or None; warns about damaged ones."""
        for step in reversed(self.steps()):
            try:
                self.load(step)
                return step
            except UserError as error:
                log.warning("%s; the checkpoint before it is taken", error)
        return None

    def _make_room(self, needed: int) -> None:
        """Remove the temporary files of killed processes; raises UserError if `needed` bytes are not free.

        The check comes first, because an incomplete file would fill the disk for everyone else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
        check_room(self.folder, needed, "free some space and go on with --resume auto, or lower ckpt_max_keep")

    def _prune(self, step: int) -> None:
        """Remove old checkpoints. Checkpoints after `step`, from before a run went back, do not count."""
        for old in [other for other in self.steps() if other <= step][: -self.keep_last]:
            if not self.keep_every or old % self.keep_every:
                self._state_file(old).unlink(missing_ok=True)
                for path in self.folder.glob(f"*-{old:08d}.ckpt"):
                    path.unlink(missing_ok=True)

    def _state_file(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}.safetensors"
