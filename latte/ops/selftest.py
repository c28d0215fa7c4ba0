"""A few operations of the networks, forward and backward, beside NumPy: does the device compute what it should?"""

from __future__ import annotations

import json
import sys

import mindspore as ms
import numpy as np

from latte.errors import UserError, first_line
from latte.ops import conv2d, from_nchw, linear, silu, to_nchw
from latte.runtime import device, graphs

ROWS, WIDTH, SIZE = 256, 512, 32


def main(target: str, device_id: str) -> None:
    """Print, as JSON, the device (by default the best) and what `run` returns, or why that failed."""
    try:
        here = device.init_device(target or None, int(device_id))
        report = {"target": here.target, "errors": run()}
    except UserError as error:
        report = {"failed": str(error)}
    except Exception as error:  # whatever a driver can do
        report = {"failed": f"{target or 'the best device'}: {first_line(error)}"}
    sys.stdout.write(json.dumps(report) + "\n")  # what `latte.runtime.doctor` reads


def run() -> dict[str, dict[str, float]]:
    """Return for each dtype of the device the largest error of forward, backward and convolution, each relative."""
    rng = np.random.default_rng(0)
    shapes = {"x": (ROWS, WIDTH), "weight": (WIDTH, WIDTH), "bias": (WIDTH,), "d": (ROWS, WIDTH)}
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    values["weight"] /= WIDTH**0.5
    image, kernel = rng.normal(size=(1, 16, SIZE, SIZE)), rng.normal(size=(32, 16, 3, 3)) / 12
    output, gradients = _layer_in_numpy(**values)
    convolved = _convolution_in_numpy(image, kernel)
    layer, derivative, convolve = (graphs.compile_training(step) for step in (_layer, _gradients, _convolution))
    errors = {}
    for name in device.current().tensor_dtypes:
        dtype = device.DTYPES[name]
        given = [ms.Tensor(value, ms.float32).astype(dtype) for value in values.values()]
        images = [ms.Tensor(value, ms.float32).astype(dtype) for value in (image, kernel, np.zeros(32))]
        found = [_error(*pair) for pair in zip(derivative(*given), gradients, strict=True)]
        errors[name] = {
            "forward": _error(layer(*given[:3]), output),
            "backward": float(np.max(found)),
            "convolution": _error(convolve(*images), convolved),
        }
    return errors


def _layer(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    return silu(linear(x, weight, bias))


def _weighted(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, d: ms.Tensor) -> ms.Tensor:
    return (_layer(x, weight, bias) * d).astype(ms.float32).sum()


def _gradients(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, d: ms.Tensor) -> tuple:
    return ms.grad(_weighted, (0, 1, 2))(x, weight, bias, d)


def _convolution(image: ms.Tensor, kernel: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    return to_nchw(conv2d(from_nchw(image), kernel, bias))


def _layer_in_numpy(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, d: np.ndarray) -> tuple:
    """Return the output and the gradients of its product with d, of x, weight and bias."""
    z = x @ weight.T + bias
    sigmoid = 1 / (1 + np.exp(-z))
    dz = d * sigmoid * (1 + z * (1 - sigmoid))
    return z * sigmoid, (dz @ weight, dz.T @ x, dz.sum(0))


def _convolution_in_numpy(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    # NumPy's stubs forget that `axis` may be a tuple.
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))  # type: ignore[call-overload]
    return np.einsum("nchwij,ocij->nohw", windows, kernel)  # windows (N, C, H, W, 3, 3)


def _error(actual: ms.Tensor, expected: np.ndarray) -> float:
    actual = actual.astype(ms.float32).asnumpy()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
