"""The options of the gallery command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from latte.config.parser import REQUIRED, OptionError, Options, option


@dataclasses.dataclass(kw_only=True)
class GalleryConfig(Options):
    """Gallery"""

    run: list[str] = option(REQUIRED, "folder of a training", words="RUN")
    output_path: str | None = option(None, "file to write; null = gallery.html in the folder of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.run) != 1:
            raise OptionError("RUN", self.run, "the folder of one training")

    @property
    def target(self) -> Path:
        """The file to write."""
        return Path(self.output_path or Path(self.run[0]) / "gallery.html")
