"""Sizes read off weights, position embeddings for other sizes, and loading, which names what does not fit."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from support.weights import FIXTURES, LATTE, WEIGHTS, kinds, same

from latte.components.loading import check, read
from latte.errors import UserError
from latte.models.autoencoder import AutoencoderConfig
from latte.models.embeddings import interpolate_pos_embed
from latte.models.latte import LatteConfig
from latte.weights.files import CONFIG, read_state_dict, write_state_dict
from latte.weights.match import check_state, load_state


def latte_config(tensors, beside="{}", num_heads=None):
    return dataclasses.asdict(LatteConfig.from_weights(tensors, {CONFIG: beside}, "x", num_heads=num_heads))


def test_sizes_of_latte():
    tensors = read_state_dict(FIXTURES / "latte_class.pt").tensors
    assert latte_config(tensors, num_heads=4) == LATTE
    assert latte_config(tensors, '{"num_heads": 8, "depth": 9}')["num_heads"] == 8
    assert latte_config(tensors, '{"num_heads": 8, "input_size": [4, 16]}')["input_size"] == (4, 16)
    assert latte_config(tensors, '{"num_heads": 8, "input_size": [4, 4]}')["input_size"] == 8
    for beside, said in {
        "": "not valid JSON",
        "[" * 100_000: "nested too deeply",
        "[1]": "no JSON object but a list",
        '{"num_heads": "4"}': "num_heads must be a whole number from 1 to 4,096, but is '4'",
        '{"num_heads": [4]}': r"num_heads must be a whole number from 1 to 4,096, but is \[4\]",
        '{"num_heads": 4, "input_size": {}}': "input_size must be a whole number",
        '{"num_heads": 4, "input_size": [4, 2.5]}': "input_size must be a whole number",
        '{"num_heads": null, "input_size": null}': "--num_heads",
    }.items():
        with pytest.raises(UserError, match=said):
            latte_config(tensors, beside)
    with pytest.raises(UserError, match="x holds a network with num_heads 8, but num_heads 4 is asked for"):
        latte_config(tensors, '{"num_heads": 8}', 4)
    uncond = read_state_dict(FIXTURES / "latte_uncond.pt").tensors
    assert latte_config(uncond, num_heads=4) == LATTE | {"condition": None, "num_classes": None}
    text = uncond | {"text_embedding_projection.1.weight": np.zeros((64, 77 * 768), np.float16)}
    assert latte_config(text, num_heads=4)["condition"] == "text"
    narrow = uncond | {"final_layer.linear.bias": np.zeros(16)}
    assert latte_config(narrow, num_heads=4)["learn_sigma"] is False
    with pytest.raises(UserError, match="no square"):
        latte_config(uncond | {"pos_embed": np.zeros((1, 15, 64))}, num_heads=4)
    del uncond["temp_embed"]
    with pytest.raises(UserError, match="temp_embed"):
        latte_config(uncond, num_heads=4)
    with pytest.raises(UserError, match=r"holds an autoencoder, not a Latte network; tools/vae_converter\.py"):
        check(FIXTURES / "vae.bin", "latte")


@pytest.mark.parametrize("width, heads", [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_heads_of_official_widths(width, heads):
    tensors = {
        "x_embedder.proj.weight": np.zeros((width, 4, 4, 4)),
        "pos_embed": np.zeros((1, 64, width)),
        "temp_embed": np.zeros((1, 16, width)),
        "final_layer.linear.bias": np.zeros(128),
        "blocks.0.x": np.zeros(1),
    }
    config = LatteConfig.from_weights(tensors, {}, "x")
    assert (config.num_heads, config.patch_size, config.input_size) == (heads, 4, 32)


def test_sizes_of_autoencoders():
    small = AutoencoderConfig(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
    for name in ("vae.bin", "vae", "vae/diffusion_pytorch_model.safetensors"):
        assert check(FIXTURES / name) == small
    assert check(FIXTURES / "latte_t2v" / "vae_temporal_decoder", "autoencoder").temporal_decoder
    state = read_state_dict(WEIGHTS / "sd_full.ckpt")
    described = dataclasses.replace(state, metadata={"config": '{"norm_num_groups": 2, "scaling_factor": 0.5}'})
    assert check(described).scaling_factor == 0.5
    other = AutoencoderConfig(block_out_channels=(4, 8, 8), layers_per_block=2, norm_num_groups=2)
    assert check(state, norm_num_groups=2) == other
    with pytest.raises(UserError, match=r"32 groups do not divide.*--norm_num_groups"):
        check(state)


class Net(nn.Cell):
    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.inner = nn.Dense(2, 3, dtype=dtype)
        self.scale = ms.Parameter(ms.Tensor(np.ones(2), ms.float32), name="scale")

    def construct(self, x):
        return self.inner(x * self.scale)


@pytest.mark.parametrize("net_dtype", [ms.float32, ms.float16, ms.bfloat16])
@pytest.mark.parametrize("file_dtype", ["float32", "float16", "bfloat16"])
def test_loading_casts(net_dtype, file_dtype):
    net = Net(net_dtype)
    values = {name: np.arange(p.size).reshape(p.shape) + 0.5 for name, p in net.parameters_and_names()}
    tensors = {name: value.astype(kinds()[file_dtype].dtype) for name, value in values.items()}
    load_state(net, tensors, "x")
    for name, parameter in net.parameters_and_names():
        assert parameter.dtype == (ms.float32 if name == "scale" else net_dtype)
        assert np.array_equal(parameter.asnumpy().astype(np.float64), values[name]), name


def test_loaded_network_computes_and_trains(tmp_path):
    net = Net()
    values = {"scale": [1, 2], "inner.weight": [[1, 0], [0, 1], [1, 1]], "inner.bias": [0, 0, 5]}
    before = net(ms.Tensor(np.ones((1, 2), np.float32))).asnumpy()
    write_state_dict(tmp_path / "x.pt", {key: np.array(value, np.float32) for key, value in values.items()}, {})
    load_state(net, read_state_dict(tmp_path / "x.pt").tensors, "x")  # a network that has run, from a read-only file
    out = net(ms.Tensor(np.ones((1, 2), np.float32))).asnumpy()
    assert out.tolist() == [[1, 2, 8]] and not np.array_equal(out, before)
    optimizer = nn.SGD(net.trainable_params(), 1.0)
    gradients = tuple(ms.ops.ones_like(p) for p in net.trainable_params())
    optimizer(gradients)
    assert net.inner.bias.asnumpy().tolist() == [-1, -1, 4]
    assert read_state_dict(tmp_path / "x.pt").tensors["inner.bias"].tolist() == [0, 0, 5]


def test_what_does_not_fit_is_listed_and_not_loaded():
    net = Net()
    before = {name: p.asnumpy().copy() for name, p in net.parameters_and_names()}
    tensors = {"inner.bias": np.zeros(3), "inner.weight": np.zeros((3, 3)), "other": np.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_state(net, tensors, "x.pt")
    said = str(caught.value)
    assert "x.pt" in said and "1 missing (scale)" in said and "1 unexpected (other)" in said
    assert "1 mis-shaped (inner.weight (3, 3) for (3, 2))" in said
    same(before, {name: p.asnumpy() for name, p in net.parameters_and_names()})
    many = {name: p.asnumpy() for name, p in net.parameters_and_names()} | {f"k{i}": np.zeros(1) for i in range(9)}
    with pytest.raises(UserError, match=r"9 unexpected \(k0, k1, k2, k3, k4, ...\)"):
        check_state(net, many, "x.pt")


@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (3, 3), (5, 7), (2, 3)])
def test_interpolation_is_pytorchs(grid):
    with np.load(WEIGHTS / "bicubic.npz") as data:
        found = interpolate_pos_embed(data["pos_embed"], grid)
        expected = data[f"{grid[0]}x{grid[1]}"]
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-6


def test_adapting():
    found = read(FIXTURES / "latte_uncond.pt")
    tensors, longer = found.tensors, dataclasses.replace(found.config, input_size=(4, 16), num_frames=6)
    same(found.config.with_positions(tensors), tensors)
    adapted = longer.with_positions(tensors, stored=(4, 4))
    assert adapted["temp_embed"].shape == (1, 6, 64) and list(adapted) == list(tensors)
    assert np.array_equal(adapted["pos_embed"], interpolate_pos_embed(tensors["pos_embed"], (2, 8)))
    assert longer.with_positions(tensors)["pos_embed"] is tensors["pos_embed"]
    with pytest.raises(UserError, match="no square"):
        interpolate_pos_embed(tensors["pos_embed"][:, :15], (4, 4))
