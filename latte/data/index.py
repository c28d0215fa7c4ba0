"""Which videos a data set has: its folders, files or table as a list of records, in an order that never changes."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING

from latte.errors import UserError
from latte.io.listing import FRAME_SUFFIXES, VIDEO_SUFFIXES, files_below, is_litter, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from latte.config import DataOptions

log = logging.getLogger(__name__)
MAX_LABEL = 2**31 - 2  # labels are int32, and one more is the null class
_shown = Repr()  # texts of tables are shown by their first and last characters
_shown.maxstring = 80


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
    images = list(_listed_images(root, options, records))
    if options.data_layout == "csv" and options.images_per_video:  # lines that name images are no videos then
        images += [record for record in records if record.path.suffix.lower() in FRAME_SUFFIXES]
        records = [record for record in records if record.path.suffix.lower() not in FRAME_SUFFIXES]
        if not records:
            raise UserError(f"csv_path {options.csv_path} names images only; joint training needs videos beside them")
    return Index(records, classes, images)


def _frame_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """Every folder with images in it is a video; the folders above them are the classes, if there are several."""
    folders = sorted(folder for folder, _ in walk(root, FRAME_SUFFIXES))
    _name_empty(root, folders, FRAME_SUFFIXES)
    if pair := nested(folders):
        log.warning("%s holds images and, in %s, another video; as a video it has a class of its own", *pair)
    return _by_class(folders, [str(folder.parent.relative_to(root)) if folder != root else "" for folder in folders])


def _video_files(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    return [Record(path) for path in files_below(root, VIDEO_SUFFIXES)], []


def _class_folders(root: Path, _: DataOptions) -> tuple[list[Record], list[str]]:
    """The first folder below the root is the class."""
    files = [path for path in files_below(root, VIDEO_SUFFIXES) if path.parent != root]
    _name_empty(root, files, VIDEO_SUFFIXES)
    return _by_class(files, [path.relative_to(root).parts[0] for path in files])


def nested(paths: Iterable[Path]) -> tuple[Path, Path] | None:
    """Return a folder of frames and one inside it, if there are such: a poster beside videos makes a video of both."""
    known = set(paths)
    return next(((above, path) for path in paths for above in path.parents if above in known), None)


def _name_empty(root: Path, paths: list[Path], suffixes: tuple[str, ...]) -> None:
    """Log which folders directly below the root have none of the data: as classes they would have numbers."""
    used = {path.relative_to(root).parts[0] for path in paths if path != root}
    with os.scandir(root) as entries:
        folders = {entry.name for entry in entries if not is_litter(entry.name) and entry.is_dir()}
    for name in sorted(folders - used):
        log.warning("%s holds none of %s, and is left out", root / name, ", ".join(suffixes))


def _by_class(paths: list[Path], kinds: list[str]) -> tuple[list[Record], list[str]]:
    labels = {kind: label for label, kind in enumerate(sorted(set(kinds)))}
    return [Record(path, labels[kind]) for path, kind in zip(paths, kinds, strict=True)], list(labels)


def _table(root: Path, options: DataOptions) -> tuple[list[Record], list[str]]:
    """One line per video; classes are numbers, or names that are numbered in alphabetical order."""
    if not options.csv_path:
        raise UserError(
            "data_layout is csv, but csv_path is not set; name the table in the data YAML or with --csv_path"
        )
    path = Path(options.csv_path)
    columns = {
        option: column
        for option in ("video_column", "class_column", "caption_column")
        if (column := getattr(options, option)) is not None
    }
    with _reading(path, "csv_path") as file:
        rows = list(_rows(path, file, columns))
    named = [(line, row) for line, row in rows if row["video_column"].strip()]
    kinds = [(line, row["class_column"].strip() if options.class_column else "0") for line, row in named]
    labels, classes = _table_classes(path, kinds, options)
    if len(named) < len(rows):
        line = next(line for line, row in rows if not row["video_column"].strip())
        raise UserError(f"{path}, line {line} has no {options.video_column}")
    videos = [_below(root, row["video_column"].strip(), f"{path}, line {line}") for line, row in rows]
    captions = [row.get("caption_column", "") for _, row in rows]
    return [Record(*values) for values in zip(videos, labels, captions, strict=True)], classes


def _rows(path: Path, file: TextIO, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line at which each row of a table begins, and its fields by the options that name their columns.

    Lines without any text are passed over. Raises UserError if a column is missing, or a line is not as the header has
    it.
    """
    delimiter = _delimiter(file, set(columns.values()))
    lines = _parsed(path, file, delimiter)
    header = [name.strip() for name in next(lines, (1, []))[1]]
    absent = {option: column for option, column in columns.items() if column not in header}
    if absent:
        names = [name if name.isprintable() and len(name) < 80 else _shown.repr(name) for name in header]
        there = ", ".join(names[:30]) + ", ..." * (len(names) > 30) or "the names in its first line, which is empty"
        raise UserError(
            f"{path} has no column {', '.join(map(repr, absent.values()))}; {', '.join(absent)} must be "
            f"{'one' if len(absent) == 1 else 'some'} of {there}"
        )
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice; rename one of them")
    places = {option: header.index(column) for option, column in columns.items()}
    for line, row in lines:
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            count = "1 field" if len(row) == 1 else f"{len(row)} fields"
            raise UserError(
                f"{path}, line {line} has {count}, but the header has {len(header)}; put a field that holds "
                f"{delimiter!r} in double quotes"
            )
        if len(row) > 1 and [field.strip() for field in row] == header:
            raise UserError(f"{path}, line {line} is the header again; remove it")
        yield line, {option: row[place] for option, place in places.items()}


