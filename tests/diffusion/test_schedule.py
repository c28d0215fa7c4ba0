"""Noise schedules and respacing, against the tables that the official code computes."""

from pathlib import Path

import numpy as np
import pytest

from latte.diffusion.schedule import create_schedule, linear_betas, make_schedule, scaled_linear_betas, space_timesteps
from latte.errors import UserError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TRAINING = np.load(FIXTURES / "diffusion_training.npz")
SAMPLING = np.load(FIXTURES / "diffusion_sampling.npz")
GAUSSIAN = np.load(FIXTURES / "gaussian.npz")
TABLES = ("betas", "alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped")
TABLES += ("posterior_mean_coef1", "posterior_mean_coef2")


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_recorded_ones(name):
    np.testing.assert_allclose(getattr(create_schedule(), name), TRAINING[name], rtol=1e-12)


@pytest.mark.parametrize("request_", ["250", "ddim50", "10"])
def test_recorded_timestep_maps(request_):
    np.testing.assert_array_equal(space_timesteps(1000, request_), SAMPLING[f"timestep_map_{request_}"])


@pytest.mark.parametrize("request_", ["10,15,20", "ddim100", "7", "333"])
def test_timestep_maps_of_the_official_code(request_):
    np.testing.assert_array_equal(space_timesteps(1000, request_), GAUSSIAN[f"map_{request_}"])


def test_a_number_means_the_same_as_its_text():
    np.testing.assert_array_equal(space_timesteps(1000, 250), space_timesteps(1000, "250"))


def test_ddim_takes_the_smallest_stride_that_fits():
    np.testing.assert_array_equal(space_timesteps(300, "ddim3"), np.arange(0, 300, 100))


def test_everything_is_finite_float64_and_read_only():
    for schedule in (create_schedule(), create_schedule(1)):
        for name, table in vars(schedule).items():
            assert table.dtype == np.float64
            assert np.isfinite(table).all(), name
            with pytest.raises(ValueError, match="read-only"):
                table[0] = 0


def test_square_roots_of_scaled_linear_betas_are_linear():
    roots = np.sqrt(scaled_linear_betas(1000, 0.00085, 0.012))
    np.testing.assert_allclose(roots, np.linspace(roots[0], roots[-1], 1000), rtol=1e-12)
    np.testing.assert_allclose(roots[[0, -1]] ** 2, [0.00085, 0.012], rtol=1e-12)
    assert len(linear_betas()) == len(scaled_linear_betas()) == 1000


@pytest.mark.parametrize(
    "request_, hint",
    [
        ("1001", "1 to 1000"),
        ("10,900", "section 2 of 2.*1 to 500"),
        ("ddim60", "ddim59.*ddim63"),
        ("ddim1", "ddim2"),
        ("ddim", "'250', 'ddim50' or '10,15,20'"),
        ("fast", "'250'"),
        ("0", "'250'"),
        ("-5", "'250'"),
        ("10,,20", "'10,15,20'"),
    ],
)
def test_impossible_requests_say_what_is_possible(request_, hint):
    with pytest.raises(UserError, match=hint):
        space_timesteps(1000, request_)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_schedule(np.array([0.1, 1.5]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_schedule(np.array([]))
