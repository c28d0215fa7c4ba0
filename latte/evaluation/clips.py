"""The clips of an evaluation: which videos of a folder, which of their frames, and what is made of these.

A source has names of videos, and reads the clip of one in two parts: `load` in a thread, `finish` in the main thread,
where the device computes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from latte.data.cache import MANIFEST, Cache, read_cache
from latte.data.clips import open_clip
from latte.data.index import Record
from latte.data.transforms import centre
from latte.errors import UserError, reason
from latte.evaluation import measures
from latte.io.checksums import sha256_of_facts
from latte.io.listing import FRAME_SUFFIXES, GRID, VIDEO_SUFFIXES, walk
from latte.io.video import list_frames, read_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from latte.components.codec import Codec

log = logging.getLogger("latte")
_GRID = re.compile(rf"{GRID}\d+-\d+(-rank\d+)?")


class ShortClipError(UserError):
    """A video has fewer frames than a clip takes."""


class Clip(NamedTuple):
    """Frames (F, size, size, 3) uint8, and the height and width that they had before."""

    frames: np.ndarray
    was: tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """How clips are cut from videos; what features depend on beside the videos and the network."""

    frames: int
    stride: int
    seed: int | None  # of where a clip starts; None: at the first frame
    size: int  # of a frame, in pixels
    jpeg_quality: int  # 0: not compressed

    def places(self, name: str, length: int) -> np.ndarray:
        """Return which of `length` frames a clip has (F,); raises ShortClipError below F * stride frames.

        As in the official code, a video that is just long enough can also start up to stride - 1 frames later.
        """
        if length < self.frames * self.stride:
            raise ShortClipError(f"{name} has {length} frames, fewer than {self.frames * self.stride}")
        span = (self.frames - 1) * self.stride + 1
        start = 0 if self.seed is None else draw(self.seed, "offset", name) % (length - span + 1)
        return start + self.stride * np.arange(self.frames)

    def clip(self, frames: np.ndarray, compress: bool = True) -> Clip:
        """Return frames (F, H, W, 3) uint8 cut to their central square, resized, and compressed if `compress`.

        By torchvision's rounding and Pillow's LANCZOS, as the official converter of videos; frames of the right size
        stay as they are.
        """
        height, width = frames.shape[1:3]
        if (height, width) != (self.size, self.size):
            images = map(Image.fromarray, centre(frames, min(height, width)))
            frames = np.stack(
                [np.asarray(image.resize((self.size,) * 2, Image.Resampling.LANCZOS)) for image in images]
            )
        if compress and self.jpeg_quality:
            frames = np.stack([self._compressed(frame) for frame in frames])
        return Clip(frames, (height, width))

    def _compressed(self, frame: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="JPEG", quality=self.jpeg_quality)
        return np.asarray(Image.open(file, formats=("JPEG",)))


class Source(Protocol):
    """Videos by their names."""

    what: str  # they are, for messages

    @property
    def names(self) -> Sequence[str]:
        """The names, each once."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this source apart from others; values for JSON."""

    def signature(self, name: str) -> str:
        """Return what changes if a video does; raises UserError if it is missing."""

    def load(self, name: str, cut: Cut) -> Any:
        """Return what `finish` makes a clip of; raises UserError if the video is broken, ShortClipError if short."""

    def finish(self, loaded: Any, cut: Cut) -> Clip:
        """Return the clip; raises UserError if the video is broken."""


