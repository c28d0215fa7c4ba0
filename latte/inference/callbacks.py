"""What a caller hears of a sampling after each step, may change, and may end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.diffusion.arrays import as_array
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
LAYOUTS = {"BFCHW": (0, 1, 2, 3, 4), "BCFHW": (0, 2, 1, 3, 4)}  # the axes of each in the order of the first


class InterruptedSampling(Exception):  # noqa: N818  # no error: the caller asked for it
    """Ends a sampling from inside a callback."""


@dataclass
class Follower:
    """Calls `callback_on_step_end` and keeps the newest latents of each video, for a sampling that is interrupted."""

    call: Callable[[int, float, dict[str, np.ndarray]], Any]
    interrupted: Callable[[], bool]
    timesteps: Sequence[float]
    tensors: Mapping[str, np.ndarray]  # what else is told, a row per video
    wanted: Sequence[str]
    newest: list[np.ndarray] = field(default_factory=list)  # (B', F, C, h, w) of each part of the batch so far

    def after(self, step: int, latents: np.ndarray) -> np.ndarray | None:
        """Return the latents (B', F, C, h, w) to go on with, None for the same; raises InterruptedSampling to end."""
        if step == 0:
            self.newest.append(latents)
        start = sum(map(len, self.newest[:-1]))
        told = {name: values[start : start + len(latents)] for name, values in self.tensors.items()}
        told = {name: (told | {"latents": latents})[name].copy() for name in self.wanted}
        changed = changed_latents(latents, told, self.call(step, self.timesteps[step], dict(told)))
        self.newest[-1] = latents.copy() if changed is None else changed
        if self.interrupted():
            raise InterruptedSampling
        return changed


def check_wanted(names: Sequence[str] | None, there: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the tensors that a callback is told; raises UserError for one that this sampling lacks."""
    known = ["latents", *there]
    wanted = known if names is None else list(names)
    if wrong := [name for name in wanted if name not in known]:
        raise UserError(
            f"callback_on_step_end_tensor_inputs has {wrong[0]!r}; what there is here to tell: {', '.join(known)}"
        )
    return wanted


def changed_latents(latents: np.ndarray, told: Mapping[str, np.ndarray], returned: Any) -> np.ndarray | None:
    """Return the latents that a callback returned in place of these, None if it changed nothing.

    Raises UserError if it returned anything else, or changed what cannot be changed once it has begun.
    """
    if returned is None:
        return None
    if not isinstance(returned, dict) or returned.keys() - set(TENSORS):
        raise UserError('callback_on_step_end may return nothing, or {"latents": array}; it returned something else')
    for name in returned.keys() - {"latents"}:
        if name not in told or not np.array_equal(as_array(returned[name]), told[name]):
            raise UserError(f"callback_on_step_end changed {name}, which is fixed when the first step begins")
    if "latents" not in returned:
        return None
    changed = as_array(returned["latents"])
    if changed.shape != latents.shape or changed.dtype.kind != "f":
        raise UserError(
            f"callback_on_step_end returned latents {changed.dtype} {changed.shape}, but they are float32 "
            f"{latents.shape}"
        )
    return None if np.array_equal(changed, latents) else changed.astype(np.float32)


def ordered_latents(latents: Any, shape: Sequence[int], layout: str | None) -> np.ndarray:
    """Return latents (B, F, C, h, w) float32 of either layout; `shape` is the one that the videos take.

    layout: "BFCHW", or "BCFHW" as in diffusers; None = as the shape says. Raises UserError if it does not, as frames
    and channels are equal in number, or if it is neither.
    """
    given, (b, f, c, h, w) = as_array(latents), shape
    shapes = {"BFCHW": (b, f, c, h, w), "BCFHW": (b, c, f, h, w)}
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"latents_layout {layout!r} is not known; choose {' or '.join(LAYOUTS)}")
    fits = [name for name, each in shapes.items() if given.shape == each and layout in (None, name)]
    if not fits or given.dtype.kind not in "fiu":
        known = " or ".join(f"{each} ({name})" for name, each in shapes.items() if layout in (None, name))
        raise UserError(f"latents are {given.dtype} {given.shape}, but these videos take {known}")
    if len(fits) > 1:
        raise UserError(
            f"latents {given.shape} have as many frames as channels; say which come first with "
            'latents_layout="BFCHW", or "BCFHW" as in diffusers'
        )
    return given.transpose(LAYOUTS[fits[0]]).astype(np.float32)
