"""The networks, one file each, with the layer names of the official checkpoints."""

from latte.models.autoencoder import AutoencoderKL
from latte.models.latte import Latte, create_model
from latte.models.latte_t2v import LatteT2V

__all__ = ["AutoencoderKL", "Latte", "LatteT2V", "create_model"]
