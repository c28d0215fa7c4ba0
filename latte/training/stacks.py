"""Weights of a like shape as one buffer, so that what changes them is a few launches over all and not some for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import mindspore as ms
import numpy as np

from latte.runtime import device
from latte.runtime.tensors import assign, views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST = 32  # tensors that CANN joins in one launch; more are joined twice


class Group(NamedTuple):
    """Weights that have one buffer: the weights themselves, or above each other along the first axis."""

    numbers: tuple[int, ...]  # of the weights, in the order of the buffer
    rows: tuple[int, ...]  # of each
    is_part: bool  # with ZeRO, a rank has its part of the rows

    def parts(self, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and values of each weight in the values of the whole buffer, as views."""
        if len(self.numbers) == 1:
            yield self.numbers[0], values
            return
        ends = np.cumsum(self.rows)
        yield from zip(self.numbers, np.split(values, ends[:-1]), strict=True)


def groups_of(weights: Sequence[ms.Tensor], zero_stage: int = 0) -> list[Group]:
    """Return which weights share a buffer: each is alone, or where the device stacks weights, with those like it.

    Those are of one dtype and differ in the length of the first axis only.
    """
    if not device.current().stacks_weights:
        found = [[k] for k in range(len(weights))]
    else:
        alike: dict[object, list[list[int]]] = {}
        for k, weight in enumerate(weights):
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
    first, *rest = [values[k] for k in group.numbers]
    return _parameter(np.concatenate((first, *rest)) if rest else first.copy(), name)


def zeros_of(group: Group, weights: Sequence[ms.Parameter], name: str, parts: int = 1) -> ms.Parameter:
    """Return a new float32 parameter of zeros for a group of weights, or for one of so many parts of its rows."""
    first = weights[group.numbers[0]]
    return _parameter(np.zeros((sum(group.rows) // parts, *first.shape[1:]) if first.ndim else (), np.float32), name)


def spread(group: Group, buffer: ms.Tensor, weights: Sequence[ms.Parameter]) -> None:
    """Copy the values of a group's buffer into its weights, of all weights, in their dtype.

    In place, as compiled graphs do not see `set_data`.
    """
    for number, part in zip(group.numbers, views(buffer, group.rows), strict=True):
        assign(weights[number], part)


def _parameter(values: np.ndarray, name: str) -> ms.Parameter:
    return ms.Parameter(ms.Tensor.from_numpy(np.ascontiguousarray(values)), name=name, requires_grad=False)
