"""Convolutions and norms of images on a CPU as matrix products, a strip of rows at a time.

MindSpore's own convolution runs at 1 % of the machine's speed on CPUs with AVX-512. And everything between products is
a pass over memory, so that what belongs together is done to a strip of the image: norm, activation, convolution.
Images are (N, H, W, C); gathering rows of C numbers pads them, cuts them into tiles and puts tiles together.

A 3 x 3 convolution is the minimal filtering of Winograd (Lavin and Gray, 2016, F(2 x 2, 3 x 3)): 16 products for 4
pixels in place of 36. Behind an upsampling whose pixels are repeated, 7 of the 16 are zero. In bfloat16 its differences
of pixels would lose digits; there, and with few channels or a stride, the pixels around each one are multiplied out.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.primitive import constexpr

from latte.ops.cpu import column_sums, repeat_rows
from latte.runtime import device
from latte.runtime.tensors import CustomGrad

STRIP = 1 << 21  # elements of a strip: 8 MB, of which the last caches hold some
STRIPS = 8  # at most, as a graph takes time and memory to compile; larger images have larger strips
FEW_CHANNELS = 16
FAR = -(1 << 20)  # a row or column far outside of an image

_bias_add, _times, _matmul = ops.BiasAdd(), ops.MatMul(), ops.MatMul(transpose_b=True)
_transposed_times = ops.MatMul(transpose_a=True)
_batched, _rows_batched = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
_gather, _tile, _join = ops.Gather(), ops.Tile(), ops.Concat(0)
_after = ops.Depend()  # x, once something else is there: strips that ran side by side would all be in memory
_cut = ops.Slice()

# Per form, in one dimension: the matrices of the kernel, of the pixels and of their products; pixels between tiles.
_FORMS: dict[str, tuple[list[list[Any]], ...]] = {
    "same": (
        [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    "double": ([[1, 0, 0], [1, 1, 1], [0, 0, 1]], [[1, -1, 0], [0, 1, 0], [0, 1, -1]], [[1, 1, 0], [0, 1, -1]]),
}
_STEPS = {"same": 2, "double": 1}


@constexpr
def _matrices(form: str) -> tuple[ms.Tensor, ...]:
    """Return the three matrices of a form in two dimensions."""
    return tuple(ms.Tensor(np.kron(matrix, matrix).astype(np.float32)) for matrix in _FORMS[form])


@constexpr
def _turned(form: str) -> ms.Tensor:
    """Return the matrix for a kernel that is turned by 180 degrees."""
    return ms.Tensor(np.kron(_FORMS[form][0], _FORMS[form][0]).astype(np.float32)[:, ::-1].copy())


@constexpr
def _form_of(channels: int, dtype: ms.Type, wanted: str) -> str:
    return form_of(channels, dtype, wanted)


def form_of(channels: int, dtype: ms.Type, wanted: str = "same") -> str:
    """Return the form of a convolution of so many channels: Winograd's that is wanted, or "taps".

    Winograd's is too rough in halves.
    """
    bfloat16 = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE") == "BF16" and device.multiplies_in_bfloat16()
    return wanted if channels >= FEW_CHANNELS and dtype == ms.float32 and not bfloat16 else "taps"


def spans(count: int, images: int, elements: int, size: int = 0) -> list[tuple[int, int]]:
    """Return parts of `count` rows of one of several images, for an image of so many elements.

    They have `size` elements, or are those of a graph, which has all of them in it.
    """
    return even_spans(count, max(min(elements // size if size else min(elements // STRIP, STRIPS // images), count), 1))


def even_spans(count: int, parts: int) -> list[tuple[int, int]]:
    """Return where each of so many parts of `count` begins and ends; their lengths differ by one at most."""
    return list(itertools.pairwise(count * i // parts for i in range(parts + 1)))


def _table(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> tuple[int, int, np.ndarray]:
    """Return first and last + 1 of the pixels that a strip needs, and where it finds them; zeros come behind them.

    Strips of as many rows need as many pixels, at the edges too, so that one graph serves for all of them.
    """
    inside = rows[rows > FAR]
    count = min(int(inside.max()) + 1 - int(inside.min()), height)
    start = min(max(int(inside.min()), 0), height - count)
    first, last = start * width, (start + count) * width
    there = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return first, last, np.where(there, rows * width + columns - first, last - first)


def _index(values: np.ndarray) -> ms.Tensor:
    return ms.Tensor(values.reshape(-1).astype(np.int32))


@constexpr
def _tile_plan(form: str, shape: tuple[int, ...]) -> tuple[tuple, ...]:
    return tile_plan(form, shape)


def tile_plan(form: str, shape: tuple[int, ...], strip: int = 0) -> tuple[tuple, ...]:
    """Return for each strip its image, the pixels it needs, where its tiles find these, where its pixels are found.

    The last two are the span of its pixels.
    """
    n, h, w, c = shape
    step, size = _STEPS[form], len(_FORMS[form][0])
    height, width = 2 * h // step, 2 * w // step
    down, across = -(-height // 2), -(-width // 2)  # tiles
    plan = []
    for image in range(n):
        for start, stop in spans(down, n, height * width * c, strip):
            k = np.arange(size)
            rows = step * np.arange(start, stop)[None, None, :, None] - 1 + k[:, None, None, None]
            columns = step * np.arange(across)[None, None, None, :] - 1 + k[None, :, None, None]
            first, last, index = _table(rows, columns, h, w)
            end = min(2 * stop, height)
            y, x = np.arange(end - 2 * start)[:, None], np.arange(width)[None]
            found = ((y % 2) * 2 + x % 2) * (stop - start) * across + y // 2 * across + x // 2
            at, to = image * h * w, image * height * width
            edges = to + 2 * start * width, to + end * width
            plan.append((image, at + first, at + last, _index(index), _index(found), *edges))
    return tuple(plan)


@constexpr
def _tap_plan(shape: tuple[int, ...], stride: int, inverse: bool = False) -> tuple[tuple, ...]:
    return tap_plan(shape, stride, inverse)


def tap_plan(shape: tuple[int, ...], stride: int, inverse: bool = False, strip: int = 0) -> tuple[tuple, ...]:
    """Return for each strip its image, the pixels it needs, where these find their 9, None, and their span.

    With `inverse` the images of this shape are convolved ones, and the strips of those that were.
    """
    n, h, w, c = shape
    height, width = (h * stride, w * stride) if inverse else (h // stride, w // stride)
    padding = 1 if stride == 1 else 0
    plan = []
    for image in range(n):
        for start, stop in spans(height, n, h * w * c, strip):
            y, x = np.arange(start, stop)[:, None, None, None], np.arange(width)[None, :, None, None]
            i, j = np.arange(3)[None, None, :, None], np.arange(3)[None, None, None, :]
            rows = _before(y + padding, i, stride) if inverse else y * stride + i - padding
            columns = _before(x + padding, j, stride) if inverse else x * stride + j - padding
            first, last, index = _table(rows, columns, h, w)
            at, to = image * h * w, image * height * width
            plan.append((image, at + first, at + last, _index(index), None, to + start * width, to + stop * width))
    return tuple(plan)


def _before(pixel: np.ndarray, tap: np.ndarray, stride: int) -> np.ndarray:
    """Return which convolved pixel has this one under this tap of its kernel; far outside if none has."""
    return np.where((pixel - tap) % stride == 0, (pixel - tap) // stride, FAR)


def _rows_of(x: ms.Tensor, first: int, last: int, before: ms.Tensor) -> ms.Tensor:
    """Return these rows of a matrix, once something else is there."""
    if last - first == x.shape[0]:
        return _after(x, before)
    return _cut(_after(x, before), (first, 0), (last - first, x.shape[1]))


def with_zeros(s: ms.Tensor) -> ms.Tensor:
    """Return the pixels of a strip (pixels, C), and zeros behind them."""
    return _join((s, ops.zeros((1, s.shape[1]), s.dtype)))


def _strip(x: ms.Tensor, first: int, last: int, before: ms.Tensor) -> ms.Tensor:
    """Return these pixels of (N H W, C), and zeros behind them."""
    return with_zeros(_rows_of(x, first, last, before))


def activated(s: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
    """Return silu(s * scale + shift) of the pixels of a strip (pixels, C) for rows (C,)."""
    pixels, c = s.shape
    return ops.silu(_bias_add(s * _tile(scale.reshape(1, c), (pixels, 1)), shift))


def _tiles(s: ms.Tensor, index: ms.Tensor, form: str) -> ms.Tensor:
    """Return the transformed tiles of a strip (pixels, C), (size^2, tiles, C)."""
    matrix, c = _matrices(form)[1], s.shape[1]
    size, count = matrix.shape[0], index.shape[0] // matrix.shape[0]
    return _times(matrix, _gather(s, index, 0).reshape(size, count * c)).reshape(size, count, c)


def _pixels(y: ms.Tensor, found: ms.Tensor, form: str) -> ms.Tensor:
    """Return the pixels of a strip of transformed products (size^2, tiles, C), as (pixels, C)."""
    size, count, c = y.shape
    return _gather(_times(_matrices(form)[2], y.reshape(size, count * c)).reshape(4 * count, c), found, 0)


def convolved(
    s: ms.Tensor, index: ms.Tensor, found: ms.Tensor | None, kernel: ms.Tensor, bias: ms.Tensor, form: str
) -> ms.Tensor:
    """Return the pixels (pixels, out) of a strip with zeros behind it, for a kernel and a plan of this form."""
    if form == "taps":
        return _bias_add(_matmul(_gather(s, index, 0).reshape(-1, 9 * s.shape[1]), kernel), bias)
    return _bias_add(_pixels(_rows_batched(_tiles(s, index, form), kernel), found, form), bias)


def _by_strips(
    x: ms.Tensor,
    kernel: ms.Tensor,
    bias: ms.Tensor,
    form: str,
    stride: int = 1,
    norm: tuple[ms.Tensor, ms.Tensor] | None = None,
) -> ms.Tensor:
    """Convolve (N, H, W, C) with a kernel of this form, and with SiLU of `norm`, scale and shift (N, C), before it."""
    n, h, w, c = x.shape
    rows, parts, last = x.reshape(n * h * w, c), [], x
    plan = _tap_plan(x.shape, stride) if form == "taps" else _tile_plan(form, x.shape)
    for image, a, b, index, found, _, _ in plan:
        strip = _rows_of(rows, a, b, last)
        if norm is not None:
            strip = activated(strip, norm[0][image], norm[1][image])
        last = convolved(with_zeros(strip), index, found, kernel, bias, form)
        parts.append(last)
    return _join(parts)


def kernel_of(weight: ms.Tensor, form: str) -> ms.Tensor:
    """Return a kernel (out, C, 3, 3) as `convolved` takes it in this form: (size^2, out, C), or for taps (out, 9 C)."""
    out, c = weight.shape[0], weight.shape[1]
    if form == "taps":
        return weight.reshape(out, c, 9).transpose(0, 2, 1).reshape(out, 9 * c)
    return _matmul(_matrices(form)[0], weight.reshape(out * c, 9)).reshape(-1, out, c)


def kernel_array(weight: np.ndarray, form: str) -> np.ndarray:
    """Return what `kernel_of` does, from Python."""
    out, c = weight.shape[:2]
    if form == "taps":
        return np.ascontiguousarray(weight.reshape(out, c, 9).transpose(0, 2, 1)).reshape(out, 9 * c)
    matrix = np.kron(_FORMS[form][0], _FORMS[form][0]).astype(weight.dtype)
    return (matrix @ weight.reshape(out * c, 9).T).reshape(-1, out, c)


def _input_gradient(d: ms.Tensor, weight: ms.Tensor, stride: int) -> ms.Tensor:
    """Return the gradient (pixels, C) with respect to what a kernel (out, C, 3, 3) was applied to."""
    n, h, w, out = d.shape
    c, rows, parts, last = weight.shape[1], d.reshape(n * h * w, out), [], d
    if stride == 1 and _form_of(out, d.dtype, "same") == "same":
        kernel = _matmul(_turned("same"), weight.reshape(out * c, 9)).reshape(16, out, c)
        for _, a, b, index, found, _, _ in _tile_plan("same", d.shape):
            last = _pixels(_batched(_tiles(_strip(rows, a, b, last), index, "same"), kernel), found, "same")
            parts.append(last)
        return _join(parts)
    kernel = weight.reshape(out, c, 9).transpose(2, 0, 1).reshape(9 * out, c)
    for _, a, b, index, _, start, stop in _tap_plan(d.shape, stride, True):
        last = _times(_gather(_strip(rows, a, b, last), index, 0).reshape(stop - start, 9 * out), kernel)
        parts.append(last)
    return _join(parts)


def _kernel_gradient(x: ms.Tensor, d: ms.Tensor, stride: int) -> ms.Tensor:
    """Return the gradient (out, C, 3, 3) with respect to the kernel that was applied to (N, H, W, C)."""
    n, h, w, c = x.shape
    rows, d = x.reshape(n * h * w, c), d.reshape(-1, d.shape[3])
    total = ops.zeros((d.shape[1], 9 * c), x.dtype)
    for _, a, b, index, _, start, stop in _tap_plan(x.shape, stride):
        taps = _gather(_strip(rows, a, b, total), index, 0).reshape(stop - start, 9 * c)
        total = total + _transposed_times(d[start:stop], taps)
    return total.reshape(-1, 9, c).transpose(0, 2, 1).reshape(-1, c, 3, 3)


class Conv3(CustomGrad):
    """The 3 x 3 convolution, with a row and a column of zeros on each side, or for stride 2 below and on the right."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Return (N, H / stride, W / stride, out) of x (N, H, W, C), weight (out, C, 3, 3), bias (out,)."""
        n, h, w, c = x.shape
        form = _form_of(c, x.dtype, "same") if self.stride == 1 else "taps"
        y = _by_strips(x, kernel_of(weight, form), bias, form, self.stride)
        return y.reshape(n, h // self.stride, w // self.stride, -1)

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        dx = _input_gradient(d, weight, self.stride).reshape(x.shape)
        return dx, _kernel_gradient(x, d, self.stride), column_sums(d.reshape(-1, d.shape[3]))


conv3, conv3_stride2 = Conv3(1), Conv3(2)


class UpsampleConv3(CustomGrad):
    """The 3 x 3 convolution of an image at twice its size, each pixel repeated."""

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """Return (N, 2 H, 2 W, out) of x (N, H, W, C), weight (out, C, 3, 3), bias (out,)."""
        n, h, w, c = x.shape
        form = _form_of(c, x.dtype, "double")
        y = _by_strips(upsample(x) if form == "taps" else x, kernel_of(weight, form), bias, form)
        return y.reshape(n, 2 * h, 2 * w, -1)

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        n, h, w, c = x.shape
        dx = _input_gradient(d, weight, 1).reshape(n, h, 2, 2 * w * c)
        dx = (dx[:, :, 0] + dx[:, :, 1]).reshape(n, h, w, 2, c)
        dx = dx[:, :, :, 0] + dx[:, :, :, 1]
        return dx, _kernel_gradient(upsample(x), d, 1), column_sums(d.reshape(-1, d.shape[3]))


upsample_conv3 = UpsampleConv3()


def upsample(x: ms.Tensor) -> ms.Tensor:
    """Return the image at twice its height and width, each pixel repeated."""
    n, h, w, c = x.shape
    x = ops.concat((x, x), -1).reshape(n, h, 1, 2 * w * c)  # each pixel twice in its row
    return ops.concat((x, x), 2).reshape(n, 2 * h, 2 * w, c)  # each row twice


class ScaledSiluConv3(CustomGrad):
    """The 3 x 3 convolution of silu(x * scale + shift), which is never whole in memory."""

    def construct(
        self, x: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor
    ) -> ms.Tensor:
        """Return (N, H, W, out) of x (N, H, W, C), scale and shift (N, C), weight (out, C, 3, 3), bias (out,)."""
        form = _form_of(x.shape[3], x.dtype, "same")
        y = _by_strips(x, kernel_of(weight, form), bias, form, norm=(scale, shift))
        return y.reshape(*x.shape[:3], -1)

    def bprop(
        self,
        x: ms.Tensor,
        scale: ms.Tensor,
        shift: ms.Tensor,
        weight: ms.Tensor,
        bias: ms.Tensor,
        out: ms.Tensor,
        d: ms.Tensor,
    ) -> tuple:
        """Return the gradients of the inputs."""
        n, h, w, c = x.shape
        rows, scales = x.reshape(n, h * w, c), repeat_rows(scale, h * w)
        z = rows * scales + repeat_rows(shift, h * w)
        s = ops.sigmoid(z)
        y = z * s
        dz = _input_gradient(d, weight, 1).reshape(n, h * w, c) * (s + y * (1 - s))
        ones = ops.ones((n, 1, h * w), x.dtype)
        dscale, dshift = _batched(ones, dz * rows).reshape(n, c), _batched(ones, dz).reshape(n, c)
        dweight, dbias = _kernel_gradient(y.reshape(x.shape), d, 1), column_sums(d.reshape(-1, d.shape[3]))
        return (dz * scales).reshape(x.shape), dscale, dshift, dweight, dbias


scaled_silu_conv3 = ScaledSiluConv3()


@constexpr
def _row_spans(n: int, rows: int, c: int) -> tuple[tuple[int, int], ...]:
    return tuple(spans(rows, n, rows * c))


@constexpr
def _counts(spans: tuple[tuple[int, int], ...]) -> ms.Tensor:
    """Return the lengths of spans, (1, spans)."""
    return ms.Tensor(np.array([[b - a for a, b in spans]], np.float32))


def strip_moments(s: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    """Return the means of the columns of a strip (pixels, C), and the sums of squares of what is left, each (C,)."""
    means = column_sums(s) / s.shape[0]
    s = _bias_add(s, -means)
    return means, column_sums(s * s)


class Moments(CustomGrad):
    """Mean and variance of each column of x (N, P, C), each (N, C), in one pass over memory.

    Those of strips are put together (Chan, Golub and LeVeque, 1979), so that a large mean costs no digits.
    """

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the two."""
        n, p, c = x.shape
        flat, means, variances, last = x.reshape(n * p, c), [], [], x
        parts = _row_spans(n, p, c)
        counts, ones = _counts(parts), ops.ones((len(parts), 1), x.dtype)
        for image in range(n):
            sums, squares = [], []
            for a, b in parts:
                mean, last = strip_moments(_rows_of(flat, image * p + a, image * p + b, last))
                sums.append(mean.reshape(1, c))
                squares.append(last.reshape(1, c))
            of_parts = _join(sums)  # (parts, C)
            mean = _times(counts, of_parts) / p  # (1, C)
            offsets = of_parts - _times(ones, mean)
            means.append(mean)
            variances.append((column_sums(_join(squares)) + _times(counts, offsets * offsets)) / p)
        return _join(means), _join(variances)

    def bprop(self, x: ms.Tensor, out: tuple, d: tuple) -> tuple:
        """Return the gradient of the input."""
        p = x.shape[1]
        slope = 2 * d[1] / p
        return (x * repeat_rows(slope, p) + repeat_rows(d[0] / p - slope * out[0], p),)


moments = Moments()


def group_scale_shift(
    x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float
) -> tuple[ms.Tensor, ms.Tensor]:
    """Return scale and shift (N, C) for which x * scale + shift is the group norm of x (N, P, C).

    The variance of a group is the mean of its channels' variances plus the variance of their means.
    """
    n, _, c = x.shape
    means, var = moments(x)
    means, var = means.reshape(n, groups, c // groups), var.reshape(n, groups, c // groups)
    group_mean = means.mean(2, keep_dims=True)
    group_var = (var + ops.square(means - group_mean)).mean(2, keep_dims=True)
    scale = weight.reshape(groups, c // groups) * ops.rsqrt(group_var + eps)  # (N, groups, C / groups)
    shift = bias.reshape(groups, c // groups) - group_mean * scale
    return scale.reshape(n, c), shift.reshape(n, c)


class ScaleShift(CustomGrad):
    """x * scale + shift of x (N, P, C) and rows (N, C), without broadcasting."""

    def construct(self, x: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor) -> ms.Tensor:
        """Return the result."""
        n, p, c = x.shape
        flat, parts, last = x.reshape(n * p, c), [], x
        for image in range(n):
            for a, b in _row_spans(n, p, c):
                y = _rows_of(flat, image * p + a, image * p + b, last) * _tile(scale[image].reshape(1, c), (b - a, 1))
                last = _bias_add(y, shift[image])
                parts.append(last)
        return _join(parts).reshape(x.shape)

    def bprop(self, x: ms.Tensor, scale: ms.Tensor, shift: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        n, p, c = x.shape
        ones = ops.ones((n, 1, p), x.dtype)
        dscale = _batched(ones, d * x).reshape(n, c)
        return d * repeat_rows(scale, p), dscale, _batched(ones, d).reshape(n, c)


scale_shift = ScaleShift()
