"""AutoencoderKL of Stable Diffusion (Rombach et al., 2022): images to the moments of their latents, and back.

Layer names are those of diffusers. Images are in the native layout of `latte.ops.conv`, in comments (N, H, W, C).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import nn

from latte.errors import UserError
from latte.io.json_files import check_numbers
from latte.models.block import Block, Pair
from latte.models.layers import Conv2d, Initializers, Linear, Norm, parameter, zeros
from latte.ops import attention, conv2d, from_nchw, group_norm, linear, norm_conv, strips, to_nchw, upsample_conv
from latte.weights.match import check_asked, check_elements, count_of, shapes_of, sizes_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

EPS = 1e-6
NORM_GROUPS = 32  # of every released autoencoder
SCALING_FACTOR = 0.18215  # of the Stable Diffusion 1 and 2 autoencoders
BOUNDS = {  # far beyond those that anybody has trained; floats are those of numbers that need not be whole
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "latent_channels": (1, 4096),
    "layers_per_block": (1, 64),
    "norm_num_groups": (1, 4096),
    "scaling_factor": (1e-6, 1e6),
}
LEVELS, CHANNELS = 8, {"block_out_channels": (1, 1 << 14)}
LDM_VAE = "first_stage_model."  # where a whole Stable Diffusion checkpoint keeps its autoencoder
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
VAE_RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
        (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"coder\.norm_out\.", "coder.conv_norm_out."),
        (r"(norm\w*)\.gamma$", r"\1.weight"),  # MindSpore's names
        (r"(norm\w*)\.beta$", r"\1.bias"),
        (r"(\.attentions\.0)\.norm\.", r"\1.group_norm."),
        (r"(\.attentions\.0)\.(query|q)\.", r"\1.to_q."),
        (r"(\.attentions\.0)\.(key|k)\.", r"\1.to_k."),
        (r"(\.attentions\.0)\.(value|v)\.", r"\1.to_v."),
        (r"(\.attentions\.0)\.(proj_attn|proj_out)\.", r"\1.to_out.0."),
    )
)
LDM_UP = re.compile(r"^decoder\.up\.(\d{1,3})\.")
ATTENTION = re.compile(r"\.attentions\.\d+\.to_\w+(\.0)?\.weight$")


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that fixes the shape of an AutoencoderKL and the scale of its latents; diffusers' names."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    temporal_decoder: bool = False  # Stable Video Diffusion's decoder, which takes the frames of a video together
    scaling_factor: float = 0.18215  # what a latent is multiplied with to have variance one

    def __post_init__(self) -> None:
        check_numbers(vars(self), BOUNDS)
        for channels in self.block_out_channels:
            check_numbers({"block_out_channels": channels}, CHANNELS)
        if not 1 <= len(self.block_out_channels) <= LEVELS:
            raise UserError(
                f"block_out_channels has {len(self.block_out_channels)} levels, but 1 to {LEVELS} are known"
            )
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise UserError(
                f"block_out_channels {tuple(self.block_out_channels)} are not multiples of "
                f"norm_num_groups {self.norm_num_groups}"
            )

    @classmethod
    def from_weights(
        cls, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str, **asked: Any
    ) -> AutoencoderConfig:
        """Return the configuration of the autoencoder that weights are of, read off their shapes.

        The number of groups is the one asked for, that of metadata["config"], or 32; the scaling factor is that of the
        latter, or Stable Diffusion's. None asks for nothing.
        Raises UserError if the tensors are not the whole of an autoencoder, are another one than is asked for, or the
        groups do not divide its channels.
        """
        temporal = "decoder.time_conv_out.weight" in tensors
        told = {key: BOUNDS[key] for key in ("norm_num_groups", "scaling_factor")}
        beside = sizes_beside(metadata, told, source)
        check_numbers(asked, told)
        first, last, latent = "encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"
        levels = count_of(tensors, r"encoder\.down_blocks\.(\d+)\.")
        blocks = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
        what = "a temporal video decoder" if temporal else "an autoencoder"
        shapes = shapes_of(tensors, source, what, dict.fromkeys((first, last, latent, *blocks), 4))
        channels = tuple(shapes[key][0] for key in blocks)
        groups = asked.get("norm_num_groups") or beside.get("norm_num_groups") or NORM_GROUPS
        if any(count % groups for count in channels):
            raise UserError(
                f"{source} has channels {channels}, which {groups} groups do not divide; give the number of groups "
                "with --norm_num_groups, or put its config.json beside it under the file's name"
            )
        config = cls(
            in_channels=shapes[first][1],
            out_channels=shapes[last][0],
            latent_channels=shapes[latent][1],
            block_out_channels=channels,
            layers_per_block=count_of(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            norm_num_groups=groups,
            mid_block_add_attention="encoder.mid_block.attentions.0.to_q.weight" in tensors,
            use_quant_conv="quant_conv.weight" in tensors,
            use_post_quant_conv="post_quant_conv.weight" in tensors,
            temporal_decoder=temporal,
            scaling_factor=float(beside.get("scaling_factor") or SCALING_FACTOR),
        )
        check_elements(config.least_elements, config.layers_per_block, tensors, source)
        check_asked(vars(config), asked, source)
        return config

    @property
    def least_elements(self) -> int:
        """Fewer elements than the network has, but not by much: those of the convolutions inside its levels."""
        return 9 * 4 * self.layers_per_block * sum(channels**2 for channels in self.block_out_channels)

    @property
    def downsampling(self) -> int:
        """Pixels a latent spans in height and width."""
        return 2 ** (len(self.block_out_channels) - 1)


def own_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of an autoencoder under the names of diffusers, whose present ones ours are.

    They may have diffusers' older names (`query`, `proj_attn`) or those of latent-diffusion (`encoder.down.0.block.0`,
    1 x 1 convolutions for attention), also inside a whole Stable Diffusion checkpoint, of which the rest is left out.
    Raises UserError if a weight is there under two names.
    """
    inside = {key.removeprefix(LDM_VAE): value for key, value in tensors.items() if key.startswith(LDM_VAE)}
    vae = inside or dict(tensors)
    levels = [int(match[1]) for key in vae if (match := LDM_UP.match(key))]
    if levels:  # such files also hold the discriminator of their training
        vae = {key: value for key, value in vae.items() if key.startswith(VAE_PARTS)}
    renamed = {}
    for key, value in vae.items():
        # latent-diffusion counts resolutions from the finest up in both directions, diffusers in order of use.
        key = LDM_UP.sub(lambda match: f"decoder.up.{max(levels) - int(match[1])}.", key)
        for pattern, name in VAE_RULES:
            key = pattern.sub(name, key)
        is_matrix = ATTENTION.search(key) and value.shape[2:] == (1, 1)
        renamed[key] = value.reshape(value.shape[:2]) if is_matrix else value
    if len(renamed) < len(vae):
        raise UserError("the checkpoint has some weights of its autoencoder twice, under old and new names; keep one")
    return renamed


