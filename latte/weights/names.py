"""The state dicts in a checkpoint, without the prefixes of whatever wrapped the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from latte.errors import UserError
from latte.weights.pickle_data import Opaque

SETS = ("ema", "model")  # EMA weights first: they are what one samples with
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile


def unnest(obj: Any, which: str | None = None, source: str = "the checkpoint") -> dict[str, np.ndarray]:
    """Return the state dict inside the objects of a checkpoint, without the prefixes of wrappers.

    Known are {"model", "ema"} with either missing, Lightning's {"state_dict": {"model.*", "ema.*"}}, and the bare state
    dict. `which` is "ema" or "model"; None takes "ema" where there is one.
    Raises UserError if the requested set is missing, or there are no tensors at all.
    """
    sets = _sets(obj)
    if not sets:
        raise UserError(f"{source} holds no tensors; name a checkpoint")
    if which is None:
        which = next(name for name in (*SETS, "") if name in sets)
    if which not in sets:
        there = " and ".join(f'"{name}"' if name else "one set without a name" for name in sets)
        raise UserError(f'{source} has no weights called "{which}", it has {there}; ask for one it has, or for no name')
    found = {WRAPPERS.sub("", str(key)): value for key, value in sets[which].items()}
    for key, value in found.items():
        if isinstance(value, Opaque) and value.name.startswith("torch._"):
            raise UserError(
                f"{source}: {key} is a tensor of a kind that is not supported ({value.name}); save it dense"
            )
    return {key: value for key, value in found.items() if isinstance(value, np.ndarray)}


def _sets(obj: Any) -> Mapping[str, Mapping[Any, Any]]:
    """Return the state dicts in a checkpoint by name; a bare one has the name ""."""
    if isinstance(obj, Mapping) and isinstance(obj.get("state_dict"), Mapping):
        obj = obj["state_dict"]
    if not isinstance(obj, Mapping):
        return {}
    nested = {name: obj[name] for name in SETS if isinstance(obj.get(name), Mapping) and obj[name]}
    if nested:
        return nested
    flat = {WRAPPERS.sub("", str(key)): value for key, value in obj.items() if isinstance(value, np.ndarray | Opaque)}
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        name, _, rest = key.partition(".")
        # A whole Stable Diffusion checkpoint has its U-Net under "model.diffusion_model.".
        if name in SETS and not rest.startswith("diffusion_model."):
            grouped.setdefault(name, {})[rest] = value
    return grouped or ({"": flat} if any(isinstance(value, np.ndarray) for value in flat.values()) else {})
