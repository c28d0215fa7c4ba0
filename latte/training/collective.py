"""What the ranks of a run do together, inside compiled graphs; with one rank, nothing."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops

from latte.runtime import device, graphs

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = 4096  # the most bytes that ranks tell each other

_sum = ops.MultitypeFuncGraph("sum_over_ranks")


@_sum.register("Function", "Tensor")
def _sum_tensor(all_reduce: ops.AllReduce, tensor: ms.Tensor) -> ms.Tensor:
    return all_reduce(tensor)


def sum_over_ranks(tensors: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
    """Return each tensor summed over the ranks."""
    if device.current().world_size == 1:
        return tensors
    return ops.HyperMap()(ops.partial(_sum, ops.AllReduce()), tensors)


def is_shared(tensor: ms.Tensor, zero_stage: int) -> bool:
    """Return whether the optimizer's state of a weight is cut into one part a rank, along its first axis."""
    return zero_stage > 0 and tensor.shape[0] % device.current().world_size == 0


def own_part(tensor: ms.Tensor) -> ms.Tensor:
    """Return this rank's part of a tensor, along its first axis."""
    here = device.current()
    rows = tensor.shape[0] // here.world_size
    return tensor[here.rank * rows : (here.rank + 1) * rows]


def join_parts(part: ms.Tensor) -> ms.Tensor:
    """Return the tensor whose parts the ranks have."""
    return ops.AllGather()(part) if device.current().world_size > 1 else part


def agree_on(text: str) -> str:
    """Return the text of the one rank that gives one, on every rank, or "" if none does; all ranks must call it.

    If several give one, it must be the same.
    """
    world = device.current().world_size
    if world == 1:
        return text
    codes = np.zeros(TEXT, np.float32)
    data = np.frombuffer(text.encode(), np.uint8)
    codes[: len(data)], codes[-1] = data, bool(text)
    summed = _compiled_sum()((ms.Tensor(codes),))[0].asnumpy()
    if not summed[-1]:
        return ""
    return bytes((summed[:-1] / summed[-1]).round().astype(np.uint8)).rstrip(b"\0").decode()


@functools.cache
def _compiled_sum() -> Callable:
    return graphs.compile_training(sum_over_ranks)
