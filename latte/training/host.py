"""AdamW's moments and the EMA weights in host memory, and the update there (ZeRO-Offload; Ren et al., 2021).

Gradients come down from the device, buffer by buffer, and new weights go up. NumPy computes in float32, with the
operations of `latte.ops.adam` in the same order, in parts that stay in a core's cache, by as many threads as the
process has cores.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.training.optim import AdamW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PART = 1 << 16  # elements that a thread takes at once


class HostBuffer:
    """A float32 array in host memory, which it takes over, with what state is read and written by of a parameter.

    A parameter itself would move to the device with the first operation that takes it.
    """

    dtype = ms.float32

    def __init__(self, values: np.ndarray, name: str):
        self.values, self.name = values, name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    def asnumpy(self) -> np.ndarray:
        """Return the array itself."""
        return self.values

    def set_data(self, tensor: ms.Tensor) -> None:
        """Copy the values of a tensor."""
        np.copyto(self.values, tensor.asnumpy())


def moved(parameter: ms.Parameter) -> HostBuffer:
    """Return a copy of a parameter's values in host memory, under its name."""
    return HostBuffer(np.array(parameter.asnumpy(), np.float32, order="C"), parameter.name)


def as_tensor(buffer: ms.Parameter | HostBuffer) -> ms.Tensor:
    """Return a buffer, wherever it is, as a tensor for the device."""
    return ms.Tensor(buffer.asnumpy()) if isinstance(buffer, HostBuffer) else buffer


class HostAdamW(AdamW):
    """AdamW on the host; its weights are there too, but for those that are parameters, which are read each time."""

    def begin(self, learning_rate: float, taken: int) -> None:
        """Begin a step; `taken`: the steps before it."""
        one, (power1, power2) = np.float32(1), self.advance()
        correction = np.sqrt(one - power2)
        rate = np.float32(learning_rate) * correction / (one - power1)
        decay = one - np.float32(learning_rate) * np.float32(self.weight_decay)
        shares = [one - np.float32(beta) for beta in self.betas]
        self.step = (rate, decay, *shares, np.float32(self.eps) * correction)

    def new_weights(self, number: int, gradient: np.ndarray, factor: np.float32) -> np.ndarray:
        """Update the moments of this number by a gradient times `factor`, and return the new weights, float32.

        They are those of the host, updated in place, or where these are a parameter, a copy.
        """
        weight, step = self.weights[number], self.step
        values = weight.asnumpy() if isinstance(weight, HostBuffer) else weight.asnumpy().copy()
        moments = self.moment1[number].asnumpy(), self.moment2[number].asnumpy()
        _by_parts(lambda w, m, v, g: _adam(w, m, v, g, factor, *step), (values, *moments, gradient))
        return values

    def _zeros(self, prefix: str) -> Sequence[HostBuffer]:
        return [HostBuffer(np.zeros(weight.shape, np.float32), f"{prefix}.{weight.name}") for weight in self.weights]


def move_average(average: HostBuffer, values: np.ndarray, share: float) -> None:
    """Add to a buffer `share` of its distance to some values, in place."""
    _by_parts(lambda a, v: _move(a, v, np.float32(share)), (average.values, values))


def _adam(
    weights: np.ndarray, moment1: np.ndarray, moment2: np.ndarray, gradient: np.ndarray, factor: np.float32,
    rate: np.float32, decay: np.float32, share1: np.float32, share2: np.float32, eps: np.float32,
) -> None:  # fmt: skip
    gradient = gradient * factor
    change = gradient - moment1
    change *= share1
    moment1 += change
    np.multiply(gradient, gradient, out=gradient)
    gradient -= moment2
    gradient *= share2
    moment2 += gradient
    np.sqrt(moment2, out=gradient)
    gradient += eps
    np.divide(moment1, gradient, out=change)
    change *= rate
    if decay != 1:
        weights *= decay
    weights -= change


def _move(average: np.ndarray, values: np.ndarray, share: np.float32) -> None:
    distance = values - average
    distance *= share
    average += distance


def _by_parts(function: Callable, arrays: tuple[np.ndarray, ...]) -> None:
    """Call a function for each part of arrays of one shape, which are contiguous."""
    flat = [array.reshape(-1) for array in arrays]
    starts = range(0, flat[0].size, PART)
    run = _pool().map if len(starts) > 1 else map
    list(run(lambda start: function(*(array[start : start + PART] for array in flat)), starts))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
