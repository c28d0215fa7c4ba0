"""Write files and folders so that a reader never meets half of one, and that what a killed process left goes.

What is being written lies in a working folder beside its target: hidden, named `.NAME-` and eight hexadecimal digits,
and with a lock file that its process holds. The lock of a process that has died is free, whatever it died of.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from latte.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from filelock import BaseFileLock

LOCK = ".writing"  # in a working folder
_NAME = re.compile(r"\..*-[0-9a-f]{8}")  # of a working folder
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)  # of file systems that cannot sync a folder
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_working: dict[Path, BaseFileLock] = {}  # the working folders of this process
_swept: set[Path] = set()  # folders in which this process has looked for leftovers


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same name that takes the place of `path` when the block ends.

    If the block raises, `path` stays as it was and the temporary file goes. Missing folders are made. If `path` is a
    link, what it points to is written. What killed processes left in the folder is removed.
    Raises UserError if the folder cannot be written, the disk is full, or `path` is no regular file.
    """
    path = Path(path)
    try:
        target = _behind_links(path)
        made = _make_folders(target.parent)
        with working_folder(target.parent, target.stem) as folder:
            temporary = folder / target.name
            temporary.touch()
            yield temporary
            sync(temporary)
            temporary.replace(target)
            for parent in (target.parent, *(new.parent for new in made)):
                sync_folder(parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error, path.parent)}") from error


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name that becomes `path` when the block ends.

    If the block raises, the temporary folder goes, and so do folders that were made for it. Files in it must be on the
    disk by then, as `atomic_path` and `sync` leave them. What killed processes left beside it is removed.
    Raises UserError if `path` is there already and not an empty folder, or cannot be written.
    """
    path = check_new_folder(path)
    made: list[Path] = []
    try:
        made += _make_folders(path.parent)
        with working_folder(path.parent, path.name) as folder:
            temporary = folder / path.name
            temporary.mkdir()
            yield temporary
            for inner in (temporary, *(inner for inner in temporary.rglob("*") if inner.is_dir())):
                sync_folder(inner)
            with suppress(FileNotFoundError):
                path.rmdir()  # an empty one, in whose place not every system renames
            temporary.replace(path)
            for parent in (path.parent, *(new.parent for new in made)):
                sync_folder(parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error, path.parent)}") from error
    finally:
        with suppress(OSError):  # a folder that is not empty stays
            for new in made:
                new.rmdir()


@contextmanager
def whole_folder(path: str | Path, replaced: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, in place of one that may be there.

    What is in that one moves along, but for the entries that are `replaced`. If the block raises, the folder stays as
    it was. Killed in the moment of the exchange, a process leaves no folder, rather than half of one. Raises UserError
    if it cannot be written.
    """
    try:
        path = Path(path).resolve()
        made = _make_folders(path.parent)
        with working_folder(path.parent, path.name) as folder:
            temporary = folder / path.name
            temporary.mkdir()
            yield temporary
            others: list[str] = []
            for file in temporary.iterdir():
                sync(file)
            sync_folder(temporary)
            before = folder / "before"
            if path.exists():
                others = [entry.name for entry in path.iterdir() if not replaced(entry)]
                path.replace(before)
            try:
                temporary.replace(path)
            except OSError:
                if before.exists():
                    before.replace(path)
                raise
            for name in others:
                (before / name).replace(path / name)
            for parent in (path.parent, *(new.parent for new in made)):
                sync_folder(parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_reason(error, Path(path).parent)}") from error


