"""The options of the schedule command."""

from __future__ import annotations

import dataclasses

from latte.config.parser import REQUIRED, OptionError, Options, in_range, option
from latte.config.sample import SampleConfig


@dataclasses.dataclass(kw_only=True)
class ScheduleOptions(Options):
    """Schedule"""

    calls: int = option(REQUIRED, "network calls in which all blocks are computed")
    schedule_file: str = option(
        REQUIRED, ".json file to write, or -o FILE; a table and a plot of the error against calls are written beside it"
    )
    order: int = option(0, "what stands in for the range: 0 = what it added last, 1 or 2 = that extrapolated")
    blocks: list[int] | None = option(
        None, "first block of the range that other calls leave out, and the one after its last; null = all blocks"
    )
    max_gap: int = option(6, "longest way from a computed call to the next one; the cost grows with it")
    refine: int = option(20, "samplings that try to move a call of the schedule to its neighbour")
    search_videos: int = option(1, "the first videos of the sampling, whose errors are averaged")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "calls", 1)
        in_range(self, "order", 0, 2)
        in_range(self, "max_gap", 2)
        in_range(self, "search_videos", 1)
        in_range(self, "refine", 0)
        if not self.schedule_file.endswith(".json"):
            raise OptionError("schedule_file", self.schedule_file, "a file name that ends with .json")
        if self.blocks is not None and not (len(self.blocks) == 2 and 0 <= self.blocks[0] < self.blocks[1]):
            raise OptionError("blocks", self.blocks, "null, or two numbers of blocks, the lower one first")


@dataclasses.dataclass(kw_only=True)
class ScheduleConfig(ScheduleOptions, SampleConfig):
    """Options of tools/find_schedule.py: the options of sample.py, and its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        windows = ("window", "window_stride", "loop", "autoregressive")
        for key in ("cache", "feature_cache", "init_frames", "use_parallel", *windows):
            if getattr(self, key):
                raise OptionError(key, getattr(self, key), "left out: the search is for videos without it")
