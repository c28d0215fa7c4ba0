"""The text encoder against transformers' T5, and what its users may do to it."""

import json
import logging
import shutil
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, ROOT, error, recorded

from latte.components.text_encoder import TextEncoder, load_t5, load_text_encoder, load_tokenizer
from latte.errors import UserError
from latte.inference.export import graph_of
from latte.io.mindir import read_graph
from latte.models.t5 import T5Config, T5Encoder, own_names, relative_buckets
from latte.runtime import device
from latte.weights.files import read_state_dict, write_state_dict

FOLDER = FIXTURES / "latte_t2v"
PROMPT = json.loads((FIXTURES / "latte_t2v.json").read_text())["prompt"]
LARGEST_FLOAT16 = 65504


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder(FOLDER)


def texts():
    data = recorded("t5/recorded")
    return data, (ms.Tensor(data["input_ids"]), ms.Tensor(data["attention_mask"]))


def copied(tmp_path, part, **changes):
    """Return a copy of a folder, with changes to its config.json; None removes a field."""
    folder = tmp_path / part
    shutil.copytree(FOLDER / part, folder)
    if changes:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_the_recorded_prompt(encoder):
    data = recorded("latte_t2v")
    ids, mask = encoder.tokenize([PROMPT])
    assert np.array_equal(ids, data["input_ids"]) and np.array_equal(mask, data["attention_mask"])
    hidden, mask = encoder.encode([f"  {PROMPT.upper()} \n"])
    assert hidden.dtype == np.float32 and mask.dtype == np.int32 and np.array_equal(mask, data["attention_mask"])
    assert error(hidden, data["text_hidden"]) <= 1e-5


@pytest.mark.parametrize("scope", ["block", "step", "none"])
def test_long_texts_of_several_lengths(scope):
    """Through shared blocks, as the one graph that accelerators compile, and for debugging without graphs."""
    net, (data, inputs) = load_t5(FIXTURES / "t5"), texts()
    with device.use({"step": "GPU"}.get(scope, "CPU"), graph_mode=scope != "none") as here:
        assert here.compile_scope == scope
        hidden = net(*inputs)
    assert hidden.dtype == ms.float32 and error(hidden, data["hidden"]) <= 1e-5


def test_buckets_of_distances():
    data = recorded("t5/recorded")
    settings = [name.split("_")[1:] for name in data if name.startswith("buckets")]
    assert len(settings) == 5
    for count, distance in settings:
        expected = data[f"buckets_{count}_{distance}"]
        table = relative_buckets(1501, int(count), int(distance))
        assert table.dtype == np.int32
        assert np.array_equal(table[0], expected[1500:]) and np.array_equal(table[-1], expected[:1501])
        assert np.array_equal(table[700], expected[800:2301])


def test_names_and_size():
    tensors = read_state_dict(FOLDER / "text_encoder").tensors
    net = load_t5(FOLDER / "text_encoder")
    names = [name for name, _ in net.parameters_and_names()]
    assert set(names) == set(own_names(tensors)) and len(names) == len(set(names))
    assert all(parameter.name == name for name, parameter in net.parameters_and_names())
    assert net.config.parameter_count == sum(np.prod(p.shape) for p in net.get_parameters())
    assert T5Config().parameter_count == 4_762_310_656  # of version 1.1 XXL's encoder


def test_weights_of_a_whole_t5_and_a_table_under_its_other_name():
    tensors = read_state_dict(FIXTURES / "t5").tensors
    assert "encoder.embed_tokens.weight" in tensors
    own = own_names(tensors)
    assert "encoder.embed_tokens.weight" not in own and np.array_equal(own["shared.weight"], tensors["shared.weight"])
    only = {name: values for name, values in tensors.items() if name != "shared.weight"}
    more = {"decoder.final_layer_norm.weight": np.ones(48, np.float32), "lm_head.weight": np.ones(48, np.float32)}
    assert set(own_names(only | more)) == set(own)


def huge(tmp_path):
    """Return a folder whose feed-forward parts give numbers that float16 does not have."""
    folder = copied(tmp_path, "text_encoder")
    tensors = own_names(read_state_dict(folder).tensors)
    scaled = {name: values * np.float32(1e6 if ".wo." in name else 1) for name, values in tensors.items()}
    (folder / "model.safetensors").unlink()
    write_state_dict(folder / "model.safetensors", scaled, {})
    return folder


