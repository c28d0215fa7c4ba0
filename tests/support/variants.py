"""Small networks of every choice of the paper, with weights that hide nothing, and what NumPy makes of them."""

import mindspore as ms
import numpy as np

from latte.models.latte import Latte, LatteConfig
from latte.models.precision import prepare

SMALL = {"hidden_size": 32, "depth": 3, "num_heads": 4, "input_size": (4, 6), "num_frames": 4}
CLASSES = {"condition": "class", "num_classes": 3}
CHOICES = {
    "variant 1": {},
    "variant 2": {"variant": 2},
    "variant 3": {"variant": 3},
    "variant 4": {"variant": 4},
    "compression": {"patch_embedding": "compression"},
    "all_tokens": {"injection": "all_tokens"},
    "rotary": {"temporal_position": "rotary"},
    "velocity": {"prediction_type": "v_prediction"},
    "everything": {
        "variant": 4,
        "patch_embedding": "compression",
        "injection": "all_tokens",
        "temporal_position": "rotary",
        "prediction_type": "v_prediction",
    },
}

TRAINED = ("variant 3", "everything")  # those whose gradients devices are compared by


def network(name, dtype=ms.float32, for_training=False, flash=False, **sizes):
    """Return the network of one of `CHOICES`, whose gates and last layer are not zero."""
    net = Latte(LatteConfig(**(SMALL | CLASSES | CHOICES[name] | sizes)), flash=flash, dtype=dtype)
    rng = np.random.default_rng(1)
    for weight in net.get_parameters():
        if weight.requires_grad:
            weight.set_data(ms.Tensor(rng.normal(0, 0.15, weight.shape).astype(np.float32)))
    net.set_train(False)
    return prepare(net, for_training)


def inputs(videos=2, frames=4):
    """Return x (B, F, C, H, W), t (B,) and labels (B,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(videos, frames, 4, 4, 6)).astype(np.float32)
    return x, np.array([7, 900, 33], np.int32)[:videos], np.array([2, 0, 3], np.int32)[:videos]


def batch():
    """Return what a training step takes; moments without variance, so that the posterior sample is their mean."""
    x, t, y = inputs()
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    moments = np.concatenate((x, np.full_like(x, -30)), 2)
    return tensors((moments, np.zeros_like(x), t, noise, np.full((2, 8), -1, np.int32), y[:, None]))


def tensors(arrays):
    return [ms.Tensor(array) for array in arrays]


class Reference:
    """The network in float64, one video, one frame and one head at a time."""

    def __init__(self, net):
        self.config = net.config
        self.w = {name: weight.asnumpy().astype(np.float64) for name, weight in net.parameters_and_names()}

    def __call__(self, x, t, y):
        return np.stack([self.video(*each) for each in zip(x.astype(np.float64), t, y, strict=True)])

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def video(self, x, t, y):
        config, w = self.config, self.w
        patch, (rows, columns), k = config.patch_size, config.grid, config.tubelet
        kernel = w["x_embedder.proj.weight"].reshape(config.hidden_size, k, config.in_channels, patch, patch)
        tokens = np.zeros((len(x) // k, rows * columns, config.hidden_size))
        for f, i, j in np.ndindex(len(x) // k, rows, columns):
            cut = x[f * k : f * k + k, :, i * patch : i * patch + patch, j * patch : j * patch + patch]
            tokens[f, i * columns + j] = (kernel * cut).sum((1, 2, 3, 4)) + w["x_embedder.proj.bias"]
        tokens += w["pos_embed"]
        angles = t * 10000.0 ** (-np.arange(128) / 128)
        c = self.linear(np.concatenate([np.cos(angles), np.sin(angles)]), "t_embedder.mlp.0")
        c = self.linear(silu(c), "t_embedder.mlp.2") + w["y_embedder.embedding_table.weight"][y]
        if config.injection == "all_tokens":
            tokens = np.concatenate([tokens, np.broadcast_to(c, (len(tokens), 1, len(c)))], 1)
        tokens = self.blocks(tokens, c, alone=len(x) == 1 and config.num_frames > 1)
        tokens = tokens[:, : rows * columns]
        shift, scale = self.modulation(c, "final_layer", 2)
        out = self.linear(norm(tokens) * (1 + scale) + shift, "final_layer.linear")  # (F, T, p p k 2C)
        video = np.zeros((len(x), config.out_channels, rows * patch, columns * patch))
        for f, i, j in np.ndindex(len(tokens), rows, columns):
            values = out[f, i * columns + j].reshape(patch, patch, k, config.out_channels).transpose(2, 3, 0, 1)
            video[f * k : f * k + k, :, i * patch : i * patch + patch, j * patch : j * patch + patch] = values
        if config.prediction_type == "v_prediction":
            sigma = np.interp(t, np.arange(1000), np.sqrt(1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) - 1))
            signal = 1 / np.sqrt(1 + sigma**2)
            video[:, : config.in_channels] = signal * video[:, : config.in_channels] + sigma * signal * x
        return video

    def blocks(self, x, c, alone):
        config, depth = self.config, self.config.depth
        kinds = {  # over patches, over frames
            1: [(i % 2 == 0, i % 2 == 1) for i in range(depth)],
            2: [(2 * i < depth, 2 * i >= depth) for i in range(depth)],
        }.get(config.variant, [(True, True)] * depth)
        first = next((i for i in range(depth) if kinds[i][1]), None)
        for i, (patches, frames) in enumerate(kinds):
            if alone and not patches:
                continue
            if i == first and not alone and "temp_embed" in self.w:
                x = x + self.w["temp_embed"][0][:, None]
            x = self.block(x, c, i, patches, frames and not alone)
        return x

    def block(self, x, c, i, patches, frames):
        m = self.modulation(c, f"blocks.{i}", 6)
        over_frames = f"blocks.{i}.temporal_attn" if self.config.variant > 2 else f"blocks.{i}.attn"
        y = norm(x) * (1 + m[1]) + m[0]
        z = self.attend(y, f"blocks.{i}.attn", False) if patches else 0
        if patches and frames and self.config.variant == 3:
            x, z = x + m[2] * z, 0
            y = norm(x) * (1 + m[1]) + m[0]
        x = x + m[2] * (z + (self.attend(y, over_frames, True) if frames else 0))
        y = self.linear(norm(x) * (1 + m[4]) + m[3], f"blocks.{i}.mlp.fc1")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return x + m[5] * self.linear(y, f"blocks.{i}.mlp.fc2")

    def modulation(self, c, name, parts):
        if self.config.injection == "all_tokens":
            return self.w[f"{name}.modulation.scale_shift_table"]
        return self.linear(silu(c), f"{name}.adaLN_modulation.1").reshape(parts, -1)

    def attend(self, x, name, temporal):
        heads = self.config.num_heads // (2 if self.config.variant == 4 else 1)
        x = x.transpose(1, 0, 2) if temporal else x  # (N, L, D)
        n, length, d = x.shape
        q, k, v = self.linear(x, f"{name}.qkv").reshape(n, length, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        if temporal and self.config.temporal_position == "rotary":
            q, k = rotated(q), rotated(k)
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(d // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        y = (scores / scores.sum(-1, keepdims=True)) @ v
        y = self.linear(y.transpose(0, 2, 1, 3).reshape(n, length, d), f"{name}.proj")
        return y.transpose(1, 0, 2) if temporal else y


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def rotated(x):
    """Return x (..., L, width) as complex numbers of neighbouring elements, turned by place times frequency."""
    length, width = x.shape[-2:]
    angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(width // 2) * 2 / width))
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)
