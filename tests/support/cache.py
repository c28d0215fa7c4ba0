"""Clips of random frames, and the options and content of a cache of them."""

import numpy as np
from PIL import Image
from support.golden_values import FIXTURES

from latte.config import CacheConfig
from latte.data.cache import Cache, Entry, file_hash
from latte.data.records import checksums, structure_hash, write_records

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


def write_cache(folder, file_type, videos=3, frames=6, older=False):
    """Write a cache of random float16 moments (8, 2, 2) without encoding; the last video is in a journal only.

    older: as before frames had checksums. Return the moments, one array (2, frames, 8, 2, 2) per video.
    """
    settings = {"vae_checkpoint": "f" * 64, "image_size": 16, "transform": "crop_resize", "sd_scale_factor": 0.18215}
    settings |= {"cache_dtype": "fp16", "cache_file_type": file_type, "flip": True, "frame_shape": [8, 2, 2]}
    folder.mkdir(parents=True, exist_ok=True)
    cache, written = Cache(folder, settings, ["day", "night"], videos), []
    for number in range(videos):
        moments = np.random.default_rng(number).normal(size=(2, frames, 8, 2, 2)).astype(np.float16)
        file, structure = folder / f"{number:08d}.{'npy' if file_type == 'numpy' else file_type}", ""
        if file_type == "numpy":
            np.save(file, moments)
            with file.open("ab") as out:
                out.write(b"" if older else b"".join(checksums(variant).tobytes() for variant in moments))
        else:
            write_records(file, [moments])
            structure = "" if older else structure_hash(file)
        entry = Entry(number, f"v{number}", number % 2, "sun", frames, file.name, file_hash(file), structure=structure)
        cache.note(entry, 0)
        if number == videos - 2:
            cache.save()
        written.append(moments)
    return written