def resnet_block(
    x: ms.Tensor, norm1: Pair, conv1: Pair, norm2: Pair, conv2: Pair, shortcut: Pair | None, groups: int
) -> ms.Tensor:
    """Return x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution of x where the channels change.

    Each layer is a pair (weight, bias).
    """
    y = norm_conv(x, norm1, conv1, groups, EPS)  # (N, H, W, out)
    y = norm_conv(y, norm2, conv2, groups, EPS)
    if shortcut is not None:
        x = conv2d(x, *shortcut)
    return x + y


def attention_block(
    x: ms.Tensor, norm: Pair, to_q: Pair, to_k: Pair, to_v: Pair, to_out: Pair, groups: int
) -> ms.Tensor:
    """Return x plus its single-head self-attention over all pixels; each layer is a pair (weight, bias)."""
    y = to_nchw(group_norm(x, *norm, groups, EPS))  # (N, C, H, W)
    n, c, h, w = y.shape
    y = y.reshape(n, c, h * w).transpose(0, 2, 1)  # (N, H W, C)
    q, k, v = linear(y, *to_q), linear(y, *to_k), linear(y, *to_v)
    y = linear(attention(q, k, v, 1, c**-0.5, False), *to_out)  # (N, H W, C)
    return x + from_nchw(y.transpose(0, 2, 1).reshape(n, c, h, w))


