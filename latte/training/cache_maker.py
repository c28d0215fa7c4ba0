"""The work of tools/embedding_cache.py: encode every video into moments, on one or several ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import queue
import re
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from latte.components.codec import Codec
from latte.components.loading import load
from latte.data.cache import DTYPES, MANIFEST, Cache, Entry, file_hash, file_parts, read_cache
from latte.data.check import check_files
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.demo import draw_if_missing, draws
from latte.data.index import Index, Record, list_records
from latte.data.records import checksums, structure_hash, write_records
from latte.errors import UserError
from latte.inference.inputs import DEFAULT_SIZE
from latte.io.atomic import atomic_path
from latte.io.video_file import READER
from latte.runtime import device, ranks
from latte.training import reconstruction
from latte.training.captions import store_captions, store_clip_captions
from latte.training.run_folder import lock
from latte.training.start import read_start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latte.config import CacheConfig

log = logging.getLogger("latte")
AHEAD = 4  # slices of frames to decode in advance
MAX_FILES = 1000  # MindRecord files per cache; MindSpore takes at most 4096
DEFAULT_DTYPE = "fp16"
WORK = ".moments-"  # prefix of temporary files
# Hidden names that a killed process leaves, of `_write` and `write_records`, or of an older version.
_LEFTOVER = re.compile(r"\.(\d{8,}|(\.?moments-)?\d{8,}(-\w{8})?\.npy|(manifest|text_embeddings)-\w{8}\.(json|npz))")


class VideoError(UserError):
    """One video of the data set cannot be read; the others are still cached."""


class Clock:
    """Counts the encoded frames, and times those after the first slice, whose encoding includes the compilation."""

    def __init__(self) -> None:
        self.encoded = 0  # frames, those of the first slice included
        self.first: float | None = None  # seconds for the first slice
        self.frames, self.inside, self.seconds = 0, 0.0, 0.0

    @contextlib.contextmanager
    def encoding(self, frames: int) -> Iterator[None]:
        """Time the encoding of a slice."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        self.encoded += frames
        if self.first is None:
            self.first, self._started = end - start, end
        else:
            self.frames, self.inside = self.frames + frames, self.inside + end - start
        self.stop()

    def stop(self) -> None:
        """End the measured time now."""
        if self.first is not None:
            self.seconds = time.perf_counter() - self._started

    @property
    def frames_per_second(self) -> float:
        """Frames per second, with decoding and writing."""
        return self.frames / self.seconds if self.frames else 0.0

    @property
    def outside(self) -> float:
        """The fraction of the time, 0 to 1, that was spent outside the autoencoder."""
        return 1 - self.inside / self.seconds if self.frames else 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of making a cache: the number of videos that failed, and the speed of this rank."""

    failed: int
    clock: Clock


class CacheMaker:
    """Encodes the videos that a cache lacks; ranks share the work in groups, each the videos of one file."""

    def __init__(self, cfg: CacheConfig, index: Index, cache: Cache, codec: Codec):
        self.cfg, self.index, self.cache, self.codec = cfg, index, cache, codec
        self.store = PixelStore(cache.settings["image_size"], cfg.transform)
        count = len(index.records)
        size = math.ceil(count / MAX_FILES) if cache.has_records else 1
        groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
        self.todo = [group for group in groups if group[-1] >= cfg.resume_cache_index and any(map(self._lacks, group))]
        self.clock = Clock()

    def run(self, tickets: ranks.WorkCounter) -> None:
        """Encode the groups that this rank takes from `tickets`; raises UserError if the disk is full."""
        rank, decoded = device.current().rank, ahead(self._decoded(tickets))
        begun = list(itertools.accumulate(map(len, self.todo)))  # videos before each group, on all ranks
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
        """Write the file of a group, whose videos come next in `decoded`, and yield its entries."""
        folder, whole = self.cache.folder, []
        for number in group:
            record = self.index.records[number]
            entry = Entry(number, relative(record.path, self.cfg.data_folder), record.label, record.caption)
            file = folder / f"{WORK if self.cache.has_records else ''}{number:08d}.npy"
            try:
                frames = self._write(file, record, decoded)
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
                    file.unlink(missing_ok=True)
            structure = structure_hash(target)
            whole = [(dataclasses.replace(entry, structure=structure), target) for entry, _ in whole]
        for entry, file in whole:
            yield dataclasses.replace(entry, file=file.name, sha256=file_hash(file))

    def _write(self, file: Path, record: Record, decoded: Iterator) -> int:
        """Write the moments of the next video, then their checksums, and return its number of frames.

        Raises VideoError if the video is broken, or its moments are not finite numbers in the type of the cache.
        """
        length = _checked(next(decoded))
        variants, frame_shape, dtype = 1 + self.cfg.flip, self.cache.frame_shape, self.cache.dtype
        header = {"descr": dtype.str, "fortran_order": False, "shape": (variants, length, *frame_shape)}
        # Not a memory map: a full disk would kill the process.
        with atomic_path(file) as temporary, temporary.open("wb") as out:
            np.lib.format.write_array_header_2_0(out, header)
            begin, size = out.tell(), math.prod(frame_shape) * dtype.itemsize
            sums = np.zeros((variants, length), "<u4")
            done = 0
            while done < length:
                pixels = _checked(next(decoded))
                for variant in range(variants):
                    moments = self._moments(pixels[..., ::-1] if variant else pixels)
                    if not np.isfinite(moments).all():
                        raise VideoError(
                            f"{record.path} has latents that are not finite as {dtype.name}; try cache_dtype fp32, and "
                            "check the autoencoder"
                        )
                    out.seek(begin + (variant * length + done) * size)
                    out.write(moments.tobytes())
                    sums[variant, done : done + len(pixels)] = checksums(moments)
                done += len(pixels)
            out.seek(begin + variants * length * size)
            out.write(sums.tobytes())
        return length

    def _moments(self, pixels: np.ndarray) -> np.ndarray:
        missing = self.codec.frames_per_slice - len(pixels)  # padding, because another size would be compiled anew
        with self.clock.encoding(len(pixels)):
            moments = self.codec.moments(np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0))))
        with np.errstate(over="ignore"):  # looked at when they are written
            return moments[: len(pixels)].astype(self.cache.dtype)

    def _decoded(self, tickets: ranks.WorkCounter) -> Iterator[int | np.ndarray | VideoError]:
        """Yield the index of a group in `todo`, then for each of its videos the length and the frames in slices.

        If a video cannot be read, an error follows and then the next video.
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


