"""Files as memory maps: what they seem to be, and arrays that are views into them."""

from __future__ import annotations

import codecs
import math
import mmap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

REMEDY = "download or copy it again"
MAX_HEADER = 100 << 20  # bytes of a safetensors header, by its specification
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the number 0x1950a86a20f9469cfc6c that begins PyTorch's older files
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
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file; run `git lfs pull`"),
    (0, b"<!DOCTYPE html", "a web page in place of the file; download it again"),
    (0, b"<html", "a web page in place of the file; download it again"),
)


def map_file(path: str | Path) -> mmap.mmap:
    """Return a read-only map of a file; its pages come into memory when they are used, and can leave it again.

    Raises UserError if the file is missing, empty, a folder or unreadable.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the name") from None
    except ValueError:
        raise UserError(f"{path} is empty; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def sniff(data: mmap.mmap) -> str | None:
    """Return "zip", "legacy", "safetensors" or "mindspore" from the first bytes of a file, or None."""
    head = data[:32]
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if LEGACY_MAGIC in head:
        return "legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(len(data) - 8, MAX_HEADER):
        return "safetensors"
    # A MindSpore file is protobuf: field 1 holds a message (0x0a, its length), that begins with its field 1, a name.
    if head.startswith(b"\x0a") and b"\x0a" in head[2:12]:
        return "mindspore"
    return None


def not_a_checkpoint(path: str | Path, data: mmap.mmap) -> UserError:
    """Return the error for a file that holds no weights; it names what the file is instead."""
    for offset, mark, what in FOREIGN:
        if data[offset : offset + len(mark)] == mark:
            return UserError(f"{path} is {what}, not a checkpoint" if ";" not in what else f"{path} is {what}")
    if zipfile.is_zipfile(path):
        return UserError(
            f"{path} is a zip archive without data.pkl, not a checkpoint; name the file that holds weights"
        )
    if data[:4] == b"PK\x03\x04":
        return UserError(f"{path} is a zip file that is cut off; {REMEDY}")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:256])  # a character may be cut at the end
    except UnicodeDecodeError:
        text = "\0"
    if "".join(text.split()).isprintable():
        return UserError(f"{path} is a text file, not a checkpoint; name the file that holds the weights")
    return UserError(f"{path} is not a checkpoint of a kind that is known here, or is damaged; {REMEDY}")


def view(
    data: mmap.mmap,
    dtype: np.dtype,
    shape: Sequence[int],
    start: int,
    stop: int,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Return a read-only array over bytes `start` to `stop` of the map; `strides` count elements, None means C order.

    Raises ValueError if the array would reach outside those bytes or the file, or has an invalid size or stride.
    """
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if not all(type(size) is int and size >= 0 for size in (*shape, *strides, start)):
        raise ValueError("a tensor with invalid sizes")
    if len(shape) != len(strides) or len(shape) > 32:
        raise ValueError("a tensor with a wrong number of dimensions")
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
    data: Any = array.base
    if hasattr(mmap, "MADV_DONTNEED") and isinstance(data, mmap.mmap) and array.flags.c_contiguous and array.nbytes:
        start = array.ctypes.data - np.frombuffer(data, np.uint8, 1).ctypes.data
        first = start - start % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)
