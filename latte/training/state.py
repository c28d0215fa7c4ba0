"""The state of a training as named arrays: weights, EMA weights, AdamW's moments and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.errors import UserError
from latte.models.precision import pad_heads, unpad_heads
from latte.runtime import graphs
from latte.training.collective import join_parts, own_part
from latte.training.identity import REMEDY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latte.training.step import TrainStep

COUNTERS = ("step", "skipped", "good_steps", "loss_scale", "sums")


def state_of(step: TrainStep) -> dict[str, np.ndarray]:
    """Return the state of a training step; its shapes are those of the official weights on every device.

    Every rank must call this function, because it gathers the parts of shared tensors.
    """
    config = step.net.config
    width = config.hidden_size // config.num_heads
    join = graphs.compile_training(join_parts)
    state = {}
    for name, tensor, is_part in _tensors(step):
        values = (join(ms.Tensor(tensor)) if is_part else tensor).asnumpy()
        state[name] = unpad_heads(name, values, config.num_heads, width)
    return state | {name: tensor.asnumpy().copy() for name, tensor in _counters(step)}


def load_state(step: TrainStep, state: dict[str, np.ndarray], source: str) -> None:
    """Set a training step to a state; raises UserError, and changes nothing, if names or shapes differ."""
    heads, flash = step.net.config.num_heads, step.net.flash
    wanted, trained = [], {f"adam_m.{name}" for name in step.names}
    if extra := [name for name in state if name.startswith("adam_m.") and name not in trained]:
        raise UserError(
            f"{source} is of a run that trained {len(extra)} weights more, such as {extra[0][7:]}; {REMEDY}"
        )
    for name, tensor, is_part in [*_tensors(step), *((*pair, False) for pair in _counters(step))]:
        if name not in state:
            raise UserError(f"{source} has no {name}; {REMEDY}")
        values = pad_heads(name, state[name], heads) if flash else state[name]
        values = own_part(values) if is_part else values
        if values.shape != tensor.shape:
            raise UserError(f"{source}: {name} is {values.shape}, but the options ask for {tensor.shape}; {REMEDY}")
        wanted.append((tensor, values))
    for tensor, values in wanted:
        dtype = np.int32 if tensor.dtype == ms.int32 else np.float32
        tensor.set_data(ms.Tensor.from_numpy(np.array(values, dtype)))
    for weight, part, is_part in zip(step.weights, step.optimizer.weights, step.shared, strict=True):
        if is_part:
            part.set_data(own_part(ms.Tensor(weight)))


def weights_of(step: TrainStep, trained_only: bool = False) -> dict[str, np.ndarray]:
    """Return the weights to sample from, with official names and shapes: the EMA weights if there are any."""
    net = step.ema or step.net
    heads, width = net.config.num_heads, net.config.hidden_size // net.config.num_heads
    weights = dict(net.parameters_and_names())
    names = step.names if trained_only else weights
    return {name: unpad_heads(name, weights[name].asnumpy(), heads, width) for name in names}


def _tensors(step: TrainStep) -> Iterator[tuple[str, ms.Parameter, bool]]:
    """Yield name and tensor of each weight and moment, and whether the tensor is only this rank's part."""
    for prefix, net in (("net", step.net), ("ema", step.ema)):
        weights = dict(net.parameters_and_names()) if net is not None else {}
        yield from ((f"{prefix}.{name}", weights[name], False) for name in step.names if weights)
    moments = (("adam_m", step.optimizer.moment1), ("adam_v", step.optimizer.moment2))
    for prefix, tensors in moments:
        for name, tensor, is_part in zip(step.names, tensors, step.shared, strict=True):
            yield f"{prefix}.{name}", tensor, is_part


def _counters(step: TrainStep) -> list[tuple[str, ms.Parameter]]:
    powers = [("beta1_power", step.optimizer.power1), ("beta2_power", step.optimizer.power2)]
    return [*((name, getattr(step, name)) for name in COUNTERS), *powers]
