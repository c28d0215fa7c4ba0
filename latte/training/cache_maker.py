"""What tools/embedding_cache.py does between options and files: moments of every video, on one rank or many."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import queue
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from latte.components.codec import Codec
from latte.components.loading import load
from latte.data.cache import DTYPES, MANIFEST, TEXT, Cache, Entry, file_hash, read_cache
from latte.data.dataset import PixelStore
from latte.data.demo import draw_if_missing
from latte.data.index import Index, list_records
from latte.data.loader import read_text
from latte.data.records import write_records
from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.runtime import device, ranks
from latte.training.captions import store_captions
from latte.training.run_folder import LOCK, lock
from latte.training.start import read_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latte.config import CacheConfig

log = logging.getLogger("latte")
AHEAD = 4  # slices of frames that are decoded before they are needed
MAX_FILES = 1000  # of MindRecord; MindSpore takes 4096 at most
DEFAULT_SIZE, DEFAULT_DTYPE = 256, "fp16"
WORK = ".moments-"  # how the names of files begin that are not to stay


class VideoError(UserError):
    """A video of the data set cannot be read; the others can."""


class Clock:
    """How many frames were encoded after the first slice, which compiles, and how long that took."""

    def __init__(self) -> None:
        self.first: float | None = None  # seconds of the first slice
        self.frames, self.inside, self.seconds = 0, 0.0, 0.0

    @contextlib.contextmanager
    def encoding(self, frames: int) -> Iterator[None]:
        """Time the encoding of a slice."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        if self.first is None:
            self.first, self._started = end - start, end
        else:
            self.frames, self.inside = self.frames + frames, self.inside + end - start
        self.stop()

    def stop(self) -> None:
        """Take the time until now."""
        if self.first is not None:
            self.seconds = time.perf_counter() - self._started

    @property
    def frames_per_second(self) -> float:
        """Frames encoded a second, all in all."""
        return self.frames / self.seconds if self.frames else 0.0

    @property
    def outside(self) -> float:
        """The part of the time that was spent outside the autoencoder."""
        return 1 - self.inside / self.seconds if self.frames else 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """What making a cache came to: how many videos failed, and how fast this rank was."""

    failed: int
    clock: Clock


