"""How MindSpore calls the operators of CANN: its functions on the stand-in and their gradients, beside float64."""

from typing import NamedTuple

import numpy as np
import pytest
from ascend.calls import CALLS
from ascend.reference import Convolution, hf32, normal

# A rounding to the dtype or two, against the largest element.
ROOM = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


class Call(NamedTuple):
    arguments: list
    output: np.ndarray
    weights: np.ndarray
    gradients: list


def convolution(kernel, stride, padding):
    axes = len(kernel)
    truth = Convolution(kernel, [stride] * axes, [padding] * axes, [1] * axes, 1)
    return lambda x, w, b: truth.features(x, w) + b.reshape(-1, *[1] * axes)


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


FUNCTIONS = {
    "layer_norm": lambda x, w, b: normal(x, -1, 1e-6)[0] * w + b,
    "layer_norm_without_weights": lambda x: normal(x, -1, 1e-6)[0],
    "group_norm": lambda x, w, b: (
        normal(x.reshape(2, 4, -1), -1, 1e-5)[0].reshape(x.shape) * w[:, None, None] + b[:, None, None]
    ),
    "rms_norm": lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w,
    "softmax": lambda x: softmax(x, 1),
    "log_softmax": lambda x: np.log(softmax(x, -1)),
    "conv2d": convolution((3, 3), 1, 1),
    "conv2d_of_patches": convolution((2, 2), 2, 0),
    "conv3d": convolution((3, 3, 3), 1, 1),
    "linear": lambda x, w, b: x @ w.T + b,
    "matmul_transposed": lambda a, b: a @ b.T,
    "batch_matmul_transposed": lambda a, b: a @ b.swapaxes(-1, -2),
    "addmm": lambda c, a, b: c + 2 * (a @ b),
    "baddbmm": lambda c, a, b: c + 2 * (a @ b),
    **dict.fromkeys(("matmul", "matmul_with_a_matrix", "bmm", "mv", "dot"), np.matmul),
}
OPERATORS = "LayerNorm GroupNorm RmsNorm Softmax LogSoftmax Convolution Matmul Mm BatchMatMul Addmm Baddbmm Mv Dot"
GRADIENTS = "LayerNormBackward GroupNormBackward RmsNormGrad SoftmaxBackward LogSoftmaxBackward ConvolutionBackward"


def slopes(function, arguments, weights):
    """Return the gradients of the weighted sum of a function's output, by central differences."""
    found = []
    for k, argument in enumerate(arguments):
        slope = np.zeros_like(argument)
        for place in np.ndindex(*argument.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [each.copy() for each in arguments]
                moved[k][place] += step
                ends.append((function(*moved) * weights).sum())
            slope[place] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found


@pytest.fixture
def called(on_standin, tmp_path):
    """Return a function that runs calls on the stand-in: name -> Call, and what was launched and printed."""

    def run(dtype, *words, **settings):
        done = on_standin("tests/ascend/calls.py", tmp_path / "results.npz", dtype, *words, **settings)
        with np.load(tmp_path / "results.npz") as file:
            results = {name: file[name].astype(np.float64) for name in file.files}
        calls = {}
        for function, shapes in CALLS.items():
            name, n = function.__name__, len(shapes)
            if f"{name}/0" in results:
                parts = [results[f"{name}/{i}"] for i in range(2 * n + 2)]
                calls[name] = Call(parts[:n], parts[n], parts[n + 1], parts[n + 2 :])
        return calls, done

    return run


def deviation(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(half, marks=pytest.mark.slow) for half in ("float16", "bfloat16"))]
)
def test_mindspore_calls_operators_as_their_pages_say(dtype, called):
    calls, done = called(dtype)
    assert set(calls) == {function.__name__ for function in CALLS}, done.stderr
    found = {}
    for name, (arguments, output, weights, gradients) in calls.items():
        found[name] = deviation(output, FUNCTIONS[name](*arguments))
        wanted = slopes(FUNCTIONS[name], arguments, weights)
        found |= {
            f"{name}, gradient {i}": deviation(*pair) for i, pair in enumerate(zip(gradients, wanted, strict=True))
        }
    assert max(found.values()) <= ROOM[dtype], {name: each for name, each in found.items() if each > ROOM[dtype]}
    assert {f"aclnn{each}" for each in f"{OPERATORS} {GRADIENTS}".split()} <= set(done.launches)


def test_mindspore_multiplies_float32_convolutions_in_hf32_unless_told_otherwise(called):
    calls, _ = called("float32", "--hf32", "conv2d_of_patches", "matmul")
    x, w, b = calls["conv2d_of_patches"].arguments
    truth = FUNCTIONS["conv2d_of_patches"]
    assert deviation(calls["conv2d_of_patches"].output, truth(hf32(x), hf32(w), b)) < 1e-6
    assert deviation(calls["conv2d_of_patches"].output, truth(x, w, b)) > 3e-5
    assert deviation(calls["matmul"].output, np.matmul(*calls["matmul"].arguments)) < 1e-6


def test_the_910a_multiplies_float32_as_float16_and_has_no_convolution(called):
    calls, done = called("float32", "conv2d", "matmul", product="Ascend910A")
    halves = [each.astype(np.float16).astype(np.float64) for each in calls["matmul"].arguments]
    assert deviation(calls["matmul"].output, np.matmul(*halves)) < 1e-6
    assert "conv2d" not in calls
    assert "aclnnConvolution refuses this call on Ascend910A: this product has no aclnnConvolution" in done.stderr
