"""The one set of weights in a checkpoint: under whatever key, whatever wrapped the network, whatever lies beside it."""

import numpy as np
import pytest
from support.weights import FIXTURES, same

from latte.components.loading import load, read
from latte.errors import UserError
from latte.weights.files import read_state_dict, write_state_dict
from latte.weights.mapped import MAX_TENSORS
from latte.weights.names import unnest
from latte.weights.pickle_data import Opaque, Unread

NAMES = ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight")


def weights(value=1.0):
    return {name: np.full((2, 3), value, np.float32) for name in NAMES}


def zeros(value=0.0):
    return weights(value)


def prefixed(prefix, tensors):
    return {prefix + name: values for name, values in tensors.items()}


def inside(*parts):
    """Weights of which each block was wrapped by itself."""
    return {name.replace(".attn", "." + ".".join([*parts, "attn"])): values for name, values in weights().items()}


OPTIMIZER = {"state": {"blocks.0.bias": {"exp_avg": np.zeros(3), "step": np.ones(())}}, "param_groups": [{"lr": 1e-4}]}


@pytest.mark.parametrize("key", ["module", "net", "generator", "params", "model_state_dict", "weights", "ema_weights"])
def test_the_one_set_of_weights_is_found_under_any_key(key):
    random_state = {"torch": np.zeros(16, np.uint8)}
    beside = {"optimizer": OPTIMIZER, "rng": random_state, "epoch": 3, "args": Opaque("argparse.Namespace")}
    same(unnest({**beside, key: weights()}), weights())
    same(unnest({"checkpoint": {**beside, key: weights()}}), weights())


@pytest.mark.parametrize(
    "obj",
    [
        {"model": zeros(), "model_ema": weights()},
        {"params": zeros(), "params_ema": weights()},
        {"state_dict": zeros(), "ema_state_dict": weights()},
        {"model": zeros(), "ema": {"decay": 0.99, "shadow": weights()}},
        {"step": np.ones(()), **prefixed("online_model.", zeros()), **prefixed("ema_model.", weights())},
        (weights(), {"step": 3}),
        [weights()],
        {"n_averaged": np.ones(()), **prefixed("module.", weights())},
        prefixed("_orig_mod.module.", weights()),
        prefixed("_forward_module._orig_mod.", weights()),
        prefixed("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", "_checkpoint_wrapped_module")),
        inside("_orig_mod"),
        {"ema": {**weights(), "seen": Opaque("a.Thing")}, "spectrum": Unread("a sparse tensor")},
    ],
)
def test_ema_comes_first_and_wrappers_leave_no_trace(obj):
    same(unnest(obj), weights())


def test_the_other_set_can_be_asked_for():
    obj = {"module": zeros(), "module_ema": weights()}
    assert not unnest(obj, "model")["pos_embed"].any() and unnest(obj, "ema")["pos_embed"].all()
    flat = prefixed("online_model.", zeros()) | prefixed("ema_model.", weights())
    assert not unnest(flat, "model")["pos_embed"].any()


def containing_itself():
    obj = {}
    obj["model"] = obj["ema"] = obj
    return obj


@pytest.mark.parametrize(
    "obj, said",
    [
        ({"generator": weights(), "critic": weights()}, 'several sets of weights, "generator" and "critic"; save the'),
        (containing_itself(), 'no tensors with names, only "model" and "ema"'),
        ({"a": 1, "b\x1b[2J": None}, r'only "a" and "b\x1b[2J"; name a checkpoint'),
        (OPTIMIZER | {"state": {}}, "the state of an optimizer, without weights"),
        (Opaque("models.Latte"), r"a whole pickled object, models.Latte; save its state_dict()"),
        ({"model": Opaque("models.Latte"), "epoch": 3}, 'whole pickled objects such as "model", models.Latte'),
        ({"model": {"a.b": Opaque("numpy.core.multiarray._reconstruct")}}, 'arrays of NumPy such as "a.b", numpy.core'),
        (
            {"model": {"a.b": Unread("on the device meta; load it")}},
            'no tensors that can be read: "a.b" is on the device',
        ),
        (np.zeros(3), "no tensors with names"),
        (None, "no tensors with names"),
        ({**weights(), **prefixed("module.", weights())}, "has pos_embed twice, with and without"),
        ({**weights(), "a.b": Unread("a sparse tensor; save it after .to_dense()")}, "a.b is a sparse tensor; save it"),
        ({**weights(), "a.b": Opaque("x._rebuild_new")}, "a.b is of a kind that is not supported"),
        ({**weights(), "a.\ud800": np.zeros(3)}, r"name is damaged: a.\ud800"),
        ({"module": {name: np.zeros((0,)) for name in NAMES}}, "no values; DeepSpeed"),
    ],
)
def test_what_is_refused_is_called_what_it_is(obj, said):
    with pytest.raises(UserError) as refused:
        unnest(obj, source="x.pt")
    message = str(refused.value)
    assert said in message and message.startswith("x.pt") and message.isprintable()


