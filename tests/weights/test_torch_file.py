"""PyTorch's files without PyTorch: what PyTorch wrote, what nobody should have written, and what is written here."""

import io
import os
import pickle  # noqa: TID251 -- writes what must not be read
import random
import struct
import tarfile
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from latte.errors import UserError
from latte.weights.dtypes import dtype_name
from latte.weights.mapped import verified
from latte.weights.pickle_data import Opaque, PickleError, Table, Unread, read_pickle
from latte.weights.torch_file import read_torch_file, write_torch_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WEIGHTS = FIXTURES / "weights"
KINDS = ("kinds_zip.pt", "kinds_legacy.pt", "kinds_protocol4.pt")
LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def bits(array):
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def zip_file(path, described, storage=b"", **records):
    """Write a zip serialization with this data.pkl and storage 0."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", described)
        archive.writestr("a/data/0", storage)
        for name, content in records.items():
            archive.writestr(f"a/{name}", content)
    return path


def either_form(path, described, form):
    if form == "zip":
        return zip_file(path, described)
    path.write_bytes(LEGACY_HEAD + described + pickle.dumps([], 2))
    return path


def tensor_pickle(offset, shape, strides, count=4, storage="FloatStorage"):
    """Return a pickle of one tensor of storage 0, by hand."""
    numbers = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, shape, strides))
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n" + storage.encode()
    return head + b"\nX\x01\0\0\x000X\x03\0\0\0cpu" + pickle.dumps(count, 2)[2:-1] + b"tQ" + numbers + b"\x89NtR."


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tensor(name):
    obj = read_torch_file(WEIGHTS / name)
    with np.load(WEIGHTS / "kinds.npz") as expected:
        for key in expected.files:
            group, _, inner = key.partition("/")
            found = obj[group][inner] if inner else obj[key]
            assert bits(found).dtype == expected[key].dtype and found.shape == expected[key].shape, key
            assert np.array_equal(bits(found), expected[key]), key
    assert obj["bfloat16"].dtype.name == "bfloat16"
    assert float(obj["bfloat16"].astype(np.float32)[0, 0]) == -100
    assert np.shares_memory(obj["shared_a"], obj["strided"])
    assert not np.shares_memory(obj["shared_a"], obj["float32"])


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_tensor(name):
    obj = read_torch_file(WEIGHTS / name)
    assert list(obj["ordered"]) == ["z", "a"]
    text, byte_string = obj["plain"][:-1], obj["plain"][-1]
    assert text == [1, -(2**40), 1.5, None, True, "text", (1, ("b",))]
    # Protocol 2 has no bytes and writes a call of _codecs.encode, which is not made.
    assert byte_string == (b"bytes" if "protocol4" in name else Opaque("_codecs.encode"))
    assert obj["size"] == (2, 3) and obj["dtype"] == np.float16
    assert obj["args"] == Opaque("argparse.Namespace")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "call", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')"), (os.mkdir, "{}")]
)
def test_code_in_a_file_does_not_run(tmp_path, form, protocol, call):
    marker = tmp_path / "marker"
    function, text = call

    class Evil:
        def __reduce__(self):
            return function, (text.format(str(marker)),)

    described = pickle.dumps({"ema": {"w": Evil()}, "x": 1}, protocol)
    obj = read_torch_file(either_form(tmp_path / "evil.pt", described, form))
    assert not marker.exists()
    assert isinstance(obj["ema"]["w"], Opaque) and obj["x"] == 1


def test_names_and_state_reach_nothing():
    """Dotted names, attributes of our own functions, and calls of what a call returned."""
    table = Table({"torch.Size": tuple}, Opaque, lambda identifier: None)
    dotted = b"\x80\x04\x8c\x02os\x8c\x0bpath.os.abc\x93\x8c\x01x\x85R."
    assert read_pickle(dotted, table)[0] == Opaque("os.path.os.abc")
    build = b"\x80\x02ctorch\nSize\nN}X\x08\0\0\0__code__K\x01s\x86b."  # setattr by the slots of a state
    assert read_pickle(build, table)[0] == Opaque("torch.Size")
    chained = b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x01\0\0\0x\x86RX\x02\0\0\0id\x85R."
    assert read_pickle(chained, table)[0] == Opaque("builtins.getattr")
    filled = b"\x80\x02cos\nenviron\nX\x01\0\0\0aX\x01\0\0\0bsK\x01a."  # setitem, append
    assert read_pickle(filled, table)[0] == Opaque("os.environ")
    assert "a" not in os.environ


@pytest.mark.parametrize(
    "described",
    [
        b"\x80\x02",
        b".",
        b"(((((((((",
        b"\x80\x02h\x07.",  # a memo that is not there
        b"\x80\x02}(K\x01u.",  # a key without a value
        b"\x80\x02X\xff\xff\xff\x7fab.",  # text of 2 GiB
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",  # bytes of 2^63
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02N0000.",
        b"\x80\x02]\x93.",
        b"\x80\x02" + b"]" * 5 + b"\x93.",
    ],
)
def test_pickles_that_are_none(tmp_path, described):
    with pytest.raises(PickleError):
        read_pickle(described, Table({}, Opaque, lambda identifier: None))
    with pytest.raises(UserError):
        read_torch_file(zip_file(tmp_path / "x.pt", described))


def test_nesting_does_not_exhaust_the_stack(tmp_path):
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert len(read_torch_file(zip_file(tmp_path / "x.pt", deep))) == 1
    key = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."  # a key that could not be hashed
    assert read_torch_file(zip_file(tmp_path / "x.pt", key)) == {}


@pytest.mark.parametrize(
    "tensor",
    [
        {"offset": 1, "shape": (4,), "strides": (1,)},
        {"offset": 0, "shape": (2, 3), "strides": (3, 1)},
        {"offset": 0, "shape": (2,), "strides": (4,)},
        {"offset": 3, "shape": (2,), "strides": (-1,)},
        {"offset": -1, "shape": (2,), "strides": (1,)},
        {"offset": 0, "shape": (-2,), "strides": (1,)},
        {"offset": 0, "shape": (2**40, 2**40), "strides": (0, 0)},
        {"offset": 0, "shape": (2, 2), "strides": (1,)},
        {"offset": 0, "shape": (1,) * 40, "strides": (1,) * 40},
        {"offset": 0.5, "shape": (1,), "strides": (1,)},
        {"offset": 0, "shape": "ab", "strides": (1, 1)},
        {"offset": 0, "shape": None, "strides": None},
        {"offset": 0, "shape": (4,), "strides": (1,), "count": 5},
        {"offset": 0, "shape": (1,), "strides": (1,), "count": -1},
        {"offset": 0, "shape": (1,), "strides": (1,), "count": 2**70},
        {"offset": 0, "shape": (5,), "strides": (1,), "storage": "QInt32Storage"},
    ],
)
def test_tensors_outside_their_storage(tmp_path, tensor):
    path = zip_file(tmp_path / "x.pt", tensor_pickle(**tensor), np.arange(4, dtype=np.float32).tobytes())
    with pytest.raises(UserError, match=r"x\.pt"):
        read_torch_file(path)


def test_tensors_inside_their_storage(tmp_path):
    described = tensor_pickle(1, (2, 1), (2, 7))
    path = zip_file(tmp_path / "x.pt", described, np.arange(4, dtype=np.float32).tobytes(), byteorder=b"little")
    assert read_torch_file(path).tolist() == [[1], [3]]
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(zip_file(path, described, bytes(16), byteorder=b"big"))


@pytest.mark.parametrize("name", [*KINDS, "wrapped.pt"])
def test_cut_files(tmp_path, name):
    whole = (WEIGHTS / name).read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(40), *np.linspace(40, len(whole) - 1, 60, dtype=int)]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pt"):
            read_torch_file(path)


@pytest.mark.parametrize("name", KINDS)
def test_changed_bytes_give_an_object_or_a_sentence(tmp_path, name):
    whole = (WEIGHTS / name).read_bytes()
    path = tmp_path / "changed.pt"
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            changed[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            read_torch_file(path)
        except UserError:
            refused += 1
    assert 20 < refused < 400


def _tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image, not a checkpoint"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG image"),
        (b"\0\0\0\x20ftypisom" + bytes(100), "an MP4 video"),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip archive; unpack it first"),
        ("# Lätte\n\nhello\n".encode() * 30, "a text file"),
        (b"GGUF\3\0\0\0" + bytes(100), "a GGUF file"),
        (b"\x08\x07\x12\x07pytorch\x1a" + bytes(100), "an ONNX graph"),
        (pickle.dumps({"a": np.zeros(3)}, 4), "a pickle that torch.save did not write"),
        (b"\n<?xml version='1.0'?><Error>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"PK\x03\x04" + bytes(100), "cut off"),
        (bytes(range(256)) * 4, "not a checkpoint of a kind that is known"),
        (_tar, "a tar archive; unpack it first"),
        (lambda path: np.savez(path.open("wb"), a=np.zeros(3)), "without data.pkl"),
        (lambda path: zip_file(path, b"N.", **{"constants.pkl": b"N."}), "TorchScript"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said):
    path = tmp_path / "x.pt"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_torch_file(tmp_path / "x.pt")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_torch_file(tmp_path)


def test_compressed_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2) * 100)
    with pytest.raises(UserError, match="compressed archive"):
        read_torch_file(tmp_path / "x.pt")


def test_big_endian_legacy(tmp_path):
    head = LEGACY_HEAD.replace(b"\x88", b"\x89")
    (tmp_path / "x.pt").write_bytes(head + pickle.dumps({}, 2) + pickle.dumps([], 2))
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("keys", [5, None, ["0"], {"0": 1}, ["1"], [[]], "0", ["0", "0"], []])
@pytest.mark.parametrize("count", [4, 5, 2**40, 2**70])
def test_legacy_storages_that_are_not_there(tmp_path, keys, count):
    path = tmp_path / "x.pt"
    described = LEGACY_HEAD + tensor_pickle(0, (4,), (1,), count) + pickle.dumps(keys, 2)
    path.write_bytes(described + struct.pack("<q4f", 4, 1, 2, 3, 4))
    if keys == ["0"] and count == 4:
        assert read_torch_file(path).tolist() == [1, 2, 3, 4]
    else:
        with pytest.raises(UserError, match=r"x\.pt"):
            read_torch_file(path)


def test_written_is_read(tmp_path):
    obj = read_torch_file(WEIGHTS / "kinds_zip.pt")
    tensors = {key: value for key, value in obj.items() if isinstance(value, np.ndarray)}
    plain = {"list": [1, -5, 2**70, 1.5, None, True, False, "hé"], "tuple": (1, (2,)), "none": [], "numpy": np.int64(3)}
    counted = []
    write_torch_file(tmp_path / "x.pt", {"ema": tensors, "plain": plain, "same": tensors["float32"]}, counted.append)
    back = read_torch_file(tmp_path / "x.pt")
    assert list(back) == ["ema", "plain", "same"] and list(back["ema"]) == list(tensors)
    assert back["plain"] == {**plain, "numpy": 3}
    for key, array in tensors.items():
        assert back["ema"][key].dtype == array.dtype and back["ema"][key].shape == array.shape, key
        assert back["ema"][key].tobytes() == array.tobytes(), key
    assert np.shares_memory(back["same"], back["ema"]["float32"])
    assert sum(counted) == sum(array.nbytes for array in tensors.values())


def test_written_storages_are_aligned(tmp_path):
    write_torch_file(tmp_path / "x.pt", {f"key{i}": np.arange(i, dtype=np.int8) for i in range(40)})
    whole = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", whole, info.header_offset + 26)
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0
        assert archive.read("archive/byteorder") == b"little"


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pt"
    write_torch_file(path, {"a": 1})
    for bad, said in (
        ({"a": {"b": object()}}, "b is a object"),
        ({"c": np.zeros(1, complex)}, "c has dtype complex128"),
    ):
        with pytest.raises(UserError, match=said):
            write_torch_file(path, bad)
    assert read_torch_file(path) == {"a": 1} and [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def literal(value):
    """Return the opcodes of a value of the pickle module, without their head and end."""
    return pickle.dumps(value, 2)[2:-1]


def call(name, *arguments):
    """Return the opcodes of a call; each argument is opcodes."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def stored(kind="torch.FloatStorage", key="0", count=4):
    module, _, name = kind.rpartition(".")
    head = b"(" + literal("storage") + f"c{module}\n{name}\n".encode()
    return head + literal(key) + literal("cpu") + literal(count) + b"tQ"


