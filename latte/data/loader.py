"""Batches for training: samples with all random numbers that a step needs, decoded ahead by several processes."""

from __future__ import annotations

import gc
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.data.cache import BrokenVideoError, Cache
from latte.data.dataset import Sample, VideoDataset, stream
from latte.data.text_embeddings import caption_list, check_finite
from latte.errors import UserError
from latte.io.arrays import read_npz

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latte.data.text_embeddings import Captions

_CHUNK = 256  # samples whose MindRecord rows are read in one go
_NOISE = 3  # a stream of random numbers
_CLIP_TEXT = (77, 768)  # tokens and width of an embedding
_MARK = "UserError: "  # how MindSpore quotes ours in an error of its own
_AHEAD = 256 * 2**20  # bytes that each of MindSpore's queues may hold, at least 2 batches; 16 of 128 frames took 4 GB


class TrainingSource:
    """What a training step takes, by position; `columns` are its names.

    x: pixels (F, 3, H, W) or moments (F, 2 L, h, w); posterior_noise and noise (F, L, h, w); t (); skipped (8,); and
    for a condition label (1 + n,), text (77, 768), or, for `captions`, one per record, text (S, C) and mask (S,). With
    probability `dropout` the condition is the null one.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        latent_shape: tuple[int, ...],
        seed: int,
        num_classes: int | None = None,
        text: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        dropout: float = 0.1,
        steps: int = 1000,
        captions: Captions | None = None,
    ):
        self.dataset, self.latent_shape, self.seed, self.steps = dataset, latent_shape, seed, steps
        self.num_classes, self.text, self.captions, self.dropout = num_classes, text, captions, dropout
        condition = ["label"] if num_classes else ["text"] if text else ["text", "mask"] if captions else []
        self.columns = ["x", "posterior_noise", "t", "noise", "skipped", *condition]

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        return self.complete(int(position), self.dataset.sample(int(position)))

    def complete(self, position: int, sample: Sample) -> tuple[np.ndarray, ...]:
        """Return the sample of a position with its random numbers."""
        rng = stream(self.seed, position, _NOISE)
        dropped = rng.random() < self.dropout
        t = np.array(rng.integers(self.steps), np.int32)
        noise, posterior_noise = rng.standard_normal((2, *self.latent_shape), np.float32)
        values = (sample.x, posterior_noise, t, noise, sample.skipped)
        if self.num_classes:
            return *values, np.full_like(sample.labels, self.num_classes) if dropped else sample.labels
        if self.text:
            embeddings, places, null = self.text
            return *values, null if dropped else embeddings[places[sample.record]]
        if self.captions:
            return *values, *self.captions.padded(None if dropped else sample.record)
        return values


class _Rows:
    """The positions of one rank's rows, in order, for MindSpore's loader."""

    def __init__(self, source: TrainingSource, batch: int, first: int, last: int, rank: int, world_size: int):
        self.source, self.batch, self.first, self.last = source, batch, first, last
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return (self.last - self.first) * self.batch

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        return self.source[self.position(int(row))]

    def position(self, row: int) -> int:
        """Return the position of a row."""
        number, place = divmod(row, self.batch)
        return ((self.first + number) * self.world_size + self.rank) * self.batch + place


class _RecordRows:
    """The same rows in order from a cache in MindRecord files, of which many are read at once."""

    def __init__(self, rows: _Rows, cache: Cache):
        self.rows, self.cache = rows, cache

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        source = self.rows.source
        chunk: list[tuple[int, Sample, np.ndarray]] = []
        wanted: list[int] = []
        for row in range(len(self)):
            position = self.rows.position(row)
            sample = source.dataset.sample(position)
            needed = np.unique(sample.x[:, 0])
            if len(chunk) == _CHUNK or len(wanted) + len(needed) > self.cache.rows:
                yield from self._read(chunk, wanted)
                chunk, wanted = [], []
            chunk.append((position, sample, needed))
            wanted.extend(needed)
        yield from self._read(chunk, wanted)

    def _read(self, chunk: list[tuple[int, Sample, np.ndarray]], wanted: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
        stored = self.cache.read_rows(wanted)
        for position, sample, needed in chunk:
            yield self._complete(position, sample, {number: next(stored) for number in needed})

    def _complete(self, position: int, sample: Sample, rows: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return a sample with its moments out of rows; a video whose moments are damaged is skipped for the next."""
        source, broken = self.rows.source, dict[Path, str]()
        while True:
            try:
                return source.complete(position, sample._replace(x=self.cache.moments(sample.x, rows)))
            except BrokenVideoError as error:
                broken[error.path] = str(error)
            sample = source.dataset.sample(position, broken)
            needed = np.unique(sample.x[:, 0])
            rows = dict(zip(needed, self.cache.read_rows(needed), strict=True))


