"""Moments in MindRecord files: a row is a segment of frames, because it cannot be longer than a page of the file."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import shutil
import zlib
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore.mindrecord import FileWriter

from latte.errors import UserError
from latte.io.atomic import sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SEGMENT_BYTES = 2**20  # a window reads at most two segments more than it needs
# Of a file; MindSpore's defaults are 16 and 32 MB, of which a short video fills little.
HEADER_BYTES, PAGE_BYTES = 2**16, 2**22
SCHEMA = {"moments": {"type": "bytes"}}  # MindRecord knows no float16
RAW = "RAW_DATA"  # pages of what is not bytes
REMEDY = "delete the file and make the cache again: only it will be made"


def segment_frames(frame_shape: Sequence[int], dtype: np.dtype) -> int:
    """Return how many frames a row has."""
    return max(1, SEGMENT_BYTES // (math.prod(frame_shape) * np.dtype(dtype).itemsize))


def write_records(path: Path, clips: Sequence[np.ndarray]) -> None:
    """Write moments (variants, F, 2 L, h, w) of some videos, one after the other, variants one after the other.

    A row has the moments of its frames, and then their checksums. The file and its index, NAME.db, get their names when
    they are whole. Raises UserError if the disk is full.
    """
    partial = path.parent / f".{path.stem}"  # a folder, because the name of the file is part of its content
    try:
        partial.mkdir(exist_ok=True)
        writer = FileWriter(str(partial / path.name), shard_num=1, overwrite=True)
        writer.set_header_size(HEADER_BYTES)
        writer.set_page_size(PAGE_BYTES)
        writer.add_schema(SCHEMA)
        for clip in clips:
            frames = segment_frames(clip.shape[2:], clip.dtype)
            for variant in clip:
                for start in range(0, len(variant), frames):
                    moments = variant[start : start + frames]
                    writer.write_raw_data([{"moments": moments.tobytes() + checksums(moments).tobytes()}])
        writer.commit()
        for name in (f"{path.name}.db", path.name):
            sync(partial / name)
            (partial / name).rename(path.parent / name)
    except (RuntimeError, OSError) as error:
        stated = re.search(r"\[ERROR\] (.*)", str(error))  # in the middle of what MindSpore writes
        reason = stated[1] if stated else getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checksums(frames: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of each of some frames (n, ...), as little-endian uint32 (n,)."""
    return np.array([zlib.crc32(np.ascontiguousarray(frame).data) for frame in frames], "<u4")


def check_frames(frames: np.ndarray, expected: np.ndarray | None, name: str) -> np.ndarray:
    """Return moments (n, 2 L, h, w) as float32; raises UserError if they differ from their checksums or are no numbers.

    expected: None where the cache is older than checksums; name: of the video, for the error.
    """
    if expected is not None and not np.array_equal(checksums(frames), expected):
        raise UserError(f"{name} is damaged: it differs from its checksums; {REMEDY}")
    moments = frames.astype(np.float32)
    if not np.isfinite(moments).all():
        raise UserError(f"{name} is broken: its latents are not finite numbers; {REMEDY}")
    return moments


class RecordClip:
    """A video whose moments are in rows from `first` on; it returns where its frames are, for `Cache.read_rows`."""

    def __init__(self, length: int, first: int, segment: int):
        self.length, self._first, self._segment = length, first, segment

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the row and the place in it of each frame, (n, 2) int64."""
        first = self._first + int(flip) * math.ceil(self.length / self._segment)
        return np.stack((first + indices // self._segment, indices % self._segment), axis=1)


def read_rows(
    files: Sequence[Path], rows: Sequence[int] | np.ndarray, frame_shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yield the moments (frames, 2 L, h, w) of rows, which are counted over all files; not more rows than there are.

    A frame that differs from its checksum is NaN. Raises UserError if a file is missing or MindSpore cannot read it.
    """
    try:
        dataset = ms.dataset.MindDataset(
            [str(path) for path in files],
            columns_list=list(SCHEMA),
            sampler=ms.dataset.SubsetSampler(list(map(int, rows))),
            num_parallel_workers=1,
        )
        for (stored,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield _frames_of(stored.tobytes(), frame_shape, dtype)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot read the records of {files[0].parent}; run tools/embedding_cache.py --verify"
        ) from error


def _frames_of(data: bytes, frame_shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the frames of a row, with NaN in those that differ from their checksums; none if its size is impossible.

    Rows of older caches have no checksums. With tiny frames a size may mean either; then checksums are what fits.
    """
    size = math.prod(frame_shape) * dtype.itemsize
    count, more = divmod(len(data), size + 4)
    if not more:
        frames = np.frombuffer(data, dtype, count * math.prod(frame_shape)).reshape(count, *frame_shape)
        whole = checksums(frames) == np.frombuffer(data, "<u4", count, count * size)
        if whole.all():
            return frames
        if whole.any() or len(data) % size:
            return np.where(whole.reshape(-1, *[1] * len(frame_shape)), frames, np.nan).astype(dtype)
    count = 0 if len(data) % size else len(data) // size
    return np.frombuffer(data, dtype, count * math.prod(frame_shape)).reshape(count, *frame_shape)


def structure_hash(path: Path) -> str:
    """Return the SHA-256 of all that MindSpore takes apart when it reads a file: all but the moments.

    That is quick, and must be compared before: of some damaged files MindSpore ends the process. Raises ValueError or
    OSError if the file cannot be read or its header not be understood.
    """
    digest, size = hashlib.sha256(path.with_name(f"{path.name}.db").read_bytes()), path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        digest.update(head + size.to_bytes(8, "little"))
        length = int.from_bytes(head[:8], "little")
        try:
            pages = [page for page in json.loads(head[8 : 8 + length])["page"] if page["page_type"] == RAW]
            starts = sorted({HEADER_BYTES + PAGE_BYTES * operator.index(page["page_id"]) for page in pages})
        except (KeyError, TypeError, RecursionError):
            raise ValueError("its header is damaged") from None
        for start in starts:
            if not 0 <= start < size:
                raise ValueError("it is cut off")
            file.seek(start)
            digest.update(file.read(PAGE_BYTES))
    return digest.hexdigest()
