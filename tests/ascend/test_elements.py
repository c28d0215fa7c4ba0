"""Operators of the stand-in that compute, reduce or move elements, beside NumPy, and what they refuse."""

import ctypes
import math

import numpy as np
import pytest
from ascend.aclnn import Refused, card, cast, out, plain, returned, rounded

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(3, 1, 5)), RNG.normal(size=(4, 1))
POSITIVE = np.abs(A) + 0.1
ONE = np.float32(1)
FLOATS = ("float32", "float16", "bfloat16")
ROOM = {"float32": 2.0**-21, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # one rounding, and those of float32 before it
erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def slope(function):
    """Return x -> the derivative, by central differences in float64."""
    return lambda x: (function(x + 1e-6) - function(x - 1e-6)) / 2e-6


FUNCTIONS = {
    "Sqrt": (np.sqrt, POSITIVE),
    "Rsqrt": (lambda x: 1 / np.sqrt(x), POSITIVE),
    "Reciprocal": (lambda x: 1 / x, POSITIVE),
    "Exp": (np.exp, A),
    "Log": (np.log, POSITIVE),
    "Sin": (np.sin, A),
    "Cos": (np.cos, A),
    "Tanh": (np.tanh, A),
    "Erf": (erf, A),
    "Sigmoid": (sigmoid, A),
    "Floor": (np.floor, 3 * A),
    "Silu": (lambda x: x * sigmoid(x), A),
    "Gelu": (gelu_tanh, A),
    "Relu": (lambda x: np.maximum(x, 0), A),
    "Neg": (np.negative, A),
    "Abs": (np.abs, A),
    "Square": (np.square, A),
    "Sign": (np.sign, A),
}
PAIRS = {
    "Mul": np.multiply,
    "Div": np.divide,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "FloorDivide": np.floor_divide,
    "RemainderTensorTensor": np.mod,
}
COMPARISONS = {
    "Lt": np.less,
    "Le": np.less_equal,
    "Gt": np.greater,
    "Ge": np.greater_equal,
    "Eq": np.equal,
    "Ne": np.not_equal,
}
SCALARS = {
    "Adds": (np.add, (np.float32(0.3), ONE)),
    "Subs": (np.subtract, (np.float32(0.3), ONE)),
    "Muls": (np.multiply, (np.float32(0.3),)),
    "Divs": (np.divide, (np.float32(0.3),)),
    "PowTensorScalar": (np.power, (np.float32(0.3),)),
}


def launch(name, *arguments):
    (result,) = card().launch(name, *arguments)
    return result


def same(found, expected, dtype="float32", rounds=1):
    """Hold a result to NumPy's, up to roundings of its dtype."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= rounds * ROOM[dtype] * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, dtype):
    function, x = FUNCTIONS[name]
    same(launch(f"{name}", cast(x, dtype), out(x.shape, dtype)), function(rounded(x, dtype)), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_broadcast(name, dtype):
    found = launch(name, cast(A, dtype), cast(B, dtype), out((3, 4, 5), dtype))
    same(found, PAIRS[name](rounded(A, dtype), rounded(B, dtype)), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_take_a_factor(dtype):
    a, b = rounded(A, dtype), rounded(B, dtype)
    for name, sign in (("Add", 1), ("Sub", -1)):
        found = launch(name, cast(A, dtype), cast(B, dtype), np.float32(2), out((3, 4, 5), dtype))
        same(found, a + sign * 2 * b, dtype, 3)
        whole = launch(name, np.arange(6), np.arange(6), np.int64(3), out((6,), "int64"))
        assert whole.tolist() == [n + sign * 3 * n for n in range(6)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_is_added_with_one_rounding(dtype):
    a, b, c = rounded(A, dtype), rounded(B, dtype), rounded(A[:1], dtype)
    given = (cast(A, dtype), cast(B, dtype), cast(A[:1], dtype))
    same(launch("Addcmul", *given, np.float32(2), out((3, 4, 5), dtype)), a + 2 * b * c, dtype, 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SCALARS)
def test_scalars(name, dtype):
    function, scalars = SCALARS[name]
    found = launch(name, cast(POSITIVE, dtype), *scalars, out(POSITIVE.shape, dtype))
    same(found, function(rounded(POSITIVE, dtype), 0.3), dtype, 2)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name):
    a, b = np.arange(6, dtype=np.int32) % 3, np.ones(1, np.int32)
    expected = COMPARISONS[name](a, b).tolist()
    assert launch(f"{name}Tensor", a, b, out((6,), "bool")).tolist() == expected
    assert launch(f"{name}Scalar", a.astype(np.float32), ONE, out((6,), "bool")).tolist() == expected


def test_logic():
    a, b = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    assert launch("LogicalAnd", a, b, out((4,), "bool")).tolist() == [False, False, False, True]
    assert launch("LogicalOr", a, b, out((4,), "bool")).tolist() == [False, True, True, True]
    assert launch("LogicalNot", a, out((4,), "bool")).tolist() == [True, True, False, False]
    x = np.array([1, np.inf, -np.inf, np.nan, 65504], np.float16)
    assert launch("IsFinite", x, out((5,), "bool")).tolist() == [True, False, False, False, True]
    assert launch("SWhere", a, np.arange(4), -np.arange(4), out((4,), "int64")).tolist() == [0, -1, 2, 3]
    chosen = launch("SWhere", a[:, None], x[:1], np.zeros((1, 3), np.float16), out((4, 3), "float16"))
    assert chosen.tolist() == np.where(a[:, None], x[:1], np.zeros((1, 3))).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_activations(dtype):
    d, x = rounded(RNG.normal(size=A.shape), dtype), rounded(A, dtype)
    given = (cast(d, dtype), cast(x, dtype))
    same(launch("SiluBackward", *given, out(A.shape, dtype)), d * slope(lambda v: v * sigmoid(v))(x), dtype, 4)
    same(launch("GeluBackward", *given, out(A.shape, dtype)), d * slope(gelu)(x), dtype, 4)
    for way, function in (("tanh", gelu_tanh), ("none", gelu)):
        same(launch("GeluBackwardV2", *given, way, out(A.shape, dtype)), d * slope(function)(x), dtype, 4)
        same(launch("GeluV2", given[1], int(way == "tanh"), out(A.shape, dtype)), function(x), dtype)
    same(launch("SigmoidBackward", *given, out(A.shape, dtype)), d * x * (1 - x), dtype, 4)
    same(launch("TanhBackward", *given, out(A.shape, dtype)), d * (1 - x * x), dtype, 4)


def test_casts_round_to_nearest_even():
    x = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519, 65520, 2.0**-25, -1.5], np.float32)
    with np.errstate(over="ignore"):
        assert launch("Cast", x, 1, out((6,), "float16")).tolist() == x.astype(np.float16).tolist()
    y = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 3e38], np.float32)
    assert launch("Cast", y, 27, out((3,), "bfloat16")).tolist() == plain(cast(y, "bfloat16")).tolist()
    assert launch("Cast", np.array([1.9, -1.9, 0.0], np.float32), 3, out((3,), "int32")).tolist() == [1, -1, 0]
    assert launch("Cast", np.array([2**40 + 1, -3]), 9, out((2,), "int64")).tolist() == [2**40 + 1, -3]
    assert launch("Cast", np.array([0.0, 0.5], np.float32), 12, out((2,), "bool")).tolist() == [False, True]


def test_integers_are_exact():
    big = np.array([2**40 + 1, 7])
    assert launch("Mul", big, np.array([3]), out((2,), "int64")).tolist() == [3 * (2**40 + 1), 21]
    assert launch("Muls", big, np.int64(3), out((2,), "int64")).tolist() == [3 * (2**40 + 1), 21]
    assert launch("Adds", big, np.int64(3), np.int64(2), out((2,), "int64")).tolist() == [2**40 + 7, 13]
    assert launch("ReduceSum", big, [0], False, 9, out((), "int64")) == 2**40 + 8


def test_clamp_and_powers():
    same(launch("Clamp", A.astype(np.float32), np.float32(-0.5), np.float32(0.5), out(A.shape)), A.clip(-0.5, 0.5))
    same(launch("PowScalarTensor", np.float32(2), A.astype(np.float32), out(A.shape)), 2**A, rounds=2)
    same(
        launch("PowTensorTensor", POSITIVE.astype(np.float32), A.astype(np.float32), out(A.shape)),
        POSITIVE**A,
        rounds=4,
    )


def test_in_place():
    x = cast(A, "float16")
    (found,) = card().launch("InplaceMul", returned(x.copy()), cast(B, "float16")[:1])
    same(found, rounded(A, "float16") * rounded(B, "float16")[:1], "float16")
    (found,) = card().launch("InplaceMuls", returned(A.astype(np.float32)), np.float32(0.25))
    same(found, A * 0.25)
    (found,) = card().launch("InplaceAdd", returned(A.astype(np.float32)), A.astype(np.float32), np.float32(2))
    same(found, 3 * A, rounds=2)


def test_lerps():
    a, b = np.broadcast_arrays(*(each.astype(np.float32) for each in (A, B)))
    same(launch("Lerps", a, b, np.float32(0.25), out(a.shape)), 0.75 * a + 0.25 * b, rounds=4)


def adamw(weight, mean, square, gradient, taken, amsgrad=False):
    """Return the arguments of a step with a learning rate of 0.1 and a weight decay of 0.5."""
    numbers = [ctypes.c_float(number) for number in (0.1, 0.9, 0.99, 0.5, 1e-8)]
    return [weight, mean, square, gradient, gradient, taken, *numbers, amsgrad, False]


@pytest.mark.parametrize("taken", [np.array([3], np.float32), np.array([3])], ids=["float32", "int64"])
def test_adamw_counts_the_steps_before(taken):
    w, m, g = RNG.normal(size=(3, 20)).astype(np.float32)
    v = np.abs(w) / 100
    given = adamw(*(returned(each.copy()) for each in (w, m, v)), g, taken)
    w_new, m_new, v_new = card().launch("ApplyAdamWV2", *given)
    mean, square = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    root = np.sqrt(square / (1 - 0.99**4)) + 1e-8
    same(m_new, mean, rounds=4)
    same(v_new, square, rounds=4)
    same(w_new, w * (1 - 0.1 * 0.5) - 0.1 * mean / (1 - 0.9**4) / root, rounds=32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axes", [[], [0], [1, -1], [0, 1, 2]])
@pytest.mark.parametrize("keep", [False, True])
def test_reductions(axes, keep, dtype):
    x, chosen = rounded(RNG.normal(size=(3, 4, 5)), dtype), tuple(axes) or None
    for name, function in (("ReduceSum", np.sum), ("Mean", np.mean)):
        expected = function(x, axis=chosen, keepdims=keep)
        found = launch(
            name, cast(x, dtype), axes, keep, {"float32": 0, "float16": 1}.get(dtype, 27), out(expected.shape, dtype)
        )
        same(found, expected, dtype)
    for name, function in (("Amax", np.max), ("Amin", np.min)):
        expected = function(x, axis=chosen, keepdims=keep)
        same(launch(name, cast(x, dtype), axes, keep, out(expected.shape, dtype)), expected, dtype)
    for name, function in (("All", np.all), ("Any", np.any)):
        expected = function(x > 0, axis=chosen, keepdims=keep)
        assert np.array_equal(launch(name, x > 0, axes, keep, out(expected.shape, "bool")), expected)


def test_the_largest_and_the_smallest_of_all():
    x = A.astype(np.float32)
    assert launch("Max", x, out((1,))) == x.max() and launch("Min", x, out((1,))) == x.min()


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "bool"])
def test_moves(dtype):
    x = cast(RNG.integers(0, 2, size=(2, 3, 4)) if dtype in ("int32", "bool") else RNG.normal(size=(2, 3, 4)), dtype)
    values = plain(x)

    def moved(name, *arguments, shape):
        return launch(name, *arguments, out(shape, dtype))

    assert np.array_equal(moved("Permute", x, [2, 0, 1], shape=(4, 2, 3)), values.transpose(2, 0, 1))
    assert np.array_equal(
        moved("Expand", x[:, :1], [2, 3, 4], shape=(2, 3, 4)), np.broadcast_to(values[:, :1], (2, 3, 4))
    )
    assert np.array_equal(moved("Repeat", x, [2, 1, 3, 2], shape=(2, 2, 9, 8)), np.tile(values, (2, 1, 3, 2)))
    assert np.array_equal(moved("Cat", [x, x[:, :1]], 1, shape=(2, 4, 4)), np.concatenate((values, values[:, :1]), 1))
    assert np.array_equal(moved("Stack", [x, x], -1, shape=(2, 3, 4, 2)), np.stack((values, values), -1))
    assert np.array_equal(moved("Slice", x, 2, 1, -1, 2, shape=(2, 3, 1)), values[:, :, 1:-1:2])
    padded = moved("ConstantPadNd", x, [1, 2, 0, 1], np.int64(1), shape=(2, 4, 7))
    assert np.array_equal(padded, np.pad(values, ((0, 0), (0, 1), (1, 2)), constant_values=1))
    cropped = moved("ConstantPadNd", x, [-1, 1, 0, -1], np.int64(1), shape=(2, 2, 4))
    assert np.array_equal(cropped, np.pad(values[:, :-1, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=1))
    transposed = x.transpose(1, 0, 2)  # a view
    assert np.array_equal(
        moved("IndexSelect", transposed, 0, np.array([2, 0]), shape=(2, 2, 4)), plain(transposed[[2, 0]])
    )
    (copied,) = card().launch("InplaceCopy", out((3, 2, 4), dtype), transposed)
    assert np.array_equal(copied, plain(transposed))


def test_splits():
    x = A.astype(np.float32).reshape(3, 5)
    parts = card().launch("SplitTensor", x, 2, 1, [out((3, 2)), out((3, 2)), out((3, 1))])
    assert [part.tolist() for part in parts] == [x[:, :2].tolist(), x[:, 2:4].tolist(), x[:, 4:].tolist()]
    parts = card().launch("SplitWithSize", x, [1, 4], 1, [out((3, 1)), out((3, 4))])
    assert [part.tolist() for part in parts] == [x[:, :1].tolist(), x[:, 1:].tolist()]


def test_fills():
    for name, arguments, value in (
        ("InplaceZero", (), 0),
        ("InplaceOne", (), 1),
        ("InplaceFillScalar", (np.float32(0.5),), 0.5),
        ("InplaceFillTensor", (np.array([3], np.float32),), 3),
    ):
        assert (launch(name, out((2, 3)), *arguments) == value).all()
    assert launch("Arange", np.int64(3), np.int64(9), np.int64(2), out((3,), "int64")).tolist() == [3, 5, 7]
    assert launch("Arange", np.float32(0), np.float32(1), np.float32(0.25), out((4,))).tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_picked_and_added(dtype):
    table, index = RNG.normal(size=(5, 3)), np.array([4, 0, 4, 2], np.int32)
    d = rounded(RNG.normal(size=(4, 3)), dtype)
    expected = rounded(table, dtype)
    np.add.at(expected, index, d)
    one = np.float32(1)
    same(launch("IndexAdd", cast(table, dtype), 0, index, cast(d, dtype), one, out((5, 3), dtype)), expected, dtype, 2)
    picked = launch("Gather", cast(table, dtype), 1, np.array([[2, 0]] * 5), out((5, 2), dtype))
    assert np.array_equal(picked, rounded(table, dtype)[:, [2, 0]])


X, INT = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int32)
REFUSALS = {
    "out has the shape that the inputs broadcast to": ("Mul", X, X[:, :2], out((2, 3))),
    "out has the shape of self": ("Sqrt", X, out((3, 2))),
    "out is bool": ("LtTensor", X, X, out((2, 3))),
    "a float is not cast to an integer": ("Mul", X, X, out((2, 3), "int32")),
    "out is float32, float16 or bfloat16": ("Div", INT, INT, out((2, 3), "int32")),
    "self is float32, float16 or bfloat16": ("Silu", INT, out((2, 3), "int32")),
    "out has the dtype asked for": ("Cast", X, 1, out((2, 3))),
    "all tensors have one dtype of floats": ("SiluBackward", X, X.astype(np.float16), out((2, 3))),
    "condition is bool or uint8": ("SWhere", X, X, X, out((2, 3))),
    "tensors are floats of 16 or 32 bits, not integers": (
        *("Addcmul", INT, INT, INT, ONE),
        out((2, 3), "int32"),
    ),
    "approximate is none or tanh": ("GeluBackwardV2", X, X, "exact", out((2, 3))),
    "axes are axes of self": ("ReduceSum", X, [2], False, 0, out((2, 3))),
    "out has the shape of self without the axes that are reduced": ("ReduceSum", X, [1], False, 0, out((2, 1))),
    "src broadcasts to the shape of self": ("InplaceCopy", out((2, 2)), X),
    "dims name every axis of self once": ("Permute", X, [0, 0], out((2, 2))),
    "self broadcasts to size": ("Expand", X, [3, 3], out((3, 3))),
    "at most 4 axes are repeated": ("Repeat", np.zeros((1,) * 5, np.float32), [2] * 5, out((2,) * 5)),
    "the lengths along dim add up to that of out": ("Cat", [X, X], 0, out((3, 3))),
    "all tensors have the shape of out but for dim": ("Cat", [X, X[:, :2]], 0, out((4, 3))),
    "all tensors have the shape of out without dim": ("Stack", [X, X[:, :2]], 0, out((2, 2, 3))),
    "step is above 0": ("Slice", X, 1, 0, 3, 0, out((2, 3))),
    "the sizes add up to the length of dim": ("SplitWithSize", X, [1, 1], 1, [out((2, 1)), out((2, 1))]),
    "pad has two entries per axis from the last": ("ConstantPadNd", X, [1, 1, 1], ONE, out((2, 3))),
    "a negative pad leaves no length below 0": ("ConstantPadNd", X, [-2, -2], ONE, out((2, 0))),
    "the stand-in adds along axis 0 only": ("IndexAdd", X, 1, INT[0], X, ONE, out((2, 3))),
    "source has the shape of self with the length of index": ("IndexAdd", X, 0, INT[0], X, ONE, out((2, 3))),
    "index is int32 or int64 with at most one axis": ("IndexSelect", X, 0, INT, out((2, 3))),
    "step is not 0": ("Arange", ONE, ONE, np.float32(0), out((0,))),
    "self, end and out are float32, float16 or bfloat16, all of one dtype": (
        "Lerps",
        X,
        X.astype(np.float16),
        ONE,
        out((2, 3)),
    ),
    "var is float32, float16 or bfloat16": ("ApplyAdamWV2", *adamw(INT, INT, INT, INT, X[0, :1])),
    "var, m, v and grad have one dtype": ("ApplyAdamWV2", *adamw(X, X, X, X.astype(np.float16), X[0, :1])),
    "var, m, v and grad have one shape": ("ApplyAdamWV2", *adamw(X, X, X, X[:1], X[0, :1])),
    "step is float32 or int64": ("ApplyAdamWV2", *adamw(X, X, X, X, INT[0, :1])),
    "step has one element": ("ApplyAdamWV2", *adamw(X, X, X, X, X[0])),
    "the stand-in has no amsgrad": ("ApplyAdamWV2", *adamw(X, X, X, X, X[0, :1], True)),
    "tensors have at most 8 axes": ("Neg", np.zeros((1,) * 9, np.float32), out((1,) * 9)),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_a_broken_rule_is_refused_with_its_sentence(rule):
    name, *arguments = REFUSALS[rule]
    with pytest.raises(Refused, match=f"aclnn{name} refuses this call on Ascend910B2: {rule}; given "):
        card().launch(name, *arguments)


def test_a_product_without_bfloat16_refuses_it():
    x = cast(A, "bfloat16")
    with pytest.raises(Refused, match="aclnnSqrt refuses this call on Ascend910A: this product has no bfloat16"):
        card("Ascend910A").launch("Sqrt", x, out(A.shape, "bfloat16"))


def test_adamw_is_none_of_910as():
    with pytest.raises(Refused, match="the product is Atlas A2 or A3, not 910A"):
        card("Ascend910A").launch("ApplyAdamWV2", *adamw(X, X, X, X, X[0, :1]))


def test_an_operator_that_is_lacking_is_an_error_with_its_name():
    with pytest.raises(AttributeError, match="aclnnAcosh"):
        card().launch("Acosh", X, out((2, 3)))


def test_a_plan_computes_nothing():
    assert np.isnan(card(mode="plan").launch("Sqrt", X, out((2, 3)))[0]).all()
