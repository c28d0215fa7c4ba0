"""A small network and its compiled training step, a batch for it, and what has changed after a step."""

import mindspore as ms
import numpy as np

from latte.models.latte import Latte, LatteConfig
from latte.models.precision import prepare
from latte.training.step import StepOptions, TrainStep

SMALL = {"hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "input_size": 4, "num_frames": 3}


def build(net, ema=None, rate=1e-3, **options):
    step = TrainStep(net, ema, None, np.full(40, rate, np.float32), StepOptions(**{"scale_factor": 1.0, **options}))
    return step, step.as_function()


def small(dtype=ms.float32, seed=0, **config):
    net = prepare(Latte(LatteConfig(**{**SMALL, **config}), seed=seed, dtype=dtype), for_training=True)
    rng = np.random.default_rng(1)  # what starts at zero would hide what depends on it
    for name, weight in net.parameters_and_names():
        if "adaLN" in name or "final_layer.linear" in name:
            weight.set_data(ms.Tensor(rng.normal(0, 0.05, weight.shape), ms.float32))
    return net


def batch(videos=2, frames=3, seed=0, labels=None):
    """Return moments without variance, so that the posterior sample is their mean, and all else that a step takes."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, videos, frames, 4, 4, 4)).astype(np.float32)
    t = rng.integers(1000, size=videos, dtype=np.int32)
    values = [
        np.concatenate((x, np.full_like(x, -30)), 2),
        np.zeros_like(x),
        t,
        noise,
        np.full((videos, 8), -1, np.int32),
    ]
    values += [] if labels is None else [np.array(labels, np.int32)]
    return [ms.Tensor(value) for value in values]


def weights(step):
    return {name: weight.asnumpy().copy() for name, weight in step.net.parameters_and_names()}


def farthest(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