class Conv(Block):
    """A convolution that is a graph of its own where the compile scope is the block."""

    forward: Callable = staticmethod(conv2d)
    in_strips: Callable = staticmethod(strips.conv2d)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init: Initializers, stride: int = 1):
        super().__init__()
        self.weight = parameter(init.torch_default((out_channels, in_channels, kernel, kernel)))
        self.bias = parameter(zeros((out_channels,)))
        self.takes(stride=stride)

    def weights(self) -> tuple[ms.Parameter, ms.Parameter]:
        """Return weight and bias, which are the block's own."""
        return self.weight, self.bias


class ResnetBlock(Block):
    """Two convolutions and a shortcut."""

    forward = staticmethod(resnet_block)
    in_strips = staticmethod(functools.partial(strips.resnet_block, eps=EPS))

    def __init__(self, in_channels: int, out_channels: int, groups: int, init: Initializers):
        super().__init__()
        self.norm1 = Norm(in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3, init.torch_default)
        self.norm2 = Norm(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, init.torch_default)
        shortcut = None
        if in_channels != out_channels:
            shortcut = self.conv_shortcut = Conv2d(in_channels, out_channels, 1, init.torch_default)
        self.takes(self.norm1, self.conv1, self.norm2, self.conv2, shortcut, groups=groups)


class AttentionBlock(Block):
    """Self-attention over the pixels of the smallest image."""

    forward = staticmethod(attention_block)

    def __init__(self, channels: int, groups: int, init: Initializers):
        super().__init__()
        self.group_norm = Norm(channels)
        self.to_q = Linear(channels, channels, init.torch_default)
        self.to_k = Linear(channels, channels, init.torch_default)
        self.to_v = Linear(channels, channels, init.torch_default)
        self.to_out = nn.CellList([Linear(channels, channels, init.torch_default)])
        self.takes(self.group_norm, self.to_q, self.to_k, self.to_v, self.to_out[0], groups=groups)


class UpsampleConv(Conv):
    """Doubling of the image, then a convolution."""

    forward = staticmethod(upsample_conv)
    in_strips = staticmethod(strips.upsample_conv)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, init: Initializers):
        super().__init__(in_channels, out_channels, kernel, init)
        self.takes()  # no stride


class Resampler(nn.Cell):
    """The holder of a down- or upsampling convolution, for its official name."""

    def __init__(self, conv: nn.Cell):
        super().__init__()
        self.conv = conv


class Stage(nn.Cell):
    """Residual blocks at one resolution, then perhaps a change of resolution."""

    def __init__(self, resnets: list[ResnetBlock], down: nn.Cell | None = None, up: nn.Cell | None = None):
        super().__init__()
        self.resnets = nn.CellList(resnets)
        if down is not None:
            self.downsamplers = nn.CellList([Resampler(down)])
        if up is not None:
            self.upsamplers = nn.CellList([Resampler(up)])
        self.has_down, self.has_up = down is not None, up is not None

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native image after this stage."""
        for resnet in self.resnets:
            x = resnet(x)
        if self.has_down:
            x = self.downsamplers[0].conv(x)
        if self.has_up:
            x = self.upsamplers[0].conv(x)
        return x


class MidBlock(nn.Cell):
    """A residual block, attention if the configuration has it, a residual block."""

    def __init__(self, channels: int, config: AutoencoderConfig, init: Initializers):
        super().__init__()
        groups = config.norm_num_groups
        attentions = [AttentionBlock(channels, groups, init)] if config.mid_block_add_attention else []
        self.attentions = nn.CellList(attentions)
        self.resnets = nn.CellList([ResnetBlock(channels, channels, groups, init) for _ in range(2)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native image, its shape unchanged."""
        x = self.resnets[0](x)
        for attend in self.attentions:
            x = attend(x)
        return self.resnets[1](x)


class NormConv(Block):
    """The last norm and convolution of a coder, which owns the two under their official names."""

    forward = staticmethod(norm_conv)
    in_strips = staticmethod(strips.norm_conv)

    def __init__(self, norm: Norm, conv: Conv2d, groups: int):
        super().__init__()
        self.takes(norm, conv, groups=groups, eps=EPS)


