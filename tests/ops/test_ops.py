"""Operations and their gradients, many of which are written out for the CPU, beside NumPy in float64."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from support.golden_values import ROOT

from latte.ops import (
    attention,
    conv2d,
    cpu_images,
    gated_residual,
    gelu,
    modulated_norm,
    norm_conv,
    self_attention,
    upsample_conv,
)
from latte.ops.attention import swap
from latte.ops.blockwise import blockwise_attention
from latte.runtime import device

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def tensor(values, dtype=ms.float32):
    return ms.Tensor(np.asarray(values, np.float32)).astype(dtype)


def run(function, *arrays, dtype=ms.float32):
    """Return the result of a function of tensors, a random gradient of it, and the gradients of the arrays."""
    inputs = [tensor(a, dtype) for a in arrays]
    result = ms.jit(function)(*inputs).astype(ms.float32).asnumpy()
    d = normal(*result.shape)

    def weighted(given, *inputs):
        return (function(*inputs).astype(ms.float32) * given).sum()

    gradient = ms.jit(ms.grad(weighted, tuple(range(1, len(inputs) + 1))))
    found = gradient(tensor(d), *inputs)
    found = [g.astype(ms.float32).asnumpy() for g in (found if len(inputs) > 1 else (found,))]
    return result, d, found


def assert_near(actual, expected, tolerance=2e-6):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1)


def numeric(function, arrays, d, eps=1e-6):
    """Return gradients of sum(function * d) by central differences in float64, along random directions."""
    found = []
    for i, array in enumerate(arrays):
        direction = normal(*array.shape)
        moved = [[a + sign * eps * direction if j == i else a for j, a in enumerate(arrays)] for sign in (1, -1)]
        found.append((direction, ((function(*moved[0]) - function(*moved[1])) * d).sum() / (2 * eps)))
    return found


def check(function, reference, *arrays, tolerance=2e-6):
    """Compare a function and its gradients, along random directions, with a reference in NumPy."""
    result, d, gradients = run(function, *arrays)
    assert_near(result, reference(*arrays), tolerance)
    for gradient, array, (direction, expected) in zip(gradients, arrays, numeric(reference, arrays, d), strict=True):
        assert gradient.shape == array.shape
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction) / np.sqrt(direction.size) + 1e-3
        assert abs((gradient * direction).sum() - expected) <= 1e-4 * scale


def exact(q, k, v):
    scores = q @ k.transpose(0, 2, 1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p @ v


def exact_gradients(q, k, v, d):
    scores = q @ k.transpose(0, 2, 1)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = d @ v.transpose(0, 2, 1)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    return ds @ k, ds.transpose(0, 2, 1) @ q, p.transpose(0, 2, 1) @ d


@pytest.mark.parametrize(
    "scores, keys",
    [
        (2**22, 2048),  # all at once
        (4 * 9 * 7, 2048),  # three of the six at once
        pytest.param(4 * 7, 2048, marks=pytest.mark.slow),  # four queries with all keys
        pytest.param(4 * 3, 3, marks=pytest.mark.slow),  # four queries and three keys
    ],
)
@pytest.mark.parametrize(
    "large", [1.0, pytest.param(10.0, marks=[pytest.mark.slow, pytest.mark.long])]
)  # 10: one key has almost all
def test_blockwise_attention_is_exact_whatever_the_blocks(scores, keys, large):
    q, k, v = normal(6, 9, 4) * large, normal(6, 7, 4), normal(6, 7, 4)
    result, d, gradients = run(by_blocks(scores, keys), q, k, v)
    tolerance = 1e-5 if keys > 7 else 3e-5  # several blocks of keys need the CPU's exp, which is 6e-6 off
    assert_near(result, exact(q, k, v), tolerance)
    for gradient, expected in zip(gradients, exact_gradients(q, k, v, d), strict=True):
        assert_near(gradient, expected, tolerance)


def by_blocks(scores, keys):
    def call(q, k, v):
        return blockwise_attention(q, k, v, scores, keys)

    return call


@pytest.mark.parametrize("scores, keys", [(2**22, 2048), pytest.param(20, 4, marks=pytest.mark.slow)])
def test_blockwise_attention_in_float16(scores, keys):
    q, k, v = (normal(3, 6, 8).astype(np.float16).astype(np.float64) for _ in range(3))
    result, d, gradients = run(by_blocks(scores, keys), q, k, v, dtype=ms.float16)
    assert_near(result, exact(q, k, v), 2e-3)
    for gradient, expected in zip(gradients, exact_gradients(q, k, v, d), strict=True):
        assert_near(gradient, expected, 5e-3)


MEMORY = """
import re, sys
import mindspore as ms, numpy as np
from latte.ops.blockwise import blockwise_attention
ms.set_context(mode=ms.PYNATIVE_MODE)
def loss(q, k, v):
    return blockwise_attention(q, k, v, 2**20, 512).sum()
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
gradient = ms.jit(ms.grad(loss, (0, 1, 2)))
small, large = ([ms.Tensor(np.ones((1, n, 8), np.float32)) for _ in range(3)] for n in (512, int(sys.argv[1])))
gradient(*small)[0].asnumpy()
before = peak()
gradient(*large)[0].asnumpy()
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_of_attention_grows_linearly(tmp_path):
    (tmp_path / "memory.py").write_text(MEMORY)  # MindSpore compiles only what is in a file
    grown = []
    for length in (2048, 4096):
        command = [sys.executable, tmp_path / "memory.py", str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        grown.append(int(done.stdout.split()[-1]) // 1024)
    assert grown[1] < 2.5 * grown[0], grown  # MiB, with those of compiling


def test_attention_by_heads():
    q, k, v = normal(2, 5, 12), normal(2, 7, 12), normal(2, 7, 12)
    bias = np.where(RNG.random((2, 1, 1, 7)) < 0.5, -1e4, 0.0)

    def by_heads(a):
        return a.reshape(2, -1, 3, 4).transpose(0, 2, 1, 3).reshape(6, -1, 4)

    def reference(q, k, v, bias=0.0):
        scores = by_heads(0.3 * q) @ by_heads(k).transpose(0, 2, 1) + np.broadcast_to(bias, (2, 3, 5, 7)).reshape(
            6, 5, 7
        )
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ by_heads(v)
        return y.reshape(2, 3, 5, 4).transpose(0, 2, 1, 3).reshape(2, 5, 12)

    masked = tensor(bias)

    def plain(q, k, v):
        return attention(q, k, v, 3, 0.3, False)

    def biased(q, k, v):
        return attention(q, k, v, 3, 0.3, False, masked)

    check(plain, reference, q, k, v)
    check(biased, lambda q, k, v: reference(q, k, v, bias), q, k, v)


@pytest.mark.parametrize("width", [4, 3])
@pytest.mark.parametrize("temporal", [False, True])
def test_self_attention_over_patches_or_frames(temporal, width):
    b, f, t, heads = 2, 3, 5, 2
    d = heads * width
    x, qkv, proj = normal(b, f, t, d), normal(3 * d, d) * d**-0.5, normal(d, d) * d**-0.5
    zero = [np.zeros(3 * d), np.zeros(d)]

    def reference(x, qkv, proj):
        q, k, v = np.split(x @ qkv.T, 3, -1)
        axes = (0, 2, 3, 1, 4) if temporal else (0, 1, 3, 2, 4)  # what is attended over comes fourth
        q, k, v = (a.reshape(b, f, t, heads, width).transpose(axes) for a in (q, k, v))
        shape = q.shape
        y = exact(*(a.reshape(-1, *shape[3:]) for a in (q * width**-0.5, k, v))).reshape(shape)
        return y.transpose(np.argsort(axes)).reshape(b, f, t, d) @ proj.T

    biases = [tensor(z) for z in zero]

    def ours(x, qkv, proj):
        return self_attention(x, (qkv, biases[0]), (proj, biases[1]), heads, width**-0.5, temporal, False)

    check(ours, reference, x, qkv, proj)


@pytest.mark.parametrize("batch", [1, 3])
def test_modulated_norm(batch):
    x, shift, scale = 3 * normal(batch, 2, 5, 16) + 1, normal(batch, 16), normal(batch, 16)

    def reference(x, shift, scale):
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return normed * (1 + scale[:, None, None]) + shift[:, None, None]

    check(modulated_norm, reference, x, shift, scale, tolerance=5e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_gated(batch):
    check(
        gated_residual,
        lambda x, gate, y: x + gate[:, None, None] * y,
        *(normal(batch, 2, 5, 4), normal(batch, 4), normal(batch, 2, 5, 4)),
    )


def test_gelu():
    x = np.linspace(-8, 8, 101)[None]
    check(gelu, lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), x, tolerance=1e-6)


def test_swap():
    check(swap, lambda x: x.transpose(0, 2, 1, 3), normal(2, 3, 4, 5), tolerance=1e-7)


@pytest.mark.parametrize("name", ["gelu", "modulated_norm", "gated_residual", "self_attention"])
def test_the_form_of_other_devices_computes_the_same(name):
    """What GPUs and Ascend run is written otherwise; it runs on a CPU too."""
    x, row, matrix = normal(2, 3, 4, 8), normal(2, 8), normal(24, 8)
    zeros = [tensor(np.zeros(24)), tensor(np.zeros(8))]

    def attend(x, qkv, proj):
        return self_attention(x, (qkv, zeros[0]), (proj, zeros[1]), 2, 0.5, True, False)

    function, arrays = {
        "gelu": (gelu, (x,)),
        "modulated_norm": (modulated_norm, (x, row, row)),
        "gated_residual": (gated_residual, (x, row, x)),
        "self_attention": (attend, (x, matrix, matrix[:8])),
    }[name]
    given = [tensor(a) for a in arrays]
    results = []
    for target in ("CPU", "GPU"):
        with device.use(target):

            def weighted(*inputs):
                return (function(*inputs) * ops.cos(inputs[0])).sum()

            results.append(ms.jit(ms.value_and_grad(weighted, tuple(range(len(given)))))(*given))
    (value, gradients), (other, others) = results
    assert abs(float(value) - float(other)) <= 1e-5 * max(abs(float(other)), 1)
    for a, b in zip(gradients, others, strict=True):
        assert_near(a.asnumpy(), b.asnumpy(), 1e-5)


def convolved(x, weight, bias, stride=1):
    """Convolve images (N, H, W, C) with a kernel (out, C, 3, 3)."""
    pad = (0, 1) if stride == 2 else (1, 1)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ocij->nhwo", windows, weight) + bias


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("kind", ["plain", "stride", "upsample", "norm"])
def test_convolutions_of_images_in_strips(monkeypatch, kind, channels):
    """Few channels are multiplied out, many go through Winograd's tiles; sizes are odd, several strips an image."""
    monkeypatch.setattr(cpu_images, "STRIP", 200)
    h, w = (6, 4) if kind == "stride" else (7, 5)
    x, weight, bias = normal(2, h, w, channels) + 3, normal(16, channels, 3, 3) / 5, normal(16)
    gamma, beta, groups = normal(channels), normal(channels), channels // 4 or 1
    if kind == "norm":

        def normed(x, gamma, beta, weight, bias):
            y = x.reshape(2, -1, groups, channels // groups)
            y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-6)
            y = y.reshape(x.shape) * gamma + beta
            return convolved(y / (1 + np.exp(-y)), weight, bias)

        def function(x, gamma, beta, weight, bias):
            return norm_conv(x, (gamma, beta), (weight, bias), groups, 1e-6)

        check(function, normed, x, gamma, beta, weight, bias, tolerance=4e-6)
    elif kind == "upsample":
        check(upsample_conv, lambda x, *layer: convolved(x.repeat(2, 1).repeat(2, 2), *layer), x, weight, bias)
    else:
        stride = 2 if kind == "stride" else 1

        def function(x, weight, bias):
            return conv2d(x, weight, bias, stride=stride)

        check(function, lambda x, *layer: convolved(x, *layer, stride), x, weight, bias)
