"""Noising, posterior, bound and loss, against numbers recorded from the official code (make_diffusion_fixtures.py)."""

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from latte.diffusion import gaussian
from latte.diffusion.loss import DiffusionLoss, loss_terms, weights_of
from latte.diffusion.schedule import create_schedule

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
DATA = np.load(FIXTURES / "gaussian.npz")
TRAINING = np.load(FIXTURES / "diffusion_training.npz")
COUNT = len(DATA["t"])
NAMES = ("model_out", "x_start", "x_t", "t", "noise")  # of what loss_terms takes
FAR_TAIL = 2  # the sample at t = 0 so far off that float32 keeps a few bits of its likelihoods, here and there
TABLES = gaussian.make_tables(create_schedule())


def tensor(name, data=DATA):
    array = data[name]
    return Tensor(array, ms.int32 if array.dtype == np.int64 else ms.float32)


def assert_close(actual, expected, relative=1e-5):
    """Agreement relative to the largest expected number."""
    error = np.abs(actual.asnumpy().astype(np.float64) - expected).max()
    assert error <= relative * np.abs(expected).max(), f"{error / np.abs(expected).max():.2e}"


class Recorded(nn.Cell):
    """A network whose output is a parameter, so that a gradient by it can be taken; remembers no input."""

    def __init__(self, out):
        super().__init__()
        self.out = ms.Parameter(Tensor(out), name="out")

    def construct(self, x, t):
        return self.out + 0.0 * x.sum() + 0.0 * t.sum()


@pytest.mark.parametrize("data", [DATA, TRAINING], ids=["gaussian", "diffusion_training"])
def test_q_sample(data):
    x_t = ms.jit(gaussian.q_sample)(TABLES, tensor("x_start", data), tensor("t", data), tensor("noise", data))
    assert_close(x_t, data["x_t"], 1e-6)


def test_posterior_of_the_predicted_data():
    eps = Tensor(DATA["model_out"][:, :, :4])
    x_start = gaussian.predict_x_start(TABLES, tensor("x_t"), tensor("t"), eps)
    assert_close(x_start, DATA["x_start_hat"])
    mean, log_variance = gaussian.q_posterior(TABLES, x_start, tensor("x_t"), tensor("t"))
    assert_close(mean, DATA["mean"])
    assert log_variance.shape == (COUNT, 1, 1, 1, 1)


def test_predict_x_start_undoes_q_sample():
    x_start = gaussian.predict_x_start(TABLES, tensor("x_t"), tensor("t"), tensor("noise"))
    low = DATA["t"] <= 500  # beyond, float32 keeps too little of the data in x_t
    np.testing.assert_allclose(x_start.asnumpy()[low], DATA["x_start"][low], atol=1e-4)


def test_learned_range_log_variance():
    log_variance = gaussian.learned_range_log_variance(TABLES, Tensor(DATA["model_out"][:, :, 4:]), tensor("t"))
    assert_close(log_variance, DATA["log_variance"], 1e-6)


def test_kl_of_equal_gaussians_is_zero_and_of_unit_ones_half_the_squared_distance():
    one, zero = Tensor([1.0, -2.0], ms.float32), Tensor([0.0, 0.0], ms.float32)
    assert_close(gaussian.normal_kl(one, one, one, one), np.zeros(2))
    assert_close(gaussian.normal_kl(one, zero, zero, zero), np.array([0.5, 2.0]))


def test_cdf_is_the_tanh_approximation():
    x = np.linspace(-8, 8, 1001).astype(np.float32)
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
    cdf = gaussian.approx_standard_normal_cdf(Tensor(x)).asnumpy()
    np.testing.assert_allclose(cdf, 0.5 * (1 + np.tanh(inner)), atol=2e-6)  # ops.tanh would be 5e-5 off


def test_cdf_is_near_the_exact_one():
    x = np.linspace(-4, 4, 33).astype(np.float32)
    exact = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x]
    np.testing.assert_allclose(gaussian.approx_standard_normal_cdf(Tensor(x)).asnumpy(), exact, atol=3e-4)


def test_the_256_likelihoods_sum_to_one():
    x = Tensor(np.linspace(-1, 1, 256).astype(np.float32))
    nll = gaussian.discretized_gaussian_nll(x, ops.zeros_like(x) + 0.9, ops.zeros_like(x) - 1.0)
    assert abs(np.exp(-nll.asnumpy().astype(np.float64)).sum() - 1) < 1e-4


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_loss_terms(mode):
    terms = loss_terms if mode == "eager" else ms.jit(loss_terms)
    for actual, name in zip(terms(TABLES, *map(tensor, NAMES)), ("loss", "mse", "vb"), strict=True):
        assert actual.shape == (COUNT,)
        for index in range(COUNT):  # each by itself: the terms of different timesteps are of different sizes
            assert_close(actual[index], DATA[name][index], 1e-4 if index == FAR_TAIL else 1e-5)


