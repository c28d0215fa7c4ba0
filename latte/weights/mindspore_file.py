"""MindSpore's .ckpt files: protobuf, one message per tensor.

    Checkpoint { repeated Value value = 1 }      Value { string tag = 1; Tensor tensor = 2 }
    Tensor { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

mindspore.load_checkpoint and save_checkpoint read and write the same; here a file is a memory map, and never in memory
two or three times. Texts have the tensor_type "str" and come as UTF-32. A scalar has no dims, or [0]. A tensor may come
in several values with one tag.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.weights.dtypes import TABLE, names_of, numpy_dtype, odd_dtype, raw_bytes
from latte.weights.mapped import MAX_AXES, REMEDY, Mapped, check_count, map_file, verified, view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MAX_CONTENT = 512 << 20  # bytes of one value; MindSpore's own limit, as protobuf's is 2 GiB
_NUMPY = {names.mindspore: names.numpy for names in TABLE}
Span = tuple[int, int]  # start and end in the file
_CRC = b"crc_num"  # with ten bytes after it, the end of a file saved with crc_check=True


def read_mindspore(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors, read-only views into the file in its order, and the texts beside them.

    Tensors of a dtype that `dtypes` does not list have one of `odd_dtype`.
    Raises UserError if the file is damaged or encrypted.
    """
    data = map_file(path)
    end = len(data)
    if data[-17:-10] == _CRC:  # of the whole file before it
        end -= 17
        data.expect([(0, end, int.from_bytes(data[-10:], "big"), "the file")])
    values: dict[str, tuple[str, list[int], list[Span]]] = {}
    tensors: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    try:
        for _, start, stop in _fields(data, 0, end):
            value = {number: (begin, after) for number, begin, after in _fields(data, start, stop)}
            kind, dims, content = _tensor(data, *value[2])
            key = data[slice(*value[1])].decode()
            found = values.setdefault(key, (kind, dims, []))
            if found[:2] != (kind, dims):
                raise ValueError("a tensor twice")
            found[2].append(content)
            check_count(path, len(values))
        for key, (kind, dims, spans) in values.items():
            if kind == "str":
                texts[key] = b"".join(data[begin:after] for begin, after in spans).decode("utf-32-le")
            else:
                tensors[key] = _array(data, kind, dims, spans)
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError):
        raise UserError(f"{path} is a MindSpore checkpoint that is cut off, damaged or encrypted; {REMEDY}") from None
    return tensors, texts


def _array(data: Mapped, kind: str, dims: list[int], spans: list[Span]) -> np.ndarray:
    """Return the tensor whose bytes lie in `spans`; a copy if there are several."""
    length = sum(after - begin for begin, after in spans)
    shape = () if dims == [0] and length else tuple(dims)
    count = math.prod(shape)
    dtype = numpy_dtype(_NUMPY[kind]) if kind in _NUMPY else odd_dtype(kind, length // count if count else 1)
    if length != dtype.itemsize * count:
        raise ValueError("a tensor of another size than its dims")
    if len(spans) == 1:
        return view(data, dtype, shape, *spans[0])
    parts = [verified(view(data, np.dtype(np.uint8), (after - begin,), begin, after)) for begin, after in spans]
    return np.concatenate(parts).view(dtype).reshape(shape)


def _tensor(data: Mapped, start: int, stop: int) -> tuple[str, list[int], Span]:
    """Return type, dims, and where the content lies."""
    dims, kind, content = [], "", (stop, stop)
    for number, begin, after in _fields(data, start, stop):
        if number == 1:
            dims.append(_varint(data, begin, after)[0])
            if len(dims) > MAX_AXES:
                raise ValueError("a tensor with too many dimensions")
        elif number == 2:
            kind = data[begin:after].decode()
        elif number == 3:
            content = (begin, after)
    return kind, dims, content


def _fields(data: Mapped, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message; raises ValueError where it is not well-formed."""
    while position < end:
        tag, position = _varint(data, position, end)
        if tag & 7 == 0:
            start, (_, position) = position, _varint(data, position, end)
        elif tag & 7 == 2:
            length, start = _varint(data, position, end)
            position = start + length
        else:
            raise ValueError("a field of a type that checkpoints do not have")
        if position > end:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, start, position


def _varint(data: Mapped, position: int, end: int) -> tuple[int, int]:
    """Return an integer of up to 63 bits and the position after it."""
    if position < end and (byte := data[position]) < 128:  # nearly all of them
        return byte, position + 1
    value = 0
    for shift in range(0, 63, 7):
        if position >= end:
            break
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise ValueError("an integer without an end")


def write_mindspore(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    progress: Callable[[int], Any] = lambda count: None,
) -> None:
    """Write tensors, then the metadata as texts; mindspore.load_checkpoint reads both.

    `progress` gets the number of bytes of each tensor that has been written.
    Raises UserError for a dtype that no file can have, or if the file cannot be written.
    """
    names = {key: names_of(array, key).mindspore for key, array in tensors.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for key, array in tensors.items():
            content = raw_bytes(array)
            for start in range(0, len(content) or 1, MAX_CONTENT):
                part = content[start : start + MAX_CONTENT]
                file.write(_value_head(key, array.shape, names[key], len(part)))
                file.write(part)
            progress(array.nbytes)
        for key, text in metadata.items():
            encoded = text.encode("utf-32-le")
            file.write(_value_head(key, (0,), "str", len(encoded)) + encoded)


def _value_head(key: str, dims: tuple[int, ...], kind: str, length: int) -> bytes:
    """Return the bytes of a Value up to the content of its tensor, which is its last part."""
    tensor = b"".join(b"\x08" + _encoded(size) for size in dims) + _block(b"\x12", kind.encode())
    tensor += b"\x1a" + _encoded(length)
    value = _block(b"\x0a", key.encode()) + b"\x12" + _encoded(len(tensor) + length) + tensor
    return b"\x0a" + _encoded(len(value) + length) + value


def _block(tag: bytes, content: bytes) -> bytes:
    return tag + _encoded(len(content)) + content


def _encoded(number: int) -> bytes:
    """Return a varint."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
