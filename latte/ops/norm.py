"""Normalisations, always computed in float32."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import ops

from latte.ops.target import CustomGrad, channels_last, on_cpu

_bias_add = ops.BiasAdd()
_tile, _split = ops.Tile(), ops.Split(1, 6)
_batched = ops.BatchMatMul()
_rows_batched = ops.BatchMatMul(transpose_b=True)
_columns_batched = ops.BatchMatMul(transpose_a=True)

_layer_norm_6 = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-6)


def layer_norm(x: ms.Tensor) -> ms.Tensor:
    """Return (x - mean) / sqrt(var + 1e-6) over the last axis, without weights, in float32."""
    width = x.shape[-1]
    one, zero = ops.ones((width,), ms.float32), ops.zeros((width,), ms.float32)
    return _layer_norm_6(x.astype(ms.float32), one, zero)[0]


def modulated_norm(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    """Return LayerNorm(x) * (1 + scale) + shift, the adaptive norm of DiT (Peebles and Xie, 2023, section 3.2).

    x (B, F, T, D) of any float dtype; shift, scale (B, D). Computed in float32, returned in the dtype of `x`.
    """
    norm = _modulated_norm_of(on_cpu())
    return norm(x, shift.astype(ms.float32), scale.astype(ms.float32)).astype(x.dtype)


def _modulated_norm_of(cpu: bool) -> Callable:
    """Return one of the next two; see `latte.models.layers.Recomputed` on why they are not called here."""
    return _modulated_rows if cpu else _modulated_tokens


def _modulated_rows(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    rows = x.astype(ms.float32).reshape(shift.shape[0], -1, shift.shape[1])
    return _cpu_modulated_norm(rows, shift, scale)[0].reshape(x.shape)


def _modulated_tokens(x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    batch, width = shift.shape
    return layer_norm(x) * (1 + scale.reshape(batch, 1, 1, width)) + shift.reshape(batch, 1, 1, width)


class _CpuModulatedNorm(CustomGrad):
    """The adaptive norm of x (B, R, D) and its gradient, as matrix products and passes over equal shapes.

    The kernel of LayerNorm takes twice as long and that of its gradient four times, and every operation that broadcasts
    keeps two tables of indices, four times as large as its result, for ever: so columns and rows are multiplied out.
    """

    def construct(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> tuple[ms.Tensor, ...]:
        batch, rows, width = x.shape
        sums, row = ops.ones((batch, width, 1), ms.float32), ops.ones((batch, 1, width), ms.float32)
        mean = _batched(x, sums) / width  # (B, R, 1)
        centered = x - _batched(mean, row)
        var = _batched(centered * centered, sums) / width
        y = centered * _batched(ops.rsqrt(var + 1e-6), (1 + scale).reshape(batch, 1, width))
        if batch == 1:
            return _bias_add(y.reshape(rows, width), shift.reshape(width)).reshape(x.shape), mean, var
        return y + repeat_rows(shift, rows), mean, var

    def bprop(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor, out: tuple, d: tuple) -> tuple:
        batch, rows, width = x.shape
        dy, mean, var = d[0], out[1], out[2]
        r = ops.rsqrt(var + 1e-6)  # (B, R, 1)
        gamma, product = (1 + scale).reshape(batch, 1, width), dy * x
        mean_g = _rows_batched(dy, gamma) / width  # (B, R, 1), of g = gamma dy
        mean_gx = r * (_rows_batched(product, gamma) / width - mean * mean_g)  # of g times the normed x
        of_x = r * r * mean_gx
        constant = r * mean_g - of_x * mean
        ones = ops.ones((batch, 1, width), ms.float32)
        dx = dy * _batched(r, gamma) - x * _batched(of_x, ones) - _batched(constant, ones)
        shifted = r * mean
        dscale = _columns_batched(product, r) - _columns_batched(dy, shifted)  # (B, D, 1)
        dshift = _columns_batched(dy, ops.ones((batch, rows, 1), ms.float32))
        return dx, dshift.reshape(batch, width), dscale.reshape(batch, width)


_cpu_modulated_norm = _CpuModulatedNorm()


def chunk6(modulation: ms.Tensor) -> tuple[ms.Tensor, ...]:
    """Return shift, scale and gate of attention and of the MLP, each (B, D), of a modulation (B, 6D)."""
    return _split(modulation)


def gated_residual(x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    """Return x + gate * y for x, y (B, F, T, D) and a gate (B, D), in the dtype of `x`."""
    gate = gate.astype(x.dtype)
    if on_cpu():
        return _cpu_gated(x, gate, y)
    return x + gate.reshape(gate.shape[0], 1, 1, -1) * y


class _CpuGated(CustomGrad):
    """x + gate * y without broadcasting."""

    def construct(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
        b, f, t, d = x.shape
        return x + y * repeat_rows(gate, f * t).reshape(b, f, t, d)

    def bprop(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        batch, f, t, width = x.shape
        ones = ops.ones((batch, f * t, 1), x.dtype)
        dgate = _columns_batched((d * y).reshape(batch, f * t, width), ones).reshape(batch, width)
        return d, dgate, d * repeat_rows(gate, f * t).reshape(d.shape)


_cpu_gated = _CpuGated()


def repeat_rows(row: ms.Tensor, count: int) -> ms.Tensor:
    """Return (B, count, D) of a row (B, D) each."""
    return _tile(row.reshape(row.shape[0], 1, row.shape[1]), (1, count, 1))


def rms_norm(x: ms.Tensor, weight: ms.Tensor, eps: float) -> ms.Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, 2019).

    x (..., D) of any float dtype, weight (D,). Computed in float32, returned in the dtype of `x`.
    """
    y = x.astype(ms.float32)
    y = y * ops.rsqrt(ops.square(y).mean(-1, keep_dims=True) + eps)
    return (y * weight.astype(ms.float32)).astype(x.dtype)


