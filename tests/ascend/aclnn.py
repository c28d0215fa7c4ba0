"""Calls the stand-in's operators from NumPy arrays, without MindSpore.

    card().launch("Mm", x, w, out((3, 4), "float16"), 0)                       # -> [array of float16]
    card("Ascend910A").launch("Mm", cast(x, "bfloat16"), ...)                  # raises Refused with the sentence

A card is a process of its own, because the stand-in reads product and mode from the environment once. Tests that call
operators check them against NumPy in float64, rounded to the operator's dtype by `rounded`.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

CODES = {
    "float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4, "int16": 6, "int64": 9, "float64": 11, "bool": 12,
    "bfloat16": 27,
}  # fmt: skip


class Refused(Exception):
    """An operator refused a call; the text is the sentence that it recorded."""


class Tensor(NamedTuple):
    """A tensor as aclCreateTensor takes it; strides and offset count elements of the storage.

    bfloat16 is stored as uint16. What is `returned` comes back from the launch.
    """

    storage: np.ndarray
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: str
    returned: bool


Number = np.generic | ctypes._SimpleCData | float | None
Argument = Tensor | np.ndarray | list[np.ndarray | Tensor] | list[float] | str | Number


class Card:
    """A process that has the stand-in's operators, set to a product and a mode ("compute" or "plan")."""

    def __init__(self, product: str, mode: str):
        from ascend import standin  # takes seconds, and a card's process can do without

        home = standin.build()
        trace = standin.environment()["STANDIN_TRACE"]
        settings = {"STANDIN_PRODUCT": product, "STANDIN_MODE": mode, "STANDIN_TRACE": trace}
        libraries = [home / "lib64/libascendcl.so", home / "lib64/libopapi.so"]
        spawn = multiprocessing.get_context("spawn")
        self.process = ProcessPoolExecutor(1, spawn, _start, (settings, standin.MINDSPORE / "libdnnl.so.3", *libraries))

    def launch(self, operator: str, *arguments: Argument) -> list[np.ndarray]:
        """Call aclnn<operator> and return its tensors that are `returned`, those of bfloat16 as float32.

        `arguments` are those of GetWorkspaceSize up to its last two: arrays (views stay views), tensors, NumPy's
        numbers as aclScalar, lists of numbers or tensors as aclIntArray, aclFloatArray, aclBoolArray or aclTensorList,
        Python's numbers as int64_t, double or bool by value, other widths as `ctypes.c_float(...)`, and text.
        Raises Refused, or AttributeError where the stand-in has no such operator.
        """
        return self.process.submit(_launch, operator, [_described(each) for each in arguments]).result()


