"""Batches for training: samples with all random numbers that a step needs, decoded ahead by several processes."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
import psutil

from latte.data.cache import BrokenVideoError, Cache
from latte.data.dataset import Sample, VideoDataset, stream
from latte.data.text_embeddings import caption_list, check_finite
from latte.errors import ABANDONED, UserError, leave, reason
from latte.io.arrays import read_npz
from latte.io.atomic import describe_bytes
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from latte.data.text_embeddings import Captions

_PATIENCE = 10  # seconds for the next batch after a process of the loader has died
_CHUNK = 256  # samples whose MindRecord rows are read in one go
_NOISE = 3  # a stream of random numbers
_CLIP_TEXT = (77, 768)  # tokens and width of an embedding
_MARK = "UserError: "  # how MindSpore quotes ours in an error of its own
_SHARED = Path("/dev/shm")  # noqa: S108, where Linux has the memory that processes share; nothing is written by us
_SEMAPHORES = 2**20  # bytes there without which not even the locks of several processes are sure of their place
_SPARE = 2  # rows that MindSpore's queue between two processes holds beside its length
_AHEAD = 256 * 2**20  # bytes that each of MindSpore's queues may hold, at least 2 batches; 16 of 128 frames took 4 GB


class WorkerLostError(UserError):
    """A process of the loader is gone, and no further batch will come."""


class TrainingSource:
    """What a training step takes, by position; `columns` are its names.

    x: pixels (F, 3, H, W) or moments (F, 2 L, h, w); posterior_noise and noise (F, L, h, w); t (), or with
    condition_frames (1 + frames of the video,), then for each frame 1 if it is to be noisy, else 0; skipped (8,); and
    for a condition label (1 + n,), text (77, 768), or, for `captions`, one per record, text (S, C) and mask (S,). With
    n single images, which are among the F, texts and masks have an axis (1 + n) before these. With probability
    `dropout` the condition is the null one.
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
        condition_frames: int = 0,
    ):
        self.condition_frames = condition_frames
        self.dataset, self.latent_shape, self.seed, self.steps = dataset, latent_shape, seed, steps
        self.num_classes, self.text, self.captions, self.dropout = num_classes, text, captions, dropout
        condition = ["label"] if num_classes else ["text"] if text else ["text", "mask"] if captions else []
        self.columns = ["x", "posterior_noise", "t", "noise", "skipped", *condition]

    def __getitem__(self, position: int) -> tuple[np.ndarray, ...]:
        return self.complete(int(position), self.dataset.sample(int(position)))

    def row_bytes(self) -> int:
        """Return about how many bytes a sample has."""
        images = self.dataset.num_frames + self.dataset.options.images_per_video
        numbers = images * math.prod(self.dataset.store.frame_shape) + 2 * math.prod(self.latent_shape)
        texts: tuple[np.ndarray, ...] = self.captions.padded(None) if self.captions else ()
        if self.text:
            texts = (self.text[2],)
        count = 1 + self.dataset.options.images_per_video
        return 4 * numbers + count * sum(array.nbytes for array in texts)

    def complete(self, position: int, sample: Sample) -> tuple[np.ndarray, ...]:
        """Return the sample of a position with its random numbers."""
        rng = stream(self.seed, position, _NOISE)
        dropped = rng.random() < self.dropout
        t = np.array(rng.integers(self.steps), np.int32)
        noise, posterior_noise = rng.standard_normal((2, *self.latent_shape), np.float32)
        if self.condition_frames:
            given = rng.integers(self.condition_frames + 1)
            t = np.append(t, np.arange(self.dataset.num_frames) >= given).astype(np.int32)
        values = (sample.x, posterior_noise, t, noise, sample.skipped)
        if self.num_classes:
            return *values, np.full_like(sample.labels, self.num_classes) if dropped else sample.labels
        if not (self.text or self.captions):
            return values
        texts = [self._text(None if dropped else number) for number in (sample.record, *sample.images)]
        if not sample.images:
            return *values, *texts[0]
        return *values, *(np.stack(each) for each in zip(*texts, strict=True))

    def _text(self, record: int | None) -> tuple[np.ndarray, ...]:
        """Return the text of a record, None being the null one, and for `captions` its mask."""
        if self.captions:
            return self.captions.padded(record)
        embeddings, places, null = self.text  # type: ignore[misc]
        return (null if record is None else embeddings[places[record]],)


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
            rows = self.cache.rows_of(sample.x)


