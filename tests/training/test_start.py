"""What a training starts from: weights of another size, condition or network, and EMA weights that begin as they do."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES

from latte.components.loading import KINDS, open_weights, read
from latte.config import TrainConfig
from latte.errors import UserError
from latte.models import Latte
from latte.models.embeddings import resize_patches
from latte.runtime import device
from latte.training.start import Start, complete, networks, read_start, start_from
from latte.weights.files import CONFIG, StateFile, write_state_dict

FRESH = KINDS["latte"].fresh
CLASS, UNCOND = FIXTURES / "latte_class.pt", FIXTURES / "latte_uncond.pt"


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(device, "warn_once", lines.append)
    return lines


def values_of(net):
    return {name: weight.asnumpy() for name, weight in net.parameters_and_names()}


def test_the_whole_of_a_network_is_taken(said):
    found = read(CLASS)
    net = Latte(found.config)
    start_from(net, found, FRESH)
    assert all(np.array_equal(values, found.tensors[name]) for name, values in values_of(net).items()) and not said


def test_labels_of_another_number_start_from_scratch_and_other_sizes_are_fitted(said):
    state, kind = open_weights(CLASS, "latte")
    config = dataclasses.replace(read(CLASS).config, num_classes=3, input_size=4, num_frames=6)
    net = Latte(config, seed=5)
    before = values_of(net)
    start_from(net, state, kind.fresh)
    after, (name,) = values_of(net), [name for name in before if name.startswith("y_embedder.")]
    assert np.array_equal(after[name], before[name]) and len(said) == 1 and f"has no fitting {name}: these" in said[0]
    assert after["pos_embed"].shape == (1, 4, 64) and not np.array_equal(after["pos_embed"], before["pos_embed"])
    assert np.array_equal(after["blocks.3.mlp.fc1.weight"], state.tensors["blocks.3.mlp.fc1.weight"])


def test_patches_of_another_size_begin_with_resized_layers(said):
    found = read(UNCOND)
    config = dataclasses.replace(found.config, patch_size=1)
    assert found.config.patch_size == 2
    net = Latte(config)
    start_from(net, found, FRESH)
    after = values_of(net)
    kernel, old = after["x_embedder.proj.weight"], found.tensors["x_embedder.proj.weight"]
    np.testing.assert_allclose(kernel[..., 0, 0], old.sum((2, 3)), atol=1e-6)  # latents constant over a patch
    bias = found.tensors["final_layer.linear.bias"].reshape(4, -1)
    np.testing.assert_allclose(after["final_layer.linear.bias"], bias.mean(0), atol=1e-6)
    assert after["final_layer.linear.weight"].shape == (8, 64) and after["pos_embed"].shape[1] == 4 * 16
    assert len(said) == 1 and "patches of another size" in said[0]


def test_resized_patches_agree_where_latents_are_smooth():
    tensors = {name: v for name, v in read(UNCOND).tensors.items() if "x_embedder" in name or "final" in name}
    larger = resize_patches(tensors, 4)
    assert larger["x_embedder.proj.weight"].shape == (64, 4, 4, 4)
    line = np.linspace(-1, 1, 4)
    patch = np.add.outer(line, 2 * line)  # its mean is 0, as that of the same slope over fewer pixels
    small = np.add.outer([-0.5, 0.5], [-1, 1])
    ours = np.einsum("dcij,ij->dc", larger["x_embedder.proj.weight"], patch)
    theirs = np.einsum("dcij,ij->dc", tensors["x_embedder.proj.weight"], small)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
    assert resize_patches(tensors, 2) == tensors


def test_an_unconditional_network_leaves_the_labels_of_its_file_out(said):
    net = Latte(read(UNCOND).config)
    start_from(net, read(CLASS), FRESH)
    assert not said and np.array_equal(values_of(net)["pos_embed"], read(CLASS).tensors["pos_embed"])


def test_an_image_model_has_no_frames_yet(said):
    found = read(UNCOND)
    images = StateFile({name: v for name, v in found.tensors.items() if name != "temp_embed"}, {}, "dit.pt")
    net = Latte(found.config)
    start_from(net, images, FRESH)
    assert said == ["dit.pt has no fitting temp_embed: these start from scratch"]
    assert np.allclose(values_of(net)["temp_embed"], found.tensors["temp_embed"])


def test_anything_else_that_is_missing_is_refused():
    found = read(UNCOND)
    less = dataclasses.replace(found, tensors={k: v for k, v in found.tensors.items() if k != "blocks.1.attn.qkv.bias"})
    with pytest.raises(UserError, match=r"1 missing \(blocks.1.attn.qkv.bias\)"):
        start_from(Latte(found.config), less, FRESH)


@pytest.mark.parametrize("weights", [None, CLASS])
def test_ema_weights_begin_as_the_weights_and_are_not_theirs(weights):
    found = read(CLASS)
    cfg = TrainConfig(seed=3, vae_checkpoint="vae", data_folder="x")
    start = Start(cfg, KINDS["latte"], read(FIXTURES / "vae.bin"), found if weights else None)
    net, ema, metadata = networks(start, found.config, ms.float32, False)
    own, average = dict(net.parameters_and_names()), dict(ema.parameters_and_names())
    assert list(own) == list(average) and '"hidden_size": 64' in metadata["config"]
    for name, weight in own.items():
        assert np.array_equal(weight.asnumpy(), average[name].asnumpy()), name
        assert (weight is average[name]) == (not weight.requires_grad)
    expected = found.tensors if weights else values_of(Latte(found.config, seed=3))
    assert all(np.array_equal(weight.asnumpy(), expected[name]) for name, weight in own.items())


def test_a_folder_gives_network_autoencoder_and_sizes():
    cfg = complete(TrainConfig(pretrained_model_path="models/demo"))
    assert (cfg.hidden_size, cfg.depth, cfg.num_heads, cfg.patch_size) == (256, 6, 4, 4)
    assert (cfg.image_size, cfg.num_frames) == (64, 16) and cfg.condition is None
    assert cfg.pretrained_model_path.endswith("latte.safetensors") and cfg.vae_checkpoint.endswith("vae.safetensors")
    assert complete(cfg) == cfg


def test_the_demo_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_start(TrainConfig(pretrained_model_path="models/demo")).weights is not None


def test_what_is_asked_for_counts_more_than_the_weights():
    asked = {"num_frames": 8, "image_size": 32, "patch_size": 2, "vae_checkpoint": "models/demo/vae.safetensors"}
    cfg = complete(TrainConfig(pretrained_model_path="models/demo", **asked))
    assert (cfg.num_frames, cfg.image_size, cfg.patch_size, cfg.depth) == (8, 32, 2, 6)
    named = TrainConfig(pretrained_model_path=str(CLASS), model_name="Latte-S/2", vae_checkpoint="vae.ckpt")
    assert complete(named) == named


def test_an_image_network_does_not_tell_what_a_video_network_is(tmp_path):
    state, _ = open_weights(CLASS, "latte")
    without = StateFile({name: value for name, value in state.tensors.items() if name != "temp_embed"}, {}, "dit.pt")
    cfg = TrainConfig(pretrained_model_path="dit.pt", vae_checkpoint="vae.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latte.training.start.open_weights", lambda *_: (without, None))
        assert complete(cfg) == cfg


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file of weights named latte"):
        complete(TrainConfig(pretrained_model_path=str(tmp_path)))


def test_the_variant_and_its_kin_are_those_of_the_weights(tmp_path):
    config = dataclasses.replace(read(UNCOND).config, variant=3, temporal_position="rotary")
    tensors = values_of(Latte(config, seed=1))
    file = tmp_path / "three.safetensors"
    write_state_dict(file, tensors, {CONFIG: json.dumps(config.to_json())})
    cfg = complete(TrainConfig(pretrained_model_path=str(file), vae_checkpoint="models/demo/vae.safetensors"))
    assert (cfg.variant, cfg.temporal_position, cfg.injection) == (3, "rotary", "adaln")
    assert (cfg.depth, cfg.num_frames) == (config.depth, config.num_frames)
