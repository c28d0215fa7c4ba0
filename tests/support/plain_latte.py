"""Latte as it is usually written in PyTorch, with the weights of our network: what our formulation is measured against.

Every frame, and every patch, has a condition and a modulation of its own, all equal; q, k and v are cut out of one
product, turned to (N, heads, L, width), padded to the width that the fused kernel takes, and cut off again after it.
"""

import mindspore as ms
from mindspore import nn, ops

from latte.ops import gelu, linear, silu

_layer_norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-6)


class PlainLatte(nn.Cell):
    """An unconditional Latte; `flash` takes the fused kernel."""

    def __init__(self, net, flash):
        super().__init__()
        self.net, self.flash = net, flash
        self.heads, self.depth = net.config.num_heads, net.config.depth

    def construct(self, x, t):
        net = self.net
        b, f, c, h, w = x.shape
        proj = net.x_embedder.proj
        x = ops.conv2d(x.reshape(b * f, c, h, w), proj.weight, proj.bias, net.config.patch_size, "pad", 0)
        n, d = x.shape[2] * x.shape[3], x.shape[1]
        x = (x.reshape(b * f, d, n).transpose(0, 2, 1) + net.pos_embed).astype(net.dtype)  # (B F, T, D)
        c = net.t_embedder(t)
        by_frame, by_patch = ops.repeat_interleave(c, f, 0), ops.repeat_interleave(c, n, 0)  # (B F, D), (B T, D)
        for i in range(self.depth):
            if i % 2 == 0:
                x = self.block(net.blocks[i], x, by_frame)
            else:
                x = x.reshape(b, f, n, d).transpose(0, 2, 1, 3).reshape(b * n, f, d)
                x = x + net.temp_embed.astype(x.dtype) if i == 1 else x
                x = self.block(net.blocks[i], x, by_patch)
                x = x.reshape(b, n, f, d).transpose(0, 2, 1, 3).reshape(b * f, n, d)
        last = net.final_layer
        ada = last.adaLN_modulation[1]
        shift, scale = ops.chunk(linear(silu(by_frame), ada.weight, ada.bias), 2, 1)
        x = linear(modulate(x.astype(ms.float32), shift, scale), last.linear.weight, last.linear.bias)
        (rows, columns), p = net.config.grid, net.config.patch_size
        x = x.reshape(b * f, rows, columns, p, p, -1).transpose(0, 5, 1, 3, 2, 4)
        return x.reshape(b, f, -1, h, w)

    def block(self, block, x, c):
        ada, fc1, fc2 = block.adaLN_modulation[1], block.mlp.fc1, block.mlp.fc2
        modulation = linear(silu(c).astype(x.dtype), ada.weight, ada.bias)  # (N, 6D)
        shift1, scale1, gate1, shift2, scale2, gate2 = ops.chunk(modulation, 6, 1)
        x = x + gate1.expand_dims(1) * self.attention(block.attn, modulate(x, shift1, scale1))
        y = linear(gelu(linear(modulate(x, shift2, scale2), fc1.weight, fc1.bias)), fc2.weight, fc2.bias)
        return x + gate2.expand_dims(1) * y

    def attention(self, attn, x):
        n, length, d = x.shape
        width = d // self.heads
        qkv = linear(x, attn.qkv.weight, attn.qkv.bias).reshape(n, length, 3, self.heads, width)
        q, k, v = ops.unbind(qkv.transpose(2, 0, 3, 1, 4))  # 3 x (N, heads, L, width)
        if self.flash:
            q, k, v = [ops.pad(each, (0, -width % 16)) for each in (q, k, v)]
            y = ops.flash_attention_score(q, k, v, self.heads, scalar_value=width**-0.5, input_layout="BNSD")
            y = y[:, :, :, :width]
        else:
            y = ops.softmax(ops.matmul(q * width**-0.5, k.transpose(0, 1, 3, 2)), -1)
            y = ops.matmul(y, v)
        return linear(y.transpose(0, 2, 1, 3).reshape(n, length, d), attn.proj.weight, attn.proj.bias)


def modulate(x, shift, scale):
    """Return the norm of tokens (N, L, D), shifted and scaled by (N, D)."""
    shift, scale = shift.expand_dims(1).astype(ms.float32), scale.expand_dims(1).astype(ms.float32)
    one, zero = ops.ones((x.shape[-1],), ms.float32), ops.zeros((x.shape[-1],), ms.float32)
    return (_layer_norm(x.astype(ms.float32), one, zero)[0] * (1 + scale) + shift).astype(x.dtype)
