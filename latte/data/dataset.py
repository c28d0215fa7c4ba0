"""Training samples as pure functions of (seed, position): which video, which window, mirrored or not."""

from __future__ import annotations

import dataclasses
import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from latte.data.clips import open_clip
from latte.data.transforms import to_pixels
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from latte.config import DataOptions
    from latte.data.index import Index, Record

MAX_TRIES = 256  # broken or short videos in a row before the data set is given up
MAX_SKIPPED = 8  # of them are reported with a sample; and tries for a single image
_ORDER, _WINDOW = 1, 2  # streams of random numbers
NONE_BROKEN: Mapping[Path, str] = MappingProxyType({})


def stream(seed: int, position: int, kind: int) -> np.random.Generator:
    """Return the random numbers of one kind for one position; equal arguments give equal numbers everywhere."""
    return np.random.Generator(np.random.Philox(key=[seed, kind], counter=[0, position, 0, 0]))


class Clip(Protocol):
    """A video of which some frames can be read: as pixels, or from a cache as moments."""

    length: int

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the frames at `indices`, mirrored if `flip`, as float32 (n, C, H, W); raises UserError."""


class Store(Protocol):
    """Where the videos of an index are read from."""

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of a frame (C, H, W)."""

    def open(self, record: Record) -> Clip:
        """Return the video of a record; raises UserError if it is missing or broken."""

    def load(self, frames: np.ndarray) -> np.ndarray:
        """Return the frames that a clip of this store has read; raises UserError if they turn out to be broken."""


@dataclasses.dataclass(frozen=True)
class PixelStore:
    """The videos themselves, as the autoencoder takes them."""

    image_size: int
    transform: str

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """The shape of a frame (C, H, W)."""
        return 3, self.image_size, self.image_size

    def open(self, record: Record) -> Clip:
        """Return the video of a record; raises UserError if it is missing or broken."""
        return PixelClip(record.path, self)

    def load(self, frames: np.ndarray) -> np.ndarray:
        """Return the frames as they are."""
        return frames


