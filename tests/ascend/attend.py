"""A program for tests: attends and multiplies by int8 weights as on this card, and prints how far from NumPy it is.

standin.py --product Ascend910B4 python attend.py float16
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable

import mindspore as ms
import numpy as np

from latte.ops import ascend, blockwise
from latte.ops.attention import attention
from latte.ops.linear import linear
from latte.runtime import device
from latte.runtime.graphs import compile_step

HEADS, WIDTH, SCALE = 2, 16, 0.25
SHAPES = [(7, 5, HEADS * WIDTH), (7, 6, HEADS * WIDTH), (7, 6, HEADS * WIDTH)]


def main() -> None:
    """Print a line of JSON: the kernel, and the largest relative error of each case."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device.init_device("Ascend")
    dtype = {"float16": ms.float16, "bfloat16": ms.bfloat16}[sys.argv[1]]
    generator = np.random.default_rng(0)
    q, k, v, dy = (ms.Tensor(generator.normal(size=s), ms.float32).astype(dtype) for s in [*SHAPES, SHAPES[0]])
    bias = np.where(generator.random((7, 1, 1, 6)) < 0.3, np.float32(-1e9), np.float32(0))
    bias[..., 0] = 0
    ascend.FLASH_BATCH = ascend.PROMPT_BATCH = 3  # a batch of 7 is three parts
    blockwise.SCORES = int(sys.argv[2]) if len(sys.argv) > 2 else blockwise.SCORES  # of exact attention, at once
    errors = forward(q, k, v, bias) | gradient(q, k, v, dy, bias) | int8(q, generator)
    print(json.dumps({"chip": device.current().chip, **errors}))


def forward(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: np.ndarray) -> dict[str, float]:
    """Return the errors without a mask and with one, of the kernel that sampling is given."""
    attend = compile_step(attend_by(device.use_flash_attention(True, q.dtype)))
    found = {"forward": 0.0, "masked": 0.0}
    for step in range(3):  # a graph uses its kernels' executors again
        x = [each + step for each in (q, k, v)]
        for name, b in (("forward", None), ("masked", bias)):
            given = attend(*x, None if b is None else ms.Tensor(b))
            found[name] = max(found[name], error(given, numpy_attention(*x, 0 if b is None else b)))
    inverted = np.where(bias < 0, 0, -1e9).astype(np.float32)
    return found | {"wrong sign": error(attend(q, k, v, ms.Tensor(inverted)), numpy_attention(q, k, v, bias))}


def attend_by(flash: bool) -> Callable:
    """Return a function of (q, k, v, bias) that can be compiled."""

    def attend(q, k, v, bias):
        return attention(q, k, v, HEADS, SCALE, flash, bias)

    return attend


def gradient(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, dy: ms.Tensor, bias: np.ndarray) -> dict[str, float]:
    """Return the errors of the gradients with respect to q, k and v, of the kernel that training is given."""
    attend = attend_by(device.use_flash_attention(True, q.dtype, training=True))

    def loss(q, k, v, bias):
        return (attend(q, k, v, bias).astype(ms.float32) * dy.astype(ms.float32)).sum()

    found = {}
    for name, b in (("gradient", None), ("masked gradient", ms.Tensor(bias))):
        grads = compile_step(ms.grad(loss, (0, 1, 2)))(q, k, v, b)
        wanted = numpy_gradient(q, k, v, dy, 0 if b is None else bias)
        found[name] = max(error(g, w) for g, w in zip(grads, wanted, strict=True))
    return found


def int8(x: ms.Tensor, generator: np.random.Generator) -> dict[str, float]:
    """Return the error of a product with int8 weights."""
    matrix = ms.Tensor(generator.integers(-128, 128, (24, x.shape[-1]), np.int8))
    scale = ms.Tensor(generator.uniform(0.01, 0.02, 24), ms.float32)
    bias = ms.Tensor(generator.normal(size=24), ms.float32)

    def product(x, matrix, scale, bias):
        return linear(x, (matrix, scale), bias)

    wanted = numbers(x) @ (numbers(matrix) * numbers(scale)[:, None]).T + numbers(bias)
    return {"int8": error(compile_step(product)(x, matrix, scale, bias), wanted)}


def numbers(x: ms.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return x.astype(ms.float32).asnumpy().astype(np.float64)


def split(x: np.ndarray) -> np.ndarray:
    """Return (N, L, heads * width) as (N, heads, L, width)."""
    return x.reshape(*x.shape[:2], HEADS, WIDTH).transpose(0, 2, 1, 3)


def join(x: np.ndarray) -> np.ndarray:
    """Do the opposite."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def probabilities(q: ms.Tensor, k: ms.Tensor, bias: np.ndarray | int) -> np.ndarray:
    """Return the softmax of the scores (N, heads, L, S)."""
    scores = SCALE * split(numbers(q)) @ split(numbers(k)).swapaxes(-1, -2) + bias
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def numpy_attention(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, bias: np.ndarray | int) -> np.ndarray:
    """Return the attention in float64."""
    return join(probabilities(q, k, bias) @ split(numbers(v)))


def numpy_gradient(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, dy: ms.Tensor, bias: np.ndarray | int
) -> tuple[np.ndarray, ...]:
    """Return the gradients with respect to q, k and v in float64."""
    p, dyh = probabilities(q, k, bias), split(numbers(dy))
    dp = dyh @ split(numbers(v)).swapaxes(-1, -2)
    ds = SCALE * p * (dp - (dp * p).sum(-1, keepdims=True))
    of_q, of_k, of_v = ds @ split(numbers(k)), ds.swapaxes(-1, -2) @ split(numbers(q)), p.swapaxes(-1, -2) @ dyh
    return join(of_q), join(of_k), join(of_v)


def error(given: ms.Tensor, wanted: np.ndarray) -> float:
    """Return the largest relative error."""
    return float(np.abs(numbers(given) - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    main()
