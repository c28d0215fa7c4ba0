"""LoRA adapters of weights (Hu et al., 2021): merging them, diffusers' names for them, and which base they are for.

In our files the adapter of `<layer>.weight` is `<layer>.lora_down` (r, in) and `<layer>.lora_up` (out, r); the metadata
holds lora_rank and lora_alpha.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError, quoted
from latte.weights.dtypes import names_of
from latte.weights.mapped import verified

if TYPE_CHECKING:
    from collections.abc import Mapping

DOWN, UP = ".lora_down", ".lora_up"
RANK, ALPHA, BASE = "lora_rank", "lora_alpha", "base_fingerprint"  # keys of the metadata
PEFT = {DOWN: ".lora_A.weight", UP: ".lora_B.weight"}


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
