"""The fused kernel's arguments, above all the sign of its mask, against exact attention; the kernel is emulated.

The emulation does in NumPy what the documentation of `ops.flash_attention_score` says: softmax of scale q k^T over the
keys that are not discarded (1 or True discards), times v.
"""

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import error

from latte import ops
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.ops import ascend
from latte.runtime import device

CONFIG = LatteT2VConfig(
    num_attention_heads=2,
    attention_head_dim=24,
    num_layers=1,
    cross_attention_dim=48,
    sample_size=4,
    caption_channels=8,
)


def emulated(query, key, value, head_num, *others):
    """Return what FlashAttentionScore is documented to return, after checking the shapes that it is documented for.

    The arguments are in the order of MindSpore's function.
    """
    (
        shift,
        drop,
        padding,
        attn_mask,
        *lengths,
        keep,
        scalar_value,
        before,
        after,
        _precise,
        input_layout,
        sparse_mode,
    ) = others
    assert {shift, drop, padding, *lengths} == {None} and keep == 1 and min(before, after) > key.shape[1]
    q, k, v = (a.asnumpy().astype(np.float64) for a in (query, key, value))
    (b, s1, hidden), s2, width = q.shape, k.shape[1], q.shape[2] // head_num
    assert input_layout == "BSH" and width % 16 == 0 and width * head_num == hidden and 1 <= b <= 2048
    q, k, v = (a.reshape(b, -1, head_num, width).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = scalar_value * q @ k.transpose(0, 1, 3, 2)
    assert sparse_mode == (0 if attn_mask is None else 1)
    if attn_mask is not None:
        assert attn_mask.shape == (b, 1, s1, s2) and attn_mask.dtype in (ms.bool_, ms.uint8)
        scores = np.where(attn_mask.asnumpy(), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = (weights / weights.sum(-1, keepdims=True)) @ v
    return ms.Tensor(out.transpose(0, 2, 1, 3).reshape(b, s1, hidden).astype(np.float32))


class Emulated:
    """The same as MindSpore's primitive, which has settings and gives maxima, sums and softmax besides."""

    def __init__(self, head_num, *settings):
        self.head_num, self.settings = head_num, settings

    def __call__(self, query, key, value, *others):
        found = emulated(query, key, value, self.head_num, *others, *self.settings)
        return (found, found, found, found)


@pytest.fixture
def kernel(monkeypatch):
    """Let the emulation stand in for the kernel, outside of graphs."""
    monkeypatch.setattr(ms.ops, "flash_attention_score", emulated)
    monkeypatch.setattr(ascend, "FlashAttentionScore", Emulated)
    monkeypatch.setattr(ascend, "_made", {})
    with device.use(graph_mode=False):
        yield


def arrays(rng, *shapes):
    return [ms.Tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize("masked", [False, True])
def test_attention(kernel, masked):
    q, k, v = arrays(np.random.default_rng(0), (2, 6, 32), (2, 5, 32), (2, 5, 32))
    kept = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], np.float32)
    bias = ms.Tensor((1 - kept).reshape(2, 1, 1, 5) * -1e9) if masked else None
    exact = ops.attention(q, k, v, 2, 0.25, False, bias).asnumpy()
    assert error(ops.attention(q, k, v, 2, 0.25, True, bias), exact) < 1e-6
    if masked:  # the other sign would be seen
        wrong = ms.Tensor(kept.reshape(2, 1, 1, 5) * -1e9)
        assert error(ops.attention(q, k, v, 2, 0.25, True, wrong), exact) > 0.1


@pytest.mark.parametrize("tokens", [3, 5, 0])
def test_text_to_video(kernel, tokens):
    """Text behind the prompt counts for nothing, with heads widened from 24 to 32; no token at all is no NaN."""
    nets = [prepare(LatteT2V(CONFIG, flash=flash)) for flash in (False, True)]
    assert nets[1].blocks[0].attn2.to_q.weight.shape == (64, 48)
    rng = np.random.default_rng(1)
    x, text = arrays(rng, (2, 3, 4, 4, 4), (2, 5, 8))
    mask = ms.Tensor((np.arange(5) < tokens).astype(np.int32)[None].repeat(2, 0))
    exact, fused = (net(x, ms.Tensor([9, 700], ms.int32), text, mask).asnumpy() for net in nets)
    assert error(fused, exact) < 1e-5
    changed = text.asnumpy().copy()
    changed[:, 3:] += 5
    again = nets[1](x, ms.Tensor([9, 700], ms.int32), ms.Tensor(changed), mask).asnumpy()
    assert (error(again, fused) < 1e-7) == (tokens == 3)
