"""Prints the gradient, in a graph, of each form in `latte.runtime.tensors` that has one, on a device.

python tests/ascend/standin.py python tests/ascend/gradients.py Ascend; python tests/ascend/gradients.py CPU
"""

import json
import sys

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.runtime import device, tensors

GRADIENT = ops.GradOperation()


def narrow(x, w):
    """Cut along each axis in turn."""
    return tensors.narrow(tensors.narrow(tensors.narrow(x * w, 0, 1, 3), 1, 0, 3), 2, 2, 4)


def split(x, w):
    """Take the parts by different factors."""
    a, b = tensors.split(x * w, 2, 1)
    return 2 * a + b


def mean(x, w):
    """Mean over several axes."""
    return tensors.mean(x * w, (0, 2), True)


def largest(x, w):
    """The largest along an axis."""
    return tensors.largest(x * w, 1)


def stack(x, w):
    """Two tensors as one."""
    return tensors.stack((x * w, w)) * w


def add_all(x, w):
    """The sum of several."""
    return tensors.add_all((x * w, w, w))


def rows(x, w):
    """Rows of a table, one of them twice."""
    return tensors.rows(x * w, ms.Tensor([1, 3, 1], ms.int32))


class Program(nn.Cell):
    """The gradient of a sum of exponentials of what a function returns."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def total(self, x, w):
        """Return a number whose gradient differs for all elements."""
        return ops.exp(self.function(x, w) * 0.3).sum()

    @ms.jit
    def construct(self, x, w):
        """Return the gradient of x."""
        return GRADIENT(self.total)(x, w)


device.init_device(sys.argv[1])
chance = np.random.default_rng(0)
x, w = (ms.Tensor(chance.normal(size=(4, 4, 4)).astype(np.float32)) for _ in range(2))
functions = (narrow, split, mean, largest, stack, add_all, rows)
print(json.dumps({function.__name__: Program(function)(x, w).asnumpy().tolist() for function in functions}))
