"""The options of the compare command."""

from __future__ import annotations

import dataclasses
from typing import Literal

from latte.config.parser import REQUIRED, OptionError, Options, in_range, option


@dataclasses.dataclass(kw_only=True)
class CompareConfig(Options):
    """Compare"""

    videos: list[str] = option(
        REQUIRED,
        "reference A, and what is compared with it: video files, gifs, images or folders of frames, or folders of "
        "videos, which are matched by name",
        words="A B [B ...]",
    )
    metrics: list[Literal["psnr", "ssim", "vmaf", "flicker", "motion"]] = option(
        ["psnr", "ssim", "vmaf", "flicker", "motion"], "what to measure"
    )
    frames: int | None = option(None, "compare only so many frames of each video; null = all, of videos of one length")
    strips: int = option(3, "picture strips to draw, of the pairs with the lowest PSNR")
    strip_frames: int = option(8, "frames in a strip, evenly spaced")
    amplify: float = option(8.0, "factor of the differences in a strip")
    output_path: str = option("outputs/compare", "folder for compare.csv, the strips, and the plot of several B")
    dry_run: bool = option(False, "check and match the videos, print what would be compared, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.videos) < 2:
            raise OptionError("videos", self.videos, "two or more: the reference first, then what is compared with it")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise OptionError("metrics", self.metrics, "a list of different metrics, at least one")
        in_range(self, "frames", 1)
        in_range(self, "strips", 0, 100)
        in_range(self, "strip_frames", 1, 32)
        if not self.amplify > 0:
            raise OptionError("amplify", self.amplify, "a number above 0")