class PixelClip:
    """A video whose frames are transformed when they are read."""

    def __init__(self, path: Path, store: PixelStore):
        self._clip, self._store = open_clip(path), store
        self.length = self._clip.length

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the frames at `indices` as float32 (n, 3, size, size); raises UserError if one is broken."""
        return to_pixels(self._clip.read(indices), self._store.image_size, self._store.transform, flip)


class Sample(NamedTuple):
    """A window of a video, single images after it, their classes, and which records were skipped for it."""

    x: np.ndarray  # (F + n, C, H, W) float32: pixels in [-1, 1], or moments
    labels: np.ndarray  # (1 + n,) int32
    record: int
    skipped: np.ndarray  # (MAX_SKIPPED,) int32, filled up with -1
    images: tuple[int, ...] = ()  # the records of the single images


class VideoDataset:
    """The samples of a data set, by position: the number of a sample since the start of training, over all epochs.

    The records have numbers: those of the videos first, and then those of the listed images. `numbers` (n,) are those
    of the videos that samples are drawn from, None being all; then listed images of other videos are left out too.
    """

    def __init__(
        self,
        index: Index,
        num_frames: int,
        store: Store,
        options: DataOptions,
        seed: int,
        numbers: np.ndarray | None = None,
    ):
        self.index, self.store, self.options, self.seed = index, store, options, seed
        self.num_frames = num_frames
        self._records = [*index.records, *index.images]
        self.numbers = np.arange(len(index.records)) if numbers is None else numbers
        self._images = self._numbers_of_images()
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.numbers)

    def sample(self, position: int, broken: Mapping[Path, str] = NONE_BROKEN) -> Sample:
        """Return the sample at a position; a broken or short video is skipped for the next one in the order.

        A broken single image is skipped for another one, and so are the records whose paths are in `broken`, which
        says why. Raises UserError if too many in a row are.
        """
        epoch, place = divmod(position, len(self))
        tries = np.take(self._order(epoch), range(place, place + min(MAX_TRIES, len(self))), mode="wrap")
        rng = stream(self.seed, position, _WINDOW)
        where, mirrored = rng.random(2)
        skipped: list[int] = []
        record, x = _first_usable(tries, lambda number: self._window(number, where, mirrored, broken), skipped)
        images = [self._image(rng, skipped, broken) for _ in range(self.options.images_per_video)]
        labels = [self._records[number].label for number in (record, *[number for number, _ in images])]
        if images:
            x = np.concatenate([x, *[image for _, image in images]])
        # More than fit are rare, and other samples meet them again.
        noted = [*dict.fromkeys(skipped), *[-1] * MAX_SKIPPED][:MAX_SKIPPED]
        numbers = tuple(number for number, _ in images)
        return Sample(x, np.array(labels, np.int32), record, np.array(noted, np.int32), numbers)

    def reason(self, number: int) -> str:
        """Return why a record was skipped; this may read the whole of it."""
        try:
            clip = self.store.open(self._records[number])
            for start in range(0, clip.length, self.num_frames):
                self.store.load(clip.read(np.arange(start, min(start + self.num_frames, clip.length)), False))
            if number < len(self.index.records):
                self._starts(number, clip.length)
        except UserError as error:
            return str(error)
        return f"{self._records[number].path} could not be read for a while"

    def problem(self, number: int) -> str | None:
        """Return why the first window of a video cannot be used, or None if it can."""
        try:
            self._window(number, 0.0, 1.0, NONE_BROKEN)
        except UserError as error:
            return str(error)
        return None

    def _numbers_of_images(self) -> np.ndarray:
        """Return the records (n,) that single images are drawn from; raises UserError if a list has none of them."""
        if not self.index.images:
            return self.numbers
        used = {self.index.records[number].path for number in self.numbers}
        kept_out = {record.path for record in self.index.records} - used
        listed = [k for k, image in enumerate(self.index.images) if image.path.parent not in kept_out]
        if not listed:
            raise UserError(
                f"frame_list {self.options.frame_list} names images of held-out videos only; leave held_out or "
                "frame_list out"
            )
        return len(self.index.records) + np.array(listed)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return self.numbers[stream(self.seed, epoch, _ORDER).permutation(len(self))]

    def _starts(self, number: int, length: int) -> int:
        """Return in how many places a window can start; raises UserError if it fits nowhere."""
        stride = self.options.sample_stride
        if length < self.num_frames * stride:
            raise UserError(
                f"{self._records[number].path} has {length} frames, but {self.num_frames} frames with sample_stride "
                f"{stride} take {self.num_frames * stride}"
            )
        return length - self.num_frames * stride + 1

    def _open(self, number: int, broken: Mapping[Path, str]) -> Clip:
        record = self._records[number]
        if record.path in broken:
            raise UserError(broken[record.path])
        return self.store.open(record)

    def _window(self, number: int, where: float, mirrored: float, broken: Mapping[Path, str]) -> np.ndarray:
        """Return a window whose start, from 0 to 1 of what fits, is `where`."""
        clip = self._open(number, broken)
        start = int(where * self._starts(number, clip.length))
        return clip.read(start + self.options.sample_stride * np.arange(self.num_frames), self._flips(mirrored))

    def _image(
        self, rng: np.random.Generator, skipped: list[int], broken: Mapping[Path, str]
    ) -> tuple[int, np.ndarray]:
        """Return the number of a record, and an image of it as (1, C, H, W)."""
        count = len(self._images)
        tries = self._images[rng.choice(count, min(MAX_SKIPPED, count), replace=False)]
        where, mirrored = rng.random(2)

        def read(number: int) -> np.ndarray:
            clip = self._open(number, broken)
            return clip.read(np.array([int(where * clip.length)]), self._flips(mirrored))

        return _first_usable(tries, read, skipped)

    def _flips(self, mirrored: float) -> bool:
        return self.options.random_flip and mirrored < 0.5


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
