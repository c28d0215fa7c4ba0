"""AdamW and EMA weights on the host: the same training to rounding, the same states, bit for bit after a resume."""

import mindspore as ms
import numpy as np
import pytest
from support.runs import state, train, write_clips
from support.train_step import batch, build, farthest, small, weights

from latte.ops import move_towards
from latte.training import host
from latte.training.host import HostAdamW, HostBuffer
from latte.training.optim import AdamW
from latte.training.state import load_state, net_to_sample, state_of

CLIPPED = {"weight_decay": 0.05, "max_grad_norm": 0.5, "start_clip_step": 5, "ema_decay": 0.9}


def made(offload, dtype=ms.float32, seed=0, **options):
    return build(small(dtype, seed), small(dtype, seed), rate=1e-4, offload=offload, **(CLIPPED | options))


def copied(step):
    return {name: values.copy() for name, values in state_of(step).items()}


def deviations(found, expected):
    """Return the largest deviation of each kind of values, relative to the largest of them."""
    largest, farthest_of = {}, {}
    for name in expected:
        kind = name.split(".")[0]
        farthest_of[kind] = max(farthest_of.get(kind, 0), float(np.abs(found[name] - expected[name]).max()))
        largest[kind] = max(largest.get(kind, 0), float(np.abs(expected[name]).max()))
    return {kind: farthest_of[kind] / (largest[kind] or 1) for kind in largest}


@pytest.mark.parametrize("weight_decay, factor", [(0.05, 1), (0, 0.37)])
def test_ten_updates_are_those_of_the_device(weight_decay, factor):
    """By the same gradients; those of later steps would follow the rounding of weights."""
    rng, found = np.random.default_rng(0), []
    start, gradients = rng.normal(size=(300, 7)).astype(np.float32), rng.normal(size=(10, 300, 7)).astype(np.float32)
    for kind in (AdamW, HostAdamW):
        weight, factor = ms.Parameter(ms.Tensor(start), name="w"), np.float32(factor)
        optimizer = kind([weight if kind is AdamW else host.moved(weight)], (0.9, 0.999), 1e-8, weight_decay)
        average = ms.Parameter(ms.Tensor(start), name="a")
        average = average if kind is AdamW else host.moved(average)
        for step, gradient in enumerate(gradients):
            optimizer.begin(1e-3, step)
            if kind is AdamW:
                new = optimizer.update(0, ms.Tensor(gradient) * float(factor))
                move_towards(average, new, 0.1)
            else:
                new = optimizer.new_weights(0, gradient, factor)
                host.move_average(average, new, 0.1)
        buffers = (*optimizer.weights, *optimizer.moment1, *optimizer.moment2, average)
        found.append([buffer.asnumpy() for buffer in buffers])
    assert max(np.abs(one - other).max() / np.abs(one).max() for one, other in zip(*found, strict=True)) <= 1e-6
    assert np.abs(found[0][0] - start).max() > 1e-3


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ten_steps_are_those_of_the_device(accumulation):
    """As near as those of ranks are to those of one: gradients that are zero but for rounding are followed too."""
    states = []
    for offload in (False, True):
        step, call = made(offload, accumulation=accumulation)
        for seed in range(10 * accumulation):
            call(*batch(seed=seed))
        states.append(copied(step))
    found = deviations(states[1], states[0])
    print(found)
    assert {"net", "ema", "adam_m", "adam_v", "step", "beta1_power"} <= set(found)
    assert max(found.values()) <= 1e-5 and found["adam_m"] <= 1e-6
    assert all(np.array_equal(weights(step)[name], states[1][f"net.{name}"]) for name in step.names)


@pytest.fixture(scope="module")
def running():
    """A step that was taken three times, and what takes it."""
    step, call = made(True)
    for seed in range(3):
        call(*batch(seed=seed))
    return step, call


def test_a_resume_goes_on_bit_for_bit_and_a_step_that_is_not_finite_changes_nothing(running):
    step, call = running
    start = copied(step)
    infinite = batch()
    infinite[3] = infinite[3] * float("inf")
    call(*infinite)
    after = copied(step)
    trained = [name for name in start if "." in name or name.endswith("power")]
    assert int(after["skipped"]) == int(start["skipped"]) + 1 and all(
        np.array_equal(start[name], after[name]) for name in trained
    )
    other, call_other = made(True, seed=5)
    load_state(other, after, "a file")
    for seed in range(3, 6):
        assert float(call(*batch(seed=seed))) == float(call_other(*batch(seed=seed)))
    one, two = state_of(step), state_of(other)
    assert [name for name in one if not np.array_equal(one[name], two[name], equal_nan=True)] == []
    assert set(one) == set(state_of(made(False)[0]))  # so that each goes on from the state of the other


def test_samples_are_made_with_the_ema_weights_and_the_weights_come_back(running):
    step, _ = running
    before, saved = weights(step), copied(step)
    assert step.ema is None and all(isinstance(buffer, HostBuffer) for buffer in step.ema_weights)
    with net_to_sample(step) as net:
        assert net is step.net and farthest(before, weights(step)) > 0
        assert all(np.array_equal(weights(step)[name], saved[f"ema.{name}"]) for name in step.names)
    assert farthest(before, weights(step)) == 0


@pytest.mark.slow
def test_a_whole_run_that_was_ended_and_resumed_is_the_uninterrupted_one(tmp_path):
    clips, options = write_clips(tmp_path / "frames"), {"offload_optimizer": True, "ckpt_save_interval": 2}
    for out, ends in (("whole", (4,)), ("cut", (2, 4))):
        for end in ends:
            train(data_folder=clips, output_path=tmp_path / out, max_steps=end, resume="auto", **options)
    one, two = (state(tmp_path / out, 4) for out in ("whole", "cut"))
    assert set(one) == set(two) and {"ema", "adam_v"} <= {name.split(".")[0] for name in one}
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert len(list((tmp_path / "cut").glob("*/samples/*.gif"))) == 2


def test_large_weights_are_updated_in_parts(monkeypatch):
    rng, values = np.random.default_rng(0), []
    average, weight = rng.normal(size=(2, 37, 11)).astype(np.float32)
    for size in (37 * 11, 100):
        monkeypatch.setattr(host, "PART", size)
        buffer = HostBuffer(average.copy(), "x")
        host.move_average(buffer, weight, 0.1)
        values.append(buffer.values)
    assert np.array_equal(*values) and np.allclose(values[0], average + 0.1 * (weight - average), atol=1e-6)