@functools.cache
def card(product: str = "Ascend910B2", mode: str = "compute") -> Card:
    """Return the card of a product, started at the first call."""
    return Card(product, mode)


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in a dtype, rounded to nearest even; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.int64)
    return np.asarray((bits + 0x7FFF + (bits // 0x10000 & 1)) // 0x10000, np.uint16)


def plain(array: np.ndarray) -> np.ndarray:
    """Return an array that `cast` made, as float32 where it holds bfloat16."""
    return np.asarray(array * np.uint32(0x10000), np.uint32).view(np.float32) if array.dtype == np.uint16 else array


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values rounded to a dtype, as float64."""
    return plain(cast(values, dtype)).astype(np.float64)


def out(dims: tuple[int, ...], dtype: str = "float32") -> Tensor:
    """Return a tensor for an operator to write to; it holds NaN, or -1 where integers are kept, until then."""
    return returned(np.full(dims, 0xFFFF, np.uint16) if dtype == "bfloat16" else np.full(dims, _unset(dtype), dtype))


def returned(array: np.ndarray) -> Tensor:
    """Return a tensor that is read and written, or only written: an array or a view of one."""
    return _tensor(array)._replace(returned=True)


def _unset(dtype: str) -> float:
    return np.nan if dtype.startswith("float") else 0 if dtype.startswith(("u", "b")) else -1


def _tensor(array: np.ndarray) -> Tensor:
    root = array
    while isinstance(root.base, np.ndarray) and root.base.dtype == array.dtype:
        root = root.base
    if not root.flags.forc:
        root = array = np.array(array, order="C")
    offset = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    dtype = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Tensor(root.ravel(order="K"), array.shape, strides, offset // array.itemsize, dtype, returned=False)


def _described(argument: Argument) -> Argument:
    """Return an argument in a form that keeps views on its way to the card's process."""
    if isinstance(argument, np.ndarray):
        return _tensor(argument)
    if isinstance(argument, list):
        return [_tensor(each) if isinstance(each, np.ndarray) else each for each in argument]
    return argument


# What follows runs in the card's process.
_libraries: list[ctypes.CDLL] = []


def _start(settings: dict[str, str], *paths: Path) -> None:
    """Load oneDNN, libascendcl and libopapi; the last two use each other, so names are bound when both are there."""
    os.environ.update(settings)
    for path in paths:
        ctypes.CDLL(None).dlopen(str(path).encode(), os.RTLD_LAZY | os.RTLD_GLOBAL)
    runtime, operators = (ctypes.CDLL(str(path)) for path in paths[1:])
    _libraries.extend((operators, runtime))
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    for kind in ("Tensor", "Scalar", "IntArray", "FloatArray", "BoolArray", "TensorList"):
        getattr(operators, f"aclCreate{kind}").restype = ctypes.c_void_p


def _launch(operator: str, arguments: list[Argument]) -> list[np.ndarray]:
    operators, runtime = _libraries
    prepare, run = getattr(operators, f"aclnn{operator}GetWorkspaceSize"), getattr(operators, f"aclnn{operator}")
    workspace, executor = ctypes.c_uint64(), ctypes.c_void_p()
    handles = [_handle(each) for each in arguments]
    if prepare(*handles, ctypes.byref(workspace), ctypes.byref(executor)):
        raise Refused(runtime.aclGetRecentErrMsg().decode())
    if run(None, workspace, executor, None):
        raise Refused(runtime.aclGetRecentErrMsg().decode())
    flat = [part for each in arguments for part in (each if isinstance(each, list) else [each])]
    return [_result(each) for each in flat if isinstance(each, Tensor) and each.returned]


def _result(tensor: Tensor) -> np.ndarray:
    start, strides = tensor.storage[tensor.offset :], [stride * tensor.storage.itemsize for stride in tensor.strides]
    return plain(np.lib.stride_tricks.as_strided(start, tensor.dims, strides).copy())


def _handle(argument: Argument) -> object:
    """Return what the operator is passed; the stand-in keeps no pointer beyond the launch but those to storages."""
    create = _libraries[0]
    if isinstance(argument, Tensor):
        rank = len(argument.dims)
        dims, strides = (ctypes.c_int64 * rank)(*argument.dims), (ctypes.c_int64 * rank)(*argument.strides)
        data = ctypes.c_void_p(argument.storage.ctypes.data)
        places = (ctypes.c_uint64(rank), CODES[argument.dtype], strides, ctypes.c_int64(argument.offset), 2)
        return ctypes.c_void_p(create.aclCreateTensor(dims, *places, dims, ctypes.c_uint64(rank), data))
    if isinstance(argument, np.generic):
        value = np.array(argument)
        return ctypes.c_void_p(create.aclCreateScalar(ctypes.c_void_p(value.ctypes.data), CODES[value.dtype.name]))
    if isinstance(argument, list):
        return _array(argument)
    if isinstance(argument, str):
        return ctypes.c_char_p(argument.encode())
    for kind, value in ((bool, ctypes.c_bool), (int, ctypes.c_int64), (float, ctypes.c_double)):
        if isinstance(argument, kind):
            return value(argument)
    return argument


def _array(values: list) -> ctypes.c_void_p:
    first = values[0] if values else 0
    if isinstance(first, Tensor):
        kind, element, values = "TensorList", ctypes.c_void_p, [_handle(each) for each in values]
    elif isinstance(first, bool):
        kind, element = "BoolArray", ctypes.c_bool
    elif isinstance(first, float):
        kind, element = "FloatArray", ctypes.c_float
    else:
        kind, element = "IntArray", ctypes.c_int64
    create = getattr(_libraries[0], f"aclCreate{kind}")
    return ctypes.c_void_p(create((element * len(values))(*values), ctypes.c_uint64(len(values))))
