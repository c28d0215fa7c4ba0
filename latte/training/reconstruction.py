"""What the autoencoder of a training loses: the first frames of the data, beside what it makes of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from latte.io.video import save_png, to_uint8
from latte.training.autoencoder import decibels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latte.components.codec import Codec

log = logging.getLogger("latte")
FILE = "vae.png"
SHOWN = 4  # frames, of different videos
LEAST = 22.0  # dB; good autoencoders have 28 and more, one for other images 13 to 19
TITLE, SMALLEST = 16, 128  # height of a line of text, and the least width of a frame in the image, in pixels


def report(codec: Codec, frames: Sequence[np.ndarray], folder: Path, name: str | None) -> float:
    """Encode and decode frames, write them to vae.png of `folder`, say how good they are, and return the PSNR in dB.

    frames: up to `SHOWN` of (3, H, W) float32 in [-1, 1]; name: of the autoencoder, for the log. Warns below `LEAST`.
    Raises UserError if the file cannot be written.
    """
    pixels = np.stack(frames)
    padding = max(0, codec.frames_per_slice - len(pixels))  # another size than the run's would be compiled anew
    filled = np.concatenate([pixels, np.repeat(pixels[-1:], padding, axis=0)])
    mean = np.split(codec.moments(filled), 2, axis=1)[0]
    decoded = codec.decode(mean * np.float32(codec.scale_factor))[: len(pixels)]  # (N, H, W, 3) uint8
    real = to_uint8(pixels)
    psnr = decibels(max(float(np.square((decoded.astype(np.float32) - real) / 127.5).mean()), 1e-10))
    file = folder / FILE
    save_png(_board({"real": real, f"reconstructed, PSNR {psnr:.1f} dB": decoded}), file)
    if psnr < LEAST:
        log.warning(
            "the autoencoder %s reconstructs frames of these videos with only %.1f dB, see %s: no sample can be better "
            "than that; set vae_checkpoint to one that knows such images, such as sd-vae-ft-mse, or train one with "
            "tools/train_vae.py",
            name,
            psnr,
            file,
        )
    else:
        log.info("the autoencoder %s reconstructs frames of these videos with %.1f dB, see %s", name, psnr, file)
    return psnr


def _board(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Return an image (H, W, 3) uint8: a title above each row of frames (N, H, W, 3) uint8, small ones enlarged."""
    count, height, width, _ = next(iter(rows.values())).shape
    times = max(1, -(-SMALLEST // width))
    size = width * times, height * times
    board = Image.new("RGB", (count * size[0], len(rows) * (size[1] + TITLE)), "white")
    draw = ImageDraw.Draw(board)
    for row, (title, frames) in enumerate(rows.items()):
        top = row * (size[1] + TITLE)
        draw.text((3, top + 2), title, fill="black")
        for column, frame in enumerate(frames):
            board.paste(Image.fromarray(frame).resize(size, Image.Resampling.NEAREST), (column * size[0], top + TITLE))
    return np.asarray(board)