class CacheMaker:
    """Encodes what is missing in a cache; a group of videos, those of one file, is the work that ranks share."""

    def __init__(self, cfg: CacheConfig, index: Index, cache: Cache, codec: Codec):
        self.cfg, self.index, self.cache, self.codec = cfg, index, cache, codec
        self.store = PixelStore(cache.settings["image_size"], cfg.transform)
        count = len(index.records)
        size = math.ceil(count / MAX_FILES) if cache.has_records else 1
        groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
        self.todo = [group for group in groups if group[-1] >= cfg.resume_cache_index and any(map(self._lacks, group))]
        self.clock = Clock()

    def run(self, tickets: ranks.WorkCounter) -> None:
        """Encode the videos that this rank gets; raises UserError if the disk is full."""
        rank, decoded = device.current().rank, ahead(self._decoded(tickets))
        begun = list(itertools.accumulate(map(len, self.todo)))  # videos up to a place, of all ranks
        with tqdm(total=(begun or [0])[-1], desc="encoding", unit="video", disable=rank > 0) as bar:
            for place in decoded:
                group = self.todo[place]
                for entry in self._encoded(group, decoded):
                    self.cache.note(entry, rank)
                bar.update(begun[place] - bar.n)
                bar.set_postfix_str(f"{self.clock.frames_per_second:.1f} frames/s", refresh=False)
        self.clock.stop()

    def _lacks(self, number: int) -> bool:
        return number not in self.cache.entries or bool(self.cache.entries[number].error)

    def _encoded(self, group: range, decoded: Iterator) -> Iterator[Entry]:
        """Write the file of a group whose videos come next, and yield what is in it."""
        folder, whole = self.cache.folder, []
        for number in group:
            record = self.index.records[number]
            entry = Entry(number, relative(record.path, self.cfg.data_folder), record.label, record.caption)
            file = folder / f"{WORK if self.cache.has_records else ''}{number:08d}.npy"
            try:
                frames = self._write(file, decoded)
            except VideoError as error:
                log.warning("failed: %s", error)
                yield dataclasses.replace(entry, error=str(error))
            else:
                whole.append((dataclasses.replace(entry, frames=frames), file))
        if self.cache.has_records and whole:
            target = folder / f"{group[0]:08d}.mindrecord"
            try:
                write_records(target, [np.load(file, mmap_mode="r") for _, file in whole])
            finally:
                for _, file in whole:
                    file.unlink()
            whole = [(entry, target) for entry, _ in whole]
        for entry, file in whole:
            yield dataclasses.replace(entry, file=file.name, sha256=file_hash(file))

    def _write(self, file: Path, decoded: Iterator) -> int:
        """Write the moments of the video that comes next and return its number of frames."""
        length = _checked(next(decoded))
        variants, frame_shape, dtype = 1 + self.cfg.flip, self.cache.frame_shape, self.cache.dtype
        header = {"descr": dtype.str, "fortran_order": False, "shape": (variants, length, *frame_shape)}
        with atomic_path(file) as temporary, open(temporary, "wb") as out:  # no memory map: a full disk would kill it
            np.lib.format.write_array_header_2_0(out, header)
            begin, size = out.tell(), math.prod(frame_shape) * dtype.itemsize
            done = 0
            while done < length:
                pixels = _checked(next(decoded))
                for variant in range(variants):
                    out.seek(begin + (variant * length + done) * size)
                    out.write(self._moments(pixels[..., ::-1] if variant else pixels).tobytes())
                done += len(pixels)
        return length

    def _moments(self, pixels: np.ndarray) -> np.ndarray:
        missing = self.codec.frames_per_slice - len(
            pixels
        )  # at the end of a video; another size would be compiled anew
        with self.clock.encoding(len(pixels)):
            moments = self.codec.moments(np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0))))
        return moments[: len(pixels)].astype(self.cache.dtype)

    def _decoded(self, tickets: ranks.WorkCounter) -> Iterator[int | np.ndarray | VideoError]:
        """Yield the place of a group in `todo`, and for each of its videos the length and the frames, slice by slice.

        In place of what cannot be read comes an error, and then the next video.
        """
        size = self.codec.frames_per_slice
        while (place := tickets.take()) < len(self.todo):
            yield place
            for number in self.todo[place]:
                try:
                    clip = self.store.open(self.index.records[number])
                    yield clip.length
                    for start in range(0, clip.length, size):
                        yield clip.read(np.arange(start, min(start + size, clip.length)), False)
                except UserError as error:
                    yield VideoError(str(error))


def _checked(item: int | np.ndarray | VideoError) -> int | np.ndarray:
    if isinstance(item, VideoError):
        raise item
    return item


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


def open_or_create(cfg: CacheConfig, index: Index, settings: dict[str, Any]) -> None:
    """Make a new cache without videos, or put right what was interrupted in one that is there.

    Only one rank may call it. Raises UserError if the cache is of other settings or other videos.
    """
    folder = Path(cfg.cache_folder)
    if not (folder / MANIFEST).exists():
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"cache_folder {folder} holds other files; name a new folder, or that of a cache")
        Cache(folder, settings, index.classes, len(index.records)).save()
        return
    cache = read_cache(folder)
    cache.check(settings)
    paths = [relative(record.path, cfg.data_folder) for record in index.records]
    if cache.total != len(paths) or any(paths[number] != entry.path for number, entry in cache.entries.items()):
        raise UserError(
            f"the cache {folder} is of other videos than data_folder {cfg.data_folder}; "
            "correct the option, or make another cache"
        )
    for leftover in folder.glob(".*"):  # of a process that was killed
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != LOCK:
            leftover.unlink()
    cache.entries = {
        number: entry
        for number, entry in cache.entries.items()
        if not entry.file or (folder / entry.file).exists()  # those that were removed are made again
    }
    cache.save()