def draw(seed: int, what: str, name: str) -> int:
    """Return 64 random bits for a name; the same on every machine, whatever other names there are."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}\0{what}\0{name}".encode("utf-8", "surrogatepass")).digest()[:8], "big"
    )


def drawn(names: Iterable[str], seed: int) -> list[str]:
    """Return names in a random order; names that are added later leave the order of the others as it is."""
    return sorted(names, key=lambda name: (draw(seed, "order", name), name))


def flicker(frames: np.ndarray) -> float:
    """Return the mean flicker of neighbouring frames (F, H, W, 3) uint8, two or more, from 0 to 255."""
    return float(np.mean([measures.flicker(a, b) for a, b in itertools.pairwise(frames)]))


class VideoClips:
    """Video files or folders of frames, all that lie below a folder."""

    def __init__(self, root: Path):
        """List the videos; raises UserError if the folder is missing or has none."""
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; name another folder")
        folders, files = _listed(root)
        files, grids = [path for path in files if not _GRID.fullmatch(path.stem)], len(files)
        once = {path.with_suffix(""): path for path in sorted(files, key=_rank_of_suffix, reverse=True)}
        grids -= len(files)
        # An image beside videos is no video, and sample.py may write each video in several formats.
        self.in_folders = len(folders) >= len(once)
        paths, left = (folders, files) if self.in_folders else (sorted(once.values()), folders)
        self.what = "folders of frames" if self.in_folders else "video files"
        if not paths:
            raise UserError(
                f"{root} holds no videos: neither folders of frames ({', '.join(FRAME_SUFFIXES[:4])}, ...) nor video "
                f"files ({', '.join(VIDEO_SUFFIXES[:4])}, ...) nor a latent cache; name another folder"
            )
        if left or grids or len(files) > len(once):
            log.info("%s: %d %s are compared, other images and videos in it are not", root, len(paths), self.what)
        self.root, self.names = root, [path.relative_to(root).as_posix() for path in paths]

    @property
    def identity(self) -> dict[str, Any]:
        """The folder."""
        return {"folder": str(self.root.resolve()), "of": self.what}

    def signature(self, name: str) -> str:
        """Return names, sizes and times of the files of a video; raises UserError if one is missing."""
        path = self.root / name
        try:
            files = list_frames(path) if self.in_folders else [path]
            found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise UserError(f"cannot read {path}: {reason(error)}") from error
        return sha256_of_facts(found)

    def load(self, name: str, cut: Cut) -> Clip:
        """Return the clip of a video; raises UserError if it is broken, ShortClipError if it is short."""
        path = self.root / name
        if self.in_folders:
            files = list_frames(path)
            return cut.clip(read_images([files[k] for k in cut.places(name, len(files))]), compress=False)
        video = open_clip(path)
        return cut.clip(video.read(cut.places(name, video.length)))

    def finish(self, loaded: Clip, cut: Cut) -> Clip:
        """Return the clip as it is."""
        return loaded

    def size(self) -> int:
        """Return the short side of the first video that can be read; raises UserError if there is none."""
        problem: UserError | None = None
        for name in self.names:
            try:
                return min(open_clip(self.root / name).read(np.zeros(1, int)).shape[1:3])
            except UserError as error:
                problem = problem or error
        raise UserError(f"none of the {len(self.names)} videos of {self.root} can be read, the first: {problem}")


class LatentClips:
    """The videos of a latent cache, decoded from the means of their posteriors."""

    what = "videos of a latent cache"

    def __init__(self, cache: Cache, codec: Codec):
        """Raise UserError if the cache holds no videos, or those of another autoencoder."""
        side = cache.frame_shape[-1] * codec.vae.config.downsampling
        settings = codec.cache_settings(side)
        cache.check({name: settings[name] for name in ("vae_checkpoint", "sd_scale_factor", "frame_shape")})
        self.cache, self.codec, self._side, self._weights = cache, codec, side, settings["vae_checkpoint"]
        self.names = [record.path.as_posix() for record in cache.index().records]
        self._entries = {Path(entry.path).as_posix(): entry for entry in cache.entries.values()}

    @property
    def identity(self) -> dict[str, Any]:
        """The folder of the cache, and the weights of the autoencoder."""
        facts = {"vae_checkpoint": self._weights, "sd_scale_factor": self.codec.scale_factor}
        return {"folder": str(self.cache.folder.resolve()), "of": self.what, **facts}

    def signature(self, name: str) -> str:
        """Return the checksum of a video's file, as the manifest has it, with its size and time."""
        entry = self._entries[name]
        path = self.cache.folder / entry.file
        if not entry.file or not path.exists():
            return sha256_of_facts(entry.error or "missing")
        return sha256_of_facts([entry.sha256, entry.index, path.stat().st_size, path.stat().st_mtime_ns])

    def load(self, name: str, cut: Cut) -> np.ndarray:
        """Return what the cache has of the clip; raises UserError if it is broken, ShortClipError if it is short."""
        video = self.cache.open(Record(Path(name)))
        return video.read(cut.places(name, video.length), False)

    def finish(self, loaded: np.ndarray, cut: Cut) -> Clip:
        """Return the clip, decoded; raises UserError if its moments are damaged."""
        mean = np.split(self.cache.load(loaded), 2, axis=1)[0]  # (F, L, h, w)
        return cut.clip(self.codec.decode(mean * np.float32(self.codec.scale_factor)))

    def size(self) -> int:
        """Return the short side of the frames."""
        return self._side


def open_source(folder: str, codec: Callable[[], Codec]) -> VideoClips | LatentClips:
    """Return the videos of a folder; `codec` is called for a latent cache. Raises UserError if there are none."""
    if (Path(folder) / MANIFEST).is_file():
        return LatentClips(read_cache(folder), codec())
    return VideoClips(Path(folder))


def _listed(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders that hold images, and the video files, each sorted."""
    folders, files = [], []
    for folder, names in walk(root, FRAME_SUFFIXES + VIDEO_SUFFIXES):
        videos = [folder / name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        files += videos
        folders += [folder] if len(names) > len(videos) else []
    return sorted(folders), sorted(files)


def _rank_of_suffix(path: Path) -> int:
    return VIDEO_SUFFIXES.index(path.suffix.lower())
