"""What tools/embedding_cache.py does between options and files: moments of every video, on one rank or many."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latte import device
from latte.checkpoint import load_vae
from latte.codec import Codec
from latte.config import CacheConfig
from latte.data.cache import MANIFEST, Cache, Entry, file_hash, read_cache, settings_of
from latte.data.dataset import PixelStore
from latte.data.index import Index, Record, list_records
from latte.errors import UserError
from latte.files import atomic_path

log = logging.getLogger("latte")
AHEAD = 2  # slices of frames that are decoded before they are needed
DEFAULT_SIZE, DEFAULT_DTYPE = 256, "fp16"
DTYPES = {"fp16": np.float16, "fp32": np.float32}
SAVED = 100  # videos of a rank between two lines about them
LEFTOVERS = ".*"


class VideoError(UserError):
    """A video of the data set cannot be read; the others can."""


class Queue:
    """Numbers from 0 on, each given to one rank only, whichever asks first."""

    def __init__(self, shared: bool):
        self._next, self._window = 0, None
        if shared:
            from mpi4py import MPI

            size = MPI.INT64_T.Get_size()
            self._window = MPI.Win.Allocate(size if MPI.COMM_WORLD.rank == 0 else 0, size, comm=MPI.COMM_WORLD)
            if MPI.COMM_WORLD.rank == 0:
                np.frombuffer(self._window.tomemory(), np.int64)[:] = 0
            MPI.COMM_WORLD.Barrier()

    def take(self) -> int:
        """Return the next number."""
        if self._window is None:
            self._next += 1
            return self._next - 1
        number, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        self._window.Lock(0)
        self._window.Fetch_and_op(one, number, 0)
        self._window.Unlock(0)
        return int(number[0])


class CacheMaker:
    """Encodes what is missing in a cache."""

    def __init__(self, cfg: CacheConfig, index: Index, cache: Cache, codec: Codec):
        self.cfg, self.index, self.cache, self.codec = cfg, index, cache, codec
        self.store = PixelStore(cache.settings["image_size"], cfg.transform)
        self.dtype = DTYPES[cache.settings["cache_dtype"]]
        self.todo = [
            number
            for number in range(cfg.resume_cache_index, len(index.records))
            if number not in cache.entries or cache.entries[number].error
        ]
        self.frames, self.seconds = 0, 0.0  # encoded, and how long the autoencoder took for them
        self.saved = self.failed = 0

    def run(self, tickets: Queue) -> None:
        """Encode the videos that this rank gets; raises UserError if the disk is full."""
        rank = device.current().rank
        stream, started = ahead(self._decoded(tickets)), time.perf_counter()
        with tqdm(total=len(self.todo), desc="encoding", unit="video", disable=rank > 0) as bar:
            for place, length in stream:
                number = self.todo[place]
                entry = self._encoded(number, length, stream)
                self.cache.note(entry, rank)
                self.saved, self.failed = self.saved + (not entry.error), self.failed + bool(entry.error)
                bar.update(place + 1 - bar.n)
                bar.set_postfix_str(f"{self.frames / (time.perf_counter() - started):.1f} frames/s", refresh=False)

    def _encoded(self, number: int, length: int | VideoError, stream: Iterator) -> Entry:
        """Write the moments of a video whose frames come next in the stream."""
        record = self.index.records[number]
        shape = (1 + self.cfg.flip, length, *self.cache.frame_shape)
        file = f"{number:08d}.npy"
        try:
            if isinstance(length, VideoError):
                raise length
            with atomic_path(self.cache.folder / file) as temporary, open(temporary, "wb") as out:
                np.lib.format.write_array_header_2_0(
                    out, {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": shape}
                )
                begin, size = out.tell(), np.dtype(self.dtype).itemsize * int(np.prod(self.cache.frame_shape))
                done = 0
                while done < length:
                    pixels = next(stream)
                    if isinstance(pixels, VideoError):
                        raise pixels
                    for variant in range(shape[0]):
                        out.seek(begin + (variant * length + done) * size)
                        out.write(self._moments(pixels[..., ::-1] if variant else pixels).tobytes())
                    done += len(pixels)
            path = self.cache.folder / file
            return self._entry(number, record, frames=length, file=file, sha256=file_hash(path))
        except VideoError as error:
            log.warning("failed: %s", error)
            return self._entry(number, record, error=str(error))

    def _moments(self, pixels: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        moments = self.codec.moments(pixels).astype(self.dtype)
        self.seconds, self.frames = self.seconds + time.perf_counter() - begin, self.frames + len(pixels)
        return moments

    def _entry(self, number: int, record: Record, **values: object) -> Entry:
        return Entry(number, relative(record.path, self.cfg.data_folder), record.label, record.caption, **values)

    def _decoded(self, tickets: Queue) -> Iterator[tuple[int, int | VideoError] | np.ndarray | VideoError]:
        """Yield for each video its place in `todo` and length, and then its frames, slice by slice; or an error."""
        size = self.codec.frames_per_slice
        while (place := tickets.take()) < len(self.todo):
            record = self.index.records[self.todo[place]]
            try:
                clip = self.store.open(record)
            except UserError as error:
                yield place, VideoError(str(error))
                continue
            yield place, clip.length
            try:
                for start in range(0, clip.length, size):
                    yield clip.read(np.arange(start, min(start + size, clip.length)), False)
            except UserError as error:
                yield VideoError(str(error))


def ahead(items: Iterator, count: int = AHEAD) -> Iterator:
    """Yield the items of an iterator, which another thread makes before they are asked for."""
    made: queue.Queue = queue.Queue(count)
    end = object()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
            made.put((end, None))
        except BaseException as error:
            made.put((end, error))

    threading.Thread(target=make, daemon=True).start()
    while True:
        item, error = made.get()
        if error:
            raise error
        if item is end:
            return
        yield item


def relative(path: Path, folder: str) -> str:
    """Return a path as it is below a folder, or whole if it is not below it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def open_or_create(cfg: CacheConfig, index: Index, settings: dict) -> Cache:
    """Return the cache of a folder, after what was interrupted is put right; a new one if there is none.

    Only one rank may call it. Raises UserError if the cache is of other settings or other videos.
    """
    folder = Path(cfg.cache_folder)
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"cache_folder {folder} holds other files; name a new folder, or that of a cache")
        cache = Cache(folder, settings, index.classes, len(index.records))
        cache.save()
        return cache
    cache = read_cache(folder)
    cache.check(settings)
    paths = [relative(record.path, cfg.data_folder) for record in index.records]
    if cache.total != len(paths) or any(paths[number] != entry.path for number, entry in cache.entries.items()):
        raise UserError(
            f"the cache {folder} is of other videos than data_folder {cfg.data_folder}; "
            "correct the option, or make another cache"
        )
    for leftover in folder.glob(LEFTOVERS):
        leftover.unlink()
    for number, entry in list(cache.entries.items()):
        if entry.file and not (folder / entry.file).exists():
            del cache.entries[number]
    cache.save()
    return cache


