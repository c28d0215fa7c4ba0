"""Look at the files of a data set before it is trained on: whether all are there, and whether some can be used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latte.data.dataset import VideoDataset

log = logging.getLogger(__name__)
OPENED = 32  # videos, evenly spaced; a smaller data set is opened whole
NAMED = 8  # videos that are named one by one


def check_files(dataset: VideoDataset, max_bad_fraction: float, where: str) -> None:
    """Look for every video and single image, open some of the videos, and log what training would skip.

    where: the option that lists them, and its value. Raises UserError if training would stop, as more than
    `max_bad_fraction` of the videos are missing, broken or too short.
    """
    records, images = dataset.index.records, dataset.index.images
    missing = _missing([record.path for record in records])
    absent = [records[number].path for number in missing]
    _refuse_many(len(records), absent, {}, max_bad_fraction, where)
    there = sorted({*range(len(records))} - {*missing})
    chosen = [there[k] for k in np.unique(np.linspace(0, len(there) - 1, min(OPENED, len(there))).astype(int))]
    unusable = {}
    for number in tqdm(chosen, desc="opening videos", unit="video", delay=3):
        if reason := dataset.problem(number):
            unusable[number] = reason
    # A part of a large data set tells too little about all of it to stop.
    _refuse_many(len(records), absent, unusable, max_bad_fraction, where)
    if absent:
        log.warning("%d of %d videos do not exist, the first is %s", len(absent), len(records), absent[0])
    for reason in list(unusable.values())[:NAMED]:
        log.warning("cannot be used: %s", reason)
    log.info("%d of %d videos opened, %d of them cannot be used", len(chosen), len(records), len(unusable))
    lost = [images[number].path for number in _missing([image.path for image in images])]
    if lost:
        said = f"{len(lost)} of {len(images)} images of frame_list do not exist, the first is {lost[0]}"
        if len(lost) > max_bad_fraction * len(images):
            raise UserError(f"{said}; that is more than max_bad_fraction {max_bad_fraction:g}: check frame_list")
        log.warning("%s", said)


def _missing(paths: Sequence[Path]) -> list[int]:
    """Return the places of the paths that lead to nothing."""
    return [
        k for k, path in enumerate(tqdm(paths, desc="looking for files", unit="file", delay=3)) if not _exists(path)
    ]


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
    return True


def _refuse_many(total: int, absent: list[Path], unusable: dict[int, str], max_bad_fraction: float, where: str) -> None:
    if len(absent) + len(unusable) <= max_bad_fraction * total:
        return
    parts = []
    if absent:
        parts.append(f"{len(absent)} of {total} videos do not exist, the first is {absent[0]}")
    if unusable:
        parts.append(f"{len(unusable)} of {total} cannot be used, the first: {next(iter(unusable.values()))}")
    raise UserError(f"{'; '.join(parts)}; that is more than max_bad_fraction {max_bad_fraction:g}: check {where}")
