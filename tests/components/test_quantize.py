"""Weights of int8: how far they are from the float ones, in networks and in files, and the graph that Ascend gets."""

import itertools
import shutil
from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindspore.common.np_dtype import bfloat16
from support.golden_values import FIXTURES, error, recorded, tiny
from support.train_step import small

from latte.components.convert import convert_folder
from latte.components.loading import check, load_t2v, load_vae
from latte.components.quantize import (
    empty_int8,
    holds_int8,
    is_quantized,
    matrices,
    quantize,
    quantized,
    quantized_state,
)
from latte.components.text_encoder import TextEncoder, load_t5, load_text_encoder
from latte.errors import UserError
from latte.inference.export import graph_of
from latte.io.mindir import read_graph
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.layers import Initializers, set_int8
from latte.models.precision import pad_block
from latte.models.t5 import T5Config, T5Encoder
from latte.ops import linear
from latte.runtime import device
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.match import load_state

FOLDER = FIXTURES / "latte_t2v"
SPATIAL, TEMPORAL = 10, 6  # matrices of a block: q, k, v and out, twice over patches, and two of the MLP


def video_inputs():
    data = recorded("latte_t2v")
    x = np.ascontiguousarray(data["latents"].transpose(0, 2, 1, 3, 4))
    return [ms.Tensor(a) for a in (x, data["timestep"], data["text_hidden"], np.ones((1, 120), np.int32))]


def text_inputs():
    data = recorded("latte_t2v")
    return ms.Tensor(data["input_ids"]), ms.Tensor(data["attention_mask"])


def dequantize(net):
    """Put into a float network the weights that its int8 ones stand for."""
    for layer in matrices(net).values():
        values, scale = quantized(layer.weight.asnumpy())
        layer.weight.set_data(ms.Tensor(values * scale[:, None]))
    return net


def equal(left, right):
    left, right = dict(left.parameters_and_names()), dict(right.parameters_and_names())
    assert list(left) == list(right)
    for name, weight in left.items():
        assert weight.name == name and weight.dtype == right[name].dtype, name
        assert np.array_equal(weight.asnumpy(), right[name].asnumpy()), name


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
def test_off_by_half_a_step_at_most(dtype):
    matrix = (np.random.default_rng(0).standard_normal((64, 200)) * np.logspace(-3, 2, 64)[:, None]).astype(dtype)
    values, scale = quantized(matrix)
    exact = matrix.astype(np.float64)
    assert values.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (64,)
    assert np.array_equal(np.abs(values).max(1), np.full(64, 127))
    assert np.array_equal(scale, np.abs(matrix.astype(np.float32)).max(1) / np.float32(127))
    assert (np.abs(values * scale[:, None].astype(np.float64) - exact) <= scale[:, None] / 2 * (1 + 1e-5)).all()


def test_rounding_and_rows_of_nothing():
    rows = [[127, 0.5, 1.5, 2.5, -0.5, -1.5], [-254, 3, 5, 1, 0, 253], [0] * 6, [1e-44, -1e-43, 0, 0, 0, 0]]
    values, scale = quantized(np.array(rows, np.float32))
    assert values.tolist() == [[127, 0, 2, 2, 0, -2], [-127, 2, 2, 0, 0, 126], [0] * 6, [0] * 6]
    assert scale.tolist() == [1, 2, 1, 1]
    with pytest.raises(UserError, match=r"layer\.weight has values that are not finite"):
        quantized(np.array([[1, np.nan], [0, 0]], np.float32), "layer.weight")


@pytest.mark.parametrize("dtype, tolerance", [(ms.float32, 1e-6), (ms.float16, 2e-3)])
@pytest.mark.parametrize("rows", [3, 50])  # scaled after the product, and before it
def test_linear(rows, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, rows, 20), (7, 20), (7,)))
    values, scale = quantized(w)
    weight = (ms.Tensor(values), ms.Tensor(scale))
    y = ms.jit(linear)(ms.Tensor(x, dtype), ms.mutable(weight), ms.Tensor(b))
    expected = x.astype(np.float64) @ (values * scale[:, None].astype(np.float64)).T
    assert y.dtype == dtype and error(y, expected + b) <= tolerance
    assert error(linear(ms.Tensor(x, dtype), weight), expected) <= tolerance
    down, up = (rng.standard_normal(s).astype(np.float32) for s in ((2, 20), (7, 2)))
    y = linear(ms.Tensor(x, dtype), (weight, ms.Tensor(down), ms.Tensor(up), 0.5), ms.Tensor(b))
    assert error(y, expected + b + 0.5 * x @ down.T @ up.T) <= tolerance


