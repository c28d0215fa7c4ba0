"""Which weights of a text-to-video network are trained, and a second network for the EMA weights of only these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspore import Tensor

from latte.models.layers import Initializers, Linear

if TYPE_CHECKING:
    from latte.models.latte_t2v import LatteT2V

TEMPORAL = "temporal_transformer_blocks."
LOW_RANK = ("lora_down", "lora_up")  # how the names of LoRA adapters end


def choose_trained(net: LatteT2V, trainable: str, rank: int = 16, factor: float = 1.0, seed: int = 0) -> None:
    """Freeze all weights but those that are trained: "all", "temporal" (the blocks over frames) or "lora".

    The last adds matrices of that rank, times `factor`, to the attention projections of all blocks (Hu et al., 2021,
    section 4.2) and trains nothing else. It must come before `prepare`.
    """
    if trainable == "all":
        return
    for name, weight in net.parameters_and_names():
        weight.requires_grad = trainable == "temporal" and name.startswith(TEMPORAL)
    if trainable == "lora":
        init = Initializers(seed)
        for layer in attention_projections(net):
            layer.adapt(rank, factor, init)


def attention_projections(net: LatteT2V) -> list[Linear]:
    """Return q, k, v and out of every attention, in the order of use."""
    layers = []
    for block in net.blocks:
        for attn in (block.attn1,) if block.temporal else (block.attn1, block.attn2):
            layers += [attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]]
    return layers


def share_frozen_weights(average: LatteT2V, net: LatteT2V) -> None:
    """Give a network of the same layers the weights of `net`: its own copies of those trained, the others shared."""
    theirs = dict(net.cells_and_names())
    for name, cell in average.cells_and_names():
        for key, weight in list(theirs[name].parameters_and_names(expand=False)):
            if weight.requires_grad:
                getattr(cell, key).set_data(Tensor(weight.asnumpy().copy()))
            else:
                setattr(cell, key, weight)
