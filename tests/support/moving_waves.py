"""A small video whose every pixel moves, and the same with noise, for the measures of quality."""

import numpy as np
from PIL import Image


def waves(frames=6, height=48, width=64):
    """Smooth waves that move by three pixels per frame, uint8 (F, H, W, 3)."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    red = 127 + 100 * np.sin((x + 3 * t) / 9) * np.cos(y / 7)
    green = 127 + 90 * np.cos((x - 3 * t) / 11)
    blue = 127 + 80 * np.sin((x + y + 3 * t) / 13)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def noisy(frames, sigma, seed=0):
    """The same video with Gaussian noise."""
    noise = np.random.default_rng(seed).normal(size=frames.shape) * sigma
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def write(frames, folder):
    """Write frames as folder/frame_0000.png and so on, without waiting for the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{k:04d}.png")
