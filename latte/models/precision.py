"""What a network's weights become before it computes: their dtype, and heads as wide as the fused kernel wants them."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.models.layers import parameter

HEAD_MULTIPLE = 16  # the fused attention kernel takes head widths that are multiples of this


def prepare(net: nn.Cell, dtype: ms.Type) -> nn.Cell:
    """Make a Latte whose weights are complete ready to compute in `dtype`, and return it.

    The blocks' weights are kept in `dtype`; embeddings and the final layer stay float32. For the fused attention
    kernel the heads are widened with zero weights, which change no result and get no gradient.
    """
    net.dtype = dtype
    for block in net.blocks:
        if net.flash:
            pad_heads(block.attn, net.config.num_heads)
        for weight in block.get_parameters():
            weight.set_dtype(dtype)
    return net


def pad_heads(attn: nn.Cell, heads: int) -> None:
    """Widen the heads of an attention layer with zeros to the next width that the fused kernel takes (72 to 80)."""
    width = attn.proj.weight.shape[1] // heads
    extra = -width % HEAD_MULTIPLE
    if not extra:
        return
    qkv, bias, proj = (p.asnumpy() for p in (attn.qkv.weight, attn.qkv.bias, attn.proj.weight))
    after = ((0, 0), (0, 0), (0, extra))
    qkv = np.pad(qkv.reshape(3, heads, width, -1), (*after, (0, 0)))  # (3, heads, 80, D)
    bias = np.pad(bias.reshape(3, heads, width), after)  # (3, heads, 80)
    proj = np.pad(proj.reshape(-1, heads, width), after)  # (D, heads, 80)
    _replace(attn.qkv, "weight", qkv.reshape(-1, qkv.shape[-1]))
    _replace(attn.qkv, "bias", bias.reshape(-1))
    _replace(attn.proj, "weight", proj.reshape(proj.shape[0], -1))


def _replace(layer: nn.Cell, attribute: str, values: np.ndarray) -> None:
    name = getattr(layer, attribute).name
    new = parameter(values)
    new.name = name
    setattr(layer, attribute, new)
