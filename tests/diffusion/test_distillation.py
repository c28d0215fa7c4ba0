"""Distillation: the teacher's substeps are those of the solver, and the student's step lands where they do."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from support.golden_values import error
from support.variants import inputs, network, tensors

from latte.diffusion.distillation import SUBSTEPS, WALK, DistillationLoss, substeps_of
from latte.diffusion.schedule import create_schedule
from latte.diffusion.solvers import Solver

STEPS = 4


class Curved(nn.Cell):
    """A network whose noise depends on x and t."""

    def construct(self, x, t):
        scale = (t.astype(ms.float32) / 1000 + 0.3).reshape(-1, 1, 1, 1, 1)
        return ms.ops.concat((ms.ops.tanh(x * scale), x), 2)


def as_model(cell):
    return lambda x, t: cell(ms.Tensor(x, ms.float32), ms.Tensor(np.full(len(x), t), ms.float32)).asnumpy()


@pytest.mark.parametrize("place", range(STEPS))
def test_the_teacher_lands_where_its_solver_does_and_a_step_of_ddim_lands_there_too(place):
    times = substeps_of(STEPS)[1].times.T.astype(int)
    assert times[:, 0].tolist() == [999, 749, 499, 249] and times.shape == (STEPS, SUBSTEPS)
    x = np.random.default_rng(place).normal(size=(2, 3, 4, 4, 6)).astype(np.float32)
    following = times[place:].ravel().tolist()
    walk = list(Solver("dpmpp_2m").sample(as_model(Curved()), x, following))
    loss = DistillationLoss(Curved(), Curved(), STEPS)
    eps = loss.noise_to_land(ms.Tensor(x), ms.Tensor(np.full(2, place), ms.int32), None).asnumpy()
    steps = [999, 749, 499, 249][place:]
    (landed, *_) = Solver("ddim").sample(lambda x, t: eps, x, steps)
    assert error(landed, walk[SUBSTEPS - 1]) <= 2e-4


def test_its_steps_are_those_of_the_walk_that_samples():
    for steps in (1, 4, 8):
        assert np.array_equal(substeps_of(steps)[0].times, WALK.steps(steps).timesteps)


@pytest.mark.parametrize("t, place", [(999, 0), (750, 0), (749, 1), (250, 2), (249, 3), (0, 3)])
def test_timesteps_choose_the_step_and_the_loss_is_weighted(t, place):
    student, teacher = network("variant 1"), Curved()
    x, _, y = inputs()
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)

    class Alone(nn.Cell):
        def construct(self, x, t, y):
            return teacher(x, t)

    loss_net = DistillationLoss(student, Alone(), STEPS)
    loss, mse, bound = ms.jit(loss_net.construct)(*tensors((x, np.full(2, t, np.int32), noise, y)))
    alpha = create_schedule().alphas_cumprod
    start = (999, 749, 499, 249)[place]
    x_t = (np.sqrt(alpha[start]) * x + np.sqrt(1 - alpha[start]) * noise).astype(np.float32)
    eps = loss_net.noise_to_land(ms.Tensor(x_t), ms.Tensor(np.full(2, place), ms.int32), ms.Tensor(y)).asnumpy()
    out = student(*tensors((x_t, np.full(2, start, np.int32), y))).asnumpy()[:, :, :4]
    expected = np.square(eps - out).mean((1, 2, 3, 4))
    after = np.append(alpha, 1.0)[(749, 499, 249, -1)[place]]
    moved = np.abs(np.sqrt(1 - after) - np.sqrt(after) * np.sqrt(1 - alpha[start]) / np.sqrt(alpha[start]))
    assert error(mse.asnumpy(), expected) <= 1e-3 and error(loss.asnumpy(), moved * expected) <= 1e-3
    assert not bound.asnumpy().any()


def test_only_the_student_has_a_gradient():
    nets = [network("variant 1", for_training=True), network("variant 1")]
    nets[1].update_parameters_name("teacher.")
    for weight in nets[1].get_parameters():
        weight.requires_grad = False
    loss_net = DistillationLoss(*nets, STEPS)
    trained = [weight for weight in nets[0].get_parameters() if weight.requires_grad]
    x, t, y = inputs()
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)

    def mean_loss(*given):
        return loss_net(*given)[0].mean()

    value, gradients = ms.jit(ms.value_and_grad(mean_loss, None, trained))(*tensors((x, t, noise, y)))
    assert np.isfinite(float(value.asnumpy())) and len(gradients) == len(trained)
    largest = {weight.name: np.abs(each.asnumpy()).max() for weight, each in zip(trained, gradients, strict=True)}
    assert all(value > 0 for value in largest.values()), largest
