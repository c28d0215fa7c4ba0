"""List the devices of this machine and, for each thing missing, the command that fixes it; then try the best device.

Exit code 0: the device computes correctly. 1: it does not, or it cannot be used. 2: the options are wrong.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

from latte.config.parser import Options, in_range, option, parse_config
from latte.runtime import doctor

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Doctor"""

    device_target: Literal["Ascend", "GPU", "CPU"] | None = option(
        None, "device to try; null = the best one of this machine"
    )
    device_id: int = option(0, "number of the device, if there are several")
    all: bool = option(False, "list what is missing for devices that this machine has nothing of, too")
    json: bool = option(False, "print one list of all findings, for programs")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "device_id", 0)


def main(argv: Sequence[str] | None = None) -> None:
    """Examine the machine, try the device, and print the findings."""
    settings = parse_config(Settings, argv, __doc__)
    found = doctor.examine()
    if not settings.json:
        print(doctor.report(found if settings.all else doctor.shorten(found, settings.device_target)), flush=True)
    tried = doctor.try_device(settings.device_target, settings.device_id)
    print(json.dumps(list(map(dataclasses.asdict, found + tried)), indent=2) if settings.json else doctor.report(tried))
    if tried[-1].state != "ok":
        raise SystemExit(1)
