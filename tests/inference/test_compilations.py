"""Nothing is compiled twice: not for another guidance scale, not for the next preview of a training."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from support.compilations import compilations
from support.golden_values import FIXTURES, error, tiny
from support.train_step import batch, build, small

from latte import LattePipeline, load_vae
from latte.components.codec import Codec
from latte.runtime import device
from latte.training.previews import Previews

TARGETS = ["CPU", "GPU"]  # a graph per sort of block; network and guidance as one graph


@pytest.fixture(scope="module")
def codec():
    return Codec(load_vae(FIXTURES / "vae.bin"))


def test_the_count_is_of_compilations():
    graph = ms.jit(ops.tanh)
    counts = [compilations()]
    for shape in ((2,), (2,), (3,)):
        graph(ms.Tensor(np.zeros(shape, np.float32)))
        counts.append(compilations())
    assert np.diff(counts).tolist() == [1, 0, 1]


@pytest.mark.parametrize("target", TARGETS)
def test_another_guidance_scale_compiles_nothing(codec, target):
    with device.use(target):
        pipe = LattePipeline(tiny("class"), codec)
        options = {"class_labels": [1], "num_inference_steps": 1, "seed": 0, "output_type": "latent"}
        made, counts = [], []
        for scale in (2.0, 4.0, 7.5):
            made.append(pipe(guidance_scale=scale, progress=False, **options).frames)
            counts.append(compilations())
    assert counts[1] == counts[0] and counts[2] == counts[0]
    assert error(made[1], made[0]) > 1e-5 and error(made[2], made[1]) > 1e-5


@pytest.fixture(scope="module")
def training():
    """A training step with EMA weights, and the function that takes it."""
    return build(small(condition="class", num_classes=3), small(condition="class", num_classes=3), ema_decay=0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_the_next_preview_compiles_nothing_and_sees_the_weights_of_now(target, training):
    """The EMA weights are updated in place, which a graph that was built with them sees."""
    codec = SimpleNamespace(decode=lambda latents: latents)
    source = SimpleNamespace(num_classes=3, text=None, captions=None)
    step, take = training
    given = batch(labels=[[0], [1]])
    take(*given)
    with device.use(target):
        previews = Previews(step.ema, codec, (3, 4, 4, 4), source, count=1, steps=1, guidance_scale=3.0)
        made, counts = [previews.make()], [compilations()]
        for _ in range(2):
            take(*given)
            made.append(previews.make())
            counts.append(compilations())
        anew = Previews(step.ema, codec, (3, 4, 4, 4), source, count=1, steps=1, guidance_scale=3.0).make()
    assert counts == counts[:1] * 3
    assert error(made[1], made[0]) > 1e-6 and error(made[2], made[1]) > 1e-6
    assert np.array_equal(made[2], anew)
