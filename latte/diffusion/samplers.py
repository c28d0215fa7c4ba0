"""From noise to latents: solvers as functions of one step, their coefficients as tables, and the loop over steps.

All that differs between steps enters as numbers (the timestep and a row of coefficients), so a compiled step serves
every step of every schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from latte.diffusion.gaussian import float32
from latte.diffusion.guidance import guided
from latte.diffusion.schedule import Schedule
from latte.errors import UserError

NOISE = 2  # the column of a coefficient row that scales the noise; 0 there means that the step draws none

Step = Callable[..., Tensor]  # step(x, t, noise, coef, *conditions) -> x of the next step


def ddpm_step(x: Tensor, model_out: Tensor, noise: Tensor, coef: Tensor) -> Tensor:
    """One ancestral step with learned variance: x_{t-1} from p(x_{t-1} | x_t) (DDPM algorithm 2, IDDPM eq. 15).

    x and noise are (B, F, C, H, W) float32, model_out (B, F, 2C, H, W), coef a row (5,) of :func:`coefficients`.
    """
    eps, values = ops.split(float32(model_out), x.shape[2], axis=2)  # 2 x (B, F, C, H, W)
    std = ops.exp(coef[3] + coef[4] * values)
    return coef[0] * x + coef[1] * eps + coef[NOISE] * std * noise


def ddim_step(x: Tensor, model_out: Tensor, noise: Tensor, coef: Tensor) -> Tensor:
    """One DDIM step (DDIM eq. 12); variance values, if the network has any, are not used.

    x and noise are (B, F, C, H, W) float32, model_out (B, F, C or 2C, H, W), coef a row (3,) of :func:`coefficients`.
    """
    eps = float32(model_out)[:, :, : x.shape[2]]  # (B, F, C, H, W)
    return coef[0] * x + coef[1] * eps + coef[NOISE] * noise


def _ddpm_coefficients(schedule: Schedule, eta: float) -> list[np.ndarray]:
    """Columns x, eps, noise (0 or 1), centre and half range of the log standard deviation."""
    if eta != 0.0:
        raise UserError(f"eta = {eta:g} has no meaning for the ddpm solver: leave it at 0, or use ddim")
    s = schedule
    # The posterior's mean (DDPM eq. 7) with x_0 = recip * x - recipm1 * eps put in.
    of_x = s.posterior_mean_coef1 * s.sqrt_recip_alphas_cumprod + s.posterior_mean_coef2
    of_eps = -s.posterior_mean_coef1 * s.sqrt_recipm1_alphas_cumprod
    # 0.5 * log variance = centre + half * values, for values from -1 (posterior) to 1 (beta).
    low, high = 0.5 * s.posterior_log_variance_clipped, 0.5 * s.log_betas
    noise = (np.arange(s.steps) > 0).astype(np.float64)  # the last step taken, to x_0, ends at its mean
    return [of_x, of_eps, noise, 0.5 * (low + high), 0.5 * (high - low)]


def _ddim_coefficients(schedule: Schedule, eta: float) -> list[np.ndarray]:
    """Columns x, eps, noise (sigma)."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta = {eta:g} is not possible: DDIM takes 0 (deterministic) to 1 (as noisy as DDPM)")
    s, prev = schedule, schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt((1.0 - prev) / (1.0 - s.alphas_cumprod) * s.betas)  # DDIM eq. 16; 0 at step 0
    of_x = np.sqrt(prev) * s.sqrt_recip_alphas_cumprod
    of_eps = np.sqrt(np.maximum(1.0 - prev - sigma**2, 0.0)) - np.sqrt(prev) * s.sqrt_recipm1_alphas_cumprod
    return [of_x, of_eps, sigma]


SOLVERS = {"ddpm": (ddpm_step, _ddpm_coefficients), "ddim": (ddim_step, _ddim_coefficients)}


def coefficients(solver: str, schedule: Schedule, eta: float = 0.0) -> np.ndarray:
    """The numbers a solver needs at each step, computed in float64: (steps, K) float32, row i for schedule step i.

    ``eta`` is DDIM's noise level. Raises UserError for an unknown solver or an impossible eta.
    """
    columns = _solver(solver)[1](schedule, float(eta))
    return np.stack(columns, axis=1).astype(np.float32)


