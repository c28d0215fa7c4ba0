"""LoRA adapters of weights (Hu et al., 2021): merging them, diffusers' names for them, and which base they are for.

In our files the adapter of `<layer>.weight` is `<layer>.lora_down` (r, in) and `<layer>.lora_up` (out, r); the metadata
holds lora_rank and lora_alpha.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError, quoted
from latte.io.json_files import parse_json, read_json
from latte.weights.dtypes import names_of
from latte.weights.files import StateFile, read_state_dict
from latte.weights.mapped import verified

if TYPE_CHECKING:
    from collections.abc import Mapping

DOWN, UP = ".lora_down", ".lora_up"
RANK, ALPHA, BASE = "lora_rank", "lora_alpha", "base_fingerprint"  # keys of the metadata
PEFT = {DOWN: ".lora_A.weight", UP: ".lora_B.weight"}
ADAPTER_FILES = tuple(
    f"{stem}.{form}" for stem in ("pytorch_lora_weights", "adapter_model") for form in ("safetensors", "bin")
)
OWNERS = ("base_model.model.", "transformer.")  # what the names of peft and of diffusers begin with
_FOREIGN = re.compile(r"(.+)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(\.\w+)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_SIDES = {"lora_A": DOWN, "lora_down": DOWN, "lora.down": DOWN, "lora_B": UP, "lora_up": UP, "lora.up": UP}
_DIFFUSERS = "lora_adapter_metadata"  # the key under which diffusers keeps peft's settings in a file
_NEEDED = {"use_dora": False, "bias": "none", "lora_bias": False, "fan_in_fan_out": False}  # of peft's settings


def is_low_rank(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether these are LoRA adapters rather than a network."""
    return any(name.endswith(DOWN) for name in tensors)


def factor_of(metadata: Mapping[str, str], source: str) -> float:
    """Return alpha / rank, what the adapters are multiplied by; raises UserError if the metadata lacks either."""
    try:
        factor = float(metadata[ALPHA]) / int(metadata[RANK])
    except (KeyError, ValueError, ZeroDivisionError):
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise UserError(f"{source} does not say its {RANK} and {ALPHA}; name a checkpoint that train.py wrote")
    return factor


def merged(
    base: Mapping[str, np.ndarray], low_rank: Mapping[str, np.ndarray], factor: float, source: str
) -> dict[str, np.ndarray]:
    """Return the base with W + factor * up down for each adapted weight, summed in float64, in the dtype of W.

    Raises UserError if the adapters are not whole, or not of the shapes of the base's weights.
    """
    result = dict(base)
    for layer, (down, up) in pairs(low_rank, source).items():
        name = f"{layer}.weight"
        if name not in base or base[name].shape != (up.shape[0], down.shape[1]):
            there = base[name].shape if name in base else "no such weight"
            raise UserError(
                f"{source} adds {up.shape[0]} x {down.shape[1]} elements to {quoted(name)}, but the base has {there}; "
                "name the base that it was trained on"
            )
        weight = verified(base[name])
        total = weight.astype(np.float64) + factor * (up.astype(np.float64) @ down.astype(np.float64))
        result[name] = total.astype(weight.dtype)
        if not np.isfinite(result[name].astype(np.float32)).all():
            raise UserError(f"{source}: {name} does not fit {weight.dtype.name} any more; use a base in float32")
    return result


def peft_names(low_rank: Mapping[str, np.ndarray], factor: float, source: str) -> dict[str, np.ndarray]:
    """Return the adapters as diffusers' pipelines name them, with the factor multiplied into `lora_B`."""
    result = {}
    for layer, (down, up) in pairs(low_rank, source).items():
        result[f"transformer.{layer}{PEFT[DOWN]}"] = down
        result[f"transformer.{layer}{PEFT[UP]}"] = (factor * up.astype(np.float64)).astype(up.dtype)
    return result


