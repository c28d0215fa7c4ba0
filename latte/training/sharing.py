"""The weights of blocks in parts, one at each rank: stage 3 of ZeRO (Rajbhandari et al., 2020)."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, NamedTuple

import mindspore as ms
import numpy as np

from latte.errors import UserError
from latte.models.precision import FLOAT32
from latte.ops import row_length
from latte.ops.recompute import flattened
from latte.runtime import device
from latte.training.collective import own_rows
from latte.training.stacks import Group

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latte.models import Latte, LatteT2V


class Shared(NamedTuple):
    """The weights of a block that ranks share: which, and this rank's parts of them and of their EMA weights."""

    group: Group
    part: ms.Parameter
    ema: ms.Parameter | None


def share_blocks(net: Latte | LatteT2V, ema: Latte | LatteT2V | None, names: list[str]) -> list[Shared]:
    """Leave of the trained weights of each block only this rank's part, in float32; the blocks gather them.

    In the networks a single element stays of each of these weights. What all blocks use stays whole, and so do the
    tables of modulation, which are small and float32 in every dtype.
    Raises UserError where blocks cannot gather their weights.
    """
    here = device.current()
    if not here.graph_mode or here.compiler_recomputes:
        raise UserError("zero_stage 3 needs mode 0 and MindSpore 2.10, whose graphs gather weights; take zero_stage 2")
    weights, ema_weights = dict(net.parameters_and_names()), dict(ema.parameters_and_names()) if ema else {}
    numbers = {id(weights[name]): number for number, name in enumerate(names)}
    found = []
    for number, block in enumerate(net.blocks):
        if block.both:
            raise UserError("zero_stage 3 is for variants 1 and 2, whose blocks run as a whole; take zero_stage 2")
        weights_of_block = block.weights()
        leaves = [functools.reduce(operator.getitem, path, weights_of_block) for path in flattened(weights_of_block)[0]]
        shared = [k for k, w in enumerate(leaves) if w.requires_grad and not w.name.endswith(FLOAT32)]
        if not shared:
            continue
        shapes = tuple(leaves[k].shape for k in shared)
        group = Group(tuple(numbers[id(leaves[k])] for k in shared), (row_length(shapes),), True, shapes)
        part = _part_of(group, weights, names, f"part.block.{number}", trained=True)
        of_ema = _part_of(group, ema_weights, names, f"ema.block.{number}", trained=False) if ema else None
        block.share(part, shared, shapes, net.dtype)
        found.append(Shared(group, part, of_ema))
    return found


def _part_of(
    group: Group, weights: Mapping[str, ms.Parameter], names: list[str], name: str, trained: bool
) -> ms.Parameter:
    """Return this rank's part of the row of a group, of whose weights one element each stays."""
    each = [weights[names[k]] for k in group.numbers]
    values = own_rows(group.joined([weight.asnumpy() for weight in each])).copy()
    for weight in each:
        weight.set_data(ms.Tensor(np.zeros((1,) * weight.ndim, np.float32)), slice_shape=True)
    return ms.Parameter(ms.Tensor.from_numpy(values), name=name, requires_grad=trained)
