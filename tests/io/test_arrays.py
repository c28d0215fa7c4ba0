"""NumPy's files: what NumPy writes is read, and what is broken, hostile or no array of numbers is one sentence."""

import io
import zipfile

import numpy as np
import pytest

from latte.errors import UserError
from latte.io.arrays import read_npy, read_npz


def pack(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array, **given):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array), **given)
    return out.getvalue()


ARRAYS = [
    np.arange(6, dtype=np.float16).reshape(2, 3),
    np.asfortranarray(np.arange(24, dtype=">f4").reshape(2, 3, 4)),
    np.array("one text"),
    np.array(["sun", "", "Mond \U0001f319"]),
    np.array([True, False]),
    np.float64(3),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype} {array.shape}")
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_of_numbers_and_texts_are_read(array, write, tmp_path):
    write(tmp_path / "a.npz", a=array, b=np.zeros(1))
    np.save(tmp_path / "a.npy", array)
    for found in (read_npz(tmp_path / "a.npz", ["a"], ["c"])["a"], read_npy(tmp_path / "a.npy")):
        assert found.dtype == array.dtype and np.array_equal(found, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(version, tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(ARRAYS[0], version=version))
    assert np.array_equal(read_npy(tmp_path / "a.npy"), ARRAYS[0])


GOOD = npy(ARRAYS[0])
HEADER = b"{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }"
BROKEN = {
    "no array": (b"x", "it is no NumPy array"),
    "no brace": (GOOD.replace(b"}", b" ", 1), "header"),
    "a dtype of objects": (GOOD.replace(b"<f2", b"|O8"), "header"),
    "a table": (GOOD.replace(HEADER, HEADER.replace(b"'<f2'", b"[('a','<f2')]")[: len(HEADER)]), "header"),
    "an impossible type": (GOOD.replace(b"<f2", b"<f3"), "unknown type <f3"),
    "a shape beyond the file": (GOOD.replace(b"(2, 3), }    ", b"(2, 30000), }"), "size"),
    "an enormous shape": (GOOD.replace(b"(2, 3), }" + b" " * 22, b"(9999999999999999999, 3), }    "), "size"),
    "an empty array": (npy(np.zeros((0, 3))), "empty"),
    "code": (GOOD.replace(b"False, 'shape'", b"exit(), 'shape"), "header"),
    "no Unicode": (npy(np.array(["ab"])).replace(b"a\0\0\0", b"\xff\xff\xff\xff"), "Unicode"),
    "cut": (GOOD[:-1], "size"),
    "cut in its header": (GOOD[:9], "header"),
}


@pytest.mark.parametrize("content, said", BROKEN.values(), ids=BROKEN)
def test_what_is_no_array_is_one_sentence(content, said, tmp_path):
    path = pack(tmp_path / "a.npz", [("text.npy", content), ("null.npy", GOOD)])
    with pytest.raises(UserError) as caught:
        read_npz(path, ["text", "null"])
    assert said in str(caught.value) and str(path) in str(caught.value) and str(caught.value).isprintable()
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_npy(tmp_path / "a.npy")


def test_an_archive_that_is_damaged_or_hostile_is_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    whole = pack(path, [("text.npy", GOOD)]).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(GOOD) + len(GOOD) - 1] ^= 1
    for content, said in (
        (b"", "is no .npz file with text"),
        (whole[:-30], "not a zip file"),
        (bytes(flipped), "Bad CRC-32"),
        (pack(path, [("other.npy", GOOD)]).read_bytes(), "has no array 'text'"),
        (pack(path, [("text.npy", GOOD), ("text", GOOD)]).read_bytes(), "two arrays 'text'"),
        (pack(path, [("text.npy", GOOD)], zipfile.ZIP_LZMA).read_bytes(), "packed as np.savez never does"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_npz(path, ["text"])
    with pytest.raises(UserError, match="does not exist"):
        read_npz(tmp_path / "none.npz", ["text"])
    with pytest.raises(UserError, match="no regular file"):
        read_npz(tmp_path, ["text"])


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused_before(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.npz", [("text.npy", npy(np.zeros(2**18)))], zipfile.ZIP_DEFLATED)
    assert not read_npz(path, ["text"])["text"].any()  # what is small may be all zeros
    monkeypatch.setattr("latte.io.arrays.MIN_UNPACKED", 2**20)
    with pytest.raises(UserError, match=r"its 2,\d{3} bytes would unpack to 2,097,280"):
        read_npz(path, ["text"])
