"""The compiled training step: ten recorded steps of PyTorch, precision, accumulation, loss scaling, joint images."""

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import error, recorded, tiny
from support.train_step import SMALL, batch, build, farthest, small, weights

from latte import create_model
from latte.models.latte import Latte, LatteConfig
from latte.models.precision import prepare
from latte.training.optim import learning_rates
from latte.training.state import load_state, state_of, weights_of
from latte.training.update import SUMS


def test_ten_steps_are_pytorchs():
    expected, arrays = recorded("adamw_steps"), recorded("diffusion_training")
    settings = {"weight_decay": 0.05, "max_grad_norm": 0.5, "start_clip_step": 5, "ema_decay": 0.95}
    step, call = build(tiny("uncond", "model"), tiny("uncond", "model"), rate=1e-4, **settings)
    x = arrays["x_start"]
    moments = np.concatenate((x, np.full_like(x, -30)), 2)
    values = (moments, np.zeros_like(x), arrays["t"], arrays["noise"], np.full((2, 8), -1, np.int32))
    inputs, losses, norms = [ms.Tensor(value) for value in values], [], []
    for _ in range(10):
        before = step.sums.asnumpy().copy()
        losses.append(float(call(*inputs)))
        norms.append((step.sums.asnumpy() - before)[SUMS.index("grad_norm")])
    assert error(np.array(losses), expected["losses"]) < 1e-5
    assert error(np.array(norms), expected["norms"]) < 1e-4
    for what, net in (("weight", step.net), ("average", step.ema)):
        found = dict(net.parameters_and_names())
        for name in [key.removeprefix(f"{what}_") for key in expected if key.startswith(what)]:
            assert error(found[name], expected[f"{what}_{name}"]) < 1e-5, (what, name)


def test_the_posterior_is_sampled_and_scaled():
    step, _ = build(small(), scale_factor=0.5)
    rng = np.random.default_rng(0)
    mean, logvar, noise = rng.normal(size=(3, 2, 3, 4, 4, 4)).astype(np.float32)
    found = step.latents(ms.Tensor(np.concatenate((mean, logvar), 2)), ms.Tensor(noise))
    assert error(found, (mean + np.exp(0.5 * logvar.astype(np.float64)) * noise) * 0.5) < 1e-5


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch():
    one, call_one = build(small(), rate=1e-4)
    two, call_two = build(small(), rate=1e-4, accumulation=2)
    parts = [batch(seed=1), batch(seed=2)]
    whole = [ms.Tensor(np.concatenate([a.asnumpy(), b.asnumpy()])) for a, b in zip(*parts, strict=True)]
    start = weights(two)
    for _ in range(2):
        call_one(*whole)
        before = weights(two)
        call_two(*parts[0])
        assert farthest(before, weights(two)) == 0  # nothing changes before the last batch
        call_two(*parts[1])
    assert int(two.step.asnumpy()) == int(one.step.asnumpy()) == 2
    assert farthest(start, weights(two)) > 1e-4
    assert farthest(weights(one), weights(two)) < 1e-6


@pytest.mark.slow
def test_half_precision_follows_float32_and_an_overflow_halves_the_scale():
    _exact, call_exact = build(small())
    half, call = build(small(ms.float16), loss_scale=2.0**16, loss_scale_window=3)
    for seed in range(5):
        assert float(call(*batch(seed=seed))) == pytest.approx(float(call_exact(*batch(seed=seed))), rel=0.02)
    assert float(half.loss_scale.asnumpy()) == 2.0**17  # doubled after three good steps
    assert int(half.skipped.asnumpy()) == 0 and half.net.blocks[0].mlp.fc1.weight.dtype == ms.float32
    half.set_loss_scale(2.0**24)
    before, moments = weights(half), half.optimizer.moment1[3].asnumpy().copy()
    sevenfold = batch()
    sevenfold[3] = sevenfold[3] * 1e4  # gradients beyond float16
    call(*sevenfold)
    assert farthest(before, weights(half)) == 0 and np.array_equal(moments, half.optimizer.moment1[3].asnumpy())
    assert float(half.loss_scale.asnumpy()) == 2.0**23 and int(half.skipped.asnumpy()) == 1
    assert int(half.step.asnumpy()) == 6 and np.isfinite(half.sums.asnumpy()).all()


