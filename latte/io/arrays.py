"""Read NumPy's files without evaluating anything in them: .npy by ranges of bytes, .npz whole; both only as they say.

NumPy's own readers raise whatever Python's tokenizer, `zipfile` and the allocator raise, and believe any size.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"\x93NUMPY"
LENGTHS = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}  # by version of the format
MAX_HEADER = 2048  # bytes; NumPy writes 128 for an array that is no table
MAX_AXES = 8
# Bytes that an .npz may unpack to: what a small file may hold, and what padding and repetition explain in a big one.
MIN_UNPACKED, MAX_RATIO = 2**28, 50
_BLOCK = 2**20
_VALUE = r"""(?:['"]([<>|=]?[biufU]\d{1,7})['"]|(True|False)|\(([\d\s,]*)\))"""
_ITEM = rf"""\s*['"](descr|fortran_order|shape)['"]\s*:\s*{_VALUE}\s*"""
_HEADER = re.compile(rf"\{{(?:{_ITEM},){{2}}{_ITEM},?\s*\}}")
_ZIP_ERRORS = (OSError, ValueError, EOFError, KeyError, IndexError, OverflowError, NotImplementedError, RuntimeError)


class Header(NamedTuple):
    """What the first bytes of an array in a file say: numbers or text, never objects."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an array from its first byte on; the data begin where it ends.

    Raises ValueError if it is broken, or describes anything but numbers or text.
    """
    length = LENGTHS.get(file.read(8).removeprefix(MAGIC))
    if length is None:
        raise ValueError("it is no NumPy array")
    (size,) = struct.unpack(length, file.read(struct.calcsize(length)).ljust(struct.calcsize(length), b"\xff"))
    text = file.read(size).decode("latin1").rstrip() if size <= MAX_HEADER else ""
    items = {found[1]: found[2] or found[3] or found[4] for found in re.finditer(_ITEM, text)}
    if not _HEADER.fullmatch(text) or len(items) != 3:
        raise ValueError("the header of its array is broken")
    try:
        dtype, sides = np.dtype(items["descr"]), [side.strip() for side in items["shape"].split(",")]
    except TypeError:
        raise ValueError(f"its array is of an unknown type {items['descr']}") from None
    shape = tuple(int(side) for side in sides if side)
    header = Header(dtype, shape, items["fortran_order"] == "True")
    if len(shape) > MAX_AXES or not dtype.itemsize or not 0 < header.nbytes < 2**62:
        raise ValueError(f"its array is empty or has an impossible size {shape}")
    return header


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy file; raises ValueError or OSError if it is broken, cut off or no regular file."""
    if not path.is_file():
        raise ValueError("it is missing or no file")
    with path.open("rb") as file:
        header = read_header(file)
        if path.stat().st_size != file.tell() + header.nbytes:
            raise ValueError("its size is not that of its array")
        return _array(header, file.read())


def read_npz(path: str | Path, names: Sequence[str] | None, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return arrays of an .npz file by their names, None for all; those that are optional may be missing.

    They are read-only.
    Checksums are compared. Raises UserError if the file is missing, broken, lacks a name, or would unpack to far more
    than it holds.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if not path.is_file():
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path.stat().st_size)
            names = list(members) if names is None else names
            missing = [name for name in names if name not in members]
            if missing:
                raise ValueError(f"it has no array {missing[0]!r}")
            wanted = [name for name in (*names, *optional) if name in members]
            return {name: _read_member(archive, members[name]) for name in wanted}
    except MemoryError:
        raise UserError(f"{path} does not fit in memory") from None
    except (*_ZIP_ERRORS, zipfile.BadZipFile, zlib.error, struct.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)[:200] or "it is cut off"
        shown = "".join(character if character.isprintable() else "?" for character in reason)
        raise UserError(f"{path} is no .npz file with {', '.join(names or ['arrays'])}: {shown}") from error


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive of `size` bytes by the names of their arrays; raises ValueError."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"it has two arrays {name!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its array {name!r} is packed as np.savez never does")
        members[name] = info
    unpacked = sum(info.file_size for info in members.values())
    if unpacked > max(MIN_UNPACKED, MAX_RATIO * size):
        raise ValueError(f"its {size:,} bytes would unpack to {unpacked:,}")
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array, whose checksum zipfile compares at its end; raises ValueError and what zipfile raises."""
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as file:
        try:
            header = read_header(file)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
        if info.file_size != file.tell() + header.nbytes:
            raise ValueError(f"the size of {name!r} is not that of its array")
        data, done = bytearray(header.nbytes), 0
        while block := file.read(_BLOCK):
            data[done : done + len(block)] = block
            done += len(block)
        if done != header.nbytes:
            raise ValueError(f"{name!r} is cut off")
    return _array(header, data)


def _array(header: Header, data: bytes | bytearray) -> np.ndarray:
    if header.dtype.kind == "U" and np.frombuffer(data, header.dtype.byteorder + "u4").max() > 0x10FFFF:
        raise ValueError("its text is no Unicode")
    array = np.frombuffer(data, header.dtype)
    array = array.reshape(header.shape[::-1]).T if header.fortran_order else array.reshape(header.shape)
    array.flags.writeable = False
    return array
