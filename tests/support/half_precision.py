"""Plain NumPy versions of Latte, LatteT2V and T5 that round where the product rounds on Ascend.

They tell how far float16 and bfloat16 may be from float32. All arrays are float32; with dtype "fp16" or "bf16" those in
blocks hold only values of that dtype, as every operation there rounds its result once, to nearest even. Products sum in
float32. Norms, softmax, embeddings, the modulation of LatteT2V, the sums of T5 and the final layers stay float32.
Tokens are (B, F, T, D): batch, frames, patches of a frame, width; T5's are (B, L, D).

`weights` is what `loading.read` returns, `dtype` one of "fp32", "fp16", "bf16"; `kernels` are settings of `Arithmetic`.
"""

import numpy as np
from mindspore.common.np_dtype import bfloat16

from latte.models.embeddings import frame_embedding, patch_embedding, timestep_frequencies
from latte.models.t5 import relative_buckets

ROUNDED = {"fp32": np.float32, "fp16": np.float16, "bf16": bfloat16}
DISCARD, MASKED = np.float32(-1e9), np.finfo(np.float32).min  # added to the scores of a token that is none


def emulate_latte(weights, x, t, y=None, dtype="fp32", **kernels):
    """Return what a Latte makes of videos x (B, F, C, H, W) at t (B,), as (B, F, 2C, H, W); y (B,) are labels."""
    w, config, ops = weights.tensors, weights.config, Arithmetic(dtype, **kernels)
    c = timesteps(t, *pairs(w, "t_embedder.mlp.0", "t_embedder.mlp.2"))  # (B, D)
    if y is not None:
        c = c + w["y_embedder.embedding_table.weight"][y]
    x = ops.round(patches(x, *layer(w, "x_embedder.proj")) + w["pos_embed"])  # (B, F, T, D)
    for i in range(config.depth):
        if i == 1:
            x = ops.round(x + ops.round(w["temp_embed"])[:, :, None])
        x = latte_block(ops, x, c, w, f"blocks.{i}.", config.num_heads)  # over T, then over F, and so on
    shift, scale = np.split(FLOAT32.linear(silu(c), *layer(w, "final_layer.adaLN_modulation.1")), 2, -1)  # (B, D)
    return latents(x, shift, scale, config.grid, config.patch_size, *layer(w, "final_layer.linear"))


