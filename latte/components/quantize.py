"""Weights of int8: what the matrices of blocks become, in files, while they are loaded, and in a loaded network.

A matrix (out, in) becomes integers from -127 to 127 and one float32 scale per row, the row's largest absolute value
divided by 127; an element is off by half a scale at most. Embeddings, norms, tables, biases and the
final layer stay as they are. In files the scales are called `NAME.scale`, beside the int8 `NAME.weight`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.errors import UserError, quoted
from latte.models.block import Block
from latte.models.layers import Linear, set_int8
from latte.models.t5 import Weight
from latte.weights.mapped import release_pages, verified
from latte.weights.match import check_state, set_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Net = TypeVar("Net", bound=nn.Cell)
KINDS = ("int8",)
LARGEST = 127
BIAS_TABLE = "relative_attention_bias"  # of T5: the one table inside a block


def check_kind(kind: str | None) -> str | None:
    """Return the kind of quantization; raises UserError if it is not known."""
    if kind not in (None, *KINDS):
        raise UserError(f"quantize {kind!r} is not known; choose {' or '.join(KINDS)}, or leave it out")
    return kind


def quantized(values: np.ndarray, name: str = "the matrix") -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 values (out, in) and the scales (out,) float32 of a matrix; halves are rounded to even.

    Raises UserError, with the matrix's name, if it has values that are not finite, or a wrong checksum in its file.
    """
    values = np.asarray(verified(values), np.float32)
    largest = np.maximum(values.max(1), -values.min(1))  # (out,), without a copy of the matrix
    if not np.isfinite(largest).all():
        raise UserError(f"{name} has values that are not finite and cannot be quantized; take other weights")
    scale = largest / np.float32(LARGEST)
    scale[scale < np.finfo(np.float32).tiny] = 1  # rows of zeros, or as good as that
    steps = values / scale[:, None]
    np.rint(steps, out=steps)
    return np.clip(steps, -LARGEST, LARGEST, out=steps).astype(np.int8), scale


def matrices(net: nn.Cell) -> dict[str, Linear | Weight]:
    """Return the layers of a network whose weights are quantized, by name: the linear ones of blocks that say so."""
    found = {}
    for prefix, block in net.cells_and_names():
        if isinstance(block, Block) and block.quantizes:
            for name, layer in block.cells_and_names(name_prefix=prefix):
                is_matrix = isinstance(layer, Linear | Weight) and layer.weight.ndim == 2
                if is_matrix and not name.endswith(BIAS_TABLE):
                    found[name] = layer
    return found


def quantize(net: Net) -> Net:
    """Quantize the matrices of a loaded network in place, before its first call, and return it.

    One after another: each float matrix is given back when its int8 one is there.
    Raises UserError if one has values that are not finite.
    """
    for name, layer in matrices(net).items():
        if not layer.quantized:
            set_int8(layer, *quantized(layer.weight.asnumpy(), f"{name}.weight"))
    return net


def empty_int8(net: Net) -> Net:
    """Give a network int8 matrices, in memory that is not touched before they are loaded, and return it."""
    for layer in matrices(net).values():
        set_int8(layer, np.empty(layer.weight.shape, np.int8), np.empty(layer.weight.shape[:1], np.float32))
    return net


def holds_int8(net: nn.Cell) -> bool:
    """Return whether a network was quantized."""
    return any(parameter.dtype == ms.int8 for parameter in net.get_parameters())


def is_quantized(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether weights are those of a quantized network."""
    return any(values.dtype == np.int8 for values in tensors.values())


def quantized_state(
    tensors: Mapping[str, np.ndarray], names: Collection[str], empty: bool = False
) -> dict[str, np.ndarray]:
    """Return weights with the matrices of the layers `names` as int8, each followed by its scales; others stay.

    What is int8 already stays too. With `empty` nothing is computed: the new arrays have shapes only.
    """
    found = {}
    for key, values in tensors.items():
        layer = key.removesuffix(".weight")
        if layer == key or layer not in names or values.dtype == np.int8:
            found[key] = values
        elif empty:
            found[key], found[f"{layer}.scale"] = np.empty(values.shape, np.int8), np.empty(len(values), np.float32)
        else:
            found[key], found[f"{layer}.scale"] = quantized(values, key)
            release_pages(values)
    return found


def check_int8(net: Net, tensors: Mapping[str, np.ndarray], source: str | Path) -> Net:
    """Give an empty network int8 matrices and compare it with quantized weights; return it.

    Raises UserError if names, shapes, or the types of matrices differ.
    """
    layers = matrices(net)
    check_state(empty_int8(net), tensors, str(source))
    wrong = [name for name in layers if tensors[f"{name}.weight"].dtype != np.int8]
    wide = [key for key, values in tensors.items() if values.dtype == np.int8 and key[: -len(".weight")] not in layers]
    if wrong or wide:
        raise UserError(
            f"{source} has {quoted((wrong or wide)[0])} in another type than int8 networks do; convert it again"
        )
    return net


def load_int8(net: Net, tensors: Mapping[str, np.ndarray], source: str | Path) -> Net:
    """Load weights strictly into an empty network with int8 matrices, and return it.

    Float ones are quantized one matrix after another, so that the whole of them is never in memory.
    Raises UserError if they do not fit; then nothing is loaded.
    """
    if is_quantized(tensors):
        set_values(dict(check_int8(net, tensors, source).parameters_and_names()), tensors)
        return net
    check_state(net, tensors, str(source))
    layers = matrices(net)
    for name, layer in layers.items():
        set_int8(layer, *quantized(tensors[f"{name}.weight"], f"{source}: {name}.weight"))
        release_pages(tensors[f"{name}.weight"])
    done = {f"{name}.{part}" for name in layers for part in ("weight", "scale")}
    set_values({name: p for name, p in net.parameters_and_names() if name not in done}, tensors)
    return net
