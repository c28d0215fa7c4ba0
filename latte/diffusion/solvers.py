"""Solvers: from noise to clean latents, a network call at a time; one solver, one function.

All are generators that yield y after each step, written for y = x_0 + sigma * noise, where the probability flow is
dy/dsigma = predicted noise (EDM eq. 1). Coefficients are Python floats, that is float64; latents stay float32, and are
arrays of NumPy or tensors on a device, whatever the walk begins with. A network and its guidance are compiled; what a
solver adds are a few sums over latents of about a megabyte.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from latte.diffusion.arrays import Latents, exp
from latte.diffusion.schedule import BETAS
from latte.diffusion.scheduler_config import config_of, solver_of
from latte.diffusion.timesteps import SPACINGS, Grid, StepCount, Steps, choose_timesteps
from latte.errors import UserError

Model = Callable[[Latents, float], Latents]  # model(x, t) -> predicted noise, or noise and variance values
Noises = Iterator[Latents]
FEW = 15  # with fewer steps than this the last one of a multistep solver has order 1, which is steadier
WARM_UP = 3  # Runge-Kutta steps that PNDM begins with
VALUES = {"fixed_small": -1.0, "fixed_large": 1.0}  # what a network would say that had learned such a variance
VARIANCES = ("learned_range", *VALUES)


@dataclass(frozen=True)
class Network:
    """A model seen from y = x_0 + sigma * noise, of shape (B, F, C, H, W)."""

    model: Model

    def output(self, y: Latents, sigma: float, t: float) -> Latents:
        """Return all that the model says, (B, F, C or 2C, H, W)."""
        return self.model(y * (1.0 / math.sqrt(1.0 + sigma**2)), t)

    def noise(self, y: Latents, sigma: float, t: float) -> Latents:
        """Return the predicted noise, like y."""
        return self.output(y, sigma, t)[:, :, : y.shape[2]]

    def data(self, y: Latents, sigma: float, t: float) -> Latents:
        """Return the predicted clean latents, like y."""
        return y - sigma * self.noise(y, sigma, t)


def toward(y: Latents, sigma: float, end: float, data: Latents) -> Latents:
    """Move y from noise level `sigma` to `end` on the straight line to predicted clean latents."""
    ratio = end / sigma
    return ratio * y + (1.0 - ratio) * data


def split(sigma: float, end: float, eta: float = 1.0) -> tuple[float, float]:
    """Split the noise at `end` into what remains of the old and the standard deviation of what is new.

    At eta 1 the new noise has the variance of the DDPM posterior (DDIM eq. 16); at 0 there is none.
    """
    new = eta * end * math.sqrt(max(sigma**2 - end**2, 0.0)) / sigma
    return math.sqrt(max(end**2 - new**2, 0.0)), new


def euler(net: Network, y: Latents, steps: Steps, noises: Noises, eta: float = 0.0) -> Iterator[Latents]:
    """Euler's method, which is DDIM (DDIM eq. 12 and 14); with eta 1, the ancestral one."""
    for sigma, end, t in steps.walk():
        old, new = split(sigma, end, eta)
        y = y + (old - sigma) * net.noise(y, sigma, t)
        if new > 0.0:
            y = y + new * next(noises)
        yield y


def ddpm(net: Network, y: Latents, steps: Steps, noises: Noises, variance: str | None = None) -> Iterator[Latents]:
    """Ancestral sampling (DDPM algorithm 2) with a variance between posterior and beta (IDDPM eq. 15).

    variance: "learned_range" takes the network's values, "fixed_small" the posterior's, "fixed_large" beta; None is
    learned_range if the network gives values, else fixed_small. The last step, to x_0, ends at its mean.
    """
    for sigma, end, t in steps.walk():
        out = net.output(y, sigma, t)  # (B, F, C or 2C, H, W)
        eps, values = out[:, :, : y.shape[2]], out[:, :, y.shape[2] :]
        if variance == "learned_range" and not values.shape[2]:
            raise UserError("variance learned_range needs a network that predicts variance; use fixed_small or ddim")
        old, small = split(sigma, end)  # small: the posterior's
        y = y + (old - sigma) * eps
        if small > 0.0:
            # log standard deviation = low + half * (values + 1), for values from -1 (posterior) to 1 (beta).
            low = math.log(small)
            half = 0.5 * (0.5 * math.log((sigma**2 - end**2) * (1.0 + end**2) / (1.0 + sigma**2)) - low)
            if variance in VALUES or not values.shape[2]:
                std = math.exp(low + half * (VALUES[variance or "fixed_small"] + 1.0))
            else:
                std = exp(low + half * (values + 1.0))
            y = y + std * next(noises)
        yield y


