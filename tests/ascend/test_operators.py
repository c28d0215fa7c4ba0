"""Operators of the stand-in for CANN: each against NumPy in float64, and each of its rules broken once."""

import re

import numpy as np
import pytest
from ascend import standin
from ascend.aclnn import Refused, card, cast, out, plain, returned, rounded
from ascend.reference import Convolution, hf32, normal

FLOATS = ("float32", "float16", "bfloat16")
# Half a unit in the last place, relative; float32 results have as many roundings as their sums have terms.
ROUNDING = {"float32": 2e-6, "float16": 2**-11, "bfloat16": 2**-8}
A1, INFERENCE = "Ascend910A", "Ascend910B4"


def draw(dims, dtype="float32", seed=0):
    return cast(np.random.default_rng([seed, *dims]).normal(size=dims), dtype)


def wide(array):
    """Return the values of an array that `draw` made, as float64."""
    return plain(array).astype(np.float64)


def assert_close(got, want, dtype, roundings=1):
    """Check values against those of float64: a rounding to the dtype, on top of float32's own error."""
    error = np.abs(got.astype(np.float64) - want) - 3e-6 * np.abs(want).max()
    assert got.shape == want.shape and (error <= roundings * ROUNDING[dtype] * np.abs(want)).all(), error.max()


def test_hf32_keeps_11_bits_of_mantissa():
    assert hf32(np.float64(1 + 2**-11)) == 1 + 2**-11 and hf32(np.float64(1 + 2**-12)) == 1


