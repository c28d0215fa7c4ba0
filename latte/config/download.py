"""The options of the download command."""

from __future__ import annotations

import dataclasses
import re

from latte.config.parser import REQUIRED, OptionError, Options, option


@dataclasses.dataclass(kw_only=True)
class DownloadConfig(Options):
    """Download"""

    names: list[str] = option(REQUIRED, "official weights, or list for a table of them", words="NAME")
    folder: str = option("models", "folder to write to")
    mirror: str | None = option(
        None, "address of a mirror, such as https://hf-mirror.com; null = HF_ENDPOINT, or https://huggingface.co"
    )
    dry_run: bool = option(False, "only say which files would be fetched")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mirror is not None and not re.fullmatch(r"https?://[^\s/]+/?", self.mirror):
            raise OptionError("mirror", self.mirror, "an address such as https://hf-mirror.com")
