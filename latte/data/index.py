"""Which videos a data set has: its folders, files or table as a list of records, in an order that never changes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latte.config import DataOptions
from latte.errors import UserError
from latte.video import FRAME_SUFFIXES

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
    return Index(records, classes, list(_listed_images(root, options.frame_list, records)))


def _frame_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """Every folder with images in it is a video; the folders above them are the classes, if there are several."""
    folders = sorted({path.parent for path in root.rglob("*") if path.suffix.lower() in FRAME_SUFFIXES})
    return _by_class(folders, [str(folder.parent.relative_to(root)) if folder != root else "" for folder in folders])


def _video_files(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    return [Record(path) for path in _videos_below(root)], []


def _class_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """The first folder below the root is the class."""
    files = [path for path in _videos_below(root) if len(path.relative_to(root).parts) > 1]
    return _by_class(files, [path.relative_to(root).parts[0] for path in files])


def _by_class(paths: list[Path], kinds: list[str]) -> tuple[list[Record], list[str]]:
    classes = sorted(set(kinds))
    return [Record(path, classes.index(kind)) for path, kind in zip(paths, kinds, strict=True)], classes


def _videos_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())


def _table(root: Path, options: DataOptions) -> tuple[list[Record], list[str]]:
    """A line a video; classes are numbers, or names that are numbered in alphabetical order."""
    if not options.csv_path:
        raise UserError(
            "data_layout is csv, but csv_path is not set; name the table in the data YAML or with --csv_path"
        )
    path = Path(options.csv_path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv_path {path} cannot be read as a table: {error}") from error
    columns = {name: getattr(options, name) for name in ("video_column", "class_column", "caption_column")}
    for option, column in columns.items():
        if column is not None and column not in header:
            raise UserError(f"{path} has no column {column!r}; {option} must be one of {', '.join(header)}")
    complete = [row for row in rows if row[options.video_column]]
    kinds = [row[options.class_column] or "" for row in complete] if options.class_column else ["0"] * len(complete)
    if "" in kinds:
        raise UserError(f"{path}, data line {kinds.index('') + 1} has no {options.class_column}")
    numbered = all(kind.isdecimal() for kind in kinds)
    classes = [] if numbered else sorted(set(kinds))
    return [
        Record(
            root / row[options.video_column],
            int(kind) if numbered else classes.index(kind),
            (row[options.caption_column] or "") if options.caption_column else "",
        )
        for row, kind in zip(complete, kinds, strict=True)
    ], classes


def _listed_images(root: Path, frame_list: str | None, records: list[Record]) -> Iterator[Record]:
    """Yield the images of a list with lines `video/frame.jpg`, each with the class of its video."""
    if not frame_list:
        return
    try:
        lines = Path(frame_list).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"frame_list {frame_list} cannot be read: {error}") from error
    by_name = {record.path.name: record for record in records}
    for number, line in enumerate(lines):
        video, _, frame = line.strip().rpartition("/")
        if not line.strip():
            continue
        record = by_name.get(Path(video).name)
        if record is None:
            raise UserError(f"frame_list {frame_list}, line {number + 1}: there is no video {video!r} below {root}")
        yield Record(record.path / frame, record.label)


LAYOUTS = {
    "frame_folders": _frame_folders,
    "video_files": _video_files,
    "class_folders": _class_folders,
    "csv": _table,
}
