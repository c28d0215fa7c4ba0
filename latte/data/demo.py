"""A procedural sky time-lapse: clouds that drift over a sky with sun, moon or stars, from nothing but a seed."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from latte.errors import UserError

if TYPE_CHECKING:
    from latte.config import DataOptions

QUALITY = 95  # of the jpg files
CLASSES = ("day", "sunset", "night")
DIRECTIONS = ("to the right", "to the left")
OVERSAMPLED = 2  # pixels are drawn at this many times the size and averaged, against jagged edges

# Colours in [0, 1]: the sky at the top and at the horizon, clouds in the light and in the shade, the sun or moon.
_COLOURS = {
    "day": ((0.16, 0.38, 0.78), (0.62, 0.80, 0.95), (1.00, 1.00, 1.00), (0.66, 0.71, 0.79), (1.00, 0.97, 0.82)),
    "sunset": ((0.20, 0.17, 0.42), (0.99, 0.55, 0.22), (1.00, 0.71, 0.46), (0.36, 0.21, 0.37), (1.00, 0.86, 0.50)),
    "night": ((0.01, 0.02, 0.09), (0.07, 0.12, 0.28), (0.36, 0.42, 0.58), (0.08, 0.10, 0.20), (0.93, 0.95, 1.00)),
}


def make_clip(label: int, seed: int, num_frames: int = 40, size: int = 64) -> np.ndarray:
    """Return a clip of a class, uint8 (F, size, size, 3); equal arguments give equal pixels.

    `label` is an index of CLASSES. Clouds move by one to two pixels of 64 per frame.
    """
    rng = np.random.default_rng([seed, label, 7])
    wide = size * OVERSAMPLED
    top, horizon, lit, shade, light = (np.array(c, np.float32) for c in _COLOURS[CLASSES[label]])
    direction = 1 if rng.random() < 0.5 else -1
    speed = direction * rng.uniform(0.9, 1.9) / 64  # of the width per frame
    cover = rng.uniform(0.42, 0.60)  # the part of the sky that clouds take
    y, x = np.mgrid[0:wide, 0:wide].astype(np.float32) / wide
    tint = rng.uniform(-0.04, 0.04, 3).astype(np.float32)
    sky = top + (horizon - top) * (y**1.4)[..., None] + tint
    if CLASSES[label] == "night":
        sky = sky + _stars(rng, wide)[..., None]
    start, rise = rng.uniform(0.15, 0.85), rng.uniform(0.12, 0.35) if label != 1 else rng.uniform(0.62, 0.8)
    layers = [_noise(rng, 2 * wide, base) for base in (1.5, 4.0)]
    evolving = _noise(rng, 2 * wide, 1.5)
    frames = []
    for frame in range(num_frames):
        orb_x, orb_y = start - 0.15 * speed * frame, rise + 0.0012 * frame * (1 if label == 1 else 0.3)
        image = _with_light(sky, x, y, orb_x, orb_y, light, label)
        phase = min(frame / 90, 1)
        body = layers[0] * (1 - phase) + evolving * phase
        moved = [_window(body, speed * frame, wide), _window(layers[1], 1.3 * speed * frame, wide)]
        density = 0.78 * moved[0] + 0.22 * moved[1] + 0.10 * (0.5 - np.abs(y - 0.45))
        frames.append(_with_clouds(image, density, cover, x - orb_x, y - orb_y, lit, shade, wide))
    pixels = np.clip(np.stack(frames), 0, 1)  # (F, wide, wide, 3)
    pixels = pixels.reshape(num_frames, size, OVERSAMPLED, size, OVERSAMPLED, 3).mean((2, 4))
    return (pixels * 255 + 0.5).astype(np.uint8)


def clip_name(label: int, seed: int) -> str:
    """Return the name that the files of a clip begin with."""
    return f"{CLASSES[label]}-{seed:04d}"


def write_frames(pixels: np.ndarray, folder: Path) -> None:
    """Write frames uint8 (F, H, W, 3) as `<folder>/<its name>_0001.jpg` ...; the folder gets its name when it is whole.

    Raises UserError if it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number, frame in enumerate(pixels):
            data = io.BytesIO()
            Image.fromarray(frame).save(data, format="JPEG", quality=QUALITY, subsampling=0)
            (partial / f"{folder.name}_{number + 1:04d}.jpg").write_bytes(data.getvalue())
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error


def draws(options: DataOptions) -> bool:
    """Return whether clips are to be drawn: that is asked for, and data_folder does not exist."""
    return bool(options.demo_clips and options.data_folder) and not Path(options.data_folder or "").exists()


