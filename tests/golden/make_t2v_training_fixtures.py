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


def mean_loss(
    net: LatteTransformer3DModel,
    x: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return the loss of videos x (B, C, F, H, W), or of images, of which blocks over frames know nothing."""
    frames = x.shape[2]
    alpha = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[t].reshape(-1, 1, 1, 1, 1)
    x_t = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
    bias = ((1 - mask) * -10000.0)[:, None].repeat_interleave(frames, 0)  # (B F, 1, S): diffusers repeats no masks
    out = net(x_t.float(), t, text, encoder_attention_mask=bias, enable_temporal_attentions=frames > 1).sample
    return losses(out, x, x_t, t, noise).mean()


def write(name: str, net: LatteTransformer3DModel, loss: torch.Tensor, **given: torch.Tensor) -> None:
    """Write a loss, its gradients and what it was computed from; x_start and noise become (B, F, C, H, W)."""
    net.zero_grad()
    loss.backward()
    weights = dict(net.named_parameters())
    arrays = {f"gradient_{key}": weights[key].grad.numpy() for key in KEPT}
    norm = torch.stack([weight.grad.norm() for weight in weights.values() if weight.grad is not None]).norm()
    values = {
        key: (value.transpose(1, 2).contiguous() if value.ndim == 5 else value).numpy() for key, value in given.items()
    }
    np.savez_compressed(FIXTURES / f"{name}.npz", loss=loss.item(), norm=norm.item(), **values, **arrays)
    print(name, loss.item(), norm.item())


def main() -> None:
    """Write tests/fixtures/latte_t2v_training.npz, and latte_t2v_joint.npz of videos with two images each."""
    torch.manual_seed(0)
    net = LatteTransformer3DModel.from_pretrained(FIXTURES / "latte_t2v" / "transformer")
    x, noise = torch.randn(2, 2, 4, 4, 8, 8)
    text, t = torch.randn(2, 12, 32), torch.tensor(TIMES)
    mask = (torch.arange(12) < torch.tensor(TOKENS)[:, None]).long()
    loss = mean_loss(net, x, noise, t, text, mask)
    write("latte_t2v_training", net, loss, x_start=x, noise=noise, text=text, mask=mask, t=t)

    x, noise = torch.randn(2, 2, 4, 6, 8, 8)  # four frames and two images, whose captions are their own
    text, mask = torch.randn(2, 3, 12, 32), (torch.arange(12) < torch.tensor(((9, 4, 12), (5, 1, 7)))[..., None]).long()
    loss = 4 / 6 * mean_loss(net, x[:, :, :4], noise[:, :, :4], t, text[:, 0], mask[:, 0])
    for i in (0, 1):  # every frame and every image has the same weight
        images = [each[:, :, 4 + i : 5 + i] for each in (x, noise)]
        loss = loss + 1 / 6 * mean_loss(net, *images, t, text[:, 1 + i], mask[:, 1 + i])
    write("latte_t2v_joint", net, loss, x_start=x, noise=noise, text=text, mask=mask, t=t)


if __name__ == "__main__":
    main()
