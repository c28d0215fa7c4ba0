"""Conditioning frames, which stay as they are while the others are made: an image animated, a video continued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from latte.diffusion.arrays import join, like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.diffusion.arrays import Latents
    from latte.diffusion.solvers import Model
    from latte.diffusion.timesteps import Steps


def showing(model: Model, given: np.ndarray, frames: Sequence[int], start: Latents) -> Model:
    """Return a model that shows its network the conditioning frames without noise, at timestep 0, as it was trained.

    given (B, n, C, H, W) are their clean latents, `frames` (n,) their places, `start` (B, F, C, H, W) latents of the
    kind that the model takes. The model is called with a timestep for each frame, (F,).
    """
    clean, others, _ = _masks(given, frames, start)
    moves = np.ones(start.shape[1], np.float32)
    moves[list(frames)] = 0.0

    def shown(x: Latents, t: Any) -> Latents:
        return model(clean + others * x, t * moves)

    return shown


def holding(model: Model, given: np.ndarray, frames: Sequence[int], steps: Steps, start: Latents) -> Model:
    """Return a model whose predictions lead the conditioning frames to their latents, with whatever solver.

    given (B, n, C, H, W) are their clean latents, `frames` (n,) their places, `start` (B, F, C, H, W) latents of the
    kind that the model takes. In x_t = (x_0 + sigma e) / sqrt(1 + sigma^2) these frames' x_0 is known, and so their
    noise e: it takes the place of the network's prediction. The network sees the conditioning frames as noisy as the
    others, as it was trained, and the others attend to them: the replacement of Ho et al. (2022, section 3.1), in a
    form for every solver.
    """
    clean, others, own = _masks(given, frames, start)

    def held(x: Latents, t: float) -> Latents:
        out, channels = model(x, t), x.shape[2]  # (B, F, C or 2C, H, W)
        sigma = steps.sigma_at(t)
        noise = (x * (1.0 + sigma**2) ** 0.5 - clean) / sigma  # (B, F, C, H, W)
        mixed = own * noise + others * out[:, :, :channels]
        return mixed if out.shape[2] == channels else join([mixed, out[:, :, channels:]], 2)

    return held


def _masks(given: np.ndarray, frames: Sequence[int], start: Latents) -> tuple[Latents, Latents, Latents]:
    """Return the conditioning frames among zeros, like `start`, and (F, 1, 1, 1) of 1 for the other frames, for these.

    Sums with them set frames exactly, on every device and without a wait.
    """
    whole = np.zeros(start.shape, np.float32)
    whole[:, list(frames)] = given
    free = np.ones((start.shape[1], 1, 1, 1), np.float32)
    free[list(frames)] = 0.0
    clean, others, own = (like(values, start) for values in (whole, free, 1.0 - free))
    return clean, others, own
