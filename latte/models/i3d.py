"""I3D, the Inception-v1 network inflated over time (Carreira and Zisserman, 2017), whose logits FVD compares.

Layers are named as in DeepMind's release. Each is a convolution, a batch norm in its inference form and a ReLU; the
norm is folded into the convolution's weight and bias. Videos are native ones of `latte.ops.conv3d`, in comments
(B, T, H, W, C).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.errors import UserError
from latte.models.block import Block, Network, Pair
from latte.models.layers import Init, empty, parameter
from latte.ops import conv3d, from_nchw, linear, max_pool3d
from latte.ops.target import channels_last
from latte.runtime.tensors import mean, narrow
from latte.weights.mapped import verified

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZE, CLASSES = 224, 400
EPS = 1e-3  # of the batch norms, which have no scale
INCEPTION = (
    "Branch_0.Conv3d_0a_1x1",
    "Branch_1.Conv3d_0a_1x1",
    "Branch_1.Conv3d_0b_3x3",
    "Branch_2.Conv3d_0a_1x1",
    "Branch_2.Conv3d_0b_3x3",
    "Branch_3.Conv3d_0b_1x1",
)
# Stages in order: of a convolution its channels, kernel and stride; of maxima window and stride; of an Inception module
# the channels of its six convolutions.
STAGES: dict[str, tuple] = {
    "Conv3d_1a_7x7": (64, 7, 2),
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (64, 1, 1),
    "Conv3d_2c_3x3": (192, 3, 1),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
LOGITS = "Logits.Conv3d_0c_1x1"
# Names of layers as TensorFlow, JAX and PyTorch programs have them, in small letters, and the parts of their weights.
_STAGE = re.compile(r"(?:^|\.)(conv3d_(?:1a_7x7|2b_1x1|2c_3x3)|mixed_[345][b-f]|conv3d_0c_1x1|logits)(?=\.)")
_BRANCH = re.compile(r"^\.(?:branch_(\d)(?:\.conv3d_0(\w)_|\.([01])\.|)|b(\d)([abc]?)\.)")
_PARTS = {
    "weight": "kernel", "kernel": "kernel", "w": "kernel",
    "bias": "bias", "beta": "bias", "b": "bias",
    "mean": "mean", "running_mean": "mean", "moving_mean": "mean",
    "var": "var", "running_var": "var", "moving_variance": "var",
    "scale": "scale", "gamma": "scale",
}  # fmt: skip
_ORDERS = {1: ("bias",), 4: ("scale", "bias", "mean", "var")}  # of what follows a kernel that has no name


def shapes() -> dict[str, tuple[int, int, int]]:
    """Return the channels in and out and the kernel of every convolution, by its name, in the order of the network."""
    found, channels = {}, 3
    for name, sizes in STAGES.items():
        if name.startswith("Conv3d"):
            found[name] = (channels, *sizes[:2])
            channels = sizes[0]
        elif name.startswith("Mixed"):
            inputs = (channels, channels, sizes[1], channels, sizes[3], channels)
            for branch, inner, outer in zip(INCEPTION, inputs, sizes, strict=True):
                found[f"{name}.{branch}"] = (inner, outer, int(branch[-1]))
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
    return found | {LOGITS: (channels, CLASSES, 1)}


def unit(x: ms.Tensor, conv: Pair, stride: int) -> ms.Tensor:
    """Return relu(conv(x))."""
    return ops.relu(conv3d(x, *conv, stride))


def inception(
    x: ms.Tensor, conv0: Pair, conv1a: Pair, conv1b: Pair, conv2a: Pair, conv2b: Pair, conv3: Pair
) -> ms.Tensor:
    """Return the channels of four branches: 1 x 1 x 1, two of 1 x 1 x 1 before 3 x 3 x 3, maxima before 1 x 1 x 1."""
    branches = (
        unit(x, conv0, 1),
        unit(unit(x, conv1a, 1), conv1b, 1),
        unit(unit(x, conv2a, 1), conv2b, 1),
        unit(max_pool3d(x, (3, 3, 3), (1, 1, 1)), conv3, 1),
    )
    return ops.concat(branches, 4 if channels_last() else 2)


def average_logits(x: ms.Tensor, conv: Pair) -> ms.Tensor:
    """Return the logits (B, 400) of the last video: averages of two frames, a 1 x 1 x 1 convolution, the average."""
    b, t, c = x.shape[0], x.shape[1], x.shape[4 if channels_last() else 2]
    y = mean(x.reshape(b, t, -1, c), 2) if channels_last() else mean(x.reshape(b, t, c, -1), 3)  # (B, T, C)
    y = mean(narrow(y, 1, 0, t - 1) + narrow(y, 1, 1, t), 1) / 2  # the convolution of the average is the same
    weight, bias = conv
    return linear(y, weight.reshape(weight.shape[0], c), bias)


class Conv3d(nn.Cell):
    """The weight (out, in, k, k, k) and bias (out,) of a convolution with the batch norm behind it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init: Init):
        super().__init__()
        self.weight = parameter(init((out_channels, in_channels, kernel, kernel, kernel)))
        self.bias = parameter(init((out_channels,)))

    def weights(self) -> tuple[ms.Parameter, ms.Parameter]:
        """Return weight and bias."""
        return self.weight, self.bias


