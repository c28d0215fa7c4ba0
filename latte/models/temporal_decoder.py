"""The decoder of Stable Video Diffusion (Blattmann et al., 2023): every residual block also mixes neighbouring frames.

Layer names are those of diffusers' AutoencoderKLTemporalDecoder. Images are in the native layout of `latte.ops.conv`;
shape comments show (F, H, W, C), the frames of one video.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from latte.models.autoencoder import (
    AttentionBlock,
    AutoencoderConfig,
    AutoencoderKL,
    Decoder,
    ResnetBlock,
    resnet_block,
)
from latte.models.block import Block, Pair
from latte.models.layers import Affine, Initializers, Norm, parameter, zeros
from latte.ops import conv_frames, from_nchw, group_norm, silu, to_nchw

EPS = 1e-5  # of the norms over frames
FRAMES_AT_ONCE = 14  # as the decoder was trained


def video_resnet_block(
    x: ms.Tensor,
    spatial_norm1: Pair,
    spatial_conv1: Pair,
    spatial_norm2: Pair,
    spatial_conv2: Pair,
    shortcut: Pair | None,
    norm1: Pair,
    conv1: Pair,
    norm2: Pair,
    conv2: Pair,
    mix: ms.Tensor,
    groups: int,
) -> ms.Tensor:
    """Return a residual block on each frame, plus sigmoid(mix) times one along the frames.

    x (F, H, W, C) of one video; layers are pairs (weight, bias), the first five those of `resnet_block`.
    """
    x = resnet_block(x, spatial_norm1, spatial_conv1, spatial_norm2, spatial_conv2, shortcut, groups)  # (F, H, W, out)
    y = conv_frames(silu(group_norm(x, *norm1, groups, EPS, joint=True)), *conv1)
    y = conv_frames(silu(group_norm(y, *norm2, groups, EPS, joint=True)), *conv2)
    return x + ops.sigmoid(mix.astype(ms.float32)).astype(x.dtype) * y  # = (1 - s) x + s (x + y)


class FrameConv(Affine):
    """The weight (out, in, 3, 1, 1) and bias (out,) of a convolution along the frames."""

    def __init__(self, channels: int, init: Initializers):
        super().__init__()
        self.weight = parameter(init.torch_default((channels, channels, 3, 1, 1)))
        self.bias = parameter(zeros((channels,)))


class TemporalResBlock(nn.Cell):
    """The two norms and convolutions along the frames."""

    def __init__(self, channels: int, init: Initializers):
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), FrameConv(channels, init)
        self.norm2, self.conv2 = Norm(channels), FrameConv(channels, init)


class Mixer(nn.Cell):
    """How much the frames are mixed, before the sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = parameter(zeros((1,)))

    def weights(self) -> ms.Parameter:
        """Return the factor."""
        return self.mix_factor


class VideoResnetBlock(Block):
    """A residual block on frames, then along frames."""

    forward = staticmethod(video_resnet_block)

    def __init__(self, in_channels: int, out_channels: int, groups: int, init: Initializers):
        super().__init__()
        self.spatial_res_block = ResnetBlock(in_channels, out_channels, groups, init)
        self.temporal_res_block = TemporalResBlock(out_channels, init)
        self.time_mixer = Mixer()
        along = self.temporal_res_block
        layers = (*self.spatial_res_block.layers, along.norm1, along.conv1, along.norm2, along.conv2, self.time_mixer)
        self.takes(*layers, groups=groups)


class FrameConvOut(Block):
    """The last convolution, along the frames."""

    forward = staticmethod(conv_frames)

    def __init__(self, channels: int, init: Initializers):
        super().__init__()
        self.weight = parameter(init.torch_default((channels, channels, 3, 1, 1)))
        self.bias = parameter(zeros((channels,)))
        self.takes()

    def weights(self) -> tuple[ms.Parameter, ms.Parameter]:
        """Return weight and bias, which are the block's own."""
        return self.weight, self.bias


class VideoMidBlock(nn.Cell):
    """A residual block, attention, a residual block; a decoder of one layer has the first only."""

    def __init__(self, channels: int, config: AutoencoderConfig, init: Initializers):
        super().__init__()
        groups, layers = config.norm_num_groups, config.layers_per_block
        self.attentions = nn.CellList([AttentionBlock(channels, groups, init)])
        self.resnets = nn.CellList([VideoResnetBlock(channels, channels, groups, init) for _ in range(layers)])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native frames, their shape unchanged."""
        x = self.resnets[0](x)
        if len(self.resnets) > 1:  # the original pairs its only attention with the second block, and leaves others out
            x = self.resnets[1](self.attentions[0](x))
        return x


class TemporalDecoder(Decoder):
    """Latents of one video to its frames, of eight times the size."""

    resnet_type, mid_type = VideoResnetBlock, VideoMidBlock

    def __init__(self, config: AutoencoderConfig, init: Initializers):
        super().__init__(config, init)
        self.time_conv_out = FrameConvOut(config.out_channels, init)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the native frames of native latents."""
        return self.time_conv_out(super().construct(x))  # (F, 8 h, 8 w, 3)


class AutoencoderKLTemporalDecoder(AutoencoderKL):
    """Stable Diffusion's encoder with a decoder that takes the frames of a video together."""

    decoder_type = TemporalDecoder

    def decode(self, z: ms.Tensor) -> ms.Tensor:
        """Return the frames of one video's latents that are not scaled, float32: z (F, L, h, w) -> (F, 3, 8 h, 8 w)."""
        return to_nchw(self.decoder(from_nchw(z.astype(self.dtype)))).astype(ms.float32)
