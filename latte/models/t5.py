"""The T5 encoder (Raffel et al., 2020) in its version 1.1: what turns the prompts of Latte-1 into vectors.

T5 has no absolute positions: a bias on the scores, learned for buckets of distances, is shared by all blocks. Its
scores are not scaled, its norms have no mean, its linear layers no bias, and its feed-forward part is gated
(Shazeer, 2020). Texts are (B, L), tokens (B, L, D).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.common.np_dtype import bfloat16
from mindspore.ops.primitive import constexpr

from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers
from latte.models.block import Block, Network
from latte.models.layers import parameter
from latte.ops import attention, gelu, linear, lookup, rms_norm
from latte.weights.match import check_asked, check_elements, read_config, sizes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

MASKED = float(np.finfo(np.float32).min)  # what a mask adds to the scores of padding
NUMPY = {ms.float32: np.float32, ms.float16: np.float16, ms.bfloat16: bfloat16}
BOUNDS = {  # of sizes, far beyond those that anybody has trained; floats are those of numbers that need not be whole
    "d_model": (1, 1 << 16),
    "d_kv": (1, 4096),
    "d_ff": (1, 1 << 20),
    "num_layers": (1, 256),
    "num_heads": (1, 4096),
    "vocab_size": (1, 1 << 24),
    "relative_attention_num_buckets": (4, 4096),
    "relative_attention_max_distance": (1, 1 << 20),
    "layer_norm_epsilon": (1e-20, 1.0),
}
REQUIRED = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """What fixes the shape of a T5 encoder, under the names of transformers' config.json; the sizes are v1.1 XXL's."""

    max_length: ClassVar[int] = 120  # tokens of a prompt that Latte-1 was trained with
    lowers: ClassVar[bool] = True  # whether prompts are stripped and set in lower case before

    d_model: int = 4096
    d_kv: int = 64  # width of a head
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128  # from here on, distances share the last bucket
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_numbers(vars(self), BOUNDS)
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise UserError(
                f"relative_attention_max_distance {self.relative_attention_max_distance} is too small for "
                f"relative_attention_num_buckets {self.relative_attention_num_buckets}"
            )

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, **asked: Any
    ) -> T5Config:
        """Return the configuration in the config.json of transformers that lies beside weights; None asks for nothing.

        Raises UserError if there is none, a size is missing or no number or not as asked for, or the feed-forward part
        is not version 1.1's.
        """
        described, where = read_config(metadata, source), f"the config.json of {source}"
        projection = str(described.get("feed_forward_proj", "relu"))
        gated = described.get("is_gated_act", projection.startswith("gated-"))
        # "gated-gelu" has always meant the tanh form.
        meant = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
        activation = described.get("dense_act_fn", meant)
        if not gated or activation != "gelu_new":
            raise UserError(
                f"{where} is of a T5 whose feed-forward part is {quoted(projection)} with {quoted(activation)}; only "
                "the gated-gelu with gelu_new of version 1.1 is supported"
            )
        config = cls(**sizes_of(described, BOUNDS, REQUIRED, where, "a T5 encoder"))
        check_elements(config.parameter_count, config.num_layers, tensors, source)
        check_asked(vars(config), asked, source)
        return config

    def smallest(self) -> T5Config:
        """Return the configuration of one block of these sizes, with a table of one token."""
        return dataclasses.replace(self, num_layers=1, vocab_size=1)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.d_model

    @property
    def parameter_count(self) -> int:
        """Elements of all weights of the encoder."""
        norms = (2 * self.num_layers + 1) * self.d_model
        bias = self.relative_attention_num_buckets * self.num_heads
        return self.vocab_size * self.d_model + self.matrices + norms + bias

    @property
    def matrices(self) -> int:
        """Elements of the matrices of the blocks alone."""
        return self.num_layers * self.d_model * (4 * self.d_kv * self.num_heads + 3 * self.d_ff)


def own_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the encoder's weights out of a T5's: without the decoder's, and without the second name of the table."""
    table = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
    own = {name: values for name, values in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    own.pop("encoder.embed_tokens.weight", None)
    return own if table is None else {**own, "shared.weight": table}


def relative_buckets(length: int, buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """Return the bucket of every pair (query, key) of a text as (L, L) int32: section 2.1 of Raffel et al. (2020).

    Half of the buckets are for keys after the query. In each half the first half is of one distance a bucket, the rest
    grows with the logarithm up to `max_distance`. Products and quotients are rounded to float32 as in PyTorch, so that
    distances that lie on the edge of a bucket fall into the same one.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # (L, L), key minus query
    distance = np.abs(offset)
    half, exact = buckets // 2, buckets // 4
    # The logarithm itself is rounded once, from float64: NumPy's float32 one differs between machines.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    logarithm = np.log(ratio.astype(np.float64)).astype(np.float32)
    growth = logarithm / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + growth.astype(np.int64), half - 1)
    return (np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)).astype(np.int32)


@constexpr
def _bucket_table(length: int, buckets: int, max_distance: int) -> ms.Tensor:
    return ms.Tensor(relative_buckets(length, buckets, max_distance).reshape(-1))


def t5_block(
    x: ms.Tensor,
    bias: ms.Tensor,
    norm1: ms.Tensor,
    q: ms.Tensor | tuple,
    k: ms.Tensor | tuple,
    v: ms.Tensor | tuple,
    o: ms.Tensor | tuple,
    norm2: ms.Tensor,
    wi_0: ms.Tensor | tuple,
    wi_1: ms.Tensor | tuple,
    wo: ms.Tensor | tuple,
    heads: int,
    eps: float,
    dtype: ms.Type,
    last_dtype: ms.Type,
) -> ms.Tensor:
    """Return attention and the gated feed-forward part, each normed before and added to its input.

    x (B, L, D) and bias (B, heads, L, L) float32. Products are in `dtype`, the last one in `last_dtype`, the rest is
    float32: in float16 the sums x of the released weights overflow, and so does what `wo` returns.
    """
    y = rms_norm(x, norm1, eps).astype(dtype)  # (B, L, D)
    y = attention(linear(y, q), linear(y, k), linear(y, v), heads, 1.0, False, bias)  # (B, L, heads * width)
    x = x + linear(y, o).astype(ms.float32)  # (B, L, D)

    y = rms_norm(x, norm2, eps).astype(dtype)  # (B, L, D)
    gate, value = linear(y, wi_0).astype(ms.float32), linear(y, wi_1).astype(ms.float32)  # (B, L, F)
    y = (gelu(gate) * value).astype(last_dtype)  # (B, L, F)
    return x + linear(y, wo).astype(ms.float32)  # (B, L, D)


def _last(dtype: ms.Type) -> ms.Type:
    """Return the dtype of the last product of a block."""
    return ms.float32 if dtype == ms.float16 else dtype


class Weight(nn.Cell):
    """One weight: of a linear layer (out, in), a norm (D,), or a table (rows, D)."""

    quantized = False  # whether `set_int8` was called

    def __init__(self, *shape: int, dtype: ms.Type = ms.float32):
        super().__init__()
        self.weight = parameter(np.empty(shape, NUMPY[dtype]), requires_grad=False)  # not touched before it is loaded

    def weights(self) -> ms.Parameter | tuple[ms.Parameter, ms.Parameter]:
        """Return the weight, as `latte.ops.linear` takes it."""
        return (self.weight, self.scale) if self.quantized else self.weight


class SelfAttention(nn.Cell):
    """The projections of attention, and in the first block the bias of each bucket and head."""

    def __init__(self, config: T5Config, has_bias: bool, dtype: ms.Type):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.q, self.k, self.v = (Weight(inner, config.d_model, dtype=dtype) for _ in range(3))
        self.o = Weight(config.d_model, inner, dtype=dtype)
        if has_bias:
            self.relative_attention_bias = Weight(config.relative_attention_num_buckets, config.num_heads)


class AttentionLayer(nn.Cell):
    """Attention and the norm before it."""

    def __init__(self, config: T5Config, has_bias: bool, dtype: ms.Type):
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias, dtype)
        self.layer_norm = Weight(config.d_model)


class GatedFeedForward(nn.Cell):
    """The three products of the feed-forward part; the last one is never float16."""

    def __init__(self, config: T5Config, dtype: ms.Type):
        super().__init__()
        self.wi_0, self.wi_1 = (Weight(config.d_ff, config.d_model, dtype=dtype) for _ in range(2))
        self.wo = Weight(config.d_model, config.d_ff, dtype=_last(dtype))


class FeedForwardLayer(nn.Cell):
    """The feed-forward part and the norm before it."""

    def __init__(self, config: T5Config, dtype: ms.Type):
        super().__init__()
        self.DenseReluDense = GatedFeedForward(config, dtype)
        self.layer_norm = Weight(config.d_model)


class T5Block(Block):
    """A block of the encoder."""

    forward = staticmethod(t5_block)

    def __init__(self, config: T5Config, has_bias: bool, dtype: ms.Type):
        super().__init__()
        self.layer = nn.CellList([AttentionLayer(config, has_bias, dtype), FeedForwardLayer(config, dtype)])
        attn, ff = self.layer[0].SelfAttention, self.layer[1].DenseReluDense
        attention = (self.layer[0].layer_norm, attn.q, attn.k, attn.v, attn.o)
        feed_forward = (self.layer[1].layer_norm, ff.wi_0, ff.wi_1, ff.wo)
        eps = config.layer_norm_epsilon
        self.takes(*attention, *feed_forward, heads=config.num_heads, eps=eps, dtype=dtype, last_dtype=_last(dtype))


class Stack(nn.Cell):
    """The blocks and the last norm; a cell because it takes a place in the names."""

    def __init__(self, config: T5Config, dtype: ms.Type):
        super().__init__()
        self.block = nn.CellList([T5Block(config, i == 0, dtype) for i in range(config.num_layers)])
        self.final_layer_norm = Weight(config.d_model)


class T5Encoder(Network):
    """Tokens of texts to vectors; its memory is empty until weights are loaded (by `load_t5`)."""

    def __init__(self, config: T5Config, dtype: ms.Type = ms.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.shared = Weight(config.vocab_size, config.d_model, dtype=dtype)
        self.encoder = Stack(config, dtype)

    def construct(self, input_ids: ms.Tensor, attention_mask: ms.Tensor) -> ms.Tensor:
        """Return what the encoder makes of texts.

        input_ids (B, L) int32, attention_mask (B, L) with 1 for tokens and 0 for padding -> (B, L, D) float32.
        """
        x, bias = self.embed(input_ids), self.bias(attention_mask)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.finish(x)

    def embed(self, input_ids: ms.Tensor) -> ms.Tensor:
        """Return the vectors (B, L, D) float32 of tokens (B, L) int32."""
        return lookup(self.shared.weight, input_ids).astype(ms.float32)

    def bias(self, attention_mask: ms.Tensor) -> ms.Tensor:
        """Return what is added to the scores (B, heads, L, L) float32, for positions and for a mask (B, L)."""
        b, length = attention_mask.shape
        config = self.config
        table = _bucket_table(
            length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )  # (L L,)
        bias = lookup(
            self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, table
        )  # (L L, heads)
        bias = bias.reshape(length, length, -1).transpose(2, 0, 1).expand_dims(0)  # (1, heads, L, L)
        mask = (1 - attention_mask.astype(ms.float32)) * MASKED  # (B, L)
        return bias + mask.reshape(b, 1, 1, length)

    def finish(self, x: ms.Tensor) -> ms.Tensor:
        """Return the last norm of x (B, L, D) float32."""
        return rms_norm(x, self.encoder.final_layer_norm.weight, self.config.layer_norm_epsilon)