class Unit(Block):
    """A convolution that is a graph of its own where the compile scope is the block."""

    forward = staticmethod(unit)

    def __init__(self, sizes: tuple[int, int, int], stride: int, init: Init):
        super().__init__()
        layer = Conv3d(*sizes, init)
        self.weight, self.bias = layer.weight, layer.bias
        self.takes(layer, stride=stride)


class Inception(Block):
    """Four branches, whose layers it owns under their official names."""

    forward = staticmethod(inception)

    def __init__(self, sizes: Sequence[tuple[int, int, int]], init: Init):
        super().__init__()
        layers = [Conv3d(*each, init) for each in sizes]
        for name, layer in zip(INCEPTION, layers, strict=True):
            put(self, name, layer)
        self.takes(*layers)


class MaxPool(Block):
    """Maxima over windows, as a graph of their own where the compile scope is the block."""

    forward = staticmethod(max_pool3d)

    def __init__(self, window: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.takes(window=window, stride=stride)


class AverageLogits(Block):
    """The last layer, which it does not own."""

    forward = staticmethod(average_logits)

    def __init__(self, layer: Conv3d):
        super().__init__()
        self.takes(layer)


def put(cell: nn.Cell, name: str, child: nn.Cell) -> None:
    """Put a cell into another one under a name of several parts, with cells that hold nothing else in between."""
    *outer, inner = name.split(".")
    for part in outer:
        if not hasattr(cell, part):
            setattr(cell, part, nn.Cell())
        cell = getattr(cell, part)
    setattr(cell, inner, child)


class I3D(Network):
    """The network of the RGB stream with 400 classes; without `init` its memory is not touched before it is loaded."""

    def __init__(self, init: Init = empty):
        super().__init__()
        sizes, stages = shapes(), []
        for name, settings in STAGES.items():
            if name.startswith("MaxPool"):
                stages.append(MaxPool(*settings))
            elif name.startswith("Mixed"):
                stages.append(Inception([sizes[f"{name}.{branch}"] for branch in INCEPTION], init))
            else:
                stages.append(Unit(sizes[name], settings[2], init))
            put(self, name, stages[-1])
        last = Conv3d(*sizes[LOGITS], init)
        put(self, LOGITS, last)
        stages.append(AverageLogits(last))
        object.__setattr__(self, "stages", tuple(stages))  # not a second time as attributes of the cell
        for name, weight in self.parameters_and_names():  # `put` lets some begin in the middle
            weight.name = name

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the logits (B, 400), before the softmax, of videos (B, T, 3, 224, 224) float32 in [-1, 1], T >= 9."""
        b, t, c, h, w = x.shape
        x = from_nchw(x.reshape(b * t, c, h, w))
        x = x.reshape(b, t, *x.shape[1:])  # (B, T, 224, 224, 3)
        for stage in self.stages:
            x = stage(x)
        return x


def own_weights(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Return the weights of I3D under our names, float32, with the batch norms folded into the convolutions.

    They may have the names of DeepMind's release, of JAX or PyTorch ports, or ours; kernels are (k, k, k, in, out) or
    (out, in, k, k, k). Where names tell nothing, the layers must lie in the order of the network.
    Raises UserError, with `source` as the name, if that is not the whole of I3D.
    """
    layers = _by_name(tensors, source)
    if len(layers) < len(shapes()):
        layers = _by_order(tensors) or layers
    found = {}
    for name, (inner, outer, k) in shapes().items():
        layer = layers.get(name, {})
        kernel = layer.get("kernel", np.empty(0))
        if kernel.shape == (k, k, k, inner, outer):
            kernel = kernel.transpose(4, 3, 0, 1, 2)
        sizes = {part: values.size for part, values in layer.items() if part != "kernel"}
        if kernel.shape != (outer, inner, k, k, k) or set(sizes.values()) != {outer} or "bias" not in sizes:
            raise UserError(
                f"{source} is not the I3D network that FVD is defined with: {name} is missing or of another size; give "
                "i3d_torchscript.pt or what --fetch_i3d gets"
            )
        weight, bias = folded({part: verified(values) for part, values in (*layer.items(), ("kernel", kernel))})
        found[f"{name}.weight"], found[f"{name}.bias"] = weight, bias
    return found


def folded(layer: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias, float32, of a convolution (out, in, k, k, k) with or without a batch norm behind it."""
    kernel, bias = layer["kernel"].astype(np.float64), layer["bias"].astype(np.float64).reshape(-1)
    if "mean" in layer and "var" in layer:
        scale = 1 / np.sqrt(layer["var"].astype(np.float64).reshape(-1) + EPS)
        if "scale" in layer:
            scale = scale * layer["scale"].astype(np.float64).reshape(-1)
        kernel = kernel * scale[:, None, None, None, None]
        bias = bias - scale * layer["mean"].astype(np.float64).reshape(-1)
    return np.ascontiguousarray(kernel, np.float32), bias.astype(np.float32)


def _by_name(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the parts of each layer whose names are understood."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, values in tensors.items():
        name, part = _layer_of(key.lower().replace("/", ".")), _part_of(key, values)
        if name is None or part is None:
            continue
        if part in layers.setdefault(name, {}):
            raise UserError(f"{source} has {part} of {name} twice; give a file with one network")
        layers[name][part] = values
    return layers


def _layer_of(key: str) -> str | None:
    """Return our name of the layer that a weight belongs to."""
    stage = _STAGE.search(key)
    if stage is None:
        return None
    if not stage[1].startswith("mixed"):
        return next((name for name in STAGES if name.lower() == stage[1]), LOGITS)
    branch = _BRANCH.match(key[stage.end() :])
    if branch is None:
        return None
    number, letter = branch[1] or branch[4], branch[2] or branch[5] or ("ab"[int(branch[3])] if branch[3] else "")
    for name in INCEPTION:
        if name.startswith(f"Branch_{number}") and (number in "03" or f"_0{letter}_" in name):
            return f"{stage[1].capitalize()}.{name}"
    return None


def _part_of(key: str, values: np.ndarray) -> str | None:
    """Return what a weight is of its layer; in PyTorch the scale of a norm is called weight, as the kernel is."""
    part = _PARTS.get(re.split(r"[./]", key.lower())[-1])
    return "scale" if part == "kernel" and values.ndim == 1 else part


def _by_order(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return the parts of each layer if these lie in the order of the network, each layer behind its kernel."""
    groups: list[list[tuple[str, np.ndarray]]] = []
    for key, values in tensors.items():
        if values.ndim == 5 and values.size > max(values.shape):
            groups.append([(key, values)])
        elif groups and values.ndim == 1:
            groups[-1].append((key, values))
    names = list(shapes())
    if len(groups) != len(names):
        return {}
    layers = {}
    for name, group in zip(names, groups, strict=True):
        order = _ORDERS.get(len(group) - 1, ())
        parts = [_part_of(key, values) for key, values in group[1:]]
        parts = parts if None not in parts else list(order)
        layers[name] = {"kernel": group[0][1]}
        layers[name] |= {part: values for part, (_, values) in zip(parts, group[1:], strict=False) if part}
    return layers
