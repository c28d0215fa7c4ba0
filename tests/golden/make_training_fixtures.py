"""Record what official PyTorch training computes: ten steps of AdamW with clipping and EMA weights.

Run by hand with torch, and a checkout of the official repository on PYTHONPATH:
    PYTHONPATH=../Latte:tools python tests/golden/make_training_fixtures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from benchmark_torch import stand_in_for_timm

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
STEPS, CLIP_FROM, MAX_NORM, DECAY = 10, 5, 0.5, 0.95
SETTINGS = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}
KEPT = ("x_embedder.proj.weight", "t_embedder.mlp.2.bias", "blocks.0.attn.qkv.bias", "blocks.3.mlp.fc2.bias")


def official_network() -> torch.nn.Module:
    """Build the network of the fixture and load its weights."""
    stand_in_for_timm()  # and for the package `models`, whose __init__ imports much more
    from models.latte import Latte

    net = Latte(input_size=8, patch_size=2, hidden_size=64, depth=4, num_heads=4, num_frames=4, extras=1)
    net.load_state_dict(torch.load(FIXTURES / "latte_uncond.pt", weights_only=True)["model"])
    return net.train()


def main() -> None:
    """Train ten steps on one recorded batch and write losses, norms and a few weights."""
    from diffusion import create_diffusion

    with np.load(FIXTURES / "diffusion_training.npz") as file:
        x, t, noise = (torch.from_numpy(file[name]) for name in ("x_start", "t", "noise"))
    net, diffusion = official_network(), create_diffusion("")
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], **SETTINGS)
    losses, norms = [], []
    for step in range(STEPS):
        loss = diffusion.training_losses(net, x, t, {}, noise=noise)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        limit = MAX_NORM if step >= CLIP_FROM else float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), limit)))
        optimizer.step()
        losses.append(loss.item())
        for name, p in net.named_parameters():
            average[name].mul_(DECAY).add_(p.data, alpha=1 - DECAY)
    weights = dict(net.named_parameters())
    arrays = {f"weight_{name}": weights[name].detach().numpy() for name in KEPT}
    arrays |= {f"average_{name}": average[name].numpy() for name in KEPT}
    np.savez(FIXTURES / "adamw_steps.npz", losses=np.array(losses), norms=np.array(norms), **arrays)
    print(losses, norms)


if __name__ == "__main__":
    main()
