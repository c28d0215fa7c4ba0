"""The options of the sample command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from latte.config.common import CheckpointOptions, CodecOptions, LayoutOptions, ModelOptions, ProfileOptions
from latte.config.parser import OptionError, Options, in_range, option, save_config
from latte.config.values import fit
from latte.config.yaml_file import read_yaml
from latte.errors import UserError

# The names in latte.diffusion.solvers, which is not imported here so that --help is quick.
SolverName = Literal[
    "ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_s", "pndm", "deis", "kdpm2_a", "unipc"
]

STEPS = "denoising steps, 1 to 1000; null = 250, 50 for text to video, or what the network was distilled to"


@dataclasses.dataclass(kw_only=True)
class SamplingOptions(Options):
    """Sampling"""

    sampling_steps: int | None = option(None, STEPS)
    sampler: SolverName | None = option(
        None, "solver; null = ddpm, or ddim with ddim_sampling; dpmpp_2m and unipc need only 20 steps"
    )
    ddim_sampling: bool = option(False, "the same as sampler: ddim")
    eta: float = option(0.0, "noise that ddim adds: 0 = none, 1 = as much as ddpm")
    guidance_scale: float | None = option(
        None, "scale of classifier-free guidance; 1 = no guidance; null = 7.5 for text to video, else 1"
    )
    feature_cache: float = option(0.0, "0.05 is the same as cache: threshold:0.05, see there; 0 = no cache")
    cache: str | None = option(
        None,
        "skip blocks in some steps: every<k> or calls<n> compute them in each k-th or in n network calls, and "
        "every<k>-order1 extrapolates what they add; a file of latte schedule; threshold:0.05 skips while tokens "
        "change less than this, 0.02 to 0.1; null = compute all",
    )
    guidance_interval: list[float] | None = option(
        None, "the lowest and the highest timestep, of 0 to 999, at which there is guidance; null = all"
    )
    class_labels: list[int] | None = option(
        None, "class of each video, repeated if there are more videos; null = drawn from each seed"
    )
    text_embeddings: str | None = option(
        None, "CLIP embeddings, an .npz of `text` (N, 77, 768) and, for guidance, `null` (77, 768)"
    )
    text_encoder_path: str | None = option(
        None,
        "folder of CLIP's text encoder and tokenizer, for the prompts of a network with condition text; null = that of "
        "its training run",
    )
    seed: int = option(42, "random seed of the first video; the next videos count up from it")
    num_samples: int = option(1, "videos to sample; with prompts, videos per prompt")
    batch_size: int = option(1, "videos sampled at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "sampling_steps", 1, 1000)
        in_range(self, "eta", 0, 1)
        if self.ddim_sampling and self.sampler not in (None, "ddim"):
            raise OptionError("sampler", self.sampler, "ddim or null while ddim_sampling is true")
        if self.eta and self.solver != "ddim":
            raise OptionError("eta", self.eta, f"0 unless the sampler is ddim; {self.solver} has no eta")
        in_range(self, "seed", 0, 2**32 - 1)
        in_range(self, "num_samples", 1)
        in_range(self, "batch_size", 1)
        in_range(self, "feature_cache", 0, 1)
        if self.class_labels is not None and (not self.class_labels or min(self.class_labels) < 0):
            raise OptionError("class_labels", self.class_labels, "a list of one or more class numbers from 0 on")

    @property
    def solver(self) -> str:
        """The name of the solver, from the options sampler and ddim_sampling."""
        return self.sampler or ("ddim" if self.ddim_sampling else "ddpm")


@dataclasses.dataclass(kw_only=True)
class TextToVideoOptions(Options):
    """Text to video, where checkpoint is a diffusers folder and vae_checkpoint is null; prompts also with CLIP"""

    prompts: list[str] | None = option(None, "descriptions of the videos to make")
    negative_prompt: str = option("", "what guidance leads away from")
    height: int | None = option(None, "height of the frames in pixels; null = as trained")
    width: int | None = option(None, "width of the frames in pixels; null = as trained")
    mask_feature: bool = option(True, "attend only to the words of a prompt, not to its padding")
    enable_temporal_attentions: bool = option(True, "false = every frame is an independent image")
    enable_vae_temporal_decoder: bool = option(False, "decode with the folder's vae_temporal_decoder")
    quantize: Literal["int8"] | None = option(None, "keep the matrices of network and text encoder in 8 bits")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("height", "width"):
            in_range(self, key, 1)
        if self.prompts is not None and not self.prompts:
            raise OptionError("prompts", self.prompts, "a list of one or more texts")


@dataclasses.dataclass(kw_only=True)
class ConditioningFrameOptions(Options):
    """Image to video, video continuation"""

    init_frames: str | None = option(
        None, "conditioning frames: an image, a video, or a folder of frames; the videos begin with the last ones"
    )
    init_count: int = option(1, "number of conditioning frames")
    init_strength: float | None = option(
        None,
        "how much the other frames may differ from the last conditioning frame: low = still, 1 = free; null = 0.6, or "
        "1 for a network trained with condition_frames, which follows them by itself",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "init_count", 1)
        in_range(self, "init_strength", 0.01, 1)


@dataclasses.dataclass(kw_only=True)
class WindowOptions(Options):
    """Videos longer than trained, loops"""

    window: int | None = option(
        None,
        "frames that the network makes at once; num_frames is then the length of the whole video, made by windows that "
        "overlap; null = as many as trained if one of the next three is set, else no windows",
    )
    window_stride: int | None = option(
        None, "frames between the starts of two windows: less is smoother and takes longer; null = window / 4"
    )
    autoregressive: bool = option(
        False,
        "make windows one after the other: each is given the last frames of the one before it, condition_frames of the "
        "training or, without, a quarter of a window, unless window_stride leaves it others",
    )
    loop: bool = option(False, "make the end of the video meet its start: windows also cross its end")
    shared_noise: bool = option(
        True,
        "all windows have the noise of the first one, its frames shuffled, so that they begin alike; false = new noise",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "window", 2)
        in_range(self, "window_stride", 1)
        if self.autoregressive and self.loop:
            raise OptionError("loop", self.loop, "false with autoregressive: no window knows what comes after it")

    @property
    def by_windows(self) -> bool:
        """Whether the options ask for windows."""
        return bool(self.window or self.window_stride or self.loop or self.autoregressive)


@dataclasses.dataclass(kw_only=True)
class OutputOptions(Options):
    """Output"""

    output_path: str = option("outputs/samples", "folder for the videos")
    output_format: list[Literal["mp4", "gif", "png"]] = option(["mp4"], "file formats of each video")
    fps: int = option(8, "frames per second")
    existing: Literal["keep", "refuse", "replace"] = option(
        "keep",
        "videos that are there: keep = keep those that the same options and weights have made, and replace others; "
        "refuse = keep those, and stop if there are others; replace = make all again",
    )
    dry_run: bool = option(False, "check the options and files, print what would be done, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "fps", 1, 100)
        if not self.output_format or len(set(self.output_format)) < len(self.output_format):
            raise OptionError("output_format", self.output_format, "a list of different formats, at least one")


@dataclasses.dataclass(kw_only=True)
class GuidanceLayoutOptions(LayoutOptions):
    """Layout of ranks, guidance"""

    cfg_parallel: bool = option(
        False, "with use_parallel, half of the ranks compute the conditional half of guidance, the others the other"
    )


# Python collects the fields from the last base class to the first, so --help goes from the device to the output.
@dataclasses.dataclass(kw_only=True)
class SampleConfig(
    ProfileOptions,
    OutputOptions,
    WindowOptions,
    ConditioningFrameOptions,
    TextToVideoOptions,
    SamplingOptions,
    CodecOptions,
    CheckpointOptions,
    ModelOptions,
    GuidanceLayoutOptions,
):
    """Options of sample.py."""

    def require_checkpoint(self) -> str:
        """Return the checkpoint; raises UserError if there is none."""
        if not self.checkpoint:
            raise UserError("checkpoint is not set; name a file or a folder in the YAML or with --checkpoint")
        return self.checkpoint


def keep_config(cfg: SampleConfig) -> None:
    """Write the options to config.yaml beside the videos; those of another seed stay there as config-seed<seed>.yaml.

    Raises UserError if the file cannot be written.
    """
    file = Path(cfg.output_path) / "config.yaml"
    if file.is_file():
        try:
            seed = fit(read_yaml(file)[0].get("seed"), int)
        except (UserError, ValueError):
            seed = None  # a file of somebody else, or damaged: nothing to make videos with
        if seed not in (None, cfg.seed):
            file.replace(file.with_name(f"config-seed{seed}.yaml"))
    save_config(cfg, file)
