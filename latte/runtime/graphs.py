"""What becomes one compiled graph: a whole step, or a block whose graph all blocks of its kind share."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Any

import mindspore as ms

from latte.runtime import compile_cache, device, gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("latte")
gradients.replace_sum()
TOKENS_PER_CALL = 1024  # of a block on CPU: enough for fast products, few enough to stay in its caches


@contextlib.contextmanager
def first_call(
    what: str, called: set[Any], key: Any = None, keep: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Say before and after the first call of a graph that it is compiled; `called` has the keys of those that were.

    `keep` returns the graph's name in the compile cache, or None if it is not to be kept; see `compile_cache`.
    """
    if key in called:
        yield
        return
    called.add(key)
    with compile_cache.using(keep()) as found:
        slow = ", which takes minutes the first time" if device.current().compile_scope == "step" else ""
        log.info("%s %s%s", "reading" if found else "compiling", what, ", compiled before" if found else slow)
        start = time.perf_counter()
        yield
        device.synchronize()
    log.info("%s %s in %.1f s, with its first call", "read" if found else "compiled", what, time.perf_counter() - start)


def compile_step(step: Callable) -> Callable:
    """Compile network and guidance of a denoising step into one graph per shape, where the compile scope is the step.

    jit_level O2 is MindSpore's whole-graph back end GE, which only Ascend has, and which MindSpore means to drop.
    """
    if device.current().compile_scope != "step":
        if device.current().jit_level:
            device.warn_once(f"jit_level {device.current().jit_level} changes nothing on {device.current().target}")
        return step
    return _compile(step)


def _compile(step: Callable) -> Callable:
    target, level = device.current().target, device.current().jit_level
    if level == "O2":
        if target == "Ascend":
            device.warn_once("jit_level O2 is the graph engine GE, which MindSpore means to drop; O1 is its successor")
            return ms.jit(step, backend="GE")
        device.warn_once(f"jit_level O2 is Ascend's; {target} compiles with O1")
        level = "O1"
    options = {"jit_level": level} if level else {}
    if device.current().first_generation:  # there MindSpore's own choice is GE, for which many kernels have no form
        options["backend"] = "ms_backend"
    return ms.jit(step, **options)


def jit_config() -> ms.JitConfig:
    """Return how far the compiler is to fuse, for MindSpore's functions that compile by themselves."""
    level = device.current().jit_level
    return ms.JitConfig(jit_level=level) if level else ms.JitConfig()


def compile_training(step: Callable) -> Callable:
    """Compile a whole training step into one graph per shape, on every device: its backward pass needs all of it."""
    return _compile(step) if device.current().graph_mode else step


@functools.cache
def shared(function: Callable) -> Callable:
    """Return a function as one compiled graph for each shape of its inputs, the same at every call."""
    return ms.jit(function)


def call_block(
    function: Callable, inputs: tuple, weights: tuple, settings: tuple, independent_axis: int | None = None
) -> ms.Tensor:
    """Return `function(*inputs, *weights, *settings)`, through a compiled graph where the compile scope is the block.

    The graph is shared by all calls with equal shapes and settings: the weights enter as plain tensors, which are views
    of the parameters, because a parameter's name would make a graph of its own. Along `independent_axis` the parts of
    the first input, tokens (B, F, T, D), do not see each other, so that they go through the graph one after another.
    """
    if device.current().compile_scope != "block":
        return function(*inputs, *weights, *settings)
    graph, weights = shared(function), _views(weights)
    x, rest = inputs[0], inputs[1:]
    if independent_axis is None:
        return graph(x, *rest, *weights, *settings)
    length, others = x.shape[independent_axis], x.shape[1] * x.shape[2] // x.shape[independent_axis]
    size = max(n for n in range(1, length + 1) if length % n == 0 and (n == 1 or n * others <= TOKENS_PER_CALL))
    if size == length:
        return graph(x, *rest, *weights, *settings)
    parts = ms.ops.split(x, size, independent_axis)
    return ms.ops.concat([graph(part, *rest, *weights, *settings) for part in parts], independent_axis)


def _views(weights: tuple) -> tuple:
    """Return tensors in place of the parameters in a tuple; a tuple inside it is marked as data, not a constant."""
    return tuple(
        ms.mutable(_views(weight)) if isinstance(weight, tuple) else weight if weight is None else ms.Tensor(weight)
        for weight in weights
    )
