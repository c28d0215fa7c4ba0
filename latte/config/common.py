"""Options that several commands share. Each class is a group of --help. This package does not import MindSpore."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from latte.config.parser import OptionError, Options, in_range, option
from latte.io import resources


@dataclasses.dataclass(kw_only=True)
class DeviceOptions(Options):
    """Device"""

    device_target: Literal["Ascend", "GPU", "CPU"] | None = option(
        None, "device to compute on; null = the best one of this machine"
    )
    device_id: int = option(0, "number of the device, if there are several")
    mode: Literal[0, 1] = option(0, "0 = compiled graphs; 1 = PyNative, for debugging")
    jit_level: Literal["O0", "O1", "O2"] | None = option(
        None,
        "Ascend: O0 = kernel by kernel, O1 = fused kernels, O2 = graph engine (deprecated); null = MindSpore's choice",
    )
    dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "arithmetic inside the blocks")
    enable_flash_attention: bool = option(False, "use the device's fused attention kernel, if it has one")
    use_parallel: bool = option(False, "share the work among the processes of mpirun, msrun or srun")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "device_id", 0)


@dataclasses.dataclass(kw_only=True)
class LayoutOptions(DeviceOptions):
    """Layout of ranks"""

    sequence_parallel: int = option(
        1, "ranks that share the frames of each video, with use_parallel; it must divide the number of ranks"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "sequence_parallel", 1)


@dataclasses.dataclass(kw_only=True)
class ProfileOptions(Options):
    """Profile"""

    profile: str | None = option(
        None,
        "FROM:TO = trace these steps by MindSpore's profiler, print the operations that took longest; step 1 compiles",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile is not None and self.profile_span is None:
            raise OptionError("profile", self.profile, "FROM:TO, two steps from 1 on such as 10:12, FROM not above TO")

    @property
    def profile_span(self) -> tuple[int, int] | None:
        """The first and the last step to trace; None without any, or where `profile` is not FROM:TO."""
        found = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,8})", self.profile or "")
        first, last = map(int, found.groups()) if found else (1, 0)
        return (first, last) if first <= last else None


@dataclasses.dataclass(kw_only=True)
class ModelOptions(Options):
    """Model; null = the value of the checkpoint; in training Latte-XL/2, 256 pixels, 16 frames"""

    model_name: str | None = option(
        None, "Latte-{S,B,L,XL}/{2,4,8}; training also takes LatteT2V, the text-to-video network"
    )
    condition: Literal["class", "text"] | None = option(None, "what the network is conditioned on besides the timestep")
    num_classes: int | None = option(None, "number of classes, without the null class of guidance")
    image_size: int | None = option(None, "width and height of the frames in pixels, a multiple of 8")
    num_frames: int | None = option(None, "frames per video")
    hidden_size: int | None = option(None, "width of the tokens, in place of that of model_name")
    depth: int | None = option(None, "number of blocks, in place of that of model_name")
    num_heads: int | None = option(None, "attention heads, in place of those of model_name")
    patch_size: int | None = option(None, "width and height of a patch in latents, in place of that of model_name")
    patch_embedder: Literal["conv", "linear"] = option(
        "conv", "embed patches with a convolution, or with the equivalent matrix product"
    )

    variant: Literal[1, 2, 3, 4] | None = option(
        None,
        "1 = blocks over patches and over frames in turn; 2 = first those over patches; 3 = both attentions in each "
        "block; 4 = half of the heads for each",
    )
    patch_embedding: Literal["uniform", "compression"] | None = option(
        None, "uniform = patches of each frame; compression = of two frames together, which halves the tokens"
    )
    injection: Literal["adaln", "all_tokens"] | None = option(
        None,
        "how timestep and condition enter: adaln = norms and gates of blocks; all_tokens = one more token per frame",
    )
    temporal_position: Literal["absolute", "rotary"] | None = option(
        None, "absolute = an embedding of the frame is added; rotary = queries and keys over frames are rotated"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = option(
        None,
        "what the last layer predicts: epsilon = the noise; v_prediction = the velocity, which the network turns into "
        "the noise, so that every solver takes it",
    )

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

    checkpoint: str | None = option(
        None, "weights of the network, as written by tools/latte_converter.py or train.py; or a text-to-video folder"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint:
            self.checkpoint = str(resources.find(self.checkpoint))  # the demo model is installed with the package


@dataclasses.dataclass(kw_only=True)
class CodecOptions(Options):
    """Autoencoder"""

    vae_checkpoint: str | None = option(None, "weights of the autoencoder, as written by tools/vae_converter.py")
    sd_scale_factor: float | None = option(
        None, "factor that gives latents unit variance; null = the factor of the autoencoder, mostly 0.18215"
    )
    vae_slice: int = option(0, "frames that the autoencoder processes at once; 0 = as suits the device")
    vae_dtype: Literal["fp32", "fp16", "bf16"] = option(
        "fp32", "arithmetic of the autoencoder's convolutions, both ways; fp16 and bf16 on accelerators only"
    )
    vae_tile: int = option(0, "decode in tiles of this width and height in pixels, to save memory; 0 = whole frames")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "vae_slice", 0)
        if self.vae_checkpoint:
            self.vae_checkpoint = str(resources.find(self.vae_checkpoint))  # as for the checkpoint
        if self.vae_tile and self.vae_tile < 64:
            raise OptionError("vae_tile", self.vae_tile, "0, or 64 or more")
        if self.sd_scale_factor is not None and not self.sd_scale_factor > 0:
            raise OptionError("sd_scale_factor", self.sd_scale_factor, "a number above 0")
