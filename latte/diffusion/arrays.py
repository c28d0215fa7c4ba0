"""What solvers ask of latents beyond sums and products, for arrays of NumPy and for tensors on a device alike.

Where a network runs on an accelerator, latents stay there from the first step to the last: the host waits for none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, mint, ops

from latte.runtime.tensors import uploaded

Latents = Any  # a NumPy array or a tensor of MindSpore, (B, F, C, H, W) float32


def exp(x: Latents) -> Latents:
    """Return the exponential of each element."""
    return mint.exp(x) if isinstance(x, Tensor) else np.exp(x)


def join(parts: list[Latents], axis: int) -> Latents:
    """Return the parts one after the other along an axis."""
    return ops.concat(parts, axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def like(values: np.ndarray, other: Latents) -> Latents:
    """Return an array as what `other` is; a tensor is brought to the device once."""
    return uploaded(values) if isinstance(other, Tensor) else values


def as_array(x: Any) -> np.ndarray:
    """Return an array, or a tensor of MindSpore, as an array of NumPy; for a tensor it waits for the device."""
    return np.asarray(x.asnumpy() if hasattr(x, "asnumpy") else x)
