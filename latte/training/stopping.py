"""Stop on a signal: finish the step, save, and exit."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger("latte")
_entered: list[StopSignal] = []


class StopSignal:
    """A context in which SIGTERM and SIGINT only set `requested`; a second signal raises KeyboardInterrupt.

    Processes forked in the context, such as a loader's, get the handlers from before and a process group of their own.
    Raises ValueError if it is entered outside the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}  # the handlers

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        _entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _entered.remove(self)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: stopping after this step, then saving", signal.Signals(number).name)


def _release_child() -> None:
    """Let a forked process end when it is terminated itself, and only then.

    With our handler it would outlive `terminate()`. In our process group it would get the SIGTERM that `timeout` and
    others send to the whole group; MindSpore answers the end of a loader's process with a second signal to this
    process, and the checkpoint would be lost.
    """
    for entered in reversed(_entered):
        entered._restore()
    if _entered:
        os.setpgid(0, 0)
        _entered.clear()


os.register_at_fork(after_in_child=_release_child)
