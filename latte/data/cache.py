"""A cache of latents: a file with the moments of every frame of a video, and a manifest of what they were made with.

`manifest.json` says how the cache was made and lists the videos. While it is being made, each rank adds a line for each
video to a journal of its own, so after an interruption the finished part can be read and the rest be made later.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.data.index import Index, Record
from latte.data.records import RecordClip, segment_frames
from latte.errors import UserError
from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("latte")
FORMAT = "latte-cache-1"
DTYPES = {"fp16": np.float16, "fp32": np.float32}
MANIFEST, JOURNALS = "manifest.json", "journal-*.jsonl"
TEXT = "text_embeddings.npz"
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
        for path in self.folder.glob(JOURNALS):
            path.unlink()

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
            has = self.settings[name]
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
        if entry.error:
            raise UserError(entry.error)
        if self.has_records:
            return RecordClip(entry.frames, row, self.segment)
        path = self.folder / entry.file
        if self.settings["cache_file_type"] == OLD:
            return OldClip(path, self.settings["sd_scale_factor"])
        return CachedClip(path)

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
        """The files that are there, in order."""
        return [self.folder / name for name in sorted({entry.file for entry in self.entries.values() if entry.file})]

    @functools.cached_property
    def _places(self) -> dict[Path, tuple[Entry, int]]:
        """The entries, and the first of their rows, by their paths in the data set."""
        places, row = {}, 0
        for index in sorted(self.entries):
            entry = self.entries[index]
            places[Path(entry.path)] = entry, row
            row += self._rows_of(entry)
        return places

    @functools.cached_property
    def rows(self) -> int:
        """The number of rows of all files."""
        return sum(map(self._rows_of, self.entries.values()))

    def _rows_of(self, entry: Entry) -> int:
        return math.ceil(entry.frames / self.segment) * (1 + self.settings["flip"])


def read_cache(folder: str | Path) -> Cache:
    """Return what a cache holds by its manifest and journals; raises UserError if there is none or it is damaged."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        return _read_old(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} is of the format {content['format']!r}, but {FORMAT!r} is what can be read")
        cache = Cache(folder, content["settings"], content["classes"], content["total"])
        videos = content["videos"]
        for journal in sorted(folder.glob(JOURNALS)):
            lines = journal.read_text(encoding="utf-8").split("\n")[:-1]  # the last one is empty, or was cut off
            videos += [json.loads(line) for line in lines]
        cache.entries = {video["index"]: Entry(**video) for video in videos}
    except OSError as error:
        raise UserError(f"cannot read the cache {folder}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} or a journal beside it is damaged: {error}; make the cache again") from error
    return cache


def _read_old(folder: Path) -> Cache:
    """Return a cache of the tutorial: one folder per video, one file per frame, and no record of how they were made."""
    clips = sorted({path.parent for path in folder.glob(f"**/{OLD_NAME}*.npy")})
    if not clips:
        raise UserError(f"cache_folder {folder} holds no cache; make one with tools/embedding_cache.py")
    counts = [len(list(clip.glob(f"{OLD_NAME}*.npy"))) for clip in clips]
    names = [clip.relative_to(folder).as_posix() for clip in clips]
    entries = [Entry(i, name, 0, "", count, name) for i, (name, count) in enumerate(zip(names, counts, strict=True))]
    channels, *sides = _load(next(clips[0].glob(f"{OLD_NAME}*.npy"))).shape
    settings = dict.fromkeys(("vae_checkpoint", "image_size", "transform", "sd_scale_factor"))
    settings |= {"cache_file_type": OLD, "cache_dtype": "fp32", "flip": False, "frame_shape": [2 * channels, *sides]}
    return Cache(folder, settings, [], len(entries), {entry.index: entry for entry in entries})


def _load(path: Path) -> np.ndarray:
    """Return the array of a file without reading it all; raises UserError if it is missing or broken."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the cached video {path}; it is missing or broken") from error


class CachedClip:
    """Moments of a video in a file (variants, frames, 2 L, h, w), of which only what is asked for is read."""

    def __init__(self, path: Path):
        self._moments = _load(path)
        self.length = self._moments.shape[1]

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the moments of some frames as float32 (n, 2 L, h, w), those of the mirrored video if `flip`."""
        return self._moments[int(flip), indices].astype(np.float32)


class OldClip:
    """A folder with a sample of the posterior of each frame, scaled: taken for a posterior without variance."""

    def __init__(self, folder: Path, scale_factor: float):
        self._files = sorted(folder.glob(f"{OLD_NAME}*.npy"), key=lambda path: int(path.stem.rpartition("-")[2]))
        self.length, self._scale_factor = len(self._files), scale_factor

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return moments of some frames as float32 (n, 2 L, h, w); they are never mirrored."""
        mean = np.stack([_load(self._files[index]) for index in indices]).astype(np.float32) / self._scale_factor
        return np.concatenate((mean, np.full_like(mean, OLD_LOGVAR)), axis=1)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file and of MindRecord's index beside it; raises UserError if they cannot be read."""
    digest, index = hashlib.sha256(), path.with_name(f"{path.name}.db")
    try:
        for part in (path, index) if path.suffix == ".mindrecord" else (path,):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
