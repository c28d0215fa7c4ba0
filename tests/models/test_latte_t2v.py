"""The text-to-video network and the temporal decoder against what diffusers computed from the same weights."""

import dataclasses
import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, recorded

from latte.components.loading import check, load_t2v, load_vae
from latte.errors import UserError
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import pad_block
from latte.runtime import device, graphs
from latte.weights.files import CONFIG, read_state_dict, write_state_dict
from latte.weights.match import load_state

FOLDER = FIXTURES / "latte_t2v"


@pytest.fixture(scope="module")
def net():
    return load_t2v(FOLDER / "transformer")


def inputs(data, tokens=120):
    """Return the recorded latents as (B, F, C, H, W), the timestep, and the text with a mask of its first tokens."""
    x = ms.Tensor(np.ascontiguousarray(data["latents"].transpose(0, 2, 1, 3, 4)))
    mask = (np.arange(120) < tokens).astype(np.int32)[None]
    return x, ms.Tensor(data["timestep"]), ms.Tensor(data["text_hidden"]), ms.Tensor(mask)


def video(recorded_output):
    return recorded_output.transpose(0, 2, 1, 3, 4)


@pytest.mark.parametrize("temporal, name", [(True, "transformer_out"), (False, "transformer_out_no_temporal")])
def test_forward(net, temporal, name, monkeypatch):
    monkeypatch.setattr(net, "temporal", temporal)
    data = recorded("latte_t2v")
    assert error(net(*inputs(data)), video(data[name])) <= 1e-5


@pytest.mark.slow
def test_temporal_blocks_are_switched_also_once_compiled():
    """A graph keeps the value it was built with: the network has a graph for each."""
    data = recorded("latte_t2v")
    with device.use("GPU"):
        net = load_t2v(FOLDER / "transformer")
        for temporal, name in (
            (True, "transformer_out"),
            (False, "transformer_out_no_temporal"),
            (True, "transformer_out"),
        ):
            net.temporal = temporal
            assert error(net(*inputs(data)), video(data[name])) <= 1e-5


@pytest.mark.slow
def test_forward_as_one_graph_of_the_accelerators_form(net):
    data = recorded("latte_t2v")
    with device.use("GPU"):
        graph = ms.jit(load_t2v(FOLDER / "transformer").construct)
        assert error(graph(*inputs(data)), video(data["transformer_out"])) <= 1e-5


@pytest.mark.parametrize("case, sample_size", [("long_wide", 8), ("large", 128)])
def test_other_lengths_and_sizes(net, case, sample_size):
    data = {key.removeprefix(f"{case}_"): value for key, value in recorded("latte_t2v_sizes").items()}
    if sample_size != net.config.sample_size:
        net = LatteT2V(dataclasses.replace(net.config, sample_size=sample_size), seed=None)
        load_state(net, read_state_dict(FOLDER / "transformer").tensors, "the fixture")
    mask = np.ones(data["text"].shape[:2], np.int32)
    out = net(*[ms.Tensor(data[name]) for name in ("x", "t", "text")], ms.Tensor(mask))
    assert error(out, data["out"]) <= 1e-5


def test_a_mask_is_a_shorter_text(net):
    data = recorded("latte_t2v")
    x, t, text, mask = inputs(data, tokens=9)
    short = net(x, t, text[:, :9], mask[:, :9]).asnumpy()
    assert error(net(x, t, text, mask), short) <= 1e-6
    assert error(net(*inputs(data)), short) > 1e-3


def test_one_frame_leaves_the_temporal_blocks_out(net, monkeypatch):
    x, *rest = inputs(recorded("latte_t2v"))
    with_them = net(x[:, :1], *rest).asnumpy()
    monkeypatch.setattr(net, "temporal", False)
    assert np.array_equal(net(x[:, :1], *rest).asnumpy(), with_them)


def test_parts_one_after_another_are_the_whole(net, monkeypatch):
    """On CPU frames, or patches, go through a block in parts that fit the memory."""
    args = inputs(recorded("latte_t2v"))
    whole = net(*args).asnumpy()
    monkeypatch.setattr(graphs, "TOKENS_PER_CALL", 16)
    assert error(net(*args), whole) <= 1e-6


