"""A cache of latents: a file with the moments of every frame of a video, and a manifest of what they were made with.

`manifest.json` says how the cache was made and lists the videos. While it is being made, each rank adds a line for each
video to a journal of its own, so after an interruption the finished part can be read and the rest be made later.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from latte.data.index import Index, Record
from latte.data.manifest import DTYPES, FORMAT, REMAKE, read_journal_line, read_manifest
from latte.data.records import REMEDY, RecordClip, check_frames, read_rows, segment_frames, structure_hash
from latte.errors import UserError, reason
from latte.io.arrays import Header, read_header, read_npy
from latte.io.atomic import atomic_path
from latte.io.checksums import sha256_of
from latte.io.json_files import read_bytes
from latte.io.listing import VIDEO_SUFFIXES
from latte.io.video_file import READER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger("latte")
MANIFEST, JOURNALS = "manifest.json", "journal-*.jsonl"
TEXT = "text_embeddings.npz"
MAX_MANIFEST = 2**30  # bytes, of some million videos
OLD, OLD_NAME = "frames", "video_latent-"  # of the tutorial's caches, one file per frame
OLD_LOGVAR = -30.0  # of a posterior whose samples are its mean


@dataclasses.dataclass(frozen=True)
class Entry:
    """A video of a cache, or why it is not in it."""

    index: int  # its number in the data set
    path: str  # in the data set
    label: int
    caption: str
    frames: int = 0
    file: str = ""  # in the cache
    sha256: str = ""  # of that file
    error: str = ""
    structure: str = ""  # SHA-256 of what MindSpore takes apart in it


@dataclasses.dataclass
class Cache:
    """The manifest of a cache; `settings` are what every video of it was made with, by the names of the options."""

    folder: Path
    settings: dict[str, Any]
    classes: list[str]
    total: int  # videos of the data set
    entries: dict[int, Entry] = dataclasses.field(default_factory=dict)

    def save(self) -> None:
        """Write the manifest and remove the journals, which it now includes; raises UserError if it cannot."""
        content = {
            "format": FORMAT,
            "settings": self.settings,
            "classes": self.classes,
            "total": self.total,
            "videos": [dataclasses.asdict(self.entries[index]) for index in sorted(self.entries)],
        }
        with atomic_path(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        try:
            for path in self.folder.glob(JOURNALS):
                path.unlink()
        except OSError as error:
            raise UserError(f"cannot remove {path}, which the manifest now includes: {error.strerror}") from error

    def note(self, entry: Entry, rank: int) -> None:
        """Add a video to the journal of a rank; raises UserError if the disk is full."""
        self.entries[entry.index] = entry
        path = self.folder / f"journal-{rank:04d}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(entry)) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raise UserError if the cache was made with other settings than these; None means any."""
        for name, value in wanted.items():
            has = self.settings.get(name)
            if has is None:  # an old cache does not tell
                self.settings[name] = value
            if value is None or has is None or has == value:
                continue
            made, asked = f"{name} {json.dumps(has)}", f"{name} {json.dumps(value)}"
            if name == "vae_checkpoint":
                made, asked = "the weights of another autoencoder", "those of this vae_checkpoint"
            raise UserError(
                f"the cache {self.folder} was made with {made}, but the options ask for {asked}; "
                "correct the option, or make another cache"
            )

    def reader_doubt(self) -> str:
        """Return what is in doubt if video files were decoded by another reader than today's, else ""."""
        files = [entry.path for entry in self.entries.values() if entry.path.lower().endswith(VIDEO_SUFFIXES)]
        if not files or self.settings.get("reader") == READER:
            return ""
        return (
            f"the cache {self.folder} was made by another reader of video files, which may have taken other frames of "
            f"{files[0]} and such files; make it again in a new folder with tools/embedding_cache.py"
        )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of the moments of a frame (2 L, h, w)."""
        return tuple(self.settings["frame_shape"])

    def index(self) -> Index:
        """Return the videos as a data set; those that failed are in it too, so that all keep their numbers.

        Raises UserError if there is none.
        """
        entries = [self.entries[index] for index in sorted(self.entries)]
        if not any(entry.file for entry in entries):
            raise UserError(f"the cache {self.folder} holds no videos; make them with tools/embedding_cache.py")
        if len(entries) < self.total:
            missing = self.total - len(entries)
            log.warning("%s is not complete: %d of %d videos are missing", self.folder, missing, self.total)
        return Index([Record(Path(entry.path), entry.label, entry.caption) for entry in entries], self.classes, [])

    def open(self, record: Record) -> CachedClip | RecordClip | OldClip:
        """Return the moments of a video of the index; raises UserError if they are missing or broken."""
        entry, row = self._places[record.path]
        if problem := entry.error or self._damaged.get(entry.file):
            raise UserError(problem)
        if self.has_records:
            return RecordClip(entry.frames, row, self.segment)
        path = self.folder / entry.file
        if self.settings["cache_file_type"] == OLD:
            return OldClip(path, self.settings["sd_scale_factor"], self.frame_shape)
        return CachedClip(path, Header(self.dtype, (1 + self.settings["flip"], entry.frames, *self.frame_shape)))

    def load(self, frames: np.ndarray) -> np.ndarray:
        """Return the moments of what a clip has read: themselves, or those of rows; raises UserError as `moments`."""
        return self.moments(frames, self.rows_of(frames)) if self.has_records else frames

    def rows_of(self, places: np.ndarray) -> dict[int, np.ndarray]:
        """Return the rows of MindRecord that frames are in, given by row and place (n, 2); raises UserError."""
        needed = np.unique(places[:, 0])
        return dict(zip(needed.tolist(), self.read_rows(needed), strict=True))

    def read_rows(self, rows: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """Yield the moments (frames, 2 L, h, w) of rows of MindRecord; raises UserError if they cannot be read."""
        return read_rows(self.files, rows, self.frame_shape, self.dtype)

    def moments(self, places: np.ndarray, rows: Mapping[int, np.ndarray]) -> np.ndarray:
        """Return the moments (n, 2 L, h, w) float32 of frames, given by their rows and places in these (n, 2).

        Raises BrokenVideoError if one is missing, damaged or not finite.
        """
        out = np.full((len(places), *self.frame_shape), np.nan, np.float32)
        for frame, (row, place) in zip(out, places.tolist(), strict=True):
            frame[:] = rows[row][place] if place < len(rows[row]) else np.nan
            if not np.isfinite(frame).all():
                entry = self._videos[bisect.bisect_right(self._first_rows, row) - 1]
                raise BrokenVideoError(
                    f"the cached video {entry.path} in {self.folder / entry.file} is broken: its latents are "
                    f"damaged or not finite numbers; {REMEDY}",
                    Path(entry.path),
                )
        return out

    @property
    def has_records(self) -> bool:
        """Whether clips return rows, for `read_rows`, in place of moments."""
        return self.settings["cache_file_type"] == "mindrecord"

    @property
    def dtype(self) -> np.dtype:
        """The type of the moments in the files."""
        return np.dtype(DTYPES[self.settings["cache_dtype"]])

    @property
    def segment(self) -> int:
        """How many frames a row of MindRecord has."""
        return segment_frames(self.frame_shape, self.dtype)

    @property
    def files(self) -> list[Path]:
        """The files that are there and not damaged, in order."""
        names = {entry.file for entry in self.entries.values() if entry.file and entry.file not in self._damaged}
        return [self.folder / name for name in sorted(names)]

    @functools.cached_property
    def _damaged(self) -> dict[str, str]:
        """Why some files of MindRecord must not be given to MindSpore, by their names; all are looked at, once."""
        damaged = {}
        for entry in {entry.file: entry for entry in self.entries.values() if entry.file}.values():
            if not self.has_records or not entry.sha256:
                continue
            path = self.folder / entry.file
            try:
                if not all(part.is_file() for part in file_parts(path)):
                    raise ValueError("it or its index is missing or no file")
                there = structure_hash(path) if entry.structure else file_hash(path)
                if there != (entry.structure or entry.sha256):
                    damaged[entry.file] = f"{path} is damaged: it differs from its checksum; {REMEDY}"
            except (ValueError, OSError, UserError) as error:
                damaged[entry.file] = f"{path} is missing or damaged: {error}; {REMEDY}"
        return damaged

    @functools.cached_property
    def _videos(self) -> list[Entry]:
        """The videos with rows, in order."""
        entries = (self.entries[index] for index in sorted(self.entries))
        return [entry for entry in entries if entry.file and entry.file not in self._damaged]

    @functools.cached_property
    def _first_rows(self) -> list[int]:
        """The first row of each of these videos."""
        return [0, *itertools.accumulate(map(self._rows_of, self._videos))][:-1]

    @functools.cached_property
    def _places(self) -> dict[Path, tuple[Entry, int]]:
        """The entries, and the first of their rows, by their paths in the data set."""
        rows = dict(zip((entry.index for entry in self._videos), self._first_rows, strict=True))
        return {Path(entry.path): (entry, rows.get(index, 0)) for index, entry in sorted(self.entries.items())}

    @functools.cached_property
    def rows(self) -> int:
        """The number of rows of all files."""
        return sum(map(self._rows_of, self._videos))

    def _rows_of(self, entry: Entry) -> int:
        return math.ceil(entry.frames / self.segment) * (1 + self.settings["flip"])


class BrokenVideoError(UserError):
    """The moments of a video turn out to be damaged when they are read; `path` is the video's in the data set."""

    def __init__(self, message: str, path: Path):
        super().__init__(message)
        self.path = path


