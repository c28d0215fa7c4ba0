"""Pyramid Attention Broadcast: which call computes which attention, and what the others use in its place."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error

from latte import create_model, load_t2v
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.caches import Step, Walk, choose
from latte.inference.latents import LatentSampler, Request
from latte.models import latte, latte_t2v
from latte.runtime import device

STEPS = 12
WALK = Walk("ddim", STEPS, STEPS, 3)
TIMES = [917, 833, 750, 667, 583, 500, 417, 333, 250, 167, 83, 0]


def class_model():
    sizes = {"hidden_size": 16, "depth": 3, "num_heads": 2, "patch_size": 2, "input_size": 4, "num_frames": 3}
    net, rng = create_model("Latte-S/2", condition="class", num_classes=5, **sizes), np.random.default_rng(0)
    for weight in net.get_parameters():
        weight.set_data(ms.Tensor(rng.normal(0, 0.2, weight.shape).astype(np.float32)))
    return net, (np.array([1, 3, 0], np.int32),), (np.full(3, 5, np.int32),), (3, 4, 4, 4)


def text_model():
    net, rng = load_t2v(FIXTURES / "latte_t2v" / "transformer"), np.random.default_rng(0)
    texts = [rng.normal(size=(3, 120, net.config.caption_channels)).astype(np.float32) for _ in range(2)]
    mask = np.repeat((np.arange(120) < 9).astype(np.int32)[None], 3, 0)
    side = net.config.sample_size
    return net, (texts[0], mask), (texts[1], mask), (4, 4, side, side)


@pytest.fixture(scope="module", params=[class_model, text_model], ids=["class", "text"])
def sampler(request):
    """A sampler, with what its three videos are conditioned on, what not, and the shape of a video."""
    net, *rest = request.param()
    return LatentSampler(net), rest


def asked(rest, rows=(0, 1, 2), scale=4.0, cache=None, **options):
    follow, null, shape = rest
    chosen = list(rows)
    return Request(
        seeds=[7 + row for row in rows],
        shape=shape,
        conditions=tuple(values[chosen] for values in follow),
        null=tuple(values[chosen] for values in null) if scale != 1 else (),
        guidance_scale=scale,
        num_inference_steps=STEPS,
        solver=Solver("ddim"),
        cache=choose(cache, 0, WALK),
        **options,
    )


def test_which_call_computes_which_attention():
    """Outside of timesteps 100 to 800 all of them, inside by the number of the call."""
    method = choose("pab:235", 0, WALK)
    found = [method.computed(Step(number, STEPS, timestep, True)) for number, timestep in enumerate(TIMES)]
    letters = ["".join(kind[0] for kind in kinds) for kinds in found]
    #                  0      1     2     3    4    5    6    7    8    9    10     11
    assert letters == ["stc", "stc", "s", "t", "s", "c", "st", "", "s", "t", "stc", "stc"]


def test_every_attention_in_every_call_is_the_network_itself(sampler):
    made, rest = sampler
    for scale in (1.0, 4.0):
        assert error(made.sample(asked(rest, [0], scale, "pab:111")), made.sample(asked(rest, [0], scale))) <= 1e-5


def test_a_network_of_one_frame_attends_over_it():
    sizes = {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 2, "input_size": 4, "num_frames": 1}
    net, rng = create_model("Latte-S/2", condition="class", num_classes=5, **sizes), np.random.default_rng(0)
    for weight in net.get_parameters():
        weight.set_data(ms.Tensor(rng.normal(0, 0.2, weight.shape).astype(np.float32)))
    made, rest = LatentSampler(net), [(np.array([1], np.int32),), (), (1, 4, 4, 4)]
    assert error(made.sample(asked(rest, [0], 1.0, "pab:111")), made.sample(asked(rest, [0], 1.0))) <= 1e-5


def test_the_others_use_the_last_output(sampler, monkeypatch):
    """By the blocks themselves, with an attention in them that remembers what it gave out."""
    made, rest = sampler
    single, every, kept = asked(rest, [1]), {"s": 2, "t": 3, "c": 5}, {}
    counts, call = itertools.count(), {}

    def remembering(kind_of, function):
        def attend(*inputs):
            kind, key = kind_of(inputs), (call["half"], call["place"])
            call["place"] += 1
            between = 100 < call["timestep"] < 800
            if key not in kept or not between or call["number"] % every[kind] == 0:
                kept[key] = function(*inputs)
            return kept[key]

        return attend

    for module in (latte, latte_t2v):
        by_axis = remembering(lambda inputs: "st"[inputs[5]], module.self_attention)
        monkeypatch.setattr(module, "self_attention", by_axis)
    read = latte_t2v._attend_to_text
    added = remembering(lambda inputs: "c", lambda *inputs: read(*inputs) - inputs[0])
    monkeypatch.setattr(latte_t2v, "_attend_to_text", lambda x, *others: x + added(x, *others))

    def model(x, t):
        call.update(number=next(counts), timestep=t)
        outs = []
        for half, conditions in enumerate((single.conditions, single.null)):
            call.update(half=half, place=0)
            given = [ms.Tensor(values) for values in conditions]
            outs.append(made.net(ms.Tensor(x), ms.Tensor([t], ms.float32), *given).asnumpy()[:, :, :4])
        return outs[1] + 4.0 * (outs[0] - outs[1])

    with device.use("CPU", graph_mode=False):  # so that the blocks are plain Python, which can be changed
        *_, expected = single.solver.sample(model, single.noise().normal(), STEPS)
    monkeypatch.undo()
    plain, found = made.sample(single), made.sample(asked(rest, [1], cache="pab:235"))
    assert error(found, expected) <= 1e-5 < error(plain, expected)
    assert made.skipped == 4 / 12  # calls without attention over patches


def test_where_the_step_is_a_graph_it_is_the_same(sampler):
    made, rest = sampler
    expected = made.sample(asked(rest, cache="pab:235"))
    with device.use("GPU"):
        found = LatentSampler(made.net).sample(asked(rest, cache="pab:235"))
    assert error(found, expected) <= 1e-4


def test_a_video_depends_on_no_other(sampler):
    made, rest = sampler
    together = made.sample(asked(rest, cache="pab:235"))
    assert np.array_equal(made.sample(asked(rest, [2], cache="pab:235"))[0], together[2])


def test_guidance_between_two_timesteps(sampler):
    """Where it begins all is computed, and where it ends the conditional half is kept."""
    made, rest = sampler
    options = {"guidance_interval": (300.0, 600.0)}
    plain = made.sample(asked(rest, [0], **options))
    assert error(made.sample(asked(rest, [0], cache="pab:111", **options)), plain) <= 1e-5
    assert error(made.sample(asked(rest, [0], cache="pab:235", **options)), plain) < 0.5


@pytest.mark.parametrize("cache, said", [("pab:205", "three digits from 1 to 9"), ("pab:2", "from 111 to 999")])
def test_ranges_that_are_none(cache, said):
    with pytest.raises(UserError, match=said):
        choose(cache, 0, WALK)