class Coder(nn.Cell):
    """What encoder and decoder share: convolution in, stages and a middle, norm and convolution out."""

    def __init__(self, channels: tuple[int, int, int, int], groups: int, init: Initializers):
        super().__init__()
        in_channels, first, last, out_channels = channels
        self.conv_in = Conv(in_channels, first, 3, init)
        self.conv_norm_out = Norm(last)
        self.conv_out = Conv2d(last, out_channels, 3, init.torch_default)
        object.__setattr__(self, "head", NormConv(self.conv_norm_out, self.conv_out, groups))


class Encoder(Coder):
    """Images to moments at an eighth of the size."""

    def __init__(self, config: AutoencoderConfig, init: Initializers):
        widths, groups = config.block_out_channels, config.norm_num_groups
        super().__init__((config.in_channels, widths[0], widths[-1], 2 * config.latent_channels), groups, init)
        stages = []
        for i, width in enumerate(widths):
            sizes = [widths[max(i - 1, 0)]] + [width] * config.layers_per_block
            resnets = [ResnetBlock(a, b, groups, init) for a, b in itertools.pairwise(sizes)]
            stages.append(Stage(resnets, down=Conv(width, width, 3, init, stride=2) if i < len(widths) - 1 else None))
        self.down_blocks = nn.CellList(stages)
        self.mid_block = MidBlock(widths[-1], config, init)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native moments of native images."""
        x = self.conv_in(x)  # (N, H, W, widths[0])
        for stage in self.down_blocks:
            x = stage(x)  # (N, H / 2, W / 2, width), but for the last one
        return self.head(self.mid_block(x))  # (N, H / 8, W / 8, 2 L)


class Decoder(Coder):
    """Latents to images of eight times the size."""

    resnet_type, mid_type = ResnetBlock, MidBlock

    def __init__(self, config: AutoencoderConfig, init: Initializers):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        super().__init__((config.latent_channels, widths[0], widths[-1], config.out_channels), groups, init)
        stages = []
        for i, width in enumerate(widths):
            sizes = [widths[max(i - 1, 0)]] + [width] * (config.layers_per_block + 1)
            resnets = [self.resnet_type(a, b, groups, init) for a, b in itertools.pairwise(sizes)]
            stages.append(Stage(resnets, up=UpsampleConv(width, width, 3, init) if i < len(widths) - 1 else None))
        self.up_blocks = nn.CellList(stages)
        self.mid_block = self.mid_type(widths[0], config, init)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native images of native latents."""
        x = self.mid_block(self.conv_in(x))  # (N, h, w, widths[-1])
        for stage in self.up_blocks:
            x = stage(x)  # (N, 2 h, 2 w, width), but for the last one
        return self.head(x)  # (N, 8 h, 8 w, 3)


class AutoencoderKL(nn.Cell):
    """Encoder and decoder with the 1 x 1 convolutions around the latents."""

    decoder_type = Decoder

    def __init__(self, config: AutoencoderConfig | None = None, seed: int | None = 0):
        super().__init__()
        init = Initializers(seed)
        self.config = config = config or AutoencoderConfig()
        latent = config.latent_channels
        self.encoder = Encoder(config, init)
        self.decoder = self.decoder_type(config, init)
        self.quant_conv = Conv(2 * latent, 2 * latent, 1, init) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = Conv(latent, latent, 1, init) if config.use_post_quant_conv else nn.Identity()
        self.dtype: ms.Type = ms.float32  # of the images between encoder and decoder; norms and weights stay float32
        self.set_train(False)

    def encode(self, x: ms.Tensor) -> ms.Tensor:
        """Return the moments of the latents' posterior, float32: mean, then log-variance, not clamped.

        x (N, 3, H, W) in [-1, 1], H and W multiples of `config.downsampling` -> (N, 2 L, H / 8, W / 8).
        """
        x = from_nchw(x.astype(self.dtype))
        return to_nchw(self.quant_conv(self.encoder(x))).astype(ms.float32)

    def decode(self, z: ms.Tensor) -> ms.Tensor:
        """Return the images of latents that are not scaled.

        z (N, L, h, w) -> (N, 3, 8 h, 8 w) float32, about [-1, 1].
        """
        z = from_nchw(z.astype(self.dtype))
        return to_nchw(self.decoder(self.post_quant_conv(z))).astype(ms.float32)

    def construct(self, z: ms.Tensor) -> ms.Tensor:
        """Return `decode(z)`."""
        return self.decode(z)