FOUR = np.arange(4, dtype=np.float32)


def layout(count):
    """Return the arguments of a tensor that is the first `count` elements of its storage."""
    return literal(0), literal((count,)), literal((1,)), literal(False), literal({})


def of_bytes(dtype, count):
    """Return the opcodes of a tensor whose storage is 16 bytes without a type of their own."""
    storage = stored("torch.storage.UntypedStorage", "0", 16)
    return call("torch._utils._rebuild_tensor_v3", storage, *layout(count), f"ctorch\n{dtype}\n".encode())


WHOLE = layout(4)


@pytest.mark.parametrize("info", [literal(True), call("torch_npu.npu._format.Format", literal(2))])
def test_a_tensor_of_an_ascend_card_is_an_ordinary_one(tmp_path, info):
    tensor = call("torch_npu.utils.storage._rebuild_npu_tensor", stored(), *WHOLE, info)
    assert read_torch_file(zip_file(tmp_path / "x.pt", b"\x80\x02" + tensor + b".", FOUR.tobytes())).tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "tensor, name",
    [
        (
            call(
                "torch._utils._rebuild_tensor_v2",
                stored("torch.ComplexFloatStorage", "0", 2),
                *layout(2)[:3],
            ),
            "ComplexFloat",
        ),
        (
            of_bytes("float8_e4m3fn", 16),
            "float8_e4m3fn",
        ),
        (
            of_bytes("uint16", 8),
            "uint16",
        ),
    ],
)
def test_a_tensor_of_a_rare_type_has_its_name_and_shape(tmp_path, form, tensor, name):
    described = b"\x80\x02}(" + literal("odd") + tensor + b"u."
    path = tmp_path / "x.pt"
    if form == "zip":
        zip_file(path, described, FOUR.tobytes())
    else:
        count = 2 if name == "ComplexFloat" else 16
        path.write_bytes(LEGACY_HEAD + described + pickle.dumps(["0"], 2) + struct.pack("<q", count) + FOUR.tobytes())
    odd = read_torch_file(path)["odd"]
    assert dtype_name(odd) == name and odd.nbytes == 16 and odd.tobytes() == FOUR.tobytes()
    with pytest.raises(UserError, match=f"odd has dtype {name}, which cannot be saved"):
        write_torch_file(tmp_path / "y.pt", {"odd": odd})