@pytest.fixture(scope="module")
def latte():
    return read(FIXTURES / "latte_class.pt", "latte", num_heads=4)


@pytest.mark.parametrize("prefix", ["net.", "policy.transformer.", "network."])
def test_a_network_inside_something_with_a_name_is_read(tmp_path, latte, prefix):
    tensors = prefixed(prefix, latte.tensors) | {"vae.encoder.weight": np.zeros((2, 2), np.float32)}
    write_state_dict(tmp_path / "x.safetensors", tensors, {})
    same(read(tmp_path / "x.safetensors", "latte", num_heads=4).tensors, latte.tensors)
    write_state_dict(tmp_path / "x.safetensors", tensors | prefixed("other.", latte.tensors), {})
    with pytest.raises(UserError, match=rf"several networks, under {prefix} and other\.|under other\. and {prefix}"):
        read(tmp_path / "x.safetensors", "latte", num_heads=4)


def test_the_class_table_may_have_the_name_of_mindspore(tmp_path, latte):
    renamed = {name.replace("table.weight", "table.embedding_table"): values for name, values in latte.tensors.items()}
    assert renamed.keys() != latte.tensors.keys()
    write_state_dict(tmp_path / "x.ckpt", renamed, {})
    same(read(tmp_path / "x.ckpt", "latte", num_heads=4).tensors, latte.tensors)


@pytest.mark.parametrize(
    "name, said",
    [
        ("base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight", "LoRA adapters of another program"),
        ("blocks.0.attn.qkv.base_layer.weight", "a network with LoRA adapters that are not merged"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "a CLIP text encoder"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a U-Net"),
        ("state.0.exp_avg", "the state of an optimizer"),
        ("foo.\x1b[2J", r"tensors called foo.\\x1b\[2J; name another file"),
    ],
)
def test_weights_of_other_networks_are_called_what_they_are(tmp_path, name, said):
    write_state_dict(tmp_path / "x.safetensors", {name: np.zeros((4, 4), np.float32)}, {})
    with pytest.raises(UserError, match=said):
        read(tmp_path / "x.safetensors", "latte")


def test_a_needed_weight_of_whole_numbers_is_refused(tmp_path, latte):
    tensors = {**latte.tensors, "pos_embed": latte.tensors["pos_embed"].astype(np.int64)}
    write_state_dict(tmp_path / "x.ckpt", tensors, {})
    with pytest.raises(UserError, match="pos_embed has dtype int64, which no network here has; save it as float32"):
        read(tmp_path / "x.ckpt", "latte", num_heads=4)


def test_a_network_is_not_loaded_from_a_flipped_byte(tmp_path, latte):
    path = tmp_path / "x.pt"
    write_state_dict(path, latte.tensors, {})
    assert load(path, "latte", num_heads=4).config == latte.config
    content = bytearray(path.read_bytes())
    content[content.index(latte.tensors["blocks.1.mlp.fc1.weight"].tobytes()) + 103] ^= 0x40
    path.write_bytes(content)
    assert read(path, "latte", num_heads=4).config == latte.config  # which uses no elements
    for options in ({}, {"quantize": "int8"}):
        with pytest.raises(UserError, match=r"x\.pt is damaged: the checksum of data/\d+ in it differs from its bytes"):
            load(path, "latte", num_heads=4, **options)


def test_sizes_are_not_read_off_empty_tensors(tmp_path, latte):
    tensors = {**latte.tensors, "x_embedder.proj.weight": np.zeros((2**40, 4, 0, 2), np.float32)}
    write_state_dict(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(
        UserError, match="not the whole of a Latte network: x_embedder.proj.weight missing, empty or not"
    ):
        read(tmp_path / "x.safetensors", "latte", num_heads=4)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_more_tensors_than_any_network_has(tmp_path, monkeypatch, suffix):
    assert MAX_TENSORS == 100_000
    monkeypatch.setattr("latte.weights.mapped.MAX_TENSORS", 20)
    write_state_dict(tmp_path / f"x{suffix}", {f"a.{i}": np.zeros(1, np.float32) for i in range(60)}, {})
    with pytest.raises(UserError, match="names more than 20 tensors, which no network here has"):
        read_state_dict(tmp_path / f"x{suffix}")
