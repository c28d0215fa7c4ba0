"""Networks that learn to be given the first frames of a video: timesteps of frames, their loss, their sampling."""

import dataclasses
import json

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, tiny

from latte import LattePipeline, load_vae
from latte.components.codec import Codec
from latte.config import TrainConfig
from latte.diffusion.fixed_frames import showing
from latte.diffusion.loss import DiffusionLoss
from latte.errors import UserError
from latte.models.latte import LatteConfig
from latte.runtime import device

rng = np.random.default_rng(1)
X = rng.standard_normal((2, 4, 4, 8, 8)).astype(np.float32)
LABELS = ms.Tensor([1, 3], ms.int32)


@pytest.fixture(scope="module")
def net():
    return tiny("class")


def predicted(net, t):
    return net(ms.Tensor(X), ms.Tensor(np.asarray(t, np.float32)), LABELS).asnumpy()


def near(a, b):
    return np.abs(a - b).max() <= 2e-6 * np.abs(b).max()


@pytest.mark.parametrize("target", ["CPU", "GPU"])
def test_one_timestep_for_all_frames_is_that_of_the_video(target):
    with device.use(target):
        other = tiny("class")
        assert near(predicted(other, [[500] * 4, [20] * 4]), predicted(other, [500, 20]))


def test_frames_have_timesteps_of_their_own(net):
    """Where frames do not see each other, each is what it is in a video of its timestep."""
    times = np.array([[0, 0, 300, 900], [0, 40, 40, 40]])
    net.temporal = False
    try:
        mixed = predicted(net, times)
        for frame in range(4):
            assert near(mixed[:, frame], predicted(net, times[:, frame])[:, frame])
    finally:
        net.temporal = True
    assert not near(predicted(net, times), mixed)


def losses(net, noise, t):
    values = DiffusionLoss(net, weighting="v")(ms.Tensor(X), ms.Tensor(t, ms.int32), ms.Tensor(noise), LABELS)
    return np.stack([each.asnumpy() for each in values])


def test_the_loss_leaves_conditioning_frames_out(net):
    noise = rng.standard_normal(X.shape).astype(np.float32)
    t = [[400, 0, 0, 1, 1], [7, 0, 1, 1, 1]]
    other = noise.copy()
    other[0, :2], other[1, :1] = 5.0, -3.0
    assert (losses(net, noise, t) == losses(net, other, t)).all()
    other[0, 2] = 5.0
    assert (losses(net, noise, t)[:2, 0] != losses(net, other, t)[:2, 0]).all()


def test_without_conditioning_frames_the_loss_is_the_usual_one(net):
    noise = rng.standard_normal(X.shape).astype(np.float32)
    given, plain = losses(net, noise, [[400, 1, 1, 1, 1], [0, 1, 1, 1, 1]]), losses(net, noise, [400, 0])
    assert np.abs(given - plain).max() <= 1e-5 * np.abs(plain).max()


def test_a_network_is_shown_its_conditioning_frames_without_noise():
    seen = []
    given = np.full((2, 2, 4, 8, 8), 7.0, np.float32)
    showing(lambda x, t: seen.append((x, t)), given, [0, 1], X)(X, 300.0)
    (x, t), copy = seen[0], X.copy()
    copy[:, :2] = 7.0
    assert (x == copy).all() and t.tolist() == [0, 0, 300, 300]
    assert (X[:, :2] != 7.0).any()


@pytest.mark.parametrize("options", [{}, {"video_length": 7, "window_stride": 2}])
def test_sampling_shows_them_to_a_network_that_was_trained_so(options):
    codec, net = Codec(load_vae(FIXTURES / "vae.bin")), tiny("class")
    frames = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)

    def sampled(count):
        net.config = dataclasses.replace(net.config, condition_frames=count)
        usual = {"class_labels": 1, "num_inference_steps": 3, "sampler": "ddim", "seed": 1, "output_type": "latent"}
        return LattePipeline(net, codec)(frames=frames, progress=False, **usual, **options).frames

    old, fewer, shown = (sampled(count) for count in (0, 1, 2))
    assert (old == fewer).all()  # two frames are more than it was trained with
    assert (shown[:, :2] == old[:, :2]).all() and (shown[:, 2:] != old[:, 2:]).any()


def test_a_checkpoint_knows_how_it_was_trained(net):
    weights = {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    stored = dataclasses.replace(net.config, condition_frames=3).to_json()
    assert LatteConfig.from_weights(weights, {"config": json.dumps(stored)}, "x").condition_frames == 3
    assert LatteConfig.from_weights(weights, {}, "x", num_heads=4).condition_frames == 0
    with pytest.raises(UserError, match="condition_frames"):
        LatteConfig.from_weights(weights, {"config": json.dumps(stored | {"condition_frames": -1})}, "x")


@pytest.mark.parametrize(
    "options",
    [
        {"condition_frames": 16},
        {"condition_frames": 8, "num_frames": 8},
        {"condition_frames": -1},
        {"condition_frames": 2, "model_name": "LatteT2V", "pretrained_model_path": "x"},
    ],
)
def test_conditioning_frames_that_no_training_can_have(options):
    with pytest.raises(UserError, match="condition_frames"):
        TrainConfig(**options)
