"""The options of the export command."""

from __future__ import annotations

import dataclasses
from typing import Literal

from latte.config.parser import OptionError, Options, in_range, option
from latte.config.sample import SampleConfig

OF_SCHEDULE = ("denoiser_all", "denoiser_rest")  # the graphs of a sampling with a schedule


@dataclasses.dataclass(kw_only=True)
class ExportOptions(Options):
    """Export"""

    part: Literal["denoiser", "denoiser_all", "denoiser_rest", "vae_encoder", "vae_decoder", "t5"] = option(
        "denoiser",
        "what to export; denoiser = the network with its guidance; for the schedule named by cache: denoiser_all = the "
        "same, which also returns the residual, denoiser_rest = without the blocks that the residual stands for",
    )
    target: str | None = option(None, ".mindir file to write; null = no file, only the report")
    text_tokens: int = option(120, "tokens of a prompt, for t5 and for the denoiser of text to video")
    report: bool = option(False, "count the operations of each kind per block of the graph")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "text_tokens", 1)
        if self.target is not None and not self.target.endswith(".mindir"):
            raise OptionError("target", self.target, "a file name that ends with .mindir")


@dataclasses.dataclass(kw_only=True)
class ExportConfig(ExportOptions, SampleConfig):
    """Options of tools/export_mindir.py: the options of sample.py, and its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is None and not self.report and not self.dry_run:
            raise OptionError("target", self.target, "the .mindir file to write, unless report or dry_run is true")
        if self.by_windows:
            others = "window_stride, loop and autoregressive"
            raise OptionError("window", self.window, f"left out, with {others}: a graph is of one window")
        if self.part.startswith("denoiser") and (self.part in OF_SCHEDULE) != bool(self.cache):
            allowed = "a schedule" if self.part in OF_SCHEDULE else f"null for part {self.part}"
            raise OptionError("cache", self.cache, f"{allowed}; {' and '.join(OF_SCHEDULE)} are the parts with one")
