"""Layers that hold weights under their official names; what they compute is in `latte.ops`."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.models.block import Block, Pair
from latte.ops import linear, lookup, modulated_norm, patch_projection, silu

Init = Callable[[tuple[int, ...]], np.ndarray]


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory that is not touched before a checkpoint fills it."""
    return np.empty(shape, np.float32)


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, as biases, adaLN and the final layer start."""
    return np.zeros(shape, np.float32)


def ones(shape: tuple[int, ...]) -> np.ndarray:
    """Return ones, as the weights of norms start."""
    return np.ones(shape, np.float32)


class Initializers:
    """The random initialisations of the official code, from one seeded stream; without a seed, memory is left empty."""

    def __init__(self, seed: int | None):
        self.rng = None if seed is None else np.random.default_rng(seed)

    def xavier(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return U(-a, a), a = sqrt(6 / (fan in + fan out)), the weight seen as a matrix (out, in * k * k)."""
        if self.rng is None:
            return empty(shape)
        bound = np.float32(np.sqrt(6.0 / (shape[0] + np.prod(shape[1:]))))
        values = self.rng.random(shape, np.float32)
        values *= 2 * bound
        values -= bound
        return values

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return N(0, 0.02^2)."""
        return self.scaled(shape, 0.02)

    def scaled(self, shape: tuple[int, ...], deviation: float) -> np.ndarray:
        """Return N(0, deviation^2), as the tables of adaLN-single start."""
        if self.rng is None:
            return empty(shape)
        return self.rng.standard_normal(shape, np.float32) * np.float32(deviation)

    def torch_default(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return U(-1/sqrt(fan in), 1/sqrt(fan in)), what PyTorch's linear and convolution layers start with."""
        if self.rng is None:
            return empty(shape)
        return self.rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))


def parameter(values: np.ndarray, requires_grad: bool = True) -> ms.Parameter:
    """Return a float32 parameter that takes over the memory of `values`."""
    # As one expression without keywords, MindSpore sees that nobody else holds the tensor and does not copy it.
    new = ms.Parameter(ms.Tensor.from_numpy(np.ascontiguousarray(values)))
    new.requires_grad = requires_grad
    return new


def set_int8(layer: nn.Cell, values: np.ndarray, scale: np.ndarray) -> None:
    """Replace a layer's weight by int8 elements (out, in) and the float32 scale (out,) of their rows."""
    name = layer.weight.name
    layer.weight, layer.scale = parameter(values, requires_grad=False), parameter(scale, requires_grad=False)
    layer.weight.name, layer.scale.name = name, name.removesuffix("weight") + "scale"
    layer.quantized = True


class Linear(nn.Cell):
    """An affine map with weight (out, in) and bias (out,)."""

    quantized = False  # whether `set_int8` was called

    def __init__(self, in_features: int, out_features: int, init: Init, bias_init: Init = zeros):
        super().__init__()
        self.weight = parameter(init((out_features, in_features)))
        self.bias = parameter(bias_init((out_features,)))
        self.low_rank = 0  # the rank of the adaptation that is trained in place of the weight; 0 = none

    def adapt(self, rank: int, factor: float, init: Initializers) -> None:
        """Freeze the layer and add a low-rank matrix to its weight (Hu et al., 2021), which begins as zero."""
        self.weight.requires_grad = self.bias.requires_grad = False
        self.lora_down = parameter(init.torch_default((rank, self.weight.shape[1])))
        self.lora_up = parameter(zeros((self.weight.shape[0], rank)))
        for name in ("lora_down", "lora_up"):
            getattr(self, name).name = self.weight.name.removesuffix("weight") + name
        self.low_rank, self.factor = rank, factor

    def weights(self) -> tuple[ms.Parameter | tuple, ms.Parameter]:
        """Return weight and bias, as `latte.ops.linear` takes them."""
        weight = (self.weight, self.scale) if self.quantized else self.weight
        if self.low_rank:
            return (weight, self.lora_down, self.lora_up, self.factor), self.bias
        return weight, self.bias

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return x W^T + b in the dtype of `x`."""
        return linear(x, *self.weights())


class Table(nn.Cell):
    """Rows of shifts, scales and gates that no condition changes; each row starts with one value."""

    def __init__(self, start: tuple[float, ...], width: int):
        super().__init__()
        rows = np.array(start, np.float32).repeat(width).reshape(len(start), width)
        self.scale_shift_table = parameter(rows)

    def weights(self) -> tuple[ms.Parameter]:
        """Return the table (rows, width)."""
        return (self.scale_shift_table,)


class SiLU(nn.Cell):
    """x * sigmoid(x); a layer only because it takes a place in the numbering of official names."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return x * sigmoid(x)."""
        return silu(x)


