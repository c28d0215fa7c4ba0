"""Moments in MindRecord files: a row is a segment of frames, because it cannot be longer than a page of the file."""

from __future__ import annotations

import math
import re
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


def segment_frames(frame_shape: Sequence[int], dtype: np.dtype) -> int:
    """Return how many frames a row has."""
    return max(1, SEGMENT_BYTES // (math.prod(frame_shape) * np.dtype(dtype).itemsize))


def write_records(path: Path, clips: Sequence[np.ndarray]) -> None:
    """Write moments (variants, F, 2 L, h, w) of some videos, one after the other, variants one after the other.

    The file and its index, NAME.db, get their names when they are whole. Raises UserError if the disk is full.
    """
    partial = path.parent / f".{path.stem}"  # a folder, because the name of the file is part of its content
    partial.mkdir(exist_ok=True)
    try:
        writer = FileWriter(str(partial / path.name), shard_num=1, overwrite=True)
        writer.set_header_size(HEADER_BYTES)
        writer.set_page_size(PAGE_BYTES)
        writer.add_schema(SCHEMA)
        for clip in clips:
            frames = segment_frames(clip.shape[2:], clip.dtype)
            for variant in clip:
                for start in range(0, len(variant), frames):
                    writer.write_raw_data([{"moments": variant[start : start + frames].tobytes()}])
        writer.commit()
        for name in (f"{path.name}.db", path.name):
            sync(partial / name)
            (partial / name).rename(path.parent / name)
    except (RuntimeError, OSError) as error:
        stated = re.search(r"\[ERROR\] (.*)", str(error))  # in the middle of what MindSpore writes
        reason = stated[1] if stated else getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        for left in partial.iterdir():
            left.unlink()
        partial.rmdir()


class RecordClip:
    """A video whose moments are in rows from `first` on; it returns where its frames are, for `read_rows`."""

    def __init__(self, length: int, first: int, segment: int):
        self.length, self._first, self._segment = length, first, segment

    def read(self, indices: np.ndarray, flip: bool) -> np.ndarray:
        """Return the row and the place in it of each frame, (n, 2) int64."""
        first = self._first + int(flip) * math.ceil(self.length / self._segment)
        return np.stack((first + indices // self._segment, indices % self._segment), axis=1)


def read_rows(
    files: Sequence[Path], rows: Sequence[int], frame_shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yield the moments (frames, 2 L, h, w) of rows, which are counted over all files; not more rows than there are.

    Raises UserError if a file is missing or damaged.
    """
    try:
        dataset = ms.dataset.MindDataset(
            [str(path) for path in files],
            columns_list=list(SCHEMA),
            sampler=ms.dataset.SubsetSampler(list(map(int, rows))),
            num_parallel_workers=1,
        )
        for (moments,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
            yield np.frombuffer(moments.tobytes(), dtype).reshape(-1, *frame_shape)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot read the records of {files[0].parent}; run tools/embedding_cache.py --verify"
        ) from error
