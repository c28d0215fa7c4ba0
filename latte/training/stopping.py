"""Stop on a signal: finish the step, save, and exit."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from latte.errors import ENDINGS, handled, restore

if TYPE_CHECKING:
    from types import FrameType

_entered: list[StopSignal] = []


class StopSignal:
    """A context in which a signal of `latte.errors.ENDINGS` only sets `requested` to its name.

    A second one raises KeyboardInterrupt, but not SIGTERM in a job of Slurm, which repeats it before it kills.
    Outside the main thread, which alone gets signals, nothing is ever requested.
    Processes forked in the context, such as a loader's, get the handlers from before and a process group of their own.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._before: dict[int, Any] = {}  # the handlers
        self._context = contextlib.ExitStack()

    def __enter__(self) -> StopSignal:
        self._before = self._context.enter_context(handled(self._handle, *ENDINGS))
        _entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _entered.remove(self)
        self._context.close()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
                return
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        # Not by the log or a stream: the signal may have come in the middle of a write to it.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self.requested}: stopping after this step, then saving\n".encode())


def _release_child() -> None:
    """Let a forked process end when it is terminated itself, and only then.

    With our handler it would outlive `terminate()`. In our process group it would get the SIGTERM that `timeout` and
    others send to the whole group, and a step would wait for its batch for ever.
    """
    for entered in reversed(_entered):
        restore(entered._before)
    if _entered:
        os.setpgid(0, 0)
        _entered.clear()


if hasattr(os, "register_at_fork"):  # elsewhere no process is forked
    os.register_at_fork(after_in_child=_release_child)