def test_the_weight_of_v_makes_the_error_of_the_noise_that_of_the_velocity():
    """v = sqrt(a) noise - sqrt(1 - a) x_0, where x_0 is what x_t and the predicted noise say."""
    schedule = create_schedule()
    a = schedule.alphas_cumprod[DATA["t"]].reshape(-1, 1, 1, 1, 1)
    x_t, noise, eps = (DATA[name].astype(np.float64) for name in ("x_t", "noise", "model_out"))
    eps = eps[:, :, : noise.shape[2]]
    v, predicted = (
        np.sqrt(a) * each - np.sqrt(1 - a) * (x_t - np.sqrt(1 - a) * each) / np.sqrt(a) for each in (noise, eps)
    )
    weights = Tensor(weights_of(schedule, "v"), ms.float32)
    plain = loss_terms(TABLES, *map(tensor, NAMES))
    loss, mse, vb = loss_terms(TABLES, *map(tensor, NAMES), weights)
    assert_close(loss - vb, np.square(v - predicted).mean((1, 2, 3, 4)), 1e-4)
    assert all((one.asnumpy() == other.asnumpy()).all() for one, other in ((mse, plain[1]), (vb, plain[2])))


def test_the_weight_of_min_snr_is_bounded():
    schedule = create_schedule()
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weights = weights_of(schedule, "min_snr")
    assert (weights[ratio <= 5] == 1).all() and 0 < (ratio > 5).sum() < 1000
    np.testing.assert_allclose(weights[ratio > 5] * ratio[ratio > 5], 5)
    assert weights_of(schedule, "uniform") is None


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_diffusion_loss_and_its_gradient(mode):
    cell = DiffusionLoss(Recorded(DATA["model_out"]))

    def mean_loss(x_start, t, noise):
        loss, mse, vb = cell(x_start, t, noise)
        return loss.mean(), mse, vb

    grad = ms.value_and_grad(mean_loss, None, cell.trainable_params(), has_aux=True)
    (loss, mse, vb), (by_out,) = (grad if mode == "eager" else ms.jit(grad))(
        tensor("x_start"), tensor("t"), tensor("noise")
    )
    assert_close(loss, DATA["loss"].mean(), 1e-4)
    assert_close(mse, DATA["mse"])
    assert_close(vb, DATA["vb"], 1e-4)
    for index in range(COUNT):
        assert_close(by_out[index, :, :4], DATA["grad"][index, :, :4])
    # By the variance values: the far tail's is noise in float32, and late steps have next to none, so that what float32
    # leaves of it is compared with the gradient of the whole batch.
    rest = [index for index in range(COUNT) if index != FAR_TAIL]
    assert_close(by_out[rest][:, :, 4:], DATA["grad"][rest][:, :, 4:], 1e-4)
    early = [index for index in rest if DATA["t"][index] <= 250]
    for index in early:
        assert_close(by_out[index, :, 4:], DATA["grad"][index, :, 4:], 5e-4)


def test_the_bound_does_not_train_the_mean():
    eps = DATA["model_out"][:, :, :4]
    expected = 2 * (eps.astype(np.float64) - DATA["noise"]) / eps[0].size / len(eps)  # of the squared error alone
    np.testing.assert_allclose(DATA["grad"][:, :, :4], expected, rtol=1e-5, atol=1e-9)

    def bound(model_out):
        inputs = [tensor(name) for name in ("x_start", "x_t", "t", "noise")]
        return loss_terms(TABLES, model_out, *inputs)[2].sum()

    by_out = ms.grad(bound)(tensor("model_out")).asnumpy()
    assert np.all(by_out[:, :, :4] == 0) and np.any(by_out[:, :, 4:] != 0)


def test_half_precision_outputs_are_computed_on_in_float32():
    inputs = [tensor(name) for name in ("x_start", "x_t", "t", "noise")]
    half = tensor("model_out").astype(ms.float16)
    single = loss_terms(TABLES, half.astype(ms.float32), *inputs)
    for rounded, full in zip(loss_terms(TABLES, half, *inputs), single, strict=True):
        assert rounded.dtype == ms.float32
        np.testing.assert_array_equal(rounded.asnumpy(), full.asnumpy())


def test_mean_flat_of_a_whole_video_is_accurate():
    x = np.random.default_rng(0).random((1, 16, 4, 32, 32), dtype=np.float32)
    assert_close(gaussian.mean_flat(Tensor(x)), x.astype(np.float64).mean(), 1e-6)
