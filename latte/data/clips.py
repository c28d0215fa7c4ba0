"""What a video is stored as: a folder of frames, or a file; a few of its frames can be read without the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latte.io.images import kind_of, read_animation, read_image
from latte.io.video import list_frames, read_images
from latte.io.video_file import VideoFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FrameFolder:
    """Images in the order of the integer at the end of their names."""

    def __init__(self, path: Path):
        self._paths = list_frames(path)
        self.length = len(self._paths)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3); raises UserError if one is broken."""
        return read_images([self._paths[index] for index in indices])


class ImageFile:
    """A single image, as a video of one frame."""

    def __init__(self, path: Path):
        self.path, self.length = path, 1

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the image as uint8 (n, H, W, 3); raises UserError if it is broken."""
        return np.repeat(read_image(self.path)[None], len(indices), 0)


class Animation:
    """An animated webp or png, which is decoded whole."""

    def __init__(self, path: Path):
        self._frames = read_animation(path)
        self.length = len(self._frames)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3)."""
        return self._frames[indices]


def open_clip(path: Path) -> FrameFolder | ImageFile | Animation | VideoFile:
    """Return the video at `path`, of whatever kind its contents are; raises UserError if it is missing or broken."""
    kinds: dict[str, Callable[[Path], FrameFolder | ImageFile | Animation | VideoFile]]
    kinds = {"folder": FrameFolder, "image": ImageFile, "animation": Animation, "video": VideoFile}
    return kinds[kind_of(path)](path)
