"""Compile-time questions about the device, usable inside graphs; more of them are in `latte.runtime.tensors`."""

from __future__ import annotations

import mindspore as ms
from mindspore.ops.primitive import constexpr

from latte.runtime import device


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
