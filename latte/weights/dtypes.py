"""One table of number types: what NumPy, PyTorch, safetensors and MindSpore call them."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from latte.errors import UserError


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


def numpy_dtype(name: str) -> np.dtype:
    """Return the little-endian dtype of a name in TABLE; only "bfloat16" imports MindSpore, whose type it is."""
    if name != "bfloat16":
        # MindSpore 2.7 does not take "<f4" for its own "f4", though NumPy says that they are equal.
        return np.dtype(name) if sys.byteorder == "little" else np.dtype(name).newbyteorder("<")
    from mindspore.common.np_dtype import bfloat16

    return np.dtype(bfloat16)


def names_of(array: np.ndarray, key: str) -> Names:
    """Return the names of an array's type; raises UserError, naming the key, if no file format has that type."""
    names = BY_NUMPY.get(array.dtype.name)
    if names is None:
        raise UserError(f"{key} has dtype {array.dtype.name}, which cannot be saved; use one of {', '.join(BY_NUMPY)}")
    return names


def raw_bytes(array: np.ndarray) -> memoryview:
    """Return the elements as bytes, little-endian and in C order; copies only an array that is not so already."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
