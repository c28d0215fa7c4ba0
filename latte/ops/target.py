"""Compile-time questions about the device, usable inside graphs."""

from __future__ import annotations

from mindspore.ops.primitive import constexpr

from latte import device


@constexpr
def on_cpu() -> bool:
    """Return whether the graph being compiled is for a CPU."""
    return device.current().target == "CPU"


@constexpr
def channels_last() -> bool:
    """Return whether images are (N, H, W, C) in the graph being compiled."""
    return device.current().channels_last
