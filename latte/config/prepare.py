"""The options of the prepare command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from latte.config.parser import REQUIRED, OptionError, Options, in_range, option


@dataclasses.dataclass(kw_only=True)
class PrepareConfig(Options):
    """Prepare"""

    folder: list[str] = option(REQUIRED, "folder of the videos, of any size, rate and rotation", words="DIR")
    output_path: str | None = option(None, "folder to write to; null = DIR-prepared")
    image_size: int = option(256, "width and height of the clips in pixels, a multiple of 8; the centre is kept")
    num_frames: int = option(16, "frames that training takes of a clip; shorter scenes are left out")
    fps: float = option(8.0, "frames per second of the clips")
    scene_threshold: float = option(
        0.1, "cut where ffmpeg's scene score of a frame is above this, 0.08 to 0.14 for most videos; 1 = never"
    )
    max_seconds: float = option(60.0, "longer scenes become several clips")
    output_format: Literal["mp4", "frames"] = option("mp4", "mp4 files, or folders of jpg frames")
    dry_run: bool = option(False, "look at every video, print what would be written, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.folder) != 1:
            raise OptionError("DIR", self.folder, "one folder")
        if self.image_size < 16 or self.image_size % 8:
            raise OptionError("image_size", self.image_size, "a multiple of 8, from 16 on")
        in_range(self, "num_frames", 1)
        in_range(self, "fps", 0.1, 240)
        in_range(self, "scene_threshold", 0, 1)
        if self.max_seconds * self.fps < 2 * self.num_frames:
            least = f"at least {2 * self.num_frames / self.fps:g}, twice num_frames"
            raise OptionError("max_seconds", self.max_seconds, least)

    @property
    def source(self) -> Path:
        """The folder of the videos."""
        return Path(self.folder[0])

    @property
    def target(self) -> Path:
        """The folder to write to."""
        source = self.source.resolve()
        return Path(self.output_path) if self.output_path else source.with_name(f"{source.name}-prepared")

    @property
    def most_frames(self) -> int:
        """Frames of the longest clip."""
        return int(self.max_seconds * self.fps)
