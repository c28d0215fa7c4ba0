"""What a network's weights become before it computes: their dtype, and heads as wide as the fused kernel wants them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.models.layers import Linear, parameter
from latte.weights.mapped import verified

if TYPE_CHECKING:
    from latte.models.block import Block

HEAD_MULTIPLE = 16  # the fused attention kernel takes head widths that are multiples of this
JOINT = re.compile(r"attn\.qkv\.(weight|bias)$")  # q, k and v one after the other, each by heads
BY_HEADS = re.compile(r"attn[12]\.to_[qkv]\.(weight|bias|scale|lora_up)$")
FROM_HEADS = re.compile(r"(attn\.proj\.weight|attn[12]\.to_out\.0\.(weight|lora_down))$")
FLOAT32 = ("scale_shift_table", ".scale")  # added to the modulation, which is float32; the scales of int8 weights


def prepare(net: nn.Cell, for_training: bool = False) -> nn.Cell:
    """Make a Latte whose weights are complete ready to compute in `net.dtype`, and return it.

    The blocks' weights are kept in that dtype, but for training in float32, and cast where they are used; embeddings
    and the final layer stay float32, int8 matrices int8. For the fused attention kernel the heads are widened with zero
    weights, which change no result and get no gradient.
    """
    for block in net.blocks:
        if net.flash:
            pad_block(block, net.config.attention_heads)
        for weight in block.get_parameters():
            if weight.dtype == ms.int8:
                continue
            weight.set_dtype(ms.float32 if for_training or weight.name.endswith(FLOAT32) else net.dtype)
    net.prepared = True
    return net


def set_trained_dtype(net: nn.Cell) -> None:
    """Keep those weights of blocks that are trained in the dtype that they are multiplied in, `net.dtype`."""
    for block in net.blocks:
        for weight in block.get_parameters():
            if weight.requires_grad and not weight.name.endswith(FLOAT32):
                weight.set_dtype(net.dtype)


def pad_block(block: Block, heads: int) -> None:
    """Widen the heads of attention with zeros to the next width that the fused kernel takes (72 to 80)."""
    for name, layer in block.cells_and_names():
        for attribute, old in list(layer.parameters_and_names(expand=False)) if isinstance(layer, Linear) else ():
            values = pad_heads(f"{name}.{attribute}", old.asnumpy(), heads)
            if values.shape != old.shape:
                new = parameter(values, old.requires_grad)
                new.name = old.name
                setattr(layer, attribute, new)


def pad_heads(name: str, values: np.ndarray, heads: int) -> np.ndarray:
    """Return a weight with the zeros that its heads need for the fused kernel; other weights stay as they are.

    Weights (parts * heads * width, D) and biases of q, k and v get rows, the output's (D, heads * width) gets columns.
    """
    values = verified(values)
    if parts := _parts(name):
        by_heads, rest = values.reshape(parts, heads, -1, *values.shape[1:]), values.shape[1:]
        extra = -by_heads.shape[2] % HEAD_MULTIPLE
        return np.pad(by_heads, ((0, 0), (0, 0), (0, extra), *((0, 0) for _ in rest))).reshape(-1, *rest)
    if FROM_HEADS.search(name):
        by_heads = values.reshape(values.shape[0], heads, -1)
        return np.pad(by_heads, ((0, 0), (0, 0), (0, -by_heads.shape[2] % HEAD_MULTIPLE))).reshape(len(values), -1)
    return values


def unpad_heads(name: str, values: np.ndarray, heads: int, width: int) -> np.ndarray:
    """Return a weight without the zeros that `pad_heads` gave it: the heads have `width` again."""
    if parts := _parts(name):
        rest = values.shape[1:]
        return values.reshape(parts, heads, -1, *rest)[:, :, :width].reshape(-1, *rest)
    if FROM_HEADS.search(name):
        return values.reshape(values.shape[0], heads, -1)[:, :, :width].reshape(values.shape[0], -1)
    return values


def _parts(name: str) -> int:
    """Return how many matrices are above each other in a weight whose rows belong to heads, 0 if they do not."""
    return 3 if JOINT.search(name) else 1 if BY_HEADS.search(name) else 0
