"""What training minimises: the error of the predicted noise plus the VLB term of the learned variance."""

from __future__ import annotations

from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from latte.diffusion.gaussian import GaussianTables, float32, make_tables, mean_flat, q_sample, variational_bound
from latte.diffusion.schedule import Schedule, create_schedule
from latte.runtime.tensors import mean, narrow, rows, split

Weighting = Literal["uniform", "min_snr", "v"]
GAMMA = 5.0  # the bound of min_snr that its paper recommends


def weights_of(schedule: Schedule, weighting: Weighting) -> np.ndarray | None:
    """Return the weight of the squared error of each timestep (steps,) float64; None if all are 1.

    With the signal-to-noise ratio SNR = a / (1 - a), a = alphas_cumprod: min_snr is min(SNR, 5) / SNR, for predicted
    noise (Hang et al. 2023, arXiv 2303.09556); v is 1 / a, with which it is the squared error of the velocity
    v = sqrt(a) noise - sqrt(1 - a) x_0 (Salimans and Ho 2022, arXiv 2202.00512) that belongs to the predicted noise.
    """
    signal = schedule.alphas_cumprod
    if weighting == "min_snr":
        ratio = signal / (1 - signal)
        return np.minimum(ratio, GAMMA) / ratio
    return 1 / signal if weighting == "v" else None


def loss_terms(
    tables: GaussianTables,
    model_out: Tensor,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-video loss, mean squared error and VLB term (bits), each (B,) float32; loss = weight * mse + VLB term.

    ``weights`` is (steps,) float32, see `weights_of`; None = 1 for all. ``share`` (B, F, 1, 1, 1) weighs frames; their
    mean is 1 in each video.
    ``model_out`` is (B, F, 2C, H, W): predicted noise, then variance values. The VLB term sees the prediction detached,
    so that it trains the variance only: "L_hybrid" of IDDPM eq. 16, here with the VLB term at weight 1 and in bits.
    """
    eps, values = split(float32(model_out), x_start.shape[2], 2)  # 2 x (B, F, C, H, W)
    error = float32(noise) - eps
    mse = mean_flat(error * error if share is None else error * error * share)
    vb = variational_bound(tables, ops.stop_gradient(eps), values, x_start, x_t, t, share)
    weighted = mse if weights is None else rows(weights, t) * mse
    return weighted + vb, mse, vb


class DiffusionLoss(nn.Cell):
    """A network with its training loss around it; timesteps and noise are drawn outside and passed in.

    ``network(x_t, t)``, or ``network(x_t, t, condition)``, maps (B, F, C, H, W) to (B, F, 2C, H, W). ``schedule``
    defaults to the 1000 linear steps.
    """

    def __init__(self, network: nn.Cell, schedule: Schedule | None = None, weighting: Weighting = "uniform") -> None:
        super().__init__()
        self.network = network
        schedule = schedule or create_schedule()
        self.tables, weights = make_tables(schedule), weights_of(schedule, weighting)
        self.weights = None if weights is None else Tensor(weights, ms.float32)  # (steps,)

    def construct(
        self, x_start: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per-video (loss, mse, VLB term), each (B,), for x_start and noise (B, F, C, H, W) and t (B,) int32.

        t may be (B, 1 + F): then for each frame 1 if it is noisy, or 0 if it is a conditioning frame. The network sees
        conditioning frames as they are, at timestep 0, and the loss leaves them out.
        """
        if t.ndim > 1:
            return self._given_frames(x_start, t, noise, condition)
        x_t = q_sample(self.tables, x_start, t, noise)  # (B, F, C, H, W)
        model_out = self.network(x_t, t) if condition is None else self.network(x_t, t, condition)  # (B, F, 2C, H, W)
        return loss_terms(self.tables, model_out, x_start, x_t, t, noise, self.weights)

    def _given_frames(
        self, x_start: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        noisy = narrow(t, 1, 1, t.shape[1])  # (B, F)
        t = narrow(t, 1, 0, 1)  # (B, 1)
        times, t = t * noisy, t.reshape(-1)  # (B, F), (B,)
        kept = float32(noisy).reshape((*noisy.shape, 1, 1, 1))  # (B, F, 1, 1, 1)
        x_t = kept * q_sample(self.tables, x_start, t, noise) + (1.0 - kept) * float32(x_start)  # (B, F, C, H, W)
        out = self.network(x_t, times) if condition is None else self.network(x_t, times, condition)
        share = kept / mean(kept, 1, True)
        return loss_terms(self.tables, out, x_start, x_t, t, noise, self.weights, share)
