"""Read images and animations as uint8 RGB, upright; their kind is read off their contents, not off their names."""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from latte.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PIXELS = 2**28  # of an image: 16384 x 16384, which takes 2 GB while it is read
MAX_BYTES = 2**31  # of all frames of an animation
_COPIES = 4  # that Pillow makes of an animation's canvas, and of every webp
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # of Pillow's many: no other parser meets a file
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ANIMATED = ("WEBP", "PNG")  # what ffmpeg reads as one image; it reads a gif as a video
# Brands of the container that mp4 has too, for images: photos of telephones. There is no decoder for them here.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
# What Pillow raises for broken files.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError),
    *(struct.error, zlib.error, MemoryError, RuntimeError, Image.DecompressionBombError),
)
_STRIP = 2**22  # pixels that are turned into RGB at once
_limit = threading.Lock()


def kind_of(path: str | Path) -> Literal["folder", "image", "animation", "video"]:
    """Return what a path is, a file by its first bytes: "video" for all that is no image that is read here.

    Raises UserError if there is no file or folder, it cannot be read, or is an image of a kind that is not read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "folder"
        if not path.is_file():
            raise UserError(f"there is no video, image or folder {path}")
        with path.open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
        raise UserError(f"{path} is a HEIC or AVIF image, which is not read; save it as JPEG or PNG")
    if not head.startswith(_SIGNATURES) and not (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "video"
    with _opened(path) as image:
        return "animation" if image.format in _ANIMATED and getattr(image, "is_animated", False) else "image"


def read_image(path: str | Path, what: str = "image") -> np.ndarray:
    """Read one image, turned upright, as uint8 (H, W, 3); of 16 bits the upper 8, and transparency is left out.

    Raises UserError, which calls it `what`, if it is missing, broken, larger than MAX_PIXELS, or several images.
    """
    with _opened(path, what) as image:
        if image.format in (*_ANIMATED, "TIFF") and getattr(image, "is_animated", False):
            raise UserError(f"{path} holds several images, but one is wanted; save them as a folder of frames")
        if image.format == "TIFF":  # which Pillow measures again
            with _beyond_pillows_limit():
                image.load()
        return to_rgb(image, path)


def read_animation(path: str | Path) -> np.ndarray:
    """Read an animated webp or png as uint8 (F, H, W, 3).

    Raises UserError if it is missing, broken, or takes more than MAX_BYTES.
    """
    with _opened(path) as image:
        if getattr(image, "n_frames", 1) * image.width * image.height * 3 > MAX_BYTES:
            raise UserError(f"{path} takes more than {MAX_BYTES / 2**30:g} GiB as pixels; cut or scale it down")
        return np.stack([to_rgb(frame, path) for frame in ImageSequence.Iterator(image)])


def to_rgb(image: Image.Image, name: str | Path) -> np.ndarray:
    """Return an image of Pillow upright as uint8 (H, W, 3); of 16 bits the upper 8, and transparency is left out.

    Raises UserError, with the image's name, for pixels of unknown range, and what Pillow raises if it is broken.
    """
    image.load()
    with contextlib.suppress(*_BROKEN):  # of a broken EXIF block: viewers show such photos too
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow's own conversion clips
        levels = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0  # PhotometricInterpretation of TIFF
        image = Image.fromarray(255 - levels if white_is_zero else levels)
    if image.mode in ("I", "F"):
        raise UserError(f"{name} has levels of unknown range (Pillow's mode {image.mode}); save it with 8 or 16 bits")
    out = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):  # a large image is not held twice
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if "transparency" in strip.info:  # Pillow asks to go by RGBA where colours of a palette are transparent
            strip = strip.convert("RGBA")
        out[top : top + rows] = np.asarray(strip.convert("RGB"))
    return out


@contextlib.contextmanager
def _opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Open an image of one of the formats; raises UserError if it cannot, or for what Pillow raises in the block."""
    try:
        if not Path(path).is_file():
            raise UserError(f"there is no {what} {path}")
        # Given a name, Pillow maps uncompressed TIFF into memory, and garbles one that is turned on its side.
        with Path(path).open("rb") as file:
            with _beyond_pillows_limit():
                image = Image.open(file, formats=FORMATS)
            copied = image.format == "WEBP" or (image.format == "PNG" and getattr(image, "is_animated", False))
            most = MAX_PIXELS // _COPIES if copied else MAX_PIXELS
            if image.width * image.height > most:
                raise UserError(f"{path} has {image.width} x {image.height} pixels, more than {most:,}; scale it down")
            yield image
    except _BROKEN as error:
        raise UserError(f"cannot read the {what} {path}; it is broken or not an image") from error


@contextlib.contextmanager
def _beyond_pillows_limit() -> Iterator[None]:
    """Let Pillow read images of any size: its limit holds for the process, and is lower than ours."""
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