def test_which_matrices():
    net, t5 = load_t2v(FOLDER / "transformer", quantize="int8"), load_t5(FOLDER / "text_encoder", quantize="int8")
    assert len(matrices(net)) == 2 * (SPATIAL + TEMPORAL) and len(matrices(t5)) == 2 * 7
    assert holds_int8(net) and holds_int8(t5) and not holds_int8(load_t5(FOLDER / "text_encoder"))
    for one in (net, t5):
        for name, weight in one.parameters_and_names():
            inside = "blocks." in name or name.startswith("encoder.block.")
            is_matrix = inside and name.endswith(".weight") and "norm" not in name and "attention_bias" not in name
            assert weight.dtype == (ms.int8 if is_matrix else ms.float32), name


def test_memory_is_about_a_quarter():
    def size(net):
        return sum(weight.nbytes for weight in net.get_parameters())

    video = LatteT2VConfig(4, 24, num_layers=28, cross_attention_dim=96, caption_channels=256)  # an eighth as wide
    text = T5Config(d_model=256, d_ff=640, num_layers=4, num_heads=4, vocab_size=1)
    for net, share in ((LatteT2V(video, seed=None), 0.3), (T5Encoder(text), 0.26)):
        before = size(net)
        assert 0.25 < size(empty_int8(net)) / before < share
    assert T5Config().matrices == 4_630_511_616 and T5Config().parameter_count == 4_762_310_656


def test_the_video_network():
    exact = load_t2v(FOLDER / "transformer")(*video_inputs()).asnumpy()
    net = load_t2v(FOLDER / "transformer", quantize="int8")
    found = net(*video_inputs()).asnumpy()
    assert error(found, dequantize(load_t2v(FOLDER / "transformer"))(*video_inputs()).asnumpy()) <= 1e-5
    assert 1e-5 < error(found, exact) <= 2e-3
    equal(quantize(load_t2v(FOLDER / "transformer")), net)


def latte_inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *tiny("class").shape)).astype(np.float32)
    return [ms.Tensor(a) for a in (x, np.array([10, 700], np.float32), np.array([1, 2], np.int32))]


def images():
    return [ms.Tensor(np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32))]


@pytest.mark.parametrize(
    "load, inputs, count, most",
    [
        (lambda: tiny("class"), latte_inputs, 5 * 4, 2e-2),
        (lambda: load_vae(FIXTURES / "vae.bin"), images, 4 * 2, 5e-3),
    ],
    ids=["latte", "autoencoder"],
)
def test_every_network_keeps_its_scales(load, inputs, count, most):
    """An int8 network computes what its dequantized weights do, in every block; also as one graph."""
    net = quantize(load())
    assert len(matrices(net)) == count and holds_int8(net)
    exact, expected = (each(*inputs()).asnumpy() for each in (load(), dequantize(load())))
    for run in (net, ms.jit(net.construct)):
        found = run(*inputs())
        assert error(found, expected) <= 1e-5
        assert 1e-5 < error(found, exact) <= most


def test_adapters_work_in_a_block_of_latte():
    """They begin as nothing, change the output once trained, and get gradients; also on top of an int8 matrix."""
    net, init = quantize(small(condition="class", num_classes=3)), Initializers(0)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 4)).astype(np.float32)
    given = [ms.Tensor(a) for a in (x, np.array([10, 700], np.float32), np.array([1, 2], np.int32))]
    before, layers = net(*given).asnumpy(), [net.blocks[0].attn.qkv, net.blocks[0].attn.proj]
    for layer in layers:
        layer.adapt(2, 1.0, init)
    assert np.array_equal(net(*given).asnumpy(), before)
    for layer in layers:
        layer.lora_up.set_data(ms.Tensor(np.full(layer.lora_up.shape, 0.1, np.float32)))
    assert error(net(*given).asnumpy(), before) > 1e-4
    weights = ms.ParameterTuple([weight for layer in layers for weight in (layer.lora_down, layer.lora_up)])

    def loss(*inputs):
        return ms.ops.square(net.construct(*inputs)).mean()

    gradient = ms.grad(loss, None, weights)

    def step(*inputs):
        return gradient(*inputs)

    gradients = ms.jit(step)(*given)
    assert all(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients)


@pytest.mark.slow
def test_the_video_network_in_half_precision():
    found = load_t2v(FOLDER / "transformer", quantize="int8")(*video_inputs()).asnumpy()
    half = load_t2v(FOLDER / "transformer", quantize="int8", dtype="fp16")
    assert half.blocks[0].attn1.to_q.scale.dtype == ms.float32 and half.blocks[0].attn1.to_q.bias.dtype == ms.float16
    assert error(half(*video_inputs()), found) <= 5e-3


