"""Normalisations; their statistics are always float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import ops

from latte.ops import ascend, cpu, cpu_images
from latte.ops.target import channels_last
from latte.runtime.tensors import mean, on_ascend, on_cpu, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_layer_norm_6 = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-6)


def modulated_norm(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    """Return LayerNorm(x) * (1 + scale) + shift, the adaptive norm of DiT (Peebles and Xie, 2023, section 3.2).

    x (B, F, T, D) of any float dtype; shift, scale (B, D), or (B F, D) where each frame has its own. Returned in the
    dtype of `x`; computed in float32, but on Ascend, where only the norm is, and the modulation of several videos has
    the dtype of `x`.
    """
    norm = _modulated_norm_of(on_cpu(), on_ascend())
    if shift.shape[0] == x.shape[0]:
        return norm(x, shift, scale)
    return norm(_by_frame(x), shift, scale).reshape(x.shape)


def _modulated_norm_of(cpu: bool, ascend: bool) -> Callable:
    """Return one of the next three; see `latte.ops.recompute` on why they are not called here."""
    return _modulated_rows if cpu else _modulated_by_the_norm if ascend else _modulated_tokens


def _modulated_rows(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    shift, scale = shift.astype(ms.float32), scale.astype(ms.float32)
    rows = x.astype(ms.float32).reshape(shift.shape[0], -1, shift.shape[1])
    return cpu.norm_rows(rows, shift, scale)[0].reshape(x.shape).astype(x.dtype)


def _modulated_by_the_norm(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    return ascend.modulated_norm(x, shift.astype(x.dtype), scale.astype(x.dtype))[0]


def _modulated_tokens(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    batch, width = shift.shape
    shift, scale = [each.astype(ms.float32).reshape(batch, 1, 1, width) for each in (shift, scale)]
    one, zero = ops.ones((width,), ms.float32), ops.zeros((width,), ms.float32)
    return (_layer_norm_6(x.astype(ms.float32), one, zero)[0] * (1 + scale) + shift).astype(x.dtype)


def chunk6(modulation: ms.Tensor, dtype: ms.Type) -> Sequence[ms.Tensor]:
    """Return shift, scale and gate of attention and of the MLP, each (B, D), of a modulation (B, 6D).

    `dtype` is that of the tokens; on Ascend it is cast to it here, at once.
    """
    modulation = modulation.astype(dtype) if on_ascend() else modulation
    parts = split(modulation, modulation.shape[1] // 6, 1)
    return ascend.with_gradients(modulation, parts) if on_ascend() else parts


def gated_residual(x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    """Return x + gate * y for x, y (B, F, T, D) and a gate (B, D) or (B F, D), in the dtype of `x`."""
    if gate.shape[0] == x.shape[0]:
        return _gated(x, gate, y)
    return _gated(_by_frame(x), gate, _by_frame(y)).reshape(x.shape)


def _by_frame(x: ms.Tensor) -> ms.Tensor:
    """Return the frames of videos (B, F, T, D) as videos (B F, 1, T, D)."""
    return x.reshape(-1, 1, *x.shape[2:])


def _gated(x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    gate = gate.astype(x.dtype)
    if on_cpu():
        return cpu.gated_rows(x, gate, y)
    if on_ascend():
        return ascend.gated_residual(x, gate, y)
    return x + gate.reshape(gate.shape[0], 1, 1, -1) * y


def rms_norm(x: ms.Tensor, weight: ms.Tensor, eps: float) -> ms.Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, 2019).

    x (..., D) of any float dtype, weight (D,). Computed in float32, returned in the dtype of `x`.
    """
    y = x.astype(ms.float32)
    y = y * ops.rsqrt(mean(ops.square(y), -1, True) + eps)
    return (y * weight.astype(ms.float32)).astype(x.dtype)


def layer_norm(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, eps: float) -> ms.Tensor:
    """Return weight * (x - mean) / sqrt(variance + eps) + bias over the last axis (Ba et al., 2016).

    x (..., D) of any float dtype, weight and bias (D,). Computed in float32, returned in the dtype of `x`.
    """
    y = x.astype(ms.float32)
    y = y - mean(y, -1, True)
    y = y * ops.rsqrt(mean(ops.square(y), -1, True) + eps)
    return (y * weight.astype(ms.float32) + bias.astype(ms.float32)).astype(x.dtype)


def group_norm(
    x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float, joint: bool = False
) -> ms.Tensor:
    """Return the group norm (Wu and He, 2018) of an image in the native layout of `latte.ops.conv`.

    x (N, H, W, C) or (N, C, H, W) of any float dtype, weight and bias (C,). With `joint`, all N images, the frames of a
    video, have one mean and variance per group. Computed in float32, returned as `x`.
    """
    y = x.astype(ms.float32)
    weight, bias = weight.astype(ms.float32), bias.astype(ms.float32)
    if channels_last():
        n, h, w, c = x.shape
        y = y.reshape(1, n * h * w, c) if joint else y.reshape(n, h * w, c)
        scale, shift = cpu_images.group_scale_shift(y, weight, bias, groups, eps)
        return cpu_images.scale_shift(y, scale, shift).reshape(x.shape).astype(x.dtype)
    if on_ascend() and not joint:
        return ascend.group_norm(y, weight, bias, groups, eps).astype(x.dtype)
    n, c = x.shape[0], x.shape[1]
    axes = (0, 2) if joint else -1
    y = y.reshape(n, groups, -1)
    y = y - mean(y, axes, True)
    y = y * ops.rsqrt(mean(ops.square(y), axes, True) + eps)
    y = y.reshape(x.shape) * weight.reshape(1, c, 1, 1) + bias.reshape(1, c, 1, 1)
    return y.astype(x.dtype)