def test_fp16_where_float16_overflows(tmp_path):
    folder = huge(tmp_path)
    full, half = load_t5(folder), load_t5(folder, "fp16")
    assert half.encoder.block[1].layer[1].DenseReluDense.wo.weight.dtype == ms.float32
    assert half.encoder.block[1].layer[1].DenseReluDense.wi_0.weight.dtype == ms.float16
    assert half.encoder.block[1].layer[1].layer_norm.weight.dtype == ms.float32
    data = recorded("latte_t2v")
    inputs = ms.Tensor(data["input_ids"]), ms.Tensor(data["attention_mask"])
    x = ms.Tensor(full.shared.weight.asnumpy()[data["input_ids"]])
    after = half.encoder.block[0](x, ms.Tensor(np.zeros((1, 4, 120, 120), np.float32)))
    assert np.abs(after.asnumpy()).max() > LARGEST_FLOAT16
    expected, found = full(*inputs).asnumpy(), half(*inputs)
    assert found.dtype == ms.float32 and np.isfinite(found.asnumpy()).all()
    assert 1e-6 < error(found, expected) <= 1e-2


@pytest.mark.parametrize("dtype", [pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
def test_ascends_graph_multiplies_in_the_dtype(dtype):
    """And computes the norms, the softmax and, for fp16, the last product of a block in float32."""
    with device.use("Ascend"):
        net = load_t5(FOLDER / "text_encoder", dtype)
        ids = ms.Tensor(np.zeros((2, 120), np.int32))
        found = read_graph(graph_of(net, ids, ids))
    products = [node.dtypes for node in found if node.op == "MatMul"]
    assert products == [*[[dtype]] * 6, ["fp32" if dtype == "fp16" else dtype]] * 2
    assert [node.dtypes for node in found if node.op == "BatchMatMul"] == [[dtype]] * 4
    assert {tuple(node.dtypes) for node in found if node.op in ("Softmax", "Rsqrt", "GeluExt")} == {("fp32",)}


class Counted:
    """A network that notes the batch sizes it is called with."""

    def __init__(self, net):
        self.net, self.config, self.sizes = net, net.config, []

    def __call__(self, ids, mask):
        self.sizes.append(ids.shape[0])
        return self.net(ids, mask)


def test_equal_prompts_once_and_each_alone(encoder):
    counted = Counted(encoder.network)
    prompts = ["a dog", "", "A dog ", "two cats in the rain"]
    hidden, mask = TextEncoder(encoder.tokenizer, counted).encode(prompts)
    assert counted.sizes == [1, 1, 1] and hidden.shape == (4, 120, 32) and mask.shape == (4, 120)
    assert np.array_equal(hidden[0], hidden[2]) and not np.array_equal(hidden[0], hidden[3])
    for i, prompt in enumerate(prompts):
        alone, alone_mask = encoder.encode([prompt])
        assert np.array_equal(alone[0], hidden[i]) and np.array_equal(alone_mask[0], mask[i])


def test_where_videos_are_batched_so_are_prompts(encoder):
    counted = Counted(load_t5(FOLDER / "text_encoder"))
    prompts = ["a dog", "a dog", "two cats in the rain"]
    expected, _ = encoder.encode(prompts)
    with device.use("GPU"):
        hidden, _ = TextEncoder(encoder.tokenizer, counted).encode(prompts)
    assert counted.sizes == [2] and error(hidden, expected) <= 1e-5


def test_unusual_prompts(encoder, caplog):
    with caplog.at_level(logging.WARNING, "latte"):
        hidden, mask = encoder.encode(["", "   ", "🐕🚀", "日本", "line\nbreak\ttab", "</s> <pad> x"])
    assert not caplog.records and np.isfinite(hidden).all()
    assert mask[0].sum() == 1 and np.array_equal(hidden[0], hidden[1])  # the end of the text is a token
    assert (mask.sum(1)[2:] > 1).all()


def test_a_prompt_that_is_too_long_is_cut_and_what_is_cut_is_said(encoder, caplog):
    words = [f"{name} walks" for name in ("dog", "cat") * 125]
    with caplog.at_level(logging.WARNING, "latte"):
        ids, mask = encoder.tokenize([" ".join([*words, "sunglasses"])])
    (record,) = caplog.records
    assert mask.sum() == 120 and ids[0, -1] == 1  # the end is kept
    said = record.getMessage()
    assert "longer than 120 tokens" in said and said.endswith("sunglasses") and "cat walks dog" in said
    expected = encoder.tokenizer(" ".join(words), truncation=True, max_length=120)["input_ids"]
    assert np.array_equal(ids[0], expected)
    assert encoder.encode(["a dog walks in space"], max_length=4)[0].shape == (1, 4, 32)


OLD_CONFIG = {  # as slow tokenizers were saved, Latte-1's too
    "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
    "clean_up_tokenization_spaces": True,
    "eos_token": "</s>",
    "extra_ids": 100,
    "legacy": True,
    "model_max_length": 512,
    "pad_token": "<pad>",
    "sp_model_kwargs": {},
    "tokenizer_class": "T5Tokenizer",
    "unk_token": "<unk>",
}


@pytest.mark.parametrize("files", [["spiece.model"], ["tokenizer.json"], ["spiece.model", "tokenizer_config.json"]])
def test_tokenizers_in_older_forms(files, encoder, tmp_path, caplog):
    for name in files:
        if name == "tokenizer_config.json":
            (tmp_path / name).write_text(json.dumps(OLD_CONFIG))
        else:
            shutil.copy(FOLDER / "tokenizer" / name, tmp_path)
    other = TextEncoder(load_tokenizer(tmp_path), encoder.network)
    prompts = [PROMPT, "", "🐕 <extra_id_3> a  b", "a dog " * 300]
    for left, right in zip(other.tokenize(prompts), encoder.tokenize(prompts), strict=True):
        assert np.array_equal(left, right)


MEMORY = """
import numpy as np, psutil, sys
from latte.components.text_encoder import TextEncoder, load_tokenizer
from latte.models.t5 import T5Config, T5Encoder
from latte.weights.match import load_state
# Every weight has more than 32 MB: smaller ones may stay in the heap for a while, to be used again.
config = T5Config(d_model=2048, d_ff=6144, num_layers=2, num_heads=72, vocab_size=6000)
net = T5Encoder(config)
values = {name: np.broadcast_to(np.float32(0.01), p.shape) for name, p in net.parameters_and_names()}
load_state(net, values, "here")
encoder = TextEncoder(load_tokenizer(sys.argv[1]), net)
del net
encoder.encode(["a dog", "a cat"])
encoder.encode(["a dog"], max_length=20)
process = psutil.Process()
before = process.memory_info().rss
encoder.release()
print((before - process.memory_info().rss) / (4 * config.parameter_count))
"""


@pytest.mark.slow
def test_release_gives_the_memory_back():
    """In a process of its own: where a large heap has gaps, freed memory stays in it."""
    command = [sys.executable, "-c", MEMORY, FOLDER / "tokenizer"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout.split()[-1]) > 0.97


def test_a_released_encoder_only_makes_tokens():
    encoder = load_text_encoder(FOLDER)
    for _ in range(2):
        encoder.release()
    with pytest.raises(RuntimeError, match="was released"):
        encoder.encode(["a dog"])
    assert encoder.tokenize(["a dog"])[1].sum() > 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False}, "is relu with relu; only"),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}, "gated-silu with silu; only the gated-gelu"),
        ({"feed_forward_proj": None, "dense_act_fn": None, "is_gated_act": None}, "is relu with relu; only"),
        ({"d_model": None, "d_kv": None}, "lacks d_model, d_kv"),
        ({"num_layers": 0}, "num_layers must be a whole number from 1 to 256, but is 0"),
        ({"d_ff": "64"}, "d_ff must be a whole number from 1 to 1,048,576, but is '64'"),
        ({"num_layers": 3}, "does not fit the network: .* missing .encoder.block.2"),
        ({"d_ff": 48}, "mis-shaped .*wi_0.weight"),
    ],
)
def test_configurations_that_do_not_fit(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        load_t5(copied(tmp_path, "text_encoder", **changes))


def test_an_old_configuration_says_its_activation_once(tmp_path):
    folder = copied(
        tmp_path, "text_encoder", dense_act_fn=None, is_gated_act=None, relative_attention_max_distance=None
    )
    assert load_t5(folder).config == load_t5(FOLDER / "text_encoder").config


def test_folders_that_are_missing_or_broken(tmp_path, encoder):
    with pytest.raises(UserError, match="does not hold the folders tokenizer and text_encoder; name"):
        load_text_encoder(tmp_path)
    with pytest.raises(UserError, match=r"holds no tokenizer \(tokenizer.json or spiece.model\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        load_t5(tmp_path / "nowhere")
    tokenizer = copied(tmp_path, "tokenizer")
    with pytest.raises(UserError, match="text_encoder"):
        load_text_encoder(tmp_path)
    for broken in ("{", "[]", '{"model": {"type": "Unigram"}}'):
        (tokenizer / "tokenizer.json").write_text(broken)
        with pytest.raises(UserError, match=r"cannot be read .*; download the folder again"):
            load_tokenizer(tokenizer)
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "spiece.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"cannot be read .*; download the folder again"):
        load_tokenizer(tokenizer)
    folder = copied(tmp_path, "text_encoder")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid"):
        load_t5(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_t5(folder)
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_t5(folder)


def test_a_tokenizer_of_another_network(encoder):
    small = T5Encoder(T5Config(**{**vars(encoder.network.config), "vocab_size": 40}))
    with pytest.raises(UserError, match="the text encoder knows 40"):
        TextEncoder(encoder.tokenizer, small).encode([PROMPT])


def test_too_little_memory_is_said(monkeypatch, caplog):
    monkeypatch.setattr(device, "free_memory", lambda: 10_000)
    with caplog.at_level(logging.WARNING, "latte"):
        load_t5(FOLDER / "text_encoder")
    assert "GB are free" in caplog.text
