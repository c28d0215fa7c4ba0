"""Say what this machine has of Ascend, GPU and CPU, what is missing and how that is mended, and try the best of them.

Exit code 0: the device computes what it should. 1: it does not, or it cannot be used. 2: the options are wrong.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Literal

from latte.config.parser import Options, in_range, parse_config
from latte.runtime import doctor


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Doctor"""

    device_target: Literal["Ascend", "GPU", "CPU"] | None = None  # which device to try; null = the best that is there
    device_id: int = 0  # which of several devices
    json: bool = False  # print one list of all findings, for programs

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "device_id", 0)


def main() -> None:
    """Examine, print, try, print."""
    settings = parse_config(Settings, sys.argv[1:], "tools/doctor.py", __doc__)
    found = doctor.examine()
    if not settings.json:
        print(doctor.report(found), flush=True)
    tried = doctor.try_device(settings.device_target, settings.device_id)
    print(json.dumps(list(map(dataclasses.asdict, found + tried)), indent=2) if settings.json else doctor.report(tried))
    if tried[-1].state != "ok":
        raise SystemExit(1)
