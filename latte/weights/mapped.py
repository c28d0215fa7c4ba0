"""Files as memory maps: what they seem to be, and arrays that are views into them."""

from __future__ import annotations

import bisect
import codecs
import math
import mmap
import re
import stat
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UnreadableError, UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

REMEDY = "download or copy it again"
OFFICIAL = "`latte download list` shows the official weights"
MAX_HEADER = 32 << 20  # bytes of a safetensors header; those of 10,000 tensors take one or two MiB
MAX_TENSORS = 100_000  # in one file; the state of the largest network here has 4,000
MAX_AXES = 32
CHUNK = 64 << 20  # bytes of a checksum's steps
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the number 0x1950a86a20f9469cfc6c that begins PyTorch's older files
MINDIR = re.compile(rb"\x0a.[\d.]{5,12}\x12.MindSpore", re.DOTALL)  # version and producer
FOREIGN = (  # offset, bytes there, what such a file is
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"RIFF", "an AVI, WAV or WebP file"),
    (4, b"ftyp", "an MP4 video"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"BZh", "a bzip2 archive; unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF file; name one in PyTorch's, MindSpore's or the safetensors format"),
    (0, b"(\xb5/\xfd", "a zstd archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file; run `git lfs pull`"),
)


class Mapped(mmap.mmap):
    """A read-only map of a file, with the checksums of the parts that have one."""

    path: str | Path = ""
    records: tuple[tuple[int, int, int, str], ...] = ()  # start, end, CRC-32 and name, in order of the start

    def expect(self, records: Iterable[tuple[int, int, int, str]]) -> None:
        """Set the checksums that `verify` compares."""
        self.records = tuple(sorted(records))
        self._right: set[int] = set()

    def verify(self, position: int) -> None:
        """Compare the checksum of the part that holds a byte of the file, once; raises UserError if it is wrong."""
        index = bisect.bisect_right(self.records, (position, math.inf)) - 1
        if index < 0 or index in self._right or position >= self.records[index][1]:
            return
        start, end, expected, name = self.records[index]
        checksum = 0
        for begin in range(start, end, CHUNK):
            checksum = zlib.crc32(memoryview(self)[begin : min(end, begin + CHUNK)], checksum)
        if checksum != expected:
            raise UserError(
                f"{self.path} is damaged: the checksum of {quoted(name)} in it differs from its bytes; {REMEDY}"
            )
        self._right.add(index)


