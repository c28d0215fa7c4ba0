"""What is compiled of sampling: a network and its guidance. The solvers around it are plain NumPy, in solvers.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mindspore import Tensor, ops

from latte.diffusion.gaussian import float32
from latte.runtime import device
from latte.runtime.collective import gather
from latte.runtime.tensors import mean, narrow, split

# denoise(x, t, scale, *conditions) -> predicted noise, and variance values if the network has them
Denoise = Callable[..., Tensor]


def make_denoiser(network: Callable[..., Tensor], guided: bool = False, batched: bool = True) -> Denoise:
    """Put network and guidance together: ``denoise(x, t, scale, *conditions)`` -> (B, F, C or 2C, H, W) float32.

    It is a plain function that takes tensors only: compile it whole with ``ms.jit``, or call it as it is around a
    network that compiles its own pieces; one graph serves every solver, step and guidance scale. x is (B, F, C, H, W)
    float32, t (B,) float32 in the process of training, scale () float32, which only a ``guided`` denoiser looks at. Its
    conditions are those to follow and then as many for "none", e.g. (y, y_null). ``batched`` runs both as one batch of
    2B (faster on accelerators), else as two calls (half the memory).
    Load weights before the first compiled call: a graph built by ``ms.jit`` sees later
    updates in place (``ops.assign``), but not ``set_data`` or ``load_param_into_net``. It raises ValueError if it is
    to guide with conditions that are no pairs.
    """

    def alone(x: Tensor, t: Tensor, kept: Sequence[Tensor], conditions: Sequence[Tensor]) -> tuple[Tensor, tuple]:
        return network(x, t, *conditions), ()

    passes = in_passes(alone, guided, batched)

    def denoise(x: Tensor, t: Tensor, scale: Tensor, *conditions: Tensor) -> Tensor:
        return passes(x, t, scale, *conditions)[0]

    return denoise


def in_passes(
    run: Callable[..., tuple[Tensor, tuple]], guided: bool, batched: bool, kept: int = 0
) -> Callable[..., tuple[Tensor, tuple]]:
    """Return ``denoise(x, t, scale, *kept, *conditions)`` -> (output as of `make_denoiser`, tensors to keep).

    ``run(x, t, kept, conditions)`` -> (output, tensors to keep) is a pass through the network; in a later step each
    pass gets ``kept`` tensors, with a row for each of its videos. Where a guided step has two passes, those of the
    conditional one come first, in what goes in and in what comes out; as one batch of 2B there is one pass. Where two
    groups of ranks share guidance, each has a pass, and what it keeps, of one half.
    """
    here = device.current()

    def plain(x: Tensor, t: Tensor, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple]:
        out, rest = run(x, t, inputs[:kept], inputs[kept:])
        return float32(out), rest

    def two_calls(x: Tensor, t: Tensor, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple]:
        conditions = inputs[2 * kept :]
        half = _half(conditions)
        cond, rest = run(x, t, inputs[:kept], conditions[:half])  # (B, F, 2C, H, W)
        uncond, other = run(x, t, inputs[kept : 2 * kept], conditions[half:])  # (B, F, 2C, H, W)
        return guide(cond, uncond, scale, x.shape[2]), (*rest, *other)

    def one_batch(x: Tensor, t: Tensor, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple]:
        conditions = inputs[kept:]
        half = _half(conditions)
        pairs = [ops.concat((conditions[i], conditions[half + i]), axis=0) for i in range(half)]  # each (2B, ...)
        x2, t2 = ops.concat((x, x), axis=0), ops.concat((t, t), axis=0)
        both, rest = run(x2, t2, inputs[:kept], pairs)  # (2B, F, 2C, H, W)
        cond, uncond = split(both, x.shape[0], 0)  # 2 x (B, F, 2C, H, W)
        return guide(cond, uncond, scale, x.shape[2]), rest

    def own_half(x: Tensor, t: Tensor, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple]:
        conditions = inputs[kept:]
        half = _half(conditions)
        out, rest = run(x, t, inputs[:kept], conditions[here.half * half : (here.half + 1) * half])
        both = gather(float32(out), "guidance")  # (2, B, F, 2C, H, W)
        cond, uncond = [half.reshape(out.shape) for half in split(both, 1, 0)]
        return guide(cond, uncond, scale, x.shape[2]), rest

    if not guided:
        return plain
    if here.guidance > 1:
        return own_half
    return one_batch if batched else two_calls


def _half(conditions: Sequence[Any]) -> int:
    """How many conditions are to be followed, the others being those for "none". Raises ValueError if they differ."""
    if len(conditions) == 0 or len(conditions) % 2 == 1:
        raise ValueError("guidance needs conditions and as many for none, such as (y, y_null)")
    return len(conditions) // 2


def guide(cond: Tensor, uncond: Tensor, scale: Tensor | float, channels: int) -> Tensor:
    """Move the predicted noise from the unconditional towards and past the conditional one.

    Both inputs are (B, F, 2C, H, W), noise then variance values, or (B, F, C, H, W), noise alone, with C = `channels`;
    the result is too, in float32. The noise is
    uncond + scale * (cond - uncond), scale 1 being plain conditional (Ho & Salimans 2021 eq. 6, whose w is scale - 1);
    the variance values are the conditional ones, untouched. A scale (2,) is (scale, rescale): that share of the result
    gets the standard deviation that the conditional noise of its video has (Lin et al., 2024, eq. 15 and 16).
    """
    cond, uncond = float32(cond), float32(uncond)
    eps, eps_uncond = narrow(cond, 2, 0, channels), narrow(uncond, 2, 0, channels)  # (B, F, C, H, W)
    if isinstance(scale, float) or scale.ndim == 0:
        eps = eps_uncond + scale * (eps - eps_uncond)
    else:
        guided = eps_uncond + narrow(scale, 0, 0, 1) * (eps - eps_uncond)
        share = narrow(scale, 0, 1, 2)  # (1,)
        eps = guided * (share * (_deviation(eps) / _deviation(guided)) + (1 - share))
    if cond.shape[2] == channels:
        return eps
    return ops.concat((eps, narrow(cond, 2, channels, cond.shape[2])), axis=2)


def _deviation(x: Tensor) -> Tensor:
    """Return the standard deviation of each video's elements: (B, F, C, H, W) -> (B, 1, 1, 1, 1)."""
    axes = (1, 2, 3, 4)
    return ops.sqrt(mean(ops.square(x - mean(x, axes, keep=True)), axes, keep=True))
