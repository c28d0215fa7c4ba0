"""LoRA adapters in a pipeline: ours, those of peft and of diffusers against diffusers, scales, fusing, refusals."""

import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, tiny

from latte import LattePipeline
from latte.errors import UserError
from latte.runtime import device
from latte.weights import lora
from latte.weights.safetensors_file import read_safetensors, write_safetensors

FOLDER, LORA = FIXTURES / "latte_t2v", FIXTURES / "lora"
PEFT, FILE = LORA / "peft", LORA / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def shared():
    return LattePipeline.from_pretrained(FOLDER)


@pytest.fixture
def pipe(shared):
    yield shared
    if shared.adapters.fused:
        shared.unfuse_lora()
    shared.unload_lora_weights()


@pytest.fixture(scope="module")
def data():
    with np.load(LORA / "recorded.npz") as file:
        return {name: file[name] for name in file.files}


def said(pipe, data):
    """Return what the network says of the recorded inputs."""
    text, t = data["text"], data["t"].astype(np.int32)
    return pipe.net(*map(ms.Tensor, (data["x"], t, text, np.ones(text.shape[:2], np.int32)))).asnumpy()


@pytest.mark.parametrize("path", [PEFT, PEFT / "adapter_model.safetensors", FILE, LORA])
def test_adapters_of_peft_and_diffusers_do_what_they_do_there(path, pipe, data):
    plain = said(pipe, data)
    pipe.load_lora_weights(path)
    adapted = said(pipe, data)
    assert error(plain, data["plain"]) <= 1e-5 and error(adapted, data["adapted"]) <= 1e-4
    effect = data["adapted"] - data["plain"]
    assert np.abs(effect).max() > 0.1 * np.abs(data["plain"]).max()  # the adapters do something
    assert error(adapted - plain, effect) <= 1e-3
    pipe.unload_lora_weights()
    assert np.array_equal(said(pipe, data), plain)


def own_file(path, **metadata):
    """Write the adapters as a training writes them, and return the path."""
    adapter, _ = lora.read_adapter(FILE)
    tensors = {
        name: values
        for layer, both in adapter.items()
        for name, values in zip((f"{layer}.lora_down", f"{layer}.lora_up"), both, strict=True)
    }
    write_safetensors(path, tensors, {"lora_rank": "4", "lora_alpha": "2", **metadata})
    return path


def test_scales_and_several_adapters_add_up(pipe, data, tmp_path):
    pipe.load_lora_weights(FILE, "sky")
    adapted = said(pipe, data)
    pipe.load_lora_weights(own_file(tmp_path / "own.safetensors"), adapter_name="half")  # alpha / rank is 1 / 2
    pipe.set_adapters(["half"], [2.0])
    assert pipe.get_active_adapters() == ["half"] and error(said(pipe, data), adapted) <= 1e-5
    pipe.set_adapters(["sky", "half"], [0.75, 0.5])
    assert error(said(pipe, data), adapted) <= 1e-5
    pipe.set_adapters("sky", 0.0)
    assert error(said(pipe, data), data["plain"]) <= 1e-5
    pipe.disable_lora()
    assert pipe.get_active_adapters() == [] and pipe.get_list_adapters() == {"transformer": ["sky", "half"]}
    assert "sky 0, half 0" in repr(pipe)
    pipe.delete_adapters("sky")
    assert pipe.get_list_adapters() == {"transformer": ["half"]}


def test_fused_adapters_stay_until_they_are_unfused(pipe, data):
    plain = said(pipe, data)
    pipe.load_lora_weights(FILE, "sky")
    adapted = said(pipe, data)
    pipe.fuse_lora()
    assert pipe.get_active_adapters() == [] and np.array_equal(said(pipe, data), adapted)
    with pytest.raises(UserError, match="is fused into the weights"):
        pipe.set_adapters("sky")
    with pytest.raises(UserError, match="must be in use"):
        pipe.fuse_lora()
    pipe.load_lora_weights(PEFT, "again")
    pipe.set_adapters("again", -1.0)
    assert error(said(pipe, data), plain) <= 1e-5
    pipe.disable_lora()
    pipe.unfuse_lora()
    assert pipe.get_active_adapters() == ["sky"] and np.array_equal(said(pipe, data), adapted)
    pipe.set_adapters("sky", 0.5)
    pipe.fuse_lora(lora_scale=2.0)
    assert error(said(pipe, data), adapted) <= 1e-6
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert np.array_equal(said(pipe, data), plain)


def test_unloading_leaves_what_was_fused(data):
    pipe = LattePipeline.from_pretrained(FOLDER)
    pipe.load_lora_weights(FILE)
    adapted = said(pipe, data)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert np.array_equal(said(pipe, data), adapted) and pipe.get_list_adapters() == {}


@pytest.mark.slow
def test_a_compiled_graph_sees_adapters(data):
    with device.use("GPU"):
        pipe = LattePipeline.from_pretrained(FOLDER)
        plain = said(pipe, data)
        pipe.load_lora_weights(FILE)
        assert error(said(pipe, data) - plain, data["adapted"] - data["plain"]) <= 1e-3
        pipe.unload_lora_weights()
        assert np.array_equal(said(pipe, data), plain)


