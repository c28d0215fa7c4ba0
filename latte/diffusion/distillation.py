"""Progressive distillation (Salimans and Ho, 2022, arXiv 2202.00512): fewer, longer steps for a trained network.

A student learns where four steps of DPM-Solver++(2M) (Lu et al., 2022, algorithm 2) with its teacher land, so that it
gets there by one step of DDIM.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from latte.diffusion.gaussian import float32, lookup, mean_flat
from latte.diffusion.schedule import create_schedule
from latte.diffusion.solvers import Solver
from latte.diffusion.timesteps import choose_timesteps
from latte.runtime.tensors import narrow, rows

SUBSTEPS = 4  # of the teacher, for one of the student
WALK = Solver("ddim", spacing="trailing")  # how the student is sampled from


class Tables(NamedTuple):
    """What is known of each step of the student, (steps,), and of each substep of the teacher, (SUBSTEPS, steps).

    With data a and noise s in x_t at the start of a step, and a', s' at its end, x' = keep * x + add * x_0 is a step of
    DDIM: keep = s' / s and add = a' - a * keep.
    """

    times: np.ndarray
    data: np.ndarray
    noise: np.ndarray
    keep: np.ndarray
    add: np.ndarray
    ahead: np.ndarray  # of how x_0 has changed since the last substep, what is added to it; 0 in the first


def substeps_of(steps: int) -> tuple[Tables, Tables]:
    """Return the tables of a student with so many steps, and of its teacher's substeps, all float64."""
    ends = [*choose_timesteps(steps, WALK.spacing or ""), -1]
    times = np.array([np.linspace(*pair, SUBSTEPS + 1).round() for pair in itertools.pairwise(ends)])
    signal = np.append(create_schedule().alphas_cumprod, 1.0) ** 0.5  # behind the last one: clean latents
    whole, part = (_tables(each.astype(int), signal) for each in (times[:, [0, -1]], times))
    return Tables(*(values[0] for values in whole)), part


def _tables(times: np.ndarray, signal: np.ndarray) -> Tables:
    """Return the tables (n, steps) of walks (steps, n + 1) from each time to the next; -1 is where they end."""
    data, noise = signal[times].T, (1 - signal[times].T ** 2) ** 0.5
    keep = noise[1:] / noise[:-1]
    with np.errstate(divide="ignore"):
        size = np.diff(np.log(data) - np.log(noise), axis=0)  # of each step, in log SNR / 2
    ahead = np.zeros_like(keep)
    ahead[1:] = np.where(noise[2:] > 0, size[1:] / (2 * size[:-1]), 0)  # to the clean latents by first order
    return Tables(times.T[:-1], data[:-1], noise[:-1], keep, data[1:] - data[:-1] * keep, ahead)


class DistillationLoss(nn.Cell):
    """A student with the loss of its distillation around it; what it takes and returns is as in `DiffusionLoss`.

    The student and its teacher map (B, F, C, H, W), timesteps and a condition to noise (B, F, C or 2C, H, W). Timesteps
    that come from outside choose the student's step, evenly.
    """

    def __init__(self, network: nn.Cell, teacher: nn.Cell, steps: int):
        super().__init__()
        self.network, self.teacher, self.steps = network, teacher, steps
        whole, parts = substeps_of(steps)
        self.whole = _tensors(whole)
        self.parts = tuple(_tensors(Tables(*(values[k] for values in parts))) for k in range(SUBSTEPS))
        # By how much an error of the noise moves where the step lands; weighted by its square, the noisiest step would
        # be nearly all of the loss.
        self.weights = Tensor(np.abs(whole.add * whole.noise / whole.data), ms.float32)
        self.count = create_schedule().steps

    def construct(
        self, x_start: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per-video (loss, squared error of the noise, 0), each (B,), for x_start and noise (B, F, C, H, W), t (B,)."""
        channels = x_start.shape[2]
        backwards = (self.count - 1.0) - t.astype(ms.float32)
        place = ops.floor(backwards * (self.steps / self.count)).astype(ms.int32)  # (B,)
        data, mixed = lookup(self.whole.data, place), lookup(self.whole.noise, place)
        x = data * float32(x_start) + mixed * float32(noise)  # (B, F, C, H, W)
        target = ops.stop_gradient(self.noise_to_land(x, place, condition))
        out = self.network(x, rows(self.whole.times, place), *_given(condition))
        error = target - float32(narrow(out, 2, 0, channels))
        mse = mean_flat(error * error)
        return rows(self.weights, place) * mse, mse, ops.zeros_like(mse)

    def noise_to_land(self, x: Tensor, place: Tensor, condition: Tensor | None) -> Tensor:
        """Return the noise with which one step of DDIM from x lands where the teacher does, all (B, F, C, H, W).

        place: which of the student's steps it is for each video, (B,) int32.
        """
        y, before = x, None
        for of in self.parts:
            out = self.teacher(y, rows(of.times, place), *_given(condition))
            eps = float32(narrow(out, 2, 0, x.shape[2]))
            clean = (y - lookup(of.noise, place) * eps) / lookup(of.data, place)
            towards = clean if before is None else clean + lookup(of.ahead, place) * (clean - before)
            y, before = lookup(of.keep, place) * y + lookup(of.add, place) * towards, clean
        clean = (y - lookup(self.whole.keep, place) * x) / lookup(self.whole.add, place)
        return (x - lookup(self.whole.data, place) * clean) / lookup(self.whole.noise, place)


def _given(condition: Tensor | None) -> tuple:
    return () if condition is None else (condition,)


def _tensors(tables: Tables) -> Tables:
    return Tables(*(Tensor(values, ms.float32) for values in tables))
