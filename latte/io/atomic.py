"""Write files and folders so that a reader never meets half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix, that takes the place of `path` when the block ends.

    If the block raises, `path` stays as it was and the temporary file goes. Missing folders are made.
    Raises UserError if the folder cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error).strip().splitlines()[-1]  # ffmpeg gives its whole log
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends.

    If the block raises, the temporary folder goes, and so do folders that were made for it. Files in it must be on the
    disk by then, as `atomic_path` and `sync` leave them.
    Raises UserError if `path` is there already and not an empty folder, or cannot be written.
    """
    path = check_new_folder(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the nearest first
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield temporary
        for folder in (temporary, *(inner for inner in temporary.rglob("*") if inner.is_dir())):
            sync_folder(folder)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)  # already renamed if all went well
        with suppress(OSError):  # a folder that is not empty stays
            for folder in made:
                folder.rmdir()


@contextmanager
def atomic_entries(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; all that is in it when the block ends moves up into `folder`.

    Entries move in order of age, the oldest first, so an entry that refers to others must be written after them. If the
    block or a move fails, none of them is left. Raises UserError if an entry exists already or cannot be written.
    """
    folder, temporary, moved = Path(folder), None, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        yield temporary
        entries = sorted(temporary.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
        for entry in entries:
            for file in [entry] if entry.is_file() else sorted(entry.iterdir()):
                file.chmod(0o600)  # MindSpore makes its files read-only
                sync(file)
            if entry.is_dir():
                entry.chmod(0o777 & ~_umask())
            if (folder / entry.name).exists():
                raise UserError(f"{folder / entry.name} is there already; remove it, or name another file")
        for entry in entries:
            entry.replace(folder / entry.name)
            moved.append(folder / entry.name)
        sync_folder(folder)
        moved.clear()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    finally:
        for entry in (*moved, *([temporary] if temporary else [])):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def check_new_folder(path: str | Path) -> Path:
    """Return the whole path of a folder that `atomic_folder` can write; raises UserError if something is there."""
    path = Path(path).resolve()
    try:
        if path.is_dir() and path.is_mount():
            raise UserError(f"{path} is where a disk is mounted and cannot be replaced; name a folder in it")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there already and not empty; name a new folder, or remove it")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a new file is on the disk, so that after a rename a power cut leaves the old one or the new one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    path.chmod(0o666 & ~_umask())  # mkstemp and MindRecord make it private


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
