"""Folders of videos, and a network that stands in for I3D."""

import numpy as np
from PIL import Image

from latte.evaluation.evaluate import Network

WIDTH = 12


def describe(clips):
    """Return features (B, WIDTH) of clips: fixed functions of colours, places and changes; the same in any batch."""
    assert clips.dtype == np.uint8 and clips.ndim == 5 and clips.shape[-1] == 3
    found = []
    for clip in clips.astype(np.float64):
        half = clip[:, : clip.shape[1] // 2].mean((0, 1, 2)), clip[:, clip.shape[1] // 2 :].mean((0, 1, 2))
        found.append(np.concatenate([*half, np.abs(np.diff(clip, axis=0)).mean((0, 1, 2)), clip[-1].std((0, 1))]))
    return np.array(found, np.float32)


NETWORK = Network(describe, "stand-in")


def make_folder(root, count=12, frames=16, size=16, seed=0, name="clip{:03d}"):
    """Write `count` folders of png frames of moving colours, and return their root."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        folder = root / name.format(number)
        folder.mkdir(parents=True)
        x = np.linspace(0, 1, size)[None, :, None] + rng.uniform(0, 1)
        for frame in range(frames):
            wave = np.sin(6 * x * rng.uniform(0.9, 1.1) + 0.3 * frame + rng.uniform(0, 1, 3))
            pixels = np.broadcast_to(127 + 100 * wave, (size, size, 3)) + rng.normal(0, 3, (size, size, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{frame:04d}.png")
    return root
