"""Communication between the ranks of a run, inside compiled graphs; with one rank it does nothing."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops

from latte.errors import UserError
from latte.runtime import device, graphs
from latte.runtime.tensors import narrow, on_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LENGTH = 2**20  # the lengths of texts are sent as two digits of this base, as float32 is exact to 2**24

_sum = ops.MultitypeFuncGraph("sum_over_ranks")


@_sum.register("Function", "Tensor")
def _sum_tensor(all_reduce: ops.AllReduce, tensor: ms.Tensor) -> ms.Tensor:
    return all_reduce(tensor)


def sum_over_ranks(tensors: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
    """Return the sum of each tensor over all ranks, with unchanged shapes."""
    if device.current().world_size == 1:
        return tensors
    return ops.HyperMap()(ops.partial(_sum, ops.AllReduce()), tensors)


def sum_to_parts(tensors: tuple[ms.Tensor, ...], is_part: tuple[bool, ...]) -> tuple[ms.Tensor, ...]:
    """Return the sum of each tensor over all ranks, of those that are shared only this rank's part (n / ranks, ...)."""
    if device.current().world_size == 1:
        return tensors
    reduce, found = ops.AllReduce(), []
    for k, tensor in enumerate(tensors):
        found.append(_sum_to_part(tensor) if is_part[k] else reduce(tensor))
    return tuple(found)


def _sum_to_part(tensor: ms.Tensor) -> ms.Tensor:
    if on_cpu():  # which has no ReduceScatter
        return own_part(ops.AllReduce()(tensor))
    return ops.ReduceScatter()(tensor)


def own_part(tensor: ms.Tensor) -> ms.Tensor:
    """Return this rank's part (n / ranks, ...) of a tensor (n, ...)."""
    return narrow(tensor, 0, *_own_range(tensor.shape[0]))


def own_rows(values: np.ndarray) -> np.ndarray:
    """Return this rank's part (n / ranks, ...) of an array (n, ...)."""
    start, stop = _own_range(len(values))
    return values[start:stop]


def _own_range(length: int) -> tuple[int, int]:
    here = device.current()
    rows = length // here.world_size
    return here.rank * rows, (here.rank + 1) * rows


def join_parts(part: ms.Tensor) -> ms.Tensor:
    """Return the tensor (n, ...) whose parts (n / ranks, ...) the ranks hold."""
    return ops.AllGather()(part) if device.current().world_size > 1 else part


def agree_on(text: str) -> str:
    """Return on every rank the text that one rank passes, or "" if no rank passes one.

    Every rank must call this function. If several ranks pass a text, it must be the same one.
    """
    return next(filter(None, gather(text)), "")


def any_rank(flag: bool) -> bool:
    """Return on every rank whether one of them passes True; every rank must call this function."""
    if device.current().world_size == 1:
        return flag
    return bool(_compiled_sum()((ms.Tensor(np.array([flag], np.float32)),))[0].asnumpy()[0])


def gather(text: str) -> list[str]:
    """Return on every rank the texts of all of them, in the order of the ranks; every rank must call this function."""
    here = device.current()
    if here.world_size == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = _rows(np.array([len(data) // LENGTH, len(data) % LENGTH])) @ [LENGTH, 1]
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = _rows(padded).astype(np.uint8)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def check_same(values: Mapping[str, object]) -> None:
    """Raise UserError on every rank if one of these has another value on another rank; every rank must call this.

    Values are compared as texts. The ranks compare digests, and only where these differ the values themselves.
    """
    own = {name: "null" if value is None else str(value) for name, value in values.items()}
    text = json.dumps(own)
    if len(set(gather(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    everyones: list[dict[str, str]] = [json.loads(each) for each in gather(text)]
    first = everyones[0]
    for rank, other in enumerate(everyones):
        differing = [name for name in [*first, *other] if first.get(name) != other.get(name)]
        if differing:
            name, *others = dict.fromkeys(differing)
            more = f" (and other values of {', '.join(others[:9])})" if others else ""
            raise UserError(
                f"{name} is {first.get(name, 'not there')} on rank 0, but {other.get(name, 'not there')} on rank "
                f"{rank}{more}; start every rank with the same options, versions, data and weights"
            )


def _rows(numbers: np.ndarray) -> np.ndarray:
    """Return the whole numbers (n,) below 2**24 of all ranks, (ranks, n) int64."""
    here = device.current()
    own = np.zeros((here.world_size, len(numbers)), np.float32)
    own[here.rank] = numbers
    return _compiled_sum()((ms.Tensor(own),))[0].asnumpy().round().astype(np.int64)


@functools.cache
def _compiled_sum() -> Callable:
    return graphs.compile_training(sum_over_ranks)
