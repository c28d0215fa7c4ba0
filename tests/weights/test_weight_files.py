"""Weight files from one form to another with every bit kept, and the sets of weights in them."""

import json
import shutil

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from support.weights import WEIGHTS, kinds, same

from latte.errors import UserError
from latte.weights import mindspore_file
from latte.weights.files import CONFIG, read_state_dict, write_state_dict
from latte.weights.mapped import release_pages
from latte.weights.torch_file import read_torch_file

SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_keeps_every_bit(tmp_path, suffix):
    counted = []
    path = tmp_path / f"x{suffix}"
    write_state_dict(path, kinds(), {CONFIG: '{"num_heads": 4}'}, counted.append)
    state = read_state_dict(path)
    same(state.tensors, kinds())
    assert json.loads(state.metadata[CONFIG]) == {"num_heads": 4}
    assert sum(counted) == sum(array.nbytes for array in kinds().values())
    write_state_dict(tmp_path / "y.pt", state.tensors, state.metadata)
    same(read_torch_file(tmp_path / "y.pt")["ema"], kinds())
    assert path.stat().st_mode & 0o777 == (tmp_path / "y.pt").stat().st_mode & 0o777
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("limit", [512 << 20, 8])
def test_mindspore_reads_ours(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(mindspore_file, "MAX_CONTENT", limit)
    tensors = {key: value for key, value in kinds().items() if value.size}  # MindSpore saves no empty ones either
    path = tmp_path / "x.ckpt"
    write_state_dict(path, tensors, {CONFIG: "{ä}"})
    loaded = ms.load_checkpoint(str(path))
    assert loaded.pop(CONFIG) == "{ä}"
    same({key: value.asnumpy() for key, value in loaded.items()}, tensors)
    same(read_state_dict(path).tensors, tensors)


@pytest.mark.parametrize("crc_check", [False, True])
def test_ours_reads_mindspore(tmp_path, crc_check):
    tensors = {key: np.ascontiguousarray(value) for key, value in kinds().items() if value.size and value.ndim}
    values = [{"name": key, "data": ms.Tensor(value)} for key, value in tensors.items()]
    path = str(tmp_path / "x.ckpt")
    ms.save_checkpoint(values, path, append_dict={CONFIG: "{}", "epoch": 3}, crc_check=crc_check)
    state = read_state_dict(path)
    assert state.metadata == {CONFIG: "{}"} and int(state.tensors.pop("epoch")) == 3
    same(state.tensors, tensors)


def test_safetensors_package_reads_ours(tmp_path):
    tensors = {key: np.ascontiguousarray(value) for key, value in kinds().items() if key != "bfloat16"}
    write_state_dict(tmp_path / "x.safetensors", tensors, {})
    loaded = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    same({key: loaded[key] for key in tensors}, tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "y.safetensors")
    state = read_state_dict(tmp_path / "y.safetensors")
    same({key: state.tensors[key] for key in tensors}, tensors)


def tensors_left(path):
    """Return how many tensors a damaged file holds, or the sentence that refuses it."""
    try:
        return len(read_state_dict(path).tensors)
    except UserError as refused:
        return str(refused)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_cut_files(tmp_path, suffix):
    write_state_dict(tmp_path / f"x{suffix}", kinds(), {})
    whole = (tmp_path / f"x{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    ends = {0}
    for length in np.linspace(0, len(whole) - 1, 200, dtype=int):
        path.write_bytes(whole[:length])
        left = tensors_left(path)
        assert isinstance(left, int) or str(path) in left
        ends.add(left if isinstance(left, int) else 0)
    assert suffix == ".ckpt" or ends == {0}  # a .ckpt may end after any tensor; loading then misses the others
    for length in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[length] ^= 0x55
        path.write_bytes(changed)
        left = tensors_left(path)
        assert isinstance(left, int) or str(path) in left


@pytest.mark.parametrize(
    "name, which, value",
    [
        ("lightning.ckpt", None, 11),
        ("lightning.ckpt", "model", 1),
        ("official.pt", None, 11),
        ("official.pt", "model", 1),
        ("wrapped.pt", "ema", 11),
        ("wrapped.pt", "model", 1),
        ("ema_only.pt", None, 11),
        ("model_only.pt", None, 1),
        ("bare.pt", None, 1),
    ],
)
def test_nestings(name, which, value):
    tensors = read_state_dict(WEIGHTS / name, which).tensors
    assert list(tensors) == ["blocks.0.attn.qkv.weight", "temp_embed"]
    assert (tensors["blocks.0.attn.qkv.weight"] == np.full((2, 3), value, np.float32)).all()


@pytest.mark.parametrize("name, which", [("ema_only.pt", "model"), ("model_only.pt", "ema"), ("bare.pt", "ema")])
def test_weights_that_are_not_there(name, which):
    with pytest.raises(UserError, match=f'no weights called "{which}"'):
        read_state_dict(WEIGHTS / name, which)


def test_sharded_folder(tmp_path):
    whole = read_state_dict(WEIGHTS / "vae")
    keys = list(whole.tensors)
    index = {"metadata": {}, "weight_map": {}}
    for i, part in enumerate((keys[:50], keys[50:])):
        name = f"model-{i}-of-2.safetensors"
        write_state_dict(tmp_path / name, {key: whole.tensors[key] for key in part}, {})
        index["weight_map"] |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(WEIGHTS / "vae" / "config.json", tmp_path)
    state = read_state_dict(tmp_path)
    same(state.tensors, whole.tensors)
    assert json.loads(state.metadata[CONFIG])["norm_num_groups"] == 2
    (tmp_path / "model-1-of-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 1 of 2 files that are missing: model-1-of-2\.safetensors;"):
        read_state_dict(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="index"):
        read_state_dict(tmp_path)


def test_folders_without_one_file_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"without .safetensors, .bin, .ckpt, .pt or .pth files"):
        read_state_dict(tmp_path)
    for name in ("a.bin", "b.bin"):
        write_state_dict(tmp_path / name, {"x": np.zeros(1)}, {})
    with pytest.raises(UserError, match=r"several files of weights; name one: a.bin, b.bin"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".bin"])
def test_pages_that_were_let_go_come_back(tmp_path, suffix):
    tensors = {f"w{i}": np.arange(count, dtype=np.float32) for i, count in enumerate((5, 3000, 1, 700_000))}
    write_state_dict(tmp_path / f"x{suffix}", tensors, {})
    found = read_state_dict(tmp_path / f"x{suffix}").tensors
    for values in (*found.values(), np.zeros(3), found["w3"][::2]):
        release_pages(values)
    same(found, tensors)
