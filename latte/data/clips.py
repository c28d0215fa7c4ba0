"""What a video is stored as: a folder of frames, or a file; a few of its frames can be read without the others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import imageio.v3 as iio
import numpy as np

from latte.errors import UserError
from latte.io.video import FRAME_SUFFIXES, list_frames, read_frames
from latte.io.video_file import VideoFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BROKEN = (OSError, RuntimeError, ValueError, SyntaxError, LookupError)


class FrameFolder:
    """Images in the order of the integer after the last `_` of their names."""

    def __init__(self, path: Path):
        self.path = path
        self.length = len(list_frames(path))

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3); raises UserError if one is broken."""
        return read_frames(self.path, indices.tolist())


class ImageFile:
    """A single image, as a video of one frame."""

    def __init__(self, path: Path):
        self.path, self.length = path, 1

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the image as uint8 (n, H, W, 3); raises UserError if it is broken."""
        with _named(self.path):
            return np.repeat(iio.imread(self.path, plugin="pillow", mode="RGB")[None], len(indices), 0)


def open_clip(path: Path) -> FrameFolder | ImageFile | VideoFile:
    """Return the video at `path`, of whatever kind; raises UserError if it is missing or broken."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"cannot open the video {path}: {error}") from error
    if is_folder:
        return FrameFolder(path)
    if not is_file:
        raise UserError(f"there is no video {path}")
    return ImageFile(path) if path.suffix.lower() in FRAME_SUFFIXES else VideoFile(path)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the decoders raise for broken files into a UserError."""
    try:
        yield
    except _BROKEN as error:
        raise UserError(f"cannot read the video {path}; it is broken or not a video") from error
