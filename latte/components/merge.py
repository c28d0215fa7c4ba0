"""A fine-tuned transformer, or LoRA adapters, put back into their text-to-video folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from latte.components.convert import summary
from latte.components.folders import INDEX, check_own
from latte.components.loading import KINDS, Weights, read
from latte.components.quantize import is_quantized
from latte.errors import UserError
from latte.io.atomic import atomic_folder, check_new_folder, sync
from latte.weights import lora
from latte.weights.files import StateFile, read_state_dict
from latte.weights.fingerprint import base_fingerprint
from latte.weights.mapped import verified
from latte.weights.safetensors_file import write_safetensors
from latte.weights.shards import FILE
from latte.weights.shards import INDEX as INDEX_OF_SHARDS

if TYPE_CHECKING:
    from collections.abc import Mapping

TRANSFORMER = KINDS["latte_t2v"].folder
WEIGHTS = f"{KINDS['latte_t2v'].stems[0]}.safetensors"
LINKED = 2**20  # bytes from which a file is linked rather than copied: nobody edits weights in place


def merge(source: str, base: str | Path, target: str, dry_run: bool = False) -> str:
    """Write a folder like `base` with the transformer of a checkpoint of a run, and return a line about it.

    LoRA adapters are merged into the weights of the base. Raises UserError if the two do not fit, or the target exists
    or cannot be written.
    """
    state, base, folder = read_state_dict(source), Path(base), check_new_folder(target)
    if not (base / INDEX).is_file():
        raise UserError(f"{base} has no {INDEX}; name the diffusers folder of the pretrained network")
    if folder.is_relative_to(base.resolve()):
        raise UserError(f"{folder} lies in {base}; name a folder elsewhere")
    tensors, beside = _merged(state, read(base / TRANSFORMER, "latte_t2v"), str(base)), files_beside(base)
    if not dry_run:
        with atomic_folder(folder) as temporary:
            _write_folder(temporary, base, beside, tensors, folder)
    return f"{source} -> {folder}{' (not written)' if dry_run else ''}: {summary(tensors)}"


def write_adapters(source: str, target: str, dry_run: bool = False) -> str:
    """Write the LoRA adapters of a checkpoint of a run with alpha / rank multiplied in, and return a line about them.

    Raises UserError if the checkpoint has none, or the file cannot be written.
    """
    state = read_state_dict(source)
    if not target.endswith(".safetensors"):
        raise UserError(f"--lora_only {target} must end in .safetensors")
    if not lora.is_low_rank(state.tensors):
        raise UserError(f"{source} is a whole network without LoRA adapters; leave --lora_only out")
    factor = lora.factor_of(state.metadata, source)
    tensors = lora.peft_names(state.tensors, factor, source)
    if not dry_run:
        # The file gets an alpha that makes the factor 1, because the factor is multiplied in already.
        rank = state.metadata[lora.RANK]
        write_safetensors(target, tensors, {lora.RANK: rank, lora.ALPHA: rank})
    return f"{source} -> {target}{' (not written)' if dry_run else ''}: {summary(tensors)}"


def _merged(state: StateFile, original: Weights, base: str) -> dict[str, np.ndarray]:
    """Return the transformer of the source, in the dtypes of the base; raises UserError if the two do not fit."""
    source = state.path
    if is_quantized(original.tensors):
        raise UserError(f"{base} is quantized; name the network it was made from, and quantize the result")
    if lora.BASE in state.metadata and state.metadata[lora.BASE] != base_fingerprint(original.tensors):
        raise UserError(f"{source} was trained on another network than {base}; name the one it started from")
    if lora.is_low_rank(state.tensors):
        return lora.merged(original.tensors, state.tensors, lora.factor_of(state.metadata, source), source)
    whole = read(state, "latte_t2v")
    if whole.config != original.config:
        raise UserError(f"{source} is of another configuration than {base}; name the one it started from")
    tensors = {}
    for name, values in original.tensors.items():
        tensors[name] = verified(whole.tensors[name]).astype(values.dtype)
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise UserError(f"{source}: {name} does not fit {values.dtype.name}, the dtype of {base}")
    return tensors


def files_beside(base: Path) -> list[Path]:
    """Return what a folder holds beside the transformer's weights, hidden files aside.

    Raises UserError for a link to what lies elsewhere, and for one to a folder.
    """
    found = []
    for path in sorted(base.rglob("*")):
        inside = path.relative_to(base)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir() and path.is_symlink():
            raise UserError(f"{path} is a link to a folder; put the folder itself in its place")
        if path.is_file() and not (inside.parts[0] == TRANSFORMER and _is_weights(path.name)):
            found.append(check_own(path, base))
    return found


def _is_weights(name: str) -> bool:
    """Return whether a file of a component holds its weights, in a form of any program, or their index."""
    return bool(FILE.fullmatch(name) or INDEX_OF_SHARDS.fullmatch(name)) or name.endswith((".msgpack", ".h5"))


def _write_folder(
    folder: Path, base: Path, beside: list[Path], tensors: Mapping[str, np.ndarray], target: Path
) -> None:
    """Fill a folder with the transformer's weights and copies of the base's files `beside` them."""
    copy_files(beside, base, folder)
    size = sum(values.nbytes for values in tensors.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc=str(target), delay=5) as bar:  # only if it takes longer
        write_safetensors(folder / TRANSFORMER / WEIGHTS, tensors, {}, bar.update)


def copy_files(files: list[Path], base: Path, folder: Path) -> None:
    """Copy files of a folder to the same places in another one; large ones are linked where the file system can."""
    for path in files:
        copy = folder / path.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.stat().st_size < LINKED or not _linked(path, copy):
            shutil.copyfile(path, copy)
            sync(copy)


def _linked(path: Path, copy: Path) -> bool:
    """Hard-link a file and return True, or return False where the file system cannot."""
    try:
        os.link(path.resolve(), copy)  # the folders of model hubs hold links to files elsewhere
    except OSError:
        return False
    return True
