"""Which timesteps a solver walks, and how much noise there is at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latte.diffusion.schedule import space_timesteps
from latte.errors import UserError

Grid = Literal["whole", "fractional", "one_more"]
StepCount = int | str | Sequence[int]  # how many timesteps, as `choose_timesteps` takes it, or the timesteps themselves
SPACINGS = ("respaced", "leading", "linspace", "trailing")


@dataclass(frozen=True, eq=False)
class Steps:
    """The walk of a solver from noise to data.

    Solvers compute in the variance exploding form of the process, y = x_0 + sigma * noise, where sigma is the ratio of
    noise to signal and y = x * sqrt(1 + sigma^2) (EDM, Karras 2022, table 1): there most updates are one product.
    """

    timesteps: np.ndarray  # (N,) float64, falling; a network is called at each, maybe not only there
    alphas_cumprod: np.ndarray  # (1000,) float64, of the process that the network was trained on
    final_alpha: float = 1.0  # alphas_cumprod where the walk ends; 1 = at the clean latents
    start_scale: float = 1.0  # of the noise that x starts from

    @property
    def sigmas(self) -> list[float]:
        """Noise over signal at each timestep and at the end, N + 1 elements."""
        return [*map(self.sigma_at, self.timesteps.tolist()), float(_sigma(self.final_alpha))]

    def sigma_at(self, t: float) -> float:
        """Return noise over signal at a timestep, interpolated between whole ones."""
        return float(np.interp(t, np.arange(len(self.alphas_cumprod)), _sigma(self.alphas_cumprod)))

    def timestep_of(self, sigma: float) -> float:
        """Return the timestep at which there is that much noise, interpolated in the logarithm of sigma."""
        table = np.log(_sigma(self.alphas_cumprod))
        return float(np.interp(np.log(sigma), table, np.arange(len(table))))

    def from_strength(self, strength: float) -> Steps:
        """Return the end of the walk, that begins at this part of the noise's way, 0 to 1; one step is always left."""
        first = np.count_nonzero(self.timesteps >= strength * len(self.alphas_cumprod))
        kept = self.timesteps[min(first, len(self.timesteps) - 1) :]
        return Steps(kept, self.alphas_cumprod, self.final_alpha)

    def walk(self) -> list[tuple[float, float, float]]:
        """Return for each step the sigma where it starts, the sigma where it ends, and its timestep."""
        sigmas = self.sigmas
        return list(zip(sigmas[:-1], sigmas[1:], self.timesteps.tolist(), strict=True))


def choose_timesteps(
    num_steps: StepCount, spacing: str, grid: Grid = "whole", steps_offset: int = 0, total: int = 1000
) -> np.ndarray:
    """Choose `num_steps` of `total` timesteps and return them falling, (N,) float64.

    spacing: "respaced" as the official Latte code does it, where `num_steps` may be all that `space_timesteps` takes;
    or, as diffusers does it, "leading" (multiples of one stride from 0 on, plus `steps_offset`), "linspace" (from the
    first to the last) or "trailing" (one stride from the last on down).
    grid: what solvers differ in there: "whole" timesteps, "fractional" ones for linspace, or "one_more", which takes
    one more than asked for and leaves out the last one of the walk, since it ends at x_0 anyway.
    A list of timesteps instead of a number is taken as it is.
    Raises UserError for what is not possible.
    """
    if not isinstance(num_steps, int | str):
        return _listed(num_steps, total)
    if spacing == "respaced":
        return space_timesteps(total, num_steps)[::-1].astype(np.float64)
    if spacing not in SPACINGS:
        raise UserError(f"there is no timestep spacing '{spacing}': choose {', '.join(SPACINGS)}")
    if not str(num_steps).strip().isdecimal() or int(num_steps) < 1:
        raise UserError(f"'{num_steps}' is not a number of denoising steps: with {spacing} spacing write one like '20'")
    count = int(num_steps)
    points = count + (grid == "one_more")
    if spacing == "linspace":
        chosen = np.linspace(0, total - 1, points)
        # diffusers holds fractional timesteps in float32; the network is to see the same ones.
        chosen = chosen.astype(np.float32).astype(np.float64) if grid == "fractional" else chosen.round()
    elif spacing == "leading":
        chosen = np.arange(points) * float(total // points) + steps_offset
    else:
        # An arange of fractions: its rounding error decides which neighbour a half goes to. It can be one too long.
        chosen = np.arange(total, 0, -total / count)[:count].round()[::-1] - 1.0
    chosen = chosen[::-1][:count]
    if (np.diff(chosen) >= 0).any() or chosen[-1] < 0 or chosen[0] > total - 1:
        offset = f" and steps_offset {steps_offset}" if steps_offset else ""
        raise UserError(
            f"{count} steps with {spacing} spacing{offset} do not fit into {total} timesteps: ask for fewer steps"
        )
    return chosen


def _listed(timesteps: Sequence[int], total: int) -> np.ndarray:
    """Return timesteps that a user lists, (N,) float64; raises UserError unless they fall and lie in the training's."""
    whole = all(isinstance(t, int | np.integer) and 0 <= t < total for t in timesteps)
    if not (len(timesteps) and whole and (np.diff(np.asarray(timesteps)) < 0).all()):
        raise UserError(
            f"timesteps must be one or more whole numbers that fall, from at most {total - 1} to at least 0"
        )
    return np.asarray(timesteps, np.float64)


def _sigma(alphas_cumprod: np.ndarray | float) -> np.ndarray:
    """Noise over signal."""
    return np.sqrt((1.0 - alphas_cumprod) / alphas_cumprod)
