"""The options of the ablation command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from latte.config.evaluate import metrics_of
from latte.config.parser import REQUIRED, OptionError, Options, in_range, option
from latte.config.sample import SolverName


@dataclasses.dataclass(kw_only=True)
class AblationConfig(Options):
    """Ablation"""

    configs: list[str] = option(
        REQUIRED, "configs of trainings with different names, each for one network", words="CONFIG [CONFIG ...]"
    )
    real: str | None = option(None, "folder of real videos that no training saw, to compare samples with")
    output_path: str = option("outputs/ablation", "folder of the page, and of a folder for each training")
    max_steps: int | None = option(None, "steps of every training, in place of those of the configs")
    metrics: list[str] = option(["fvd64_16f"], "what to measure of each training, as `latte evaluate`")
    sampling_steps: int = option(12, "denoising steps of the samples")
    sampler: SolverName = option("unipc", "solver of the samples")
    guidance_scale: float = option(1.0, "scale of classifier-free guidance of the samples; 1 = no guidance")
    i3d: str | None = option(None, "weights of the network of FVD; null = those of `latte evaluate --fetch_i3d`")
    dry_run: bool = option(False, "check all configs, say what would be done, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "max_steps", 1)
        in_range(self, "sampling_steps", 1, 1000)
        names = [Path(config).stem for config in self.configs]
        if not names or len(set(names)) < len(names):
            raise OptionError("configs", self.configs, "files with different names, one or more")
        if not metrics_of(self.metrics, "metrics"):
            raise OptionError("metrics", self.metrics, "one name like fvd64_16f, or more")
        if not self.real:
            raise OptionError("real", self.real, "the folder of the real videos")
