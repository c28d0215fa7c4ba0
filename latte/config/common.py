"""Options that several commands share, one commented line each.

The comment of a field is its text in --help; a class is a group there. This package does not import MindSpore.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from latte.config.parser import OptionError, Options, in_range, option


@dataclasses.dataclass(kw_only=True)
class DeviceOptions(Options):
    """Device"""

    device_target: Literal["Ascend", "GPU", "CPU"] | None = option(
        None, "where to compute; null = the best that is there"
    )
    device_id: int = option(0, "which of several devices")
    mode: Literal[0, 1] = option(0, "0 = compiled graphs, 1 = PyNative, for debugging")
    jit_level: Literal["O0", "O1", "O2"] | None = option(None, "Ascend: O0 = by kernel, O1 = fused, O2 = whole graph")
    dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "arithmetic inside the blocks")
    enable_flash_attention: bool = option(False, "use the fused attention kernel where the device has one")
    use_parallel: bool = option(False, "share the work among the processes of mpirun or msrun")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "device_id", 0)


@dataclasses.dataclass(kw_only=True)
class ModelOptions(Options):
    """Model; null = as the checkpoint says, or in training the common choice"""

    model_name: str | None = option(None, "Latte-{S,B,L,XL}/{2,4,8}; training also takes LatteT2V, text to video")
    condition: Literal["class", "text"] | None = option(None, "what steers the network besides the time")
    num_classes: int | None = option(None, "classes, without the null class of guidance")
    image_size: int | None = option(None, "pixels a side, a multiple of 8")
    num_frames: int | None = option(None, "frames a video")
    hidden_size: int | None = option(None, "width of the tokens, in place of the named size's")
    depth: int | None = option(None, "number of blocks, in place of the named size's")
    num_heads: int | None = option(None, "attention heads, in place of the named size's")
    patch_size: int | None = option(None, "latent pixels a patch and side, in place of the named size's")
    patch_embedder: Literal["conv", "linear"] = option("conv", "a convolution or an equal matrix product")

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

    checkpoint: str | None = option(None, "weights of the network, as written by tools/latte_converter.py or train.py")


@dataclasses.dataclass(kw_only=True)
class CodecOptions(Options):
    """Autoencoder"""

    vae_checkpoint: str | None = option(None, "weights of the autoencoder, as written by tools/vae_converter.py")
    sd_scale_factor: float | None = option(
        None, "makes the variance of latents one; null = the autoencoder's, mostly 0.18215"
    )
    vae_slice: int = option(0, "frames that the autoencoder takes at once; 0 = what suits the device")
    vae_tile: int = option(
        0, "pixels a side of the tiles that are decoded one by one, for little memory; 0 = whole frames"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "vae_slice", 0)
        if self.vae_tile and self.vae_tile < 64:
            raise OptionError("vae_tile", self.vae_tile, "0, or 64 or more")
        factor = self.sd_scale_factor
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            raise OptionError("sd_scale_factor", factor, "a number above 0")