def draw_if_missing(options: DataOptions) -> None:
    """Draw `demo_clips` clips of each class into data_folder, if that is asked for and the folder does not exist.

    The folder gets its name when it is whole. Raises UserError if it cannot be written.
    """
    if not draws(options):
        return
    target = Path(options.data_folder or "")
    partial = target.with_name(f".{target.name}")
    with tqdm(total=options.demo_clips * len(CLASSES), desc=str(target), unit="clip") as bar:
        for seed in range(options.demo_clips):
            for label, kind in enumerate(CLASSES):
                folder = partial / kind / clip_name(label, seed)
                if not folder.exists():  # of an earlier start
                    write_frames(make_clip(label, seed), folder)
                bar.update()
    partial.rename(target)


def caption(label: int, seed: int) -> str:
    """Return what can be seen in the clip of that label and seed."""
    direction = np.random.default_rng([seed, label, 7]).random() >= 0.5
    when = {"day": "in daylight", "sunset": "at sunset", "night": "at night under the stars"}[CLASSES[label]]
    return f"clouds drifting {DIRECTIONS[direction]} {when}"


def _noise(rng: np.random.Generator, size: int, base: float) -> np.ndarray:
    """Return periodic fractal noise (size, size) with values spread evenly over 0 to 1.

    Its spectrum falls as a power of the frequency below a rounded peak of `base` waves per image.
    """
    fy, fx = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.rfftfreq(size) * size, indexing="ij")
    waves = np.sqrt(fy**2 + (1.6 * fx) ** 2) / 2  # clouds are wider than high
    amplitude = waves / (base + waves) ** 3.6 / (1 + (waves / 16) ** 4)
    phases = np.exp(2j * np.pi * rng.random(waves.shape))
    values = np.fft.irfft2(amplitude * phases * rng.rayleigh(size=waves.shape), s=(size, size))
    values = (values - values.mean()) / values.std()
    return (1 / (1 + np.exp(-1.7 * values))).astype(np.float32)


def _window(field: np.ndarray, shift: float, wide: int) -> np.ndarray:
    """Return the part (wide, wide) of a periodic field that has moved by `shift` image widths."""
    at = (-shift * wide) % field.shape[1]
    whole, part = int(at), at - int(at)
    rolled = np.roll(field[:wide], -whole, axis=1)
    return (1 - part) * rolled[:, :wide] + part * rolled[:, 1 : wide + 1]


def _stars(rng: np.random.Generator, wide: int) -> np.ndarray:
    stars = np.zeros((wide, wide), np.float32)
    count = 45
    rows, columns = (rng.integers(0, wide // 2, count) * 2 for _ in range(2))
    brightness = rng.uniform(0.25, 0.9, count)
    for down in (0, 1):
        for across in (0, 1):
            stars[rows + down, columns + across] = brightness
    return stars * np.linspace(1, 0.2, wide, dtype=np.float32)[:, None]


def _with_light(
    sky: np.ndarray, x: np.ndarray, y: np.ndarray, at_x: float, at_y: float, light: np.ndarray, label: int
) -> np.ndarray:
    """Return the sky with sun or moon, and the glow around it."""
    distance = np.sqrt((x - at_x) ** 2 + (y - at_y) ** 2)
    radius, halo, width = ((0.055, 0.55, 0.16), (0.075, 0.75, 0.30), (0.060, 0.25, 0.10))[label]
    glow = halo * np.exp(-((distance / width) ** 1.3))
    disc = np.clip((radius - distance) * 60 + 0.5, 0, 1)
    share = np.clip(glow + disc, 0, 1)[..., None]
    return sky * (1 - share) + light * share


def _with_clouds(
    image: np.ndarray,
    density: np.ndarray,
    cover: float,
    x: np.ndarray,
    y: np.ndarray,
    lit: np.ndarray,
    shade: np.ndarray,
    wide: int,
) -> np.ndarray:
    """Return the image behind clouds; x and y are the distances to the light."""
    threshold = 0.5 + 0.42 * (0.5 - cover)
    opacity = 1 / (1 + np.exp(-(density - threshold) * 13))
    below = np.roll(density, wide // 24, axis=0)
    relief = np.clip(0.6 + 2.6 * (density - below), 0, 1)  # upper edges catch the light
    near = np.exp(-3.0 * np.sqrt(x**2 + y**2))
    bright = np.clip(0.8 * relief + 0.45 * near, 0, 1)[..., None]
    colour = shade * (1 - bright) + lit * bright
    share = (0.94 * opacity)[..., None]
    return image * (1 - share) + colour * share
