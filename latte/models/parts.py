"""The blocks of a denoiser in parts, for samplings that compute an attention in some steps and use it again in others.

What is kept of an attention is its output before the gate, (B, F, T, D), or this rank's part of it. With nothing kept,
the parts compute what the blocks themselves do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.ops import (
    attention,
    chunk6,
    gated_residual,
    gelu,
    linear,
    modulated_norm,
    self_attention,
    to_frames,
    to_patches,
)
from latte.runtime import device, graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import mindspore as ms

    from latte.models.block import Pair
    from latte.models.latte import Latte
    from latte.models.latte_t2v import LatteT2V

SPATIAL, TEMPORAL, CROSS = "spatial", "temporal", "cross"  # attention over patches, over frames, to the text


def attended(
    x: ms.Tensor, modulation: ms.Tensor, qkv: tuple, proj: Pair, heads: int, temporal: bool, flash: bool, rotary: bool
) -> ms.Tensor:
    """Return what self-attention makes of the normed tokens: x (B, F, T, D), modulation (B, 6D) -> (B, F, T, D)."""
    parts = chunk6(modulation, x.dtype)  # (B, D)
    y = modulated_norm(x, parts[0], parts[1])
    return self_attention(y, qkv, proj, heads, (x.shape[-1] // heads) ** -0.5, temporal, flash, False, rotary)


def text_attended(
    x: ms.Tensor,
    y: ms.Tensor,
    modulation: ms.Tensor,
    text: ms.Tensor,
    text_bias: ms.Tensor,
    cross: tuple,
    heads: int,
    flash: bool,
) -> ms.Tensor:
    """Return what attention to the text adds after self-attention has made y of the tokens x, both (B, F, T, D).

    text (B, S, D), text_bias (B, 1, 1, S); `cross` are (weight, bias) of q, k, v and out.
    """
    b, f, t, width = x.shape
    x = gated_residual(x, chunk6(modulation, x.dtype)[2], y)
    q = linear(x, *cross[0]).reshape(b, f * t, -1)  # (B, F T, D)
    k, v = linear(text, *cross[1]), linear(text, *cross[2])  # (B, S, D)
    z = attention(q, k, v, heads, (width // heads) ** -0.5, flash, text_bias)
    return linear(z.reshape(b, f, t, -1), *cross[3])


def joined(x: ms.Tensor, y: ms.Tensor, z: ms.Tensor | None, modulation: ms.Tensor, fc1: Pair, fc2: Pair) -> ms.Tensor:
    """Return the tokens after a block whose attentions are y and z, all (B, F, T, D): their sum, then the MLP."""
    _, _, gate_attn, shift_mlp, scale_mlp, gate_mlp = chunk6(modulation, x.dtype)  # (B, D)
    x = gated_residual(x, gate_attn, y)
    x = x if z is None else x + z
    y = modulated_norm(x, shift_mlp, scale_mlp)
    return gated_residual(x, gate_mlp, linear(gelu(linear(y, *fc1)), *fc2))


def count_kept(net: Latte | LatteT2V, frames: int) -> int:
    """Return how many attentions run in all blocks for videos of so many frames."""
    spatial = (len(net.blocks) + 1) // 2
    return spatial * (2 if net.reads_text else 1) + (len(net.blocks) // 2 if net.attends_over_frames(frames) else 0)


def run_in_parts(
    net: Latte | LatteT2V, x: ms.Tensor, c: tuple, kept: Sequence[ms.Tensor], computed: Sequence[str], call: Callable
) -> tuple[ms.Tensor, tuple[ms.Tensor, ...]]:
    """Return the tokens (B, F, T, D) after all blocks, and the output of each attention in the order of use.

    x, c: what `embed` returns. kept: what an earlier step returned; attentions whose kind is not in `computed` are
    taken from it. call: `caller()`, asked for outside of what is compiled.
    """
    frames, patches = c[-1][1], x.shape[2]
    over_frames = net.attends_over_frames(frames)
    new: tuple = ()  # plain tuples and numbers: MindSpore compiles this function too
    for i in range(len(net.blocks)):
        block = net.blocks[i]
        temporal = block.temporal
        if over_frames or not temporal:
            if i == net.first_over_frames and over_frames:
                x = net.with_frames(x, frames)
            x = to_patches(x, frames) if temporal else x
            modulation, weights, cross, mlp, text = net.parts_of(i, c)
            heads, _, flash, _, rotary = block.settings()
            y = kept[len(new)] if len(kept) > 0 else None
            if (TEMPORAL if temporal else SPATIAL) in computed:
                settings, axis = (heads, temporal, flash, rotary), block.axis_for((x, modulation))
                y = call(attended, (x, modulation), weights, settings, axis)
            new = (*new, y)
            z = None
            if cross is not None:
                z = kept[len(new)] if len(kept) > 0 else None
                if CROSS in computed:
                    z = call(text_attended, (x, y, modulation, *text), (cross,), (heads, flash), None)
                new = (*new, z)
            x = call(joined, (x, y, z, modulation), mlp, (), None)
            x = to_frames(x, patches) if temporal else x
    return x, new


def caller() -> Callable:
    """Return how parts are called: each a compiled graph of its own, or as part of a surrounding one."""
    return graphs.call_block if device.current().compile_scope == "block" else _inside


def _inside(function: Callable, inputs: tuple, weights: tuple, settings: tuple, axis: int | None) -> ms.Tensor:
    return function(*inputs, *weights, *settings)
