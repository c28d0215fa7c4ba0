"""The compiled training step: ten recorded steps of PyTorch, precision, accumulation, loss scaling, joint images."""

import mindspore as ms
import numpy as np
from helpers import error, recorded, tiny

from latte import device
from latte.training.step import SUMS, StepOptions, TrainStep


def build(kind="uncond", net=None, rates=None, **options):
    net = net or tiny(kind, "model")
    ema = tiny(kind, "model")
    assert ema.blocks[0].mlp.fc1.weight is not net.blocks[0].mlp.fc1.weight
    rates = np.full(40, 1e-4, np.float32) if rates is None else rates
    step = TrainStep(net, ema, None, rates, StepOptions(**options))
    return step, device.compile_training(step.construct)


def batch(kind="uncond"):
    """Return the recorded latents as moments without variance, so that the posterior sample is x_start."""
    arrays = recorded("diffusion_training")
    x = arrays["x_start"]
    moments = np.concatenate((x, np.full_like(x, -30)), 2)
    none = np.full((2, 8), -1, np.int32)
    values = (moments, np.zeros_like(x), arrays["t"], arrays["noise"], none)
    return tuple(ms.Tensor(a) for a in values) + ((ms.Tensor([[1], [5]], ms.int32),) if kind == "class" else ())


def test_ten_steps_are_pytorchs():
    expected = recorded("adamw_steps")
    step, call = build(weight_decay=0.05, max_grad_norm=0.5, start_clip_step=5, ema_decay=0.95, scale_factor=1.0)
    inputs, losses, norms = batch(), [], []
    for _ in range(10):
        before = step.sums.asnumpy().copy()
        losses.append(float(call(*inputs)))
        norms.append((step.sums.asnumpy() - before)[SUMS.index("grad_norm")])
    assert error(np.array(losses), expected["losses"]) < 1e-5
    assert error(np.array(norms), expected["norms"]) < 1e-4
    for what, net in (("weight", step.net), ("average", step.ema)):
        weights = dict(net.parameters_and_names())
        for name in [key.removeprefix(f"{what}_") for key in expected if key.startswith(what)]:
            assert error(weights[name], expected[f"{what}_{name}"]) < 1e-5, (what, name)
