"""The options of the web command."""

from __future__ import annotations

import dataclasses
from typing import Literal

from latte.config.parser import Options, in_range, option

DEMO = "models/demo"  # is shipped, and found from any folder


@dataclasses.dataclass(kw_only=True)
class WebConfig(Options):
    """Page"""

    checkpoint: str | None = option(
        None, "weights of the network, a training run, or a text-to-video folder; null = the shipped model"
    )
    vae_checkpoint: str | None = option(None, "weights of the autoencoder; null = the one that the checkpoint brings")
    device_target: Literal["Ascend", "GPU", "CPU"] | None = option(
        None, "device to compute on; null = the best one of this machine"
    )
    dtype: Literal["fp32", "fp16", "bf16"] = option("fp32", "arithmetic inside the blocks")
    output_path: str = option("outputs/web", "folder for the videos")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 = whoever reaches this machine may use the page")
    port: int = option(7860, "port to listen at")

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "port", 1, 65535)
        if not self.checkpoint:
            self.checkpoint = f"{DEMO}/latte.safetensors"
            self.vae_checkpoint = self.vae_checkpoint or f"{DEMO}/vae.safetensors"
