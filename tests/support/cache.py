"""Clips of random frames, and the options and content of a cache of them."""

import numpy as np
from PIL import Image
from support.golden_values import FIXTURES

from latte.config import CacheConfig

SMALL = {"vae_checkpoint": str(FIXTURES / "vae.bin"), "image_size": 16, "vae_slice": 8, "vae_check": False}
TYPES = ("numpy", "mindrecord")


def write_clip(folder, count, seed):
    folder.mkdir(parents=True)
    for number, frame in enumerate(np.random.default_rng(seed).integers(0, 256, (count, 20, 16, 3), dtype=np.uint8)):
        Image.fromarray(frame).save(folder / f"x_{number}.png")


def options(videos, folder, **others):
    return CacheConfig(**{**SMALL, "data_folder": str(videos), "cache_folder": str(folder), **others})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
