"""Weight files from one form to another with every bit kept, and the sets of weights in them."""

import json
import pickle  # noqa: TID251 -- writes what must not be read
import shutil
import time
import zipfile

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from support.weights import WEIGHTS, kinds, same

from latte.errors import UserError
from latte.weights import mindspore_file
from latte.weights.dtypes import dtype_name
from latte.weights.files import CONFIG, read_state_dict, write_state_dict
from latte.weights.mapped import release_pages, verified
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


def safetensors_file(path, header, length=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(length))
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8), "b": entry(0, 8)},
        {"a": entry(0, 4), "b": entry(2, 6, [1])},
        {"a": entry(0, 4)},  # bytes after it
        {"a": entry(4, 8)},  # bytes before it
        {"a": entry(-8, 0, [2]), "b": entry(0, 8)},
        {"a": entry(False, 8, [2])},
        {"a": entry(0, 8, [True, 2])},
        {"a": entry(0, 8, [2.0])},
        {"a": entry(0, 8, [1] * 60 + [2])},
        {"a": entry(0, 8, "2")},
        {"a": entry(0, 8, dtype=5)},
        {"a": entry(0, 8, dtype="F\x1b[2J")},
        {"a": entry(0, 8), "__metadata__": [1]},
        {"a": entry(0, 8), "__metadata__": "x"},
        {"a": entry(0, 8), "__metadata__": {"x": 1}},
        {"a": entry(0, 8), "__metadata__": {"x": "\ud800"}},
        {"a": entry(0, 8), "__metadata__": {"\ud800": "x"}},
        {"a\ud800": entry(0, 8)},
        {"a": entry(0, float("inf"), [2])},
        {"a": entry(0, 0, [0, 10**400]), "b": entry(0, 8)},
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[' + b",".join([b"9"] * 60_000) + b'],"data_offsets":[0,8]}}',
        b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_what_the_safetensors_format_forbids(tmp_path, header):
    start = time.process_time()
    with pytest.raises(UserError, match=r"x\.safetensors is a safetensors file that is cut off or damaged"):
        read_state_dict(safetensors_file(tmp_path / "x.safetensors", header))
    assert time.process_time() - start < 1


def test_a_rare_dtype_of_safetensors_is_read_and_not_used(tmp_path):
    header = {"a": entry(0, 4), "b": entry(4, 6, [2], "F8_E4M3"), "c": entry(6, 8, [4], "F4")}
    tensors = read_state_dict(safetensors_file(tmp_path / "x.safetensors", header)).tensors
    assert [dtype_name(values) for values in tensors.values()] == ["float32", "F8_E4M3", "F4"]
    assert tensors["b"].shape == (2,) and tensors["c"].nbytes == 2
    with pytest.raises(UserError, match="b has dtype F8_E4M3, which cannot be saved"):
        write_state_dict(tmp_path / "y.ckpt", tensors, {})


@pytest.mark.parametrize(
    "dims, kind, content",
    [
        ([2**62] * 20_000, b"Float32", bytes(8)),
        ([2], b"Float\x1b[2J", bytes(8)),
        ([2], b"\xff", bytes(8)),
        ([3], b"Float32", bytes(8)),
        ([0], b"str", b"abc"),
    ],
)
def test_damaged_values_of_mindspore(tmp_path, dims, kind, content):
    encoded, block = mindspore_file._encoded, mindspore_file._block
    tensor = b"".join(b"\x08" + encoded(size) for size in dims) + block(b"\x12", kind) + block(b"\x1a", content)
    path = tmp_path / "x.ckpt"
    path.write_bytes(block(b"\x0a", block(b"\x0a", b"a") + block(b"\x12", tensor)))
    start = time.process_time()
    with pytest.raises(UserError, match="cut off, damaged or encrypted"):
        read_state_dict(path)
    assert time.process_time() - start < 1


def test_the_checksum_of_mindspore_is_compared(tmp_path):
    path = tmp_path / "x.ckpt"
    values = [{"name": "a", "data": ms.Tensor(np.arange(100, dtype=np.float32))}]
    ms.save_checkpoint(values, str(path), crc_check=True)
    assert verified(read_state_dict(path).tensors["a"])[3] == 3
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: the checksum of the file in it differs"):
        verified(read_state_dict(path).tensors["a"])


def test_a_graph_of_mindspore_is_not_taken_for_a_checkpoint(tmp_path):
    (tmp_path / "x.mindir").write_bytes(b"\x0a\x050.1.0\x12\x09MindSpore\x0a\x07" + bytes(50))
    with pytest.raises(UserError, match="is a MindIR graph, not a checkpoint"):
        read_state_dict(tmp_path / "x.mindir")


def test_the_last_of_several_files_of_an_archive(tmp_path):
    locator = b"PK\x06\x07" + bytes(4) + bytes(8) + (2).to_bytes(4, "little")
    (tmp_path / "x.ckpt").write_bytes(bytes(50) + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(UserError, match="is a zip archive without data.pkl"):
        read_state_dict(tmp_path / "x.ckpt")


def test_metadata_that_could_not_be_written_again(tmp_path):
    described = pickle.dumps({"ema": {}, "metadata": {"config": "\ud800"}}, 2)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", described)
    with pytest.raises(UserError, match="has metadata that is not text"):
        read_state_dict(tmp_path / "x.pt")