@pytest.mark.slow
def test_the_video_network_as_one_graph_of_the_accelerators_form():
    with device.use("GPU"):
        graph = ms.jit(load_t2v(FOLDER / "transformer", quantize="int8").construct)
        found = graph(*video_inputs())
    assert error(found, load_t2v(FOLDER / "transformer", quantize="int8")(*video_inputs()).asnumpy()) <= 1e-5


def with_calm_scores(folder):
    """Return a copy whose scores are about one, as a trained encoder's; the fixture's random ones are saturated."""
    (file,) = folder.glob("*.safetensors")
    tensors = read_state_dict(file).tensors
    calm = {key: values * np.float32(0.2 if ".q." in key else 1) for key, values in tensors.items()}
    file.unlink()
    write_state_dict(file, calm, {})
    return folder


def test_the_text_encoder(tmp_path):
    folder = with_calm_scores(shutil.copytree(FOLDER / "text_encoder", tmp_path / "t5"))
    exact, net = load_t5(folder)(*text_inputs()).asnumpy(), load_t5(folder, quantize="int8")
    found = net(*text_inputs()).asnumpy()
    assert error(found, dequantize(load_t5(folder))(*text_inputs()).asnumpy()) <= 1e-5
    assert 1e-4 < error(found, exact) <= 4e-2
    assert np.linalg.norm(found - exact) <= 2e-2 * np.linalg.norm(exact)
    equal(quantize(load_t5(folder)), net)
    half = load_t5(folder, "fp16", "int8")
    assert half.shared.weight.dtype == ms.float16 and error(half(*text_inputs()), found) <= 5e-3


@pytest.mark.slow
def test_prompts_and_release():
    encoder = load_text_encoder(FOLDER, quantize="int8")
    hidden, mask = encoder.encode(["a dog", "a cat"])
    assert np.isfinite(hidden).all() and mask.sum() > 4
    encoder.release()
    assert encoder.network is None
    again = TextEncoder(encoder.tokenizer, load_t5(FOLDER / "text_encoder", quantize="int8"))
    assert np.array_equal(again.encode(["a dog", "a cat"])[0], hidden)


@pytest.mark.parametrize("form", ["ckpt", "safetensors", "bin"])
def test_small_files_are_what_loading_makes(tmp_path, form):
    """Also from one form to the other, and when the small folder is quantized once more."""
    lines = convert_folder(FOLDER, tmp_path / "a", form, "int8", "transformer,text_encoder")
    assert "float32, int8" in lines[0] and "float32, int8" in lines[1]
    convert_folder(tmp_path / "a", tmp_path / "b", "safetensors", "int8", "transformer,text_encoder")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert check(folder / "transformer") == check(FOLDER / "transformer")
        for kind in (None, "int8"):
            equal(load_t2v(folder / "transformer", quantize=kind), load_t2v(FOLDER / "transformer", quantize="int8"))
            equal(load_t5(folder / "text_encoder", quantize=kind), load_t5(FOLDER / "text_encoder", quantize="int8"))
    (large,) = (FOLDER / "transformer").glob("*.safetensors")
    (small,) = (tmp_path / "b" / "transformer").glob("*.safetensors")
    assert small.stat().st_size < 0.45 * large.stat().st_size  # the blocks are most of larger networks


def test_states_of_files():
    tensors = read_state_dict(FOLDER / "transformer").tensors
    names = list(matrices(load_t2v(FOLDER / "transformer")))
    small, shapes = quantized_state(tensors, names), quantized_state(tensors, names, empty=True)
    assert is_quantized(small) and not is_quantized(tensors) and list(small) == list(shapes)
    for key, values in small.items():
        assert (values.shape, values.dtype) == (shapes[key].shape, shapes[key].dtype)
    assert [key for key in small if not key.endswith(".scale")] == list(tensors)
    assert small["proj_out.weight"] is tensors["proj_out.weight"]


def broken(tensors, how):
    name = "transformer_blocks.1.attn2.to_v"
    if how == "no scale":
        return {key: values for key, values in tensors.items() if key != f"{name}.scale"}
    if how == "scale of another shape":
        return tensors | {f"{name}.scale": np.ones(3, np.float32)}
    if how == "float matrix":
        return tensors | {f"{name}.weight": np.ones((64, 64), np.float32)}
    return tensors | {"proj_out.weight": np.ones(tensors["proj_out.weight"].shape, np.int8)}


