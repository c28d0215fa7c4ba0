"""Training samples as pure functions of (seed, position): which video, which window, mirrored or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from latte.config import DataOptions
from latte.data.clips import open_clip
from latte.data.index import Index
from latte.data.transforms import to_pixels
from latte.errors import UserError

MAX_SKIPPED = 8  # broken or short videos in a row
_ORDER, _WINDOW = 1, 2  # streams of random numbers


def stream(seed: int, position: int, kind: int) -> np.random.Generator:
    """Return the random numbers of one kind for one position; equal arguments give equal numbers everywhere."""
    return np.random.Generator(np.random.Philox(key=[seed, kind], counter=[0, position, 0, 0]))


class Sample(NamedTuple):
    """A window of a video, single images after it, their classes, and which records were skipped for it."""

    pixels: np.ndarray  # (F + n, 3, size, size) float32 in [-1, 1]
    labels: np.ndarray  # (1 + n,) int32
    record: int
    skipped: np.ndarray  # (MAX_SKIPPED,) int32, filled up with -1


class VideoDataset:
    """The samples of a data set, by position: the number of a sample since the start of training, over all epochs.

    The records have numbers: those of the videos first, and then those of the listed images.
    """

    def __init__(self, index: Index, num_frames: int, image_size: int, options: DataOptions, seed: int):
        self.index, self.options, self.seed = index, options, seed
        self.num_frames, self.image_size = num_frames, image_size
        self._records = [*index.records, *index.images]
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.index.records)

    def sample(self, position: int) -> Sample:
        """Return the sample at a position; a broken or short video is skipped for the next one in the order.

        A broken single image is skipped for another one. Raises UserError if too many in a row are.
        """
        epoch, place = divmod(position, len(self))
        tries = np.take(self._order(epoch), range(place, place + min(MAX_SKIPPED, len(self))), mode="wrap")
        rng = stream(self.seed, position, _WINDOW)
        where, mirrored = rng.random(2)
        skipped: list[int] = []
        record, pixels = _first_usable(tries, lambda number: self._window(number, where, mirrored), skipped)
        images = [self._image(rng, skipped) for _ in range(self.options.images_per_video)]
        labels = [self._records[number].label for number in (record, *[number for number, _ in images])]
        if images:
            pixels = np.concatenate([pixels, *[image for _, image in images]])
        # More than fit are rare, and are met again in other samples.
        noted = [*dict.fromkeys(skipped), *[-1] * MAX_SKIPPED][:MAX_SKIPPED]
        return Sample(pixels, np.array(labels, np.int32), record, np.array(noted, np.int32))

    def reason(self, number: int) -> str:
        """Return what is wrong with a record that was skipped; for that, all of it may have to be read."""
        try:
            clip = open_clip(self._records[number].path)
            for start in range(0, clip.length, self.num_frames):
                clip.read(np.arange(start, min(start + self.num_frames, clip.length)))
            if number < len(self):
                self._starts(number, clip.length)
        except UserError as error:
            return str(error)
        return f"{self._records[number].path} could not be read for a while"

    def _shuffled(self, epoch: int) -> np.ndarray:
        return stream(self.seed, epoch, _ORDER).permutation(len(self))

    def _starts(self, number: int, length: int) -> int:
        """Return how many places there are for a window."""
        stride = self.options.sample_stride
        if length < self.num_frames * stride:
            raise UserError(
                f"{self._records[number].path} has {length} frames, but {self.num_frames} frames with sample_stride "
                f"{stride} take {self.num_frames * stride}"
            )
        return length - self.num_frames * stride + 1

    def _window(self, number: int, where: float, mirrored: float) -> np.ndarray:
        """Return the pixels of a window whose start, from 0 to 1 of what fits, is `where`."""
        clip = open_clip(self._records[number].path)
        start = int(where * self._starts(number, clip.length))
        return self._pixels(clip.read(start + self.options.sample_stride * np.arange(self.num_frames)), mirrored)

    def _image(self, rng: np.random.Generator, skipped: list[int]) -> tuple[int, np.ndarray]:
        """Return the number of a record, and an image of it as (1, 3, size, size)."""
        first, end = (len(self), len(self._records)) if self.index.images else (0, len(self))
        tries = first + rng.choice(end - first, min(MAX_SKIPPED, end - first), replace=False)
        where, mirrored = rng.random(2)

        def read(number: int) -> np.ndarray:
            clip = open_clip(self._records[number].path)
            return self._pixels(clip.read(np.array([int(where * clip.length)])), mirrored)

        return _first_usable(tries, read, skipped)

    def _pixels(self, frames: np.ndarray, mirrored: float) -> np.ndarray:
        flip = self.options.random_flip and mirrored < 0.5
        return to_pixels(frames, self.image_size, self.options.transform, flip)


def _first_usable(
    numbers: Sequence[int] | np.ndarray, read: Callable[[int], np.ndarray], skipped: list[int]
) -> tuple[int, np.ndarray]:
    """Return the first number that can be read, and what was read; those before it are added to `skipped`."""
    for number in map(int, numbers):
        try:
            return number, read(number)
        except UserError as error:
            skipped.append(number)
            reason = error
    raise UserError(f"{len(numbers)} videos in a row cannot be used; of the last one: {reason}")
