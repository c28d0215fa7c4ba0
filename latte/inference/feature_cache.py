"""Skipping most of a network in steps in which hardly anything changes there.

Between two steps of denoising, what the inner blocks add to the tokens changes slowly. Where the tokens after the first
pair of blocks are nearly those of a step before, what the other blocks added then is added again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import ops

from latte.diffusion.denoiser import guide
from latte.diffusion.gaussian import float32
from latte.runtime import graphs

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = 2  # blocks that always run


@dataclass
class Memory:
    """The tokens after the first blocks, and what the others added to them, when they were last computed."""

    tokens: ms.Tensor | None = None
    added: ms.Tensor | None = None


class ReusingDenoiser:
    """What `make_denoiser` returns, with memory: one object denoises one batch of videos from start to end.

    `threshold` is how much the tokens may change, relative to their mean size, for the inner blocks to be skipped: 0.05
    skips about half of the passes. `calls` and `skipped` count passes through the network.
    """

    def __init__(self, parts: tuple[Callable, Callable, Callable], guided: bool, threshold: float):
        self.begin, self.middle, self.end = parts
        self.guided, self.threshold = guided, threshold
        self.memories = Memory(), Memory()  # of the conditional and the unconditional half
        self.calls = self.skipped = 0

    def __call__(self, x: ms.Tensor, t: ms.Tensor, scale: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Return the guided output (B, F, C or 2C, H, W) float32; see `make_denoiser`."""
        if not self.guided:
            return float32(self._run(self.memories[0], x, t, *conditions))
        half = len(conditions) // 2
        cond = self._run(self.memories[0], x, t, *conditions[:half])
        uncond = self._run(self.memories[1], x, t, *conditions[half:])
        return guide(cond, uncond, scale, x.shape[2])

    def _run(self, memory: Memory, *inputs: ms.Tensor) -> ms.Tensor:
        tokens, context = self.begin(*inputs)
        self.calls += 1
        if memory.tokens is not None and change(tokens, memory.tokens) < self.threshold:
            self.skipped += 1
            return self.end(tokens + memory.added, *context)
        last = self.middle(tokens, *context)
        memory.tokens, memory.added = tokens, last - tokens
        return self.end(last, *context)


def change(new: ms.Tensor, old: ms.Tensor) -> float:
    """Return the mean size of the difference of two tensors, relative to that of the old one."""
    return float((ops.abs(new - old).mean() / ops.abs(old).mean()).asnumpy())


def compiled_parts(net: ms.nn.Cell) -> tuple[Callable, Callable, Callable]:
    """Return the first two blocks, the others and the final layer, each a graph where the compile scope is the step."""
    first, last = min(FIRST, len(net.blocks)), len(net.blocks)

    def begin(*inputs: ms.Tensor) -> tuple[ms.Tensor, tuple]:
        tokens, context = net.embed(*inputs)
        return net.run_blocks(tokens, context, 0, first), context

    def middle(tokens: ms.Tensor, *context: Any) -> ms.Tensor:
        return net.run_blocks(tokens, context, first, last)

    def end(tokens: ms.Tensor, *context: Any) -> ms.Tensor:
        return net.final_layer(tokens, net.final_condition(context))

    return tuple(graphs.compile_step(part) for part in (begin, middle, end))
