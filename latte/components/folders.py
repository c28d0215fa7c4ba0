"""Where the parts of a pipeline lie: in a diffusers folder, in a folder of ours, or in two files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latte.errors import UserError
from latte.weights.files import SUFFIXES

INDEX = "model_index.json"
REMEDY = "download the whole folder again"


@dataclass(frozen=True)
class Parts:
    """The files or folders of a pipeline; prompts and scheduler are of text to video only."""

    network: Path
    vae: Path
    prompts: Path | None = None  # the folder with tokenizer and text_encoder
    scheduler: Path | None = None
    scale_factor: float | None = None  # of the latents, where a run's options name another one than the autoencoder's


def is_t2v_folder(path: str | Path | None) -> bool:
    """Return whether a path is a diffusers folder."""
    return path is not None and (Path(path) / INDEX).is_file()


def find_parts(path: str | Path, vae: str | Path | None = None, temporal_decoder: bool = False) -> Parts:
    """Return the parts of a pipeline.

    path: a diffusers folder of text to video, a folder with latte.* and vae.*, or a checkpoint, with the autoencoder in
    `vae`, which otherwise may name another one than the folder's. Raises UserError if a part is missing.
    """
    path = Path(path)
    if is_t2v_folder(path):
        kind = read_json(path / INDEX).get("_class_name")
        if kind != "LattePipeline":
            raise UserError(f"{path} is a folder of {kind}, not of LattePipeline, the text-to-video Latte-1")
        decoder = "vae_temporal_decoder" if temporal_decoder else "vae"
        for name in ("transformer", "scheduler", "tokenizer", "text_encoder", *([] if vae else [decoder])):
            if not (path / name).is_dir():
                raise UserError(f"{path} has no folder {name}; {REMEDY}")
        return Parts(path / "transformer", Path(vae or path / decoder), path, path / "scheduler")
    if temporal_decoder:
        raise UserError(f"enable_vae_temporal_decoder is for text-to-video folders; {path} has no {INDEX}")
    if not path.is_dir():
        if vae is None:
            raise UserError(f"{path} needs an autoencoder; name one as vae")
        return Parts(path, Path(vae))
    return Parts(_only(path, "latte"), Path(vae) if vae else _only(path, "vae"))


def read_scheduler(folder: Path | None) -> dict[str, Any]:
    """Return the scheduler_config.json of a folder; raises UserError if it is missing or no JSON."""
    return read_json(folder / "scheduler_config.json") if folder else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises UserError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not valid; {REMEDY}")
    return values


def _only(folder: Path, stem: str) -> Path:
    """Return the one file of weights of that name."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        there = f"{len(found)} files" if found else "no file"
        raise UserError(f"{folder} has no {INDEX}, and {there} of weights named {stem}.*; name the checkpoint itself")
    return found[0]