# Products.
PRODUCTS = [
    ("Mm", (5, 7), (7, 3)),
    ("Matmul", (5, 7), (7, 3)),
    ("Matmul", (7,), (7,)),
    ("Matmul", (7,), (7, 3)),
    ("Matmul", (2, 5, 7), (7,)),
    ("Matmul", (7,), (2, 7, 3)),
    ("Matmul", (2, 3, 4, 5), (5, 6)),
    ("Matmul", (4, 5), (2, 3, 5, 6)),
    ("Matmul", (2, 1, 4, 5), (3, 5, 6)),
    ("Matmul", (1, 2, 1, 1, 4, 5), (2, 1, 3, 5, 6)),
    ("BatchMatMul", (4, 5, 6), (4, 6, 3)),
    ("BatchMatMul", (4, 5, 6), (1, 6, 3)),
    ("BatchMatMul", (1, 5, 6), (4, 6, 3)),
    ("Mv", (5, 7), (7,)),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operator, left, right", PRODUCTS, ids=str)
def test_a_product_is_summed_in_float32_and_rounded_once(operator, left, right, dtype):
    a, b = draw(left, dtype), draw(right, dtype, seed=1)
    want = np.matmul(wide(a), wide(b))
    (got,) = card().launch(operator, a, b, out(want.shape, dtype), 0)
    assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_operands_and_results_of_products_can_be_views(dtype):
    a, b, many = draw((7, 5), dtype), draw((3, 9), dtype, seed=1), draw((2, 4, 7, 5), dtype, seed=2)
    place = cast(np.zeros((3, 5)), dtype)
    (got,) = card().launch("Mm", a.T, b[:, 1:8].T, returned(place.T), 0)
    assert_close(got, wide(a).T @ wide(b[:, 1:8]).T, dtype)
    heads = many.transpose(0, 2, 1, 3)  # (2, 7, 4, 5), read as it lies in neither order
    (got,) = card().launch("Matmul", heads, heads.swapaxes(-1, -2), out((2, 7, 4, 4), dtype), 0)
    assert_close(got, wide(heads) @ wide(heads).swapaxes(-1, -2), dtype)
    one = np.broadcast_to(b[:1], (7, 9))
    (got,) = card().launch("Mm", a.T, one, out((5, 9), dtype), 0)
    assert_close(got, wide(a).T @ wide(one), dtype)


def test_products_of_long_sums_stay_as_near_as_float32_sums_do():
    a, b = draw((3, 20000), "float16"), draw((20000, 3), "float16", seed=1)
    (got,) = card().launch("Mm", a, b, out((3, 3), "float16"), 0)
    assert_close(got, wide(a) @ wide(b), "float16")


@pytest.mark.parametrize(
    "product, math, taken",
    [("Ascend910B2", 0, wide), ("Ascend910B2", 4, wide), ("Ascend910B2", 1, hf32), ("Ascend910B2", 3, hf32),
     ("Ascend910B2", 2, lambda x: rounded(x, "float16")), (A1, 1, lambda x: rounded(x, "float16")),
     (A1, 2, lambda x: rounded(x, "float16")), (INFERENCE, 0, wide)],
)  # fmt: skip
def test_cube_math_type_says_what_float32_operands_are_rounded_to(product, math, taken):
    a, b = draw((5, 64)), draw((64, 3), seed=1)
    want = taken(a) @ taken(b)
    (got,) = card(product).launch("Matmul", a, b, out((5, 3)), math)
    assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()
    if taken is not wide:  # the loss shows
        assert np.abs(got - wide(a) @ wide(b)).max() > 1e-5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bias", [(4,), (1, 4), (3, 4), (3, 1)], ids=str)
@pytest.mark.parametrize("beta, alpha", [(1, 1), (0.5, 2)])
def test_addmm_adds_a_bias_that_broadcasts(bias, beta, alpha, dtype):
    c, a, b = draw(bias, dtype), draw((3, 8), dtype, seed=1), draw((8, 4), dtype, seed=2)
    want = beta * wide(c) + alpha * (wide(a) @ wide(b))
    numbers = (np.float32(beta), np.float32(alpha))
    (exact,) = card().launch("Addmm", c, a, b, *numbers, out((3, 4), dtype), 4)
    assert_close(exact, want, dtype)
    (got,) = card().launch("Addmm", c, a, b, *numbers, out((3, 4), dtype), 0)
    parts = np.abs(alpha * (wide(a) @ wide(b))) + np.abs(beta * wide(c))
    assert (np.abs(got - want) <= 4 * ROUNDING[dtype] * parts + 1e-5).all()
    if len(bias) == 1 and alpha == beta == 1:
        np.testing.assert_array_equal(got, exact)  # a bias is added before the sums are rounded


@pytest.mark.parametrize("dtype", FLOATS)
def test_baddbmm_rounds_once(dtype):
    c, a, b = draw((2, 1, 4), dtype), draw((2, 3, 8), dtype, seed=1), draw((2, 8, 4), dtype, seed=2)
    (got,) = card().launch("Baddbmm", c, a, b, np.float32(0.5), np.float32(2), out((2, 3, 4), dtype), 0)
    assert_close(got, 0.5 * wide(c) + 2 * (wide(a) @ wide(b)), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dot_sums_a_product_of_vectors(dtype):
    a, b = draw((50,), dtype), draw((50,), dtype, seed=1)
    (got,) = card().launch("Dot", a, b, out((), dtype))
    assert_close(got, wide(a) @ wide(b), dtype)


def test_dot_of_integers_is_exact():
    a = np.arange(5, dtype=np.int32) + 2**12
    assert card().launch("Dot", a, a, out((), "int32"))[0] == (a * a).sum()


# Convolutions.
# Image, weight, stride, padding, dilation, groups.
CONVOLUTIONS = [
    ((2, 3, 9), (4, 3, 3), [2], [1], [1], 1),
    ((2, 4, 6, 7), (6, 4, 3, 3), [1, 1], [1, 1], [1, 1], 1),
    ((2, 4, 6, 7), (6, 4, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    ((2, 4, 8, 6), (5, 4, 2, 2), [2, 2], [0, 0], [1, 1], 1),
    ((1, 4, 9, 7), (6, 2, 3, 2), [2, 1], [2, 1], [2, 3], 2),
    ((1, 4, 6, 6), (4, 1, 3, 3), [1, 1], [1, 1], [1, 1], 4),
    ((1, 2, 7, 8), (3, 2, 3, 3), [2, 2], [0, 1, 0, 1], [1, 1], 1),
    ((1, 2, 5, 5), (3, 2, 1, 1), [1, 1], [0, 1, 0, 1], [1, 1], 1),
    ((1, 2, 4, 5, 6), (3, 2, 3, 1, 2), [1, 2, 1], [1, 0, 1], [1, 1, 2], 1),
    ((1, 64, 6, 2000), (3, 64, 3, 3), [1, 1], [1, 1], [1, 1], 1),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dims, kernel, stride, padding, dilation, groups", CONVOLUTIONS, ids=str)
def test_a_convolution_and_its_gradients(dims, kernel, stride, padding, dilation, groups, dtype):
    truth = Convolution(kernel[2:], stride, padding, dilation, groups)
    x, w, b = draw(dims, dtype), draw(kernel, dtype, seed=1), draw(kernel[:1], dtype, seed=2)
    plane = [-1] + [1] * len(kernel[2:])
    want = truth.features(wide(x), wide(w)) + wide(b).reshape(plane)
    settings = (stride, padding, dilation, False, [0] * len(stride), groups)
    (got,) = card().launch("Convolution", x, w, b, *settings, out(want.shape, dtype), 0)
    assert_close(got, want, dtype)
    dy = draw(want.shape, dtype, seed=3)
    results = [out(dims, dtype), out(kernel, dtype), out(kernel[:1], dtype)]
    masks = [True, True, True]
    dx, dw, db = card().launch("ConvolutionBackward", dy, x, w, [kernel[0]], *settings, masks, 0, *results)
    assert_close(dx, truth.image(wide(dy), wide(w), dims), dtype)
    assert_close(dw, truth.weight(wide(x), wide(dy), kernel), dtype)
    assert_close(db, wide(dy).sum(axis=(0, *range(2, dy.ndim))), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups, more", [(1, 0), (2, 1)])
def test_a_transposed_convolution_and_its_gradients(groups, more, dtype):
    truth = Convolution((3, 3), [2, 2], [1, 1], [1, 1], groups)
    x, w, b = draw((2, 4, 5, 6), dtype), draw((4, 3, 3, 3), dtype, seed=1), draw((3 * groups,), dtype, seed=2)
    dims = (2, 3 * groups, 9 + more, 11 + more)
    settings = ([2, 2], [1, 1], [1, 1], True, [more, more], groups)
    (got,) = card().launch("Convolution", x, w, b, *settings, out(dims, dtype), 0)
    assert_close(got, truth.image(wide(x), wide(w), dims) + wide(b).reshape(-1, 1, 1), dtype)
    dy, results = draw(dims, dtype, seed=3), [out(x.shape, dtype), out(w.shape, dtype), out(b.shape, dtype)]
    dx, dw, db = card().launch("ConvolutionBackward", dy, x, w, [len(b)], *settings, [True] * 3, 0, *results)
    assert_close(dx, truth.features(wide(dy), wide(w)), dtype)
    assert_close(dw, truth.weight(wide(dy), wide(x), w.shape), dtype)
    assert_close(db, wide(dy).sum(axis=(0, 2, 3)), dtype)


def test_convolutions_of_float32_are_rounded_to_hf32_as_cube_math_type_says():
    x, w, truth = draw((1, 8, 6, 6)), draw((4, 8, 3, 3), seed=1), Convolution((3, 3), [1, 1], [1, 1], [1, 1], 1)
    for math, taken in ((0, wide), (1, hf32), (3, hf32)):
        settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        (got,) = card().launch("Convolution", x, w, None, *settings, out((1, 4, 6, 6)), math)
        assert_close(got, truth.features(taken(x), taken(w)), "float32")


def test_gradients_of_a_convolution_that_no_one_asks_for_are_not_needed():
    x, w, dy = draw((1, 2, 4, 4)), draw((3, 2, 1, 1), seed=1), draw((1, 3, 4, 4), seed=2)
    settings = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    mask = [False, True, False]
    (dw,) = card().launch("ConvolutionBackward", dy, x, w, [3], *settings, mask, 0, None, out(w.shape), None)
    assert_close(dw, np.einsum("nohw,nihw->oi", dy, x)[..., None, None], "float32")


# Norms.
def norm_gradient(scaled, normed, rstd, axes):
    """Return the gradient before a norm: `scaled` is the one behind it, times the weights."""
    lean = (scaled * normed).mean(axes, keepdims=True)
    return rstd * (scaled - scaled.mean(axes, keepdims=True) - normed * lean)


@pytest.mark.parametrize("affine", [None, "same", "float32"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dims, last", [((3, 5, 32), 1), ((4, 3, 8), 2), ((7,), 1)], ids=str)
def test_layer_norm_and_its_gradient(dims, last, dtype, affine):
    x, dy, shape = draw(dims, dtype), draw(dims, dtype, seed=1), dims[-last:]
    kind = dtype if affine != "float32" else "float32"
    w, b = (None, None) if affine is None else (draw(shape, kind, seed=2), draw(shape, kind, seed=3))
    scale, shift = (1, 0) if w is None else (wide(w), wide(b))
    axes, rows = tuple(range(-last, 0)), (*dims[:-last], *[1] * last)
    normed, mean, rstd = normal(wide(x), axes, 1e-6)
    y, m, s = card().launch("LayerNorm", x, list(shape), w, b, 1e-6, out(dims, dtype), out(rows), out(rows))
    assert_close(y, normed * scale + shift, dtype)
    assert_close(m, mean, "float32")
    assert_close(s, rstd, "float32")
    results = [out(dims, dtype), out(shape, kind), out(shape, kind)]
    arguments = (dy, x, list(shape), m, s, w, b, [True] * 3, *results)
    dx, dw, db = card().launch("LayerNormBackward", *arguments)
    assert_close(dx, norm_gradient(wide(dy) * scale, normed, rstd, axes), dtype)
    rest = tuple(range(len(dims) - last))
    assert_close(dw, (wide(dy) * normed).sum(rest), kind)
    assert_close(db, wide(dy).sum(rest), kind)


def test_layer_norm_can_leave_out_its_statistics():
    x = draw((4, 8))
    (y,) = card().launch("LayerNorm", x.T, [4], None, None, 1e-5, out((8, 4)), None, None)
    assert_close(y, normal(wide(x).T, -1, 1e-5)[0], "float32")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dims, groups", [((2, 8, 3, 5), 4), ((3, 6), 2), ((1, 4, 2, 3, 2), 1)], ids=str)
def test_group_norm_and_its_gradient(dims, groups, dtype, affine):
    x, dy, (n, c, *plane) = draw(dims, dtype), draw(dims, dtype, seed=1), dims
    w, b = (draw((c,), dtype, seed=2), draw((c,), dtype, seed=3)) if affine else (None, None)
    scale, shift = (wide(w), wide(b)) if affine else (np.ones(c), np.zeros(c))
    along = [-1] + [1] * len(plane)
    sizes = (n, c, int(np.prod(plane)), groups)
    normed, mean, rstd = normal(wide(x).reshape(n, groups, -1), -1, 1e-5)
    results = [out(dims, dtype), out((n, groups), dtype), out((n, groups), dtype)]
    got = card().launch("GroupNorm", x, w, b, *sizes, 1e-5, *results)
    assert_close(got[0], normed.reshape(dims) * scale.reshape(along) + shift.reshape(along), dtype)
    assert_close(got[1], mean[..., 0], dtype)
    assert_close(got[2], rstd[..., 0], dtype)
    mean, rstd = cast(mean[..., 0], dtype), cast(rstd[..., 0], dtype)  # the gradient sees them in the dtype
    normed = (wide(x).reshape(n, groups, -1) - wide(mean)[..., None]) * wide(rstd)[..., None]
    results = [out(dims, dtype), out((c,), dtype), out((c,), dtype)]
    dx, dw, db = card().launch("GroupNormBackward", dy, x, mean, rstd, w, *sizes, [True] * 3, *results)
    scaled = (wide(dy) * scale.reshape(along)).reshape(n, groups, -1)
    assert_close(dx, norm_gradient(scaled, normed, wide(rstd)[..., None], -1).reshape(dims), dtype)
    rest = (0, *range(2, len(dims)))
    assert_close(dw, (wide(dy) * normed.reshape(dims)).sum(rest), dtype)
    assert_close(db, wide(dy).sum(rest), dtype)


@pytest.mark.parametrize("dtype, kind", [("float32", "float32"), ("float16", "float16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("dims, last", [((3, 5, 16), 1), ((4, 3, 8), 2)], ids=str)
def test_rms_norm_and_its_gradient(dims, last, dtype, kind):
    x, dy, shape = draw(dims, dtype), draw(dims, dtype, seed=1), dims[-last:]
    gamma, axes, rows = draw(shape, kind, seed=2), tuple(range(-last, 0)), (*dims[:-last], *[1] * last)
    rstd = 1 / np.sqrt((wide(x) ** 2).mean(axes, keepdims=True) + 1e-6)
    y, s = card().launch("RmsNorm", x, gamma, 1e-6, out(dims, dtype), out(rows))
    assert_close(y, wide(x) * rstd * wide(gamma), dtype)
    assert_close(s, rstd, "float32")
    dx, dg = card().launch("RmsNormGrad", dy, x, s, gamma, out(dims, dtype), out(shape))
    normed, scaled = wide(x) * rstd, wide(dy) * wide(gamma)
    assert_close(dx, rstd * (scaled - normed * (scaled * normed).mean(axes, keepdims=True)), dtype)
    assert_close(dg, (wide(dy) * normed).sum(tuple(range(len(dims) - last))), "float32")


# Softmax.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dims, axis", [((3, 4, 5), -1), ((3, 4, 5), 1), ((7,), 0), ((2, 3, 1), 2)], ids=str)
def test_softmax_its_logarithm_and_their_gradients(dims, axis, dtype):
    x, dy = draw(dims, dtype), draw(dims, dtype, seed=1)
    powers = np.exp(4 * wide(x) - (4 * wide(x)).max(axis, keepdims=True))
    x = cast(4 * wide(x), dtype)
    want = powers / powers.sum(axis, keepdims=True)
    (y,) = card().launch("Softmax", x, axis, out(dims, dtype))
    assert_close(y, want, dtype)
    (logarithm,) = card().launch("LogSoftmax", x, axis, out(dims, dtype))
    assert_close(logarithm, np.log(want), dtype)
    y, logarithm = cast(want, dtype), cast(np.log(want), dtype)  # what the gradients see
    (dx,) = card().launch("SoftmaxBackward", dy, y, axis, out(dims, dtype))
    assert_close(dx, wide(y) * (wide(dy) - (wide(dy) * wide(y)).sum(axis, keepdims=True)), dtype)
    (dx,) = card().launch("LogSoftmaxBackward", dy, logarithm, axis, out(dims, dtype))
    assert_close(dx, wide(dy) - np.exp(wide(logarithm)) * wide(dy).sum(axis, keepdims=True), dtype)


def test_softmax_of_what_a_mask_left_out_is_zero():
    x = np.array([[0, -np.inf, 1], [-1e4, 0, -1e4]], np.float32)
    (y,) = card().launch("Softmax", x, -1, out((2, 3)))
    assert y[0, 1] == 0 and y[1, 1] == 1 and not np.isnan(y).any()


# Every rule of every operator, broken once: a call that is taken, and what breaks each rule. ">" marks outputs.
TAKEN = {
    "Mm": {"self": "float32[3, 4]", "mat2": "float32[4, 5]", "out": ">float32[3, 5]", "math": 0},
    "Matmul": {"self": "float32[2, 3, 4]", "mat2": "float32[2, 4, 5]", "out": ">float32[2, 3, 5]", "math": 0},
    "BatchMatMul": {"self": "float32[2, 3, 4]", "mat2": "float32[2, 4, 5]", "out": ">float32[2, 3, 5]", "math": 0},
    "Addmm": {
        "self": "float32[3, 5]", "mat1": "float32[3, 4]", "mat2": "float32[4, 5]", "beta": np.float32(1),
        "alpha": np.float32(1), "out": ">float32[3, 5]", "math": 0,
    },
    "Baddbmm": {
        "self": "float32[2, 3, 5]", "batch1": "float32[2, 3, 4]", "batch2": "float32[2, 4, 5]", "beta": np.float32(1),
        "alpha": np.float32(1), "out": ">float32[2, 3, 5]", "math": 0,
    },
    "Mv": {"self": "float32[3, 4]", "vec": "float32[4]", "out": ">float32[3]", "math": 0},
    "Dot": {"self": "float32[4]", "tensor": "float32[4]", "out": ">float32[]"},
    "Convolution": {
        "input": "float32[1, 4, 6, 6]", "weight": "float32[8, 4, 3, 3]", "bias": "float32[8]", "stride": [1, 1],
        "padding": [1, 1], "dilation": [1, 1], "transposed": False, "more": [0, 0], "groups": 1,
        "output": ">float32[1, 8, 6, 6]", "math": 3,
    },
    "ConvolutionBackward": {
        "dy": "float32[1, 8, 6, 6]", "input": "float32[1, 4, 6, 6]", "weight": "float32[8, 4, 3, 3]", "sizes": [8],
        "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "transposed": False, "more": [0, 0], "groups": 1,
        "mask": [True, True, True], "math": 0, "dx": ">float32[1, 4, 6, 6]", "dw": ">float32[8, 4, 3, 3]",
        "db": ">float32[8]",
    },
    "LayerNorm": {
        "x": "float16[2, 3, 8]", "shape": [8], "weight": "float32[8]", "bias": "float32[8]", "eps": 1e-5,
        "out": ">float16[2, 3, 8]", "mean": ">float32[2, 3, 1]", "rstd": ">float32[2, 3, 1]",
    },
    "LayerNormBackward": {
        "dy": "float16[2, 3, 8]", "x": "float16[2, 3, 8]", "shape": [8], "mean": "float32[2, 3, 1]",
        "rstd": "float32[2, 3, 1]", "weight": "float32[8]", "bias": "float32[8]", "mask": [True, True, True],
        "dx": ">float16[2, 3, 8]", "dw": ">float32[8]", "db": ">float32[8]",
    },
    "GroupNorm": {
        "x": "float16[2, 8, 3]", "gamma": "float16[8]", "beta": "float16[8]", "n": 2, "c": 8, "places": 3, "group": 4,
        "eps": 1e-5, "out": ">float16[2, 8, 3]", "mean": ">float16[2, 4]", "rstd": ">float16[2, 4]",
    },
    "GroupNormBackward": {
        "dy": "float16[2, 8, 3]", "x": "float16[2, 8, 3]", "mean": "float16[2, 4]", "rstd": "float16[2, 4]",
        "gamma": "float16[8]", "n": 2, "c": 8, "places": 3, "group": 4, "mask": [True, True, True],
        "dx": ">float16[2, 8, 3]", "dg": ">float16[8]", "db": ">float16[8]",
    },
    "RmsNorm": {
        "x": "float16[2, 3, 8]", "gamma": "float16[8]", "eps": 1e-6, "y": ">float16[2, 3, 8]",
        "rstd": ">float32[2, 3, 1]",
    },
    "RmsNormGrad": {
        "dy": "float16[2, 3, 8]", "x": "float16[2, 3, 8]", "rstd": "float32[2, 3, 1]", "gamma": "float16[8]",
        "dx": ">float16[2, 3, 8]", "dg": ">float32[8]",
    },
    "Softmax": {"x": "float16[2, 3]", "dim": -1, "out": ">float16[2, 3]"},
    "SoftmaxBackward": {"dy": "float16[2, 3]", "y": "float16[2, 3]", "dim": -1, "out": ">float16[2, 3]"},
    "LogSoftmax": {"x": "float16[2, 3]", "dim": -1, "out": ">float16[2, 3]"},
    "LogSoftmaxBackward": {"dy": "float16[2, 3]", "y": "float16[2, 3]", "dim": -1, "out": ">float16[2, 3]"},
}  # fmt: skip
FLOATING = "tensors are float32, float16 or bfloat16"
ALONE = "bfloat16 is multiplied with bfloat16 alone"
ON_A1 = "this product multiplies float32 only with cubeMathType 1 or 2, as float16"
BF16_AS_FP16 = "bfloat16 is not multiplied with cubeMathType 2"
ONE_PER_AXIS = "stride has a number over 0 for every axis"
CHANNELS = "the channels of input are those of weight times groups"
LAST = "input ends with the normalised shape"
WEIGHT, BIAS = (f"{each} has the normalised shape, in the dtype of input or float32" for each in ("weight", "bias"))
HALVES = {"self": "bfloat16[3, 4]", "mat2": "bfloat16[4, 5]", "out": ">bfloat16[3, 5]"}
HALF_MM = {"mat1": "bfloat16[3, 4]", "mat2": "bfloat16[4, 5]"}
THREE_AXES = {
    "input": "float32[1, 1, 2, 9, 9]", "weight": "float32[1, 1, 1, 1, 1]", "bias": None, "stride": [1, 1, 1],
    "padding": [0, 0, 0], "dilation": [1, 1, 1], "more": [0, 0, 0], "output": ">float32[1, 1, 2, 9, 9]",
}  # fmt: skip
THREE_AXES_BACK = {
    "dy": "float32[1, 1, 2, 9, 9]", "input": "float32[1, 1, 2, 9, 9]", "weight": "float32[1, 1, 1, 1, 1]",
    "sizes": [1], "stride": [1, 1, 1], "padding": [0, 0, 0], "dilation": [1, 1, 1], "more": [0, 0, 0],
    "mask": [False, False, False],
}  # fmt: skip
REFUSED = [
    ("Mm", FLOATING, {"self": "int32[3, 4]"}),
    ("Mm", ALONE, {"self": "bfloat16[3, 4]"}),
    ("Mm", "out has the dtype that the matrices are multiplied in", {"out": ">float16[3, 5]"}),
    ("Mm", "self and mat2 are matrices", {"self": "float32[4]"}),
    ("Mm", "self has as many columns as mat2 has rows", {"self": "float32[3, 5]"}),
    ("Mm", "out is (rows of self, columns of mat2)", {"out": ">float32[5, 3]"}),
    ("Mm", "cubeMathType is 0, 1, 2, 3 or 4", {"math": 5}),
    ("Mm", ON_A1, {}, A1),
    ("Mm", "this product has no cubeMathType 3",
     {"self": "float16[3, 4]", "mat2": "float16[4, 5]", "out": ">float16[3, 5]", "math": 3}, A1),
    ("Mm", BF16_AS_FP16, {**HALVES, "math": 2}),
    ("Mm", "cubeMathType 3 is for float32", {**HALVES, "math": 3}),
    ("Matmul", FLOATING, {"out": ">int32[2, 3, 5]"}),
    ("Matmul", ALONE, {"mat2": "bfloat16[2, 4, 5]"}),
    ("Matmul", "self and mat2 have 1 to 6 axes", {"self": "float32[1, 1, 1, 1, 2, 3, 4]"}),
    ("Matmul", "the last axis of self is as long as the one of mat2 that it is summed with",
     {"mat2": "float32[2, 5, 4]"}),
    ("Matmul", "the axes before the last two broadcast", {"mat2": "float32[3, 4, 5]"}),
    ("Matmul", "out has the shape of the product", {"out": ">float32[2, 1, 3, 5]"}),
    ("Matmul", "cubeMathType is 0, 1, 2, 3 or 4", {"math": -1}),
    ("Matmul", ON_A1, {}, A1),
    ("Matmul", "this product has no cubeMathType 3",
     {"self": "float16[2, 3, 4]", "mat2": "float16[2, 4, 5]", "math": 3}, A1),
    ("Matmul", BF16_AS_FP16, {**HALVES, "math": 2}),
    ("Matmul", "cubeMathType 3 is for float32", {**HALVES, "math": 3}),
    ("BatchMatMul", FLOATING, {"self": "int8[2, 3, 4]"}),
    ("BatchMatMul", ALONE, {"self": "bfloat16[2, 3, 4]"}),
    ("BatchMatMul", "self and mat2 have 3 axes", {"mat2": "float32[4, 5]"}),
    ("BatchMatMul", "the last axis of self is as long as the second of mat2", {"self": "float32[2, 3, 5]"}),
    ("BatchMatMul", "the batches are equally long, or one is 1", {"self": "float32[3, 3, 4]"}),
    ("BatchMatMul", "out has the shape of the product", {"out": ">float32[1, 3, 5]"}),
    ("BatchMatMul", "cubeMathType is 0, 1, 2 or 3", {"math": 4}),
    ("BatchMatMul", ON_A1, {}, A1),
    ("BatchMatMul", "this product has no cubeMathType 3",
     {"self": "float16[2, 3, 4]", "mat2": "float16[2, 4, 5]", "math": 3}, A1),
    ("Addmm", FLOATING, {"self": "int32[3, 5]"}),
    ("Addmm", ALONE, {"mat1": "bfloat16[3, 4]"}),
    ("Addmm", "mat1 and mat2 are matrices", {"mat1": "float32[1, 3, 4]"}),
    ("Addmm", "mat1 has as many columns as mat2 has rows", {"mat1": "float32[3, 5]"}),
    ("Addmm", "out is (rows of mat1, columns of mat2)", {"out": ">float32[5, 3]"}),
    ("Addmm", "self has 1 or 2 axes", {"self": "float32[]"}),
    ("Addmm", "self broadcasts to out", {"self": "float32[5, 5]"}),
    ("Addmm", "cubeMathType is 0, 1, 2, 3 or 4", {"math": 5}),
    ("Addmm", ON_A1, {}, A1),
    ("Addmm", "this product has no cubeMathType 3 or 4", {"math": 4}, A1),
    ("Addmm", BF16_AS_FP16, {**HALF_MM, "math": 2}),
    ("Addmm", "cubeMathType 3 is for float32", {**HALF_MM, "math": 3}),
    ("Baddbmm", FLOATING, {"batch1": "int32[2, 3, 4]"}),
    ("Baddbmm", ALONE, {"batch1": "bfloat16[2, 3, 4]"}),
    ("Baddbmm", "self and out have one dtype", {"self": "float16[2, 3, 5]"}),
    ("Baddbmm", "batch1 and batch2 have 3 axes", {"batch1": "float32[3, 4]"}),
    ("Baddbmm", "the last axis of batch1 is as long as the second of batch2", {"batch1": "float32[2, 3, 5]"}),
    ("Baddbmm", "the batches are equally long, or one is 1", {"batch1": "float32[3, 3, 4]"}),
    ("Baddbmm", "out has the shape of the product", {"out": ">float32[3, 5]"}),
    ("Baddbmm", "self has 1 to 3 axes", {"self": "float32[1, 2, 3, 5]"}),
    ("Baddbmm", "self broadcasts to out", {"self": "float32[3, 3, 5]"}),
    ("Baddbmm", "cubeMathType is 0, 1, 2, 3 or 4", {"math": 5}),
    ("Baddbmm", ON_A1, {}, A1),
    ("Baddbmm", "this product has no cubeMathType 3 or 4", {"math": 4}, A1),
    ("Mv", FLOATING, {"self": "int32[3, 4]"}),
    ("Mv", "self, vec and out have one dtype", {"vec": "float16[4]"}),
    ("Mv", "self is a matrix and vec a vector", {"vec": "float32[4, 1]"}),
    ("Mv", "self has as many columns as vec has elements", {"vec": "float32[3]"}),
    ("Mv", "out has as many elements as self has rows", {"out": ">float32[3, 1]"}),
    ("Mv", "cubeMathType is 0, 1, 2 or 3", {"math": 4}),
    ("Mv", ON_A1, {}, A1),
    ("Mv", "this product has no cubeMathType 3",
     {"self": "float16[3, 4]", "vec": "float16[4]", "out": ">float16[3]", "math": 3}, A1),
    ("Mv", BF16_AS_FP16, {"self": "bfloat16[3, 4]", "vec": "bfloat16[4]", "out": ">bfloat16[3]", "math": 2}),
    ("Mv", "cubeMathType 3 is for float32",
     {"self": "float16[3, 4]", "vec": "float16[4]", "out": ">float16[3]", "math": 3}),
    ("Dot", "tensors are float32, float16, bfloat16, int8, uint8 or int32", {"self": "int64[4]"}),
    ("Dot", "self, tensor and out have one dtype", {"out": ">float16[]"}),
    ("Dot", "self and tensor are vectors of one length", {"tensor": "float32[3]"}),
    ("Dot", "out has no axes", {"out": ">float32[1]"}),
    ("Convolution", "this product has no aclnnConvolution", {}, A1),
    ("Convolution", FLOATING, {"input": "int8[1, 4, 6, 6]"}),
    ("Convolution", "output has the dtype that input and weight are multiplied in", {"output": ">float16[1, 8, 6, 6]"}),
    ("Convolution", "bias has the dtype of input and weight", {"bias": "float16[8]"}),
    ("Convolution", "input has 3 to 5 axes", {"input": "float32[4, 6]"}),
    ("Convolution", "input, weight and output have as many axes each", {"input": "float32[4, 6, 6]"}),
    ("Convolution", ONE_PER_AXIS, {"stride": [1, 0]}),
    ("Convolution", "dilation has a number over 0 for every axis", {"dilation": [1]}),
    ("Convolution", "padding has a number of at least 0 for every axis, or for every side of one or two axes",
     {"padding": [1, 1, 1]}),
    ("Convolution", "groups is 1 to 65535", {"groups": 0}),
    ("Convolution", CHANNELS, {"groups": 2}),
    ("Convolution", "outputPadding has a number of at least 0 for every axis",
     {"transposed": True, "input": "float32[1, 8, 6, 6]", "more": [0]}),
    ("Convolution", "outputPadding is less than stride or dilation",
     {"transposed": True, "input": "float32[1, 8, 6, 6]", "more": [1, 0]}),
    ("Convolution", "bias has one axis, of the output's channels", {"bias": "float32[4]"}),
    ("Convolution", "no axis is longer than 1000000", {"input": "float32[1, 4, 1, 1000001]"}),
    ("Convolution", "a transposed convolution's kernel is at most 255 high and wide",
     {"transposed": True, "weight": "float32[4, 8, 1, 256]"}),
    ("Convolution", "a kernel of three axes is at most 511 high and wide",
     {**THREE_AXES, "weight": "float32[1, 1, 1, 1, 512]"}),
    ("Convolution", "padding is at most 255", {"padding": [1, 256]}),
    ("Convolution", "dilation is at most 255", {**THREE_AXES, "dilation": [1, 1, 256]}),
    ("Convolution", "stride of three axes is at most 63 in height and width", {**THREE_AXES, "stride": [1, 1, 64]}),
    ("Convolution", "the kernel is not larger than the padded input", {"dilation": [4, 1]}),
    ("Convolution", "output has the shape that follows", {"padding": [0, 0]}),
    ("Convolution", "cubeMathType is 0, 1, 2 or 3", {"math": 4}),
    ("Convolution", BF16_AS_FP16,
     {"input": "bfloat16[1, 4, 6, 6]", "weight": "bfloat16[8, 4, 3, 3]", "bias": None,
      "output": ">bfloat16[1, 8, 6, 6]", "math": 2}),
    ("ConvolutionBackward", FLOATING, {"dy": "int8[1, 8, 6, 6]"}),
    ("ConvolutionBackward", "this product has no bfloat16", {"dy": "bfloat16[1, 8, 6, 6]"}, A1),
    ("ConvolutionBackward", "input has 3 to 5 axes", {"input": "float32[4, 6]"}),
    ("ConvolutionBackward", "input, weight and gradOutput have as many axes each", {"dy": "float32[8, 6, 6]"}),
    ("ConvolutionBackward", "this product has gradients of convolutions of one or two axes only", THREE_AXES_BACK, A1),
    ("ConvolutionBackward", ONE_PER_AXIS, {"stride": [1]}),
    ("ConvolutionBackward", "dilation has a number from 1 to 255 for every axis", {"dilation": [1, 256]}),
    ("ConvolutionBackward", "padding has a number of at least 0 for every axis, or for every side of two axes",
     {"padding": [-1, 1]}),
    ("ConvolutionBackward", "outputPadding has a number for every axis, 0 unless transposed", {"more": [0, 1]}),
    ("ConvolutionBackward", "groups is 1 to 65535", {"groups": 65536}),
    ("ConvolutionBackward", CHANNELS, {"input": "float32[1, 5, 6, 6]"}),
    ("ConvolutionBackward", "no tensor is empty", {"input": "float32[0, 4, 6, 6]"}),
    ("ConvolutionBackward", "the kernel is at most 255 high and wide", {"weight": "float32[8, 4, 1, 256]"}),
    ("ConvolutionBackward", "padding is at most 255", {"padding": [1, 256]}),
    ("ConvolutionBackward", "stride of three axes is at most 63 in height and width",
     {**THREE_AXES_BACK, "stride": [1, 64, 1]}),
    ("ConvolutionBackward", "gradOutput has the shape of the convolution's output", {"dy": "float32[1, 8, 6, 5]"}),
    ("ConvolutionBackward", "outputMask has 3 elements", {"mask": [True, True]}),
    ("ConvolutionBackward", "gradInput has the shape and dtype of input", {"dx": None}),
    ("ConvolutionBackward", "gradWeight has the shape of weight", {"dw": ">float32[8, 4, 9]"}),
    ("ConvolutionBackward", "biasSizes is the output's channels", {"sizes": [4]}),
    ("ConvolutionBackward", "gradBias has the shape of the bias and the dtype of gradOutput", {"db": ">float16[8]"}),
    ("ConvolutionBackward", "cubeMathType is 0, 1, 2 or 3", {"math": 4}),
    ("ConvolutionBackward", ON_A1, {}, A1),
    ("ConvolutionBackward", BF16_AS_FP16,
     {"dy": "bfloat16[1, 8, 6, 6]", "input": "bfloat16[1, 4, 6, 6]", "weight": "bfloat16[8, 4, 3, 3]", "math": 2,
      "mask": [False, False, False]}),
    ("LayerNorm", "input is float32, float16 or bfloat16", {"x": "int32[2, 3, 8]"}),
    ("LayerNorm", LAST, {"shape": [3]}),
    ("LayerNorm", WEIGHT, {"weight": "bfloat16[8]"}),
    ("LayerNorm", BIAS, {"bias": "float32[1]"}),
    ("LayerNorm", "weight and bias have one dtype", {"bias": "float16[8]"}),
    ("LayerNorm", "out has the shape and dtype of input", {"out": ">float32[2, 3, 8]"}),
    ("LayerNorm", "mean and rstd are float32, float16 or bfloat16", {"mean": ">int32[2, 3, 1]"}),
    ("LayerNorm", "mean and rstd have as many elements as rows are normalised", {"rstd": ">float32[2, 3, 8]"}),
    ("LayerNormBackward", "gradOut is float32, float16 or bfloat16", {"dy": "int32[2, 3, 8]"}),
    ("LayerNormBackward", "gradOut and input have one shape and dtype", {"dy": "float32[2, 3, 8]"}),
    ("LayerNormBackward", LAST, {"shape": [2, 8]}),
    ("LayerNormBackward", "no tensor is empty", {"dy": "float16[0, 3, 8]", "x": "float16[0, 3, 8]"}),
    ("LayerNormBackward", "mean and rstd have one dtype, not narrower than that of input",
     {"dy": "float32[2, 3, 8]", "x": "float32[2, 3, 8]", "mean": "float16[2, 3, 1]", "rstd": "float16[2, 3, 1]"}),
    ("LayerNormBackward", "mean and rstd have an element for every row that is normalised",
     {"mean": "float32[3]", "rstd": "float32[3]"}),
    ("LayerNormBackward", WEIGHT, {"weight": "float32[4]"}),
    ("LayerNormBackward", BIAS, {"bias": "bfloat16[8]"}),
    ("LayerNormBackward", "weight and bias have one dtype", {"weight": "float16[8]"}),
    ("LayerNormBackward", "outputMask has 3 elements", {"mask": [True]}),
    ("LayerNormBackward", "what outputMask asks for is given", {"db": None}),
    ("LayerNormBackward", "gradInput has the shape and dtype of input", {"dx": ">float32[2, 3, 8]"}),
    ("LayerNormBackward", "gradWeight has the shape and dtype of weight", {"dw": ">float16[8]"}),
    ("LayerNormBackward", "gradBias has the shape and dtype of weight", {"db": ">float32[3]"}),
    ("GroupNorm", "self is float32, float16 or bfloat16", {"x": "int8[2, 8, 3]"}),
    ("GroupNorm", "all tensors have one dtype", {"mean": ">float32[2, 4]"}),
    ("GroupNorm", "self has 2 to 8 axes", {"x": "float16[2]"}),
    ("GroupNorm", "C is a multiple of group, which is over 0", {"group": 3}),
    ("GroupNorm", "eps is over 0", {"eps": 0.0}),
    ("GroupNorm", "self is (N, C, ...) with HxW places", {"places": 4}),
    ("GroupNorm", "gamma and beta are (C)", {"gamma": "float16[4]"}),
    ("GroupNorm", "out has the shape of self", {"out": ">float16[2, 8, 3, 1]"}),
    ("GroupNorm", "meanOut and rstdOut are (N, group)", {"rstd": ">float16[8]"}),
    ("GroupNormBackward", "gradOut is float32, float16 or bfloat16", {"dy": "int8[2, 8, 3]"}),
    ("GroupNormBackward", "outputMask has 3 elements", {"mask": [True, True]}),
    ("GroupNormBackward", "what outputMask asks for is given", {"dx": None}),
    ("GroupNormBackward", "all inputs have one dtype", {"mean": "float32[2, 4]", "rstd": "float32[2, 4]"}),
    ("GroupNormBackward", "gradients have the dtype of gradOut", {"dg": ">float32[8]"}),
    ("GroupNormBackward", "C is a multiple of group, which is over 0", {"group": 0}),
    ("GroupNormBackward", "C is at most 240000, and C / group at most 8000", {"c": 8001, "group": 1}),
    ("GroupNormBackward", "gradOut and input have N * C * HxW elements", {"x": "float16[2, 8, 4]"}),
    ("GroupNormBackward", "mean and rstd have N * group elements", {"mean": "float16[8, 2]"}),
    ("GroupNormBackward", "gamma has C elements", {"gamma": "float16[4]"}),
    ("GroupNormBackward", "gradInput has the shape of input", {"dx": ">float16[2, 24]"}),
    ("GroupNormBackward", "gradGammaOut and gradBetaOut have the shape of gamma", {"db": ">float16[1, 8]"}),
    ("RmsNorm", "this product has no aclnnRmsNorm", {}, A1),
    ("RmsNorm", "x and yOut are float32, float16 or bfloat16, both the same", {"y": ">float32[2, 3, 8]"}),
    ("RmsNorm", "gamma has the dtype of x or float32", {"gamma": "bfloat16[8]"}),
    ("RmsNorm", "rstdOut is float32", {"rstd": ">float16[2, 3, 1]"}),
    ("RmsNorm", "x ends with the shape of gamma", {"gamma": "float16[3]"}),
    ("RmsNorm", "yOut has the shape of x", {"y": ">float16[6, 8]"}),
    ("RmsNorm", "rstdOut has the shape of x with 1 for every axis that is normalised", {"rstd": ">float32[2, 3]"}),
    ("RmsNormGrad", "this product has no aclnnRmsNormGrad", {}, A1),
    ("RmsNormGrad", "dy, x and dxOut have one dtype of floats", {"dy": "float32[2, 3, 8]"}),
    ("RmsNormGrad", "gamma has the dtype of x or float32", {"gamma": "bfloat16[8]"}),
    ("RmsNormGrad", "rstd and dgammaOut are float32", {"dg": ">float16[8]"}),
    ("RmsNormGrad", "x ends with the shape of gamma", {"gamma": "float16[3]"}),
    ("RmsNormGrad", "dy, x and dxOut have one shape, of at least 2 axes", {"dx": ">float16[6, 8]"}),
    ("RmsNormGrad", "rstd has an element for every row that is normalised", {"rstd": "float32[2, 1]"}),
    ("RmsNormGrad", "dgammaOut has the shape of gamma", {"dg": ">float32[1, 8]"}),
    ("Softmax", "self and out are float32, float16, bfloat16 or float64", {"x": "int32[2, 3]"}),
    ("Softmax", "dim is an axis of self", {"dim": 2}),
    ("Softmax", "out has the shape of self", {"out": ">float16[3, 2]"}),
    ("SoftmaxBackward", "gradOutput and out are float32, float16 or bfloat16", {"dy": "float64[2, 3]"}),
    ("SoftmaxBackward", "gradOutput and output have one dtype", {"y": "float32[2, 3]"}),
    ("SoftmaxBackward", "dim is an axis of gradOutput", {"dim": -3}),
    ("SoftmaxBackward", "gradOutput, output and out have one shape", {"out": ">float16[3, 2]"}),
    ("LogSoftmax", "self and out are float32, float16, bfloat16 or float64", {"out": ">int32[2, 3]"}),
    ("LogSoftmax", "dim is an axis of self", {"dim": 2}),
    ("LogSoftmax", "out has the shape of self", {"out": ">float16[6]"}),
    ("LogSoftmaxBackward", "gradOutput and out are float32, float16 or bfloat16", {"out": ">int32[2, 3]"}),
    ("LogSoftmaxBackward", "gradOutput and output have one dtype", {"y": "float32[2, 3]"}),
    ("LogSoftmaxBackward", "dim is an axis of gradOutput", {"dim": 2}),
    ("LogSoftmaxBackward", "gradOutput, output and out have one shape", {"y": "float16[6]"}),
]  # fmt: skip


def arguments(operator, **changes):
    """Return the arguments of a call that is taken, with changes; "float16[2, 3]" is an input, ">..." an output."""
    return [each if not isinstance(each, str) else tensor(each) for each in {**TAKEN[operator], **changes}.values()]


def tensor(text):
    output, dtype, dims = re.fullmatch(r"(>?)(\w+)\[(.*)\]", text).groups()
    dims = tuple(int(each) for each in dims.split(",") if each)
    return out(dims, dtype) if output else cast(np.ones(dims), dtype)


@pytest.mark.parametrize("operator", TAKEN)
@pytest.mark.parametrize("product", ["Ascend910B2", INFERENCE])
def test_the_calls_whose_changes_are_refused_are_taken_themselves(operator, product):
    assert card(product, "plan").launch(operator, *arguments(operator))


@pytest.mark.parametrize("operator, rule, changes, product", [(*each, "Ascend910B2")[:4] for each in REFUSED], ids=str)
def test_a_broken_rule_is_refused_with_its_sentence(operator, rule, changes, product):
    with pytest.raises(Refused, match=re.escape(f"aclnn{operator} refuses this call on {product}: {rule}; given")):
        card(product, "plan").launch(operator, *arguments(operator, **changes))


@pytest.mark.parametrize("operator", TAKEN)
def test_no_rule_of_an_operator_is_left_untested(operator):
    (rules,) = [each.rules for each in standin.operators() if each.name == f"aclnn{operator}"]
    assert sorted(set(rules)) == sorted({rule for name, rule, *_ in REFUSED if name == operator})
