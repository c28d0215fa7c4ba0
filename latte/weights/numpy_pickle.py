"""Read NumPy arrays from a pickle of nested dicts, as JAX programs save weights; nothing in it runs."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError
from latte.weights.mapped import MAX_AXES, REMEDY
from latte.weights.pickle_data import Opaque, PickleError, Table, read_pickle

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 256 << 20  # bytes; that of I3D has 51 million
_KIND = re.compile(r"[fiu][1248]|b1")


class _Array:
    """An array that the pickle has named, and will give its state."""

    value: np.ndarray | None = None


def read_numpy_pickle(data: bytes, source: str) -> dict[str, np.ndarray]:
    """Return the arrays of numbers in a pickle, under their keys joined by slashes; all else in it is left out.

    They are read-only views into `data`. Raises UserError, with `source` as the name, if it is no such pickle.
    """
    try:
        if len(data) > LIMIT:
            raise PickleError(f"it has more than {LIMIT >> 20} MiB")
        table = Table(_FUNCTIONS, Opaque, _no_storage, _build)
        found = dict(_arrays(read_pickle(data, table, LIMIT)[0]))
        if not found:
            raise PickleError("it holds no dict of NumPy arrays")
    except PickleError as error:
        raise UserError(f"{source} cannot be read: {error}; {REMEDY}") from None
    return found


def _arrays(obj: Any, name: str = "", depth: int = 0) -> list[tuple[str, np.ndarray]]:
    if isinstance(obj, _Array) and obj.value is not None:
        return [(name, obj.value)]
    if not isinstance(obj, dict):
        return []
    if depth == MAX_AXES:
        raise PickleError("its dicts lie too deep in one another")
    return [item for key, value in obj.items() for item in _arrays(value, f"{name}/{key}" if name else key, depth + 1)]


def _dtype(kind: Any, *_: Any) -> np.dtype:
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise PickleError("an array in it does not hold numbers")
    return np.dtype(kind)


def _build(made: Any, state: Any) -> Any:
    """Return an array or dtype once it has its state, as NumPy's own classes read it; of all else it is ignored."""
    if isinstance(made, np.dtype):
        if state[1] not in ("<", "|"):
            raise PickleError("it was written on a big-endian computer")
    elif isinstance(made, _Array):
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, np.dtype) or not isinstance(raw, bytes) or len(shape) > MAX_AXES:
            raise PickleError("an array in it has no elements")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise PickleError("an array in it has an impossible shape")
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise PickleError("an array in it has another size than its shape")
        made.value = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran_order else "C")
    return made


def _no_storage(_: Any) -> None:
    raise PickleError("it refers to something outside of it")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
}
