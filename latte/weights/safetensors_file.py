"""safetensors files: eight bytes of length, a JSON header, the elements.

Read and written here because the package of that name gives NumPy no bfloat16 and does not keep the order of keys.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.io.json_files import is_unicode, once
from latte.weights.dtypes import TABLE, names_of, numpy_dtype, odd_dtype, raw_bytes
from latte.weights.mapped import (
    MAX_AXES,
    MAX_HEADER,
    MAX_TENSORS,
    REMEDY,
    Mapped,
    check_count,
    map_file,
    view,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy as np

_NUMPY = {names.safetensors: names.numpy for names in TABLE}
_METADATA = "__metadata__"


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors, read-only views into the file in the order of its header, and the metadata.

    Tensors of a dtype that `dtypes` does not list have one of `odd_dtype`.
    Raises UserError if the file is damaged, or breaks a rule of the format: its tensors lie one after another, without
    gaps, and each key is there once.
    """
    data = map_file(path)
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        if start > 8 + MAX_HEADER:
            raise ValueError("a header that is too long")
        text = data[8:start]
        check_count(path, text.count(b"{") // 2)  # before they are made
        if text.count(b"[") > 4 * MAX_TENSORS:
            raise ValueError("lists within lists")
        header = json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
        metadata = header.pop(_METADATA, None)
        metadata = {} if metadata is None else metadata
        check_count(path, len(header))
        if not all(isinstance(text, str) and is_unicode(text) for text in (*header, *metadata, *metadata.values())):
            raise ValueError("names or metadata that are not text")
        tensors, spans = {}, []
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            if not type(begin) is type(end) is int or not isinstance(entry["dtype"], str):
                raise ValueError("offsets that are no whole numbers, or a dtype that is no text")
            tensors[key] = _tensor(data, entry["dtype"], entry["shape"], start + begin, start + end)
            spans.append((begin, end))
        position = 0
        for begin, end in sorted(spans):
            if begin != position:
                raise ValueError("tensors that overlap, or bytes between them that belong to none")
            position = end
        if start + position != len(data):
            raise ValueError("bytes that belong to no tensor")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError):
        raise UserError(f"{path} is a safetensors file that is cut off or damaged; {REMEDY}") from None
    return tensors, metadata


def _tensor(data: Mapped, kind: str, shape: list[int], begin: int, end: int) -> np.ndarray:
    """Return the tensor between two bytes; of a kind that nothing here computes with, elements without a meaning."""
    if not 8 <= begin <= end or len(shape) > MAX_AXES:
        raise ValueError("a tensor with invalid offsets or sizes")
    count, length = math.prod(shape), end - begin
    if kind in _NUMPY:
        dtype = numpy_dtype(_NUMPY[kind])
        if count * dtype.itemsize != length:
            raise ValueError("a tensor of another size than its shape")
    elif count and length % count == 0:
        dtype = odd_dtype(kind, length // count)
    else:  # several elements in a byte
        dtype, shape = odd_dtype(kind, 1), [length]
    return view(data, dtype, shape, begin, end)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have")


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    progress: Callable[[int], Any] = lambda count: None,
) -> None:
    """Write tensors and metadata; readers that impose no order of their own see the keys in the given one.

    `progress` gets the number of bytes of each tensor that has been written.
    Raises UserError for a dtype that no file can have, or if the file cannot be written.
    """
    header: dict[str, Any] = {_METADATA: {"format": "pt", **metadata}}  # transformers refuses a file without "format"
    header.update(
        (key, {"dtype": names_of(array, key).safetensors, "shape": array.shape}) for key, array in tensors.items()
    )
    # Wide types first, so that every tensor begins at a multiple of its item size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    position = 0
    for key, array in ordered:
        header[key]["data_offsets"] = [position, position + array.nbytes]
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(raw_bytes(array))
            progress(array.nbytes)