def map_file(path: str | Path) -> Mapped:
    """Return a read-only map of a file; its pages come into memory when they are used, and can leave it again.

    Raises UnreadableError if the file is missing or unreadable, and UserError if it is empty or no regular file: a
    folder, a pipe, a device.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            what = "a folder" if path.is_dir() else "a pipe, a socket or a device"
            raise UserError(f"{path} is {what}, not a file; name a file of weights")
        with path.open("rb") as file:
            data = Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UnreadableError(f"{path} does not exist; check the name; {OFFICIAL}") from None
    except ValueError:
        raise UserError(f"{path} is empty; {REMEDY}") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
    data.path = path
    return data


def read_through(path: str | Path) -> None:
    """Read a whole file, and keep nothing: an error of its disk is raised here, and would end the process in a map.

    Raises UnreadableError if the file cannot be read.
    """
    block = bytearray(1 << 20)
    try:
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None


def check_count(path: str | Path, count: int) -> None:
    """Raise UserError if a file names more tensors than any network here has."""
    if count > MAX_TENSORS:
        raise UserError(f"{path} names more than {MAX_TENSORS:,} tensors, which no network here has; name another file")


def verified(array: np.ndarray) -> np.ndarray:
    """Return an array whose elements are about to be used; if a file has a checksum of them, it is compared first.

    Files are compared record by record, each once. Raises UserError if the checksum is wrong.
    """
    data = _map_of(array)
    if data is not None and data.records and array.size:
        data.verify(_position(array, data))
    return array


def sniff(data: Mapped) -> str | None:
    """Return "zip", "legacy", "safetensors" or "mindspore" from the first bytes of a file, or None."""
    head = data[:32]
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if LEGACY_MAGIC in head:
        return "legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(len(data) - 8, MAX_HEADER):
        return "safetensors"
    # A MindSpore file is protobuf: field 1 holds a message (0x0a, its length), that begins with its field 1, a name.
    if head.startswith(b"\x0a") and b"\x0a" in head[2:12] and not MINDIR.match(head):
        return "mindspore"
    return None


def _ends_as_zip(path: str | Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an archive in several files, which zipfile does not read
        return True


def not_a_checkpoint(path: str | Path, data: Mapped) -> UserError:
    """Return the error for a file that holds no weights; it names what the file is instead."""
    head = data[:64].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return UserError(f"{path} is a web page in place of the file; download it again")
    for offset, mark, what in FOREIGN:
        if data[offset : offset + len(mark)] == mark:
            return UserError(f"{path} is {what}, not a checkpoint" if ";" not in what else f"{path} is {what}")
    if _ends_as_zip(path):
        return UserError(
            f"{path} is a zip archive without data.pkl, not a checkpoint; name the file that holds weights"
        )
    if data[:4] == b"PK\x03\x04":
        return UserError(f"{path} is a zip file that is cut off; {REMEDY}")
    if data[:1] == b"\x80" and data[1:2] <= b"\5":
        return UserError(f"{path} is a pickle that torch.save did not write; save its tensors with torch.save")
    if MINDIR.match(data):
        return UserError(f"{path} is a MindIR graph, not a checkpoint; name the file that holds the weights")
    if data[:1] == b"\x08" and b"\x12" in data[2:4]:
        return UserError(f"{path} is an ONNX graph, not a checkpoint; name the file that holds the weights")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:256])  # a character may be cut at the end
    except UnicodeDecodeError:
        text = "\0"
    if "".join(text.split()).isprintable():
        return UserError(f"{path} is a text file, not a checkpoint; name the file that holds the weights")
    return UserError(f"{path} is not a checkpoint of a kind that is known here, or is damaged; {REMEDY}")


def view(
    data: Mapped,
    dtype: np.dtype,
    shape: Sequence[int],
    start: int,
    stop: int,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Return a read-only array over bytes `start` to `stop` of the map; `strides` count elements, None means C order.

    Raises ValueError if the array would reach outside those bytes or the file, or has an invalid size or stride.
    """
    if len(shape) > MAX_AXES:  # before anything is computed from them
        raise ValueError("a tensor with a wrong number of dimensions")
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if len(shape) != len(strides):
        raise ValueError("a tensor with a wrong number of dimensions")
    if not all(type(size) is int and 0 <= size < 2**63 for size in (*shape, *strides, start)):
        raise ValueError("a tensor with invalid sizes")
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if start + (last + 1) * dtype.itemsize > min(stop, len(data)):
        raise ValueError("a tensor that reaches outside its storage")
    return np.ndarray(shape, dtype, data, start, [stride * dtype.itemsize for stride in strides])


def release_pages(array: np.ndarray) -> None:
    """Let the pages of a view of a file leave this process; where it is used again, they come back.

    They would leave when memory is short, but until then a loaded network seems to be in memory twice.
    """
    data = _map_of(array)
    if data is not None and array.flags.c_contiguous and array.nbytes and hasattr(mmap, "MADV_DONTNEED"):
        start = _position(array, data)
        first = start - start % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)


def stored_elements(arrays: Iterable[np.ndarray]) -> int:
    """Return how many elements arrays hold together, of a file no more than it has bytes: views may overlap."""
    held: dict[int, list[int]] = {}  # elements and bytes, by the map
    for array in arrays:
        data = _map_of(array)
        of_map = held.setdefault(id(data), [0, sys.maxsize if data is None else len(data)])
        of_map[0] += array.size
    return sum(min(counts) for counts in held.values())


def _map_of(array: np.ndarray) -> Mapped | None:
    """Return the map of the file that an array is a view of, or None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Mapped) else None


def _position(array: np.ndarray, data: Mapped) -> int:
    """Return where in a map the first element of an array lies."""
    return array.ctypes.data - np.frombuffer(data, np.uint8, 1).ctypes.data