def group_norm(
    x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float, joint: bool = False
) -> ms.Tensor:
    """Return the group norm (Wu and He, 2018) of an image in the native layout of `latte.ops.conv`.

    x (N, H, W, C) or (N, C, H, W) of any float dtype, weight and bias (C,). With `joint`, all N images, the frames of a
    video, have one mean and variance a group. Computed in float32, returned as `x`.
    """
    y = x.astype(ms.float32)
    weight, bias = weight.astype(ms.float32), bias.astype(ms.float32)
    if channels_last():
        n, h, w, c = x.shape
        y = y.reshape(1, n * h, w, c) if joint else y
        return _group_norm_nhwc(y, weight, bias, groups, eps).reshape(x.shape).astype(x.dtype)
    n, c = x.shape[0], x.shape[1]
    axes = (0, 2) if joint else -1
    y = y.reshape(n, groups, -1)
    y = y - y.mean(axes, keep_dims=True)
    y = y * ops.rsqrt(ops.square(y).mean(axes, keep_dims=True) + eps)
    y = y.reshape(x.shape) * weight.reshape(1, c, 1, 1) + bias.reshape(1, c, 1, 1)
    return y.astype(x.dtype)


def _group_norm_nhwc(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float) -> ms.Tensor:
    """Group norm with the channels last, the sums over pixels as matrix products: 3.5 times faster on CPU.

    The variance of a group is the mean of its channels' variances plus the variance of their means.
    """
    n, h, w, c = x.shape
    y = x.reshape(n, h * w, c)
    ones = ops.ones((n, 1, h * w), ms.float32)
    mean = _batched(ones, y) / (h * w)  # (N, 1, C)
    y = _plus(y, -mean)
    var = (_batched(ones, y * y) / (h * w)).reshape(n, groups, c // groups)
    mean = mean.reshape(n, groups, c // groups)
    offset = mean - mean.mean(2, keep_dims=True)  # of each channel from its group
    group_var = (var + ops.square(offset)).mean(2, keep_dims=True)
    scale = weight.reshape(groups, c // groups) * ops.rsqrt(group_var + eps)  # (N, groups, C / groups)
    shift = bias.reshape(groups, c // groups) + offset * scale
    return _plus(y * scale.reshape(n, 1, c), shift.reshape(n, 1, c)).reshape(n, h, w, c)


def _plus(x: ms.Tensor, row: ms.Tensor) -> ms.Tensor:
    """Return x (N, P, C) plus a row (N, 1, C) for each image; for a single image the CPU has a fast kernel."""
    if x.shape[0] > 1:
        return x + row
    return _bias_add(x.reshape(x.shape[1], x.shape[2]), row.reshape(x.shape[2])).reshape(x.shape)
