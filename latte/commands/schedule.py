"""Find which network calls of a sampling are worth computing, on your own model, and write them as a schedule.

    python tools/find_schedule.py -c configs/inference/demo.yaml --calls 15 -o outputs/demo15.json
    python sample.py -c configs/inference/demo.yaml --cache outputs/demo15.json

The options are those of sample.py, and the schedule is for their solver, steps and model. In the other calls a range of
blocks adds again what it added before. --dry_run says how many network calls the search takes; a search that was ended
begins again. docs/sample.md explains.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from latte.config import ScheduleConfig, parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, search, write the files, and print what was found."""
    words = ["--schedule_file" if word == "-o" else word for word in (sys.argv[1:] if argv is None else argv)]
    cfg = parse_config(ScheduleConfig, words, __doc__)
    cfg.require_checkpoint()

    from latte.inference import schedule_search  # after the options: MindSpore takes seconds to import
    from latte.runtime import device

    device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level)
    print(schedule_search.dry_run(cfg) if cfg.dry_run else schedule_search.find(cfg))