def pairs(low_rank: Mapping[str, np.ndarray], source: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (down, up) by layer; raises UserError if one of a pair is missing, or there is anything else."""
    layers = [name.removesuffix(DOWN) for name in low_rank if name.endswith(DOWN)]
    found = {layer: (low_rank[layer + DOWN], low_rank[layer + UP]) for layer in layers if layer + UP in low_rank}
    for layer, both in found.items():
        for values in both:
            names_of(verified(values), layer)  # raises UserError for a dtype that nothing computes with
    whole = all(up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] for down, up in found.values())
    if not found or not whole or len(low_rank) != 2 * len(found):
        raise UserError(f"{source} is not the whole of a network's LoRA adapters; name another checkpoint")
    return found


Adapter = dict[str, tuple[np.ndarray, np.ndarray]]  # by layer: (r, in) and (out, r), their product what is added


def read_adapter(path: str | Path) -> tuple[Adapter, str | None]:
    """Return the LoRA adapters in a file, with alpha / rank multiplied in, and the fingerprint of their base, or None.

    path: a checkpoint of a run, a file of diffusers or kohya, or a folder of peft with its adapter_config.json.
    Raises UserError if there are none, they are not whole, or of a kind that is more than a product of two matrices.
    """
    file = adapter_file(Path(path))
    state = read_state_dict(file)
    if is_low_rank(state.tensors):
        found, factor = pairs(state.tensors, state.path), factor_of(state.metadata, state.path)
        return {layer: _scaled(down, up, factor) for layer, (down, up) in found.items()}, state.metadata.get(BASE)
    settings = _settings(state, file)
    wrong = [f"{key} {quoted(settings[key])}" for key, value in _NEEDED.items() if settings.get(key, value) != value]
    if wrong:
        raise UserError(f"{file}: {', '.join(wrong)} is not supported; train LoRA adapters without it")
    renamed, alphas = _own_names(state.tensors, state.path)
    adapter = {}
    for layer, (down, up) in pairs(renamed, state.path).items():
        factor = float(alphas[layer]) / len(down) if layer in alphas else _peft_factor(settings, layer, len(down), file)
        adapter[layer] = _scaled(down, up, factor)
    return adapter, None


def adapter_file(path: Path) -> Path:
    """Return the file of LoRA adapters that a path names, which may be its folder; raises UserError without one."""
    if not path.is_dir():
        return path
    found = [path / name for name in ADAPTER_FILES if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds none of {', '.join(ADAPTER_FILES)}; name the file of LoRA adapters")
    return found[0]


def _scaled(down: np.ndarray, up: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(verified(down), np.float32), (factor * verified(up).astype(np.float64)).astype(np.float32)


def _own_names(tensors: Mapping[str, np.ndarray], source: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the adapters of other programs by our names, and each layer's alpha where the file has it."""
    renamed, alphas = {}, {}
    for name, values in tensors.items():
        if match := _FOREIGN.fullmatch(name):
            renamed[_layer(match[1]) + _SIDES[match[2]]] = values
        elif match := _ALPHA.fullmatch(name):
            alphas[_layer(match[1])] = verified(values).reshape(())
        else:
            raise UserError(f"{source} holds {quoted(name)}, which is no matrix of a LoRA adapter; name another file")
    return renamed, alphas


def _layer(name: str) -> str:
    for owner in OWNERS:
        name = name.removeprefix(owner)
    return name


def _settings(state: StateFile, file: Path) -> dict[str, Any]:
    """Return peft's settings: of adapter_config.json beside the file, or of the file's metadata; else none."""
    beside = file.parent / "adapter_config.json"
    if file.name.startswith("adapter_model") and beside.is_file():
        return read_json(beside, remedy="save the adapter again")
    if _DIFFUSERS in state.metadata:
        told = parse_json(state.metadata[_DIFFUSERS], f"{_DIFFUSERS} of {file}")
        return {key.removeprefix("transformer."): value for key, value in told.items()}
    return {}


def _peft_factor(settings: Mapping[str, Any], layer: str, rank: int, file: Path) -> float:
    """Return alpha / rank of a layer, or alpha / sqrt(rank) of rsLoRA; 1 if the settings have no alpha."""
    patterns = settings.get("alpha_pattern") or {}
    own = [value for key, value in patterns.items() if layer == key or layer.endswith(f".{key}")]
    alpha = own[0] if own else settings.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{file}: lora_alpha must be a number, but is {quoted(repr(alpha), 60)}")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
