"""From a predicted velocity to the noise, for networks of `prediction_type` v_prediction.

The velocity is v = sqrt(a) noise - sqrt(1 - a) x_0 with a = alphas_cumprod (Salimans and Ho, 2022, arXiv 2202.00512).
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from latte.diffusion.schedule import create_schedule
from latte.runtime.tensors import narrow, rows


class Shares(nn.Cell):
    """The shares of data and noise in what the network sees: x_t = signal * x_0 + noise * eps (DDPM eq. 4)."""

    def __init__(self) -> None:
        super().__init__()
        of = create_schedule()
        sigmas = of.sqrt_one_minus_alphas_cumprod / of.sqrt_alphas_cumprod
        self.sigmas = ms.Tensor(sigmas.astype(np.float32))  # (1000,), noise over signal
        self.last = float(len(sigmas) - 1)

    def construct(self, t: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return signal and noise at `t` (B,) or (B, F), to multiply latents: 2 x (B, 1 or F, 1, 1, 1) float32.

        Between whole timesteps noise over signal is interpolated, as the solvers do it.
        """
        times = t.astype(ms.float32).reshape(-1)
        low = ops.floor(times)
        high = ops.minimum(low + 1.0, self.last)
        share = times - low
        below, above = rows(self.sigmas, low.astype(ms.int32)), rows(self.sigmas, high.astype(ms.int32))
        sigma = (1.0 - share) * below + share * above
        signal = ops.rsqrt(1.0 + sigma * sigma)
        shape = (t.shape[0], -1, 1, 1, 1)
        return signal.reshape(shape), (sigma * signal).reshape(shape)


def as_noise(out: ms.Tensor, x: ms.Tensor, signal: ms.Tensor, noise: ms.Tensor) -> ms.Tensor:
    """Return what a network puts out (B, F, C or 2C, H, W) with noise in its first C channels, where velocity was.

    x (B, F, C, H, W) is what it has seen; signal and noise are the shares of data and noise in it.
    """
    channels = x.shape[2]
    eps = signal * narrow(out, 2, 0, channels) + noise * x  # (B, F, C, H, W)
    if out.shape[2] == channels:
        return eps
    return ops.concat((eps, narrow(out, 2, channels, out.shape[2])), 2)