def read_cache(folder: str | Path) -> Cache:
    """Return what a cache holds by its manifest and journals; raises UserError if there is none or it is damaged."""
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        if not path.exists():
            return _read_old(folder)
        files = [path, *sorted(folder.glob(JOURNALS))]
        content, *lines_of = [read_bytes(file, MAX_MANIFEST, REMAKE).decode() for file in files]
    except OSError as error:
        raise UserError(f"cannot read the cache {folder}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} or a journal beside it is damaged: it is no text; {REMAKE}") from error
    manifest = read_manifest(content, str(path))
    cache = Cache(folder, manifest["settings"], manifest["classes"], manifest["total"])
    cache.entries = {video["index"]: Entry(**video) for video in manifest["videos"]}
    for journal, text in zip(files[1:], lines_of, strict=True):
        lines = text.split("\n")[:-1]  # the last one is empty, or was cut off
        for number, line in enumerate(lines):
            video = read_journal_line(line, f"{journal}, line {number + 1}", manifest)
            cache.entries[video["index"]] = Entry(**video)
    return cache


def _read_old(folder: Path) -> Cache:
    """Return a cache of the tutorial: one folder per video, one file per frame, and no record of how they were made."""
    clips = sorted({path.parent for path in folder.glob(f"**/{OLD_NAME}*.npy")})
    if not clips:
        raise UserError(f"cache_folder {folder} holds no cache; make one with tools/embedding_cache.py")
    counts = [len(list(clip.glob(f"{OLD_NAME}*.npy"))) for clip in clips]
    names = [clip.relative_to(folder).as_posix() for clip in clips]
    entries = [Entry(i, name, 0, "", count, name) for i, (name, count) in enumerate(zip(names, counts, strict=True))]
    channels, *sides = _old_shape(clips)
    settings = dict.fromkeys(("vae_checkpoint", "image_size", "transform", "sd_scale_factor"))
    settings |= {"cache_file_type": OLD, "cache_dtype": "fp32", "flip": False, "frame_shape": [2 * channels, *sides]}
    return Cache(folder, settings, [], len(entries), {entry.index: entry for entry in entries})


