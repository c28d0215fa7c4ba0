"""The Gaussian algebra of diffusion on tensors: noising, posterior, learned variance, VLB term.

Pure functions that compile into a graph. Everywhere x is (B, F, C, H, W), t is (B,) int32 with indices into the
schedule, and arithmetic is float32 whatever the precision of the network: its outputs are cast on entry.
"""

import math
from typing import NamedTuple

import mindspore as ms
from mindspore import Tensor, ops

from latte.diffusion.schedule import Schedule
from latte.runtime.tensors import mean, rows

PIXEL_HALF_WIDTH = 1.0 / 255.0  # half of the distance between two 8-bit values in [-1, 1]
TINY = 1e-12  # probabilities are kept above it, so that their logarithm is finite


class GaussianTables(NamedTuple):
    """Those tables of a schedule that training looks up on the device, each (steps,) float32."""

    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    posterior_log_variance_clipped: Tensor
    log_betas: Tensor


def make_tables(schedule: Schedule) -> GaussianTables:
    """Round a schedule's float64 tables to float32 tensors, once, after all of its arithmetic is done."""
    return GaussianTables(*[Tensor(getattr(schedule, name), ms.float32) for name in GaussianTables._fields])


def lookup(table: Tensor, t: Tensor) -> Tensor:
    """Entries ``t`` (B,) of a table (steps,), shaped (B, 1, 1, 1, 1) to multiply a video latent."""
    return rows(table, t).reshape((-1, 1, 1, 1, 1))


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all axes but the first: (B, ...) -> (B,)."""
    return mean(x.reshape((x.shape[0], -1)), 1)


def q_sample(tables: GaussianTables, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Noise the data to step t: x_t from q(x_t | x_0) with the given standard normal noise (DDPM eq. 4)."""
    signal = lookup(tables.sqrt_alphas_cumprod, t) * float32(x_start)
    return signal + lookup(tables.sqrt_one_minus_alphas_cumprod, t) * float32(noise)


def q_posterior(tables: GaussianTables, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (like x) and clipped log variance (B, 1, 1, 1, 1) of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
    mean = lookup(tables.posterior_mean_coef1, t) * float32(x_start)
    mean = mean + lookup(tables.posterior_mean_coef2, t) * float32(x_t)
    return mean, lookup(tables.posterior_log_variance_clipped, t)


def predict_x_start(tables: GaussianTables, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The data that x_t would come from if ``eps`` were its noise (DDPM eq. 4 solved for x_0)."""
    scaled = lookup(tables.sqrt_recip_alphas_cumprod, t) * float32(x_t)
    return scaled - lookup(tables.sqrt_recipm1_alphas_cumprod, t) * float32(eps)


def learned_range_log_variance(tables: GaussianTables, values: Tensor, t: Tensor) -> Tensor:
    """Log variance from the network's interpolation values, of which -1 means the posterior's and 1 means beta.

    ``values`` is like x and not clamped: a network may leave the range. Formula: IDDPM eq. 15.
    """
    fraction = (float32(values) + 1.0) / 2.0
    low, high = lookup(tables.posterior_log_variance_clipped, t), lookup(tables.log_betas, t)
    return fraction * high + (1.0 - fraction) * low


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)) by element, in nats; the shapes broadcast."""
    spread = log_var2 - log_var1 + ops.exp(log_var1 - log_var2)
    distance = mean1 - mean2
    return 0.5 * (spread - 1.0 + distance * distance * ops.exp(-log_var2))


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """Cumulative distribution of N(0, 1) by the tanh approximation that Latte was trained with (Page 1977)."""
    z = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    # tanh(z) written out, because MindSpore's CPU kernel of it is off by 1e-4 beyond |z| = 5. Do not simplify further:
    # "1 + tanh" rounds the far tail to 0 in float32, as in the original, and the VLB term depends on where it does.
    tanh = 2.0 * ops.sigmoid(2.0 * z) - 1.0
    return 0.5 * (1.0 + tanh)


def discretized_gaussian_nll(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Negative log likelihood, by element and in nats, of x seen as an 8-bit value in [-1, 1] (DDPM eq. 13).

    Latents are no 8-bit values, but the released networks were trained with this term at t = 0.
    """
    centred, inverse_std = x - mean, ops.exp(-log_std)
    upper = approx_standard_normal_cdf(inverse_std * (centred + PIXEL_HALF_WIDTH))
    lower = approx_standard_normal_cdf(inverse_std * (centred - PIXEL_HALF_WIDTH))
    # The first and the last of the 256 values own the whole tail on their side.
    probability = ops.where(x < -0.999, upper, ops.where(x > 0.999, 1.0 - lower, upper - lower))
    return -ops.log(ops.clamp(probability, min=TINY))


def variational_bound(
    tables: GaussianTables,
    eps: Tensor,
    values: Tensor,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    share: Tensor | None = None,
) -> Tensor:
    """The term of the variational lower bound (VLB) at step t, in bits per dimension: (B,).

    ``eps`` and ``values`` are the two halves of the network's output, each like x. The term is
    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 the decoder's -log p(x_0 | x_1) (IDDPM eq. 4 to 7).
    ``share`` (B, F, 1, 1, 1) weighs frames.
    """
    x_start = float32(x_start)
    true_mean, true_log_var = q_posterior(tables, x_start, x_t, t)
    mean, _ = q_posterior(tables, predict_x_start(tables, x_t, t, eps), x_t, t)
    log_var = learned_range_log_variance(tables, values, t)
    kl = normal_kl(true_mean, true_log_var, mean, log_var)
    nll = discretized_gaussian_nll(x_start, mean, 0.5 * log_var)
    kl, nll = [mean_flat(each if share is None else each * share) for each in (kl, nll)]
    return ops.where(t == 0, nll, kl) / math.log(2.0)


def float32(x: Tensor) -> Tensor:
    """Return the same elements in float32."""
    return ops.cast(x, ms.float32)
