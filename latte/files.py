"""Write files so that a reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latte.errors import UserError


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
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error).strip().splitlines()[-1]  # ffmpeg gives its whole log
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a new file is on the disk, so that after a rename a power cut leaves the old one or the new one."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    path.chmod(0o666 & ~_umask())  # those of mkstemp and MindRecord are private


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
