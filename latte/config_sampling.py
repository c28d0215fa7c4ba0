"""The options of sample.py, one commented line each, and those that training shares with it; see config.py.

The comment of a field is its text in --help; a class is a group there. This module does not import MindSpore.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from latte.errors import UserError
from latte.options import OptionError, Options, in_range

# Those of latte.diffusion.solvers, which is not imported here so that --help is quick.
SamplerName = Literal[
    "ddim", "ddpm", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_s", "pndm", "deis", "kdpm2_a", "unipc"
]


@dataclasses.dataclass(kw_only=True)
class DeviceOptions(Options):
    """Device"""

    device_target: Literal["Ascend", "GPU", "CPU"] | None = None  # where to compute; null = the best that is there
    device_id: int = 0  # which of several devices
    mode: Literal[0, 1] = 0  # 0 = compiled graphs, 1 = PyNative, for debugging
    jit_level: Literal["O0", "O1", "O2"] | None = None  # Ascend: O0 = by kernel, O1 = fused, O2 = whole graph
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # arithmetic inside the blocks
    enable_flash_attention: bool = False  # use the fused attention kernel where the device has one
    use_parallel: bool = False  # share the work among the processes of mpirun or msrun

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "device_id", 0)


@dataclasses.dataclass(kw_only=True)
class ModelOptions(Options):
    """Model; null = as the checkpoint says, or in training the common choice"""

    model_name: str | None = None  # Latte-{S,B,L,XL}/{2,4,8}; training also takes LatteT2V, text to video
    condition: Literal["class", "text"] | None = None  # what steers the network besides the time
    num_classes: int | None = None  # classes, without the null class of guidance
    image_size: int | None = None  # pixels a side, a multiple of 8
    num_frames: int | None = None  # frames a video
    hidden_size: int | None = None  # width of the tokens, in place of the named size's
    depth: int | None = None  # number of blocks, in place of the named size's
    num_heads: int | None = None  # attention heads, in place of the named size's
    patch_size: int | None = None  # latent pixels a patch and side, in place of the named size's
    patch_embedder: Literal["conv", "linear"] = "conv"  # a convolution or an equal matrix product

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_classes", "num_frames", "hidden_size", "depth", "num_heads", "patch_size"):
            in_range(self, key, 1)
        if self.image_size is not None and (self.image_size < 8 or self.image_size % 8):
            raise OptionError("image_size", self.image_size, "a multiple of 8")
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise OptionError("hidden_size", self.hidden_size, f"a multiple of num_heads ({self.num_heads})")


@dataclasses.dataclass(kw_only=True)
class CheckpointOptions(Options):
    """Checkpoint"""

    checkpoint: str | None = None  # weights of the network, as written by tools/latte_converter.py or train.py


@dataclasses.dataclass(kw_only=True)
class CodecOptions(Options):
    """Autoencoder"""

    vae_checkpoint: str | None = None  # weights of the autoencoder, as written by tools/vae_converter.py
    sd_scale_factor: float | None = None  # makes the variance of latents one; null = the autoencoder's, mostly 0.18215
    vae_slice: int = 0  # frames that the autoencoder takes at once; 0 = what suits the device
    vae_tile: int = 0  # pixels a side of the tiles that are decoded one by one, for little memory; 0 = whole frames

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "vae_slice", 0)
        if self.vae_tile and self.vae_tile < 64:
            raise OptionError("vae_tile", self.vae_tile, "0, or 64 or more")
        factor = self.sd_scale_factor
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise OptionError("sd_scale_factor", factor, "a number above 0")


@dataclasses.dataclass(kw_only=True)
class SamplingOptions(Options):
    """Sampling"""

    sampling_steps: int = 250  # denoising steps, 1 to 1000
    sampler: SamplerName | None = None  # solver; null = ddpm, or ddim if ddim_sampling; for 20 steps dpmpp_2m or unipc
    ddim_sampling: bool = False  # the same as sampler: ddim
    eta: float = 0.0  # noise of ddim: 0 = none, 1 = as much as ddpm
    guidance_scale: float | None = None  # classifier-free guidance; 1 = none; null = 7.5 for text to video, else 1
    feature_cache: float = 0.0  # skip inner blocks while tokens change less than this part: 0.02 to 0.1; 0 = never
    class_labels: list[int] | None = None  # one a video, again from the first if too few; null = from each seed
    text_embeddings: str | None = None  # .npz of CLIP's `text` (N, 77, 768) and, for guidance, `null` (77, 768)
    seed: int = 42  # random seed of the first video; the others count up from it
    num_samples: int = 1  # videos to make; of text to video, of each prompt
    batch_size: int = 1  # videos made at once

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

    prompts: list[str] | None = None  # what the videos show
    negative_prompt: str = ""  # what they are not to show, for guidance
    height: int | None = None  # pixels; null = as trained
    width: int | None = None  # pixels; null = as trained
    mask_feature: bool = True  # attend to the words of the prompt only, not to what fills it up
    enable_temporal_attentions: bool = True  # false = every frame by itself
    enable_vae_temporal_decoder: bool = False  # decode with the folder's vae_temporal_decoder
    quantize: Literal["int8"] | None = None  # keep the matrices of network and text encoder in 8 bits

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("height", "width"):
            in_range(self, key, 1)
        if self.prompts is not None and not self.prompts:
            raise OptionError("prompts", self.prompts, "a list of one or more texts")


@dataclasses.dataclass(kw_only=True)
class HoldingOptions(Options):
    """Beginning with given frames"""

    init_frames: str | None = None  # picture, video, or folder of frames whose last frames the videos begin with
    init_count: int = 1  # how many of them
    init_strength: float = 0.6  # how far the other frames may leave the last given one: 0 = not at all, 1 = all the way

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "init_count", 1)
        in_range(self, "init_strength", 0.01, 1)


@dataclasses.dataclass(kw_only=True)
class OutputOptions(Options):
    """Output"""

    output_path: str = "outputs/samples"  # folder for the videos
    output_format: list[Literal["mp4", "gif", "png"]] = dataclasses.field(default_factory=lambda: ["mp4"])  # per video
    fps: int = 8  # frames a second
    dry_run: bool = False  # check the options and files, say what would be done, and stop

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


@dataclasses.dataclass(kw_only=True)
class ExportOptions(Options):
    """Export"""

    part: Literal["denoiser", "vae_encoder", "vae_decoder", "t5"] = "denoiser"  # denoiser: network and guidance
    target: str | None = None  # the .mindir file to write; null = write none, for report
    text_tokens: int = 120  # tokens of a text, of t5 and of what a text-to-video denoiser takes
    report: bool = False  # say how many operations of each kind the graph has, block by block

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "text_tokens", 1)
        if self.target is not None and not self.target.endswith(".mindir"):
            raise OptionError("target", self.target, "a file name that ends with .mindir")
        if self.target is None and not self.report and not self.dry_run:
            raise OptionError("target", self.target, "the .mindir file to write, unless report or dry_run is true")


@dataclasses.dataclass(kw_only=True)
class ExportConfig(ExportOptions, SampleConfig):
    """Options of tools/export_mindir.py: those of sample.py, and its own."""