def make_cache(cfg: CacheConfig) -> Report:
    """Make or complete a cache; raises UserError for whatever does not fit."""
    rank, world_size = device.current().rank, device.current().world_size
    start = read_start(cfg)
    cfg = start.cfg
    if rank == 0:
        draw_if_missing(cfg)
    ranks.wait_for_all(world_size)
    index = list_records(cfg)
    codec = Codec(load(start.vae), cfg.sd_scale_factor, cfg.vae_slice)
    settings = codec.cache_settings(cfg.image_size or DEFAULT_SIZE) | {"cache_dtype": cfg.cache_dtype or DEFAULT_DTYPE}
    settings |= {name: getattr(cfg, name) for name in ("cache_file_type", "transform", "flip")}
    if rank == 0:
        Path(cfg.cache_folder).mkdir(parents=True, exist_ok=True)
        held = lock(Path(cfg.cache_folder))
        open_or_create(cfg, index, settings)
        if start.config and start.config.conditioning == "prompt":
            captions, width = [record.caption for record in index.records], start.config.text_width
            store_captions(cfg, captions, width, DTYPES[settings["cache_dtype"]])
        elif cfg.condition == "text":
            store_text(cfg, index)
    ranks.wait_for_all(world_size)
    maker = CacheMaker(cfg, index, read_cache(cfg.cache_folder), codec)
    if rank == 0:
        _say(f"Start Video Index: {maker.todo[0][0] if maker.todo else len(index.records)}.")
    maker.run(ranks.WorkCounter(world_size))
    ranks.wait_for_all(world_size)
    cache = read_cache(cfg.cache_folder)
    failed = [entry for entry in cache.entries.values() if entry.error]
    ranks.wait_for_all(world_size)
    if rank == 0:
        cache.save()
        held.close()
        for entry in failed:
            _say(f"failed: {entry.error}")
        done = len(cache.entries) - len(failed)
        _say(f"Saving Attempts: 1: save {done} videos, failed {len(failed)} videos.")
    clock = maker.clock
    log.info(
        "%d frames, %.1f a second, %.1f %% of the time outside the autoencoder",
        clock.frames,
        clock.frames_per_second,
        100 * clock.outside,
    )
    return Report(len(failed), clock)


def store_text(cfg: CacheConfig, index: Index) -> None:
    """Copy the embeddings of all captions into the cache; raises UserError if some are missing."""
    if not cfg.text_embeddings:
        raise UserError("condition is text, but text_embeddings is not set; see docs/train.md")
    captions = sorted({record.caption for record in index.records})
    text, places, null = read_text(cfg.text_embeddings, captions)
    with atomic_path(Path(cfg.cache_folder) / TEXT) as temporary:
        np.savez(temporary, captions=np.array(captions), text=text[places], null=null)


def verify_cache(folder: str) -> None:
    """Compare every file of a cache with its checksum; raises UserError if one differs or is missing."""
    cache, bad = read_cache(folder), []
    hashes = {entry.file: entry.sha256 for entry in cache.entries.values() if entry.file}
    for file, expected in tqdm(hashes.items(), desc="verifying", unit="file"):
        if not (cache.folder / file).exists() or file_hash(cache.folder / file) != expected:
            bad.append(file)
    failed = sum(bool(entry.error) for entry in cache.entries.values())
    missing = cache.total - len(cache.entries)
    if bad:
        raise UserError(
            f"{len(bad)} of {len(hashes)} files of {folder} are damaged or missing: {', '.join(bad[:8])}; "
            "delete them and make the cache again: only they will be made"
        )
    _say(f"{folder}: {len(hashes)} files are whole; {failed} videos failed, {missing} are missing")


def _say(line: str) -> None:
    """Print a line of the command's result to the standard output; programs read these lines."""
    print(line, flush=True)  # noqa: T201, it is a result, not a message for the log
