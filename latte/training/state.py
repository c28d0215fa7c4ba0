"""The state of a training as named arrays: weights, EMA weights, AdamW's moments and counters."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.errors import UserError
from latte.models.precision import pad_heads, unpad_heads
from latte.runtime import graphs
from latte.runtime.tensors import assign
from latte.training.collective import join_parts, own_rows
from latte.training.host import as_tensor
from latte.training.identity import REMEDY
from latte.training.stacks import spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latte.models import Latte, LatteT2V
    from latte.training.host import HostBuffer
    from latte.training.step import TrainStep

COUNTERS = ("step", "skipped", "good_steps", "loss_scale", "sums")


def state_of(step: TrainStep) -> dict[str, np.ndarray]:
    """Return the state of a training step; its shapes are those of the official weights on every device.

    Every rank must call this function, because it gathers the parts of shared buffers.
    """
    config = step.net.config
    width = config.hidden_size // config.attention_heads
    join = graphs.compile_training(join_parts)
    state = {}
    for prefix, buffers, cut in _buffers(step):
        found: dict[int, np.ndarray] = {}
        for group, buffer in zip(step.groups, buffers, strict=True):
            values = (join(ms.Tensor(as_tensor(buffer))) if cut and group.is_part else buffer).asnumpy()
            found.update(group.parts(values))
        for number, name in enumerate(step.names):
            state[f"{prefix}.{name}"] = unpad_heads(name, found[number], config.attention_heads, width)
    return state | {name: tensor.asnumpy().copy() for name, tensor in _counters(step)}


def load_state(step: TrainStep, state: dict[str, np.ndarray], source: str) -> None:
    """Set a training step to a state; raises UserError, and changes nothing, if names or shapes differ."""
    heads, flash = step.net.config.attention_heads, step.net.flash
    wanted, trained = [], {f"adam_m.{name}" for name in step.names}
    if extra := [name for name in state if name.startswith("adam_m.") and name not in trained]:
        raise UserError(
            f"{source} is of a run that trained {len(extra)} weights more, such as {extra[0][7:]}; {REMEDY}"
        )

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in state:
            raise UserError(f"{source} has no {name}; {REMEDY}")
        values = pad_heads(name, state[name], heads) if flash else state[name]
        if values.shape != shape:
            raise UserError(f"{source}: {name} is {values.shape}, but the options ask for {shape}; {REMEDY}")
        return values

    for prefix, buffers, cut in _buffers(step):
        for group, buffer in zip(step.groups, buffers, strict=True):
            each = [read(f"{prefix}.{step.names[k]}", step.shapes[k]) for k in group.numbers]
            values = group.joined(each)
            wanted.append((buffer, own_rows(values) if cut and group.is_part else values))
            if prefix == "net" and not group.shapes:  # what computes is a copy of the buffer's, or the buffer itself
                wanted += [(step.weights[k], part) for k, part in zip(group.numbers, each, strict=True)]
    wanted += [(tensor, read(name, tensor.shape)) for name, tensor in _counters(step)]
    wanted.append((step.scale, state["loss_scale"]))
    for tensor, values in wanted:
        dtype = np.int32 if tensor.dtype == ms.int32 else np.float32
        tensor.set_data(ms.Tensor.from_numpy(np.array(values, dtype)).astype(tensor.dtype))


def weights_of(step: TrainStep, state: dict[str, np.ndarray], trained_only: bool = False) -> dict[str, np.ndarray]:
    """Return the weights to sample from, with official names and shapes: the EMA weights if there are any.

    Those that are trained are in the state.
    """
    net, kind = step.net, "ema" if step.has_ema else "net"
    heads, width = net.config.attention_heads, net.config.hidden_size // net.config.attention_heads
    weights, trained = dict(net.parameters_and_names()), set(step.names)
    return {
        name: state[f"{kind}.{name}"] if name in trained else unpad_heads(name, weights[name].asnumpy(), heads, width)
        for name in (step.names if trained_only else weights)
    }


@contextmanager
def net_to_sample(step: TrainStep) -> Iterator[Latte | LatteT2V]:
    """Yield the network to sample from, with EMA weights if there are any; behind it, all weights are as before.

    Where ranks share EMA weights, every rank must call this function; where they share weights, they must all call the
    network as often, too.
    """
    if step.ema or not step.has_ema:
        yield step.ema or step.net
        return
    before = [leaf.copy() for leaf in step.leaves]
    for number, (group, buffer) in enumerate(zip(step.groups, step.ema_weights, strict=True)):
        if group.shapes:  # the network gathers from its parts
            assign(step.leaves[number], buffer)
            continue
        cut = step.shares_gradients and group.is_part
        spread(group, join_parts(as_tensor(buffer)) if cut else as_tensor(buffer), step.weights)
    try:
        yield step.net
    finally:
        for leaf, values in zip(step.leaves, before, strict=True):
            assign(leaf, values)


def _buffers(step: TrainStep) -> Iterator[tuple[str, Sequence[ms.Parameter | HostBuffer], bool]]:
    """Yield the name and the buffers of weights, EMA weights and moments, and whether a rank may have parts of them."""
    yield "net", step.optimizer.weights, True
    if step.has_ema:
        yield "ema", step.ema_weights, step.shares_gradients
    yield "adam_m", step.optimizer.moment1, True
    yield "adam_v", step.optimizer.moment2, True


def _counters(step: TrainStep) -> list[tuple[str, ms.Parameter]]:
    powers = [("beta1_power", step.optimizer.power1), ("beta2_power", step.optimizer.power2)]
    return [*((name, getattr(step, name)) for name in COUNTERS), *powers]