def test_a_class_model_takes_adapters_of_its_layers(tmp_path):
    net, rng = tiny("class"), np.random.default_rng(0)
    layer = "blocks.0.attn.qkv"
    shape = dict(net.parameters_and_names())[f"{layer}.weight"].shape
    both = rng.normal(size=(2, shape[1])).astype(np.float32), rng.normal(size=(shape[0], 2)).astype(np.float32)
    path = tmp_path / "a.safetensors"
    write_safetensors(
        path, {f"{layer}.lora_down": both[0], f"{layer}.lora_up": both[1]}, {"lora_rank": "2", "lora_alpha": "4"}
    )
    pipe = LattePipeline(net, None)
    weight = dict(net.parameters_and_names())[f"{layer}.weight"]
    before = weight.asnumpy().copy()
    pipe.load_lora_weights(path)
    assert error(weight - ms.Tensor(before), 2 * both[1] @ both[0]) <= 1e-5


def changed(path, metadata=None, drop=0, **others):
    """Write the file of diffusers with other metadata or tensors, and return the path."""
    tensors, told = read_safetensors(FILE)
    kept = dict(list(tensors.items())[drop:]) | others
    write_safetensors(path, kept, told if metadata is None else metadata)
    return path


def test_alphas_of_kohya_and_of_peft(pipe, data, tmp_path):
    tensors, _ = read_safetensors(FILE)
    names = {name: name.removeprefix("transformer.") for name in tensors}
    kohya = {
        new.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensors[old] for old, new in names.items()
    }
    kohya |= {new.replace(".lora_A.weight", ".alpha"): np.float32(6) for new in names.values() if "lora_A" in new}
    write_safetensors(tmp_path / "kohya.safetensors", kohya, {})
    pipe.load_lora_weights(tmp_path / "kohya.safetensors")
    assert error(said(pipe, data), data["adapted"]) <= 1e-4
    pipe.unload_lora_weights()
    pipe.load_lora_weights(changed(tmp_path / "bare.safetensors", {}), "bare")  # without alpha it is the rank
    pipe.set_adapters("bare", 6 / 4)
    assert error(said(pipe, data), data["adapted"]) <= 1e-4
    settings = json.loads((PEFT / "adapter_config.json").read_text())
    for key, change in {
        "rs": {"use_rslora": True, "lora_alpha": 3},
        "own": {"lora_alpha": 1, "alpha_pattern": dict.fromkeys(("to_q", "to_k", "to_v", "to_out.0", "net.2"), 6)},
    }.items():
        folder = tmp_path / key
        shutil.copytree(PEFT, folder)
        (folder / "adapter_config.json").write_text(json.dumps(settings | change))
        pipe.unload_lora_weights()
        pipe.load_lora_weights(folder)
        assert error(said(pipe, data), data["adapted"]) <= 1e-4


def test_what_is_no_adapter_for_this_network_is_refused_and_changes_nothing(pipe, data, tmp_path):
    plain = said(pipe, data)
    wide = {
        "transformer.proj_out.lora_A.weight": np.zeros((2, 5), np.float32),
        "transformer.proj_out.lora_B.weight": np.zeros((7, 2), np.float32),
    }
    settings = json.dumps({"transformer.use_dora": True})
    cases = {
        changed(tmp_path / "half.safetensors", drop=1): "not the whole of a network's LoRA adapters",
        changed(tmp_path / "wide.safetensors", **wide): "adds 7 x 5 elements to proj_out.weight, but this network has",
        changed(tmp_path / "dora.safetensors", x=np.zeros(2, np.float32)): "holds x, which is no matrix",
        changed(tmp_path / "uses.safetensors", {"lora_adapter_metadata": settings}): "use_dora True is not supported",
        changed(
            tmp_path / "text.safetensors", {"lora_adapter_metadata": '{"lora_alpha": "x"}'}
        ): "lora_alpha must be a number",
        own_file(tmp_path / "base.safetensors", base_fingerprint="0" * 64): "was trained on another network",
        tmp_path: "holds none of pytorch_lora_weights",
        tmp_path / "none.safetensors": "does not exist",
        FOLDER / "transformer" / "diffusion_pytorch_model.safetensors": "which is no matrix of a LoRA adapter",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            pipe.load_lora_weights(path)
    pipe.load_lora_weights(FILE, "sky")
    for call, message in {
        lambda: pipe.load_lora_weights(FILE, "sky"): "must be a text that no other adapter has",
        lambda: pipe.set_adapters("skye"): "no adapter 'skye'; the nearest is 'sky'",
        lambda: pipe.set_adapters(["sky"], [1.0, 2.0]): "give each adapter once",
        lambda: pipe.set_adapters("sky", float("nan")): "must be a finite number",
        lambda: pipe.set_adapters("sky", "1"): "must be a finite number",
        lambda: pipe.delete_adapters("sea"): "no adapter 'sea'",
        lambda: pipe.unfuse_lora(): "no adapter is fused",
        lambda: pipe.fuse_lora(adapter_names=["sea"]): "must be in use",
    }.items():
        with pytest.raises(UserError, match=message):
            call()
    assert pipe.get_active_adapters() == ["sky"]
    pipe.unload_lora_weights()
    assert np.array_equal(said(pipe, data), plain)


@pytest.mark.slow
def test_int8_weights_take_no_adapters():
    pipe = LattePipeline.from_pretrained(FOLDER, quantize="int8")
    with pytest.raises(UserError, match="cannot be added to int8 weights"):
        pipe.load_lora_weights(FILE)
