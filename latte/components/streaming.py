"""A T5 encoder of which one block is in memory: those in its files take turns there, for all texts at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.components.quantize import empty_int8, is_quantized, matrices, quantized_state
from latte.models.block import Network
from latte.models.t5 import NUMPY, T5Config, T5Encoder
from latte.weights.mapped import release_pages, verified
from latte.weights.match import set_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.components.loading import Weights

BLOCK, TABLE, LAST_NORM = "encoder.block.", "shared.weight", "encoder.final_layer_norm.weight"


class OneBlock(Network):
    """The block of a T5 of one block, compiled as networks are."""

    def __init__(self, net: T5Encoder):
        super().__init__()
        self.net = net

    def construct(self, x: ms.Tensor, attention_mask: ms.Tensor) -> ms.Tensor:
        """Return the block's output for x (B, L, D) float32 and a mask (B, L)."""
        return self.net.encoder.block[0](x, self.net.bias(attention_mask))


class StreamedT5:
    """The T5 encoder of weights that were read, but not loaded; a call reads each block once.

    The results are those of the whole encoder, to the bit. Of the table only the rows of the tokens at hand are read.
    Each call reads the files anew, so texts that are there together go into one.
    """

    def __init__(self, weights: Weights, dtype: ms.Type, as_int8: bool):
        self.config: T5Config = weights.config
        self.tensors = weights.tensors
        self.net = T5Encoder(self.config.smallest(), dtype)
        self.as_int8 = as_int8 or is_quantized(weights.tensors)
        if self.as_int8:
            empty_int8(self.net)
        self.parameters = dict(self.net.parameters_and_names())
        self.block = OneBlock(self.net)
        set_values({LAST_NORM: self.parameters[LAST_NORM]}, self.tensors)

    def __call__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Return the vectors (B, L, D) float32 of each part: its token ids and its mask, both (B, L) int32.

        The parts go through a block one after another. Raises UserError if the checksum of a weight is wrong.
        """
        xs = [self._embedded(ids) for ids, _ in parts]
        masks = [ms.Tensor(mask) for _, mask in parts]
        for number in range(self.config.num_layers):
            self._read_block(number)
            for k, mask in enumerate(masks):
                xs[k] = self.block(xs[k], mask)
        return [self.net.finish(x).asnumpy() for x in xs]

    def _embedded(self, ids: np.ndarray) -> ms.Tensor:
        table = verified(self.tensors[TABLE])
        rows = np.array(table[ids.reshape(-1)], NUMPY[self.net.dtype])
        release_pages(table)
        return ms.Tensor(rows.astype(np.float32).reshape(*ids.shape, -1))

    def _read_block(self, number: int) -> None:
        """Put the weights of a block in place of those of the one before."""
        own, here = f"{BLOCK}{number}.", f"{BLOCK}0."
        tensors = {name: values for name, values in self.tensors.items() if name.startswith(own)}
        if self.as_int8:
            tensors = quantized_state(tensors, {own + name.removeprefix(here) for name in matrices(self.net)})
        tensors = {here + name.removeprefix(own): values for name, values in tensors.items()}
        set_values({name: self.parameters[name] for name in tensors}, tensors, in_place=True)
