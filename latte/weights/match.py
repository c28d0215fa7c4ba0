"""From named arrays to networks: strict loading, and sizes read from shapes and from the file beside the weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers, parse_json
from latte.runtime.tensors import assign
from latte.weights.dtypes import dtype_name, numpy_dtype
from latte.weights.files import CONFIG
from latte.weights.mapped import release_pages, stored_elements, verified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SHOWN = 5  # names of each kind in an error
BLOCKS = 64  # more than those of any network that has been trained
ELEMENTS, FACTOR = 1 << 26, 4  # by which a network that is built may be larger than the weights for it
DTYPES = ("float64", "float32", "float16", "bfloat16", "int8")  # of weights; int8 beside their scales


def load_state(net: nn.Cell, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter of a network, in its own dtype: a float16 file into a float32 network is cast.

    Memory for one parameter at a time is needed besides the network's.
    Raises UserError that lists missing, unexpected and mis-shaped names; then nothing is loaded.
    """
    check_state(net, tensors, source)
    set_values(dict(net.parameters_and_names()), tensors)


def set_values(
    parameters: Mapping[str, ms.Parameter], tensors: Mapping[str, np.ndarray], in_place: bool = False
) -> None:
    """Set parameters, each in its own dtype, from the tensors of the same names.

    in_place: keep their memory, so that graphs which were compiled with them see it.
    Raises UserError if the checksum of a record in their file is wrong.
    """
    for name, parameter in parameters.items():
        dtype = numpy_dtype(str(parameter.dtype).lower())
        # A copy, as the file's pages are read-only and may not be aligned.
        values = ms.Tensor.from_numpy(np.array(verified(tensors[name]), dtype, order="C"))
        if in_place:
            assign(parameter, values)
        else:
            parameter.set_data(values)
        release_pages(tensors[name])


def check_state(net: nn.Cell, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Compare names, shapes and dtypes with those of a network; raises UserError that lists what differs."""
    wanted = {name: tuple(parameter.shape) for name, parameter in net.parameters_and_names()}
    lists = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "mis-shaped": [
            f"{name} {quoted(tensors[name].shape)} for {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [f"{len(names)} {what} ({_first(names)})" for what, names in lists.items() if names]
    if found:
        raise UserError(
            f"{source} does not fit the network: {'; '.join(found)}; check the options that size the network"
        )
    for name in wanted:
        if dtype_name(tensors[name]) not in DTYPES:
            raise UserError(
                f"{source}: {name} has dtype {dtype_name(tensors[name])}, which no network here has; save it as float32"
            )


def _first(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def read_config(metadata: Mapping[str, str], source: str | Path) -> dict[str, Any]:
    """Return the network's configuration that lies beside weights; raises UserError if there is none, or no JSON."""
    if CONFIG not in metadata:
        raise UserError(f"{source} has no config.json beside its weights; download the whole folder")
    return parse_json(metadata[CONFIG], f"the config.json of {source}")


def sizes_of(
    described: Mapping[str, Any],
    bounds: Mapping[str, tuple[float, float]],
    required: Sequence[str],
    where: str,
    what: str,
) -> dict[str, Any]:
    """Return the sizes in a configuration, which is that of `what`, a network; what is null or not there has a default.

    Raises UserError if a required one is missing, or a number is not within its bounds.
    """
    if missing := [name for name in required if described.get(name) is None]:
        raise UserError(f"{where} lacks {', '.join(missing)}; it is not that of {what}")
    check_numbers(described, bounds, where)
    return {key: described[key] for key in bounds if described.get(key) is not None}


def sizes_beside(
    metadata: Mapping[str, str], bounds: Mapping[str, tuple[float, float]], source: str | Path
) -> dict[str, Any]:
    """Return the configuration that lies beside weights or in their file, if there is one.

    Raises UserError if it is no JSON object, or a number in it is not within its bounds.
    """
    if CONFIG not in metadata:
        return {}
    where = f"the configuration of {source}"
    found = parse_json(metadata[CONFIG], where)
    check_numbers(found, bounds, where)
    return found


def check_elements(count: int, blocks: int, tensors: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Raise UserError if a network of `count` elements in `blocks` is far larger than the weights that shall fill it.

    What a configuration, or the shape of an empty tensor, says about sizes is so compared with what is there before
    memory of these sizes is asked for; names and shapes are compared later.
    """
    if blocks > BLOCKS and len(tensors) < 4 * blocks:  # building these takes seconds
        raise UserError(
            f"{source} has {len(tensors):,} weights, too few for a network of {blocks} blocks; its configuration is "
            "another network's, or weights are missing: download it again"
        )
    held = stored_elements(tensors.values())
    if count > ELEMENTS + FACTOR * held:
        raise UserError(
            f"{source} holds {held:,} elements, but a network of the sizes that it tells has {quoted(f'{count:,}')}; "
            "its configuration is another network's, or weights are missing: download it again"
        )


def shapes_of(
    tensors: Mapping[str, np.ndarray], source: str, what: str, ranks: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors that must be there with these numbers of dimensions.

    Raises UserError, naming the network as `what`, if one is missing, empty, or has another number.
    """
    wrong = [
        key for key, rank in ranks.items() if key not in tensors or tensors[key].ndim != rank or not tensors[key].size
    ]
    if wrong:
        raise UserError(
            f"{source} is not the whole of {what}: {_first(wrong)} missing, empty or not as wide; name another file"
        )
    return {key: tuple(tensors[key].shape) for key in ranks}


def check_asked(found: Mapping[str, Any], asked: Mapping[str, Any], source: str) -> None:
    """Raise UserError unless the fields that are asked for are those of the network found; None asks for nothing."""
    if wrong := [key for key, value in asked.items() if value is not None and value != found.get(key)]:
        has, wants = (", ".join(f"{key} {config.get(key)}" for key in wrong) for config in (found, asked))
        raise UserError(f"{source} holds a network with {has}, but {wants} is asked for; correct the one or the other")


def count_of(keys: Iterable[str], pattern: str) -> int:
    """Return how many different numbers the group of a pattern matches at the beginning of names."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})
