"""Solvers that remember earlier steps, as generators that give y = x_0 + sigma * noise after each; see onestep.py."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from latte.diffusion.onestep import Network, Noises, toward
from latte.diffusion.timesteps import Steps

FEW = 15  # with fewer steps than this the last one has order 1, which is steadier
WARM_UP = 3  # Runge-Kutta steps that PNDM begins with


def dpmpp_2m(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
    """DPM-Solver++(2M), midpoint form (Lu 2022b algorithm 2)."""
    walk, earlier = steps.walk(), y
    for i, (sigma, end, t) in enumerate(walk):
        data = net.data(y, sigma, t)
        last = i + 1 == len(walk) and (end == 0.0 or len(walk) < FEW)
        aim = data if i == 0 or last else _extrapolated(data, earlier, walk[i - 1][0], sigma, end)
        y = toward(y, sigma, end, aim)
        earlier = data
        yield y


def unipc(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
    """UniPC of order 2 with B2 (Zhao 2023): the predictor is DPM-Solver++(2M), each network call also corrects it."""
    walk, datas, start = steps.walk(), [], y
    for i, (sigma, end, t) in enumerate(walk):
        data = net.data(y, sigma, t)
        if i > 0:
            y = toward(start, walk[i - 1][0], sigma, _corrected(data, datas, [s for s, _, _ in walk[: i + 1]]))
        start, datas = y, [*datas[-1:], data]
        last = i + 1 == len(walk)
        y = toward(y, sigma, end, data if i == 0 or last else _extrapolated(data, datas[0], walk[i - 1][0], sigma, end))
        yield y


def deis(net: Network, y: np.ndarray, steps: Steps, noises: Noises) -> Iterator[np.ndarray]:
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


def pndm(
    net: Network, y: np.ndarray, steps: Steps, noises: Noises, skip_prk_steps: bool = False
) -> Iterator[np.ndarray]:
    """PNDM (Liu 2022): Adams-Bashforth of order 4, after three steps of Runge-Kutta.

    With `skip_prk_steps` it begins with a step of Heun's and lower orders instead (PLMS). The transfer of PNDM eq. 11
    is Euler's step in y.
    """
    walk, eps = steps.walk(), []
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


def _extrapolated(data: np.ndarray, earlier: np.ndarray, before: float, sigma: float, end: float) -> np.ndarray:
    """Clean latents half a step ahead, on the line through those predicted at noise levels `before` and `sigma`."""
    return data + 0.5 * math.log(sigma / end) / math.log(before / sigma) * (data - earlier)


def _corrected(data: np.ndarray, datas: list[np.ndarray], sigmas: list[float]) -> np.ndarray:
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


def _runge_kutta(net: Network, y: np.ndarray, first: np.ndarray, steps: Steps, i: int) -> np.ndarray:
    """The mean noise over step i by the classical Runge-Kutta method, given the noise at its start."""
    sigmas, (t, t_end) = steps.sigmas, steps.timesteps[i : i + 2].tolist()
    middle = t_end + (t - t_end) // 2  # a timestep between, so that its noise is in the table
    sigma, half, end = sigmas[i], steps.sigma_at(middle), sigmas[i + 1]
    second = net.noise(y + (half - sigma) * first, half, middle)
    third = net.noise(y + (half - sigma) * second, half, middle)
    fourth = net.noise(y + (end - sigma) * third, end, t_end)
    return (first + 2.0 * second + 2.0 * third + fourth) / 6.0


def _adams_bashforth(eps: list[np.ndarray]) -> np.ndarray:
    """The mean noise over the next step, from that at up to four steps, the newest last (PNDM eq. 9)."""
    weights = {1: (1,), 2: (-1 / 2, 3 / 2), 3: (5 / 12, -16 / 12, 23 / 12), 4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24)}
    return sum(weight * each for weight, each in zip(weights[len(eps)], eps, strict=True))
