"""What a network's weights become before it computes: their dtype, and heads as wide as the fused kernel wants them."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.models.layers import parameter

HEAD_MULTIPLE = 16  # the fused attention kernel takes head widths that are multiples of this


def prepare(net: nn.Cell, for_training: bool = False) -> nn.Cell:
    """Make a Latte whose weights are complete ready to compute in `net.dtype`, and return it.

    The blocks' weights are kept in that dtype, but for training in float32, and cast where they are used; embeddings
    and the final layer stay float32. For the fused attention kernel the heads are widened with zero weights, which
    change no result and get no gradient.
    """
    for block in net.blocks:
        if net.flash:
            pad_heads(block.attn, net.config.num_heads)
        for weight in block.get_parameters():
            weight.set_dtype(ms.float32 if for_training else net.dtype)
    net.prepared = True
    return net


def pad_heads(attn: nn.Cell, heads: int) -> None:
    """Widen the heads of an attention layer with zeros to the next width that the fused kernel takes (72 to 80)."""
    for layer, kind in ((attn.qkv, "qkv"), (attn.proj, "proj")):
        for attribute in ("weight", "bias"):
            old = getattr(layer, attribute)
            values = widened(f"attn.{kind}.{attribute}", old.asnumpy(), heads)
            if values.shape != old.shape:
                new = parameter(values)
                new.name = old.name
                setattr(layer, attribute, new)


def widened(name: str, values: np.ndarray, heads: int) -> np.ndarray:
    """Return a weight with the zeros that its heads need for the fused kernel; other weights stay as they are.

    attn.qkv.weight (3 * heads * width, D) and bias get rows, attn.proj.weight (D, heads * width) gets columns.
    """
    if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
        parts, rest = values.reshape(3, heads, -1, *values.shape[1:]), values.shape[1:]
        extra = -parts.shape[2] % HEAD_MULTIPLE
        return np.pad(parts, ((0, 0), (0, 0), (0, extra), *((0, 0) for _ in rest))).reshape(-1, *rest)
    if name.endswith("attn.proj.weight"):
        parts = values.reshape(values.shape[0], heads, -1)
        return np.pad(parts, ((0, 0), (0, 0), (0, -parts.shape[2] % HEAD_MULTIPLE))).reshape(values.shape[0], -1)
    return values


def narrowed(name: str, values: np.ndarray, heads: int, width: int) -> np.ndarray:
    """Return a weight without the zeros that `widened` gave it: the heads have `width` again."""
    if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
        rest = values.shape[1:]
        return values.reshape(3, heads, -1, *rest)[:, :, :width].reshape(-1, *rest)
    if name.endswith("attn.proj.weight"):
        return values.reshape(values.shape[0], heads, -1)[:, :, :width].reshape(values.shape[0], -1)
    return values
