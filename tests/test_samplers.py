"""Solvers, guidance, loop and noise, against steps recorded from the official code (make_diffusion_fixtures.py)."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from latte.diffusion.guidance import guided
from latte.diffusion.samplers import NoiseStream, coefficients, ddim_step, ddpm_step, make_step, sample_loop
from latte.diffusion.schedule import create_schedule
from latte.errors import UserError

DATA = np.load(Path(__file__).parent / "fixtures" / "gaussian.npz")
SHAPE = (2, 4, 4, 4)
traces = []


@ops.constexpr(reuse_result=False)
def traced():
    """Runs in Python when a graph is built, and in eager mode at each call; never when a built graph runs."""
    traces.append(1)
    return 0


class Toy(nn.Cell):
    """The stand-in network of make_diffusion_fixtures.py; a label (B,), if given, is added to its noise."""

    def construct(self, x, t, *labels):
        traced()
        level = (t.astype(ms.float32) / 1000).reshape((-1, 1, 1, 1, 1))
        eps = x * (0.3 + 0.6 * level) + 0.1
        for label in labels:
            eps = eps + label.reshape((-1, 1, 1, 1, 1))
        return ops.concat((eps, ops.tanh(x) * level), axis=2)


def assert_close(actual, expected, relative=1e-5):
    """Agreement relative to the largest expected number."""
    error = np.abs(actual.asnumpy().astype(np.float64) - expected).max()
    assert error <= relative * np.abs(expected).max(), f"{error / np.abs(expected).max():.2e}"


@pytest.mark.parametrize("process, respacing", [("full", None), ("short", "10")])
@pytest.mark.parametrize(
    "name, solver, step, eta",
    [
        ("ddpm", "ddpm", ddpm_step, 0.0),
        ("ddim", "ddim", ddim_step, 0.0),
        ("ddim_half", "ddim", ddim_step, 0.5),
        ("ddim_one", "ddim", ddim_step, 1.0),
    ],
)
def test_one_step(process, respacing, name, solver, step, eta):
    coefs, steps = coefficients(solver, create_schedule(respacing), eta), DATA[f"{process}_t"]
    x, model_out = DATA["x_t"][-len(steps) :], DATA["model_out"][-len(steps) :]
    compiled = ms.jit(step)
    for k, index in enumerate(steps):
        arrays = (x[k : k + 1], model_out[k : k + 1], DATA[f"{process}_noise"][k : k + 1], coefs[index])
        inputs = [Tensor(array) for array in arrays]
        assert_close(step(*inputs), DATA[f"{process}_{name}"][k : k + 1])
        assert_close(compiled(*inputs), DATA[f"{process}_{name}"][k : k + 1])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name, solver, eta", [("ddpm", "ddpm", 0), ("ddim", "ddim", 0), ("ddim_half", "ddim", 0.5)])
def test_ten_steps(name, solver, eta, compiled):
    schedule = create_schedule("10")
    step = make_step(Toy(), solver)
    loop = sample_loop(
        ms.jit(step) if compiled else step,
        Tensor(DATA["loop_start"]),
        iter(DATA["loop_noise"]),
        schedule.timesteps,
        coefficients(solver, schedule, eta),
    )
    steps = list(loop)
    assert [taken for taken, _ in steps] == list(range(10))
    assert_close(steps[-1][1], DATA[f"loop_{name}"])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_one_graph_serves_every_step(solver, batched):
    schedule = create_schedule("5")
    step = ms.jit(make_step(Toy(), solver, guidance_scale=3.0, batched_guidance=batched))
    labels = (Tensor([0.1, 0.2], ms.float32), Tensor([0.0, 0.0], ms.float32))
    loop = sample_loop(
        step,
        Tensor(DATA["loop_start"]),
        iter(DATA["loop_noise"]),
        schedule.timesteps,
        coefficients(solver, schedule),
        labels,
    )
    next(loop)
    traces.clear()
    assert len(list(loop)) == 4
    assert not traces, "the step was compiled again"


def test_a_step_compiles_inside_graph_mode_too():
    step = make_step(Toy(), "ddpm")
    inputs = [Tensor(DATA["loop_start"]), Tensor([5, 5], ms.int32), Tensor(DATA["loop_noise"][0])]
    inputs.append(Tensor(coefficients("ddpm", create_schedule())[5]))
    eager = step(*inputs).asnumpy()
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        np.testing.assert_allclose(ms.jit(step)(*inputs).asnumpy(), eager, rtol=1e-6, atol=1e-6)
    finally:
        ms.set_context(mode=before)


def test_ddim_without_eta_ignores_noise_and_variance():
    coefs = coefficients("ddim", create_schedule("10"))
    x, noise = Tensor(DATA["loop_start"]), Tensor(DATA["loop_noise"][0])
    out = Toy()(x, Tensor([500, 500], ms.int32))
    expected = ddim_step(x, out, noise, Tensor(coefs[4])).asnumpy()
    np.testing.assert_array_equal(ddim_step(x, out, noise * 5, Tensor(coefs[4])).asnumpy(), expected)
    np.testing.assert_array_equal(ddim_step(x, out[:, :, :4], noise, Tensor(coefs[4])).asnumpy(), expected)


def test_ddim_with_eta_one_has_the_noise_of_ddpm_at_its_smallest():
    schedule = create_schedule("10")
    ddim, ddpm = coefficients("ddim", schedule, 1.0), coefficients("ddpm", schedule)
    np.testing.assert_allclose(ddim[1:, 2], np.exp(ddpm[1:, 3] - ddpm[1:, 4]), rtol=1e-5)
    np.testing.assert_allclose(ddim[:, :2], ddpm[:, :2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_the_true_noise_leads_back_to_the_data_in_one_last_step(solver, eta):
    schedule = create_schedule("10")
    rng = np.random.default_rng(0)
    x_start, eps = (rng.standard_normal((2, *SHAPE)).astype(np.float32) for _ in range(2))
    x = schedule.sqrt_alphas_cumprod[0] * x_start + schedule.sqrt_one_minus_alphas_cumprod[0] * eps
    step = ddpm_step if solver == "ddpm" else ddim_step
    arrays = (x, np.concatenate((eps, eps), axis=2), eps, coefficients(solver, schedule, eta)[0])
    assert_close(step(*[Tensor(array, ms.float32) for array in arrays]), x_start)


def test_guided_moves_the_noise_and_keeps_the_conditional_variance():
    rng = np.random.default_rng(0)
    cond, uncond = rng.standard_normal((2, 2, 2, 8, 4, 4)).astype(np.float32)
    out = guided(Tensor(cond), Tensor(uncond), 7.0, SHAPE[1])
    assert_close(out[:, :, :4], uncond[:, :, :4] + 7.0 * (cond[:, :, :4].astype(np.float64) - uncond[:, :, :4]))
    np.testing.assert_array_equal(out[:, :, 4:].asnumpy(), cond[:, :, 4:])
    np.testing.assert_allclose(guided(Tensor(cond), Tensor(uncond), 1.0, SHAPE[1]).asnumpy(), cond, atol=1e-6)
    assert guided(Tensor(cond, ms.float16), Tensor(uncond, ms.float16), 2.0, SHAPE[1]).dtype == ms.float32


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_guidance_in_one_batch_or_two_calls_is_the_same(solver):
    x, noise = Tensor(DATA["loop_start"]), Tensor(DATA["loop_noise"][0])
    t, coef = Tensor([700, 700], ms.int32), Tensor(coefficients(solver, create_schedule())[700])
    follow, none = Tensor([0.3, -0.4], ms.float32), Tensor([0.05, 0.05], ms.float32)
    results = [make_step(Toy(), solver, 7.0, batched)(x, t, noise, coef, follow, none) for batched in (True, False)]
    np.testing.assert_allclose(results[0].asnumpy(), results[1].asnumpy(), rtol=1e-6, atol=1e-6)
    # The toy network adds its label, so the guided label is what a plain step would have to be given.
    combined = none + 7.0 * (follow - none)
    assert_close(make_step(Toy(), solver)(x, t, noise, coef, combined), results[0].asnumpy())


def test_several_conditions_pair_up():
    x, noise = Tensor(DATA["loop_start"]), Tensor(DATA["loop_noise"][0])
    t, coef = Tensor([700, 700], ms.int32), Tensor(coefficients("ddim", create_schedule())[700])
    one, two, none = (Tensor([value, value], ms.float32) for value in (0.1, 0.2, 0.0))
    expected = make_step(Toy(), "ddim", 2.0)(x, t, noise, coef, one + two, none).asnumpy()
    for batched in (True, False):
        both = make_step(Toy(), "ddim", 2.0, batched)(x, t, noise, coef, one, two, none, none)
        np.testing.assert_allclose(both.asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("batched", [False, True])
def test_guidance_without_pairs_is_refused(batched, compiled):
    step = make_step(Toy(), "ddim", 2.0, batched)
    x, t, label = Tensor(DATA["loop_start"]), Tensor([1, 1], ms.int32), Tensor([0.1, 0.1], ms.float32)
    for conditions in ((), (label,), (label, label, label)):
        with pytest.raises(ValueError, match="y_null"):
            (ms.jit(step) if compiled else step)(x, t, x, Tensor([1.0, 0.0, 0.0], ms.float32), *conditions)


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


def test_noise_is_drawn_only_where_it_is_used():
    schedule, x = create_schedule("4"), Tensor(DATA["loop_start"])
    stream, fresh = NoiseStream([1, 2], SHAPE), NoiseStream([1, 2], SHAPE)
    list(sample_loop(make_step(Toy(), "ddpm"), x, stream, schedule.timesteps, coefficients("ddpm", schedule)))
    for _ in range(3):  # the last of the four steps adds none
        fresh.normal()
    np.testing.assert_array_equal(stream.normal(), fresh.normal())
    steps = sample_loop(make_step(Toy(), "ddim"), x, None, schedule.timesteps, coefficients("ddim", schedule))
    assert len(list(steps)) == 4
    with pytest.raises(ValueError, match="noise"):
        next(sample_loop(make_step(Toy(), "ddpm"), x, None, schedule.timesteps, coefficients("ddpm", schedule)))


def test_mistakes_are_named():
    schedule = create_schedule("4")
    with pytest.raises(UserError, match="ddpm or ddim"):
        coefficients("euler", schedule)
    with pytest.raises(UserError, match="ddpm or ddim"):
        make_step(Toy(), "euler")
    with pytest.raises(UserError, match="0 .* to 1"):
        coefficients("ddim", schedule, 1.5)
    with pytest.raises(UserError, match="use ddim"):
        coefficients("ddpm", schedule, 0.5)
    with pytest.raises(UserError, match="from 0 on"):
        NoiseStream([-1], SHAPE)
    with pytest.raises(UserError, match="from 0 on"):
        NoiseStream([], SHAPE)
    with pytest.raises(ValueError, match="rows of coefficients"):
        next(sample_loop(make_step(Toy(), "ddim"), Tensor(DATA["loop_start"]), None, [1, 2], np.zeros((3, 3))))
