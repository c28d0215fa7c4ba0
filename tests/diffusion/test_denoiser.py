"""What is compiled of sampling: network, guidance in its two forms, one graph for every step; and the noise streams."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from latte.diffusion.denoiser import guide, make_denoiser
from latte.diffusion.noise import NoiseStream
from latte.errors import UserError

SHAPE = (2, 4, 4, 4)
START = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
traces = []


@ops.constexpr(reuse_result=False)
def traced():
    """Runs in Python when a graph is built, and in eager mode at each call; never when a built graph runs."""
    traces.append(1)
    return 0


class Toy(nn.Cell):
    """A stand-in for a network; a label (B,), if given, is added to its noise."""

    def construct(self, x, t, *labels):
        traced()
        level = (t / 1000).reshape((-1, 1, 1, 1, 1))
        eps = x * (0.3 + 0.6 * level) + 0.1
        for label in labels:
            eps = eps + label.reshape((-1, 1, 1, 1, 1))
        return ops.concat((eps, ops.tanh(x) * level), axis=2)


def inputs(t=700.0, scale=()):
    """Return x and t, and the guidance scale where there is one."""
    return (Tensor(START), Tensor([t, t], ms.float32), *(Tensor(value, ms.float32) for value in np.atleast_1d(scale)))


def assert_close(actual, expected, relative=1e-5):
    """Agreement relative to the largest expected number."""
    error = np.abs(actual.asnumpy().astype(np.float64) - expected).max()
    assert error <= relative * np.abs(expected).max(), f"{error / np.abs(expected).max():.2e}"


def test_without_guidance_it_is_the_network_in_float32():
    x, t = inputs()
    np.testing.assert_array_equal(make_denoiser(Toy())(x, t, None).asnumpy(), Toy()(x, t).asnumpy())
    half = make_denoiser(lambda x, t: Toy()(x, t).astype(ms.float16))
    assert half(x, t, None).dtype == ms.float32


@pytest.mark.parametrize("batched", [False, True])
def test_one_graph_serves_every_step_and_scale(batched):
    denoise = ms.jit(make_denoiser(Toy(), guided=True, batched=batched))
    labels = (Tensor([0.1, 0.2], ms.float32), Tensor([0.0, 0.0], ms.float32))
    first = denoise(*inputs(999.0, 3.0), *labels).asnumpy()
    traces.clear()
    later = [denoise(*inputs(t, scale), *labels).asnumpy() for t, scale in ((499.5, 3.0), (250.0, 5.0), (0.0, 7.5))]
    assert not traces, "the denoiser was compiled again"
    assert all(np.abs(out - first).max() > 0.1 for out in later)


def test_it_compiles_inside_graph_mode_too():
    denoise = make_denoiser(Toy())
    eager = denoise(*inputs(scale=1.0)).asnumpy()
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        np.testing.assert_allclose(ms.jit(denoise)(*inputs(scale=1.0)).asnumpy(), eager, rtol=1e-6, atol=1e-6)
    finally:
        ms.set_context(mode=before)


def test_guidance_moves_the_noise_and_keeps_the_conditional_variance():
    rng = np.random.default_rng(0)
    cond, uncond = rng.standard_normal((2, 2, 2, 8, 4, 4)).astype(np.float32)
    out = guide(Tensor(cond), Tensor(uncond), 7.0, SHAPE[1])
    assert_close(out[:, :, :4], uncond[:, :, :4] + 7.0 * (cond[:, :, :4].astype(np.float64) - uncond[:, :, :4]))
    np.testing.assert_array_equal(out[:, :, 4:].asnumpy(), cond[:, :, 4:])
    np.testing.assert_allclose(guide(Tensor(cond), Tensor(uncond), 1.0, SHAPE[1]).asnumpy(), cond, atol=1e-6)
    assert guide(Tensor(cond, ms.float16), Tensor(uncond, ms.float16), 2.0, SHAPE[1]).dtype == ms.float32


def test_guidance_in_one_batch_or_two_calls_is_the_same():
    follow, none = Tensor([0.3, -0.4], ms.float32), Tensor([0.05, 0.05], ms.float32)
    results = [make_denoiser(Toy(), True, batched)(*inputs(scale=7.0), follow, none) for batched in (True, False)]
    np.testing.assert_allclose(results[0].asnumpy(), results[1].asnumpy(), rtol=1e-6, atol=1e-6)
    # The toy network adds its label, so the guided label is what a plain call would have to be given.
    combined = none + 7.0 * (follow - none)
    assert_close(make_denoiser(Toy())(*inputs(scale=1.0), combined), results[0].asnumpy())


def test_several_conditions_pair_up():
    one, two, none = (Tensor([value, value], ms.float32) for value in (0.1, 0.2, 0.0))
    expected = make_denoiser(Toy(), True)(*inputs(scale=2.0), one + two, none).asnumpy()
    for batched in (True, False):
        both = make_denoiser(Toy(), True, batched)(*inputs(scale=2.0), one, two, none, none)
        np.testing.assert_allclose(both.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("batched", [False, True])
def test_guidance_without_pairs_is_refused(batched, compiled):
    denoise = make_denoiser(Toy(), True, batched)
    label = Tensor([0.1, 0.1], ms.float32)
    for conditions in ((), (label,), (label, label, label)):
        with pytest.raises(ValueError, match="y_null"):
            (ms.jit(denoise) if compiled else denoise)(*inputs(scale=2.0), *conditions)


def test_noise_of_a_video_depends_on_its_seed_alone():
    together, alone = NoiseStream([3, 11, 7], SHAPE), NoiseStream([7], SHAPE)
    for _ in range(3):
        batch = together.normal()
        assert batch.shape == (3, *SHAPE) and batch.dtype == np.float32
        np.testing.assert_array_equal(batch[2], alone.normal()[0])


def test_noise_is_standard_normal_and_differs_by_seed_and_by_step():
    stream = NoiseStream([0, 1], (16, 4, 32, 32))
    first, second = stream.normal(), stream.normal()
    assert abs(first.mean()) < 0.01 and abs(first.std() - 1) < 0.01
    for a, b in ((first[0], first[1]), (first, second)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_noise_never_changes():
    expected = np.array([-1.1043996, 0.18912812, 0.04600093], np.float32)
    np.testing.assert_allclose(NoiseStream([42], (3,)).normal()[0], expected, rtol=1e-6)


@pytest.mark.parametrize("seeds", [[-1], []])
def test_seeds_that_are_none_are_refused(seeds):
    with pytest.raises(UserError, match="from 0 on"):
        NoiseStream(seeds, SHAPE)
