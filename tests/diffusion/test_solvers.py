"""Solvers against latents recorded from diffusers (make_solver_fixtures.py), their order, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.toy_model import toy

from latte.diffusion.noise import NoiseStream
from latte.diffusion.schedule import space_timesteps
from latte.diffusion.scheduler_config import CLASSES, solver_of
from latte.diffusion.solvers import SOLVERS, Network, Solver
from latte.diffusion.timesteps import Steps, choose_timesteps
from latte.errors import UserError

DATA = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "solvers.npz")
CASES = json.loads(str(DATA["cases"]))
OFFICIAL = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "gaussian.npz")
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.adds_noise]


def run(sampler, num_steps, model=toy, noises=None, start=DATA["start"]):
    """All x of a walk."""
    return list(sampler.sample(model, start, num_steps, noises))


def error(actual, expected):
    """The largest deviation relative to the largest number."""
    return np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_the_latents_of_diffusers(case):
    name, num_steps, config = CASES[case]
    solver, options = solver_of(config, None if case.endswith("own") else name)
    assert solver == name
    sampler = Solver(solver, eta=config.get("eta", 0.0), **options)
    called = []

    def model(x, t):
        assert x.dtype == np.float32 and x.shape == DATA["start"].shape
        called.append(t)
        return toy(x, t, variance=config.get("variance_type") == "learned_range")

    xs = run(sampler, num_steps, model, iter(DATA["noises"]) if sampler.adds_noise else None)
    assert len(xs) == num_steps and xs[-1].dtype == np.float32
    assert len(called) == sampler.calls(num_steps)
    # Timesteps are the same, but for those that kdpm2_a finds between two by interpolation, in diffusers in float32.
    tolerance = 1e-4 if name == "kdpm2_a" else 0
    np.testing.assert_allclose(called, DATA[f"{case}-timesteps"], rtol=0, atol=tolerance)
    assert error(xs[-1], DATA[case]) <= 3e-5


@pytest.mark.parametrize("name, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim_half", 0.5)])
def test_ten_steps_of_the_official_code(name, eta):
    def model(x, t):  # that of make_diffusion_fixtures.py
        eps = x * (0.3 + 0.6 * t / 1000) + 0.1
        return np.concatenate((eps, np.tanh(x) * t / 1000), axis=2).astype(np.float32)

    sampler = Solver(name.split("_")[0], eta=eta)
    *_, x = run(sampler, "10", model, iter(OFFICIAL["loop_noise"]), OFFICIAL["loop_start"])
    assert error(x, OFFICIAL[f"loop_{name}"]) <= 1e-5


@pytest.mark.parametrize("process, respacing", [("full", 1000), ("short", 10)])
@pytest.mark.parametrize("name, eta", [("ddpm", 0.0), ("ddim", 0.0), ("ddim_half", 0.5), ("ddim_one", 1.0)])
def test_one_step_of_the_official_code(process, respacing, name, eta):
    sampler = Solver(name.split("_")[0], eta=eta)
    walk, options = sampler.steps(respacing), {name: getattr(sampler, name) for name in sampler.spec.options}
    rising, count = walk.timesteps[::-1], len(OFFICIAL[f"{process}_t"])
    recorded = [OFFICIAL[f"{process}_{key}"] for key in ("t", "noise", name)]
    for x, out, k, noise, expected in zip(
        OFFICIAL["x_t"][-count:], OFFICIAL["model_out"][-count:], *recorded, strict=True
    ):
        after = walk.alphas_cumprod[int(rising[k - 1])] if k else 1.0
        one = Steps(rising[k : k + 1], walk.alphas_cumprod, after)
        start, end = ((1 + sigma**2) ** 0.5 for sigma in one.sigmas)
        network = Network(lambda x, t, out=out: out[None])
        y = next(sampler.spec.function(network, x[None] * start, one, iter([noise[None]]), **options))
        assert error(y / end, expected[None]) <= 1e-5


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name != "euler"])
def test_order(name):
    """From timestep 900 to 100, half the stride must mean half the error, or a quarter for the solvers of order 2."""
    table = Solver("ddim").steps(10).alphas_cumprod

    def end(solver, num_steps):
        steps = Steps(np.linspace(900, 100, num_steps + 1)[:-1], table, table[100])
        *_, y = SOLVERS[solver].function(Network(toy), DATA["start"] * (1 + steps.sigmas[0] ** 2) ** 0.5, steps, None)
        return y

    exact = end("heun", 800)
    errors = [np.abs(end(name, num_steps) - exact).max() for num_steps in (50, 100)]
    order = np.log2(errors[0] / errors[1])
    least = {"ddim": 0.9, "pndm": 2.8}.get(name, 1.85)  # the reference is not good enough for PNDM's 4
    assert order > least and errors[1] < 0.05, f"{order:.2f} {errors}"


def test_many_steps_agree():
    spaced = {name: {} if name in ("dpmpp_s", "deis") else {"spacing": "linspace"} for name in DETERMINISTIC}
    *_, exact = run(Solver("ddim"), 1000)
    for name, options in spaced.items():
        *_, x = run(Solver(name, **options), 500)
        # DEIS ends at timestep 0, where there still is noise of a hundredth.
        assert error(x, exact) <= (0.1 if name == "deis" else 0.05), name


def test_same_formula_same_latents():
    noise = DATA["noises"]
    for a, b in (
        (Solver("ddim"), Solver("euler", spacing="respaced")),
        (Solver("ddim", eta=1.0), Solver("ddpm", variance="fixed_small")),
        (Solver("ddim", eta=1.0), Solver("euler_a", spacing="respaced")),
    ):
        results = [run(sampler, 10, noises=iter(noise))[-1] for sampler in (a, b)]
        assert error(*results) <= 1e-2  # they start from noise of variance 1 or a little less
    plain, fixed = (run(Solver("ddpm", variance=v), 10, noises=iter(noise))[-1] for v in (None, "fixed_small"))
    np.testing.assert_array_equal(plain, fixed)


def test_variance_values_only_matter_to_ddpm():
    def both(x, t):
        return toy(x, t, variance=True)

    for name in SOLVERS:
        plain, more = (run(Solver(name), 6, model, iter(DATA["noises"]))[-1] for model in (toy, both))
        assert np.array_equal(plain, more) == (name != "ddpm"), name


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_only_where_it_is_used(name):
    stream, fresh = NoiseStream([1], DATA["start"].shape[1:]), NoiseStream([1], DATA["start"].shape[1:])
    run(Solver(name), 5, noises=stream)
    for _ in range(4 if SOLVERS[name].adds_noise else 0):  # the last of the five steps adds none
        fresh.normal()
    np.testing.assert_array_equal(stream.normal(), fresh.normal())
    if SOLVERS[name].adds_noise:
        with pytest.raises(ValueError, match="source of noise"):
            run(Solver(name), 5)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 250])
def test_few_and_many_steps(name, num_steps):
    sampler = Solver(name)
    if name == "pndm" and num_steps < 4:
        with pytest.raises(UserError, match="4 or more steps"):
            run(sampler, num_steps)
        sampler = Solver(name, skip_prk_steps=True)
    called = []
    xs = run(sampler, num_steps, lambda x, t: called.append(t) or toy(x, t), iter([DATA["noises"][0]] * 250))
    assert len(xs) == num_steps and np.isfinite(xs).all() and len(called) == sampler.calls(num_steps)


def test_respaced_timesteps_serve_every_solver():
    for name in SOLVERS:
        steps = Solver(name, spacing="respaced").steps("10,15,20")
        np.testing.assert_array_equal(steps.timesteps, space_timesteps(1000, "10,15,20")[::-1])
        assert np.isfinite(run(Solver(name, spacing="respaced"), "ddim20", noises=iter(DATA["noises"]))[-1]).all()


def test_spacings():
    assert choose_timesteps(4, "leading", steps_offset=1).tolist() == [751, 501, 251, 1]
    assert choose_timesteps(4, "trailing").tolist() == [999, 749, 499, 249]
    assert choose_timesteps(4, "linspace").tolist() == [999, 666, 333, 0]
    assert choose_timesteps(4, "leading", "one_more").tolist() == [800, 600, 400, 200]
    assert choose_timesteps(3, "linspace", "fractional").tolist() == [999, 499.5, 0]
    assert len(choose_timesteps(999, "linspace", "one_more")) == 999


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("dpm_2m", {}, "nearest is 'dpmpp_2m' of ddim, ddpm"),
        ("eular", {}, "'euler'"),
        ("ddim", {"eta": 1.5}, "0 .* to 1"),
        ("ddpm", {"eta": 0.5}, "eta = 0.5 has no meaning for ddpm; it is for ddim"),
        ("unipc", {"eta": 0.5}, "for unipc"),
        ("ddim", {"variance": "fixed_small"}, "it is for ddpm"),
        ("ddpm", {"variance": "learned"}, "learned_range, fixed_small"),
        ("euler", {"skip_prk_steps": True}, "it is for pndm"),
        ("dpmpp_s", {"spacing": "leading"}, "respaced, linspace"),
        ("deis", {"ends_at_first": False}, "dpmpp_2m or unipc"),
        ("ddim", {"beta_schedule": "squaredcos_cap_v2"}, "linear, scaled_linear"),
    ],
)
def test_impossible_samplers_are_refused(name, options, said):
    with pytest.raises(UserError, match=said):
        Solver(name, **options)


@pytest.mark.parametrize(
    "name, options, num_steps, said",
    [
        ("ddpm", {}, 1001, "1 to 1000"),
        ("ddpm", {}, "many", "number of diffusion steps"),
        ("euler", {}, "ddim50", "number of denoising steps"),
        ("euler", {}, 0, "number of denoising steps"),
        ("dpmpp_2m", {}, 1000, "ask for fewer"),
        ("dpmpp_2m", {"spacing": "leading"}, 1000, "ask for fewer"),
        ("ddim", {"spacing": "leading", "steps_offset": 1}, 1000, "steps_offset 1 do not fit"),
    ],
)
def test_impossible_steps_are_refused(name, options, num_steps, said):
    with pytest.raises(UserError, match=said):
        Solver(name, **options).steps(num_steps)


def test_a_learned_variance_has_to_be_learned():
    with pytest.raises(UserError, match="predicts variance"):
        run(Solver("ddpm", variance="learned_range"), 3, noises=iter(DATA["noises"]))


def test_every_scheduler_has_its_solver():
    assert {solver for solver, _ in CLASSES.values()} == set(SOLVERS)
    for cls, (solver, _) in CLASSES.items():
        assert solver_of({"_class_name": cls, "clip_sample": False})[0] == solver
    folder = CASES["ddim-10-folder"][2]
    assert solver_of(folder, "heun")[1]["spacing"] == "leading" and "spacing" not in solver_of(folder, "dpmpp_s")[1]


@pytest.mark.parametrize(
    "config, said",
    [
        ({"_class_name": "LCMScheduler"}, "no solver for the scheduler LCMScheduler"),
        ({}, "no solver for the scheduler None"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample True is not supported, only False"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}, "only epsilon"),
        ({"_class_name": "UniPCMultistepScheduler", "thresholding": True}, "thresholding True"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas True"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"}, "not supported for euler"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order 3 is not supported, only 2"),
        ({"_class_name": "DEISMultistepScheduler", "lower_order_final": False}, "lower_order_final False"),
        ({"_class_name": "DEISMultistepScheduler", "beta_schedule": "sigmoid"}, "only linear or scaled_linear"),
    ],
)
def test_schedulers_that_are_refused(config, said):
    with pytest.raises(UserError, match=said) as caught:
        solver_of(config)
    assert "\n" not in str(caught.value)