def make_step(
    network: Callable[..., Tensor], solver: str, guidance_scale: float = 1.0, batched_guidance: bool = True
) -> Step:
    """Put network, guidance and solver together: ``step(x, t, noise, coef, *conditions)`` -> x of the next step.

    The step is a plain function that takes tensors only: compile it whole with ``ms.jit``, or call it as it is around a
    network that compiles its own pieces. x and noise are (B, F, C, H, W) float32, t (B,) int32 in the process of
    training, coef (K,) float32. At a guidance scale other than 1 the conditions are those to follow and then as many
    for "none", e.g. (y, y_null). ``batched_guidance`` runs both as one batch of 2B (faster on accelerators), else as
    two calls (half the memory). Load weights before the first compiled call: a graph built by ``ms.jit`` sees later
    updates in place (``ops.assign``), but not ``set_data`` or ``load_param_into_net``. Raises UserError for an unknown
    solver; the step raises ValueError if it is to guide with conditions that are no pairs.
    """
    solver_step = _solver(solver)[0]
    scale = float(guidance_scale)

    def plain(x, t, noise, coef, *conditions):
        return solver_step(x, network(x, t, *conditions), noise, coef)

    def two_calls(x, t, noise, coef, *conditions):
        half = _half(conditions)
        cond = network(x, t, *conditions[:half])  # (B, F, 2C, H, W)
        uncond = network(x, t, *conditions[half:])  # (B, F, 2C, H, W)
        return solver_step(x, guided(cond, uncond, scale, x.shape[2]), noise, coef)

    def one_batch(x, t, noise, coef, *conditions):
        half = _half(conditions)
        pairs = [ops.concat((conditions[i], conditions[half + i]), axis=0) for i in range(half)]  # each (2B, ...)
        both = network(ops.concat((x, x), axis=0), ops.concat((t, t), axis=0), *pairs)  # (2B, F, 2C, H, W)
        cond, uncond = ops.split(both, x.shape[0], axis=0)  # 2 x (B, F, 2C, H, W)
        return solver_step(x, guided(cond, uncond, scale, x.shape[2]), noise, coef)

    if scale == 1.0:
        return plain
    return one_batch if batched_guidance else two_calls


def sample_loop(
    step: Step,
    x: Tensor,
    noises: Iterator[np.ndarray] | None,
    timesteps: np.ndarray,
    coefs: np.ndarray,
    conditions: Sequence[Any] = (),
) -> Iterator[tuple[int, Tensor]]:
    """Walk from noise to data and yield (number of the step, x after it) at each step, the last x being the sample.

    ``x`` is the starting noise (B, F, C, H, W); ``noises`` gives an array like x for each step that adds noise (a
    :class:`NoiseStream` does), and may be None where none does (DDIM with eta 0). ``timesteps`` are those of the
    schedule and ``coefs`` its :func:`coefficients`, walked from the end. Raises ValueError if they do not match or if
    noise is missing.
    """
    if len(timesteps) != len(coefs):
        raise ValueError(f"{len(timesteps)} timesteps but {len(coefs)} rows of coefficients")
    x = float32(x)
    no_noise = ops.zeros_like(x)
    for taken, index in enumerate(reversed(range(len(timesteps)))):
        noise = no_noise
        if coefs[index, NOISE] != 0.0:
            if noises is None:
                raise ValueError("this solver adds noise: give sample_loop a source of it")
            noise = Tensor(next(noises), ms.float32)
        t = Tensor(np.full(x.shape[0], timesteps[index]), ms.int32)  # (B,)
        x = step(x, t, noise, Tensor(coefs[index], ms.float32), *conditions)
        yield taken, x


class NoiseStream:
    """Standard normal noise of which each video has its own stream, keyed by that video's seed.

    A video's numbers are the same in whatever batch, on whatever rank and device it is sampled. ``shape`` is that of
    one video, (F, C, H, W). Raises UserError for a negative seed or none at all.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]) -> None:
        if len(seeds) == 0 or min(seeds) < 0:
            raise UserError(f"seeds must be whole numbers from 0 on, one a video; got {list(seeds)}")
        self.seeds, self.shape = list(seeds), tuple(shape)
        self.generators = [np.random.Generator(np.random.Philox(int(seed))) for seed in seeds]

    def normal(self) -> np.ndarray:
        """The next noise of every video: (B, F, C, H, W) float32."""
        # Drawn in float64: a last-bit difference between platforms' logarithms then vanishes in the rounding.
        return np.stack([g.standard_normal(self.shape) for g in self.generators]).astype(np.float32)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return self.normal()


def _half(conditions: Sequence[Any]) -> int:
    """How many conditions are to be followed, the others being those for "none". Raises ValueError if they differ."""
    if len(conditions) == 0 or len(conditions) % 2 == 1:
        raise ValueError("guidance needs conditions and as many for none, such as (y, y_null)")
    return len(conditions) // 2


def _solver(name: str) -> tuple[Callable, Callable]:
    """Step and coefficient functions of a solver. Raises UserError with the names of those there are."""
    if name not in SOLVERS:
        raise UserError(f"there is no solver '{name}': choose {' or '.join(SOLVERS)}")
    return SOLVERS[name]