@pytest.mark.parametrize(
    "tensor, said",
    [
        (call("torch._utils._rebuild_sparse_tensor", literal(0), literal(())), "a sparse tensor"),
        (call("torch._utils._rebuild_qtensor", stored("torch.QInt8Storage", "0", 16), *WHOLE), "a quantized tensor"),
        (
            call("torch._utils._rebuild_tensor_v2", stored(), literal(0), literal((10**12,)), literal((0,))),
            "repeats elements",
        ),
        (
            call("torch._utils._rebuild_tensor_v2", stored(), *WHOLE, literal({"neg": True})),
            "a conjugated or negated view",
        ),
        (
            of_bytes("int3", 4),
            "a tensor of torch.int3",
        ),
    ],
)
def test_a_tensor_that_cannot_be_read_says_so_only_where_it_is(tmp_path, tensor, said):
    plain = call("torch._utils._rebuild_tensor_v2", stored(), *WHOLE)
    described = b"\x80\x02}(" + literal("odd") + tensor + literal("plain") + plain + b"u."
    obj = read_torch_file(zip_file(tmp_path / "x.pt", described, FOUR.tobytes()))
    assert isinstance(obj["odd"], Unread) and said in obj["odd"].name and obj["plain"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("local, whole", [((4,), True), ((2,), False)])
def test_a_distributed_tensor_is_read_if_it_is_whole_here(tmp_path, local, whole):
    part = call("torch._utils._rebuild_tensor_v2", stored(), literal(0), literal(local), literal((1,)))
    state = b"(N}(" + literal("_local_tensor") + part + b"ut"
    arguments = b"(cx\nDTensor\nctorch\nfloat32\n" + literal((4,)) + b"t"
    tensor = call(
        "torch._tensor._rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n",
        b"cx\nDTensor\n",
        arguments,
        state,
    )
    found = read_torch_file(zip_file(tmp_path / "x.pt", b"\x80\x02" + tensor + b".", FOUR.tobytes()))
    assert found.tolist() == [0, 1, 2, 3] if whole else "part of a distributed tensor" in found.name


def two_tensors(path):
    """Write a file whose storage "bad" has a wrong byte, and return what it holds."""
    write_torch_file(path, {"good": np.ones(1000, np.float32), "bad": np.full(1000, 2, np.float32)})
    content = bytearray(path.read_bytes())
    content[content.index(np.full(10, 2, np.float32).tobytes()) + 2002] ^= 1
    path.write_bytes(content)
    return read_torch_file(path)


def test_a_wrong_checksum_is_told_when_the_record_is_used(tmp_path):
    found = two_tensors(tmp_path / "x.pt")
    assert verified(found["good"]).sum() == 1000
    for use in (verified, lambda values: write_torch_file(tmp_path / "y.pt", {"bad": values})):
        for part in (found["bad"], found["bad"][:3], found["bad"].reshape(10, 100).T):
            with pytest.raises(UserError, match=r"x\.pt is damaged: the checksum of data/1 in it differs"):
                use(part)
    assert not (tmp_path / "y.pt").exists()


def test_checksums_that_were_left_out_are_not_compared(tmp_path):
    path = tmp_path / "x.pt"
    two_tensors(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        position = archive.start_dir
    while content[position : position + 4] == b"PK\x01\x02":
        content[position + 16 : position + 20] = bytes(4)
        position += 46 + sum(struct.unpack_from("<HHH", content, position + 28))
    path.write_bytes(content)
    assert verified(read_torch_file(path)["bad"]).shape == (1000,)


@pytest.mark.parametrize("name", ["a/data.pkl", "a/data/0", "b/data.pkl", "b/version"])
def test_an_archive_that_two_readers_would_read_differently(tmp_path, name):
    path = zip_file(tmp_path / "x.pt", tensor_pickle(0, (4,), (1,)), FOUR.tobytes())
    assert read_torch_file(path).tolist() == [0, 1, 2, 3]
    with zipfile.ZipFile(path, "a") as archive, pytest.warns() if name.startswith("a/") else nullcontext():
        archive.writestr(name, bytes(16))
    with pytest.raises(UserError, match="a record twice, or two roots"):
        read_torch_file(path)


def many_sizes():
    """A million times a torch.Size of the same long list."""
    return b"](" + b"N" * 100_000 + b"eq\0" + b"(" + (b"ctorch\nSize\nh\0\x85R" * 50) + b"l"


@pytest.mark.parametrize(
    "described, said",
    [
        (tensor_pickle(0, (200,) * 20_000, None, 0), "is damaged"),
        (b"\x80\x02}(" + b"".join(literal(k * (2**61 - 1)) + b"N" for k in range(1, 30_000)) + b"u.", None),
        (b"\x80\x02" + many_sizes() + b".", "more than 100,000 objects"),
        (b"\x80\x02" + b"N" * 200_000 + b".", "more than 100,000 objects"),
        (b"\x80\x02}" + literal(1 << 20_000) + b"Ns.", None),
    ],
)
def test_small_files_take_little_time(tmp_path, monkeypatch, described, said):
    monkeypatch.setattr("latte.weights.pickle_data.MAX_STEPS", 100_000)
    path, start = zip_file(tmp_path / "x.pt", described), time.process_time()
    if said:
        with pytest.raises(UserError, match=said):
            read_torch_file(path)
    else:
        assert read_torch_file(path) == {}
    assert time.process_time() - start < 2


def test_an_archive_of_too_many_records(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"PK\x03\x04" + bytes(40) + b"PK\x05\x06" + b"\0\0\0\0\xff\xff\xff\xff" + bytes(10))
    with pytest.raises(UserError, match="more than 65,534 records"):
        read_torch_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    for path in (tmp_path / "x.pt", Path(os.devnull)):
        with pytest.raises(UserError, match="a pipe, a socket or a device, not a file"):
            read_torch_file(path)
