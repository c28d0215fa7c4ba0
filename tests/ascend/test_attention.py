"""The stand-in's attention and product with int8 weights against NumPy, and the attention that each card is given.

NumPy computes in float64 and rounds where the kernels do: exp(score - maximum) to the dtype of the inputs, and the
result once more; the gradient rounds the probabilities and the gradient of the scores.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ascend import standin
from ascend.aclnn import Refused, card, cast, out, plain, rounded

WHOLE = 2**31 - 1  # tokens before and after: no band
EPSILON = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}
LAYOUTS = ("BSH", "BNSD", "BSND", "SBH")
HALVES = ("float16", "bfloat16")


def draw(shape, dtype, seed):
    return cast(np.random.default_rng(seed).normal(size=shape), dtype)


def lay(x, layout):
    """Put (B, N, S, D) into a layout."""
    if layout == "BNSD":
        return np.ascontiguousarray(x)
    x = np.ascontiguousarray(x.transpose(0, 2, 1, 3))  # (B, S, N, D)
    if layout == "BSND":
        return x
    x = x.reshape(*x.shape[:2], -1)
    return x if layout == "BSH" else np.ascontiguousarray(x.transpose(1, 0, 2))


def expected(q, k, v, scale, dtype, discard=None, dy=None):
    """Return attention, maxima and sums of (B, N, S, D), and with `dy` the gradients of q, k and v."""
    q, k, v = (plain(each).astype(np.float64) for each in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    kn, vn = k.repeat(repeats, 1), v.repeat(repeats, 1)
    scores = scale * q @ kn.swapaxes(-1, -2)
    if discard is not None:
        scores = np.where(discard, -3.4028235e38, scores)
    largest = scores.max(-1, keepdims=True)
    p = np.exp(scores - largest)
    total = p.sum(-1, keepdims=True)
    y = rounded(rounded(p, dtype) @ vn / total, dtype)
    if dy is None:
        return y, largest, total
    dy = plain(dy).astype(np.float64)
    p /= total
    ds = rounded(p * (dy @ vn.swapaxes(-1, -2) - (dy * y).sum(-1, keepdims=True)), dtype)
    of_key = [scale * ds.swapaxes(-1, -2) @ q, rounded(p, dtype).swapaxes(-1, -2) @ dy]
    grouped = [g.reshape(*k.shape[:2], repeats, *k.shape[2:]).sum(2) for g in of_key]
    return [rounded(g, dtype) for g in (scale * ds @ kn, *grouped)]


def relative(given, wanted):
    return np.abs(given - wanted).max() / np.abs(wanted).max()


def score(q, k, v, heads, scale, layout="BSH", mask=None, sparse=1, before=WHOLE, after=WHOLE, inner=0, product=None):
    """Call FlashAttentionScore on a card and return maxima, sums and attention."""
    shape = dict(zip(layout, q.shape, strict=True))
    statistics = (shape["B"], heads, shape["S"], 8)
    dtype = "bfloat16" if q.dtype == np.uint16 else q.dtype.name
    results = (out(statistics), out(statistics), None, out(q.shape, dtype))
    settings = (scale, 1.0, before, after, heads, layout, inner, sparse if mask is not None else 0)
    where = card(product) if product else card()
    return where.launch("FlashAttentionScore", q, k, v, None, None, None, mask, None, *settings, *results)


def gradients(q, k, v, dy, forward, heads, scale, layout="BSH", mask=None):
    dtype = "bfloat16" if q.dtype == np.uint16 else q.dtype.name
    maxima, sums, y = forward
    settings = (scale, 1.0, WHOLE, WHOLE, heads, layout, 0, 0 if mask is None else 1)
    kept = (maxima, sums, None, cast(y, dtype))
    results = [out(each.shape, dtype) for each in (q, k, v)]
    return card().launch(
        "FlashAttentionScoreGrad", q, k, v, dy, None, None, None, mask, *kept, None, *settings, *results, None
    )


def prompt(q, k, v, heads, scale, layout="BSH", mask=None, sparse=1, after=WHOLE, inner=0, product="Ascend910B4"):
    """Call PromptFlashAttentionV3 on a card and return the attention."""
    dtype = "bfloat16" if q.dtype == np.uint16 else q.dtype.name
    settings = (heads, scale, WHOLE, after, layout, 0, sparse if mask is not None else 0, inner)
    nothing = [None] * 7
    return card(product).launch(
        "PromptFlashAttentionV3", q, k, v, None, mask, *nothing, *settings, out(q.shape, dtype)
    )[0]


def infer(q, k, v, heads, scale, layout="BSH", mask=None, product="Ascend910B4"):
    """Call FusedInferAttentionScoreV2 on a card and return the attention."""
    dtype = "bfloat16" if q.dtype == np.uint16 else q.dtype.name
    sparse = 0 if mask is None else 1
    settings = (heads, scale, WHOLE, WHOLE, layout, 0, sparse, 0, 0, 0, False, 0, 0)
    nothing = [None] * 19
    return card(product).launch(
        "FusedInferAttentionScoreV2", q, [k], [v], None, mask, *nothing, *settings, out(q.shape, dtype), None
    )[0]


@pytest.mark.parametrize("dtype", [*HALVES, "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_flash_attention_and_its_gradient_are_numpys_in_every_layout(layout, dtype):
    shapes = ((2, 4, 9, 16), (2, 2, 12, 16), (2, 2, 12, 16), (2, 4, 9, 16))  # two queries' heads per key's
    q, k, v, dy = (draw(shape, dtype, seed) for seed, shape in enumerate(shapes))
    laid = [lay(x, layout) for x in (q, k, v, dy)]
    maxima, sums, y = score(*laid[:3], 4, 0.25, layout)
    wanted, largest, total = expected(q, k, v, 0.25, dtype)
    assert relative(y, lay(wanted, layout)) < 2 * EPSILON[dtype]
    assert relative(maxima, largest.repeat(8, -1)) < 1e-6 and relative(sums, total.repeat(8, -1)) < 1e-6
    found = gradients(*laid, (maxima, sums, y), 4, 0.25, layout)
    for given, grad in zip(found, expected(q, k, v, 0.25, dtype, dy=dy), strict=True):
        assert relative(given, lay(grad, layout)) < 2 * EPSILON[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(2, 4, 9, 12), (2, 1, 9, 12), (1, 1, 9, 12), (9, 12)])
def test_a_mask_discards_where_it_is_one(shape, dtype):
    q, k, v, dy = (draw((2, 4, length, 16), dtype, seed) for seed, length in enumerate((9, 12, 12, 9)))
    mask = np.random.default_rng(5).random(shape) < 0.4
    laid = [lay(x, "BSH") for x in (q, k, v, dy)]
    forward = score(*laid[:3], 4, 0.25, mask=mask)
    wanted = lay(expected(q, k, v, 0.25, dtype, mask)[0], "BSH")
    assert relative(forward[2], wanted) < 2 * EPSILON[dtype]
    kept_and_discarded_exchanged = score(*laid[:3], 4, 0.25, mask=~mask)[2]
    assert relative(kept_and_discarded_exchanged, wanted) > 0.2
    of_bytes = score(*laid[:3], 4, 0.25, mask=mask.astype(np.uint8))[2]
    assert np.array_equal(of_bytes, forward[2])
    for given, grad in zip(
        gradients(*laid, forward, 4, 0.25, mask=mask), expected(q, k, v, 0.25, dtype, mask, dy), strict=True
    ):
        assert relative(given, lay(grad, "BSH")) < 2 * EPSILON[dtype]


def test_the_default_mask_mode_counts_only_the_band_around_the_diagonal():
    q, k, v = (draw((1, 1, 6, 16), "float16", seed) for seed in range(3))
    laid, none = [lay(x, "BSH") for x in (q, k, v)], np.zeros((6, 6), bool)
    causal = np.triu(np.ones((6, 6), bool), 1)
    wanted = lay(expected(q, k, v, 0.25, "float16", causal)[0], "BSH")
    assert relative(score(*laid, 1, 0.25, mask=none, sparse=0, after=0)[2], wanted) < 2**-9
    assert relative(prompt(*laid, 1, 0.25, mask=none, sparse=0, after=0), wanted) < 2**-9
    assert relative(prompt(*laid, 1, 0.25, mask=none, sparse=1, after=0), wanted) > 0.1


@pytest.mark.parametrize(
    "attend", [prompt, lambda *given, **options: score(*given, **options)[2]], ids=["prompt", "score"]
)
def test_a_row_without_a_key_attends_to_all_alike_unless_rows_are_to_be_mended(attend):
    q, k, v = (lay(draw((1, 2, 5, 16), "float16", seed), "BSH") for seed in range(3))
    mask = np.zeros((5, 5), bool)
    mask[2] = True
    plain_rows, mended = (attend(q, k, v, 2, 0.25, mask=mask, inner=inner) for inner in (0, 2))
    assert relative(plain_rows[0, 2], v[0].astype(np.float64).mean(0)) < 2**-9
    assert not mended[0, 2].any() and np.array_equal(np.delete(mended, 2, 1), np.delete(plain_rows, 2, 1))


@pytest.mark.parametrize("product", ["Ascend910B2", "Ascend910B4"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", ["BSH", "BNSD", "BSND"])
def test_attention_for_inference_is_numpys(layout, dtype, product):
    q, k, v = (draw((2, 4, length, 16), dtype, seed) for seed, length in enumerate((9, 12, 12)))
    laid = [lay(x, layout) for x in (q, k, v)]
    mask = np.random.default_rng(5).random((2, 1, 9, 12)) < 0.4
    for discard in (None, mask):
        wanted = lay(expected(q, k, v, 0.25, dtype, discard)[0], layout)
        for attend in (prompt, infer):
            given = attend(*laid, 4, 0.25, layout, mask=discard, product=product)
            assert relative(given, wanted) < 2 * EPSILON[dtype]


REFUSED = {
    "a card that only infers": (score, {"product": "Ascend910B4"}, "Atlas A2 for training"),
    "a card of the first kind": (score, {"product": "Ascend910A"}, "Atlas A2 for training"),
    "inference on a card of the first kind": (prompt, {"product": "Ascend910A"}, "not 910A"),
    "float32 where attention only infers": (prompt, {"dtype": "float32"}, "float16 or bfloat16"),
    "float32 where attention only infers, in the newer operator": (infer, {"dtype": "float32"}, "float16 or bfloat16"),
    "a head width of 72 in a batch of 129": (prompt, {"shape": (129, 1, 72)}, "128 where D is not a multiple of 16"),
    "a head width of 72 in the newer operator": (infer, {"shape": (1, 2, 72)}, "D is a multiple of 16"),
    "a batch of 65537": (prompt, {"shape": (65537, 1, 16)}, "B is at most 65536"),
    "a batch beyond 2M": (score, {"shape": (2**21 + 1, 1, 1)}, "B is 1 to 2M"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_pages_refuse_is_refused_with_its_rule(case):
    attend, given, sentence = REFUSED[case]
    options = dict(given)
    shape, dtype, heads = options.pop("shape", (2, 4, 32)), options.pop("dtype", "float16"), options.pop("heads", 1)
    x = np.zeros(shape, dtype)
    with pytest.raises(Refused, match=sentence):
        attend(x, x, x, heads, 0.25, **options)


def test_the_width_of_72_passes_where_the_page_of_flash_attention_score_lets_it():
    q, k, v = (draw((1, 2, 4, 72), "float16", seed) for seed in range(3))
    y = score(*(lay(x, "BSH") for x in (q, k, v)), 2, 72**-0.5)[2]
    assert relative(y, lay(expected(q, k, v, 72**-0.5, "float16")[0], "BSH")) < 2**-9


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_product_with_int8_weights_is_numpys(dtype, transposed):
    generator = np.random.default_rng(0)
    x, scale, bias = (draw(shape, dtype, seed) for seed, shape in enumerate(((5, 24), (7,), (7,))))
    bias = plain(bias).astype(np.float32 if dtype == "bfloat16" else np.float16)
    matrix = generator.integers(-128, 128, (7, 24), np.int8)
    weight = matrix.T if transposed else np.ascontiguousarray(matrix.T)
    y = card().launch("WeightQuantBatchMatmulV2", x, weight, scale, None, None, None, bias, 0, out((5, 7), dtype))[0]
    times = rounded(matrix * plain(scale).astype(np.float64)[:, None], dtype)
    assert relative(y, rounded(plain(x).astype(np.float64) @ times.T + bias, dtype)) < EPSILON[dtype]


HALF = "float16[2, 4, 32]"  # two heads of 16 in the layout BSH
TRAINING = {"q": HALF, "k": HALF, "v": HALF}, {"pse": None, "drop": None, "padding": None, "mask": None}
SETTINGS = {
    "scale": 0.25,
    "keep": 1.0,
    "before": WHOLE,
    "after": WHOLE,
    "heads": 2,
    "layout": "BSH",
    "inner": 0,
    "sparse": 0,
}
INFERENCE = {
    "heads": 2,
    "scale": 0.25,
    "before": WHOLE,
    "after": WHOLE,
    "layout": "BSH",
    "kv_heads": 0,
    "sparse": 0,
    "inner": 0,
}
KEPT = {"maxima": "float32[2, 2, 4, 8]", "sums": "float32[2, 2, 4, 8]", "softmax": None}
TAKEN = {
    "FlashAttentionScore": {
        **TRAINING[0], **TRAINING[1], "prefix": None, **SETTINGS, **{key: v and ">" + v for key, v in KEPT.items()},
        "y": ">" + HALF,
    },
    "FlashAttentionScoreGrad": {
        **TRAINING[0], "dy": HALF, **TRAINING[1], **KEPT, "y": HALF, "prefix": None, **SETTINGS,
        "dq": ">" + HALF, "dk": ">" + HALF, "dv": ">" + HALF, "dpse": None,
    },
    "PromptFlashAttentionV3": {
        **TRAINING[0], "pse": None, "mask": None, "lengths": None, "kv_lengths": None, "deq1": None, "quant1": None,
        "deq2": None, "quant2": None, "offset2": None, **INFERENCE, "y": ">" + HALF,
    },
    "FusedInferAttentionScoreV2": {
        "q": HALF, "k": [HALF], "v": [HALF], "pse": None, "mask": None, "lengths": None, "kv_lengths": None,
        **dict.fromkeys(map(str, range(17))), **INFERENCE, "block": 0,
        "antiquant": 0, "lse": False, "k_mode": 0, "v_mode": 0,
        "y": ">" + HALF, "lse_out": None,
    },
    "WeightQuantBatchMatmulV2": {
        "x": "float16[5, 24]", "weight": "int8[24, 7]", "scale": "float16[7]", "offset": None, "quant_scale": None,
        "quant_offset": None, "bias": None, "group": 0, "y": ">float16[5, 7]",
    },
}  # fmt: skip


def every(shape, *names, dtype="float16"):
    """Return changes that give tensors one shape; outputs are marked."""
    return {name: f"{'>' if name in ('y', 'dq', 'dk', 'dv') else ''}{dtype}{shape}" for name in names}


def same(length, width=16, heads=1, batch=1):
    """Return changes for q, k, v and y of one shape in the layout BSH."""
    return {**every([batch, length, width * heads], "q", "k", "v", "y"), "heads": heads}


MASK, WIDE = "bool[4, 4]", every([2, 2, 4, 16], "q", "k", "v", "y")  # in the layout BNSD
NO_TENSOR = "query has the axes of inputLayout, and its heads divide H"
SHARED = [  # by all operators of attention
    ("query, key and value have one dtype", {"k": "bfloat16[2, 4, 32]"}),
    (NO_TENSOR, {"heads": 3}),
    ("query, key and value have one batch size", {**every([3, 4, 32], "k", "v")}),
    ("the stand-in has sparse modes 0 (default mask) and 1 (whole mask) only", {"mask": MASK, "sparse": 2}),
]
SHARED_BY_TRAINING = [
    *SHARED,
    ("the product is Atlas A2 for training, not Atlas 800I A2 (910B4) or 910A", {}, "Ascend910B4"),
    ("the product is Atlas A2 for training, not Atlas 800I A2 (910B4) or 910A", {}, "Ascend910A"),
    ("inputLayout is BSH, SBH, BSND or BNSD", {"layout": "TND"}),
    ("query, key and value are float16, bfloat16 or float32", {**every([2, 4, 32], "q", "k", "v", dtype="int8")}),
    ("the stand-in has no pse, drop mask or padding mask", {"keep": 0.5}),
    ("attenMask is bool or uint8", {"mask": "float16[4, 4]"}),
    ("headNum is the N of query", {**WIDE, "layout": "BNSD", "heads": 4}),
    ("key has the axes of inputLayout, and its width is that of query", {"k": "float16[2, 4, 8]"}),
    ("value has the axes of inputLayout, and the heads of key divide its H", {"v": "float16[2, 4, 31]"}),
    ("key and value differ in D only", {"v": "float16[2, 5, 32]"}),
    ("D of query is that of key, at least that of value", {**WIDE, "layout": "BNSD", "k": "float16[2, 2, 4, 8]"}),
    ("N of query is a multiple of N of key", {"q": "float16[2, 4, 48]", "heads": 3}),
    ("B is 1 to 2M", {**same(1, 1, batch=2**21 + 1)}),
    ("N is 1 to 256", {**same(1, 1, heads=257)}),
    ("S is 1 to 1M", {**same(2**20 + 1, 1)}),
    ("D is 1 to 768", {**same(1, 784)}),
    ("attenMask is (B, N, S, S), (B, 1, S, S), (1, 1, S, S) or (S, S)", {"mask": "bool[2, 1, 1, 4]"}),
    ("the stand-in has no value with another D than key", {**WIDE, "layout": "BNSD", "v": "float16[2, 2, 4, 8]"}),
    ("softmaxMax and softmaxSum are float32", {"sums": "float16[2, 2, 4, 8]"}),
    ("softmaxMax and softmaxSum are (B, N, Sq, 8)", {"maxima": "float32[2, 2, 4, 1]"}),
]
SHARED_BY_INFERENCE = [
    *SHARED,
    ("the product is Atlas A2 or A3, not 910A", {}, "Ascend910A"),
    ("inputLayout is BSH, BSND or BNSD; the stand-in has no other", {"layout": "SBH"}),
    ("query, key and value are float16 or bfloat16 (int8, with its scales, the stand-in has not)",
     {**every([2, 4, 32], "q", "k", "v", dtype="float32")}),
    ("query, key and value are contiguous", {"q": np.zeros((2, 32, 4), np.float16).swapaxes(1, 2)}),
    ("the stand-in has no pseShift", {"pse": "float16[2, 2, 4, 4]"}),
    ("the stand-in has no actualSeqLengths", {"lengths": [4, 4]}),
    ("the stand-in has no actualSeqLengthsKv", {"kv_lengths": [4, 4]}),
    ("attenMask is bool, int8 or uint8", {"mask": "float16[4, 4]"}),
    ("attenMask is contiguous", {"mask": np.zeros((4, 5), bool)[:, :4]}),
    ("sparse mode 1 comes with its whole mask", {"sparse": 1}),
    ("innerPrecise is 0, 1, 2 or 3", {"inner": 4}),
    ("numHeads is the N of query", {**WIDE, "layout": "BNSD", "heads": 4}),
    ("key and value have the axes of inputLayout, and their heads divide H", {"k": "float16[2, 32]"}),
    ("key and value have one shape", {"v": "float16[2, 5, 32]"}),
    ("numKeyValueHeads is the N of key and value", {**WIDE, "layout": "BNSD", "kv_heads": 1}),
    ("query, key and value have one D", {**every([2, 4, 16], "k", "v")}),
    ("numKeyValueHeads divides numHeads, 64 times at most",
     {**every([1, 1, 65], "q", "y"), **every([1, 1, 1], "k", "v"), "heads": 65, "kv_heads": 1}),
    ("B is at most 65536", {**same(1, batch=65537)}),
    ("N is at most 256", {**same(1, heads=257)}),
    ("S is at most 20971520", {**same(20 * 2**20 + 1, 1)}),
    ("D is at most 512", {**same(1, 528)}),
    ("attentionOut has dtype and shape of query", {"y": ">float16[2, 4, 16]"}),
    ("without int8 there are no scales of quantization", {"quant1": "float32[1]", "1": "float32[1]"}),
    ("attenMask is (S, S), (B, S, S), (1, S, S), (B, 1, S, S) or (1, 1, S, S)", {"mask": "bool[2, 1, 1, 4]"}),
]  # fmt: skip
TALL = np.broadcast_to(np.zeros((1, 1), np.float16), (2**31, 1))
BROKEN = {
    "FlashAttentionScore": [
        *SHARED_BY_TRAINING,
        ("attentionOut has dtype and shape of query", {"y": ">float16[2, 4, 16]"}),
    ],
    "FlashAttentionScoreGrad": [
        *SHARED_BY_TRAINING,
        ("softmaxMax, softmaxSum and attentionIn of the forward pass are given", {"sums": None}),
        ("dy and attentionIn have the dtype of query", {"dy": "float32[2, 4, 32]"}),
        ("dy and attentionIn have the shape of query", {"y": "float16[2, 4, 16]"}),
        ("gradients have the dtype of query", {"dk": ">float32[2, 4, 32]"}),
        ("gradients have the shapes of query, key and value", {"dv": ">float16[2, 4, 16]"}),
    ],
    "PromptFlashAttentionV3": [
        *SHARED_BY_INFERENCE,
        ("B is at most 128 where D is not a multiple of 16", {**same(1, 72, batch=129)}),
        ("N * D is less than 65535 in the layouts BSH and BSND", {**same(1, 256, heads=256)}),
    ],
    "FusedInferAttentionScoreV2": [
        *SHARED_BY_INFERENCE,
        ("the stand-in has no key or value in several tensors", {"k": [HALF, HALF]}),
        ("the stand-in has no pages, paddings, prefixes or softmaxLse", {"lse": True}),
        ("D is a multiple of 16 where query has more than one row", {**same(2, 72)}),
        ("attenMask is (B, S), (B, 1, S) or (B, 1, 1, S) where query has one row", {**same(1), "mask": "bool[1, 2]"}),
    ],
    "WeightQuantBatchMatmulV2": [
        ("the product is Atlas A2 or A3, not 910A", {}, "Ascend910A"),
        ("x is float16 or bfloat16", {"x": "float32[5, 24]"}),
        ("weight is int8 (int4, which the page has too, the stand-in has not)", {"weight": "float16[24, 7]"}),
        ("antiquantScale has the dtype of x", {"scale": "float32[7]"}),
        ("x, weight and y have two axes", {"x": "float16[5, 1, 24]"}),
        ("weight is (k, n) for x (m, k)", {"weight": "int8[7, 24]"}),
        ("y is (m, n) in the dtype of x", {"y": ">float32[5, 7]"}),
        ("k and n are 1 to 65535", {"x": "float16[5, 65536]", "weight": "int8[65536, 7]"}),
        ("m is 1 to 2^31 - 1", {"x": TALL, "weight": "int8[1, 1]", "y": TALL}),
        ("the stand-in has no x that is transposed", {"x": np.zeros((24, 5), np.float16).T}),
        ("weight is contiguous, or transposed", {"weight": np.zeros((24, 14), np.int8)[:, ::2]}),
        ("antiquantScale is (n), (1, n), (1) or (1, 1); the stand-in has no groups", {"scale": "float16[24]"}),
        ("antiquantOffset has the shape of antiquantScale", {"offset": "float16[1]"}),
        ("antiquantGroupSize is 0 without groups", {"group": 32}),
        ("the stand-in has no output in int8", {"quant_offset": "float32[7]"}),
        ("bias is float16 for x of float16, else float32", {"bias": "float32[7]"}),
        ("bias is (n) or (1, n)", {"bias": "float16[5, 7]"}),
    ],
}  # fmt: skip


def arguments(operator, **changes):
    """Return the arguments of a call that is taken, with changes; "float16[2, 3]" is an input, ">..." an output."""
    taken = TAKEN[operator]
    for key, each in changes.items():
        if key in taken:
            listed = isinstance(taken[key], list) and not isinstance(each, list)
            taken = {**taken, key: [each] if listed else each}
    return [tensor(each) for each in taken.values()]


def tensor(text):
    if isinstance(text, list):
        return [tensor(each) for each in text]
    if not isinstance(text, str) or "[" not in text:
        return text
    output, dtype, dims = re.fullmatch(r"(>?)(\w+)\[(.*)\]", text).groups()
    dims = tuple(int(each) for each in dims.split(","))
    return out(dims, dtype) if output else cast(np.ones(dims), dtype)


@pytest.mark.parametrize("operator", BROKEN)
def test_every_rule_of_an_operator_is_refused_with_its_sentence(operator):
    card("Ascend910B2", "plan").launch(operator, *arguments(operator))
    for rule, changes, *product in BROKEN[operator]:
        where = product[0] if product else "Ascend910B2"
        with pytest.raises(Refused) as raised:
            card(where, "plan").launch(operator, *arguments(operator, **changes))
        assert f"aclnn{operator} refuses this call on {where}: {rule}; given" in str(raised.value)
    (rules,) = [each.rules for each in standin.operators() if each.name == f"aclnn{operator}"]
    assert {rule for rule, *_ in BROKEN[operator]} == set(rules)


ATTENDS = {  # which operators attend on a card, forward and in training
    "Ascend910B2": ({"aclnnFlashAttentionScore", "aclnnFlashAttentionScoreGrad"}, "attends by FlashAttentionScore"),
    "Ascend910B4": ({"aclnnPromptFlashAttentionV3", "aclnnSoftmax"}, "attends by PromptFlashAttention"),
    "Ascend910A": ({"aclnnSoftmax"}, "does not exist on Ascend910A; exact attention computes the same"),
}  # fmt: skip


def attended(on_standin, product, *words):
    """Run tests/ascend/attend.py on a card and return what it printed of errors, what it said, and its launches."""
    done = on_standin(Path(__file__).with_name("attend.py"), *words, product=product)
    said = [line for line in done.stderr.splitlines() if "enable_flash_attention" in line]
    return json.loads(done.stdout.splitlines()[-1]), said, done.launches


@pytest.mark.parametrize(
    "product, dtype",
    [
        ("Ascend910B2", "float16"),
        pytest.param("Ascend910B2", "bfloat16", marks=pytest.mark.slow),
        ("Ascend910B4", "float16"),
        pytest.param("Ascend910B4", "bfloat16", marks=pytest.mark.slow),
        ("Ascend910A", "float16"),
    ],
)
def test_each_card_attends_by_the_kernel_that_it_has(product, dtype, on_standin):
    errors, said, launches = attended(on_standin, product, dtype)
    kernels, sentence = ATTENDS[product]
    assert errors.pop("chip") == product
    assert errors.pop("wrong sign") > 0.5
    assert max(errors.values()) < 4 * EPSILON[dtype], errors
    attention = {op for op in launches if "Attention" in op or op == "aclnnSoftmax"}
    assert attention == kernels
    assert ("aclnnWeightQuantBatchMatmulV2" in launches) == (product != "Ascend910A")
    assert sum(sentence in line for line in said) == 1
    assert any("has no gradient on Ascend910B4; exact" in line for line in said) == (product == "Ascend910B4")


@pytest.mark.slow
@pytest.mark.parametrize("scores", [64, 12])  # some of the batch at once, or some rows of one
def test_exact_attention_by_blocks_computes_on_a_card_without_a_fused_kernel(scores, on_standin):
    errors, _, launches = attended(on_standin, "Ascend910A", "float16", scores)
    assert max(errors[name] for name in ("forward", "masked", "gradient", "masked gradient")) < 4 * EPSILON["float16"]
    assert launches["aclnnSplitTensor" if scores == 64 else "aclnnSlice"] > 0


@pytest.mark.parametrize("product", ["Ascend910B4", pytest.param("Ascend910B2", marks=pytest.mark.slow)])
def test_mindspore_passes_on_why_a_card_does_not_attend(product, on_standin):
    done = on_standin(Path(__file__).with_name("refused.py"), product=product)
    said = json.loads(done.stdout.splitlines()[-1])
    trains = product == "Ascend910B2"
    sentences = {
        "training": ""
        if trains
        else "FlashAttentionScore refuses this call on Ascend910B4: the product is Atlas A2 for",
        "float32 in training": "" if trains else "the product is Atlas A2 for training",  # CANN's page has it
        "a mask of one row": "attenMask is (B, N, S, S), (B, 1, S, S)" if trains else "the product is Atlas A2",
        "float32": "must be a type of {Tensor[BFloat16], Tensor[Float16], Tensor[Int8]}, but got Tensor[Float32]",
        "a width of 72 in bfloat16": "dimension D must align with 16! but got 72",
        "a width of 72 in a batch of 129": f"on {product}: B is at most 128 where D is not a multiple of 16",
        "a batch of 65537": f"on {product}: B is at most 65536",
        "what it takes": "",
    }
    assert said.keys() == sentences.keys()
    for case, sentence in sentences.items():
        assert sentence in said[case] and bool(said[case]) == bool(sentence), case


@pytest.mark.slow
def test_mindspores_graphs_pass_the_newer_attention_wrong_keys(on_standin):
    """Should this fail, MindSpore is mended: FusedInferAttentionScore could then take PromptFlashAttention's place."""
    done = on_standin(Path(__file__).with_name("newer_attention.py"), product="Ascend910B4")
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors["without"] < 2**-9 and errors["graph"] > 0.5 and errors["shifted"] < 2**-9
