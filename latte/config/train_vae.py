"""The options of the train_vae command."""

from __future__ import annotations

import dataclasses

from latte.config.parser import OptionError, Options, in_range, option
from latte.io import resources


@dataclasses.dataclass(kw_only=True)
class VaeTrainConfig(Options):
    """Training of the autoencoder"""

    data_folder: str = option(
        "datasets/demo", "folder with images anywhere below it, or with videos if it has no images"
    )
    target: str = option(
        "outputs/vae/vae.safetensors",
        "file to write; beside it go NAME.csv, a log, and NAME.png, held-out frames above their reconstructions",
    )
    pretrained_model_path: str | None = option(
        None, "autoencoder to start from, or a folder with vae.*, such as models/demo; its sizes count; null = none"
    )
    block_out_channels: list[int] = option([32, 64, 96], "channels per level; each level halves width and height")
    layers_per_block: int = option(1, "residual blocks per level")
    latent_channels: int = option(4, "channels of the latents")
    steps: int = option(2000, "optimizer steps")
    batch_size: int = option(4, "crops per step")
    crop: int = option(64, "width and height of a crop in pixels")
    learning_rate: float = option(1e-3, "largest learning rate; it falls along a cosine")
    l1_weight: float = option(1.0, "weight of the absolute error")
    mse_weight: float = option(1.0, "weight of the squared error")
    kl_weight: float = option(1e-6, "weight of the KL divergence")
    ema_decay: float = option(
        0.99, "decay of the EMA weights per step; they are saved; 0 = save the weights themselves"
    )
    save_interval: int = option(500, "steps between two saves")
    half: bool = option(False, "store the weights in float16")
    seed: int = option(0, "random seed of weights, crops and noise")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained_model_path:
            self.pretrained_model_path = str(resources.find(self.pretrained_model_path))
        for key in ("layers_per_block", "latent_channels", "steps", "batch_size", "crop", "save_interval"):
            in_range(self, key, 1)
        for key in ("learning_rate", "l1_weight", "mse_weight", "kl_weight", "seed"):
            in_range(self, key, 0)
        in_range(self, "ema_decay", 0, 1)
        if not self.block_out_channels:
            raise OptionError("block_out_channels", self.block_out_channels, "a list such as [32, 64, 96]")
