"""Weights of a like shape as one buffer, so that what changes them is a few launches over all and not some for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import mindspore as ms
import numpy as np

from latte.runtime import device
from latte.runtime.tensors import assign, views

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

MOST = 32  # tensors that CANN joins in one launch; more are joined twice


class Group(NamedTuple):
    """Weights that have one buffer: the weights themselves, or above each other along the first axis."""

    numbers: tuple[int, ...]  # of the weights, in the order of the buffer
    rows: tuple[int, ...]  # of each
    is_part: bool  # with ZeRO, a rank has its part of the rows
    shapes: tuple[tuple[int, ...], ...] = ()  # stage 3: all weights lie in one row, see `latte.training.sharing`

    def parts(self, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and values of each weight in the values of the whole buffer, as views."""
        if self.shapes:
            ends = np.cumsum([math.prod(shape) for shape in self.shapes])
            for number, each, shape in zip(self.numbers, np.split(values, ends), self.shapes, strict=False):
                yield number, each.reshape(shape)
        elif len(self.numbers) == 1:
            yield self.numbers[0], values
        else:
            ends = np.cumsum(self.rows)
            yield from zip(self.numbers, np.split(values, ends[:-1]), strict=True)

    def joined(self, each: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values of the whole buffer from those of each weight."""
        if self.shapes:
            row = np.zeros(self.rows, np.float32)
            np.concatenate([values.reshape(-1) for values in each], out=row[: sum(map(np.size, each))])
            return row
        return np.concatenate(each) if len(each) > 1 else each[0]


def groups_of(weights: Sequence[ms.Tensor], zero_stage: int = 0, without: Collection[int] = ()) -> list[Group]:
    """Return which weights share a buffer: each is alone, or where the device stacks weights, with those like it.

    Those are of one dtype and differ in the length of the first axis only. `without`: the numbers of some that are in
    groups already.
    """
    others = [k for k in range(len(weights)) if k not in without]
    if not device.current().stacks_weights:
        found = [[k] for k in others]
    else:
        alike: dict[object, list[list[int]]] = {}
        for k in others:
            weight = weights[k]
            key = (weight.dtype, weight.shape[1:]) if weight.ndim else k
            lists = alike.setdefault(key, [[]])
            if len(lists[-1]) == MOST:
                lists.append([])
            lists[-1].append(k)
        found = [numbers for lists in alike.values() for numbers in lists]
    ranks = device.current().world_size
    groups = []
    for numbers in found:
        rows = tuple(weights[k].shape[0] if weights[k].ndim else 1 for k in numbers)
        groups.append(Group(tuple(numbers), rows, zero_stage > 0 and ranks > 1 and sum(rows) % ranks == 0))
    return groups


def buffer_of(group: Group, values: Sequence[np.ndarray], name: str) -> ms.Parameter:
    """Return a new float32 parameter with the values of a group, from those of all weights."""
    joined = group.joined([values[k] for k in group.numbers])
    return _parameter(joined.copy() if len(group.numbers) == 1 else joined, name)


def zeros_of(buffer: ms.Parameter, name: str) -> ms.Parameter:
    """Return a new float32 parameter of zeros for the sum of a buffer's gradients."""
    return _parameter(np.zeros(buffer.shape, np.float32), name)


def spread(group: Group, buffer: ms.Tensor, weights: Sequence[ms.Parameter]) -> None:
    """Copy the values of a group's buffer into its weights, of all weights, in their dtype.

    In place, as compiled graphs do not see `set_data`.
    """
    for number, part in zip(group.numbers, views(buffer, group.rows), strict=True):
        assign(weights[number], part)


def _parameter(values: np.ndarray, name: str) -> ms.Parameter:
    return ms.Parameter(ms.Tensor.from_numpy(np.ascontiguousarray(values)), name=name, requires_grad=False)
