"""Training samples as pure functions of (seed, position): which video, which window, mirrored or not."""

from __future__ import annotations

import functools
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
    """The samples of a data set, by position: the number of a sample since the start of training, over all epochs."""

    def __init__(self, index: Index, num_frames: int, image_size: int, options: DataOptions, seed: int):
        self.index, self.options, self.seed = index, options, seed
        self.num_frames, self.image_size = num_frames, image_size
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.index.records)

    def sample(self, position: int) -> Sample:
        """Return the sample at a position; a broken or short video is skipped for the next one in the order.

        Raises UserError if too many in a row are.
        """
        epoch, place = divmod(position, len(self))
        order, skipped = self._order(epoch), np.full(MAX_SKIPPED, -1, np.int32)
        rng = stream(self.seed, position, _WINDOW)
        draws = rng.random(2 + 2 * self.options.images_per_video)
        for attempt in range(min(MAX_SKIPPED, len(self))):
            number = int(order[(place + attempt) % len(self)])
            try:
                pixels = self._window(number, draws[0], draws[1])
                break
            except UserError as error:
                skipped[attempt], reason = number, error
        else:
            raise UserError(f"{np.sum(skipped >= 0)} videos in a row cannot be used; of the last one: {reason}")
        images = [self._image(*pair) for pair in draws[2:].reshape(-1, 2)]
        labels = [self.index.records[number].label] + [label for _, label in images]
        pixels = np.concatenate([pixels, *[image for image, _ in images]]) if images else pixels
        return Sample(pixels, np.array(labels, np.int32), number, skipped)

    def reason(self, number: int) -> str:
        """Return what is wrong with a record that was skipped."""
        try:
            self._window(number, 0.0, 0.0)
        except UserError as error:
            return str(error)
        return f"{self.index.records[number].path} could not be read for a while"

    def _shuffled(self, epoch: int) -> np.ndarray:
        return stream(self.seed, epoch, _ORDER).permutation(len(self))

    def _window(self, number: int, where: float, mirrored: float) -> np.ndarray:
        """Return the pixels of a window whose start, from 0 to 1 of what fits, is `where`."""
        path, stride = self.index.records[number].path, self.options.sample_stride
        clip = open_clip(path)
        starts = clip.length - self.num_frames * stride + 1
        if starts < 1:
            raise UserError(
                f"{path} has {clip.length} frames, but {self.num_frames} frames with sample_stride {stride} take "
                f"{self.num_frames * stride}"
            )
        indices = int(where * starts) + stride * np.arange(self.num_frames)
        flip = self.options.random_flip and mirrored < 0.5
        return to_pixels(clip.read(indices), self.image_size, self.options.transform, flip)

    def _image(self, which: float, mirrored: float) -> tuple[np.ndarray, int]:
        """Return a single image as (1, 3, size, size), and its class."""
        choice = self.index.images or self.index.records
        record = choice[int(which * len(choice))]
        clip = open_clip(record.path)
        frame = clip.read(np.array([int((which * len(choice) % 1) * clip.length)]))
        flip = self.options.random_flip and mirrored < 0.5
        return to_pixels(frame, self.image_size, self.options.transform, flip), record.label