@pytest.mark.slow
def test_wider_heads_change_nothing():
    config = LatteT2VConfig(4, 12, num_layers=1, cross_attention_dim=48, sample_size=8, caption_channels=32)
    net, args = LatteT2V(config, seed=1), inputs(recorded("latte_t2v"))
    before = net(*args).asnumpy()
    for block in net.blocks:
        pad_block(block, 4)  # from 12 to 16
        assert block.attn1.to_q.weight.shape == (64, 48) and block.attn1.to_out[0].weight.shape == (48, 64)
    assert error(net(*args), before) <= 1e-5


@pytest.mark.parametrize("dtype, tolerance", [("fp16", 5e-3)])
@pytest.mark.slow
def test_half_precision(dtype, tolerance):
    data = recorded("latte_t2v")
    net = load_t2v(FOLDER / "transformer", dtype=dtype)
    block = net.blocks[0]
    assert block.attn1.to_q.weight.dtype == ms.float16 and block.scale_shift_table.dtype == ms.float32
    assert error(net(*inputs(data)), video(data["transformer_out"])) <= tolerance


def test_the_full_size_is_that_of_latte_1():
    net = LatteT2V(LatteT2VConfig(), seed=None)
    assert sum(p.size for p in net.get_parameters()) == 1_057_246_880
    assert len(list(net.get_parameters())) == 967


def test_temporal_decoder():
    data = recorded("vae")
    vae = load_vae(FOLDER / "vae_temporal_decoder")
    assert vae.config.temporal_decoder
    assert error(vae.decode(ms.Tensor(data["z"])), data["decoded_temporal"]) <= 1e-5


@pytest.mark.slow
def test_temporal_decoder_in_the_accelerators_layout():
    data = recorded("vae")
    with device.use("GPU"):
        decode = ms.jit(load_vae(FOLDER / "vae_temporal_decoder").decode)
        assert error(decode(ms.Tensor(data["z"])), data["decoded_temporal"]) <= 1e-5


def test_files_of_older_versions(tmp_path):
    state = read_state_dict(FOLDER / "transformer")
    extra = {"caption_projection.y_embedding": np.zeros((120, 32), np.float32)}
    write_state_dict(tmp_path / "old.safetensors", state.tensors | extra, state.metadata)
    assert check(tmp_path / "old.safetensors") == check(FOLDER / "transformer")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"_class_name": "Transformer2DModel"}, "describes a Transformer2DModel"),
        ({"norm_type": "layer_norm"}, "norm_type 'layer_norm'"),
        ({"num_layers": "28"}, "the config.json of x: num_layers must be a whole number from 1 to 256, but is '28'"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim 1024"),
    ],
)
def test_configurations_that_are_no_latte(values, words):
    with pytest.raises(UserError, match=words):
        LatteT2VConfig.from_weights({}, {CONFIG: json.dumps(values)}, "x")


def broken(folder, how):
    """Copy the transformer's folder and break the copy."""
    shutil.copytree(FOLDER / "transformer", folder)
    file, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    state = read_state_dict(FOLDER / "transformer")
    if how == "no config":
        config.unlink()
    elif how == "config is text":
        config.write_text("hello")
    elif how == "missing tensor":
        write_state_dict(file, {k: v for k, v in state.tensors.items() if "proj_out" not in k}, {})
    elif how == "wrong shape":
        write_state_dict(file, state.tensors | {"proj_out.bias": np.zeros(7, np.float32)}, {})
    elif how == "another network":
        shutil.copy(FOLDER / "vae" / file.name, file)
    elif how == "missing shard":
        file.unlink()
        index = {"weight_map": dict.fromkeys(state.tensors, "model-00001-of-00002.safetensors")}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "how, words",
    [
        ("no config", "no config.json"),
        ("config is text", "config.json .* not valid"),
        ("missing tensor", "2 missing .proj_out.weight"),
        ("wrong shape", r"proj_out.bias \(7,\) for \(32,\)"),
        ("another network", "holds an autoencoder"),
        ("missing shard", "are missing: model-00001-of-00002.safetensors"),
    ],
)
def test_broken_folders_are_one_sentence(tmp_path, how, words):
    folder = broken(tmp_path / "transformer", how)
    with pytest.raises(UserError, match=words) as caught:
        load_t2v(folder)
    assert "\n" not in str(caught.value)