def _delimiter(file: TextIO, columns: set[str]) -> str:
    """Return what separates the fields: the first of , ; and tab with which the header has the most of the columns."""
    headers = {}
    for delimiter in ",;\t":
        file.seek(0)
        with contextlib.suppress(csv.Error):  # said when the table is read
            headers[delimiter] = [name.strip() for name in next(csv.reader(file, delimiter=delimiter), [])]
    file.seek(0)
    return max(
        headers, key=lambda delimiter: (len(columns & {*headers[delimiter]}), len(headers[delimiter])), default=","
    )


def _parsed(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each row begins, and its fields; raises UserError if quotes do not fit."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if any("\0" in field for field in row):
                raise UserError(f"{path}, line {line} holds a NUL character; save the table as text in UTF-8")
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line} cannot be read: {error}; close the quotes around a field, and double those inside it"
        ) from error


@contextlib.contextmanager
def _reading(path: Path, option: str) -> Iterator[TextIO]:
    """Open a text in UTF-8, or in UTF-16 with its mark; raises UserError if it cannot be read."""
    try:
        if not path.is_file():
            raise UserError(f"{option} {path} cannot be read: there is no such file")
        with path.open("rb") as binary:
            marked = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with path.open(newline="", encoding="utf-16" if marked else "utf-8-sig") as file:
            yield file
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise UserError(f"{option} {path} cannot be read: {_not_utf8(path)}; save it as text in UTF-8") from error


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8"
    return "it is not UTF-8"


def _below(root: Path, name: str, where: str) -> Path:
    """Return the path of a name in a list; raises UserError if it leads out of the folder of the data."""
    path = Path(name)
    if path.is_absolute():
        path = next((path.relative_to(folder) for folder in _ways(root) if path.is_relative_to(folder)), path)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{where}: {_shown.repr(name)} leads out of data_folder {root}; name paths below it, without .., or a "
            "data_folder further up"
        )
    return root / path


@functools.lru_cache(maxsize=1)
def _ways(root: Path) -> tuple[Path, Path]:
    return root.absolute(), root.resolve()


def _table_classes(path: Path, kinds: list[tuple[int, str]], options: DataOptions) -> tuple[list[int], list[str]]:
    """Return a table's labels, and the names of its classes if they have names; `kinds` are (line, text)."""
    numbered = [kind.isdecimal() for _, kind in kinds]
    some, every = any(numbered), all(numbered)
    for (line, kind), decimal in zip(kinds, numbered, strict=True):
        if not kind:
            raise UserError(f"{path}, line {line} has no {options.class_column}")
        # Taken for names, 1.0, 10.0 and 2.0 would be sorted as text, and the labels would silently change.
        if not decimal and (some or re.fullmatch(r"[-+.\d]+(?:[eE][-+]?\d+)?", kind)):
            raise UserError(
                f"{path}, line {line}: the {options.class_column} {_shown.repr(kind)} is no whole number from 0 on; "
                "let all classes be such numbers, or all be names"
            )
        if decimal and (len(kind.lstrip("0")) > len(str(MAX_LABEL)) or int(kind) > MAX_LABEL):
            raise UserError(
                f"{path}, line {line}: the {options.class_column} {_shown.repr(kind)} is too large; number the classes "
                "from 0 on"
            )
    if every:
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
    by_path = {record.path: record for record in records}
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record.path.name, []).append(record)
    with _reading(Path(frame_list), "frame_list") as file:
        lines = [line.strip() for line in file]
    for number, line in enumerate(lines):
        if not line:
            continue
        where, (video, _, frame) = f"frame_list {frame_list}, line {number + 1}", line.rpartition("/")
        exact = by_path.get(root / video)
        found = [exact] if exact else by_name.get(Path(video).name, [])
        if not found:
            raise UserError(f"{where}: there is no video {video!r} below {root}")
        if len({record.path for record in found}) > 1:
            raise UserError(f"{where}: {len(found)} videos are called {video!r}; write the folders above it too")
        if frame in ("", ".", ".."):
            raise UserError(f"{where} names no image; a line is video/frame.jpg")
        yield Record(found[0].path / frame, found[0].label, found[0].caption)


LAYOUTS = {
    "frame_folders": _frame_folders,
    "video_files": _video_files,
    "class_folders": _class_folders,
    "csv": _table,
}
