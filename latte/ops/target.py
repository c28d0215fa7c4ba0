"""Compile-time questions about the device, usable inside graphs; `on_ascend` is in `latte.runtime.tensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import nn
from mindspore.ops.primitive import constexpr

from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Callable


@constexpr
def on_cpu() -> bool:
    """Return whether the graph being compiled is for a CPU."""
    return device.current().target == "CPU"


@constexpr
def multiplies_int8(dtype: ms.Type) -> bool:
    """Return whether the device of the graph has a kernel for the product of `dtype` and int8 weights with scales."""
    return device.current().multiplies_int8 and dtype in (ms.float16, ms.bfloat16)


@constexpr
def attends_in_blocks() -> bool:
    """Return whether exact attention goes block by block; where a fused kernel trains, that is what saves memory."""
    return device.current().fused_attention != "train"


@constexpr
def only_infers() -> bool:
    """Return whether the device of the graph has the fused attention kernel for inference in place of the other."""
    return device.current().fused_attention == "infer"


@constexpr
def channels_last() -> bool:
    """Return whether images are (N, H, W, C) in the graph being compiled."""
    return device.current().channels_last


@constexpr(check=False)
def _is_none(function: Callable) -> bool:
    return function is None


def in_graph() -> bool:
    """Return whether a graph is being compiled: there, no function reaches what is computed meanwhile."""
    return _is_none(silent)


def silent() -> None:
    """Do nothing."""


class CustomGrad(nn.Cell):
    """A function with a gradient of its own, its `bprop`; one object serves for all calls."""

    def __del__(self) -> None:
        """Do nothing: at the end of the process the clean-up of cells fails, as its own module is gone by then."""
