"""Solvers: from noise to clean latents, a network call at a time, in NumPy.

A network and its guidance are compiled; what a solver adds are a few sums over latents of about a megabyte.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np

from latte.diffusion import multistep, onestep
from latte.diffusion.onestep import Model, Network
from latte.diffusion.schedule import BETAS
from latte.diffusion.timesteps import SPACINGS, Grid, Steps, choose_timesteps
from latte.errors import UserError

VARIANCES = ("learned_range", *onestep.VALUES)


@dataclass(frozen=True)
class SolverSpec:
    """What is to be known of a solver besides its formula."""

    function: Callable[..., Iterator[np.ndarray]]  # (network, y, steps, noises, **options) -> y after each step
    spacing: str  # of its timesteps, if nobody says otherwise
    grid: Grid = "whole"  # of those timesteps
    spacings: tuple[str, ...] = SPACINGS  # those it can have
    fewest: int = 1  # steps that it needs, unless it is to skip_prk_steps
    calls: Callable[[int, Solver], int] = lambda n, _: n  # network calls of n steps
    options: tuple[str, ...] = ()  # fields of a Solver that its function takes
    adds_noise: bool = False  # whatever its options
    ends_at_first: bool = False  # ends at timestep 0 instead of at the clean latents: it cannot divide by no noise
    starts_at_sigma: bool = False  # from noise with the variance of timestep t's noise, a little below one


def _two_a_step(n: int, _: Solver) -> int:
    return 2 * n - 1


def _pndm_calls(n: int, sampler: Solver) -> int:
    return n + (min(n - 1, 1) if sampler.skip_prk_steps else 3 * multistep.WARM_UP)


# The solvers of k-diffusion walk fractional timesteps, and begin at the variance of the first one.
_K = {"spacing": "linspace", "grid": "fractional", "starts_at_sigma": True}
SOLVERS: dict[str, SolverSpec] = {
    "ddim": SolverSpec(onestep.euler, "respaced", options=("eta",)),
    "ddpm": SolverSpec(onestep.ddpm, "respaced", options=("variance",), adds_noise=True),
    "euler": SolverSpec(onestep.euler, **_K),
    "euler_a": SolverSpec(partial(onestep.euler, eta=1.0), **_K, adds_noise=True),
    "heun": SolverSpec(onestep.heun, **_K, calls=_two_a_step),
    "dpmpp_2m": SolverSpec(multistep.dpmpp_2m, "linspace", "one_more"),
    "dpmpp_s": SolverSpec(onestep.dpmpp_singlestep, "linspace", "one_more", ("respaced", "linspace")),
    "pndm": SolverSpec(
        multistep.pndm, "leading", fewest=multistep.WARM_UP + 1, calls=_pndm_calls, options=("skip_prk_steps",)
    ),
    "deis": SolverSpec(multistep.deis, "linspace", "one_more", ends_at_first=True),
    "kdpm2_a": SolverSpec(onestep.kdpm2_ancestral, **_K, calls=_two_a_step, adds_noise=True),
    "unipc": SolverSpec(multistep.unipc, "linspace", "one_more"),
}


@dataclass(frozen=True)
class Solver:
    """A solver with its options; None is what is usual for the solver. Raises UserError for what cannot be."""

    name: str
    _: KW_ONLY
    eta: float = 0.0  # ddim's noise: 0 = none, 1 = that of DDPM with fixed_small
    variance: str | None = None  # ddpm's; one of VARIANCES
    skip_prk_steps: bool = False  # pndm: without Runge-Kutta steps first
    spacing: str | None = None  # see `choose_timesteps`
    steps_offset: int = 0  # of leading timesteps
    ends_at_first: bool | None = None  # at timestep 0 instead of at the clean latents
    beta_schedule: str = "linear"  # or "scaled_linear": their square roots are linear
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            nearest = difflib.get_close_matches(self.name, SOLVERS, n=1, cutoff=0.0)[0]
            raise UserError(f"there is no solver '{self.name}': the nearest is '{nearest}' of {', '.join(SOLVERS)}")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta = {self.eta:g} is not possible: DDIM takes 0 (deterministic) to 1 (as noisy as DDPM)")
        for option, default in (("eta", 0.0), ("variance", None), ("skip_prk_steps", False)):
            value, takers = getattr(self, option), [name for name, s in SOLVERS.items() if option in s.options]
            if value != default and self.name not in takers:
                raise UserError(f"{option} = {value} has no meaning for {self.name}; it is for {' and '.join(takers)}")
        if self.variance is not None and self.variance not in VARIANCES:
            raise UserError(f"there is no variance '{self.variance}': choose {', '.join(VARIANCES)}")
        if self.spacing is not None and self.spacing not in self.solver.spacings:
            raise UserError(f"{self.name} has no spacing '{self.spacing}': choose {', '.join(self.solver.spacings)}")
        if self.ends_at_first is False and self.solver.ends_at_first:
            raise UserError(f"{self.name} cannot end without noise: it divides by it; use dpmpp_2m or unipc")
        if self.beta_schedule not in BETAS:
            raise UserError(f"there is no beta_schedule '{self.beta_schedule}': choose {', '.join(BETAS)}")

    @property
    def solver(self) -> SolverSpec:
        """Its row of the table."""
        return SOLVERS[self.name]

    @property
    def adds_noise(self) -> bool:
        """Whether it draws noise on its way."""
        return self.solver.adds_noise or self.eta > 0.0

    def steps(self, num_steps: int | str, strength: float = 1.0) -> Steps:
        """Return the walk of that many steps, or its end from a strength on; raises UserError if there is none."""
        steps = self._whole(num_steps)
        if strength == 1.0:
            return steps
        steps = steps.from_strength(strength)
        if len(steps.timesteps) < self.solver.fewest and not self.skip_prk_steps:
            raise UserError(f"{self.name} begins with Runge-Kutta: ask for more steps, or a strength nearer to 1")
        return steps

    def _whole(self, num_steps: int | str) -> Steps:
        solver, spacing = self.solver, self.spacing or self.solver.spacing
        alphas_cumprod = np.cumprod(1.0 - BETAS[self.beta_schedule](1000, self.beta_start, self.beta_end))
        timesteps = choose_timesteps(num_steps, spacing, solver.grid, self.steps_offset, len(alphas_cumprod))
        if len(timesteps) < solver.fewest and not self.skip_prk_steps:
            raise UserError(f"{self.name} begins with Runge-Kutta: ask for {solver.fewest} or more steps of sampling")
        at_first = solver.ends_at_first if self.ends_at_first is None else self.ends_at_first
        steps = Steps(timesteps, alphas_cumprod, float(alphas_cumprod[0]) if at_first else 1.0)
        if not solver.starts_at_sigma or spacing == "leading":
            return steps
        sigma = steps.sigmas[0]
        return Steps(timesteps, alphas_cumprod, steps.final_alpha, sigma / (1.0 + sigma**2) ** 0.5)

    def calls(self, num_steps: int | str, strength: float = 1.0) -> int:
        """Return how often that many steps call the network, or those that are left of them; see `sample`."""
        return self.solver.calls(len(self.steps(num_steps, strength).timesteps), self)

    def sample(
        self,
        model: Model,
        x: np.ndarray,
        num_steps: int | str,
        noises: Iterator[np.ndarray] | None = None,
        begin: np.ndarray | None = None,
        strength: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Walk from noise to data and yield x after each step, the last x being the clean latents.

        `model(x, t)` takes x (B, F, C, H, W) float32 of the variance preserving process (DDPM eq. 4) and one timestep,
        not always whole, and returns the predicted noise and maybe variance values (B, F, C or 2C, H, W). `x` is
        standard normal noise; `noises` gives more of it where it is needed (see `adds_noise`), and may be None where
        not. With `begin`, clean latents (B, F, C, H, W), and a `strength` below 1, the walk starts from them with as
        much noise as belongs there (SDEdit, Meng et al., 2022). Raises UserError for too many or too few steps and
        ValueError if noise is missing.
        """
        options = {name: getattr(self, name) for name in self.solver.options}
        steps = self.steps(num_steps, strength)
        sigmas = steps.sigmas
        y = x.astype(np.float32) * (steps.start_scale * (1.0 + sigmas[0] ** 2) ** 0.5)
        if strength != 1.0 and begin is not None:
            y = begin + np.float32(sigmas[0]) * x.astype(np.float32)
        walk = self.solver.function(Network(model), y, steps, _missing() if noises is None else noises, **options)
        for sigma, y in zip(sigmas[1:], walk, strict=True):
            yield y * (1.0 / (1.0 + sigma**2) ** 0.5)


def _missing() -> Iterator[Any]:
    raise ValueError("this solver adds noise: give it a source of noise")
    yield
