"""Latte (Ma et al., 2024): the four variants of figure 2, with the paper's other choices as options.

Blocks are DiT's (Peebles and Xie, 2023) with adaptive layer norm (adaLN-Zero). Tokens are (B, F, T, D): batch,
frames, patches of a frame, width. Variant 1 attends over T in even blocks and over F in odd ones; variant 2 over T in
the first half of the blocks and over F in the second; variants 3 and 4 over both in each block, one after the other
(3), or side by side with half of the heads each (4).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.primitive import constexpr

from latte.diffusion.distillation import WALK
from latte.errors import UserError, quoted
from latte.io.json_files import check_numbers
from latte.models import embeddings
from latte.models.block import Block, Network, Pair, begin
from latte.models.layers import (
    Embedding,
    Initializers,
    Linear,
    PatchEmbed,
    SiLU,
    Table,
    TubeletEmbed,
    parameter,
    tokens_to_latents,
    zeros,
)
from latte.models.precision import prepare
from latte.models.velocity import Shares, as_noise
from latte.ops import (
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
from latte.runtime import device
from latte.runtime.tensors import narrow, split
from latte.weights.match import check_asked, check_elements, count_of, shapes_of, sizes_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from latte.diffusion.solvers import Solver

log = logging.getLogger("latte")

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
PATCHES = (2, 4, 8)
CLIP_TEXT = (77, 768)  # tokens and width of the text condition
HEADS = {width: heads for _, width, heads in SIZES.values()}
RESIZABLE = ("input_size", "num_frames")  # what position embeddings can be adapted to
CHOICES: dict[str, tuple[Any, ...]] = {  # the first are those of the released networks
    "variant": (1, 2, 3, 4),
    "patch_embedding": ("uniform", "compression"),
    "injection": ("adaln", "all_tokens"),
    "temporal_position": ("absolute", "rotary"),
    "prediction_type": ("epsilon", "v_prediction"),
}
GATES_OPEN = (0, 0, 1, 0, 0, 1)  # what tables of shift, scale and gate of attention and of the MLP start with
TUBELET = 2  # frames that become one with patch_embedding compression
BOUNDS = {  # of the sizes that a file may tell, far beyond those that anybody has trained
    "hidden_size": (1, 1 << 16),
    "depth": (1, 512),
    "num_heads": (1, 4096),
    "patch_size": (1, 256),
    "num_frames": (1, 1 << 16),
    "in_channels": (1, 4096),
    "num_classes": (0, 10**7),
    "condition_frames": (0, 1 << 16),
    "distill_steps": (0, 1000),
}
BESIDE = ("num_heads", "num_frames", "condition_frames", "distill_steps")  # sizes that no weight tells
SIDE = {"input_size": (1, 1 << 13)}  # latents of one side
FREQUENCIES = 256  # width of the sinusoidal timestep embedding


@dataclasses.dataclass(frozen=True)
class LatteConfig:
    """Everything that fixes the shape of a Latte network, and what is sampled with it by default."""

    default_guidance: ClassVar[float] = 1.0  # none
    takes_any_length: ClassVar[bool] = False  # its embeddings of frames are weights

    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    patch_size: int = 2
    input_size: int | tuple[int, int] = 32  # height and width of the latents
    num_frames: int = 16
    in_channels: int = 4
    learn_sigma: bool = True  # twice the channels out: noise and variance
    condition: str | None = None  # None, "class" or "text"
    num_classes: int | None = None
    condition_frames: int = 0  # the most first frames of a video that it was trained to be given
    distill_steps: int = 0  # in how many it learned to make a video; 0 = it was not distilled
    variant: int = 1  # of figure 2
    patch_embedding: str = "uniform"  # of each frame; "compression": of tubelets of two frames
    injection: str = "adaln"  # of timestep and condition; "all_tokens": as one token more in each frame
    temporal_position: str = "absolute"  # an embedding that is added; "rotary": queries and keys are rotated
    prediction_type: str = "epsilon"  # what the last layer predicts: the noise, or its velocity, made noise behind it

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices or isinstance(getattr(self, key), bool):
                names = ", ".join(map(str, choices))
                raise UserError(f"{key} must be one of {names}, but is {quoted(repr(getattr(self, key)))}")
        if self.condition not in (None, "class", "text"):
            raise UserError(f"condition {self.condition!r} is not known; choose null, class or text")
        check_numbers(vars(self), BOUNDS)
        for side in self.latent_size:
            check_numbers({"input_size": side}, SIDE)
        if self.condition == "class" and not self.num_classes:
            raise UserError("condition class needs num_classes")
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} does not divide into {self.num_heads} heads")
        if self.hidden_size % 4:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of 4, as position embeddings need it")
        if any(size % self.patch_size for size in self.latent_size):
            raise UserError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")
        if self.variant == 4 and self.num_heads % 2:
            raise UserError(f"variant 4 halves its heads, but num_heads is {self.num_heads}; take an even number")
        if self.num_frames % self.tubelet:
            raise UserError(
                f"patch_embedding compression joins frames in pairs, but num_frames is {self.num_frames}; take an even "
                "number"
            )
        if self.temporal_position == "rotary" and self.head_width % 2:
            raise UserError(
                f"temporal_position rotary needs an even head width, but hidden_size {self.hidden_size} and num_heads "
                f"{self.num_heads} give {self.head_width}"
            )

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, **asked: Any
    ) -> LatteConfig:
        """Return the configuration of the network that weights are of, read off their shapes.

        metadata["config"] adds a latent size that is not square, and the number of heads, which `asked` gives where it
        does not and the official widths imply. Of what is asked for, input_size and num_frames may differ (`adapt` then
        fits the weights), `model_name` stands for its sizes, and None asks for nothing.
        Raises UserError if the tensors are not the whole of a Latte, are another one than is asked for, or the number
        of heads is not known.
        """
        asked = {key: value for key, value in asked.items() if value is not None}
        found = _stored(tensors, metadata, source, asked)
        if name := asked.pop("model_name", None):
            asked = named_sizes(name, found["variant"]) | asked
            found = _stored(tensors, metadata, source, asked)
        check_elements(cls(**found).parameter_count, found["depth"], tensors, source)
        check_asked(found, {key: value for key, value in asked.items() if key not in RESIZABLE}, source)
        return cls(**(found | asked))

    def adapt(
        self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str
    ) -> dict[str, np.ndarray]:
        """Return the weights of a network of another size or length with position embeddings for this one."""
        stored = LatteConfig(**_stored(tensors, metadata, source, vars(self)))
        for key in RESIZABLE:
            old, new = getattr(stored, key), getattr(self, key)
            if old != new:
                hint = f"; window: {old} keeps to {old} frames at a time" if key == "num_frames" and new > old else ""
                log.warning("%s: position embeddings adapted from %s %s to %s%s", source, key, old, new, hint)
        return self.with_positions(tensors, stored.grid)

    def with_positions(
        self, tensors: Mapping[str, np.ndarray], stored: tuple[int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Return weights with position embeddings for the patches and frames of this configuration.

        pos_embed is interpolated; temp_embed of another length is replaced. `stored` is the patch grid of the tensors;
        None takes this one's if it has as many patches, else a square. What fits already, or is not there, stays.
        Raises UserError if the stored embedding is no square and `stored` is None.
        """
        adapted, grid = dict(tensors), self.grid
        pos, temp = tensors.get("pos_embed"), tensors.get("temp_embed")
        if pos is not None and pos.ndim == 3 and (stored != grid if stored else pos.shape[1] != math.prod(grid)):
            adapted["pos_embed"] = embeddings.interpolate_pos_embed(pos, grid, stored)
        if temp is not None and temp.ndim == 3 and temp.shape[1] != self.token_frames:
            adapted["temp_embed"] = embeddings.frame_embedding(self.hidden_size, self.token_frames)
        return adapted

    def to_json(self) -> dict[str, Any]:
        """Return the fields, as they are stored beside weights."""
        return dataclasses.asdict(self)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        if isinstance(self.input_size, int):
            return self.input_size, self.input_size
        try:
            height, width = self.input_size  # a list, where it comes from JSON
        except (TypeError, ValueError):
            raise UserError(f"input_size must be a number or two, but is {quoted(self.input_size)}") from None
        return height, width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.latent_size[0] // self.patch_size, self.latent_size[1] // self.patch_size

    @property
    def tubelet(self) -> int:
        """Frames that become one frame of tokens."""
        return TUBELET if self.patch_embedding == "compression" else 1

    @property
    def added_tokens(self) -> int:
        """Tokens in each frame beside its patches: that of timestep and condition."""
        return 1 if self.injection == "all_tokens" else 0

    @property
    def token_frames(self) -> int:
        """Frames of the tokens."""
        return self.num_frames // self.tubelet

    @property
    def blocks_over_frames(self) -> float:
        """Blocks that attend over frames; half of a number for an odd depth of variant 1 or 2."""
        return self.depth / (1 if self.variant > 2 else 2)

    def pairs(self, patches: float, frames: float) -> float:
        """Return how many pairs of a block over patches and one over frames compute as much as all blocks do.

        Both have two attentions, but a block of variants 3 and 4 has one MLP where a pair has two.
        """
        attentions = 8 * self.hidden_size + 2 * patches + 2 * frames  # products per token and element of the width
        share = (attentions + 8 * self.hidden_size) / (attentions + 16 * self.hidden_size)
        return self.depth * share if self.variant > 2 else self.depth / 2

    @property
    def head_width(self) -> int:
        """Width of a head; in variant 4 each attention has half of the heads, twice as wide."""
        return self.hidden_size // self.attention_heads

    @property
    def attention_heads(self) -> int:
        """Heads of each attention."""
        return self.num_heads // (2 if self.variant == 4 else 1)

    @property
    def out_channels(self) -> int:
        """Channels of the output: the noise, then the interpolation of its variance."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def conditioning(self) -> str:
        """What the videos are conditioned on: "none", "class" or "text" (embeddings of CLIP)."""
        return self.condition or "none"

    @property
    def text_width(self) -> int:
        """Width of the embeddings of texts."""
        return CLIP_TEXT[1]

    @property
    def default_steps(self) -> int:
        """Steps to sample with."""
        return self.distill_steps or 250

    @property
    def default_solver(self) -> str | Solver:
        """What to sample with."""
        return WALK if self.distill_steps else "ddpm"

    @property
    def default_frames(self) -> int:
        """Frames of a video."""
        return self.num_frames

    def latent_shape(
        self, frames: int | None = None, height: int | None = None, width: int | None = None, side: int = 8
    ) -> tuple[int, int, int, int]:
        """Return the shape (F, C, h, w) of a video's latents; height and width in pixels, `side` pixels per latent.

        Raises UserError if another size than the network's own is asked for.
        """
        h, w = self.latent_size
        own = {"height": h * side, "width": w * side, "video_length": self.num_frames}
        for (name, value), asked in zip(own.items(), (height, width, frames), strict=True):
            if asked not in (None, value):
                raise UserError(f"{name} is {value} in this network, but {asked} is asked for; load it for other sizes")
        return self.num_frames, self.in_channels, h, w

    @property
    def parameter_count(self) -> int:
        """Elements of all weights of the network, the two position embeddings included."""
        d, p = self.hidden_size, self.patch_size**2 * self.tubelet
        count = d * (self.in_channels * p + 1)  # patches
        count += d * (FREQUENCIES + d + 2)  # time
        count += d * (math.prod(self.grid) + (self.token_frames if self.temporal_position == "absolute" else 0))
        if self.num_classes and self.condition == "class":
            count += d * (self.num_classes + 1)
        if self.condition == "text":
            count += d * (math.prod(CLIP_TEXT) + 1)
        rows = d + 1 if self.injection == "adaln" else 1  # of each shift, scale and gate
        attentions = 2 if self.variant > 2 else 1
        count += self.depth * d * (attentions * 4 * (d + 1) + 8 * d + 5 + 6 * rows)
        return count + p * self.out_channels * (d + 1) + 2 * d * rows  # the final layer

    def describe(self) -> str:
        """Return the sizes in words."""
        others = {key: getattr(self, key) for key, choices in CHOICES.items() if getattr(self, key) != choices[0]}
        return (
            f"depth {self.depth}, width {self.hidden_size}, {self.num_heads} heads, patch {self.patch_size}, "
            f"condition {self.conditioning}"
            + (f", distilled to {self.distill_steps} steps" if self.distill_steps else "")
            + "".join(f", {key} {value}" for key, value in others.items())
        )


def own_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights under their official names: MindSpore's embedding calls its table `embedding_table`."""
    old, new = "y_embedder.embedding_table.embedding_table", "y_embedder.embedding_table.weight"
    return {new if name == old else name: values for name, values in tensors.items()}


