"""Blocks that are computed again for their gradients: the same step, also in the graphs of other devices."""

import mindspore as ms
import numpy as np
import pytest

from latte.inference.export import graph_of
from latte.io.mindir import read_graph
from latte.models.latte import Latte, LatteConfig
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.ops import blockwise
from latte.runtime import device
from latte.training.step import StepOptions, TrainStep

SIZE, FRAMES, WORDS, CAPTION = 4, 3, 5, 8
LATENTS = (2, FRAMES, 4, SIZE, SIZE)


def build(kind, recompute):
    """Return a training step and its inputs, all of them from fixed seeds."""
    rng = np.random.default_rng(1)
    if kind == "LatteT2V":
        sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "caption_channels": CAPTION}
        sizes["cross_attention_dim"] = 16
        net = LatteT2V(LatteT2VConfig(sample_size=SIZE, video_length=FRAMES, **sizes), seed=0)
        condition = [rng.normal(size=(2, WORDS, CAPTION)), np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)]
    else:
        sizes = {"hidden_size": 16, "num_heads": 2, "depth": 2, "condition": "class", "num_classes": 3}
        net = Latte(LatteConfig(input_size=SIZE, num_frames=FRAMES, **sizes), seed=0)
        condition = [np.zeros((2, 1), np.int32)]
    for weight in net.get_parameters():  # the gates start at zero, which would hide the blocks
        if weight.requires_grad:
            weight.set_data(ms.Tensor(rng.normal(size=weight.shape, scale=0.1).astype(np.float32)))
    prepare(net, for_training=True)
    for block in net.blocks if recompute else ():
        block.recompute()
    step = TrainStep(net, None, None, np.full(2, 1e-3, np.float32), StepOptions())
    moments, noise = rng.normal(size=(2, FRAMES, 8, SIZE, SIZE)), rng.normal(size=(2, *LATENTS))
    given = [moments, noise[0], np.array([5, 600], np.int32), noise[1], np.full((2, 1), -1, np.int32), *condition]
    return step, [ms.Tensor(a if a.dtype == np.int32 else a.astype(np.float32)) for a in given]


@pytest.mark.parametrize("kind", ["Latte", pytest.param("LatteT2V", marks=pytest.mark.slow)])
def test_the_step_is_the_same(kind):
    found = []
    for recompute in (False, True):
        step, given = build(kind, recompute)
        loss = float(step.as_function()(*given))
        found.append((loss, [moment.asnumpy() for moment in step.optimizer.moment1]))
    (loss, gradients), (again, others) = found
    assert abs(loss - again) <= 1e-6 * abs(loss)
    for a, b in zip(gradients, others, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max() + 1e-9


def test_other_networks_still_attend_block_by_block(monkeypatch):
    """Only inside a recomputed block do all scores exist at once: a setting of the block, not the process."""
    monkeypatch.setattr(blockwise, "SCORES", 16)  # those of one head
    other, given = Latte(LatteConfig(16, 2, 2, input_size=SIZE, num_frames=FRAMES)), [LATENTS, (2,)]

    for block in Latte(other.config).blocks:
        block.recompute()
    nodes = read_graph(graph_of(other, *[ms.Tensor(np.zeros(shape, np.float32)) for shape in given]))
    over_patches, over_frames = 2 * FRAMES * 2, 2 * (SIZE // 2) ** 2 * 2  # videos, frames or patches, heads
    assert [node.op for node in nodes].count("Softmax") == over_patches + over_frames


@pytest.mark.parametrize("kind", ["Latte", pytest.param("LatteT2V", marks=pytest.mark.slow)])
def test_the_graph_of_a_gpu_compiles(kind):
    with device.use("GPU"):
        step, given = build(kind, True)
        assert graph_of(step, *given).ByteSize() > 0
