"""Operators of Ascend that have a kernel of CANN's operator library where MindSpore's usual forms have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import mint, ops
from mindspore.ops.auto_generate import (
    AdamW,
    AddcmulExt,
    Dense,
    FlashAttentionScore,
    FlashAttentionScoreGrad,
    LayerNormExt,
    LayerNormGradExt,
    LerpScalar,
    SplitTensor,
    SplitTensorView,
    SumExt,
    WeightQuantBatchMatmul,
)
from mindspore.ops.primitive import constexpr

from latte.ops.target import only_infers
from latte.runtime.tensors import CustomGrad, assign, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The fused kernels take no larger batch; temporal attention has one row per patch. MindSpore documents 2k for
# FlashAttentionScore (CANN's later pages have more), and CANN 64k for PromptFlashAttention.
FLASH_BATCH = 2048
PROMPT_BATCH = 65536
NO_BAND = 2**31 - 1  # the keys behind a query that it may attend to: all

EPS = 1e-6  # of the layer norm

_adamw, _lerp = AdamW(), LerpScalar()
_int8_matmul = WeightQuantBatchMatmul(transpose_weight=True)
_layer_norm, _layer_norm_grad, _addcmul = LayerNormExt(), LayerNormGradExt(), AddcmulExt()
_sum, _dense, _split, _rows = SumExt(), Dense(), SplitTensor(), SplitTensorView()  # the last one returns views
_join, _join_last = ops.Concat(0), ops.Concat(-1)
_times = ops.MatMul()  # for the gradient of a product's input
_transposed_times = ops.MatMul(transpose_a=True)  # and of its weight


def affine(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
    """Return x W^T + b, (N, out), for x (N, in), weight (out, in) and bias (out,), all of one dtype."""
    return mint.nn.functional.linear(x, weight, bias)


class ModulatedNorm(CustomGrad):
    """LayerNorm(x) * (1 + scale) + shift for x (B, F, T, D) and shift, scale (B, D), all of one dtype.

    aclnnLayerNorm takes halves, computes in its mode of high precision and rounds its result; mean and 1 / deviation
    are float32. The modulation of a single video is weight and bias of that norm, so that nothing is rounded between
    them. Backward that holds for each video of several: its scale and shift are summed, in float32, by the gradient of
    the norm.
    """

    def construct(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """Return the result; mean and 1 / deviation of each token are for the gradient."""
        batch, width = shift.shape
        gamma = 1 + scale
        if batch == 1:
            return _layer_norm(x, (width,), gamma.reshape(width), shift.reshape(width), EPS)
        y, mean, rstd = _layer_norm(x, (width,), ops.ones((width,), x.dtype), ops.zeros((width,), x.dtype), EPS)
        shape = (batch, 1, 1, width)
        return _addcmul(shift.reshape(shape), y, gamma.reshape(shape), 1), mean, rstd

    def bprop(self, x: ms.Tensor, shift: ms.Tensor, scale: ms.Tensor, out: tuple, d: tuple) -> tuple[ms.Tensor, ...]:
        """Return the gradients of the inputs."""
        batch, width = shift.shape
        gamma = 1 + scale
        if batch == 1:
            dx, dscale, dshift = _layer_norm_grad(
                d[0], x, (width,), out[1], out[2], gamma.reshape(width), shift.reshape(width), (1, 1, 1)
            )
            return dx, dshift.reshape(shift.shape), dscale.reshape(scale.shape)
        ds, xs, means, rstds = _rows(d[0], 1, 0), _rows(x, 1, 0), _rows(out[1], 1, 0), _rows(out[2], 1, 0)
        gammas = _split(gamma, 1, 0)
        dx, dshift, dscale = [], [], []
        for i in range(batch):
            weight = gammas[i].reshape(width)  # and in place of the bias, whose values do not count
            found = _layer_norm_grad(ds[i], xs[i], (width,), means[i], rstds[i], weight, weight, (1, 1, 1))
            dx.append(found[0])
            dscale.append(found[1].reshape(1, width))
            dshift.append(found[2].reshape(1, width))
        return _join(dx), _join(dshift), _join(dscale)


modulated_norm = ModulatedNorm()


class GatedResidual(CustomGrad):
    """x + gate * y, rounded once, for x, y (B, F, T, D) and a gate (B, D), all of one dtype."""

    def construct(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor) -> ms.Tensor:
        """Return the result."""
        return _addcmul(x, gate.reshape(gate.shape[0], 1, 1, gate.shape[1]), y, 1)

    def bprop(self, x: ms.Tensor, gate: ms.Tensor, y: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple:
        """Return the gradients of the inputs."""
        return d, _sum(d * y, (1, 2), False, None), d * gate.reshape(gate.shape[0], 1, 1, gate.shape[1])


gated_residual = GatedResidual()


class Part(CustomGrad):
    """One of the equal parts of the columns of a matrix (B, D), that `split` has cut already.

    The gradient puts zeros beside it. MindSpore's gradient of a split makes zeros of all other parts and adds up six
    tuples of six: 25 launches a block, these are 11.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def construct(self, whole: ms.Tensor, part: ms.Tensor) -> ms.Tensor:
        """Return the part."""
        return part

    def bprop(self, whole: ms.Tensor, part: ms.Tensor, out: ms.Tensor, d: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Return the gradients of the inputs; that of the part belongs to the whole."""
        before, size = self.number * part.shape[1], part.shape[1]
        after = whole.shape[1] - before - size
        parts = [d]
        if before:
            parts = [ops.zeros((whole.shape[0], before), d.dtype), *parts]
        if after:
            parts = [*parts, ops.zeros((whole.shape[0], after), d.dtype)]
        return _join_last(parts), ops.zeros(part.shape, d.dtype)


def group_norm(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, groups: int, eps: float) -> ms.Tensor:
    """Return the group norm of images (N, C, H, W), weight and bias (C,), all float32."""
    return mint.nn.functional.group_norm(x, groups, weight, bias, eps)


def conv2d(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, stride: int, padding: int | tuple[int, int]) -> ms.Tensor:
    """Convolve images (N, C, H, W); weight (out, C, k, l), bias (out,), one dtype; padding: of height and width."""
    return mint.nn.functional.conv2d(x, weight, bias, stride, padding)


def pad(x: ms.Tensor, padding: tuple[int, int, int, int]) -> ms.Tensor:
    """Return images (N, C, H, W) with so many columns of zeros left and right, and rows above and below."""
    return mint.nn.functional.pad(x, padding)


def gelu(x: ms.Tensor) -> ms.Tensor:
    """Return the tanh form of GELU."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def embedding(table: ms.Tensor, index: ms.Tensor) -> ms.Tensor:
    """Return the rows of a table (N, D) that integer `index` of any shape names, as (*index.shape, D)."""
    # Not mint's embedding: as it may change its table, everything behind it reads all weights anew, and each is copied.
    return mint.index_select(table, 0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def self_attention(
    parts: Sequence[ms.Tensor], rows: tuple[int, int], heads: int, scale: float, over_rows: bool
) -> ms.Tensor:
    """Attend by FlashAttentionScore with q, k, v of any shape, taken as (N, L, D), over the L, or over the N.

    `rows` is (N, L), heads divide D; the result is (N, L, D). Tokens (F, T, D) of a video attend over their frames
    without changing places. No more than FLASH_BATCH may be side by side.
    """
    width = parts[0].shape[-1]
    attend = _self_attention(heads, scale, (*rows, width), "SBH" if over_rows else "BSH")
    return attend(tuple(parts))[0]


def adam(step: tuple, weight: ms.Parameter, moment1: ms.Parameter, moment2: ms.Parameter, gradient: ms.Tensor) -> None:
    """Do what `latte.ops.adam` says, in one launch."""
    learning_rate, taken, betas, eps, weight_decay = step
    # The kernel adds 1 to the steps that were taken. moment2 stands for a maximum that is not kept.
    _adamw(weight, moment1, moment2, moment2, gradient, taken, learning_rate, *betas, weight_decay, eps, False, False)


def move_towards(average: ms.Parameter, value: ms.Tensor, share: float) -> None:
    """Do what `latte.ops.move_towards` says."""
    assign(average, _lerp(average, value, share))


def int8_matmul(x: ms.Tensor, matrix: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
    """Return x (scale * matrix)^T, (N, out), without the scaled matrix in memory.

    x (N, in) float16 or bfloat16, matrix (out, in) int8, scale (out,) of any float dtype, cast to that of `x`.
    """
    return _int8_matmul(x, matrix, scale.astype(x.dtype), None, None, None, None)


def fused_attention(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, bias: ms.Tensor | None, whole: bool
) -> ms.Tensor:
    """Return softmax(scale q k^T) v by the card's fused kernel, without a bias in parts that it takes.

    q (N, L, heads * width), k and v (N, S, heads * width), float16 or bfloat16, width a multiple of 16. A bias
    (N, 1, 1, S) discards the keys where it is negative. `whole` is ignored: the kernels never hold all scores.
    """
    n, length, _ = q.shape
    attend, limit = _kernel_of(only_infers())
    if bias is not None:
        return attend(q, k, v, heads, scale, ops.broadcast_to(bias < 0, (n, 1, length, k.shape[1])), 1)
    if n <= limit:
        return attend(q, k, v, heads, scale, None, 0)
    qs, ks, vs = [split(each, limit, 0) for each in (q, k, v)]  # no views: MindSpore would copy them, on line
    parts = [attend(qs[i], ks[i], vs[i], heads, scale, None, 0) for i in range(len(qs))]
    return ops.concat(parts, 0)


_parts = [Part(i) for i in range(6)]


def with_gradients(whole: ms.Tensor, parts: Sequence[ms.Tensor]) -> list[ms.Tensor]:
    """Return up to six equal parts of a matrix (B, D), which were split off by columns, with the gradient of `Part`."""
    return [_parts[i](whole, ops.stop_gradient(parts[i])) for i in range(len(parts))]


class JointProjection(CustomGrad):
    """q, k and v, each (N, D), of tokens (N, in), a weight (3 D, in) and a bias (3 D,), as three products.

    The result of one product would have to be cut apart by a copy, which is many times larger than one of the weight.
    Backward one product of the joined gradients takes fewer launches.
    """

    def construct(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Return q, k and v."""
        size = weight.shape[0] // 3
        # No views: where there is one of a parameter, MindSpore copies parameters, on line.
        weights, biases = _split(weight, size, 0), _split(bias, size, 0)
        return tuple([_dense(x, weights[i], biases[i]) for i in range(3)])

    def bprop(self, x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: tuple, d: tuple) -> tuple[ms.Tensor, ...]:
        """Return the gradients of the inputs."""
        joint = _join_last((d[0], d[1], d[2]))  # (N, 3 D)
        return _times(joint, weight), _transposed_times(joint, x), _sum(joint, (0,), False, None)


joint_projection = JointProjection()


class SelfAttention(CustomGrad):
    """FlashAttentionScore of q, k and v, a tuple of three tensors, and its gradient.

    A tuple, because MindSpore's gradient of taking one of several adds zeros as large as the others to those. They are
    taken as `shape` says, `layout` BSH or SBH: over its S axis tokens attend, over its B axis they do not.
    """

    def __init__(self, heads: int, scale: float, shape: tuple[int, int, int], layout: str):
        super().__init__()
        self.shape = shape
        settings = (heads, 1.0, scale, NO_BAND, NO_BAND, 0, layout, 0)
        self.attend, self.gradient = FlashAttentionScore(*settings), FlashAttentionScoreGrad(*settings)

    def construct(self, parts: tuple) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor, ms.Tensor]:
        """Return the result in the shape of `shape`; maxima, sums and softmax are for the gradient."""
        q, k, v = parts[0].reshape(self.shape), parts[1].reshape(self.shape), parts[2].reshape(self.shape)
        found = self.attend(q, k, v, None, None, None, None, None, None, None)
        return found[3], found[0], found[1], found[2]

    def bprop(self, parts: tuple, out: tuple, d: tuple) -> tuple[tuple[ms.Tensor, ms.Tensor, ms.Tensor]]:
        """Return the gradients of q, k and v."""
        q, k, v = parts[0].reshape(self.shape), parts[1].reshape(self.shape), parts[2].reshape(self.shape)
        y, largest, total, softmax = out
        found = self.gradient(q, k, v, d[0], None, None, None, None, largest, total, softmax, y, None, None, None)
        shape = parts[0].shape
        return ((found[0].reshape(shape), found[1].reshape(shape), found[2].reshape(shape)),)


_made: dict[tuple, SelfAttention] = {}


@constexpr
def _self_attention(heads: int, scale: float, shape: tuple[int, int, int], layout: str) -> SelfAttention:
    """Return the one operator of these settings."""
    settings = (heads, scale, shape, layout)
    return _made.setdefault(settings, SelfAttention(*settings))


def _kernel_of(infers: bool) -> tuple[Callable, int]:
    """Return one of the next two, with its largest batch; `latte.ops.recompute` says why it is not called here.

    They leave out the keys where `discard` (N, 1, L, S) is true; `mode` is 1 with it: the mask is whole, no band of it.
    """
    return (_prompt, PROMPT_BATCH) if infers else (_flash, FLASH_BATCH)


def _flash(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    # By position: a written-out gradient compiles this again, and keywords do not compile there. keep_prob is 1.
    return ops.flash_attention_score(
        q, k, v, heads, None, None, None, discard, None, None, None, 1.0, scale, NO_BAND, NO_BAND, 0, "BSH", mode
    )


def _prompt(
    q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, heads: int, scale: float, discard: ms.Tensor | None, mode: int
) -> ms.Tensor:
    # inner_precise 0: scores and softmax stay in float32. The default next_tokens would discard later keys.
    return ops.prompt_flash_attention(
        q, k, v, attn_mask=discard, num_heads=heads, scale_value=scale, next_tokens=NO_BAND, input_layout="BSH",
        sparse_mode=mode, inner_precise=0,
    )  # fmt: skip
