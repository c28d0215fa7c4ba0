"""safetensors files: eight bytes of length, a JSON header, the elements.

Read and written here because the package of that name gives NumPy no bfloat16 and does not keep the order of keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError
from latte.io.atomic import atomic_path
from latte.weights.dtypes import TABLE, names_of, numpy_dtype, raw_bytes
from latte.weights.mapped import REMEDY, map_file, view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_NUMPY = {names.safetensors: names.numpy for names in TABLE}
_METADATA = "__metadata__"


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors, read-only views into the file in the order of its header, and the metadata.

    Raises UserError if the file is damaged or has a tensor of a dtype that `dtypes` does not list.
    """
    data = map_file(path)
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        metadata = header.pop(_METADATA, None) or {}
        tensors = {}
        for key, entry in header.items():
            if entry["dtype"] not in _NUMPY:
                raise UserError(f"{path}: {key} has dtype {entry['dtype']}, which is not supported; save it as F32")
            dtype = numpy_dtype(_NUMPY[entry["dtype"]])
            begin, end = entry["data_offsets"]
            if end - begin != dtype.itemsize * int(np.prod(entry["shape"], dtype=object)) or start + end > len(data):
                raise ValueError
            tensors[key] = view(data, dtype, entry["shape"], start + begin, start + end)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is a safetensors file that is cut off or damaged; {REMEDY}") from None
    return tensors, {str(key): str(value) for key, value in metadata.items()}


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
