"""Which videos a data set has: its folders, files or table as a list of records, in an order that never changes."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latte.errors import UserError
from latte.io.video import FRAME_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latte.config import DataOptions

VIDEO_SUFFIXES = (".mp4", ".avi", ".gif", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class Record:
    """A video: a file, or a folder of frames; with the number of its class and its caption where there are any."""

    path: Path
    label: int = 0
    caption: str = ""


@dataclass(frozen=True)
class Index:
    """The videos of a data set, the names of their classes, and the single images for joint training."""

    records: list[Record]
    classes: list[str]
    images: list[Record]


def list_records(options: DataOptions) -> Index:
    """List the data set that the options describe.

    Whether the files are whole is found out when they are read. Raises UserError if a folder or table is missing, empty
    or not as described.
    """
    if not options.data_folder:
        raise UserError("data_folder is not set; name the folder of the videos in the data YAML or with --data_folder")
    root = Path(options.data_folder)
    if not root.is_dir():
        raise UserError(f"data_folder {root} is not a folder; correct it in the data YAML or with --data_folder")
    records, classes = LAYOUTS[options.data_layout](root, options)
    if not records:
        wanted = {"frame_folders": FRAME_SUFFIXES, "csv": ("lines",)}.get(options.data_layout, VIDEO_SUFFIXES)
        raise UserError(
            f"data_folder {root} holds no videos in the layout {options.data_layout} ({', '.join(wanted)}); "
            "check --data_folder and --data_layout"
        )
    return Index(records, classes, list(_listed_images(root, options, records)))


def _frame_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """Every folder with images in it is a video; the folders above them are the classes, if there are several."""
    folders = sorted(folder for folder, _ in _folders_with(root, FRAME_SUFFIXES))
    return _by_class(folders, [str(folder.parent.relative_to(root)) if folder != root else "" for folder in folders])


def _video_files(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    return [Record(path) for path in _videos_below(root)], []


def _class_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """The first folder below the root is the class."""
    files = [path for path in _videos_below(root) if path.parent != root]
    return _by_class(files, [path.relative_to(root).parts[0] for path in files])


def _by_class(paths: list[Path], kinds: list[str]) -> tuple[list[Record], list[str]]:
    labels = {kind: label for label, kind in enumerate(sorted(set(kinds)))}
    return [Record(path, labels[kind]) for path, kind in zip(paths, kinds, strict=True)], list(labels)


def _videos_below(root: Path) -> list[Path]:
    return sorted(folder / name for folder, names in _folders_with(root, VIDEO_SUFFIXES) for name in names)


def _folders_with(root: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders that hold such files, and their names; os.walk, as there may be a million of them."""
    for folder, _, names in os.walk(root):
        if found := [name for name in names if name.lower().endswith(suffixes)]:
            yield Path(folder), found


def _table(root: Path, options: DataOptions) -> tuple[list[Record], list[str]]:
    """One line per video; classes are numbers, or names that are numbered in alphabetical order."""
    if not options.csv_path:
        raise UserError(
            "data_layout is csv, but csv_path is not set; name the table in the data YAML or with --csv_path"
        )
    path = Path(options.csv_path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv_path {path} cannot be read as a table: {error}") from error
    columns = {name: getattr(options, name) for name in ("video_column", "class_column", "caption_column")}
    for option, column in columns.items():
        if column is not None and column not in header:
            there = ", ".join(header) or "the names in its first line, which is empty"
            raise UserError(f"{path} has no column {column!r}; {option} must be one of {there}")
    rows = [(line, row) for line, row in rows if row[options.video_column]]
    kinds = [(line, (row[options.class_column] or "") if options.class_column else "0") for line, row in rows]
    labels, classes = _table_classes(path, kinds, options)
    captions = [(row[options.caption_column] or "") if options.caption_column else "" for _, row in rows]
    paths = [root / row[options.video_column] for _, row in rows]
    return [Record(*values) for values in zip(paths, labels, captions, strict=True)], classes


def _table_classes(path: Path, kinds: list[tuple[int, str]], options: DataOptions) -> tuple[list[int], list[str]]:
    """Return a table's labels, and the names of its classes if they have names; `kinds` are (line, text)."""
    numbered = [kind.isdecimal() for _, kind in kinds]
    for (line, kind), decimal in zip(kinds, numbered, strict=True):
        if not kind:
            raise UserError(f"{path}, line {line} has no {options.class_column}")
        # Taken for names, 1.0, 10.0 and 2.0 would be sorted as text, and the labels would silently change.
        if not decimal and (any(numbered) or re.fullmatch(r"[-+.\d]+", kind)):
            raise UserError(
                f"{path}, line {line}: the {options.class_column} {kind!r} is no whole number from 0 on; let all "
                "classes be such numbers, or all be names"
            )
    if all(numbered):
        return [int(kind) for _, kind in kinds], []
    labels = {kind: label for label, kind in enumerate(sorted({kind for _, kind in kinds}))}
    return [labels[kind] for _, kind in kinds], list(labels)


def _listed_images(root: Path, options: DataOptions, records: list[Record]) -> Iterator[Record]:
    """Yield the images of a list with lines `video/frame.jpg`, each with the class of its video."""
    frame_list = options.frame_list
    if not frame_list:
        return
    if options.data_layout in ("video_files", "class_folders"):
        raise UserError(
            f"frame_list {frame_list} names images, but data_layout {options.data_layout} has none; leave frame_list "
            "out, and single frames are drawn from the videos"
        )
    try:
        lines = Path(frame_list).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"frame_list {frame_list} cannot be read: {error}") from error
    by_name = {record.path.name: record for record in records}
    by_path = {record.path: record for record in records}
    for number, line in enumerate(lines):
        video, _, frame = line.strip().rpartition("/")
        if not line.strip():
            continue
        record = by_path.get(root / video) or by_name.get(Path(video).name)
        if record is None:
            raise UserError(f"frame_list {frame_list}, line {number + 1}: there is no video {video!r} below {root}")
        yield Record(record.path / frame, record.label)


LAYOUTS = {
    "frame_folders": _frame_folders,
    "video_files": _video_files,
    "class_folders": _class_folders,
    "csv": _table,
}
