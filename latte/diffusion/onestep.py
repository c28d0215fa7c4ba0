"""Solvers that start anew at every step, as generators that give y after each.

All are written for y = x_0 + sigma * noise, where the probability flow is dy/dsigma = predicted noise (EDM eq. 1).
Coefficients are Python floats, that is float64; arrays stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from latte.diffusion.timesteps import Steps
from latte.errors import UserError

Model = Callable[[np.ndarray, float], np.ndarray]  # model(x, t) -> predicted noise, or noise and variance values
Noises = Iterator[np.ndarray]
VALUES = {"fixed_small": -1.0, "fixed_large": 1.0}  # what a network would say that had learned such a variance


@dataclass(frozen=True)
class Network:
    """A model seen from y = x_0 + sigma * noise, of shape (B, F, C, H, W)."""

    model: Model

    def output(self, y: np.ndarray, sigma: float, t: float) -> np.ndarray:
        """Return all that the model says, (B, F, C or 2C, H, W)."""
        return self.model(y * (1.0 / math.sqrt(1.0 + sigma**2)), t)

    def noise(self, y: np.ndarray, sigma: float, t: float) -> np.ndarray:
        """Return the predicted noise, like y."""
        return self.output(y, sigma, t)[:, :, : y.shape[2]]

    def data(self, y: np.ndarray, sigma: float, t: float) -> np.ndarray:
        """Return the predicted clean latents, like y."""
        return y - sigma * self.noise(y, sigma, t)


def toward(y: np.ndarray, sigma: float, end: float, data: np.ndarray) -> np.ndarray:
    """Move y from noise level `sigma` to `end` on the straight line to predicted clean latents."""
    ratio = end / sigma
    return ratio * y + (1.0 - ratio) * data


def split(sigma: float, end: float, eta: float = 1.0) -> tuple[float, float]:
    """Split the noise at `end` into what remains of the old and the standard deviation of what is new.

    At eta 1 the new noise has the variance of the DDPM posterior (DDIM eq. 16); at 0 there is none.
    """
    new = eta * end * math.sqrt(max(sigma**2 - end**2, 0.0)) / sigma
    return math.sqrt(max(end**2 - new**2, 0.0)), new


def euler(net: Network, y: np.ndarray, steps: Steps, noises: Noises, eta: float = 0.0) -> Iterator[np.ndarray]:
    """Euler's method, which is DDIM (DDIM eq. 12 and 14); with eta 1, the ancestral one."""
    for sigma, end, t in steps.walk():
        old, new = split(sigma, end, eta)
        y = y + (old - sigma) * net.noise(y, sigma, t)
        if new > 0.0:
            y = y + new * next(noises)
        yield y


def ddpm(
    net: Network, y: np.ndarray, steps: Steps, noises: Noises, variance: str | None = None
) -> Iterator[np.ndarray]:
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
                std = np.exp(low + half * (values + 1.0))
            y = y + std * next(noises)
        yield y


def heun(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
    """Heun's method of order 2 (EDM algorithm 1 without churn); the last step is Euler's."""
    walk = steps.walk()
    for i, (sigma, end, t) in enumerate(walk):
        slope = net.noise(y, sigma, t)
        guess = y + (end - sigma) * slope
        if i + 1 < len(walk):
            slope = 0.5 * (slope + net.noise(guess, end, walk[i + 1][2]))
        y = y + (end - sigma) * slope
        yield y


def kdpm2_ancestral(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
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


def dpmpp_singlestep(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
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
