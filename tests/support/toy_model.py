"""A small smooth network in NumPy, the same one for the recorded solvers and for those that are tested."""

import numpy as np

SHAPE = (1, 2, 4, 4, 4)
MIX = np.random.default_rng(5).normal(0, 0.5, (4, 4))
PHASE = np.arange(4.0).reshape(4, 1, 1)


def toy(x, t, variance=False):
    """Predicted noise, and variance values if asked for, of x (B, F, C, H, W) at one timestep, also between two.

    The clean latents it believes in are a tanh of x and a sinusoid of t; the noise is what is left of x.
    """
    x = x.astype(np.float64)
    signal = np.exp(-0.5e-4 * (t + 1) - 0.498e-5 * (t + 1) ** 2)  # near the square root of Latte's alphas_cumprod
    mixed = 0.7 * np.einsum("ij,bfjhw->bfihw", MIX, x) + 0.2 * np.roll(x, 1, axis=-1)
    data = np.tanh(mixed + np.sin(2 * np.pi * t / 1000 + PHASE))
    eps = (x - signal * data) / np.sqrt(1 - signal**2)
    out = np.concatenate((eps, np.sin(mixed)), axis=2) if variance else eps
    return out.astype(np.float32)
