"""The sets of weights in a checkpoint: where they are, and their names without what wrappers left in them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latte.errors import UserError, quoted
from latte.io.json_files import is_unicode
from latte.weights.mapped import REMEDY
from latte.weights.pickle_data import Opaque, Unread

SETS = ("ema", "model")  # EMA weights first: they are what one samples with
EMA = re.compile(r"(^|_)ema(_|$)", re.IGNORECASE)
WRAPPERS = {  # parts of names, wherever they are
    "module",  # of DistributedDataParallel, DeepSpeed, AveragedModel
    "_orig_mod",  # of torch.compile
    "_fsdp_wrapped_module",
    "_fpw_module",  # the older name of it
    "_checkpoint_wrapped_module",
    "_forward_module",  # of Lightning Fabric
}
BESIDE = ("n_averaged",)  # counters that wrappers keep among the weights
STATE = re.compile(r"(^|\.)(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|step)$")  # of an optimizer
ADAPTERS = r"\.lora_(A|B|up|down|embedding_A)\.|^lora_(unet|te)\d?_"
OTHERS = (  # parts of names, and the weights that have them
    (r"\.base_layer\.", "a network with LoRA adapters that are not merged, as merge_and_unload() does it"),
    (ADAPTERS, "LoRA adapters of another program, which has to merge them into their network"),
    (r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$", "the state of an optimizer"),
    (r"(^|\.)text_model\.", "a CLIP text encoder"),
    (r"motion_modules?\.", "motion modules of AnimateDiff"),
    (r"(^|\.)(input_blocks|down_blocks)\.\d+\.", "a U-Net or a part of one"),
    (r"(^|\.)(double_blocks|joint_blocks|single_transformer_blocks)\.", "a transformer of another architecture"),
)
DEPTH, VISITED = 4, 10_000  # how deep, and in how many containers, weights are looked for
SHOWN = 5  # names in an error


@dataclass(frozen=True)
class _Set:
    """A state dict, and the keys that lead to it."""

    keys: tuple[str, ...]
    items: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The keys as a message shows them; the checkpoint itself has none."""
        return quoted(".".join(self.keys))

    @property
    def is_ema(self) -> bool:
        """Whether a key says that these are EMA weights."""
        return any(EMA.search(key) for key in self.keys)


def unnest(obj: Any, which: str | None = None, source: str = "the checkpoint") -> dict[str, np.ndarray]:
    """Return the state dict inside the objects of a checkpoint, without what wrappers left in its names.

    The contents decide: the one dict of tensors is taken, under whatever keys it lies. Where there are several, a key
    that names EMA makes one of them "ema"; Lightning's {"state_dict": {"model.*", "ema.*"}} are two. `which` is "ema"
    or "model", everything else; None takes "ema" where there is one.
    Raises UserError, naming the keys that hold tensors, if that leaves none or several, or a tensor cannot be read.
    """
    sets = _sets(obj)
    if not sets:
        raise UserError(f"{source} {_without_weights(obj)}")
    return _without_wrappers(_chosen(sets, which, source).items, source)


def _chosen(sets: list[_Set], which: str | None, source: str) -> _Set:
    """Return the one set that is meant; raises UserError if there is none, or there are several."""
    there = _listed([f'"{each.label}"' if each.keys else "one set without a name" for each in sets])
    ema = [each for each in sets if each.is_ema]
    other = [each for each in sets if not each.is_ema and (each.keys or which is None)]
    found = ema if which == "ema" or (which is None and ema) else other
    if not found:
        raise UserError(f'{source} has no weights called "{which}", it has {there}; ask for one it has, or for no name')
    named = [each for each in found if each.keys[-1:] in [(name,) for name in SETS]]
    candidates = named if len(named) == 1 else found
    if any(each.items is not candidates[0].items for each in candidates):
        raise UserError(
            f"{source} has several sets of weights, {there}; save the one that is meant in a file by itself"
        )
    return candidates[0]


