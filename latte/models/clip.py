"""The text encoder of CLIP (Radford et al., 2021): what the text condition of a Latte is made of.

A transformer whose tokens see themselves and those before them. Texts are (B, L), tokens (B, L, D).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.ops.primitive import constexpr

from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers
from latte.models.block import Block, Network, Pair
from latte.models.layers import Embedding, Linear, Norm, empty
from latte.ops import attention, layer_norm, linear, lookup, quick_gelu
from latte.runtime.tensors import narrow
from latte.weights.match import check_asked, check_elements, read_config, sizes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

MASKED = float(np.finfo(np.float32).min)  # what a mask adds to the scores of later tokens
BOUNDS = {  # of sizes, far beyond those that anybody has trained; floats are those of numbers that need not be whole
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 4096),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 16),
    "layer_norm_eps": (1e-20, 1.0),
}
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PREFIX = "text_model."


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What fixes the shape of a CLIP text encoder, under the names of transformers' config.json; sizes of ViT-L/14."""

    lowers: ClassVar[bool] = False  # its tokenizer sets texts in lower case

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(vars(self), BOUNDS)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} num_attention_heads"
            )

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, **asked: Any
    ) -> ClipConfig:
        """Return the configuration in the config.json of transformers that lies beside weights; None asks for nothing.

        It may be a whole CLIP's, which has that of the text encoder in `text_config`.
        Raises UserError if there is none, a size is missing or no number or not as asked for, or the activation is
        another than quick_gelu.
        """
        described, where = read_config(metadata, source), f"the config.json of {source}"
        described = described.get("text_config") or described
        activation = described.get("hidden_act", "quick_gelu")
        if activation != "quick_gelu":
            raise UserError(
                f"{where} is of a CLIP with the activation {quoted(activation)}; only quick_gelu is supported, that of "
                "openai/clip-vit-large-patch14"
            )
        config = cls(**sizes_of(described, BOUNDS, REQUIRED, where, "a CLIP text encoder"))
        check_elements(config.parameter_count, config.num_hidden_layers, tensors, source)
        check_asked(vars(config), asked, source)
        return config

    def smallest(self) -> ClipConfig:
        """Return the configuration of one block of these sizes, with a table of one token."""
        return dataclasses.replace(self, num_hidden_layers=1, vocab_size=1)

    @property
    def max_length(self) -> int:
        """Tokens of a text."""
        return self.max_position_embeddings

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.hidden_size

    @property
    def parameter_count(self) -> int:
        """Elements of all weights of the encoder."""
        d, f = self.hidden_size, self.intermediate_size
        block = 4 * d * (d + 1) + d * f + f + f * d + d + 4 * d
        return (self.vocab_size + self.max_position_embeddings) * d + self.num_hidden_layers * block + 2 * d


def own_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the text encoder's weights out of a CLIP's: without those of images and the list of positions."""
    return {
        name: values
        for name, values in tensors.items()
        if name.startswith(PREFIX) and not name.endswith(".position_ids")
    }


@constexpr
def _causal(length: int) -> ms.Tensor:
    """Return what is added to the scores (1, 1, L, L), so that no token sees a later one."""
    return ms.Tensor(np.triu(np.full((length, length), MASKED, np.float32), 1)[None, None])


def clip_block(
    x: ms.Tensor,
    bias: ms.Tensor,
    norm1: Pair,
    q: Pair,
    k: Pair,
    v: Pair,
    out: Pair,
    norm2: Pair,
    fc1: Pair,
    fc2: Pair,
    heads: int,
    eps: float,
    dtype: ms.Type,
) -> ms.Tensor:
    """Return attention and the MLP, each normed before and added to its input.

    x (B, L, D) and bias (1, 1, L, L) float32. Products are in `dtype`, the rest is float32.
    """
    scale = (x.shape[2] // heads) ** -0.5
    y = layer_norm(x, *norm1, eps).astype(dtype)  # (B, L, D)
    y = attention(linear(y, *q), linear(y, *k), linear(y, *v), heads, scale, False, bias)  # (B, L, D)
    x = x + linear(y, *out).astype(ms.float32)  # (B, L, D)

    y = layer_norm(x, *norm2, eps).astype(dtype)  # (B, L, D)
    y = quick_gelu(linear(y, *fc1).astype(ms.float32)).astype(dtype)  # (B, L, F)
    return x + linear(y, *fc2).astype(ms.float32)  # (B, L, D)


class SelfAttention(nn.Cell):
    """The projections of attention."""

    def __init__(self, width: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width, empty, empty) for _ in range(4))


class Mlp(nn.Cell):
    """The two layers of the MLP."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, inner, empty, empty), Linear(inner, width, empty, empty)


class ClipBlock(Block):
    """A block of the encoder."""

    forward = staticmethod(clip_block)

    def __init__(self, config: ClipConfig, dtype: ms.Type):
        super().__init__()
        width = config.hidden_size
        self.self_attn = attn = SelfAttention(width)
        self.layer_norm1 = Norm(width)
        self.mlp = Mlp(width, config.intermediate_size)
        self.layer_norm2 = Norm(width)
        attention = (self.layer_norm1, attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj)
        mlp = (self.layer_norm2, self.mlp.fc1, self.mlp.fc2)
        self.takes(*attention, *mlp, heads=config.num_attention_heads, eps=config.layer_norm_eps, dtype=dtype)


class Embeddings(nn.Cell):
    """The tables of tokens and of positions."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size, empty)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size, empty)


class Layers(nn.Cell):
    """The blocks; a cell because it takes a place in the names."""

    def __init__(self, config: ClipConfig, dtype: ms.Type):
        super().__init__()
        self.layers = nn.CellList([ClipBlock(config, dtype) for _ in range(config.num_hidden_layers)])


class TextModel(nn.Cell):
    """All of the encoder; a cell because it takes a place in the names."""

    def __init__(self, config: ClipConfig, dtype: ms.Type):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config, dtype)
        self.final_layer_norm = Norm(config.hidden_size)


class ClipTextEncoder(Network):
    """Tokens of texts to vectors; its memory is empty until weights are loaded."""

    def __init__(self, config: ClipConfig, dtype: ms.Type = ms.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.text_model = TextModel(config, dtype)

    def construct(self, input_ids: ms.Tensor, attention_mask: ms.Tensor) -> ms.Tensor:
        """Return the last hidden state of texts, with the last norm.

        input_ids (B, L) int32 -> (B, L, D) float32. attention_mask (B, L), which T5 takes, is not looked at: padding is
        part of the condition, as in the official code.
        """
        length, text = input_ids.shape[1], self.text_model
        x = lookup(text.embeddings.token_embedding.weight, input_ids)  # (B, L, D)
        x = x + narrow(text.embeddings.position_embedding.weight, 0, 0, length).expand_dims(0)
        bias = _causal(length)  # (1, 1, L, L)
        for block in text.encoder.layers:
            x = block(x, bias)
        return layer_norm(x, *text.final_layer_norm.weights(), self.config.layer_norm_eps)  # (B, L, D)
