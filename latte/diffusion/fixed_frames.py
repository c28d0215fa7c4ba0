"""Conditioning frames, which stay as they are while the others are made: an image animated, a video continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latte.diffusion.solvers import Model
    from latte.diffusion.timesteps import Steps


def showing(model: Callable[[np.ndarray, np.ndarray], np.ndarray], given: np.ndarray, frames: Sequence[int]) -> Model:
    """Return a model that shows its network the conditioning frames without noise, at timestep 0, as it was trained.

    given (B, n, C, H, W) are their clean latents, `frames` (n,) their places. The model is called with a timestep for
    each frame, (F,).
    """
    places = list(frames)

    def shown(x: np.ndarray, t: float) -> np.ndarray:
        x, times = np.array(x), np.full(x.shape[1], t, np.float32)
        x[:, places], times[places] = given, 0.0
        return model(x, times)

    return shown


def holding(model: Model, given: np.ndarray, frames: Sequence[int], steps: Steps) -> Model:
    """Return a model whose predictions lead the conditioning frames to their latents, with whatever solver.

    given (B, n, C, H, W) are their clean latents, `frames` (n,) their places. In x_t = (x_0 + sigma e) / sqrt(1 +
    sigma^2) these frames' x_0 is known, and so their noise e: it takes the place of the network's prediction. The
    network sees the conditioning frames as noisy as the others, as it was trained, and the others attend to them: the
    replacement of Ho et al. (2022, section 3.1), in a form for every solver.
    """
    places = list(frames)

    def held(x: np.ndarray, t: float) -> np.ndarray:
        out = np.array(model(x, t))  # (B, F, C or 2C, H, W); a copy, to be written to
        sigma = steps.sigma_at(t)
        noise = (x[:, places] * (1.0 + sigma**2) ** 0.5 - given) / sigma  # (B, n, C, H, W)
        out[:, places, : given.shape[2]] = noise.astype(out.dtype)
        return out

    return held
