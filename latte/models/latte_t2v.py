"""LatteT2V, the text-to-video Latte-1: blocks over patches that also attend to the text, blocks over frames.

Its layers are named as in diffusers' LatteTransformer3DModel. The time enters as in PixArt-alpha (Chen et al., 2023,
section 2.3, adaLN-single): one projection serves all blocks, and each block adds a table of its own. Tokens are
(B, F, T, D): batch, frames, patches of a frame, width; the text is (B, S, D).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import mindspore as ms
from mindspore import nn
from mindspore.ops.primitive import constexpr

from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers
from latte.models import embeddings
from latte.models.block import Block, Network, begin
from latte.models.latte import FREQUENCIES
from latte.models.layers import Initializers, Linear, PatchEmbed, TokensToLatents, parameter
from latte.ops import (
    attention,
    chunk6,
    ended,
    gated_residual,
    gelu,
    join_videos,
    linear,
    modulated_norm,
    on_tokens,
    own_part,
    self_attention,
    share_videos,
    silu,
    to_frames,
    to_patches,
)
from latte.runtime.tensors import largest, split
from latte.weights.match import check_asked, check_elements, read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

FIXED = {  # what every LatteTransformer3DModel has and this one computes; another value is another network
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
ASKED = {"height": (1, 1 << 16), "width": (1, 1 << 16), "video_length": (1, 1 << 16)}  # of videos
BOUNDS = {  # of sizes, far beyond those that anybody has trained
    "num_attention_heads": (1, 4096),
    "attention_head_dim": (1, 4096),
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "num_layers": (1, 256),
    "cross_attention_dim": (1, 1 << 16),
    "sample_size": (1, 1 << 13),
    "patch_size": (1, 256),
    "caption_channels": (1, 1 << 16),
    "video_length": (1, 1 << 16),
}
# Of files of older versions: a null text that is not used, and embeddings that are computed.
UNUSED = ("caption_projection.y_embedding", "pos_embed.pos_embed", "temp_pos_embed")
DISCARD = -1e9  # added to the score of a token that is none


@dataclasses.dataclass(frozen=True)
class LatteT2VConfig:
    """Everything that fixes the shape of a LatteT2V network; diffusers' names, with the sizes of Latte-1."""

    default_steps: ClassVar[int] = 50
    default_guidance: ClassVar[float] = 7.5
    default_solver: ClassVar[str | None] = None  # the folder's
    takes_any_length: ClassVar[bool] = True  # its embeddings of frames are computed
    conditioning: ClassVar[str] = "prompt"  # what the videos are conditioned on
    condition_frames: ClassVar[int] = 0  # no training gives it first frames
    num_classes: ClassVar[int | None] = None

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int = 8
    num_layers: int = 28  # blocks over patches, and as many over frames
    cross_attention_dim: int = 1152
    sample_size: int = 64  # latents a side that the positions are counted in
    patch_size: int = 2
    caption_channels: int = 4096
    video_length: int = 16  # frames of the training; others work too

    def __post_init__(self) -> None:
        check_numbers(vars(self), BOUNDS)
        if self.patch_size > self.sample_size:
            raise UserError(f"patch_size {self.patch_size} is larger than sample_size {self.sample_size}")
        if self.cross_attention_dim != self.hidden_size:
            raise UserError(f"cross_attention_dim {self.cross_attention_dim} is not the width {self.hidden_size}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels) or self.hidden_size % 4:
            raise UserError(f"out_channels {self.out_channels} or width {self.hidden_size} is none of a LatteT2V")

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, **asked: Any
    ) -> LatteT2VConfig:
        """Return the configuration in the config.json that lies beside weights; None asks for nothing.

        Raises UserError if there is none, it is of a network of another kind, or has settings that this one does not
        compute or that are not those asked for.
        """
        values, where = read_config(metadata, source), f"the config.json of {source}"
        name = values.get("_class_name", "LatteTransformer3DModel")
        if name not in ("LatteTransformer3DModel", "LatteT2V"):
            raise UserError(f"{where} describes a {quoted(name)}, not a LatteTransformer3DModel")
        other = [
            f"{key} {quoted(repr(values[key]))}" for key, value in FIXED.items() if values.get(key, value) != value
        ]
        if other:
            raise UserError(f"{where} asks for {quoted(', '.join(other))}, which no Latte has and is not supported")
        sizes = {
            field.name: values[field.name] for field in dataclasses.fields(cls) if values.get(field.name) is not None
        }
        check_numbers(sizes, BOUNDS, where)
        config = cls(**sizes)
        check_elements(config.parameter_count, config.depth, tensors, source)
        check_asked(vars(config), asked, source)
        return config

    def with_positions(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the weights as they are: positions are computed, for any size and length."""
        return dict(tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the config.json of diffusers."""
        return {"_class_name": "LatteTransformer3DModel", **FIXED, **dataclasses.asdict(self)}

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_heads(self) -> int:
        """Attention heads, under the name that all networks here have for them."""
        return self.num_attention_heads

    tubelet: ClassVar[int] = 1  # frames that become one frame of tokens
    added_tokens: ClassVar[int] = 0  # in each frame, to its patches

    @property
    def blocks_over_frames(self) -> float:
        """Blocks that attend over frames."""
        return self.num_layers

    def pairs(self, patches: float, frames: float) -> float:
        """Return the number of pairs of a block over patches and one over frames."""
        return self.num_layers

    @property
    def attention_heads(self) -> int:
        """Heads of each attention."""
        return self.num_attention_heads

    @property
    def depth(self) -> int:
        """Blocks over patches and blocks over frames together."""
        return 2 * self.num_layers

    @property
    def text_width(self) -> int:
        """Width of the embeddings of prompts."""
        return self.caption_channels

    @property
    def default_frames(self) -> int:
        """Frames of a video of which no length is asked for."""
        return self.video_length

    def latent_shape(
        self, frames: int | None = None, height: int | None = None, width: int | None = None, side: int = 8
    ) -> tuple[int, int, int, int]:
        """Return the shape (F, C, h, w) of a video's latents; height and width in pixels, `side` pixels per latent.

        Raises UserError if the sizes are not whole patches.
        """
        unit, own = side * self.patch_size, self.sample_size * side
        check_numbers({"height": height, "width": width, "video_length": frames}, ASKED)
        height, width = own if height is None else height, own if width is None else width
        frames = self.video_length if frames is None else frames
        if height % unit or width % unit:
            raise UserError(f"height and width must be multiples of {unit}; asked for are {height} and {width}")
        return frames, self.in_channels, height // side, width // side

    @property
    def parameter_count(self) -> int:
        """Elements of all weights of the network."""
        d, p = self.hidden_size, self.patch_size**2
        count = d * (self.in_channels * p + 1)  # patches
        count += d * (FREQUENCIES + d + 2) + 6 * d * (d + 1)  # time
        count += d * (self.caption_channels + d + 2)  # text
        count += self.num_layers * d * (28 * d + 34)
        return count + 2 * d + p * self.out_channels * (d + 1)  # the final layer

    def describe(self) -> str:
        """Return the sizes in words."""
        return (
            f"depth {self.depth}, width {self.hidden_size}, {self.num_heads} heads, patch {self.patch_size}, "
            f"condition {self.conditioning}"
        )


def own_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights without those that older versions of LatteTransformer3DModel store and never use."""
    return {name: values for name, values in tensors.items() if name not in UNUSED}


def video_block(  # the weights are arguments, so that all blocks share one compiled graph
    x: ms.Tensor,
    time: ms.Tensor,
    text: ms.Tensor | None,
    text_bias: ms.Tensor | None,
    table: ms.Tensor,
    attn1: tuple,
    attn2: tuple | None,
    ff: tuple,
    heads: int,
    temporal: bool,
    flash: bool,
    whole: bool,
    rotary: bool,
) -> ms.Tensor:
    """Return a block: self-attention, attention to the text where it is given, and MLP.

    x (B, F, T, D), time (B, 6D), text (B, S, D), text_bias (B, 1, 1, S) added to the scores. `attn1` and `attn2` are
    (weight, bias) of q, k, v and out, `ff` those of the two layers of the MLP, table (6, D).
    """
    scale = (x.shape[-1] // heads) ** -0.5
    modulation = table.reshape(1, -1) + time  # (B, 6D) float32
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = chunk6(modulation, x.dtype)  # (B, D)

    y = modulated_norm(x, shift_attn, scale_attn)  # (B, F, T, D)
    y = self_attention(y, attn1[:3], attn1[3], heads, scale, temporal, flash, whole, rotary)
    x = gated_residual(x, gate_attn, y)
    read = _text_attention_of(text is not None)
    x = read(x, attn2, text, text_bias, heads, scale, flash)

    y = modulated_norm(x, shift_mlp, scale_mlp)
    y = linear(gelu(linear(y, *ff[0])), *ff[1])  # (B, F, T, 4D) -> (B, F, T, D)
    return gated_residual(x, gate_mlp, y)


def _text_attention_of(there: bool) -> Callable:
    """Return one of the next two; see `latte.ops.recompute` on why they are not called here."""
    return _attend_to_text if there else _attend_to_nothing


def _attend_to_text(
    x: ms.Tensor, attn2: tuple, text: ms.Tensor, text_bias: ms.Tensor, heads: int, scale: float, flash: bool
) -> ms.Tensor:
    """Add attention to the text without a norm, as in PixArt-alpha; all frames attend to the one text."""
    b, f, t, _ = x.shape
    q = linear(x, *attn2[0]).reshape(b, f * t, -1)  # (B, F T, D)
    k, v = linear(text, *attn2[1]), linear(text, *attn2[2])  # (B, S, D)
    return x + linear(attention(q, k, v, heads, scale, flash, text_bias).reshape(b, f, t, -1), *attn2[3])


def _attend_to_nothing(
    x: ms.Tensor, attn2: None, text: None, text_bias: None, heads: int, scale: float, flash: bool
) -> ms.Tensor:
    return x


class Attention(nn.Cell):
    """The projections of multi-head attention."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.to_q = Linear(width, width, init.torch_default)
        self.to_k = Linear(width, width, init.torch_default)
        self.to_v = Linear(width, width, init.torch_default)
        self.to_out = nn.CellList([Linear(width, width, init.torch_default)])

    def weights(self) -> tuple[tuple, ...]:
        """Return (weight, bias) of q, k, v and out."""
        return self.to_q.weights(), self.to_k.weights(), self.to_v.weights(), self.to_out[0].weights()


class Projection(nn.Cell):
    """The holder of the first layer of an MLP, for its official name."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.proj = Linear(width, 4 * width, init.torch_default)


class FeedForward(nn.Cell):
    """The two layers of the MLP; the place between them is that of a dropout."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        last = Linear(4 * width, width, init.torch_default)
        self.net = nn.CellList([Projection(width, init), nn.Identity(), last])

    def weights(self) -> tuple[tuple, ...]:
        """Return (weight, bias) of both layers."""
        return self.net[0].proj.weights(), self.net[2].weights()


class VideoBlock(Block):
    """A block over patches, with attention to the text, or one over frames, without."""

    forward = staticmethod(video_block)
    both = False  # whether it attends over patches and over frames

    def __init__(self, width: int, heads: int, temporal: bool, flash: bool, init: Initializers):
        super().__init__()
        self.scale_shift_table = parameter(init.scaled((6, width), width**-0.5))
        self.attn1 = Attention(width, init)
        if not temporal:
            self.attn2 = Attention(width, init)
        self.ff = FeedForward(width, init)
        self.temporal = temporal
        self.independent_axis = 2 if temporal else 1  # patches do not see each other there, and frames here
        cross = None if temporal else self.attn2
        settings = {"heads": heads, "temporal": temporal, "flash": flash, "whole": False, "rotary": False}
        self.takes(self.attn1, cross, self.ff, **settings)

    def weights(self) -> tuple:
        """Return the table, which is the block's own, and the weights of its layers."""
        attn1, cross, ff = self.layers
        return self.scale_shift_table, attn1.weights(), None if cross is None else cross.weights(), ff.weights()


class TimestepEmbedder(nn.Cell):
    """The two layers behind the sinusoids of the time."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.linear_1 = Linear(FREQUENCIES, width, init.normal)
        self.linear_2 = Linear(width, width, init.normal)

    def construct(self, sinusoids: ms.Tensor) -> ms.Tensor:
        """Return (B, D) of sinusoids (B, 256)."""
        return self.linear_2(silu(self.linear_1(sinusoids)))


class TimeEmbedding(nn.Cell):
    """The holder of the embedder, for its official name."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width, init)


class AdaLayerNormSingle(nn.Cell):
    """Timesteps to their embedding and to the modulation that all blocks share."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.emb = TimeEmbedding(width, init)
        self.linear = Linear(width, 6 * width, init.normal)
        self.frequencies = ms.Tensor(embeddings.timestep_frequencies(FREQUENCIES))

    def construct(self, t: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the modulation (B, 6D) and the embedding (B, D) of t (B,)."""
        c = self.emb.timestep_embedder(embeddings.timestep_embedding(t, self.frequencies))  # (B, D)
        return self.linear(silu(c)), c


class CaptionProjection(nn.Cell):
    """Text embeddings to the width of the tokens."""

    def __init__(self, channels: int, width: int, init: Initializers):
        super().__init__()
        self.linear_1 = Linear(channels, width, init.normal)
        self.linear_2 = Linear(width, width, init.normal)

    def construct(self, text: ms.Tensor) -> ms.Tensor:
        """Return (B, S, D) of text (B, S, caption_channels)."""
        return self.linear_2(gelu(self.linear_1(text)))


class LatteT2V(Network):
    """The network: noisy latents, timesteps and text to the noise and the interpolation of its variance."""

    reads_text = True  # whether blocks over patches attend to a text
    first_over_frames = 1  # of the blocks

    def __init__(
        self,
        config: LatteT2VConfig,
        patch_embedder: str = "conv",
        flash: bool = False,
        seed: int | None = 0,
        dtype: ms.Type = ms.float32,
    ):
        super().__init__()
        init, width, heads = Initializers(seed), config.hidden_size, config.num_attention_heads
        self.config = config
        self.dtype = dtype  # of the tokens inside the blocks
        self.flash = flash  # the fused attention kernel
        self.prepared = False  # whether the weights are as `dtype` and `flash` want them
        sizes = (config.in_channels, width, config.patch_size)
        self.pos_embed = PatchEmbed(sizes, patch_embedder == "conv", init)
        self.transformer_blocks = nn.CellList(
            [VideoBlock(width, heads, False, flash, init) for _ in range(config.num_layers)]
        )
        self.temporal_transformer_blocks = nn.CellList(
            [VideoBlock(width, heads, True, flash, init) for _ in range(config.num_layers)]
        )
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        object.__setattr__(self, "blocks", [block for pair in pairs for block in pair])  # in the order of use
        self.adaln_single = AdaLayerNormSingle(width, init)
        self.caption_projection = CaptionProjection(config.caption_channels, width, init)
        self.scale_shift_table = parameter(init.scaled((2, width), width**-0.5))
        self.proj_out = Linear(width, config.patch_size**2 * config.out_channels, init.normal)
        object.__setattr__(self, "head", TokensToLatents(self.proj_out, config.patch_size))
        self.set_train(False)

    def construct(self, x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Predict the noise in `x` and the interpolation of its variance.

        x (B, F, C, H, W) float32 of any length and size; t (B,) timesteps 0 .. 999, maybe between two; conditions: text
        (B, S, caption_channels) float32, and its mask (B, S), 0 for padding. Single images skip the blocks over frames.
        Returns (B, F, out_channels, H, W) float32.
        Raises ValueError if the shapes do not fit.
        """
        x, c = self.embed(x, t, *conditions)  # (B, F, T, D), what `embed` says
        x = self.run_blocks(x, c, 0, len(self.blocks))  # (B, F, T, D)
        return self.finish(x, c)  # (B, F, out_channels, H, W)

    def embed(self, x: ms.Tensor, t: ms.Tensor, text: ms.Tensor, mask: ms.Tensor) -> tuple[ms.Tensor, tuple]:
        """Return this rank's part of the tokens (B, F, T, D), and what blocks and final layer are conditioned on.

        That is the modulation (B, 6D), the embedding of the time (B, D), the text (B, S, D), its mask as what is added
        to the scores (B, 1, 1, S), the grid of patches (h, w), and the shape (B, F) of the whole.
        """
        self._check(x, t, text, mask)
        whole = x.shape[:2]
        x, t, text, mask = share_videos(x, t, text, mask)
        config = self.config
        grid = (x.shape[3] // config.patch_size, x.shape[4] // config.patch_size)
        x = self.pos_embed(x) + _positions(config.hidden_size, grid, (config.sample_size, config.patch_size))
        time, c = self.adaln_single(t)  # (B, 6D), (B, D)
        text = self.caption_projection(text).astype(self.dtype)  # (B, S, D)
        return x.astype(self.dtype), (time, c, text, _mask_bias(mask), grid, whole)  # (B, F, T, D)

    def run_blocks(self, x: ms.Tensor, c: tuple, first: int, last: int) -> ms.Tensor:
        """Return the tokens (B, F, T, D) after the blocks from `first` up to, but without, `last`; c is `embed`'s."""
        time, _, text, bias, _, whole = c
        frames, patches = whole[1], x.shape[2]
        over_frames = self.attends_over_frames(frames)
        x = begin(x, self.blocks)
        for i in range(first, last):
            if i == 1 and over_frames:
                x = on_tokens(self.with_frames, x, frames)
            if i % 2 == 0:
                x = self.blocks[i](x, time, text, bias)  # over T, and to the text
            elif over_frames:
                x = to_frames(self.blocks[i](to_patches(x, frames), time, None, None), patches)  # over F
        return ended(x)

    def finish(self, x: ms.Tensor, c: tuple) -> ms.Tensor:
        """Return the output (B, F, out_channels, H, W) of the last tokens; c is `embed`'s."""
        shift, scale = split(self.scale_shift_table, 1, 0)  # (1, D)
        return join_videos(self.head(x, shift + c[1], scale + c[1], c[4]), c[5])

    def attends_over_frames(self, frames: int) -> bool:
        """Return whether the blocks over frames run for so many of them: not for an image."""
        return self.temporal and frames > 1

    def with_frames(self, x: ms.Tensor, frames: int) -> ms.Tensor:
        """Return this rank's part of the tokens (B, F, T, D) with the embedding of their F frames."""
        return x + own_part(_frames(self.config.hidden_size, frames).astype(x.dtype), 1)  # (1, F, 1, D)

    def parts_of(self, i: int, c: tuple) -> tuple:
        """Return the modulation (B, 6D) of a block, and the weights of its parts; see `latte.models.parts`.

        They are those of self-attention, of attention to the text and of the MLP; then what that reads.
        """
        table, attn, cross, ff = self.blocks[i].weights()
        return table.reshape(1, -1) + c[0], (attn[:3], attn[3]), cross, ff, (c[2], c[3])

    def first_norm(self, x: ms.Tensor, c: tuple) -> ms.Tensor:
        """Return the normed and modulated tokens (B, F, T, D) that the first block attends with; x, c are `embed`'s."""
        modulation = self.blocks[0].scale_shift_table.reshape(1, -1) + c[0]  # (B, 6D)
        parts = chunk6(modulation, x.dtype)  # (B, D)
        return modulated_norm(x, parts[0], parts[1])

    def _check(self, x: ms.Tensor, t: ms.Tensor, text: ms.Tensor, mask: ms.Tensor) -> None:
        b, _, channels, h, w = x.shape
        patch = self.config.patch_size
        fits = channels == self.config.in_channels and h % patch == 0 and w % patch == 0
        if not fits or t.shape[0] != b or text.shape[0] != b or mask.shape != text.shape[:2]:
            raise ValueError("the network takes x (B, F, C, H, W), with a timestep, a text and its mask for each video")


def _mask_bias(mask: ms.Tensor) -> ms.Tensor:
    """Return what is added to the scores (B, 1, 1, S) for a mask (B, S).

    A text without any token counts as a whole: a softmax over nothing is NaN in the fused kernel.
    """
    kept = mask.astype(ms.float32)
    return ((largest(kept, 1) - kept) * DISCARD).reshape(mask.shape[0], 1, 1, -1)


@constexpr
def _positions(width: int, grid: tuple[int, int], config: tuple[int, int]) -> ms.Tensor:
    """Return the embedding (1, 1, T, D) of a grid of patches; config is (sample_size, patch_size).

    Whatever their number, the patches of a side lie where those of the training's size lie; training sizes of more than
    64 latents count in fractions of a patch (PixArt-alpha).
    """
    sample_size, patch = config
    span = sample_size // patch / max(sample_size // 64, 1)
    return ms.Tensor(embeddings.patch_embedding(width, grid, span)[None])


@constexpr
def _frames(width: int, frames: int) -> ms.Tensor:
    """Return the embedding (1, F, 1, D) of the frames."""
    return ms.Tensor(embeddings.frame_embedding(width, frames)[:, :, None])