def _old_shape(clips: list[Path]) -> tuple[int, ...]:
    """Return the shape (L, h, w) of the first frame that can be read; raises UserError if there is none."""
    for path in itertools.chain.from_iterable(clip.glob(f"{OLD_NAME}*.npy") for clip in clips):
        with contextlib.suppress(ValueError, OSError):
            if len(shape := read_npy(path).shape) == 3:
                return shape
    raise UserError(f"cannot read any frame of the cache {clips[0].parent}; they are damaged, or no latents (4, h, w)")


class CachedClip:
    """Moments of a video in a file (variants, frames, 2 L, h, w), of which only what is asked for is read.

    After the array come the checksums (variants, frames) of its frames, where the cache is not older than these.
    """

    def __init__(self, path: Path, header: Header):
        self._path, self._header = path, header
        self.length = header.shape[1]

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the moments of some frames as float32 (n, 2 L, h, w), those of the mirrored video if `flip`.

        Raises UserError if the file is missing, of another size or type than the manifest says, or damaged there.
        """
        (variants, length, *frame), dtype = self._header.shape, self._header.dtype
        name, size = f"the cached video {self._path}", math.prod(frame) * dtype.itemsize
        numbers = int(flip) * length + indices
        try:
            if not self._path.is_file():
                raise ValueError("it is missing or no file")
            # Not a memory map: where the file shrinks, or a disk fails, that would end the process.
            with self._path.open("rb", buffering=0) as file:
                there, begin, whole = read_header(file), file.tell(), self._path.stat().st_size
                table = begin + self._header.nbytes
                if there != self._header or whole not in (table, table + 4 * variants * length):
                    raise ValueError(f"it does not have the {length} frames of the manifest, or is cut off")
                frames = np.empty((len(indices), *frame), dtype)
                for place, number in enumerate(numbers.tolist()):
                    _read_at(file, begin + number * size, frames[place])
                expected = None
                if whole > table:
                    first, last = int(numbers.min()), int(numbers.max())
                    _read_at(file, table + 4 * first, sums := np.empty(last - first + 1, "<u4"))
                    expected = sums[numbers - first]
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {name}; it is missing or broken: {reason(error)}; {REMEDY}") from error
        return check_frames(frames, expected, name)


def _read_at(file: IO[bytes], start: int, out: np.ndarray) -> None:
    """Fill an array with the bytes from `start` on; raises ValueError if the file ends before."""
    file.seek(start)
    if file.readinto(out.data) != out.nbytes:  # type: ignore[attr-defined]
        raise ValueError("it is cut off")


class OldClip:
    """A folder with a sample of the posterior of each frame, scaled: taken for a posterior without variance."""

    def __init__(self, folder: Path, scale_factor: float, frame_shape: tuple[int, ...]):
        numbers = {path: path.stem.removeprefix(OLD_NAME) for path in folder.glob(f"{OLD_NAME}*.npy")}
        for path, number in numbers.items():
            if not number.isdecimal():
                raise UserError(f"{path} has no number of a frame after {OLD_NAME}; rename or remove it")
        self._files = sorted(numbers, key=lambda path: int(numbers[path]))
        self.length, self._scale_factor = len(self._files), scale_factor
        self._shape = frame_shape[0] // 2, *frame_shape[1:]

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return moments of some frames as float32 (n, 2 L, h, w); they are never mirrored.

        Raises UserError if one is missing, broken, not finite, or of another shape than the others of the cache.
        """
        mean = np.stack([self._frame(self._files[index]) for index in indices]) / self._scale_factor
        return np.concatenate((mean, np.full_like(mean, OLD_LOGVAR)), axis=1)

    def _frame(self, path: Path) -> np.ndarray:
        try:
            latent = read_npy(path)
            if latent.shape != self._shape or latent.dtype.kind != "f":
                raise ValueError(f"it is {latent.dtype} {latent.shape}, and the cache has {self._shape}")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the cached frame {path}; it is missing or broken: {reason(error)}") from error
        return check_frames(latent, None, f"the cached frame {path}")


def file_parts(path: Path) -> list[Path]:
    """Return a file of a cache and, if it is MindRecord's, the index beside it."""
    return [path, path.with_name(f"{path.name}.db")] if path.suffix == ".mindrecord" else [path]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file and of MindRecord's index beside it; raises UserError if they cannot be read."""
    try:
        return sha256_of(*file_parts(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
