"""Record the loss of training and some of its gradients that PyTorch computes with diffusers' LatteTransformer3DModel.

Needs PyTorch and diffusers; run by hand: `python tests/golden/make_t2v_training_fixtures.py`. The weights are those of
tests/fixtures/latte_t2v. The loss is written out here after Ho et al. (2020) and Nichol and Dhariwal (2021).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import LatteTransformer3DModel
from torch.distributions import Normal, kl_divergence

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TOKENS = (9, 5)  # of the two prompts
TIMES = (17, 801)
KEPT = (
    "pos_embed.proj.weight",
    "adaln_single.linear.bias",
    "caption_projection.linear_1.bias",
    "transformer_blocks.0.attn2.to_k.weight",
    "transformer_blocks.1.scale_shift_table",
    "temporal_transformer_blocks.0.attn1.to_q.weight",
    "temporal_transformer_blocks.1.ff.net.2.bias",
    "proj_out.weight",
)


def losses(out: torch.Tensor, x: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the loss of each video (B,); all are (B, C or 2C, F, H, W), and no t is 0."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = (1 - beta).cumprod(0)
    beta, alpha, before = (
        values[where].reshape(-1, 1, 1, 1, 1) for values, where in ((beta, t), (alpha, t), (alpha, t - 1))
    )
    eps, values = out.double().chunk(2, 1)
    small = beta * (1 - before) / (1 - alpha)

    def posterior(start: torch.Tensor) -> torch.Tensor:
        return (before.sqrt() * beta * start + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha)

    predicted = (x_t - (1 - alpha).sqrt() * eps.detach()) / alpha.sqrt()
    share = (values + 1) / 2
    deviation = (share * beta.log() + (1 - share) * small.log()).mul(0.5).exp()
    bound = kl_divergence(Normal(posterior(x.double()), small.sqrt()), Normal(posterior(predicted), deviation))
    return ((noise - eps) ** 2).flatten(1).mean(1) + bound.flatten(1).mean(1) / math.log(2)


def main() -> None:
    """Write tests/fixtures/latte_t2v_training.npz."""
    torch.manual_seed(0)
    net = LatteTransformer3DModel.from_pretrained(FIXTURES / "latte_t2v" / "transformer")
    x, noise = torch.randn(2, 2, 4, 4, 8, 8)
    text, t = torch.randn(2, 12, 32), torch.tensor(TIMES)
    mask = (torch.arange(12) < torch.tensor(TOKENS)[:, None]).long()
    alpha = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t].reshape(-1, 1, 1, 1, 1)
    x_t = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
    bias = ((1 - mask) * -10000.0)[:, None].repeat_interleave(4, 0)  # (B F, 1, S): diffusers does not repeat masks
    out = net(x_t.float(), t, text, encoder_attention_mask=bias).sample
    loss = losses(out, x, x_t, t, noise).mean()
    loss.backward()
    weights = dict(net.named_parameters())
    arrays = {f"gradient_{name}": weights[name].grad.numpy() for name in KEPT}
    norm = torch.stack([weight.grad.norm() for weight in weights.values()]).norm()
    videos = {"x_start": x.transpose(1, 2).contiguous().numpy(), "noise": noise.transpose(1, 2).contiguous().numpy()}
    others = {"text": text.numpy(), "mask": mask.numpy(), "t": t.numpy()}
    np.savez_compressed(
        FIXTURES / "latte_t2v_training.npz", loss=loss.item(), norm=norm.item(), **videos, **others, **arrays
    )
    print(loss.item(), norm.item())


if __name__ == "__main__":
    main()
