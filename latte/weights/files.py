"""Read and write weights in every file format that users have them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte.errors import UserError, quoted
from latte.io.atomic import atomic_path
from latte.io.json_files import LIMIT, exists, is_unicode, parse_json, read_bytes
from latte.weights.mapped import REMEDY, map_file, not_a_checkpoint, sniff
from latte.weights.mindspore_file import read_mindspore, write_mindspore
from latte.weights.names import unnest
from latte.weights.safetensors_file import read_safetensors, write_safetensors
from latte.weights.shards import files_of, has_config_beside
from latte.weights.torch_file import read_torch_file, write_torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

CONFIG = "config"  # the metadata key whose value is the network's configuration as JSON
SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class StateFile:
    """The weights in a file under the file's own names, with its metadata."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    path: str


def read_state_dict(path: str | Path, which: str | None = None) -> StateFile:
    """Return the weights in a PyTorch, MindSpore or safetensors file, or in a folder as diffusers writes it.

    The contents tell the format, not the suffix. `which` is "ema" or "model"; None takes "ema" where there is one. The
    arrays are read-only views into the file. Of a folder, or an index of shards, the files are those of
    `shards.files_of`. The config.json of a folder, or NAME.json beside NAME.bin, becomes metadata["config"].
    Raises UserError if a file does not exist, is damaged, or has no weights called `which`.
    """
    path = Path(path)
    files = files_of(path)
    obj, metadata = _read_file(files[0])
    if len(files) > 1:
        obj, metadata = {}, {}
        for shard in files:
            tensors = unnest(_read_file(shard)[0], None, str(shard))
            if doubles := obj.keys() & tensors.keys():
                raise UserError(f"{shard} holds {quoted(min(doubles))}, as another part does; {REMEDY}")
            obj |= tensors
    if CONFIG not in metadata and (config := _config_beside(path)):
        metadata = {**metadata, CONFIG: config}
    return StateFile(unnest(obj, which, str(path)), metadata, str(path))


def write_state_dict(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    progress: Callable[[int], Any] = lambda count: None,
) -> None:
    """Write weights in the format that the suffix names, with every dtype and the order of keys kept.

    .ckpt is MindSpore's. .pt and .pth hold {"ema": weights, "metadata": metadata} for PyTorch. .bin holds the bare
    weights for PyTorch, and NAME.json beside it metadata["config"]. `progress` gets the number of bytes of each tensor
    that has been written. A file is there whole or not at all.
    Raises UserError for another suffix, or if the file cannot be written.
    """
    path = check_suffix(path)
    if path.suffix == ".ckpt":
        write_mindspore(path, tensors, metadata, progress)
    elif path.suffix == ".safetensors":
        write_safetensors(path, tensors, metadata, progress)
    elif path.suffix == ".bin":
        write_torch_file(path, tensors, progress)
        if CONFIG in metadata:
            with atomic_path(path.with_suffix(".json")) as temporary:
                temporary.write_text(metadata[CONFIG] + "\n", encoding="utf-8")
    else:
        write_torch_file(path, {"ema": tensors, "metadata": dict(metadata)}, progress)


def check_suffix(path: str | Path) -> Path:
    """Return the path; raises UserError if its suffix is not one of SUFFIXES."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}, which selects the file format")
    return path


def _read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """Return the objects in a file and its metadata."""
    data = map_file(path)
    kind = sniff(data)
    if kind in ("zip", "legacy"):
        obj = read_torch_file(path)
        metadata = obj.get("metadata") if isinstance(obj, dict) else None
        if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
            if not all(is_unicode(text) for item in metadata.items() for text in item):
                raise UserError(f"{path} has metadata that is not text; {REMEDY}")
            return obj, metadata
        return obj, {}
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "mindspore":
        return read_mindspore(path)
    raise not_a_checkpoint(path, data)


def _config_beside(path: Path) -> str | None:
    """Return the JSON that describes a folder or file of weights; raises UserError if it is there and damaged."""
    beside = [path / "config.json"] if path.is_dir() else [path.with_suffix(".json")]
    if has_config_beside(path):
        beside.append(path.with_name("config.json"))
    found = next((file for file in beside if file != path and exists(file)), None)
    if found is None:
        return None
    remedy = "download it again, or move it away from the weights"
    content = read_bytes(found, LIMIT, remedy)
    parse_json(content, found, remedy=remedy)
    return content.decode("utf-8-sig").strip()