@contextmanager
def atomic_entries(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; all that is in it when the block ends moves up into `folder`.

    Entries move in order of age, the oldest first, so an entry that refers to others must be written after them. If the
    block or a move fails, none of them is left. Raises UserError if an entry exists already or cannot be written.
    """
    folder, moved = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with working_folder(folder, "export") as outer:
            temporary = outer / "export"
            temporary.mkdir()
            yield temporary
            entries = sorted(temporary.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)
            for entry in entries:
                for file in [entry] if entry.is_file() else sorted(entry.iterdir()):
                    file.chmod(0o600)  # MindSpore makes its files read-only
                    sync(file)
                if entry.is_dir():
                    entry.chmod(0o777 & ~_UMASK)
                    sync_folder(entry)
                if (folder / entry.name).exists():
                    raise UserError(f"{folder / entry.name} is there already; remove it, or name another file")
            for entry in entries:
                moved.append(folder / entry.name)
                entry.replace(moved[-1])
            sync_folder(folder)
            moved.clear()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {_reason(error, folder)}") from error
    finally:
        for entry in moved:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def check_new_folder(path: str | Path) -> Path:
    """Return the whole path of a folder that `atomic_folder` can write; raises UserError if something is there."""
    try:
        path = Path(path).resolve()
        if path.is_dir() and path.is_mount():
            raise UserError(f"{path} is where a disk is mounted and cannot be replaced; name a folder in it")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there already and not empty; name a new folder, or remove it")
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    return path


def check_writable(path: str | Path, option: str) -> None:
    """Raise UserError, naming the option, if a folder that may be missing can be neither made nor written."""
    path = Path(path).resolve()
    folder = next(each for each in (path, *path.parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written; name another folder")


def check_room(folder: Path, needed: int, remedy: str) -> None:
    """Raise UserError, with a remedy, if the disk of a folder has not so many bytes free; folders may be missing.

    Of a folder that cannot be written at all the write itself says why.
    """
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path())
    free = shutil.disk_usage(there).free
    if free < needed and os.access(there, os.W_OK):
        raise UserError(f"{there} has {describe_bytes(free)} free, but {describe_bytes(needed)} are needed; {remedy}")


def describe_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit of which it has one, such as 3.1 MB."""
    unit = next((unit for unit in ("TB", "GB", "MB", "kB") if count >= _UNITS[unit]), None)
    return f"{count / _UNITS[unit]:,.1f} {unit}" if unit else f"{count} bytes"


def remove_leftovers(folder: str | Path) -> None:
    """Remove the working folders in a folder whose processes have died; those of a living one stay.

    What cannot be read or removed stays too, as it may be another user's.
    """
    with suppress(OSError):
        found = [Path(entry.path) for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
        for leftover in found:
            if leftover.is_dir() and not leftover.is_symlink():
                _remove_if_dead(leftover)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a new file is on the disk, so that after a rename a power cut leaves the old one or the new one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    path.chmod(0o666 & ~_UMASK)  # MindRecord makes it private


@contextmanager
def working_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new working folder in `parent`; it goes with all that is in it when the block ends, or the program.

    What killed processes left in `parent` is removed. Raises OSError if it cannot be made.
    """
    parent = parent.resolve()
    if parent not in _swept:  # once, because a cache has a hundred thousand files
        _swept.add(parent)
        remove_leftovers(parent)
    folder = parent
    try:
        while folder not in _working:
            folder = parent / f".{name[:50]}-{secrets.token_hex(4)}"  # a name has 255 bytes at most
            lock = _working[folder] = FileLock(folder / LOCK, blocking=False)  # now, for a signal after `mkdir`
            folder.mkdir()
            try:
                lock.acquire()
            except (Timeout, FileNotFoundError):  # took for a leftover before it was locked
                _remove(folder)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
                    raise  # else a file system without locks: what a killed process leaves will stay
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a working folder of this process; a process that was forked while it was written is another one."""
    if folder in _working:
        _working[folder].release()
        shutil.rmtree(folder, ignore_errors=True)
        _working.pop(folder, None)  # last: a signal before this leaves it to the end of the program


def _remove_all() -> None:
    for folder in list(_working):
        _remove(folder)


def _remove_if_dead(leftover: Path) -> None:
    if not (leftover / LOCK).is_file():  # killed before it was locked, or no folder of ours
        leftover.rmdir()
        return
    with suppress(OSError, Timeout), FileLock(leftover / LOCK, blocking=False):
        shutil.rmtree(leftover, ignore_errors=True)


def _behind_links(path: Path) -> Path:
    """Return the path of the file that is to be written; raises UserError if it is a link to nowhere, or a device."""
    try:
        target = path.resolve() if path.is_symlink() else path
    except RuntimeError as error:  # links that lead to each other
        raise UserError(f"cannot write {path}: {error}") from None
    if path.is_symlink() and not target.parent.is_dir():
        raise UserError(f"cannot write {path}: it is a link to {target}, whose folder does not exist; remove the link")
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"cannot write {path}: it is {what}; name another file")
    return target


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder with its parents, and return those that were missing, the innermost first."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _reason(error: OSError, folder: Path) -> str:
    """Return why a file was not written; libraries that count bytes do not say that the disk is full."""
    with suppress(OSError):
        if error.errno is None and shutil.disk_usage(folder).free < 2**16:
            return os.strerror(errno.ENOSPC)
    return reason(error)


def _read_umask() -> int:
    """Return the bits that new files do not get; where the system tells them, without changing them for a moment."""
    with suppress(OSError):
        stated = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        if stated:
            return int(stated[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # while there is one thread
atexit.register(_remove_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_working.clear)
