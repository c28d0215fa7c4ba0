"""Stop in order: finish the step, save, and leave."""

from __future__ import annotations

import logging
import signal
from types import FrameType

log = logging.getLogger("latte")


class StopSignal:
    """While it is entered, SIGTERM and SIGINT only set `requested`; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: stopping after this step, then saving", signal.Signals(number).name)
