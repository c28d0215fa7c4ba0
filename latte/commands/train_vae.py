"""Train a small autoencoder on the frames of a data set, for a demonstration or for a new kind of images.

    python tools/train_vae.py --data_folder datasets/demo/frames --target outputs/vae/vae.safetensors

The released autoencoders need no training; this command is for models that must be small. The loss is the weighted sum
of the absolute and the squared error of the pixels and of the posterior's KL divergence from a standard normal
distribution. Ctrl-C saves the weights and exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import VaeTrainConfig, parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, train the autoencoder, and save it."""
    settings = parse_config(VaeTrainConfig, argv, __doc__)

    from latte.runtime import device  # after the options: MindSpore takes seconds to import
    from latte.training.autoencoder import train

    device.init_device()
    print(train(settings))
