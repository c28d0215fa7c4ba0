"""One table of number types: what NumPy, PyTorch, safetensors and MindSpore call them."""

from __future__ import annotations

import sys
from functools import cache
from typing import NamedTuple

import numpy as np

from latte.errors import UserError, quoted
from latte.weights.mapped import verified


class Names(NamedTuple):
    """The names of one number type."""

    numpy: str
    storage: str  # PyTorch's class, as pickles name it
    safetensors: str
    mindspore: str


TABLE = (
    Names("float64", "DoubleStorage", "F64", "Float64"),
    Names("float32", "FloatStorage", "F32", "Float32"),
    Names("float16", "HalfStorage", "F16", "Float16"),
    Names("bfloat16", "BFloat16Storage", "BF16", "BFloat16"),
    Names("int64", "LongStorage", "I64", "Int64"),
    Names("int32", "IntStorage", "I32", "Int32"),
    Names("int16", "ShortStorage", "I16", "Int16"),
    Names("int8", "CharStorage", "I8", "Int8"),
    Names("uint8", "ByteStorage", "U8", "UInt8"),
    Names("bool", "BoolStorage", "BOOL", "Bool"),
)
BY_NUMPY = {names.numpy: names for names in TABLE}


@cache
def numpy_dtype(name: str) -> np.dtype:
    """Return the little-endian dtype of a name in TABLE; only "bfloat16" imports MindSpore, whose type it is."""
    if name != "bfloat16":
        # MindSpore 2.7 does not take "<f4" for its own "f4", though NumPy says that they are equal.
        return np.dtype(name) if sys.byteorder == "little" else np.dtype(name).newbyteorder("<")
    from mindspore.common.np_dtype import bfloat16

    return np.dtype(bfloat16)


def odd_dtype(name: str, size: int) -> np.dtype:
    """Return a dtype for elements of `size` bytes that nothing here computes with, of which only the name is known.

    Raises ValueError if no library could give a dtype that name.
    """
    if not name.isidentifier() or len(name) > 40:
        raise ValueError("a dtype whose name is damaged")
    return np.dtype([(name, f"V{size}")])


def dtype_name(array: np.ndarray) -> str:
    """Return the name of an array's type, also of one from `odd_dtype`."""
    return array.dtype.names[0] if array.dtype.names else array.dtype.name


def names_of(array: np.ndarray, key: str) -> Names:
    """Return the names of an array's type; raises UserError, naming the key, if no file format has that type."""
    names = BY_NUMPY.get(array.dtype.name)
    if names is None:
        raise UserError(
            f"{quoted(key)} has dtype {dtype_name(array)}, which cannot be saved; use one of {', '.join(BY_NUMPY)}"
        )
    return names


def raw_bytes(array: np.ndarray) -> memoryview:
    """Return the elements as bytes, little-endian and in C order; copies only an array that is not so already.

    Raises UserError if the array is a view of a file whose checksum is wrong.
    """
    array = verified(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