class Embedding(nn.Cell):
    """A table of vectors with weight (rows, width)."""

    def __init__(self, rows: int, width: int, init: Init):
        super().__init__()
        self.weight = parameter(init((rows, width)))

    def construct(self, index: ms.Tensor) -> ms.Tensor:
        """Return the rows of integer `index` (B,) as (B, width)."""
        return lookup(self.weight, index)


class Affine(nn.Cell):
    """A layer that holds a weight and a bias for the block around it."""

    def weights(self) -> tuple[ms.Parameter, ms.Parameter]:
        """Return weight and bias."""
        return self.weight, self.bias


class Conv2d(Affine):
    """The weight (out, in, k, k) and bias (out,) of a convolution."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init: Init):
        super().__init__()
        self.weight = parameter(init((out_channels, in_channels, kernel, kernel)))
        self.bias = parameter(zeros((out_channels,)))


class Conv3d(Affine):
    """The weight (out, frames, in, k, k) and bias (out,) of a convolution over frames, as one over images."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, frames: int, init: Init):
        super().__init__()
        self.weight = parameter(init((out_channels, frames, in_channels, kernel, kernel)))
        self.bias = parameter(zeros((out_channels,)))

    def weights(self) -> tuple:
        """Return the weight (out, frames * in, k, k) and the bias."""
        out, frames, channels, kernel, _ = self.weight.shape
        return self.weight.reshape(out, frames * channels, kernel, kernel), self.bias


class Norm(Affine):
    """The weight and bias (channels,) of a group norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = parameter(ones((channels,)))
        self.bias = parameter(zeros((channels,)))


def embed_patches(x: ms.Tensor, proj: Pair, as_convolution: bool) -> ms.Tensor:
    """Return the tokens (B, F, T, D) of latents (B, F, C, H, W); `proj` is (weight, bias)."""
    return patch_projection(x, *proj, as_convolution)


class PatchEmbed(Block):
    """Latents (B, F, C, H, W) to tokens (B, F, T, D); `sizes` are channels, width and patch size."""

    forward = staticmethod(embed_patches)

    def __init__(self, sizes: tuple[int, int, int], as_convolution: bool, init: Initializers):
        super().__init__()
        self.proj = Conv2d(*sizes, init.xavier)
        self.takes(self.proj, as_convolution=as_convolution)


class TubeletEmbed(Block):
    """Latents (B, F, frames C, H, W), the channels of several frames one after the other, to tokens (B, F, T, D).

    The weight is (D, frames, C, p, p), that of a convolution over frames whose stride is its size (Arnab et al., 2021).
    """

    forward = staticmethod(embed_patches)

    def __init__(self, sizes: tuple[int, int, int], frames: int, as_convolution: bool, init: Initializers):
        super().__init__()
        self.proj = Conv3d(*sizes, frames, init.xavier)
        self.takes(self.proj, as_convolution=as_convolution)


def tokens_to_latents(
    x: ms.Tensor,
    shift: ms.Tensor,
    scale: ms.Tensor,
    grid: tuple[int, int],
    proj: Pair,
    patch_size: int,
) -> ms.Tensor:
    """Return the latents that the tokens stand for, in float32: norm, modulation, projection of each patch.

    x (B, F, T, D), shift and scale (B, D), grid (h, w) with T = h w, `proj` (weight, bias)
    -> (B, F, out channels, H, W).
    """
    b, f, _, _ = x.shape
    x = modulated_norm(x.astype(ms.float32), shift, scale)
    x = linear(x, *proj)  # (B, F, T, p p C)
    x = x.reshape(b, f, grid[0], grid[1], patch_size, patch_size, -1)  # (B, F, h, w, p, p, C)
    x = x.transpose(0, 1, 6, 2, 4, 3, 5)  # (B, F, C, h, p, w, p)
    return x.reshape(b, f, -1, grid[0] * patch_size, grid[1] * patch_size)


class TokensToLatents(Block):
    """The last norm and projection; the layer is its network's, under its official name."""

    forward = staticmethod(tokens_to_latents)

    def __init__(self, layer: Linear, patch_size: int):
        super().__init__()
        self.takes(layer, patch_size=patch_size)
