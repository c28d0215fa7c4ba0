"""Communication between the ranks of a run, inside compiled graphs; with one rank it does nothing."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import ops

from latte.runtime import device, graphs
from latte.runtime.tensors import narrow

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = 4096  # the longest text to agree on, in bytes

_sum = ops.MultitypeFuncGraph("sum_over_ranks")


@_sum.register("Function", "Tensor")
def _sum_tensor(all_reduce: ops.AllReduce, tensor: ms.Tensor) -> ms.Tensor:
    return all_reduce(tensor)


def sum_over_ranks(tensors: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
    """Return the sum of each tensor over all ranks, with unchanged shapes."""
    if device.current().world_size == 1:
        return tensors
    return ops.HyperMap()(ops.partial(_sum, ops.AllReduce()), tensors)


def is_shared(tensor: ms.Tensor, zero_stage: int) -> bool:
    """Return whether the optimizer state of a weight is split along its first axis into one part per rank."""
    return zero_stage > 0 and tensor.shape[0] % device.current().world_size == 0


def own_part(tensor: ms.Tensor) -> ms.Tensor:
    """Return this rank's part (n / ranks, ...) of a tensor (n, ...)."""
    here = device.current()
    rows = tensor.shape[0] // here.world_size
    return narrow(tensor, 0, here.rank * rows, (here.rank + 1) * rows)


def join_parts(part: ms.Tensor) -> ms.Tensor:
    """Return the tensor (n, ...) whose parts (n / ranks, ...) the ranks hold."""
    return ops.AllGather()(part) if device.current().world_size > 1 else part


def agree_on(text: str) -> str:
    """Return on every rank the text that one rank passes, or "" if no rank passes one.

    Every rank must call this function. If several ranks pass a text, it must be the same one.
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
