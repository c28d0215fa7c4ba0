"""Where the parts of a pipeline lie: in a diffusers folder, in a folder of ours, or in two files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte.diffusion.scheduler_config import check_values
from latte.errors import UserError, quoted
from latte.io import resources
from latte.io.json_files import exists, read_json
from latte.weights.files import SUFFIXES
from latte.weights.mapped import OFFICIAL

INDEX = "model_index.json"
SCHEDULER, SCHEDULER_CONFIG = "scheduler", "scheduler_config.json"
REMEDY = "download the whole folder again"
LATTE = "maxin-cn/Latte (unconditional and with classes)"  # where huggingface.co has the official weights
LATTE_1 = "maxin-cn/Latte-1 (text to video)"
AUTOENCODER = "stabilityai/sd-vae-ft-mse"
CLIP = "openai/clip-vit-large-patch14"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB = re.compile(
    r"(\w+://)?(www\.)?((huggingface|hf)\.co/)?([^/@]+/[^/@]+)(@.*|/(tree|blob|resolve)/.*|/*)"
)  # as browsers show
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a file of a hub's cache is called after the hash of its contents


@dataclass(frozen=True)
class Parts:
    """The files or folders of a pipeline; prompts and scheduler are of text to video only, clip of a condition text."""

    network: Path
    vae: Path
    prompts: Path | None = None  # the folder with tokenizer and text_encoder
    scheduler: Path | None = None
    clip: Path | None = None  # a folder with CLIP's tokenizer and text encoder
    scale_factor: float | None = None  # of the latents, where a run's options name another one than the autoencoder's


def is_t2v_folder(path: str | Path | None) -> bool:
    """Return whether a path is a diffusers folder."""
    return path is not None and exists(path) and (Path(path) / INDEX).is_file()


def check_there(path: str | Path, *official: str) -> Path:
    """Return a path, or that of what is shipped; raises UserError, with where weights are, if there is nothing."""
    if exists(found := resources.find(path)):  # the demo model is installed with the package
        return found
    name, home = str(path), f"{OFFICIAL}, of huggingface.co: " + " and ".join(official)
    asked = match[5] if (match := HUB.fullmatch(name)) else name
    known = {_spelled(repository): repository for repository in (text.partition(" ")[0] for text in official)}
    repository = known.get(_spelled(asked))
    is_here = exists(Path(name).parent)
    if repository or (REPOSITORY.fullmatch(asked) and not Path(asked).suffix and not is_here):
        local = name if is_here else f"models/{Path(repository or asked).name}"
        raise UserError(
            f"there is no folder {quoted(name)} here, and nothing is downloaded by itself: run `hf download "
            f"{repository or asked} --local-dir {local}` and name {local}"
            + ("" if repository else f", if that is a repository; {home}")
        )
    raise UserError(f"{quoted(name, 500)} does not exist; correct the name, or download weights first; {home}")


def _spelled(name: str) -> str:
    """Return the last part of a name without what people mistake in it: capitals and hyphens."""
    return re.sub(r"[\W_]", "", Path(name).name).lower()


def check_own(path: Path, root: Path) -> Path:
    """Return a file of a folder that is copied or linked into a new one.

    Raises UserError if it is a link to what lies elsewhere, and so may be private: a folder that was downloaded says
    where its links go. A hub's cache keeps the files of its folders in `blobs`, under the hashes of their contents.
    """
    target = path.resolve()
    is_blob = BLOB.fullmatch(target.name) and target.parent.name == "blobs"
    if not target.is_relative_to(root.resolve()) and not is_blob:
        raise UserError(
            f"{quoted(path, 500)} is a link to {quoted(target, 500)}, outside of {root}; if that belongs there, put a "
            "copy of it in place of the link"
        )
    return path


def find_parts(path: str | Path, vae: str | Path | None = None, temporal_decoder: bool = False) -> Parts:
    """Return the parts of a pipeline.

    path: a diffusers folder of text to video, a folder with latte.* and vae.*, or a checkpoint, with the autoencoder in
    `vae`, which otherwise may name another one than the folder's. Raises UserError if a part is missing.
    """
    path = check_there(path, LATTE, LATTE_1)
    if vae:
        vae = check_there(vae, AUTOENCODER)
    if is_t2v_folder(path):
        kind = read_json(path / INDEX, remedy=REMEDY).get("_class_name")
        if kind != "LattePipeline":
            raise UserError(f"{path} is a folder of {quoted(kind)}, not of LattePipeline, the text-to-video Latte-1")
        decoder = "vae_temporal_decoder" if temporal_decoder else "vae"
        for name in ("transformer", "scheduler", "tokenizer", "text_encoder", *([] if vae else [decoder])):
            if not (path / name).is_dir():
                raise UserError(f"{path} has no folder {name}; {REMEDY}")
        return Parts(path / "transformer", Path(vae or path / decoder), path, path / SCHEDULER)
    if temporal_decoder:
        raise UserError(f"enable_vae_temporal_decoder is for text-to-video folders; {path} has no {INDEX}")
    whole = next((folder for folder in path.resolve().parents[:2] if is_t2v_folder(folder)), None)
    if whole and (vae is None or path.is_dir()):
        raise UserError(f"{path} is a part of a text-to-video folder; name the whole folder, {whole}")
    if not path.is_dir():
        if vae is None:
            raise UserError(f"{path} is one file and needs an autoencoder; name that as vae, or a folder with both")
        return Parts(path, Path(vae))
    scheduler = path / SCHEDULER if exists(path / SCHEDULER) else None
    return Parts(_only(path, "latte"), Path(vae) if vae else _only(path, "vae"), scheduler=scheduler)


def find_vae(path: str | Path) -> Path:
    """Return an autoencoder: the path itself, or vae.* of a folder of ours; raises UserError if there is none."""
    path = check_there(path, AUTOENCODER)
    return _only(path, "vae") if path.is_dir() and not exists(path / "config.json") else path


def read_scheduler(folder: Path | None) -> dict[str, Any]:
    """Return the scheduler_config.json of a folder; raises UserError if it is missing, or no configuration."""
    if folder is None:
        return {}
    path = folder / SCHEDULER_CONFIG
    # diffusers writes the logarithm of zero there, as JSON does not have it
    config = read_json(path, infinite=("lambda_min_clipped",), remedy=REMEDY)
    check_values(config, str(path))
    return config


def _only(folder: Path, stem: str) -> Path:
    """Return the one file of weights of that name."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        there = f"{len(found)} files" if found else "no file"
        raise UserError(f"{folder} has no {INDEX}, and {there} of weights named {stem}.*; name the checkpoint itself")
    return found[0]
