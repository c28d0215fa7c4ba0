"""Noise schedules as float64 numpy tables, and the choice of fewer steps for sampling (respacing)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latte.errors import UserError


@dataclass(frozen=True, eq=False)
class Schedule:
    """Every table of a diffusion process, float64 of shape (steps,); index 0 is the step next to the data.

    Notation of DDPM (Ho 2020): alpha_t = 1 - beta_t, alphas_cumprod = the running product of alpha. The posterior is
    q(x_{t-1} | x_t, x_0) of DDPM eq. 6 and 7. Build one with :func:`make_schedule`.
    """

    betas: np.ndarray
    log_betas: np.ndarray  # upper end of the learned variance range
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray  # one step closer to the data; 1 at step 0
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray  # 0 at step 0
    posterior_log_variance_clipped: np.ndarray  # lower end of the learned variance range; step 0 repeats step 1
    posterior_mean_coef1: np.ndarray  # of x_0
    posterior_mean_coef2: np.ndarray  # of x_t

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.betas)


def linear_betas(num: int = 1000, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """Noise variances growing linearly from ``start`` to ``end`` (DDPM section 4). Returns (num,) float64."""
    return np.linspace(start, end, num, dtype=np.float64)


def scaled_linear_betas(num: int = 1000, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """Noise variances whose square roots grow linearly, as in Stable Diffusion. Returns (num,) float64."""
    return np.linspace(start**0.5, end**0.5, num, dtype=np.float64) ** 2


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}


def make_schedule(betas: np.ndarray) -> Schedule:
    """Derive all tables from the noise variances.

    ``betas`` is (steps,), each in (0, 1). Raises ValueError for anything else. Formulas: DDPM eq. 4 and 7.
    """
    betas = np.array(betas, dtype=np.float64)
    if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError("betas must be a non-empty 1-D array of numbers between 0 and 1")

    alphas = 1.0 - betas
    cumprod = np.cumprod(alphas)
    prev = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - prev) / (1.0 - cumprod)
    # The variance of step 0 is 0, whose logarithm the learned range cannot use: it borrows its neighbour's.
    clipped = np.append(variance[1:2] if len(betas) > 1 else betas, variance[1:])
    tables = {
        "betas": betas,
        "log_betas": np.log(betas),
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / cumprod - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1.0 - cumprod),
        "posterior_mean_coef2": (1.0 - prev) * np.sqrt(alphas) / (1.0 - cumprod),
    }
    for table in tables.values():
        table.setflags(write=False)
    return Schedule(**tables)


def create_schedule(num: int = 1000) -> Schedule:
    """The process Latte was trained on: ``num`` linear steps."""
    return make_schedule(linear_betas(num))


def space_timesteps(num: int, respacing: str | int) -> np.ndarray:
    """Choose which of ``num`` steps to keep. Returns them in ascending order, int64.

    - ``"250"``: that many steps, evenly spread from the first to the last (IDDPM section 4).
    - ``"10,15,20"``: the process is cut into equal sections, each spread like that by itself.
    - ``"ddim50"``: every k-th step from step 0 for the smallest integer k that gives exactly 50 (DDIM appendix D.2).

    Raises UserError, which names what would be possible, for a request that cannot be met.
    """
    request = str(respacing).strip()
    if request.startswith("ddim"):
        return _integer_stride(num, _count(request[len("ddim") :], request))
    counts = [_count(part, request) for part in request.split(",")]
    kept, start = [], 0
    for index, count in enumerate(counts):
        size = num // len(counts) + (1 if index < num % len(counts) else 0)
        if count > size:
            where = "" if len(counts) == 1 else f" (section {index + 1} of {len(counts)})"
            raise UserError(
                f"cannot take {count} of {size} diffusion steps{where}: ask for 1 to {size}, not '{request}'"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1
        # The position is summed up, not multiplied: which neighbour a half rounds to depends on that rounding error,
        # and steps must be the same as everywhere else for samples to be.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return np.array(sorted(set(kept)), dtype=np.int64)


def _count(text: str, request: str) -> int:
    """A positive number of steps out of a request. Raises UserError for anything else."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"'{request}' is not a number of diffusion steps: write '250', 'ddim50' or '10,15,20'")
    return int(text)


def _integer_stride(num: int, count: int) -> np.ndarray:
    """The first integer stride that keeps exactly ``count`` of ``num`` steps. Raises UserError if there is none."""
    possible = {len(range(0, num, stride)): stride for stride in range(num - 1, 0, -1)}
    if count not in possible:
        near = sorted(sorted(possible, key=lambda other: abs(other - count))[:4])
        raise UserError(
            f"'ddim{count}' is not possible: no integer stride over {num} diffusion steps keeps {count} of them; "
            f"near it are {', '.join(f'ddim{other}' for other in near)}"
        )
    return np.arange(0, num, possible[count], dtype=np.int64)
