"""Write tests/fixtures/weights with PyTorch and diffusers: `python tests/golden/make_weights_fixtures.py`.

The files are made once and kept; tests read them without PyTorch. bfloat16 is recorded as its bits (uint16).
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch.nn.functional import interpolate

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "weights"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def bits(tensor: torch.Tensor) -> np.ndarray:
    """Return the elements of a tensor, bfloat16 as uint16."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def kinds() -> dict[str, object]:
    """Return an object of every kind that a checkpoint may hold."""
    numbers = torch.linspace(-100, 100, 12).reshape(3, 4)
    base = torch.arange(24, dtype=torch.float32)
    attributed = torch.nn.Parameter(torch.tensor([5.0, 6.0]))
    attributed.note = "an attribute"
    return {
        **{name: numbers.to(getattr(torch, name)) for name in DTYPES},
        "scalar": torch.tensor(1 / 3, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "transposed": base.reshape(4, 6).t(),
        "strided": base[3:20:4],
        "shared_a": base[:12],
        "shared_b": base.reshape(2, 3, 4)[1:, :, ::2],
        "parameter": torch.nn.Parameter(torch.tensor([[1.0, -2.0]])),
        "attributed": attributed,
        "ordered": OrderedDict([("z", torch.ones(2)), ("a", torch.zeros(1))]),
        "plain": [1, -(2**40), 1.5, None, True, "text", (1, ("b",)), b"bytes"],
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "args": argparse.Namespace(lr=1e-4, model="Latte-XL/2", path=Path("x")),
    }


def arrays(obj: dict) -> dict[str, np.ndarray]:
    """Return the tensors of `kinds` by name, nested ones after a slash."""
    flat = {key: bits(value) for key, value in obj.items() if isinstance(value, torch.Tensor)}
    return flat | {f"ordered/{key}": bits(value) for key, value in obj["ordered"].items()}


def write_kinds() -> None:
    """Write one object in both serializations, and what it holds."""
    obj = kinds()
    np.savez_compressed(FOLDER / "kinds.npz", **arrays(obj))
    torch.save(obj, FOLDER / "kinds_zip.pt")
    torch.save(obj, FOLDER / "kinds_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(obj, FOLDER / "kinds_protocol4.pt", pickle_protocol=4)


def write_nestings() -> None:
    """Write the forms in which training programs nest a model's and its average's weights."""
    model = {"blocks.0.attn.qkv.weight": torch.full((2, 3), 1.0), "temp_embed": torch.full((1,), 2.0)}
    ema = {key: value + 10 for key, value in model.items()}
    both = {f"model.module._orig_mod.{key}": value for key, value in model.items()}
    both |= {f"ema._orig_mod.module.{key}": value for key, value in ema.items()} | {"vae.x": torch.zeros(1)}
    args = argparse.Namespace(seed=1)
    files = {
        "lightning.ckpt": {"epoch": 3, "state_dict": OrderedDict(both), "optimizer_states": [], "args": args},
        "official.pt": {"model": model, "ema": ema, "opt": {"state": {}, "param_groups": []}, "args": args},
        "wrapped.pt": {
            "model": {f"module._orig_mod.{key}": value for key, value in model.items()},
            "ema": {f"_orig_mod.module.{key}": value for key, value in ema.items()},
        },
        "ema_only.pt": {"ema": ema},
        "model_only.pt": {"model": model},
        "bare.pt": {f"module.{key}": value for key, value in model.items()} | {"epoch": 3},
    }
    for name, obj in files.items():
        torch.save(obj, FOLDER / name, _use_new_zipfile_serialization=name != "wrapped.pt")


def to_ldm(key: str, levels: int) -> str:
    """Return the name that latent-diffusion gives to a weight of diffusers' autoencoder."""
    key = re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers)", lambda m: f"up.{levels - 1 - int(m[1])}.{m[2]}", key)
    for old, new in (
        ("down_blocks.", "down."),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("resnets.", "block."),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
    ):
        key = key.replace(old, new)
    return re.sub(r"\.to_([qkv])\.", r".\1.", key)


def write_autoencoders() -> None:
    """Write one small autoencoder under its three kinds of names, the third inside a whole Stable Diffusion file."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (4, 8, 8), "layers_per_block": 2, "norm_num_groups": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(**sizes, **blocks).half()
    for parameter in vae.parameters():
        parameter.data.normal_()
    vae.save_pretrained(FOLDER / "vae")

    state = vae.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"\.(to_[qkv]|to_out\.0)\.")
    torch.save({pattern.sub(lambda m: f".{old[m[1]]}.", key): v for key, v in state.items()}, FOLDER / "vae_old.bin")

    ldm = {}
    for key, value in state.items():
        is_matrix = ".attentions." in key and value.ndim == 2
        ldm[to_ldm(key, 3)] = value[:, :, None, None] if is_matrix else value
    back = convert_ldm_vae_checkpoint(dict(ldm), {**vae.config})
    assert back.keys() == state.keys() and all(torch.equal(back[key].squeeze(), state[key].squeeze()) for key in state)
    full = {f"first_stage_model.{key}": value for key, value in ldm.items()}
    full |= {
        "first_stage_model.loss.logvar": torch.zeros(1),
        "model.diffusion_model.out.0.weight": torch.zeros(2),
        "model_ema.decay": torch.zeros(1),
        "cond_stage_model.transformer.weight": torch.zeros(2),
        "betas": torch.zeros(2),
    }
    torch.save({"global_step": 1, "state_dict": full}, FOLDER / "sd_full.ckpt")


def write_bicubic() -> None:
    """Write a position embedding and PyTorch's resampling of it to larger, smaller and oblong grids."""
    pos = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 6)).astype(np.float32))
    image = pos.reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    resized = {
        f"{h}x{w}": interpolate(image.double(), (h, w), mode="bicubic", align_corners=False)
        .permute(0, 2, 3, 1)
        .reshape(1, h * w, 6)
        .float()
        .numpy()
        for h, w in ((8, 8), (6, 6), (3, 3), (5, 7), (2, 3))
    }
    np.savez_compressed(FOLDER / "bicubic.npz", pos_embed=pos.numpy(), **resized)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_kinds()
    write_nestings()
    write_autoencoders()
    write_bicubic()
