"""Classifier-free guidance on the outputs of a network."""

from mindspore import Tensor, ops

from latte.diffusion.gaussian import float32


def guided(cond: Tensor, uncond: Tensor, scale: float, channels: int) -> Tensor:
    """Move the predicted noise from the unconditional towards and past the conditional one.

    Both inputs are (B, F, 2C, H, W), noise then variance values, or (B, F, C, H, W), noise alone, with C = `channels`;
    the result is too, in float32. The noise is
    uncond + scale * (cond - uncond), scale 1 being plain conditional (Ho & Salimans 2021 eq. 6, whose w is scale - 1);
    the variance values are the conditional ones, untouched.
    """
    cond, uncond = float32(cond), float32(uncond)
    eps, eps_uncond = cond[:, :, :channels], uncond[:, :, :channels]  # (B, F, C, H, W)
    eps = eps_uncond + scale * (eps - eps_uncond)
    if cond.shape[2] == channels:
        return eps
    return ops.concat((eps, cond[:, :, channels:]), axis=2)
