"""What a video is stored as: a folder of frames, or a file; a few of its frames can be read without the others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import av
import numpy as np

from latte.errors import UserError
from latte.io.images import kind_of, read_animation, read_image
from latte.io.video import import_decord, list_frames, read_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

decord = import_decord()
_BROKEN = (OSError, RuntimeError, ValueError, SyntaxError, LookupError, av.FFmpegError)


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


class VideoFile:
    """A video that is decoded around the wanted frames: by decord, or by PyAV where decord has no wheel or gives up."""

    def __init__(self, path: Path):
        self.path, self._reader = path, None
        if decord:
            with contextlib.suppress(decord.DECORDError, RuntimeError):  # PyAV may still read it
                self._reader = decord.VideoReader(str(path), num_threads=1)
        with _named(path):
            self.length = _count(path) if self._reader is None else len(self._reader)
        if self.length == 0:
            raise UserError(f"the video {path} holds no frames")

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3); raises UserError if the file is broken."""
        if decord and self._reader is not None:
            with contextlib.suppress(decord.DECORDError, RuntimeError):
                return self._reader.get_batch(list(map(int, indices))).asnumpy()
        with _named(self.path):
            wanted, frames = set(map(int, indices)), {}
            with av.open(str(self.path)) as container:
                for number, frame in enumerate(container.decode(container.streams.video[0])):
                    if number in wanted:  # turning a frame into RGB takes longer than decoding it
                        frames[number] = frame.to_ndarray(format="rgb24")
                    if number >= max(wanted):
                        break
            return np.stack([frames[int(index)] for index in indices])


class Animation:
    """An animated gif, webp or png, which is decoded whole."""

    def __init__(self, path: Path):
        self._frames = read_animation(path)
        self.length = len(self._frames)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the frames at `indices` as uint8 (n, H, W, 3)."""
        return self._frames[indices]


def open_clip(path: Path) -> FrameFolder | ImageFile | VideoFile | Animation:
    """Return the video at `path`, of whatever kind its contents are; raises UserError if it is missing or broken."""
    kinds: dict[str, Callable[[Path], FrameFolder | ImageFile | VideoFile | Animation]]
    kinds = {"folder": FrameFolder, "image": ImageFile, "animation": Animation, "video": VideoFile}
    return kinds[kind_of(path)](path)


def _count(path: Path) -> int:
    """Return the number of frames; the container may not tell, and then they are counted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the decoders raise for broken files into a UserError."""
    try:
        yield
    except _BROKEN as error:
        raise UserError(f"cannot read the video {path}; it is broken or not a video") from error