@pytest.mark.slow
def test_nothing_changes_when_float32_overflows():
    step, call = build(small())
    before, infinite = weights(step), batch()
    infinite[3] = infinite[3] * float("inf")
    call(*infinite)
    assert farthest(before, weights(step)) == 0 and int(step.skipped.asnumpy()) == 1
    assert float(step.loss_scale.asnumpy()) == 1  # there is none to halve


@pytest.mark.slow
def test_single_images_count_like_frames_and_skip_the_temporal_blocks():
    net = small(condition="class", num_classes=3)
    _step, call = build(net, images=2)
    moments, zeros, t, noise, none, labels = batch(frames=5, labels=[[0, 1, 2], [2, 2, 0]])
    loss = float(call(moments, zeros, t, noise, none, labels))

    video, _ = build(small(condition="class", num_classes=3))
    of_video = video.scaled_loss(moments[:, :3, :4], t, noise[:, :3], labels[:, :1])[1]
    spatial = small(condition="class", num_classes=3, num_frames=1, depth=1)  # a network with the spatial block only
    given = {name: weight.asnumpy() for name, weight in small(condition="class", num_classes=3).parameters_and_names()}
    for name, weight in spatial.parameters_and_names():
        if name != "temp_embed":
            weight.set_data(ms.Tensor(given[name]))
    image, _ = build(spatial)
    losses = [
        float(image.scaled_loss(moments[:, i : i + 1, :4], t, noise[:, i : i + 1], labels[:, i - 2 : i - 1])[1])
        for i in (3, 4)
    ]
    assert loss == pytest.approx((3 * float(of_video) + sum(losses)) / 5, rel=1e-5)


@pytest.mark.slow
def test_state_goes_into_another_step_whole():
    step, call = build(small(), small(seed=1))
    for seed in range(2):
        call(*batch(seed=seed))
    state = {name: values.copy() for name, values in state_of(step).items()}
    other, call_other = build(small(seed=5), small(seed=6))
    load_state(other, state, "a file")
    for seed in range(2, 4):
        assert float(call(*batch(seed=seed))) == float(call_other(*batch(seed=seed)))
    after, found = state_of(step), state_of(other)
    assert all(np.array_equal(after[name], found[name]) for name in after)
    assert set(weights_of(step, state_of(step))) == set(dict(step.net.parameters_and_names()))


def test_heads_widened_for_the_fused_kernel_are_saved_at_their_own_width():
    net = Latte(LatteConfig(**{**SMALL, "hidden_size": 48}), flash=True, seed=0)  # two heads of 24
    official = {name: weight.asnumpy().copy() for name, weight in net.parameters_and_names()}
    step, _ = build(prepare(net, for_training=True))
    assert step.net.blocks[0].attn.qkv.weight.shape == (3 * 2 * 32, 48)
    state = state_of(step)
    assert {f"net.{name}" for name in step.names} == {name for name in state if name.startswith("net.")}
    for name, values in official.items():
        assert np.array_equal(weights_of(step, state_of(step))[name], values)
        assert name not in step.names or np.array_equal(state[f"net.{name}"], values)
    assert state["adam_m.blocks.0.attn.qkv.weight"].shape == (3 * 48, 48)
    load_state(step, state, "a file")
    assert np.array_equal(
        weights_of(step, state_of(step))["blocks.1.attn.proj.weight"], official["blocks.1.attn.proj.weight"]
    )


def test_learning_rates():
    assert learning_rates("constant", 1e-3, 0, 0, 3) == pytest.approx([1e-3] * 3)
    assert learning_rates("constant", 1e-3, 0, 4, 6) == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    cosine = learning_rates("cosine", 1.0, 0.2, 2, 12)
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    assert cosine[:2] == pytest.approx([0, 0.5]) and cosine[2:] == pytest.approx(expected, abs=1e-6)
    line = learning_rates("polynomial", 1.0, 0.0, 0, 10)
    assert line == pytest.approx(1 - np.arange(10) / 10, abs=1e-6)


@pytest.mark.slow
def test_create_model_trains_too():
    net = create_model("Latte-S/2", hidden_size=32, depth=1, num_heads=2, input_size=4, num_frames=3)
    _step, call = build(net)
    first = float(call(*batch()))
    for _ in range(20):
        last = float(call(*batch()))
    assert last < first
