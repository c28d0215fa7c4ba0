"""Attention, convolution, norms and activations: one function each, the fastest form for the device in use."""

from latte.ops.activation import gelu, quick_gelu, silu
from latte.ops.attention import attention, self_attention
from latte.ops.conv import (
    conv2d,
    conv_frames,
    from_nchw,
    norm_conv,
    patch_projection,
    to_nchw,
    upsample_conv,
    upsample_nearest,
)
from latte.ops.conv3d import conv3d, max_pool3d
from latte.ops.exchange import (
    exchange,
    first_videos,
    join_parts,
    join_videos,
    own_part,
    share_videos,
    to_frames,
    to_patches,
)
from latte.ops.linear import linear, lookup, sum_of_squares
from latte.ops.norm import chunk6, gated_residual, group_norm, layer_norm, modulated_norm, rms_norm
from latte.ops.optimizer import adam, adam_step, move_towards
from latte.ops.shared_weights import begun, ended, on_tokens, once_there, row_length
from latte.runtime.tensors import CustomGrad

__all__ = [
    "CustomGrad",
    "adam",
    "adam_step",
    "attention",
    "begun",
    "chunk6",
    "conv2d",
    "conv3d",
    "conv_frames",
    "ended",
    "exchange",
    "first_videos",
    "from_nchw",
    "gated_residual",
    "gelu",
    "group_norm",
    "join_parts",
    "join_videos",
    "layer_norm",
    "linear",
    "lookup",
    "max_pool3d",
    "modulated_norm",
    "move_towards",
    "norm_conv",
    "on_tokens",
    "once_there",
    "own_part",
    "patch_projection",
    "quick_gelu",
    "rms_norm",
    "row_length",
    "self_attention",
    "share_videos",
    "silu",
    "sum_of_squares",
    "to_frames",
    "to_nchw",
    "to_patches",
    "upsample_conv",
    "upsample_nearest",
]