def make_loader(
    source: TrainingSource, batch_size: int, first: int, last: int, rank: int, world_size: int, num_workers: int
) -> ms.dataset.Dataset:
    """Return the batches `first` to `last` - 1 of a rank, in order.

    Row j of batch b of rank r is the sample at position (b * world_size + r) * batch_size + j: N ranks see together
    what one rank with N times the batch size sees. The number of workers, which MindSpore limits to that of the
    processors, changes nothing but the speed, and neither does the way by which they hand over their rows.
    """
    plain = _Rows(source, batch_size, first, last, rank, world_size)
    rows: _Rows | _RecordRows = plain
    num_workers = min(num_workers, os.cpu_count() or 1)
    if isinstance(source.dataset.store, Cache) and source.dataset.store.has_records:
        rows, num_workers = _RecordRows(plain, source.dataset.store), 1  # MindRecord's threads read ahead themselves
    row_bytes = source.row_bytes()
    # A loader that failed may leave its iterator in the cycle of its exception. Collected in a forked worker instead of
    # here, it would end that worker, and with it this process.
    gc.collect()
    ahead = min(max(_AHEAD // (batch_size * row_bytes), 2), 16)
    shares, num_workers = _hand_over(num_workers, (ahead + _SPARE) * row_bytes, world_size)
    ms.dataset.config.set_prefetch_size(ahead)
    ms.dataset.config.set_enable_shared_mem(shares)
    dataset = ms.dataset.GeneratorDataset(
        rows,
        source.columns,
        shuffle=False,
        num_parallel_workers=num_workers,
        python_multiprocessing=num_workers > 1,
        max_rowsize=-1,
    )
    return dataset.batch(batch_size)


def _hand_over(num_workers: int, queue_bytes: int, world_size: int) -> tuple[bool, int]:
    """Return whether workers hand over rows in shared memory, and their number; 1 is a thread of this process.

    A worker that finds no room in shared memory dies of a bus error, so what is short there goes through pipes, and
    without room for the locks of pipes one thread decodes. It is said once.
    """
    if num_workers == 1 or not sys.platform.startswith("linux"):
        return num_workers > 1, num_workers
    try:
        free = shutil.disk_usage(_SHARED).free
    except OSError:
        free = 0
    needed = num_workers * queue_bytes * world_size  # all ranks may be on this machine
    if needed + _SEMAPHORES <= free:
        return True, num_workers
    what = f"{_SHARED} has {describe_bytes(free)} free, but {num_workers} workers need {describe_bytes(needed)}"
    remedy = "a larger one (docker run --shm-size 8g) is faster; the results are the same"
    if free < _SEMAPHORES:
        device.warn_once(f"num_workers: {what}: one thread decodes instead; {remedy}")
        return False, 1
    device.warn_once(f"num_workers: {what}: they hand over their rows through pipes; {remedy}")
    return False, num_workers


def fetch(dataset: ms.dataset.Dataset, rescue: Callable[[], str] = str) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the batches of a loader as tuples of arrays, one column each.

    When a process of the loader is gone, MindSpore waits for its row for ever. What it then does with its own watchdog
    is a SIGTERM to this process, which looks like a user's; so that one is off, and a thread watches.
    Raises WorkerLostError at the next batch after such a process was killed, and RuntimeError if a row cannot be made;
    see `unwrapped`. If this thread is stuck in MindSpore by then, the other one calls `rescue`, prints what that
    returns behind the sentence, and ends the program with the code of a UserError.
    """
    ms.dataset.config.set_enable_watchdog(False)
    watch = _Watch(rescue)
    batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    watch.start()
    try:
        while True:
            watch.check()
            watch.waiting = True
            batch = next(batches, None)
            watch.waiting = False
            if batch is None:
                return
            watch.begun = True
            yield batch
    except RuntimeError:
        watch.check()
        raise
    finally:
        watch.stopped.set()
        if watch.lost:
            ABANDONED.append(batches)


@contextlib.contextmanager
def watching(rescue: Callable[[], str]) -> Iterator[_Watch]:
    """Watch as `fetch` does over a loader that a device fetches from by itself, and is stuck without.

    Whoever uses it sets `begun` once there was a batch.
    """
    ms.dataset.config.set_enable_watchdog(False)
    watch = _Watch(rescue)
    watch.waiting = True
    watch.start()
    try:
        yield watch
    finally:
        watch.stopped.set()


class _Watch(threading.Thread):
    """Watches over the processes that start after it was made and before there is a batch, when `begun` is set.

    `waiting` is whether its user waits for a batch.
    """

    def __init__(self, rescue: Callable[[], str]):
        super().__init__(daemon=True)
        self.rescue, self.lost, self.stopped = rescue, "", threading.Event()
        self.begun = self.waiting = False
        self.others = set(multiprocessing.active_children())

    def check(self) -> None:
        """Raise WorkerLostError if one of the processes is gone."""
        if self.lost:
            raise WorkerLostError(self.lost)

    def run(self) -> None:
        """Look every second until `stopped`."""
        workers: set[multiprocessing.process.BaseProcess] = set()
        complete = False
        while not self.lost:
            begun = self.begun
            # Children that start later are others', as those that MindSpore's profiler reads its trace by.
            if not complete:
                workers |= {*multiprocessing.active_children()} - self.others
            complete = begun
            # Often until there is a first batch, as one may die of its first row, and then nothing tells of it.
            if self.stopped.wait(1 if begun else 0.02):
                return
            self.lost = next(filter(None, map(_describe_end, workers)), "")
        if not self.stopped.wait(_PATIENCE) and self.waiting:
            try:
                end = self.rescue()
            except Exception as error:
                end = reason(error)
            sys.stderr.write(f"error: {'; '.join(filter(None, (self.lost, end)))}\n")
            leave(2)


def _describe_end(worker: multiprocessing.process.BaseProcess) -> str:
    """Return of what a worker has died, or "" if it lives; the system kills one when memory is short."""
    code, how = worker.exitcode, "was killed"
    if code is None and worker.pid and psutil.pid_exists(worker.pid):
        return ""
    if code is not None:  # else MindSpore was told of its death before Python
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with code {code}"
    why = "the system does that when memory is short: lower num_workers or train_batch_size"
    if code == -getattr(signal, "SIGBUS", 0):
        why = f"{_SHARED} was full: make it larger (docker run --shm-size 8g), or set num_workers to 1"
    return f"a process that decodes videos {how}; {why}"


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
