"""The networks, one file each, with the layer names of the official checkpoints."""

from latte.models.autoencoder import AutoencoderKL
from latte.models.latte import Latte, create_model

__all__ = ["AutoencoderKL", "Latte", "create_model"]