def _without_wrappers(items: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Return the tensors of a state dict by the names that they have without wrappers."""
    found: dict[str, np.ndarray] = {}
    for key, value in items.items():
        name = plain_name(key)
        if not _is_tensor(value) or name in BESIDE:
            continue
        if isinstance(value, Opaque):
            what = value.name if isinstance(value, Unread) else f"of a kind that is not supported ({value.name})"
            raise UserError(f"{source}: {quoted(name)} is {quoted(what, 200)}")
        if name in found:
            raise UserError(f"{source} has {quoted(name)} twice, with and without the name of a wrapper; keep one")
        if not is_unicode(name):
            raise UserError(f"{source} has a weight whose name is damaged: {quoted(name)}; {REMEDY}")
        found[name] = value
    if found and not any(value.size for value in found.values()):
        raise UserError(
            f"{source} has the names of weights, but no values; DeepSpeed's ZeRO 3 keeps them in other files, from "
            "which zero_to_fp32.py makes one"
        )
    return found


def plain_name(key: str) -> str:
    """Return a name without the parts that wrappers put into it."""
    if "module" not in key and "_orig_mod" not in key:  # nearly all names
        return key
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def without_prefix(tensors: Mapping[str, np.ndarray], sign: str, source: str) -> dict[str, np.ndarray]:
    """Return the weights of the network that has one called `sign` (maybe with *), without what its names begin with.

    Raises UserError if there are several such networks.
    """
    pattern = re.compile(rf"(|.*?\.){fnmatch.translate(sign.lstrip('*'))}")
    prefixes = {match[1] for name in tensors if (match := pattern.match(name))}
    if len(prefixes) > 1:
        names = _listed([quoted(prefix) or "no prefix" for prefix in sorted(prefixes)])
        raise UserError(f"{source} has several networks, under {names}; save the one that is meant in a file by itself")
    prefix = prefixes.pop() if prefixes else ""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def has_adapters(names: Iterable[str]) -> bool:
    """Return whether weights of such names are, or have among them, LoRA adapters of another program."""
    return any(re.search(ADAPTERS, name) for name in names)


def foreign(names: Iterable[str]) -> str:
    """Return what weights of such names are, as far as that is known, or the first of the names."""
    names = list(names)
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in names):
            return what
    return f"tensors called {', '.join(quoted(name) for name in names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def _sets(obj: Any) -> list[_Set]:
    """Return the state dicts in a checkpoint."""
    found = _found(obj)
    # Weights have names with dots; what else holds tensors are counters, random states, the states of optimizers.
    named = [each for each in found if each.keys[-1:] in [(name,) for name in SETS] or _has_names(each.items)]
    return [part for each in named or found for part in _grouped(each)]


def _found(obj: Any) -> list[_Set]:
    """Return every dict that holds tensors, however often it is there, in a checkpoint that may contain itself."""
    queue: list[tuple[tuple[str, ...], Any]] = [((), obj)] if isinstance(obj, Mapping | list | tuple) else []
    seen: dict[int, _Set | None] = {}
    found = []
    for keys, here in queue:  # which grows
        if id(here) in seen:
            same = seen[id(here)]
            found += [_Set(keys, same.items)] if same else []
            continue
        items = here if isinstance(here, Mapping) else {str(i): value for i, value in enumerate(here)}
        tensors = {key: value for key, value in items.items() if _is_tensor(value)}
        holds = _Set(keys, tensors) if isinstance(here, Mapping) and tensors else None
        if holds and any(isinstance(value, np.ndarray) for value in tensors.values()):
            found.append(holds)
        seen[id(here)] = holds
        inner = [((*keys, key), value) for key, value in items.items() if isinstance(value, Mapping | list | tuple)]
        queue += inner[: max(0, VISITED - len(queue))] if len(keys) < DEPTH else []
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray | Unread) or (isinstance(value, Opaque) and "_rebuild_" in value.name)


def _has_names(items: Mapping[str, Any]) -> bool:
    return any("." in key and not STATE.search(key) for key in items)


def _grouped(one: _Set) -> list[_Set]:
    """Return the sets of weights that are told apart by the beginnings of their names alone, or the set as it is."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in one.items.items():
        name, _, rest = plain_name(key).partition(".")
        # A whole Stable Diffusion checkpoint has its U-Net under "model.diffusion_model.", and EMA names without dots.
        if rest and not rest.startswith("diffusion_model"):
            groups.setdefault(name, {})[rest] = value
    ema = {name for name, items in groups.items() if EMA.search(name) and _has_names(items)}
    known = {name: items for name, items in groups.items() if name in SETS or name in ema}
    if ema - set(SETS) and "model" not in known:  # the weights beside them have some other name
        known |= {name: items for name, items in groups.items() if name not in known and _has_names(items)}
    return [_Set((*one.keys, name), items) for name, items in known.items()] or [one]


def _without_weights(obj: Any) -> str:
    """Return what a checkpoint without weights is, as the end of a sentence."""
    if isinstance(obj, Opaque):
        return f"holds a whole pickled object, {quoted(obj.name)}; save its state_dict() instead"
    if not isinstance(obj, Mapping):
        return "holds no tensors with names; name a checkpoint"
    if "param_groups" in obj:
        return "is the state of an optimizer, without weights; name the file with the weights"
    inner = [item for value in obj.values() if isinstance(value, Mapping) for item in value.items()]
    whole = [(key, value) for key, value in [*obj.items(), *inner] if isinstance(value, Opaque)]
    if whole:
        (key, value), *_ = whole
        if isinstance(value, Unread):
            return f'holds no tensors that can be read: "{quoted(key)}" is {quoted(value.name, 200)}'
        name = f'"{quoted(key)}", {quoted(value.name)}'
        if value.name.startswith("numpy."):
            return f"holds no tensors with names, but arrays of NumPy such as {name}; save tensors instead"
        return f"holds no tensors with names, but whole pickled objects such as {name}; save its state_dict() instead"
    keys = [f'"{quoted(key, 40)}"' for key in obj]
    return f"holds no tensors with names{f', only {_listed(keys)}' if keys else ''}; name a checkpoint"


def _listed(texts: list[str]) -> str:
    return " and ".join([*texts[:SHOWN], *(["more"] if len(texts) > SHOWN else [])])