def make_cache(cfg: CacheConfig) -> int:
    """Make or complete a cache and return how many videos failed; raises UserError for whatever does not fit."""
    here = device.current()
    if not cfg.vae_checkpoint:
        raise UserError("vae_checkpoint is not set; name the autoencoder in the YAML or with --vae_checkpoint")
    index = list_records(cfg)
    vae = load_vae(cfg.vae_checkpoint)
    size = cfg.image_size or DEFAULT_SIZE
    side = size // vae.config.downsampling
    weights = {name: weight.asnumpy() for name, weight in vae.parameters_and_names()}
    settings = settings_of(cfg, size, (2 * vae.config.latent_channels, side, side), weights)
    settings |= {
        "cache_file_type": cfg.cache_file_type,
        "cache_dtype": cfg.cache_dtype or DEFAULT_DTYPE,
        "flip": cfg.flip,
    }
    if here.rank == 0:
        open_or_create(cfg, index, settings)
    _wait(here.world_size)
    cache = read_cache(cfg.cache_folder)
    maker = CacheMaker(cfg, index, cache, Codec(vae, cfg.sd_scale_factor, cfg.vae_slice))
    if here.rank == 0:
        print(f"Start Video Index: {maker.todo[0] if maker.todo else len(index.records)}.", flush=True)
    maker.run(Queue(here.world_size > 1))
    _wait(here.world_size)
    if here.rank == 0:
        cache = read_cache(cfg.cache_folder)
        cache.save()
        failed = sum(bool(entry.error) for entry in cache.entries.values())
        print(f"Saving Attempts: 1: save {len(cache.entries) - failed} videos, failed {failed} videos.")
    return sum(bool(entry.error) for entry in cache.entries.values())


def _wait(world_size: int) -> None:
    """Wait for the other ranks."""
    if world_size > 1:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()
