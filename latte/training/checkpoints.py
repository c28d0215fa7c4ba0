"""Checkpoints of a run, two files per checkpoint: the weights to sample from, and the state to resume from."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from latte.errors import UnreadableError, UserError
from latte.io.atomic import check_room, remove_leftovers, sync_folder
from latte.training.health import unsound
from latte.weights.files import write_state_dict
from latte.weights.fingerprint import checksum
from latte.weights.mapped import read_through
from latte.weights.safetensors_file import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

log = logging.getLogger("latte")
CHECKSUM, KIND = "checksum", "checksum_kind"  # of the metadata; two keys, so that damage to one is no missing checksum
_STATE = re.compile(r"state-(\d{8})\.safetensors")
_WEIGHTS = re.compile(r"\w+-(\d{8})\.ckpt")


class Checkpoints:
    """The folder `ckpt` of a run; a checkpoint is complete when it has its state file, which is written last.

    The newest `keep_last` checkpoints are kept, and, if `keep_every` is not 0, also every step that is its multiple.
    """

    def __init__(self, folder: Path, keep_last: int = 3, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints in ascending order; raises UnreadableError if it cannot tell."""
        return self._steps_of(_STATE)

    def _steps_of(self, pattern: re.Pattern[str]) -> list[int]:
        """Return the steps in the names that match a pattern, in ascending order."""
        try:
            names = [path.name for path in self.folder.iterdir()]  # `glob` finds nothing where it may not read
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnreadableError(f"cannot read {self.folder}: {error.strerror}") from error
        return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)

    def save(
        self,
        step: int,
        state: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        metadata: Mapping[str, str],
        kind: str = "ema",
        progress: Callable[[int], Any] = lambda count: None,
        of_state: Mapping[str, str] | None = None,
        prune: bool = True,
    ) -> Path:
        """Write a checkpoint, remove old ones if `prune`, and return the file of the weights.

        The state also gets the metadata `of_state` and its checksum. `progress` gets the number of bytes of each tensor
        that has been written.
        Raises UserError if the disk is too full or a file cannot be written; earlier checkpoints stay as they are.
        """
        full = {**metadata, **(of_state or {})}
        weights_file = self.folder / f"{kind}-{step:08d}.ckpt"
        try:
            self._make_room(sum(array.nbytes for arrays in (state, weights) for array in arrays.values()))
            write_state_dict(weights_file, weights, metadata, progress)
            write_safetensors(self._state_file(step), state, _with_checksum(state, full), progress)
            sync_folder(self.folder)  # before old ones go: after a power cut, one of them must be complete
            if prune:
                self.prune(step)
        except OSError as error:
            raise UserError(f"cannot write a checkpoint to {self.folder}: {error.strerror}") from error
        return weights_file

    def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Return the state of a step as views into its file, and its metadata; raises UserError if it is malformed."""
        return read_safetensors(self._state_file(step))

    def check(self, step: int) -> None:
        """Raise UserError if a state is damaged: malformed, altered since it was saved, of another step, not finite.

        Raises UnreadableError if the file cannot be read, which is no damage. States of older versions have no
        checksum.
        """
        file = self._state_file(step)
        read_through(file)
        state, metadata = self.load(step)
        wanted, kind = metadata.pop(CHECKSUM, None), metadata.get(KIND)
        if (wanted, kind) != (None, None) and wanted != checksum(state, metadata):
            raise UserError(f"{file} is not as it was saved: its checksum differs")
        if "step" in state and state["step"].tolist() != step:
            raise UserError(f"{file} holds step {state['step'].tolist()}")
        if name := unsound(state):
            raise UserError(f"{file} holds numbers in {name} that are not finite or not possible")

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint that is not damaged, or None without any; warns about damaged ones.

        Raises UserError if all are damaged, and UnreadableError if a file cannot be read, which may well be whole.
        """
        steps, damage = self.steps(), []
        for step in reversed(steps):
            try:
                self.check(step)
            except UnreadableError as error:
                raise UnreadableError(
                    f"{error}; the run stays as it is: resume it when its files can be read"
                ) from error
            except UserError as error:
                damage.append(error)
                continue
            for each in damage:
                log.warning("%s; the checkpoint before it is taken", each)
            return step
        if damage:
            raise UserError(
                f"{self.folder} holds no state that can be resumed from ({damage[0]}); bring one back from a copy, or "
                "leave resume out to start a new run"
            )
        return None

    def prune(self, step: int) -> None:
        """Remove old checkpoints, and weights as old that have no state.

        Checkpoints after `step`, from before a run went back, do not count. Weights go first: a process that is killed
        meanwhile leaves a checkpoint that is seen, and removed by the next one.
        """
        kept = [other for other in self.steps() if other <= step][-self.keep_last :]
        for old in sorted({*self.steps(), *self._steps_of(_WEIGHTS)}):
            if kept and old < kept[0] and (not self.keep_every or old % self.keep_every):
                for path in self.folder.glob(f"*-{old:08d}.ckpt"):
                    path.unlink(missing_ok=True)
                self._state_file(old).unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        """Remove what killed processes left; raises UserError if `needed` bytes are not free.

        The check comes first, because an incomplete file would fill the disk for everyone else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        check_room(self.folder, needed, "free some space and go on with --resume auto, or lower ckpt_max_keep")

    def _state_file(self, step: int) -> Path:
        return self.folder / f"state-{step:08d}.safetensors"


def _with_checksum(state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, str]:
    full = {"format": "pt", **metadata, KIND: "names, shapes and CRC-32 of tensors, and metadata"}
    return {**full, CHECKSUM: checksum(state, full)}