@pytest.mark.parametrize(
    "how, words",
    [
        ("no scale", "1 missing .transformer_blocks.1.attn2.to_v.scale"),
        ("scale of another shape", "1 mis-shaped .transformer_blocks.1.attn2.to_v.scale"),
        ("float matrix", "transformer_blocks.1.attn2.to_v in another type"),
        ("int8 elsewhere", "proj_out.weight in another type"),
    ],
)
def test_broken_small_files(tmp_path, how, words):
    convert_folder(FOLDER, tmp_path / "x", "safetensors", "int8", "transformer")
    (file,) = (tmp_path / "x" / "transformer").glob("*.safetensors")
    tensors = {key: values.copy() for key, values in read_state_dict(file).tensors.items()}
    write_state_dict(file, broken(tensors, how), {})
    for load in (load_t2v, check):
        with pytest.raises(UserError, match=words):
            load(file.parent)


def test_other_kinds_are_refused():
    for load in (load_t2v, load_t5):
        with pytest.raises(UserError, match="quantize 'int4' is not known; choose int8"):
            load(FOLDER / "transformer", quantize="int4")


@pytest.mark.slow
def test_wider_heads_change_nothing():
    config = LatteT2VConfig(4, 12, num_layers=1, cross_attention_dim=48, sample_size=8, caption_channels=32)
    net = quantize(LatteT2V(config, seed=1))
    x, *rest = video_inputs()
    before = net(x[:, :1], *rest).asnumpy()
    for block in net.blocks:
        pad_block(block, 4)  # from 12 to 16
        assert block.attn1.to_q.weight.shape == (64, 48) and block.attn1.to_q.scale.shape == (64,)
        assert block.attn1.to_out[0].weight.shape == (48, 64) and block.attn1.to_out[0].weight.dtype == ms.int8
    assert error(net(x[:, :1], *rest), before) <= 1e-5


def test_large_layers_are_given_back_one_by_one(monkeypatch):
    """A float network becomes int8 a layer at a time; loading never has more than one float matrix."""
    seen, net = [], T5Encoder(T5Config(d_model=64, d_ff=64, num_layers=2, num_heads=4, vocab_size=8))
    values = {name: np.broadcast_to(np.float32(0.5), p.shape) for name, p in net.parameters_and_names()}
    load_state(net, values, "here")

    def note(layer, *rest):
        seen.append(sum(p.nbytes for p in net.get_parameters()))
        set_int8(layer, *rest)

    monkeypatch.setattr("latte.components.quantize.set_int8", note)
    quantize(net)
    assert len(seen) == 14 and all(later < earlier for earlier, later in itertools.pairwise(seen))


def uses_of_int8(nodes):
    """Return how many int8 parameters a graph has, and the operators that they go into."""
    weights = {node for node in nodes if node.op == "Parameter" and node.dtypes == ["int8"]}
    loads = {node for node in nodes if node.op == "Load" and node.inputs[0] in weights}
    # A MakeTuple is of the order in which they are read.
    return len(weights), Counter(node.op for node in nodes if loads & {*node.inputs} and node.op != "MakeTuple")


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_ascends_graph_has_no_float_matrices(dtype):
    with device.use("Ascend"):
        net = load_t2v(FOLDER / "transformer", dtype=dtype, quantize="int8")
        found, count = read_graph(graph_of(net, *video_inputs())), 2 * (SPATIAL + TEMPORAL)
    assert uses_of_int8(found) == (count, Counter(WeightQuantBatchMatmul=count))
    products = [node.dtypes for node in found if node.op == "WeightQuantBatchMatmul"]
    assert products == [[dtype]] * count
    # What is left are the embeddings of time and text, the modulation, and the final layer.
    assert [node.dtypes for node in found if node.op == "Dense"] == [["fp32"]] * 6


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_ascends_graph_of_the_text_encoder(dtype):
    """With fp16 the last product of a block is float32, which the kernel does not take: that matrix is made whole."""
    with device.use("Ascend"):
        net = load_t5(FOLDER / "text_encoder", dtype, "int8")
        found = read_graph(graph_of(net, *text_inputs()))
    whole = 2 if dtype == "fp16" else 0
    uses = Counter(WeightQuantBatchMatmul=14 - whole) + Counter(Cast=whole)
    assert uses_of_int8(found) == (14, uses)
    products = [node.dtypes for node in found if node.op == "WeightQuantBatchMatmul"]
    assert products == [[dtype]] * (14 - whole)