def _stored(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of the configuration of a Latte's weights; `asked` is taken where nothing else tells."""
    beside = sizes_beside(metadata, {key: BOUNDS[key] for key in BESIDE}, source)
    choices = _stored_choices(tensors, beside, source, asked)
    rotary, tubelet = choices["temporal_position"] == "rotary", 1
    label = "y_embedder.embedding_table.weight"
    ranks = {embeddings.KERNEL: 4, "pos_embed": 3, "final_layer.linear.bias": 1}
    ranks |= ({} if rotary else {"temp_embed": 3}) | ({label: 2} if label in tensors else {})
    if choices["patch_embedding"] == "compression":
        ranks[embeddings.KERNEL], tubelet = 5, TUBELET
    shapes = shapes_of(tensors, source, "a Latte network", ranks)
    width, channels, patch = (shapes[embeddings.KERNEL][axis] for axis in (0, -3, -1))
    heads = beside.get("num_heads") or asked.get("num_heads") or HEADS.get(width)
    if not heads:
        raise UserError(
            f"{source} has width {width}, of which the number of heads is not known; give it with --num_heads"
        )
    frames = beside.get("num_frames") or asked.get("num_frames") if rotary else shapes["temp_embed"][1] * tubelet
    if not frames:
        raise UserError(f"{source} does not tell how many frames its videos have; give it with --num_frames")
    condition = "class" if label in tensors else None
    if "text_embedding_projection.1.weight" in tensors:
        condition = "text"
    return choices | {
        "hidden_size": width,
        "depth": count_of(tensors, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "patch_size": patch,
        "input_size": _stored_size(beside.get("input_size"), shapes["pos_embed"][1], patch, source),
        "num_frames": frames,
        "in_channels": channels,
        "learn_sigma": shapes["final_layer.linear.bias"][0] == 2 * channels * tubelet * patch**2,
        "condition": condition,
        "num_classes": shapes[label][0] - 1 if condition == "class" else None,
        "condition_frames": beside.get("condition_frames") or 0,
        "distill_steps": beside.get("distill_steps") or 0,
    }


def _stored_choices(
    tensors: Mapping[str, np.ndarray], beside: Mapping[str, Any], source: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the variant and the other choices of a Latte's weights: as their names and shapes tell, or their file.

    What neither tells is taken as asked, and else as in the official networks.
    """
    found = {key: beside.get(key) or asked.get(key) or choices[0] for key, choices in CHOICES.items()}
    kernel, table = tensors.get(embeddings.KERNEL), "final_layer.modulation.scale_shift_table"
    found["patch_embedding"] = "compression" if kernel is not None and kernel.ndim == 5 else "uniform"
    found["injection"] = "all_tokens" if table in tensors else "adaln"
    both = "blocks.0.temporal_attn.qkv.weight" in tensors
    if both and found["variant"] not in (3, 4):
        raise UserError(f"{source} is of variant 3 or 4, but does not tell of which; give it with --variant")
    if not both and found["variant"] in (3, 4):
        raise UserError(f"{source} has no blocks of variant {found['variant']}; leave the variant out")
    return found


def _stored_size(beside: Any, patches: int, patch: int, source: str) -> int | tuple[int, int]:
    """Return the latent size of so many patches: what is written beside the weights if it fits, else a square."""
    height, width = beside if isinstance(beside, list) and len(beside) == 2 else (beside, beside)
    for side in (height, width):
        check_numbers({"input_size": side}, SIDE, f"the configuration of {source}")
    if height is None or width is None or height * width != patches * patch**2:
        height = width = math.isqrt(patches) * patch
    if height * width != patches * patch**2:
        raise UserError(
            f"{source} has {patches} patches, which are no square; convert it with its configuration beside it"
        )
    return height if height == width else (height, width)


def transformer_block(  # the weights are arguments, so that all blocks share one compiled graph
    x: ms.Tensor,
    c: ms.Tensor,
    qkv: Pair,
    proj: Pair,
    fc1: Pair,
    fc2: Pair,
    ada: Pair,
    heads: int,
    temporal: bool,
    flash: bool,
    whole: bool,
    rotary: bool,
) -> ms.Tensor:
    """Return a block of figure 2: attention and MLP, each normed, modulated and gated by the condition.

    x (B, F, T, D), c (B, D). Each layer of `TransformerBlock` is a pair (weight, bias).
    """
    scale = (x.shape[-1] // heads) ** -0.5
    modulate = _modulation_of(len(ada))
    modulation = modulate(c, ada, x.dtype)  # (B, 6D)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = chunk6(modulation, x.dtype)  # (B, D)

    y = modulated_norm(x, shift_attn, scale_attn)  # (B, F, T, D)
    y = self_attention(y, qkv, proj, heads, scale, temporal, flash, whole, rotary)
    x = gated_residual(x, gate_attn, y)

    y = modulated_norm(x, shift_mlp, scale_mlp)
    y = linear(gelu(linear(y, *fc1)), *fc2)  # (B, F, T, 4D) -> (B, F, T, D)
    return gated_residual(x, gate_mlp, y)


def attention_block(
    x: ms.Tensor,
    c: ms.Tensor,
    qkv: Pair,
    proj: Pair,
    ada: Pair,
    heads: int,
    temporal: bool,
    flash: bool,
    whole: bool,
    rotary: bool,
    alone: bool,
) -> ms.Tensor:
    """Return x (B, F, T, D) after the attention of a block, gated, or that attention `alone`; c (B, D)."""
    modulate, add = _modulation_of(len(ada)), _sum_of(alone)
    parts = chunk6(modulate(c, ada, x.dtype), x.dtype)  # (B, D)
    y = modulated_norm(x, parts[0], parts[1])  # (B, F, T, D)
    y = self_attention(y, qkv, proj, heads, (x.shape[-1] // heads) ** -0.5, temporal, flash, whole, rotary)
    return add(x, parts[2], y)


def mlp_block(x: ms.Tensor, y: ms.Tensor, c: ms.Tensor, fc1: Pair, fc2: Pair, ada: Pair) -> ms.Tensor:
    """Return a block whose attentions give y, both (B, F, T, D): that is gated, then comes the MLP; c (B, D)."""
    modulate = _modulation_of(len(ada))
    _, _, gate_attn, shift_mlp, scale_mlp, gate_mlp = chunk6(modulate(c, ada, x.dtype), x.dtype)  # (B, D)
    x = gated_residual(x, gate_attn, y)
    y = modulated_norm(x, shift_mlp, scale_mlp)
    return gated_residual(x, gate_mlp, linear(gelu(linear(y, *fc1)), *fc2))


# What chooses a function does not call it: `latte.ops.recompute` says why.
def _modulation_of(parts: int) -> Callable:
    return _of_condition if parts == 2 else _of_table


def _of_condition(c: ms.Tensor, ada: Pair, dtype: ms.Type) -> ms.Tensor:
    return linear(silu(c).astype(dtype), *ada)  # (B, 6D), or 2D of the final layer


def _of_table(c: ms.Tensor, ada: tuple, dtype: ms.Type) -> ms.Tensor:
    return ada[0].reshape(1, -1) + _zeros((c.shape[0], 1))


@constexpr
def _zeros(shape: tuple[int, ...]) -> ms.Tensor:
    return ms.Tensor(zeros(shape))


def _sum_of(alone: bool) -> Callable:
    return _last if alone else gated_residual


def _last(x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    return y


class Attention(nn.Cell):
    """The joint input projection and the output projection of multi-head attention."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.qkv = Linear(width, 3 * width, init.xavier)
        self.proj = Linear(width, width, init.xavier)


class Mlp(nn.Cell):
    """The two layers of the feed-forward part."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.fc1 = Linear(width, 4 * width, init.xavier)
        self.fc2 = Linear(4 * width, width, init.xavier)


class Modulated(Block):
    """A block with shifts, scales and gates: of the condition, or with injection all_tokens a table of its own."""

    def new_modulation(self, config: LatteConfig, start: tuple[float, ...]) -> nn.Cell:
        """Add the layer of shifts, scales and gates, and return it; `start`: what each is in the beginning of a table.

        It comes last in a block: the order of weights is that of the official code.
        """
        width = config.hidden_size
        if config.injection == "adaln":
            self.adaLN_modulation = nn.SequentialCell(SiLU(), Linear(width, len(start) * width, zeros))
            return self.adaLN_modulation[1]
        self.modulation = Table(start, width)
        return self.modulation


class TransformerBlock(Modulated):
    """A block that attends over patches or over frames."""

    forward = staticmethod(transformer_block)
    both = False  # whether it attends over patches and over frames

    def __init__(self, config: LatteConfig, temporal: bool, flash: bool, init: Initializers):
        super().__init__()
        self.attn = Attention(config.hidden_size, init)
        self.mlp = Mlp(config.hidden_size, init)
        ada = self.new_modulation(config, GATES_OPEN)
        self.temporal = temporal
        layers = (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2, ada)
        self.takes(*layers, **attends(config, temporal, flash))
        self.independent_axis = independent_axis(config, temporal)


class Stage(Block):
    """A part of a `DoubleBlock` that is compiled by itself; its layers are that block's, under their own names."""

    def __init__(self, forward: Callable, axis: int | None, *layers: nn.Cell, **settings: Any):
        super().__init__()
        object.__setattr__(self, "forward", forward)
        self.independent_axis = axis
        self.takes(*layers, **settings)


class DoubleBlock(Modulated):
    """A block of variant 3 or 4, which attends over patches and over frames, with equal modulation, before its MLP."""

    both = True
    temporal = False  # it runs for images, which then have attention over patches and the MLP

    def __init__(self, config: LatteConfig, flash: bool, init: Initializers):
        super().__init__()
        self.attn = Attention(config.hidden_size, init)
        self.temporal_attn = Attention(config.hidden_size, init)
        self.mlp = Mlp(config.hidden_size, init)
        ada = self.new_modulation(config, GATES_OPEN)
        self.halves = config.variant == 4
        over_patches, over_frames = (attends(config, temporal, flash) for temporal in (False, True))
        patches, frames = (independent_axis(config, temporal) for temporal in (False, True))
        qkv, proj = self.attn.qkv, self.attn.proj
        last = (self.temporal_attn.qkv, self.temporal_attn.proj)
        mlp = (self.mlp.fc1, self.mlp.fc2, ada)
        self.takes(qkv, proj, *last, *mlp)
        stages = {
            "image": Stage(transformer_block, patches, qkv, proj, *mlp, **over_patches),
            "over_patches": Stage(attention_block, patches, qkv, proj, ada, **over_patches, alone=self.halves),
        }
        if self.halves:
            stages["over_frames"] = Stage(attention_block, frames, *last, ada, **over_frames, alone=True)
            stages["rest"] = Stage(mlp_block, None, *mlp)
        else:
            stages["over_frames"] = Stage(transformer_block, frames, *last, *mlp, **over_frames)
        for name, stage in stages.items():  # not as attributes of the cell, as the layers are listed already
            object.__setattr__(self, name, stage)
        object.__setattr__(self, "stages", tuple(stages.values()))

    def __call__(self, x: ms.Tensor, c: ms.Tensor, frames: int, over_frames: bool) -> ms.Tensor:
        """Return `construct` of the inputs, whose stages may be compiled graphs."""
        return self.construct(x, c, frames, over_frames)

    def construct(self, x: ms.Tensor, c: ms.Tensor, frames: int, over_frames: bool) -> ms.Tensor:
        """Return the tokens (B, F, T, D) after the block; this rank has a part of all `frames`; c (B, D)."""
        if not over_frames:
            return self.image(x, c)
        patches = x.shape[2]
        if self.halves:
            y = self.over_patches(x, c) + to_frames(self.over_frames(to_patches(x, frames), c), patches)
            return self.rest(x, y, c)
        x = self.over_patches(x, c)
        return to_frames(self.over_frames(to_patches(x, frames), c), patches)

    def recompute(self) -> None:
        """Keep only the inputs of the stages in training, and compute the rest again for their gradients."""
        for stage in self.stages:
            stage.recompute()


def attends(config: LatteConfig, temporal: bool, flash: bool) -> dict[str, Any]:
    """Return the settings of an attention; the fused kernel does not rotate."""
    rotary = temporal and config.temporal_position == "rotary"
    heads = config.attention_heads
    return {"heads": heads, "temporal": temporal, "flash": flash and not rotary, "whole": False, "rotary": rotary}


def independent_axis(config: LatteConfig, temporal: bool) -> int | None:
    """Return the axis of tokens along which attention may be cut: over frames, patches do not see each other."""
    if not temporal:
        return 1
    return 2 if config.injection == "adaln" else None  # the number of patches with one more token divides badly


def final_layer(
    x: ms.Tensor,
    c: ms.Tensor,
    proj: Pair,
    ada: Pair,
    grid: tuple[int, int],
    patch_size: int,
) -> ms.Tensor:
    """Return the latents that the tokens stand for, in float32.

    x (B, F, T, D), c (B, D), pairs (weight, bias) -> (B, F, out channels, H, W).
    """
    modulate = _modulation_of(len(ada))
    shift, scale = split(modulate(c, ada, ms.float32), c.shape[1], 1)  # (B, D)
    return tokens_to_latents(x, shift, scale, grid, proj, patch_size)


class FinalLayer(Modulated):
    """The last norm and projection, always in float32."""

    forward = staticmethod(final_layer)
    quantizes = False

    def __init__(self, config: LatteConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.linear = Linear(width, patch * patch * config.tubelet * config.out_channels, zeros)
        ada = self.new_modulation(config, (0, 0))
        self.takes(self.linear, ada, grid=config.grid, patch_size=patch)


class TimestepEmbedder(nn.Cell):
    """Timesteps (B,) to vectors (B, D)."""

    def __init__(self, width: int, init: Initializers):
        super().__init__()
        self.mlp = nn.SequentialCell(Linear(FREQUENCIES, width, init.normal), SiLU(), Linear(width, width, init.normal))
        self.frequencies = ms.Tensor(embeddings.timestep_frequencies(FREQUENCIES))

    def construct(self, t: ms.Tensor) -> ms.Tensor:
        """Return the embedding of `t` (B,), which may be fractional, as (B, D)."""
        return self.mlp(embeddings.timestep_embedding(t, self.frequencies))


class LabelEmbedder(nn.Cell):
    """Labels (B,) to vectors (B, D); the last row is the null label of classifier-free guidance."""

    def __init__(self, num_classes: int, width: int, init: Initializers):
        super().__init__()
        self.embedding_table = Embedding(num_classes + 1, width, init.normal)

    def construct(self, y: ms.Tensor) -> ms.Tensor:
        """Return the embedding of labels 0 .. num_classes."""
        return self.embedding_table(y)


class Latte(Network):
    """The network: noisy latents, timesteps and a condition to the noise and the interpolation of its variance."""

    reads_text = False  # whether blocks over patches attend to a text

    def __init__(
        self,
        config: LatteConfig,
        patch_embedder: str = "conv",
        flash: bool = False,
        seed: int | None = 0,
        dtype: ms.Type = ms.float32,
    ):
        super().__init__()
        init = Initializers(seed)
        width = config.hidden_size
        self.config = config
        self.shape = (config.num_frames, config.in_channels, *config.latent_size)
        self.dtype, self.flash = dtype, flash  # of the tokens inside the blocks; the fused attention kernel
        self.prepared = False  # whether the weights are as `dtype` and `flash` want them
        sizes = (config.in_channels, width, config.patch_size)
        if config.tubelet > 1:
            self.x_embedder: Block = TubeletEmbed(sizes, config.tubelet, patch_embedder == "conv", init)
        else:
            self.x_embedder = PatchEmbed(sizes, patch_embedder == "conv", init)
        self.t_embedder = TimestepEmbedder(width, init)
        if config.condition == "class" and config.num_classes:
            self.y_embedder = LabelEmbedder(config.num_classes, width, init)
        if config.condition == "text":
            tokens, text_width = CLIP_TEXT
            self.text_embedding_projection = nn.SequentialCell(SiLU(), Linear(tokens * text_width, width, init.xavier))
        self.pos_embed = parameter(embeddings.patch_embedding(width, config.grid), requires_grad=False)
        if config.temporal_position == "absolute":
            self.temp_embed = parameter(embeddings.frame_embedding(width, config.token_frames), requires_grad=False)
        self.blocks = nn.CellList([self._new_block(i, init) for i in range(config.depth)])
        self.first_over_frames = {1: 1, 2: (config.depth + 1) // 2}.get(config.variant, 0)  # of the blocks
        self.final_layer = FinalLayer(config)
        if config.prediction_type == "v_prediction":
            self.shares = Shares()

    def _new_block(self, i: int, init: Initializers) -> Block:
        config = self.config
        if config.variant > 2:
            return DoubleBlock(config, self.flash, init)
        late = i >= (config.depth + 1) // 2
        return TransformerBlock(config, i % 2 == 1 if config.variant == 1 else late, self.flash, init)

    def construct(self, x: ms.Tensor, t: ms.Tensor, *conditions: ms.Tensor) -> ms.Tensor:
        """Predict the noise in `x` and the interpolation of its variance.

        x (B, F, C, H, W) float32; t (B,) timesteps 0 .. 999, or (B, F), one for each frame; conditions: labels (B,)
        int32, or CLIP text (B, 77, 768) float32, or none for the unconditional network. Single images (B, 1, C, H, W)
        skip the temporal blocks.
        Returns (B, F, 2C, H, W) float32, or C channels without learn_sigma.
        Raises ValueError if the shapes are others, or the condition is missing or not taken.
        """
        x, c = self.embed(x, t, *conditions)  # (B, F, T, D), (B, D) of the blocks and of the final layer
        x = self.run_blocks(x, c, 0, len(self.blocks))  # (B, F, T, D)
        return self.finish(x, c)  # (B, F, 2C, H, W)

    def embed(self, x: ms.Tensor, t: ms.Tensor, y: Any = None) -> tuple[ms.Tensor, tuple]:
        """Return this rank's part of the tokens (B, F, T, D), and what blocks and final layer are conditioned on.

        Those are the condition (B, D) of the blocks, or (B F, D) where frames have timesteps of their own, that of the
        final layer, what the velocity needs to become noise (x, and its shares of data and noise), and the shape (B, F)
        of the whole, which is the last of them.
        """
        self._check(x, t, y)
        process: tuple = ()
        if self.config.prediction_type == "v_prediction":
            process = (x, *self.shares(t))
        tubelet = self.config.tubelet
        if tubelet > 1:  # frames that become one lie in its channels
            b, f, channels, h, w = x.shape
            x = x.reshape(b, f // tubelet, tubelet * channels, h, w)
        whole = x.shape[:2]
        x, t, y = share_videos(x, t, y)
        x = (self.x_embedder(x) + self.pos_embed).astype(self.dtype)  # (B, F, T, D)
        c = final = self.t_embedder(t)  # (B, D) or (B F, D), and so all that is added to it
        if self.config.condition == "class":
            c = final = _added(c, self.y_embedder(y))
        if self.config.condition == "text":  # the official final layer does not see the text
            c = _added(c, self.text_embedding_projection(y.reshape(y.shape[0], -1)))
        if self.config.injection == "all_tokens":
            token = c.reshape(x.shape[0], -1, 1, c.shape[1]) + _zeros((1, x.shape[1], 1, 1))  # (B, F, 1, D)
            x = ops.concat((x, token.astype(self.dtype)), 2)  # (B, F, T + 1, D)
        return x, (c, final, *process, whole)

    def run_blocks(self, x: ms.Tensor, c: tuple, first: int, last: int) -> ms.Tensor:
        """Return the tokens (B, F, T, D) after the blocks from `first` up to, but without, `last`; c is `embed`'s."""
        frames, patches = c[-1][1], x.shape[2]
        over_frames = self.attends_over_frames(frames)
        x = begin(x, self.blocks)
        for i in range(first, last):
            block = self.blocks[i]
            if i == self.first_over_frames and over_frames:
                x = on_tokens(self.with_frames, x, frames)
            if block.both:
                x = block(x, c[0], frames, over_frames)  # over T and F
            elif not block.temporal:
                x = block(x, c[0])  # over T
            elif over_frames:
                x = to_frames(block(to_patches(x, frames), c[0]), patches)  # over F
        return ended(x)

    def finish(self, x: ms.Tensor, c: tuple) -> ms.Tensor:
        """Return the output (B, F, 2C, H, W) of the last tokens; c is `embed`'s."""
        config = self.config
        if config.injection == "all_tokens":
            x = narrow(x, 2, 0, x.shape[2] - 1)  # without that of the condition
        out = join_videos(self.final_layer(x, c[1]), c[-1])
        if config.tubelet > 1:
            b, f, channels, h, w = out.shape
            out = out.reshape(b, f * config.tubelet, channels // config.tubelet, h, w)
        if config.prediction_type == "v_prediction":
            out = as_noise(out, *c[2:5])
        return out

    def attends_over_frames(self, frames: int) -> bool:
        """Return whether the blocks over frames run for so many of them: not for an image of a network of videos."""
        return self.temporal and not (frames == 1 and self.config.token_frames > 1)

    def with_frames(self, x: ms.Tensor, frames: int) -> ms.Tensor:
        """Return this rank's part of the tokens (B, F, T, D) with the embedding of their F frames."""
        if self.config.temporal_position == "rotary":
            return x
        return x + own_part(self.temp_embed.astype(x.dtype).expand_dims(2), 1)  # (1, F, 1, D)

    def parts_of(self, i: int, c: tuple) -> tuple:
        """Return the modulation (B, 6D) of a block, and the weights of its parts; see `latte.models.parts`.

        They are those of self-attention, of attention to the text (none here) and of the MLP; then what that reads.
        """
        qkv, proj, fc1, fc2, ada = self.blocks[i].weights()
        modulate = _modulation_of(len(ada))
        return modulate(c[0], ada, self.dtype), (qkv, proj), None, (fc1, fc2), ()

    def first_norm(self, x: ms.Tensor, c: tuple) -> ms.Tensor:
        """Return the normed and modulated tokens (B, F, T, D) that the first block attends with; x, c are `embed`'s."""
        ada = self.blocks[0].weights()[-1]
        modulate = _modulation_of(len(ada))
        parts = chunk6(modulate(c[0], ada, x.dtype), x.dtype)  # (B, D)
        return modulated_norm(x, parts[0], parts[1])

    def _check(self, x: ms.Tensor, t: ms.Tensor, y: ms.Tensor | None) -> None:
        if (y is None) != (self.config.condition is None):
            raise ValueError("give the network labels or text exactly if it has a condition")
        image = x.shape[1] == 1 and self.shape[0] > 1 and self.config.tubelet == 1
        fits = x.shape[2:] == self.shape[1:] and (image or x.shape[1] == self.shape[0])
        if not fits or t.shape[0] != x.shape[0] or (y is not None and y.shape[0] != x.shape[0]):
            raise ValueError(f"the network takes x (B, *{self.shape}), with a timestep and a condition per video")


def _added(c: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
    """Return c + y for c (B, D), or (B F, D) for each frame, and y (B, D) for each video."""
    if c.shape[0] == y.shape[0]:
        return c + y
    return (c.reshape(y.shape[0], -1, c.shape[1]) + y.expand_dims(1)).reshape(c.shape)


def named_sizes(name: str, variant: int = 1) -> dict[str, int]:
    """Return depth, hidden_size, num_heads and patch_size of a name such as "Latte-XL/2" in a variant.

    Blocks of variants 3 and 4 have two attentions; there are fewer of them, for as many parameters (23 for 28 of XL,
    which gives the paper's counts).
    Raises UserError for a name that is not one of S, B, L, XL with patch 2, 4 or 8.
    """
    size, _, patch = name.removeprefix("Latte-").partition("/")
    if size not in SIZES or patch not in [str(p) for p in PATCHES] or not name.startswith("Latte-"):
        choices = ", ".join(f"Latte-{s}/{p}" for s in SIZES for p in PATCHES)
        raise UserError(f"model_name {name!r} is not known; choose one of {choices}")
    depth, width, heads = SIZES[size]
    depth = round(depth * 18 / 22) if variant > 2 else depth  # squares of the width in a block
    return {"depth": depth, "hidden_size": width, "num_heads": heads, "patch_size": int(patch)}


def create_model(
    name: str = "Latte-XL/2",
    *,
    dtype: str = "fp32",
    patch_embedder: str = "conv",
    enable_flash_attention: bool = False,
    seed: int | None = 0,
    **config: Any,
) -> Latte:
    """Return a Latte network with the official random initialisation.

    `config` are fields of LatteConfig (input_size, num_frames, condition, num_classes, ...) and override the sizes of
    `name`; None leaves them. `seed=None` leaves the weights unset, for `load_weights` to fill.
    Raises UserError for a name, dtype or configuration that does not exist.
    """
    sizes = {key: value for key, value in config.items() if value is not None}
    sizes = named_sizes(name, sizes.get("variant", 1)) | sizes
    known = {field.name for field in dataclasses.fields(LatteConfig)}
    if unknown := sorted(set(sizes) - known):
        raise UserError(f"create_model does not know {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    compute = device.compute_dtype(dtype)
    flash = device.use_flash_attention(enable_flash_attention, compute)
    net = Latte(LatteConfig(**sizes), patch_embedder, flash, seed, compute)
    net.set_train(False)
    return net if seed is None else prepare(net)
