"""A loaded pipeline written as a folder that can be loaded again: of diffusers for text to video, else one of ours."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

from latte.components.folders import SCHEDULER, SCHEDULER_CONFIG
from latte.components.loading import KINDS
from latte.components.merge import TRANSFORMER, WEIGHTS, copy_files, files_beside
from latte.errors import UserError
from latte.io.atomic import atomic_folder, check_new_folder
from latte.models.precision import unpad_heads
from latte.weights.files import CONFIG
from latte.weights.safetensors_file import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from mindspore import nn

    from latte.components.codec import Codec

CODECS = (KINDS["autoencoder"], KINDS["temporal_decoder"])


def weights_of(net: nn.Cell) -> dict[str, np.ndarray]:
    """Return a loaded network's weights under their official names, with heads as wide as in its files."""
    weights = {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    if not getattr(net, "flash", False):
        return weights
    heads, width = net.config.attention_heads, net.config.hidden_size // net.config.attention_heads
    return {name: unpad_heads(name, values, heads, width) for name, values in weights.items()}


def save(path: str | Path, net: nn.Cell, codec: Codec, base: Path | None, scheduler: dict[str, Any]) -> Path:
    """Write a pipeline into a new folder, in the dtypes that it computes in, and return the folder.

    base: the diffusers folder that it was loaded from, of which tokenizer and text encoder are copied. The folder
    appears when it is whole. Raises UserError if it exists or cannot be written.
    """
    folder = check_new_folder(path)
    if base is None and net.config.conditioning == "prompt":
        raise UserError("this pipeline has no text encoder to save; load it from its folder with from_pretrained")
    if base is not None and folder.is_relative_to(base.resolve()):
        raise UserError(f"{folder} lies in {base}; name a folder elsewhere")
    beside = files_beside(base) if base else []
    config = {**dataclasses.asdict(codec.vae.config), "scaling_factor": codec.scale_factor}
    with atomic_folder(folder) as temporary:
        if base is None:
            told = {CONFIG: json.dumps(net.config.to_json())}
            write_safetensors(temporary / "latte.safetensors", weights_of(net), told)
            write_safetensors(temporary / "vae.safetensors", weights_of(codec.vae), {CONFIG: json.dumps(config)})
        else:
            copy_files(beside, base, temporary)
            write_safetensors(temporary / TRANSFORMER / WEIGHTS, weights_of(net), {})
            _write_codec(temporary, codec, config)
        if scheduler:
            (temporary / SCHEDULER).mkdir(exist_ok=True)
            _write_json(temporary / SCHEDULER / SCHEDULER_CONFIG, scheduler)
    return folder


def _write_codec(folder: Path, codec: Codec, config: dict[str, Any]) -> None:
    """Put the autoencoder in use in the place of the folder's own."""
    kind = CODECS[codec.vae.config.temporal_decoder]
    there = folder / kind.folder / "config.json"
    if there.is_file():  # with what only diffusers knows
        config = json.loads(there.read_text(encoding="utf-8")) | config
    config.pop("temporal_decoder")
    config.setdefault("_class_name", kind.network.__name__)
    shutil.rmtree(folder / kind.folder, ignore_errors=True)
    (folder / kind.folder).mkdir()
    _write_json(folder / kind.folder / "config.json", config)
    write_safetensors(folder / kind.folder / f"{kind.stems[0]}.safetensors", weights_of(codec.vae), {})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the base's
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
