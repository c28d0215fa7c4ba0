"""One protocol for all networks: what a file holds is told by its names, and read, check and load agree about it."""

import dataclasses
import shutil

import numpy as np
import pytest
import safetensors.numpy
from support.golden_values import FIXTURES
from support.weights import WEIGHTS, same

from latte.components import loading
from latte.components.loading import KINDS, check, kind_of, load, read
from latte.components.quantize import holds_int8, quantize
from latte.errors import UserError
from latte.models.autoencoder import own_names
from latte.weights import files
from latte.weights.files import read_state_dict

FOLDER = FIXTURES / "latte_t2v"
FILES = {
    "latte": FIXTURES / "latte_class.pt",
    "temporal_decoder": FOLDER / "vae_temporal_decoder",
    "autoencoder": FIXTURES / "vae.bin",
    "latte_t2v": FOLDER / "transformer",
    "t5": FOLDER / "text_encoder",
    "clip": FIXTURES / "clip",
}


@pytest.fixture
def opened(monkeypatch):
    """The files that are opened, once each time."""
    names, original = [], files._read_file

    def counted(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(files, "_read_file", counted)
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_is_recognised_checked_and_loaded(kind, opened):
    found = read(FILES[kind])
    assert found.kind is KINDS[kind] and type(found.config) is KINDS[kind].config
    assert check(FILES[kind], kind) == found.config
    opened.clear()
    net = load(found, kind)
    assert not opened, "what was read is not read again"
    assert type(net) is KINDS[kind].network and net.config == found.config
    weights = {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    assert set(weights) == set(found.tensors)
    assert all(np.array_equal(weights[name], values) for name, values in found.tensors.items())
    load(FILES[kind])
    assert len(opened) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_another_network_is_refused_by_name(kind):
    other = "t5" if kind == "latte" else "latte"
    words = f"holds {KINDS[other].description}, not {KINDS[kind].description}; {KINDS[other].instead}"
    for function in (read, check, load):
        with pytest.raises(UserError, match=words):
            function(FILES[other], kind)
    with pytest.raises(UserError, match=words):
        load(read(FILES[other]), kind)


def test_an_autoencoder_may_have_either_decoder_but_a_temporal_one_is_temporal():
    assert load(FILES["temporal_decoder"], "autoencoder").config.temporal_decoder
    with pytest.raises(UserError, match="holds an autoencoder, not a temporal video decoder"):
        load(FILES["autoencoder"], "temporal_decoder")


def test_what_is_no_network_is_said():
    with pytest.raises(UserError, match=r"bare.pt is not a network that is known here"):
        read(WEIGHTS / "bare.pt")
    with pytest.raises(UserError, match=r"not a Latte network: it has no weight x_embedder.proj.weight, but holds"):
        check(WEIGHTS / "bare.pt", "latte")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_weight_is_named_by_read_check_and_load(kind):
    state = read_state_dict(FILES[kind])
    name = next(key for key in state.tensors if key.endswith(("conv1.bias", "fc1.bias", "proj.bias", "wo.weight")))
    less = dataclasses.replace(state, tensors={key: values for key, values in state.tensors.items() if key != name})
    for function in (read, check, load):
        with pytest.raises(UserError, match=rf"does not fit the network: 1 missing .{name}"):
            function(less, kind)


@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("latte", {"depth": 3}, "holds a network with depth 4, but depth 3 is asked for"),
        ("latte_t2v", {"num_layers": 3}, "but num_layers 3 is asked for"),
        ("latte_t2v", {"depth": 3}, "but depth 3 is asked for"),
        ("autoencoder", {"latent_channels": 8}, "latent_channels 4, but latent_channels 8 is asked for"),
        ("t5", {"num_layers": 3}, "but num_layers 3 is asked for"),
        ("autoencoder", {"dtype": "fp16"}, "is an autoencoder, which has no option dtype"),
        ("t5", {"flash": True, "patch_embedder": "linear"}, "which has no option flash, patch_embedder"),
        ("latte", {"quantize": "int4"}, "quantize 'int4' is not known"),
        ("latte", {"dtype": "fp8"}, "fp8"),
    ],
)
def test_what_cannot_be_had_is_refused(kind, options, words):
    with pytest.raises(UserError, match=words):
        load(FILES[kind], kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_an_option_of_load_for_every_network(kind):
    net, exact = load(FILES[kind], kind, quantize="int8"), load(FILES[kind])
    assert holds_int8(net) and not holds_int8(exact)
    expected = dict(quantize(exact).parameters_and_names())
    for name, weight in net.parameters_and_names():
        assert np.array_equal(weight.asnumpy(), expected[name].asnumpy()), name


def test_an_autoencoder_settles_no_dtype(monkeypatch):
    """On a CPU a process multiplies in one dtype: after a network in bf16, asking for float32 would be refused."""
    monkeypatch.setattr(loading.device, "compute_dtype", lambda name: pytest.fail(f"{name} was asked for"))
    assert load(FIXTURES / "vae.bin", "autoencoder").config.latent_channels == 4


def test_adapters_alone_are_no_network(tmp_path):
    files.write_state_dict(tmp_path / "x.safetensors", {"a.lora_down": np.zeros((1, 2), np.float32)}, {})
    for kind in (None, "latte_t2v"):
        with pytest.raises(UserError, match=r"LoRA adapters without their network; tools/t2v_export.py"):
            load(tmp_path / "x.safetensors", kind)


def test_which_of_two_sets_is_said_when_the_file_is_read():
    path = FIXTURES / "latte_class.pt"
    ema, model, default = (
        read(path, weights=which).tensors["final_layer.linear.weight"] for which in ("ema", "model", None)
    )
    assert not np.array_equal(ema, model) and np.array_equal(ema, default)
    with pytest.raises(ValueError, match="when the file is read"):
        read(read(path), weights="model")


def test_weights_that_were_read_are_fitted_to_another_size(opened):
    found = read(FIXTURES / "latte_uncond.pt")
    opened.clear()
    assert read(found, num_frames=found.config.num_frames).config == found.config
    longer = read(found, num_frames=6, input_size=16)
    assert longer.tensors["temp_embed"].shape == (1, 6, 64) and longer.tensors["pos_embed"].shape == (1, 64, 64)
    assert load(longer).config.num_frames == 6 and not opened


@pytest.mark.parametrize("name", ["vae_old.bin", "sd_full.ckpt", "vae/diffusion_pytorch_model.safetensors"])
def test_names_of_autoencoders(name):
    expected = safetensors.numpy.load_file(WEIGHTS / "vae" / "diffusion_pytorch_model.safetensors")
    found = read(WEIGHTS / name, "autoencoder", norm_num_groups=2).tensors
    assert found.keys() == expected.keys()
    same({key: found[key] for key in expected}, expected)


def test_twice_the_same_weight():
    state = read_state_dict(WEIGHTS / "vae").tensors
    key = "decoder.mid_block.attentions.0.to_q.bias"
    with pytest.raises(UserError, match="twice"):
        own_names(state | {key.replace("to_q", "query"): state[key]})


def test_kinds_of_networks():
    assert kind_of(read_state_dict(FIXTURES / "latte_uncond.pt").tensors).name == "latte"
    assert kind_of(["decoder.up_blocks.0.resnets.0.temporal_res_block.conv1.weight"]).name == "temporal_decoder"
    assert kind_of(["first_stage_model.decoder.conv_in.weight"]).name == "autoencoder"
    assert kind_of(["encoder.block.0.layer.0.x"]).name == "t5"
    assert kind_of(["x"]) is None


def test_a_folder_whose_configuration_is_gone_is_one_sentence(tmp_path):
    for kind in ("latte_t2v", "t5"):
        shutil.copytree(FILES[kind], tmp_path / kind)
        (tmp_path / kind / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config.json beside its weights; download the whole folder"):
            loading.check(tmp_path / kind)
