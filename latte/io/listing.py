"""Which files of a folder are data: links are followed, and what systems and editors leave is passed over."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from latte.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAME_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".gif", ".mov", ".mkv", ".webm"),
    *(".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts", ".ogv"),
)
GRID = "grid-seed"  # begins the names of sample.py's grids, in which are videos that have files of their own
# Names that begin with a dot are left out in any case: ._x.png, .ipynb_checkpoints, .git, .Trash-1000.
_LITTER = {
    *("__macosx", "$recycle.bin", "recycler", "system volume information"),  # macOS' zip, Windows
    *("lost+found", "@eadir", "#recycle", "@recycle", "#snapshot"),  # ext4, network disks
    *("__pycache__",),
}
_LINKS = 64  # ways to one folder


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name was left by a system, an editor or a disk, and is no data."""
    return name.startswith(".") or name.endswith("~") or name.casefold() in _LITTER


def files_below(root: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that `walk` finds, sorted; raises UserError as it does."""
    return sorted(folder / name for folder, names in walk(root, suffixes) for name in names)


def walk(root: str | Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder from `root` down that holds files with these suffixes, and their names, all in sorted order.

    Linked folders are followed, except from inside the folder that they lead to. Raises UserError if a folder cannot be
    read, a link leads nowhere, or links make one folder appear very often.
    """
    ways: Counter[tuple[int, int]] = Counter()

    def visit(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, list[str]]]:
        folders, names = [], []
        try:
            status = folder.stat()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_litter(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.name.lower().endswith(suffixes):
                        names.append(entry.name)
                    elif entry.is_symlink() and not Path(entry.path).exists():
                        # It may have been a folder of videos: without it the other classes would get other numbers.
                        raise UserError(f"the link {entry.path} leads nowhere; mend or remove it")
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        ways[here] += 1
        if ways[here] > _LINKS:
            raise UserError(f"links lead to the folder {folder} in more than {_LINKS} ways; remove links from {root}")
        if names:
            yield folder, sorted(names)
        for name in sorted(folders):
            yield from visit(folder / name, above | {here})

    return visit(Path(root), frozenset())
