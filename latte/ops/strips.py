"""Convolutions of whole images on a CPU, called from Python: each strip goes through one small compiled graph.

A graph keeps what it computed, so that one with all strips of an image keeps all of them; and it is compiled once per
strip. Here one strip is in memory, beside the image that it is of and the one that it becomes. There are no gradients.
Images are (N, H, W, C), as in `latte.ops.cpu_images`, which has the graphs' content.
"""

from __future__ import annotations

import functools
import threading

import mindspore as ms
import numpy as np

from latte.ops import cpu_images
from latte.runtime import graphs

STRIP = 1 << 20  # elements of a strip: 4 MB, and of its tiles 16 MB; a call of a graph takes about 1 ms
MEASURED = 1 << 18  # elements whose moments are taken at once, of which the caches hold two

_buffers = threading.local()

Pair = tuple[ms.Tensor, ms.Tensor]


def conv2d(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int = 1) -> ms.Tensor:
    """Return what `latte.ops.conv2d` does."""
    if weight.shape[2] == 1:
        return ms.Tensor.from_numpy(_mixed(x.asnumpy(), weight.asnumpy(), bias.asnumpy()))
    return ms.Tensor.from_numpy(_convolve(x, weight, bias, stride=stride))


def upsample_conv(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return what `latte.ops.upsample_conv` does."""
    if cpu_images.form_of(x.shape[3], x.dtype) != "taps":
        return ms.Tensor.from_numpy(_convolve(x, weight, bias, form="double"))
    return conv2d(cpu_images.upsample(x), weight, bias)


def norm_conv(x: ms.Tensor, norm: Pair, conv: Pair, groups: int, eps: float) -> ms.Tensor:
    """Return what `latte.ops.norm_conv` does."""
    return ms.Tensor.from_numpy(_convolve(x, *conv, norm=_scale_shift(x, *norm, groups, eps)))


def resnet_block(
    x: ms.Tensor, norm1: Pair, conv1: Pair, norm2: Pair, conv2: Pair, shortcut: Pair | None, groups: int, eps: float
) -> ms.Tensor:
    """Return x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution of x where the channels change."""
    y = norm_conv(x, norm1, conv1, groups, eps)
    in_place, rest = shortcut is not None, x.asnumpy()
    if shortcut is not None:
        rest = _mixed(rest, *(each.asnumpy() for each in shortcut))
    norm = _scale_shift(y, *norm2, groups, eps)
    return ms.Tensor.from_numpy(_convolve(y, *conv2, norm=norm, rest=rest, in_place=in_place))


def _mixed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the 1 x 1 convolution of (N, H, W, C)."""
    y = x @ weight.reshape(weight.shape[:2]).T.astype(x.dtype)
    y += bias.astype(x.dtype)
    return y


def _convolve(
    x: ms.Tensor,
    weight: ms.Tensor,
    bias: ms.Tensor,
    form: str = "same",
    stride: int = 1,
    norm: tuple[np.ndarray, np.ndarray] | None = None,
    rest: np.ndarray | None = None,
    in_place: bool = False,
) -> np.ndarray:
    """Convolve (N, H, W, C) with a kernel (out, C, k, k), and add `rest`, where there is one, perhaps in place.

    norm is scale and shift (N, C) of the norm before SiLU, which comes before the convolution.
    """
    n, h, w, c = x.shape
    out, times = weight.shape[0], 2 if form == "double" else 1
    form = cpu_images.form_of(c, x.dtype, form) if stride == 1 else "taps"
    rows, kernel = x.asnumpy().reshape(n * h * w, c), cpu_images.kernel_array(weight.asnumpy(), form)
    given = (_kept("kernel", kernel), ms.Tensor(bias), form)
    del kernel
    shape = n, h * times // stride, w * times // stride, out
    y = np.empty(shape, rows.dtype) if rest is None or not in_place else rest
    pixels, added = y.reshape(-1, out), None if rest is None else rest.reshape(-1, out)
    for image, a, b, index, found, start, stop in _plan(form, x.shape, stride):
        scale, shift = (None, None) if norm is None else (ms.Tensor(each[image]) for each in norm)
        strip = graphs.shared(_strip)(_kept("strip", rows[a:b]), index, found, scale, shift, *given).asnumpy()
        if added is None:
            pixels[start:stop] = strip
        else:
            np.add(strip, added[start:stop], out=pixels[start:stop])
    return y


def _kept(name: str, array: np.ndarray) -> ms.Tensor:
    """Return a copy, in memory that the next of this name takes: a graph keeps what it was last called with."""
    buffer = getattr(_buffers, name, None)
    if buffer is None or buffer.size < array.size or buffer.dtype != array.dtype:
        buffer = np.empty(array.size, array.dtype)
        setattr(_buffers, name, buffer)
    copy = buffer[: array.size].reshape(array.shape)
    copy[...] = array
    return ms.Tensor.from_numpy(copy)


def _strip(
    s: ms.Tensor,
    index: ms.Tensor,
    found: ms.Tensor | None,
    scale: ms.Tensor | None,
    shift: ms.Tensor | None,
    kernel: ms.Tensor,
    bias: ms.Tensor,
    form: str,
) -> ms.Tensor:
    """Return the pixels (pixels, out) of a strip (pixels, C), perhaps with norm and SiLU before the convolution."""
    if scale is not None:
        s = cpu_images.activated(s, scale, shift)
    return cpu_images.convolved(cpu_images.with_zeros(s), index, found, kernel, bias, form)


@functools.lru_cache(maxsize=64)
def _plan(form: str, shape: tuple[int, ...], stride: int) -> tuple[tuple, ...]:
    """Return what `cpu_images.tile_plan` or `tap_plan` does; strips that find their pixels alike have one tensor."""
    if form == "taps":
        plan = cpu_images.tap_plan(shape, stride, strip=STRIP)
    else:
        plan = cpu_images.tile_plan(form, shape, STRIP)
    tables: dict[bytes, ms.Tensor] = {}

    def shared(table: ms.Tensor | None) -> ms.Tensor | None:
        return None if table is None else tables.setdefault(table.asnumpy().tobytes(), table)

    return tuple((image, a, b, shared(index), shared(found), *span) for image, a, b, index, found, *span in plan)


def _scale_shift(
    x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and shift (N, C) for which x * scale + shift is the group norm of x (N, H, W, C).

    Moments of parts are put together as in `cpu_images.Moments`, and those of channels to those of groups.
    """
    n, h, w, c = x.shape
    scale, shift = np.empty((n, groups, c // groups)), np.empty((n, groups, c // groups))
    weight, bias = weight.asnumpy().reshape(groups, -1), bias.asnumpy().reshape(groups, -1)
    spans = cpu_images.spans(h * w, 1, h * w * c, MEASURED)
    count = np.array([[b - a] for a, b in spans]) / (h * w)  # (parts, 1)
    for i, image in enumerate(x.asnumpy().reshape(n, h * w, c)):
        means, squares = np.empty((len(spans), c)), np.empty((len(spans), c))
        for part, (a, b) in enumerate(spans):
            means[part] = image[a:b].mean(0, dtype=np.float32)
            left = image[a:b] - means[part].astype(np.float32)
            squares[part] = np.einsum("pc,pc->c", left, left) / (b - a)
        mean = (count * means).sum(0)  # (C,)
        variance = (count * (squares + (means - mean) ** 2)).sum(0)
        mean, variance = mean.reshape(groups, -1), variance.reshape(groups, -1)
        of_group = mean.mean(1, keepdims=True)
        variance = (variance + (mean - of_group) ** 2).mean(1, keepdims=True)
        scale[i] = weight / np.sqrt(variance + eps)
        shift[i] = bias - of_group * scale[i]
    return scale.reshape(n, c).astype(np.float32), shift.reshape(n, c).astype(np.float32)
