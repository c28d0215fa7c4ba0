"""The official weights, and how they come here: `latte download`."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from latte.errors import UserError, first_line, quoted
from latte.io.atomic import check_room, check_writable, describe_bytes
from latte.io.checksums import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CHINA = "https://hf-mirror.com"
_GB, _LATTE = 10**9, ("maxin-cn/Latte", "Apache-2.0")
_XL2 = 673_994_912 * 4  # bytes of one set of float32 parameters
_CONVERT = "latte convert --source models/{0}.pt --target models/{0}.ckpt"


@dataclass(frozen=True)
class Official:
    """Weights that their authors have published: where, which files, under which licence, and what to do then."""

    repository: str
    licence: str
    files: tuple[str, ...]  # patterns
    size: int  # bytes of one set of its parameters as float32, to tell what to expect
    what: str
    then: str
    own_folder: bool = True  # below `models`, under its name


OFFICIAL = {
    "skytimelapse": Official(
        *_LATTE,
        ("skytimelapse.pt",),
        _XL2,
        "Latte-XL/2, clouds, 256 px",
        _CONVERT.format("skytimelapse"),
        False,
    ),
    "ffs": Official(
        *_LATTE, ("ffs.pt",), _XL2, "Latte-XL/2, faces (FaceForensics), 256 px", _CONVERT.format("ffs"), False
    ),
    "taichi-hd": Official(
        *_LATTE, ("taichi-hd.pt",), _XL2, "Latte-XL/2, Taichi-HD, 256 px", _CONVERT.format("taichi-hd"), False
    ),
    "ucf101": Official(
        *_LATTE,
        ("ucf101.pt",),
        674_112_416 * 4,
        "Latte-XL/2 with 101 classes, 256 px",
        _CONVERT.format("ucf101"),
        False,
    ),
    "sd-vae-ft-mse": Official(
        "stabilityai/sd-vae-ft-mse",
        "MIT",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        83_653_863 * 4,
        "the autoencoder of all Latte networks but Latte-1",
        "latte convert --source models/sd-vae-ft-mse --target models/sd-vae-ft-mse.ckpt",
    ),
    "Latte-1": Official(
        "maxin-cn/Latte-1",
        "Apache-2.0",
        (
            "model_index.json",
            *(f"{part}/*" for part in ("transformer", "vae", "vae_temporal_decoder", "text_encoder")),
            *("tokenizer/*", "scheduler/*"),
        ),
        (1_057_246_880 + 4_762_310_656 + 83_653_863) * 4,
        "text to video, 512 px, with T5-v1.1-XXL and autoencoder",
        'latte sample -c t2v --prompts "a dog wearing sunglasses"',
    ),
    "clip-vit-large-patch14": Official(
        "openai/clip-vit-large-patch14",
        "MIT",
        ("*.json", "merges.txt", "model.safetensors"),
        427_616_513 * 4,
        "CLIP, for condition: text",
        "latte train -c CONFIG --text_encoder_path models/clip-vit-large-patch14",
    ),
}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size, and a checksum: SHA-256, or the SHA-1 that git names contents by."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def problem(self, path: Path) -> str:
        """Return what is wrong with a file that should be this one; "" if nothing is."""
        if not path.is_file():
            return "it is missing"
        if path.stat().st_size != self.size:
            return f"it has {path.stat().st_size:,} bytes in place of {self.size:,}"
        if self.sha256:
            return "" if sha256_of(path) == self.sha256 else "its SHA-256 is another one"
        if self.git_sha1:
            content = path.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            return "" if found == self.git_sha1 else "its checksum is another one"
        return "its repository states no checksum"


def list_official() -> str:
    """Return the official weights as lines of a table."""
    return "\n".join(
        f"{name:24}{describe_bytes(each.size):>9} {each.licence:11} {each.repository:30} {each.what}"
        for name, each in OFFICIAL.items()
    )


def download(name: str, folder: Path, mirror: str | None = None, dry_run: bool = False) -> Iterator[str]:
    """Bring official weights into a folder, and yield lines about it; what is there and whole is not fetched again.

    Raises UserError if there is no such name, huggingface_hub is not installed, the files do not come, or a checksum
    differs.
    """
    asked = {key.lower(): key for key in OFFICIAL}.get(name.rpartition("/")[2].removesuffix(".pt").lower())
    if asked is None:
        raise UserError(f"there are no official weights {quoted(name)}; choose {', '.join(OFFICIAL)}")
    official = OFFICIAL[asked]
    target = folder / asked if official.own_folder else folder
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError("latte download needs huggingface_hub; install it: pip install huggingface_hub") from None
    check_writable(target, "--folder")
    with_mirror = f"{' of ' + mirror if mirror else ''}"
    try:
        revision, files = _listed(hub, official, mirror)
    except Exception as error:
        raise UserError(_failed(f"cannot list {official.repository}{with_mirror}", error, mirror)) from error
    if not files:
        raise UserError(f"{official.repository}{with_mirror} has none of {', '.join(official.files)}; look at its page")
    missing = [file for file in files if file.problem(target / file.name)]
    total, needed = (sum(file.size for file in some) for some in (files, missing))
    yield f"{asked}: {len(files)} files, {describe_bytes(total)}, {official.licence}, from {official.repository}"
    if not dry_run:
        check_room(target, needed, "free some, or name another --folder")
    for file in missing:
        yield f"  {target / file.name} ({describe_bytes(file.size)})"
        if not dry_run:
            _fetch(hub, official, file, target, revision, mirror)
    yield f"{'would be' if dry_run and missing else 'whole, by size and checksum,'} in {target}; then: {official.then}"


def _listed(hub: Any, official: Official, mirror: str | None) -> tuple[str, list[RemoteFile]]:
    """Return the newest revision of a repository, and those of its files that are wanted."""
    info = hub.HfApi(endpoint=mirror).model_info(official.repository, files_metadata=True)
    wanted = []
    for file in info.siblings:
        name = PurePosixPath(file.rfilename)
        if name.is_absolute() or ".." in name.parts or "\\" in file.rfilename:
            continue
        if any(name.match(pattern) and len(name.parts) == pattern.count("/") + 1 for pattern in official.files):
            lfs = getattr(file, "lfs", None)
            sha256 = lfs.sha256 if lfs else None
            wanted.append(RemoteFile(file.rfilename, int(file.size), sha256, None if lfs else file.blob_id))
    return str(info.sha), wanted


def _fetch(hub: Any, official: Official, file: RemoteFile, target: Path, revision: str, mirror: str | None) -> None:
    """Fetch one file, from where an earlier attempt has ended; raises UserError if it does not come whole."""
    (target / file.name).unlink(missing_ok=True)  # else a damaged one might be taken for the one that was fetched
    try:
        hub.hf_hub_download(official.repository, file.name, revision=revision, local_dir=str(target), endpoint=mirror)
    except Exception as error:
        raise UserError(_failed(f"cannot fetch {file.name}", error, mirror)) from error
    if problem := file.problem(target / file.name):
        (target / file.name).unlink(missing_ok=True)
        raise UserError(f"{target / file.name} came damaged and was removed: {problem}; give the same command again")


def _failed(what: str, error: Exception, mirror: str | None) -> str:
    other = "" if mirror else f", from China with --mirror {CHINA}"
    return f"{what}: {quoted(first_line(error), 200)}; give the same command again, which goes on{other}"
