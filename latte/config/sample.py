"""The options of the sample command, one commented line each; the comment is the option's text in --help."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from latte.config.common import CheckpointOptions, CodecOptions, DeviceOptions, ModelOptions
from latte.config.parser import OptionError, Options, in_range, option
from latte.errors import UserError

# Those of latte.diffusion.solvers, which is not imported here so that --help is quick.
SolverName = Literal[
    "ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_s", "pndm", "deis", "kdpm2_a", "unipc"
]


@dataclasses.dataclass(kw_only=True)
class SamplingOptions(Options):
    """Sampling"""

    sampling_steps: int = option(250, "denoising steps, 1 to 1000")
    sampler: SolverName | None = option(
        None, "solver; null = ddpm, or ddim if ddim_sampling; for 20 steps dpmpp_2m or unipc"
    )
    ddim_sampling: bool = option(False, "the same as sampler: ddim")
    eta: float = option(0.0, "noise of ddim: 0 = none, 1 = as much as ddpm")
    guidance_scale: float | None = option(
        None, "classifier-free guidance; 1 = none; null = 7.5 for text to video, else 1"
    )
    feature_cache: float = option(
        0.0, "skip inner blocks while tokens change less than this part: 0.02 to 0.1; 0 = never"
    )
    class_labels: list[int] | None = option(None, "one a video, again from the first if too few; null = from each seed")
    text_embeddings: str | None = option(None, ".npz of CLIP's `text` (N, 77, 768) and, for guidance, `null` (77, 768)")
    seed: int = option(42, "random seed of the first video; the others count up from it")
    num_samples: int = option(1, "videos to make; of text to video, of each prompt")
    batch_size: int = option(1, "videos made at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "sampling_steps", 1, 1000)
        in_range(self, "eta", 0, 1)
        if self.ddim_sampling and self.sampler not in (None, "ddim"):
            raise OptionError("sampler", self.sampler, "ddim or null while ddim_sampling is true")
        if self.eta and self.solver != "ddim":
            raise OptionError("eta", self.eta, f"0 unless the sampler is ddim; {self.solver} has no such choice")
        in_range(self, "seed", 0, 2**32 - 1)
        in_range(self, "num_samples", 1)
        in_range(self, "batch_size", 1)
        in_range(self, "feature_cache", 0, 1)
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise OptionError("guidance_scale", self.guidance_scale, "a finite number")
        if self.class_labels is not None and (not self.class_labels or min(self.class_labels) < 0):
            raise OptionError("class_labels", self.class_labels, "a list of one or more class numbers from 0 on")

    @property
    def solver(self) -> str:
        """The sampler, whichever of the two options says it."""
        return self.sampler or ("ddim" if self.ddim_sampling else "ddpm")


@dataclasses.dataclass(kw_only=True)
class TextToVideoOptions(Options):
    """Text to video: checkpoint names a diffusers folder, and vae_checkpoint is not needed"""

    prompts: list[str] | None = option(None, "what the videos show")
    negative_prompt: str = option("", "what they are not to show, for guidance")
    height: int | None = option(None, "pixels; null = as trained")
    width: int | None = option(None, "pixels; null = as trained")
    mask_feature: bool = option(True, "attend to the words of the prompt only, not to what fills it up")
    enable_temporal_attentions: bool = option(True, "false = every frame by itself")
    enable_vae_temporal_decoder: bool = option(False, "decode with the folder's vae_temporal_decoder")
    quantize: Literal["int8"] | None = option(None, "keep the matrices of network and text encoder in 8 bits")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("height", "width"):
            in_range(self, key, 1)
        if self.prompts is not None and not self.prompts:
            raise OptionError("prompts", self.prompts, "a list of one or more texts")


@dataclasses.dataclass(kw_only=True)
class HoldingOptions(Options):
    """Beginning with given frames"""

    init_frames: str | None = option(
        None, "picture, video, or folder of frames whose last frames the videos begin with"
    )
    init_count: int = option(1, "how many of them")
    init_strength: float = option(
        0.6, "how far the other frames may leave the last given one: 0 = not at all, 1 = all the way"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "init_count", 1)
        in_range(self, "init_strength", 0.01, 1)


@dataclasses.dataclass(kw_only=True)
class OutputOptions(Options):
    """Output"""

    output_path: str = option("outputs/samples", "folder for the videos")
    output_format: list[Literal["mp4", "gif", "png"]] = option(["mp4"], "per video")
    fps: int = option(8, "frames a second")
    dry_run: bool = option(False, "check the options and files, say what would be done, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "fps", 1, 100)
        if not self.output_format or len(set(self.output_format)) < len(self.output_format):
            raise OptionError("output_format", self.output_format, "a list of different formats, at least one")


# Python collects the fields from the last base to the first, so --help begins with the device and ends with the output.
@dataclasses.dataclass(kw_only=True)
class SampleConfig(
    OutputOptions,
    HoldingOptions,
    TextToVideoOptions,
    SamplingOptions,
    CodecOptions,
    CheckpointOptions,
    ModelOptions,
    DeviceOptions,
):
    """Options of sample.py."""

    def require_checkpoint(self) -> None:
        """Raise UserError if there is no checkpoint."""
        if not self.checkpoint:
            raise UserError("checkpoint is not set; name a file or a folder in the YAML or with --checkpoint")