def make_loader(
    source: TrainingSource, batch_size: int, first: int, last: int, rank: int, world_size: int, num_workers: int
) -> ms.dataset.Dataset:
    """Return the batches `first` to `last` - 1 of a rank, in order.

    Row j of batch b of rank r is the sample at position (b * world_size + r) * batch_size + j: N ranks see together
    what one rank with N times the batch size sees. The number of workers, which MindSpore limits to that of the
    processors, changes nothing but the speed.
    """
    plain = _Rows(source, batch_size, first, last, rank, world_size)
    rows: _Rows | _RecordRows = plain
    num_workers = min(num_workers, os.cpu_count() or 1)
    if isinstance(source.dataset.store, Cache) and source.dataset.store.has_records:
        rows, num_workers = _RecordRows(plain, source.dataset.store), 1  # MindRecord's threads read ahead themselves
    images = source.dataset.num_frames + source.dataset.options.images_per_video
    batch_bytes = batch_size * images * math.prod(source.dataset.store.frame_shape) * 4
    # A loader that failed may leave its iterator in the cycle of its exception. Collected in a forked worker instead of
    # here, it would end that worker, and with it this process.
    gc.collect()
    ms.dataset.config.set_prefetch_size(min(max(_AHEAD // batch_bytes, 2), 16))
    ms.dataset.config.set_enable_shared_mem(num_workers > 1)
    dataset = ms.dataset.GeneratorDataset(
        rows,
        source.columns,
        shuffle=False,
        num_parallel_workers=num_workers,
        python_multiprocessing=num_workers > 1,
        max_rowsize=-1,
    )
    return dataset.batch(batch_size)


def unwrapped(error: RuntimeError) -> Exception:
    """Return the UserError that a worker raised, out of MindSpore's error around it; or that error."""
    # The last mark: a worker process's traceback is itself quoted behind a first one.
    _, mark, text = str(error).rpartition(_MARK)
    return UserError(text.splitlines()[0].strip()) if mark else error


def read_text(path: str, captions: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return text embeddings (M, 77, 768), the place of each caption among them (N,), and the null one (77, 768).

    The .npz file holds `captions` (M,), `text` and `null`. Raises UserError if it does not, or a
    caption is missing.
    """
    try:
        file = read_npz(path, ("captions", "text", "null"))
        known, text, null = caption_list(path, file["captions"]), file["text"], file["null"]
        if text.shape != (len(known), *_CLIP_TEXT) or null.shape != _CLIP_TEXT:
            raise UserError(
                f"{path} has text {text.shape} and null {null.shape}, but for its {len(known)} captions "
                f"these must be {(len(known), *_CLIP_TEXT)} and {_CLIP_TEXT}"
            )
        check_finite(path, text=text, null=null)
    except UserError as error:
        raise UserError(f"text_embeddings {error}; see docs/sample.md") from error
    places = {caption: place for place, caption in enumerate(known)}
    missing = [caption for caption in captions if caption not in places]
    if missing:
        raise UserError(f"text_embeddings {path} has no embedding of {len(missing)} captions, such as {missing[0]!r}")
    places_of = np.array([places[caption] for caption in captions])
    return text.astype(np.float32), places_of, null.astype(np.float32)