def heun(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """Heun's method of order 2 (EDM algorithm 1 without churn); the last step is Euler's."""
    walk = steps.walk()
    for i, (sigma, end, t) in enumerate(walk):
        slope = net.noise(y, sigma, t)
        guess = y + (end - sigma) * slope
        if i + 1 < len(walk):
            slope = 0.5 * (slope + net.noise(guess, end, walk[i + 1][2]))
        y = y + (end - sigma) * slope
        yield y


def kdpm2_ancestral(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """DPM-Solver-2 with new noise: a step through the geometric mean of both noise levels; the last is Euler's."""
    for sigma, end, t in steps.walk():
        old, new = split(sigma, end)
        slope = net.noise(y, sigma, t)
        if old > 0.0:
            middle = math.sqrt(sigma * old)
            slope = net.noise(y + (middle - sigma) * slope, middle, steps.timestep_of(middle))
        y = y + (old - sigma) * slope
        if new > 0.0:
            y = y + new * next(noises)
        yield y


def dpmpp_singlestep(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """DPM-Solver++(2S): every second step goes again from the start of the one before it, with order 2.

    The last step has order 1: it ends without noise, infinitely far on the logarithmic scale of the others.
    """
    walk = steps.walk()
    for i, (sigma, end, t) in enumerate(walk):
        data = net.data(y, sigma, t)
        if i % 2 == 0 or i + 1 == len(walk):
            start, first, before = y, sigma, data
            y = toward(y, sigma, end, data)
        else:
            reach = math.log(first / end) / math.log(first / sigma)
            y = toward(start, first, end, before + 0.5 * reach * (data - before))
        yield y


def dpmpp_2m(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """DPM-Solver++(2M), midpoint form (Lu 2022b algorithm 2)."""
    walk, earlier = steps.walk(), y
    for i, (sigma, end, t) in enumerate(walk):
        data = net.data(y, sigma, t)
        last = i + 1 == len(walk) and (end == 0.0 or len(walk) < FEW)
        aim = data if i == 0 or last else _extrapolated(data, earlier, walk[i - 1][0], sigma, end)
        y = toward(y, sigma, end, aim)
        earlier = data
        yield y


def unipc(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """UniPC of order 2 with B2 (Zhao 2023): the predictor is DPM-Solver++(2M), each network call also corrects it."""
    walk, start = steps.walk(), y
    datas: list[Latents] = []
    for i, (sigma, end, t) in enumerate(walk):
        data = net.data(y, sigma, t)
        if i > 0:
            y = toward(start, walk[i - 1][0], sigma, _corrected(data, datas, [s for s, _, _ in walk[: i + 1]]))
        start, datas = y, [*datas[-1:], data]
        last = i + 1 == len(walk)
        y = toward(y, sigma, end, data if i == 0 or last else _extrapolated(data, datas[0], walk[i - 1][0], sigma, end))
        yield y


def deis(net: Network, y: Latents, steps: Steps, noises: Noises) -> Iterator[Latents]:
    """DEIS of order 2 (Zhang 2022): exact integrals of the line through two noises over log sigma."""
    walk, earlier = steps.walk(), y
    for i, (sigma, end, t) in enumerate(walk):
        eps = net.noise(y, sigma, t)
        if i == 0 or (i + 1 == len(walk) and len(walk) < FEW):
            y = y + (end - sigma) * eps
        else:
            far = walk[i - 1][0]
            y = y + _integral(sigma, end, sigma, far) * eps + _integral(sigma, end, far, sigma) * earlier
        earlier = eps
        yield y


def pndm(net: Network, y: Latents, steps: Steps, noises: Noises, skip_prk_steps: bool = False) -> Iterator[Latents]:
    """PNDM (Liu 2022): Adams-Bashforth of order 4, after three steps of Runge-Kutta.

    With `skip_prk_steps` it begins with a step of Heun's and lower orders instead (PLMS). The transfer of PNDM eq. 11
    is Euler's step in y.
    """
    walk = steps.walk()
    eps: list[Latents] = []
    for i, (sigma, end, t) in enumerate(walk):
        eps = [*eps[-3:], net.noise(y, sigma, t)]
        if not skip_prk_steps and i < WARM_UP:
            slope = _runge_kutta(net, y, eps[-1], steps, i)
        elif i == 0 and len(walk) > 1:
            slope = 0.5 * (eps[0] + net.noise(y + (end - sigma) * eps[0], end, walk[1][2]))
        else:
            slope = _adams_bashforth(eps)
        y = y + (end - sigma) * slope
        yield y


def _extrapolated(data: Latents, earlier: Latents, before: float, sigma: float, end: float) -> Latents:
    """Clean latents half a step ahead, on the line through those predicted at noise levels `before` and `sigma`."""
    return data + 0.5 * math.log(sigma / end) / math.log(before / sigma) * (data - earlier)


def _corrected(data: Latents, datas: list[Latents], sigmas: list[float]) -> Latents:
    """Clean latents to aim at from the start of the step that led to `sigmas[-1]`, now that its end is known.

    `datas` are the predictions at its start and, if there is one, at the noise level before that.
    """
    if len(datas) == 1:
        return datas[0] + 0.5 * (data - datas[0])
    step = math.log(sigmas[-2] / sigmas[-1])
    back = -math.log(sigmas[-3] / sigmas[-2]) / step  # place of the older prediction: the step runs from 0 to 1
    # The weights of both differences solve rho_1 + rho_2 = b_1, back * rho_1 + rho_2 = b_2 (UniPC theorem 3.1).
    phi_1 = math.expm1(-step)
    phi_2 = phi_1 / -step - 1.0
    phi_3 = phi_2 / -step - 0.5
    b_1, b_2 = phi_2 / phi_1, 2.0 * phi_3 / phi_1
    rho_1 = (b_1 - b_2) / (1.0 - back)
    return datas[-1] + rho_1 / back * (datas[0] - datas[-1]) + (b_1 - rho_1) * (data - datas[-1])


def _integral(start: float, end: float, one: float, zero: float) -> float:
    """Integrate from `start` to `end` the function that is linear in log sigma, 1 at `one` and 0 at `zero`."""

    def primitive(sigma: float) -> float:
        return sigma * (math.log(sigma / zero) - 1.0) / math.log(one / zero)

    return primitive(end) - primitive(start)


def _runge_kutta(net: Network, y: Latents, first: Latents, steps: Steps, i: int) -> Latents:
    """The mean noise over step i by the classical Runge-Kutta method, given the noise at its start."""
    sigmas, (t, t_end) = steps.sigmas, steps.timesteps[i : i + 2].tolist()
    middle = t_end + (t - t_end) // 2  # a timestep between, so that its noise is in the table
    sigma, half, end = sigmas[i], steps.sigma_at(middle), sigmas[i + 1]
    second = net.noise(y + (half - sigma) * first, half, middle)
    third = net.noise(y + (half - sigma) * second, half, middle)
    fourth = net.noise(y + (end - sigma) * third, end, t_end)
    return (first + 2.0 * second + 2.0 * third + fourth) / 6.0


def _adams_bashforth(eps: list[Latents]) -> Latents:
    """The mean noise over the next step, from that at up to four steps, the newest last (PNDM eq. 9)."""
    weights: dict[int, tuple[float, ...]] = {
        1: (1,),
        2: (-1 / 2, 3 / 2),
        3: (5 / 12, -16 / 12, 23 / 12),
        4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
    }
    terms = [weight * each for weight, each in zip(weights[len(eps)], eps, strict=True)]
    return sum(terms[1:], terms[0])


@dataclass(frozen=True)
class SolverSpec:
    """What is to be known of a solver besides its formula."""

    function: Callable[..., Iterator[Latents]]  # (network, y, steps, noises, **options) -> y after each step
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


def _pndm_calls(n: int, solver: Solver) -> int:
    return n + (min(n - 1, 1) if solver.skip_prk_steps else 3 * WARM_UP)


# The solvers of k-diffusion walk fractional timesteps, and begin at the variance of the first one.
_K: dict[str, Any] = {"spacing": "linspace", "grid": "fractional", "starts_at_sigma": True}
SOLVERS: dict[str, SolverSpec] = {
    "ddim": SolverSpec(euler, "respaced", options=("eta",)),
    "ddpm": SolverSpec(ddpm, "respaced", options=("variance",), adds_noise=True),
    "euler": SolverSpec(euler, **_K),
    "euler_a": SolverSpec(partial(euler, eta=1.0), **_K, adds_noise=True),
    "heun": SolverSpec(heun, **_K, calls=_two_a_step),
    "dpmpp_2m": SolverSpec(dpmpp_2m, "linspace", "one_more"),
    "dpmpp_s": SolverSpec(dpmpp_singlestep, "linspace", "one_more", ("respaced", "linspace")),
    "pndm": SolverSpec(pndm, "leading", fewest=WARM_UP + 1, calls=_pndm_calls, options=("skip_prk_steps",)),
    "deis": SolverSpec(deis, "linspace", "one_more", ends_at_first=True),
    "kdpm2_a": SolverSpec(kdpm2_ancestral, **_K, calls=_two_a_step, adds_noise=True),
    "unipc": SolverSpec(unipc, "linspace", "one_more"),
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
        if self.spacing is not None and self.spacing not in self.spec.spacings:
            raise UserError(f"{self.name} has no spacing '{self.spacing}': choose {', '.join(self.spec.spacings)}")
        if self.ends_at_first is False and self.spec.ends_at_first:
            raise UserError(f"{self.name} cannot end without noise: it divides by it; use dpmpp_2m or unipc")
        if self.beta_schedule not in BETAS:
            raise UserError(f"there is no beta_schedule '{self.beta_schedule}': choose {', '.join(BETAS)}")

    @property
    def spec(self) -> SolverSpec:
        """Its row of the table."""
        return SOLVERS[self.name]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str | None = None, **options: Any) -> Solver:
        """Return the solver of a diffusers scheduler configuration, such as `pipe.scheduler.config`.

        With `name` it is that solver, with what the configuration says about the process; options of a Solver come
        before the configuration's. Raises UserError for what is not supported.
        """
        if not isinstance(config, Mapping):
            raise UserError(f"config is {type(config).__name__}, but must be a dictionary like pipe.scheduler.config")
        if unknown := options.keys() - {field.name for field in fields(cls)}:
            raise UserError(f"a Solver has no option {min(unknown)!r}; see help(latte.Solver)")
        chosen, told = solver_of(config, name)
        return cls(chosen, **(told | options))

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as diffusers writes it, without eta, which diffusers takes at the call."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return config_of(self.name, options | {"spacing": self.spacing or self.spec.spacing})

    @property
    def adds_noise(self) -> bool:
        """Whether it draws noise on its way."""
        return self.spec.adds_noise or self.eta > 0.0

    def steps(self, num_steps: StepCount, strength: float = 1.0) -> Steps:
        """Return the walk of that many steps, or its end from a strength on; raises UserError if there is none."""
        steps = self._whole(num_steps)
        if strength == 1.0:
            return steps
        steps = steps.from_strength(strength)
        if len(steps.timesteps) < self.spec.fewest and not self.skip_prk_steps:
            raise UserError(f"{self.name} begins with Runge-Kutta: ask for more steps, or a strength nearer to 1")
        return steps

    def _whole(self, num_steps: StepCount) -> Steps:
        spec, spacing = self.spec, self.spacing or self.spec.spacing
        alphas_cumprod = np.cumprod(1.0 - BETAS[self.beta_schedule](1000, self.beta_start, self.beta_end))
        timesteps = choose_timesteps(num_steps, spacing, spec.grid, self.steps_offset, len(alphas_cumprod))
        if len(timesteps) < spec.fewest and not self.skip_prk_steps:
            raise UserError(f"{self.name} begins with Runge-Kutta: ask for {spec.fewest} or more steps of sampling")
        at_first = spec.ends_at_first if self.ends_at_first is None else self.ends_at_first
        steps = Steps(timesteps, alphas_cumprod, float(alphas_cumprod[0]) if at_first else 1.0)
        if not spec.starts_at_sigma or spacing == "leading":
            return steps
        sigma = steps.sigmas[0]
        return Steps(timesteps, alphas_cumprod, steps.final_alpha, sigma / (1.0 + sigma**2) ** 0.5)

    def calls(self, num_steps: StepCount, strength: float = 1.0) -> int:
        """Return how often that many steps call the network, or those that are left of them; see `sample`."""
        return self.spec.calls(len(self.steps(num_steps, strength).timesteps), self)

    def sample(
        self,
        model: Model,
        x: Latents,
        num_steps: StepCount,
        noises: Iterator[Latents] | None = None,
        begin: Latents | None = None,
        strength: float = 1.0,
    ) -> Generator[Latents, Latents | None, None]:
        """Walk from noise to data and yield x after each step, the last x being the clean latents.

        An x that is sent to the generator takes the place of the one that it yielded.

        `model(x, t)` takes x (B, F, C, H, W) float32 of the variance preserving process (DDPM eq. 4) and one timestep,
        not always whole, and returns the predicted noise and maybe variance values (B, F, C or 2C, H, W). `x` is
        standard normal noise; `noises` gives more of it where it is needed (see `adds_noise`), and may be None where
        not. With `begin`, clean latents (B, F, C, H, W), and a `strength` below 1, the walk starts from them with as
        much noise as belongs there (SDEdit, Meng et al., 2022). Raises UserError for too many or too few steps and
        ValueError if noise is missing.
        """
        options = {name: getattr(self, name) for name in self.spec.options}
        steps = self.steps(num_steps, strength)
        sigmas = steps.sigmas
        y = x * (steps.start_scale * (1.0 + sigmas[0] ** 2) ** 0.5)
        if strength != 1.0 and begin is not None:
            y = begin + sigmas[0] * x
        walk = self.spec.function(Network(model), y, steps, _missing() if noises is None else noises, **options)
        for sigma, y in zip(sigmas[1:], walk, strict=True):
            scale = (1.0 + sigma**2) ** 0.5
            changed = yield y * (1.0 / scale)
            if changed is not None:
                y[...] = changed * scale  # in place, because the solver goes on from this array


def _missing() -> Iterator[Any]:
    raise ValueError("this solver adds noise: give it a source of noise")
    yield  # type: ignore[unreachable]  # makes it a generator, which raises when noise is first taken