def _checked(item: Any) -> Any:
    """Return a length or frames; raises VideoError if the item is one."""
    if isinstance(item, VideoError):
        raise item
    return item


def ahead(items: Iterator, count: int = AHEAD) -> Iterator:
    """Yield the items of an iterator, while a thread makes up to `count` of them in advance."""
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


def relative(path: Path, folder: str | None) -> str:
    """Return a path relative to a folder if it lies below it, else the whole path."""
    return path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else str(path)


def open_or_create(cfg: CacheConfig, index: Index, settings: dict[str, Any]) -> None:
    """Make an empty cache, or repair an interrupted one.

    Only one rank may call this function. Raises UserError if the folder holds other files, or a cache of other videos
    or settings.
    """
    folder = cfg.cache_path
    remove_leftovers(folder)
    if not (folder / MANIFEST).exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UserError(f"cache_folder {folder} holds other files; name a new folder, or that of a cache")
        Cache(folder, settings | {"reader": READER}, index.classes, len(index.records)).save()
        return
    cache = read_cache(folder)
    if doubt := cache.reader_doubt():  # one cache, one reader
        raise UserError(doubt)
    cache.check(settings)
    cache.settings["reader"] = READER
    paths = [relative(record.path, cfg.data_folder) for record in index.records]
    if cache.total != len(paths) or any(paths[number] != entry.path for number, entry in cache.entries.items()):
        raise UserError(
            f"the cache {folder} is of other videos than data_folder {cfg.data_folder}; "
            "correct the option, or make another cache"
        )
    cache.entries = {
        number: entry
        for number, entry in cache.entries.items()
        if not entry.file or all(path.exists() for path in file_parts(folder / entry.file))  # else it is made again
    }
    cache.save()


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden files and folders of a process that was killed; raises UserError if one cannot be removed.

    What others hide in the folder, such as .git or .dvc, stays.
    """
    try:
        for path in [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise UserError(f"cannot remove what an interrupted run left in {folder}: {error.strerror}") from error


def make_cache(cfg: CacheConfig) -> Report:
    """Make or complete a cache and print how many videos it has; raises UserError if options or data do not fit."""
    rank, world_size = device.current().rank, device.current().world_size
    start = read_start(cfg)
    cfg = start.cfg
    if cfg.dry_run:
        if rank == 0:
            _dry_run(cfg, Codec(load(start.vae), cfg.sd_scale_factor, cfg.vae_slice, dtype=cfg.vae_dtype))
        return Report(0, Clock())
    if rank == 0:
        draw_if_missing(cfg)
    ranks.wait_for_all(world_size)
    index = list_records(cfg)
    codec = Codec(load(start.vae), cfg.sd_scale_factor, cfg.vae_slice, dtype=cfg.vae_dtype)
    settings = codec.cache_settings(cfg.image_size or DEFAULT_SIZE) | {"cache_dtype": cfg.cache_dtype or DEFAULT_DTYPE}
    settings |= {name: getattr(cfg, name) for name in ("cache_file_type", "transform", "flip")}
    if rank == 0:
        try:
            cfg.cache_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make cache_folder {cfg.cache_path}: {error.strerror}; name another one") from error
        held = lock(cfg.cache_path)
        open_or_create(cfg, index, settings)
        if start.config and start.config.conditioning == "prompt":
            captions, width = [record.caption for record in index.records], start.config.text_width
            store_captions(cfg, captions, width, DTYPES[settings["cache_dtype"]])
        elif cfg.condition == "text":
            captions = [record.caption for record in index.records]
            store_clip_captions(cfg, captions, DTYPES[settings["cache_dtype"]])
    ranks.wait_for_all(world_size)
    maker = CacheMaker(cfg, index, read_cache(cfg.cache_path), codec)
    if rank == 0:
        _say(f"data: {_described(cfg, index, codec)}")
        _report(cfg, index, codec)
        _say(f"Start Video Index: {maker.todo[0][0] if maker.todo else len(index.records)}.")
    maker.run(ranks.WorkCounter(world_size))
    ranks.wait_for_all(world_size)
    cache = read_cache(cfg.cache_path)
    failed = [entry for entry in cache.entries.values() if entry.error]
    ranks.wait_for_all(world_size)
    if rank == 0:
        cache.save()
        held.release()
        for entry in failed:
            _say(f"failed: {entry.error}")
        done = len(cache.entries) - len(failed)
        _say(f"Saving Attempts: 1: save {done} videos, failed {len(failed)} videos.")
    clock = maker.clock
    log.info(
        "%d frames encoded, %.1f per second, %.1f %% of the time outside the autoencoder",
        clock.encoded,
        clock.frames_per_second,
        100 * clock.outside,
    )
    if rank == 0 and done:
        log.info(
            "the latents of %d videos are in %s; train from them with train.py, the same options and --cache_folder %s",
            done,
            cfg.cache_path,
            cfg.cache_path,
        )
    return Report(len(failed), clock)


def _dry_run(cfg: CacheConfig, codec: Codec) -> None:
    """Look for every video, open some, and say what would be written; nothing is encoded or written."""
    if draws(cfg):
        _say(f"would draw {cfg.demo_clips} clips of each class into {cfg.data_folder} first")
        return
    size, frames = cfg.image_size or DEFAULT_SIZE, cfg.num_frames or 1
    index = list_records(cfg)
    dataset = VideoDataset(index, frames, PixelStore(size, cfg.transform), cfg, cfg.seed)
    check_files(dataset, 1.0, f"data_folder {cfg.data_folder}")  # the cache tells of broken videos and goes on
    _say(f"would write {_described(cfg, index, codec)}")


def _described(cfg: CacheConfig, index: Index, codec: Codec) -> str:
    dtype = cfg.cache_dtype or DEFAULT_DTYPE
    shape = codec.cache_settings(cfg.image_size or DEFAULT_SIZE)["frame_shape"]
    each = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize * (2 if cfg.flip else 1)
    return (
        f"moments {'x'.join(map(str, shape))} of {len(index.records)} videos as {cfg.cache_file_type} in "
        f"{dtype} to {cfg.cache_path}: {each / 1e3:.1f} kB per frame"
    )


def _report(cfg: CacheConfig, index: Index, codec: Codec) -> None:
    """Write what the autoencoder loses of the first videos to vae.png of a cache that is new; skip broken videos."""
    if not cfg.vae_check or (cfg.cache_path / reconstruction.FILE).exists():
        return
    store, frames = PixelStore(cfg.image_size or DEFAULT_SIZE, cfg.transform), []
    for record in index.records[: reconstruction.SHOWN]:
        with contextlib.suppress(UserError):  # the cache tells it
            frames.append(store.open(record).read(np.zeros(1, int), False)[0])
    if frames:
        reconstruction.report(codec, frames, cfg.cache_path, cfg.vae_checkpoint)


def verify_cache(folder: str | Path) -> None:
    """Compare every file of a cache with its checksum and print the result; raises UserError if a file is damaged."""
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