def latte_block(ops, x, c, w, name, heads):
    """Return attention and MLP of x (B, F, T, D), modulated and gated by c (B, D); odd blocks attend over F."""
    qkv, proj, fc1, fc2, ada = pairs(
        w, *[name + each for each in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")]
    )
    modulation = ops.linear(ops.round(silu(c)), *ada)  # (B, 6D)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = np.split(modulation, 6, -1)  # (B, D)
    y = ops.modulated_norm(x, shift_attn, scale_attn)
    q, k, v = np.split(ops.linear(y, *qkv), 3, -1)  # (B, F, T, D)
    temporal = int(name.split(".")[1]) % 2 == 1
    x = ops.gated(x, gate_attn, ops.linear(ops.self_attention(q, k, v, heads, temporal), *proj))
    y = ops.modulated_norm(x, shift_mlp, scale_mlp)
    return ops.gated(x, gate_mlp, ops.mlp(y, fc1, fc2))


def emulate_t2v(weights, x, t, text, mask, dtype="fp32", **kernels):
    """Return what LatteT2V makes of videos x (B, F, C, H, W) at t (B,), as (B, F, out_channels, H, W).

    text (B, S, caption_channels), mask (B, S) with 1 for its tokens; a text without any counts as a whole.
    """
    w, config, ops = weights.tensors, weights.config, Arithmetic(dtype, **kernels)
    embedder = "adaln_single.emb.timestep_embedder.linear_"
    c = timesteps(t, *pairs(w, embedder + "1", embedder + "2"))  # (B, D)
    time = FLOAT32.linear(silu(c), *layer(w, "adaln_single.linear"))  # (B, 6D)
    text = ops.round(FLOAT32.mlp(text, *pairs(w, "caption_projection.linear_1", "caption_projection.linear_2")))
    bias = ((mask.max(1, keepdims=True) - mask) * DISCARD).astype(np.float32)[:, None, None]  # (B, 1, 1, S)
    patch, side = config.patch_size, config.sample_size
    grid = x.shape[3] // patch, x.shape[4] // patch
    positions = patch_embedding(config.hidden_size, grid, side // patch / max(side // 64, 1))  # (1, T, D)
    x = ops.round(patches(x, *layer(w, "pos_embed.proj")) + positions)  # (B, F, T, D)
    for i in range(config.num_layers):
        x = t2v_block(ops, x, time, w, f"transformer_blocks.{i}.", config.num_heads, (text, bias))
        if i == 0:
            x = ops.round(x + ops.round(frame_embedding(config.hidden_size, x.shape[1]))[:, :, None])
        x = t2v_block(ops, x, time, w, f"temporal_transformer_blocks.{i}.", config.num_heads)
    shift, scale = w["scale_shift_table"][:, None] + c  # (B, D)
    return latents(x, shift, scale, grid, patch, *layer(w, "proj_out"))


def t2v_block(ops, x, time, w, name, heads, text=None):
    """Return attention and MLP of x (B, F, T, D), modulated and gated by time (B, 6D).

    With a text, a pair of (B, S, D) and what is added to the scores (B, 1, 1, S), it attends over T and to that text;
    without, it attends over F.
    """
    modulation = w[name + "scale_shift_table"].reshape(1, -1) + time  # (B, 6D), float32
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = np.split(modulation, 6, -1)  # (B, D)
    to_q, to_k, to_v, to_out = pairs(w, *[f"{name}attn1.to_{each}" for each in ("q", "k", "v", "out.0")])
    y = ops.modulated_norm(x, shift_attn, scale_attn)
    q, k, v = ops.linear(y, *to_q), ops.linear(y, *to_k), ops.linear(y, *to_v)  # (B, F, T, D)
    y = ops.self_attention(q, k, v, heads, temporal=text is None)
    x = ops.gated(x, ops.round(gate_attn), ops.linear(y, *to_out))
    if text is not None:
        to_q, to_k, to_v, to_out = pairs(w, *[f"{name}attn2.to_{each}" for each in ("q", "k", "v", "out.0")])
        q = ops.linear(x, *to_q).reshape(len(x), -1, x.shape[-1])  # (B, F T, D)
        k, v = ops.linear(text[0], *to_k), ops.linear(text[0], *to_v)  # (B, S, D)
        y = ops.attention(q, k, v, heads, (x.shape[-1] // heads) ** -0.5, text[1])
        x = ops.round(x + ops.linear(y.reshape(x.shape), *to_out))
    y = ops.modulated_norm(x, shift_mlp, scale_mlp)
    return ops.gated(x, ops.round(gate_mlp), ops.mlp(y, *pairs(w, name + "ff.net.0.proj", name + "ff.net.2")))


def emulate_t5(weights, input_ids, attention_mask, dtype="fp32"):
    """Return what the T5 encoder makes of texts (B, L), as (B, L, D); it never uses the fused attention kernel."""
    w, config, ops = weights.tensors, weights.config, Arithmetic(dtype, flash=False)
    length, eps = input_ids.shape[1], config.layer_norm_epsilon
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    table = w["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]  # (buckets, heads)
    bias = table[relative_buckets(length, buckets, farthest)].transpose(2, 0, 1)  # (heads, L, L)
    bias = bias + ((1 - attention_mask) * MASKED).astype(np.float32)[:, None, None]  # (B, heads, L, L)
    x = ops.round(w["shared.weight"])[input_ids]  # (B, L, D), from here on a float32 sum
    for i in range(config.num_layers):
        x = t5_block(ops, x, bias, w, f"encoder.block.{i}.", config.num_heads, eps)
    return rms_norm(x, w["encoder.final_layer_norm.weight"], eps)


def t5_block(ops, x, bias, w, name, heads, eps):
    """Return attention and the gated feed-forward part of x (B, L, D); `bias` (B, heads, L, L) float32."""
    attention, gated = name + "layer.0.SelfAttention.", name + "layer.1.DenseReluDense."
    q, k, v, o = [w[f"{attention}{each}.weight"] for each in "qkvo"]
    wi_0, wi_1, wo = [w[f"{gated}{each}.weight"] for each in ("wi_0", "wi_1", "wo")]
    y = ops.round(rms_norm(x, w[name + "layer.0.layer_norm.weight"], eps))
    y = ops.attention(ops.linear(y, q), ops.linear(y, k), ops.linear(y, v), heads, 1.0, bias)  # (B, L, heads * width)
    x = x + ops.linear(y, o)
    y = ops.round(rms_norm(x, w[name + "layer.1.layer_norm.weight"], eps))
    y = gelu(ops.linear(y, wi_0)) * ops.linear(y, wi_1)  # (B, L, F), float32
    last = FLOAT32 if ops.dtype == "fp16" else ops  # float16 would overflow
    return x + last.linear(last.round(y), wo)


class Arithmetic:
    """The operations inside blocks, each rounded once to a dtype (fp32, fp16, bf16); their inputs are rounded already.

    `flash`: the fused attention kernel, which keeps scores in float32. `joint_bias`: products add their bias before
    they round, as oneDNN does on a CPU; on Ascend the bias is an operation of its own.
    """

    def __init__(self, dtype, flash=True, joint_bias=False):
        self.dtype, self.flash, self.joint_bias = dtype, flash, joint_bias

    def round(self, x):
        """Return x rounded to the dtype, to nearest even, as float32."""
        return x.astype(ROUNDED[self.dtype]).astype(np.float32)

    def linear(self, x, weight, bias=None):
        """Return x (..., in) times the transpose of weight (out, in), plus bias (out,)."""
        y = x @ self.round(weight).T  # (..., out)
        if bias is None:
            return self.round(y)
        return self.round((y if self.joint_bias else self.round(y)) + self.round(bias))

    def mlp(self, x, fc1, fc2):
        """Return two layers, pairs (weight, bias), with GELU between them."""
        return self.linear(self.round(gelu(self.linear(x, *fc1))), *fc2)

    def modulated_norm(self, x, shift, scale):
        """Return LayerNorm(x) (1 + scale) + shift in float32, then rounded; x (B, F, T, D), shift and scale (B, D)."""
        shift, scale = shift[:, None, None], scale[:, None, None]
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-6))
        return self.round(x * (1 + scale) + shift)

    def gated(self, x, gate, y):
        """Return x + gate * y, the product rounded before the sum; x, y (B, F, T, D), gate (B, D)."""
        return self.round(x + self.round(gate[:, None, None] * y))

    def self_attention(self, q, k, v, heads, temporal):
        """Attend with q, k, v (B, F, T, D) over T, or over F."""
        folded = [a.swapaxes(1, 2) if temporal else a for a in (q, k, v)]  # (B, T, F, D) or (B, F, T, D)
        shape, scale = folded[0].shape, (q.shape[-1] // heads) ** -0.5
        y = self.attention(*[a.reshape(-1, *shape[2:]) for a in folded], heads, scale).reshape(shape)
        return y.swapaxes(1, 2) if temporal else y

    def attention(self, q, k, v, heads, scale, bias=0):
        """Return softmax(scale q k^T + bias) v, the softmax in float32, its result rounded before the last product.

        q (N, L, D), k and v (N, S, D). Without the fused kernel q is scaled first, and scores are a product's result.
        """
        q, k, v = [a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in (q, k, v)]  # (N, heads, L or S, width)
        scale, kt = np.float32(scale), k.swapaxes(2, 3)
        scores = q @ kt * scale if self.flash else self.round(self.round(q * scale) @ kt)  # (N, heads, L, S)
        y = self.round(self.round(softmax(scores + bias)) @ v)  # (N, heads, L, width)
        return y.swapaxes(1, 2).reshape(len(q), q.shape[2], -1)


FLOAT32 = Arithmetic("fp32")


def layer(w, name):
    """Return (weight, bias) of a layer."""
    return w[name + ".weight"], w[name + ".bias"]


def pairs(w, *names):
    """Return (weight, bias) of several layers."""
    return [layer(w, name) for name in names]


def timesteps(t, first, second):
    """Return the embedding (B, D) of t (B,): cosines and sines through two layers, pairs (weight, bias)."""
    angles = t.astype(np.float32)[:, None] * timestep_frequencies(first[0].shape[1])
    x = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    return FLOAT32.linear(silu(FLOAT32.linear(x, *first)), *second)


def patches(x, weight, bias):
    """Return the tokens (B, F, T, D) of latents (B, F, C, H, W): weight (D, C, p, p) times each p x p patch."""
    b, f, c, h, w = x.shape
    p = weight.shape[2]
    x = x.reshape(b, f, c, h // p, p, w // p, p).transpose(0, 1, 3, 5, 2, 4, 6)  # (B, F, h, w, C, p, p)
    return FLOAT32.linear(x.reshape(b, f, -1, c * p * p), weight.reshape(len(weight), -1), bias)


def latents(x, shift, scale, grid, p, weight, bias):
    """Return the latents (B, F, C, H, W) of tokens (B, F, T, D): norm, modulation and projection, all in float32."""
    x = FLOAT32.linear(FLOAT32.modulated_norm(x, shift, scale), weight, bias)  # (B, F, T, p p C)
    b, f = x.shape[:2]
    x = x.reshape(b, f, *grid, p, p, -1).transpose(0, 1, 6, 2, 4, 3, 5)  # (B, F, C, h, p, w, p)
    return x.reshape(b, f, -1, grid[0] * p, grid[1] * p)


def silu(x):
    """Return x sigmoid(x)."""
    return x / (1 + np.exp(-x))


def gelu(x):
    """Return the tanh form of GELU."""
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))


def softmax(x):
    """Return the softmax over the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def rms_norm(x, weight, eps):
    """Return weight x / sqrt(mean(x^2) + eps) over the last axis."""
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight
