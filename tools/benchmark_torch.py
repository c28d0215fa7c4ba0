"""The official PyTorch side of tools/benchmark.py, which runs this file with a Python that has torch."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchmark_common import (
    CAPTION,
    EMA_DECAY,
    LATENT_SCALE,
    LEARNING_RATE,
    WEIGHTS,
    clips,
    inputs,
    refuse,
    save,
    timed,
    work,
)
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import torch
except ModuleNotFoundError:
    refuse()


def _step(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    stand_in_for_timm()
    from diffusion import create_diffusion  # of the official checkout
    from models.latte import Latte_models

    net = Latte_models[job["model_name"]](input_size=job["size"], num_frames=job["frames"], extras=1).eval()
    torch.manual_seed(0)
    for name, p in net.named_parameters():  # layers that start at zero would make every output zero
        if "embed" not in name or "proj" in name:
            p.normal_(0, 0.02)
    file = Path(job["folder"]) / WEIGHTS["step"]
    if not file.exists():
        torch.save({"ema": net.state_dict()}, file)
    data = {name: torch.from_numpy(value) for name, value in inputs(job).items()}
    diffusion = create_diffusion("250")
    t = torch.tensor([125])

    def step(i: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=job["dtype"] == "bf16"):
            out = net(data["x"], torch.tensor([diffusion.timestep_map[125]]))
        torch.manual_seed(0)
        diffusion.p_sample(lambda x, t: out, data["x"], t, clip_denoised=False)
        if i == 0 and job["dtype"] == "fp32":
            save(job, "out", out.float().numpy())

    return timed(step, job["steps"])


def _autoencoder(job: dict[str, Any]) -> Any:
    """Return the autoencoder of Stable Diffusion with random weights, and save them for the other side."""
    from diffusers import AutoencoderKL

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = (128, 256, 512, 512)
    vae = AutoencoderKL(3, 3, down, up, widths, layers_per_block=2, latent_channels=4).eval()
    file = Path(job["folder"]) / WEIGHTS["vae"]
    if not file.exists():
        torch.save(vae.state_dict(), file)
    return vae


def _cache(job: dict[str, Any]) -> dict[str, Any]:
    """Encode the frames of a clip one at a time; the other side encodes the same clip."""
    vae = _autoencoder(job)
    files = sorted((clips(job) / "0").iterdir(), key=lambda file: int(file.stem[2:]))
    side, moments = job["size"] * LATENT_SCALE, []

    def encode(i: int) -> None:
        image = np.asarray(Image.open(files[i % len(files)]), np.float32)  # (side, 3 side / 2, 3)
        left = (image.shape[1] - side) // 2
        pixels = torch.from_numpy(image[None, :, left : left + side].transpose(0, 3, 1, 2) / 127.5 - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=job["dtype"] == "bf16"):
            moments.append(vae.encode(pixels).latent_dist.parameters.float().numpy())

    result = timed(encode, len(files) if job["dtype"] == "fp32" else job["steps"])
    if job["dtype"] == "fp32":
        save(job, "cached", np.concatenate(moments[: len(files)]))
    return result


def _vae(job: dict[str, Any]) -> dict[str, Any]:
    vae = _autoencoder(job)
    data = {name: torch.from_numpy(value) for name, value in inputs(job).items()}
    encode = timed(lambda i: vae.encode(data["image"]), job["steps"])
    decode = timed(lambda i: vae.decode(data["z"]), job["steps"])
    save(job, "moments", vae.encode(data["image"]).latent_dist.parameters.numpy())
    save(job, "decoded", vae.decode(data["z"]).sample.numpy())
    return {"encode": encode, "decode": decode}


def _train(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    stand_in_for_timm()
    from diffusion import create_diffusion  # of the official checkout
    from models.latte import Latte_models

    torch.manual_seed(0)
    net = Latte_models[job["model_name"]](input_size=job["size"], num_frames=job["frames"], extras=1).train()
    file = Path(job["folder"]) / WEIGHTS["train"]
    if not file.exists():
        torch.save({"ema": net.state_dict()}, file)
    average = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0)
    data = {name: torch.from_numpy(value) for name, value in inputs(job).items()}
    diffusion, losses = create_diffusion(""), []

    def step(i: int) -> None:
        terms = diffusion.training_losses(net, data["x"], torch.tensor([500]), {}, noise=data["noise"])
        loss = terms["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_mul_(average, EMA_DECAY)
        torch._foreach_add_(average, [p.detach() for p in weights], alpha=1 - EMA_DECAY)
        losses.append(loss.item())

    result = timed(step, job["steps"], job["warm_up"])
    save(job, "losses", losses)
    return result


def _t2v(job: dict[str, Any]) -> dict[str, Any]:
    from diffusers import LatteTransformer3DModel

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "out_channels": 8, "num_layers": 28, "cross_attention_dim": 1152, "patch_size": 2}
    blocks = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_type": "ada_norm_single"}
    norms = {"num_embeds_ada_norm": 1000, "norm_elementwise_affine": False, "norm_eps": 1e-6}
    more = {"caption_channels": CAPTION, "attention_head_dim": 72, "sample_size": job["size"]}
    net = LatteTransformer3DModel(**sizes, **blocks, **norms, **more, video_length=job["frames"]).eval()
    folder = Path(job["folder"]) / WEIGHTS["t2v"]
    if not folder.exists():
        net.save_pretrained(folder, max_shard_size="20GB")
    data = {name: torch.from_numpy(value) for name, value in inputs(job).items()}
    x, t = data["x"].transpose(1, 2).contiguous(), torch.tensor([500])
    outs = []
    result = timed(lambda i: outs.append(net(x, t, data["text"], return_dict=False)[0]), job["steps"])
    save(job, "t2v_out", outs[-1].transpose(1, 2).numpy())
    return result


def stand_in_for_timm() -> None:
    """Give the official model the two classes it takes from timm, where torchvision, which timm needs, is missing."""

    class Mlp(torch.nn.Module):
        def __init__(self, in_features: int, hidden_features: int, act_layer: Callable, drop: float = 0):
            super().__init__()
            self.fc1 = torch.nn.Linear(in_features, hidden_features)
            self.act = act_layer()
            self.fc2 = torch.nn.Linear(hidden_features, in_features)

        def forward(self, x: Any) -> Any:
            return self.fc2(self.act(self.fc1(x)))

    class PatchEmbed(torch.nn.Module):
        def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool = True):
            super().__init__()
            self.proj = torch.nn.Conv2d(channels, width, patch, patch, bias=bias)
            self.num_patches, self.patch_size = (size // patch) ** 2, (patch, patch)

        def forward(self, x: Any) -> Any:
            return self.proj(x).flatten(2).transpose(1, 2)

    for name in ("timm", "timm.models", "timm.models.vision_transformer"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[name].Mlp, sys.modules[name].PatchEmbed = Mlp, PatchEmbed
    # The package's __init__ imports the text-to-video model and its dependencies, which are not measured here.
    package = types.ModuleType("models")
    package.__path__ = [str(Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) / "models")]
    sys.modules["models"] = package


if __name__ == "__main__":
    work({"step": _step, "vae": _vae, "train": _train, "cache": _cache, "t2v": _t2v})
