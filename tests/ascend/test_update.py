"""What a training step changes on Ascend: float32 buffers of like weights, and copies of them to compute with."""

import json
import subprocess
import sys

import pytest
from ascend import standin
from support.golden_values import ROOT

if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

PROGRAM = """
import json, sys
from pathlib import Path
import mindspore as ms, numpy as np
from latte.runtime import device
from latte.training.state import load_state, net_to_sample, state_of
from support.train_step import batch, build, small

trace = Path(sys.argv[1])
device.init_device("Ascend")
halves = ms.float16


def counted():
    return sum("Memcpy" not in line for line in trace.read_text().splitlines())  # buffers go to the card at first use


def same(one, other):
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


def weights(step):
    return {name: weight.asnumpy().copy() for name, weight in zip(step.names, step.weights)}


options = dict(loss_scale=1024.0, loss_scale_window=100, max_grad_norm=0.5, weight_decay=0.1, ema_decay=0.5)
step, call = build(small(halves, depth=4), small(halves, depth=4, seed=1), accumulation=2, **options)
start = weights(step)
results = call.gradients(*batch(seed=0))
call.finish(results)
assert same(start, weights(step)), "weights change before the last batch"
results = call.gradients(*batch(seed=1))
ms.runtime.synchronize()
before = counted()
call.finish(results)
ms.runtime.synchronize()
found = {"weights": len(step.names), "buffers": len(step.groups), "launches": counted() - before}
state = state_of(step)
for name, weight in zip(step.names, step.weights):  # the copies are the buffers, rounded once
    assert weight.dtype == (halves if name.startswith("blocks.") else ms.float32), name
    assert np.array_equal(weight.asnumpy(), state["net." + name].astype(weight.asnumpy().dtype)), name
    assert not np.array_equal(weight.asnumpy(), start[name]) or not state["adam_m." + name].any(), name

infinite = batch(seed=2)  # a step that is not finite changes nothing but its counters, the next one works again
infinite[3] = infinite[3] * 1e6
call(*infinite)
call(*batch(seed=3))
skipped, now = state_of(step), weights(step)
trained = [name for name in state if "." in name or name.endswith("power")]
assert same({name: state[name] for name in trained}, {name: skipped[name] for name in trained})
assert int(skipped["skipped"]) == 1 and float(skipped["loss_scale"]) == 512 and int(skipped["step"]) == 2

with net_to_sample(step) as net:
    assert net is step.net
    for name, weight in zip(step.names, step.weights):
        assert np.array_equal(weight.asnumpy(), skipped["ema." + name].astype(weight.asnumpy().dtype)), name
assert same(now, weights(step)), "sampling changes the weights"

other, call_other = build(small(halves, depth=4, seed=5), small(halves, depth=4, seed=6), accumulation=2, **options)
load_state(other, {name: values.copy() for name, values in skipped.items()}, "a state")
for seed in range(4, 8):
    assert float(call(*batch(seed=seed))) == float(call_other(*batch(seed=seed)))
one, two = state_of(step) | weights(step), state_of(other) | weights(other)
differing = [name for name in one if not np.array_equal(one[name], two[name], equal_nan=True)]
assert not differing, differing
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_step_is_a_few_launches_a_buffer_and_one_a_weight(tmp_path):
    program, trace = tmp_path / "program.py", tmp_path / "trace.jsonl"
    program.write_text(PROGRAM)
    environment = standin.environment(trace=trace)
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests:{environment['PYTHONPATH']}"
    command = [sys.executable, str(program), str(trace)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["buffers"] <= 12 < found["weights"] == 50
    # Norm, unscaling, AdamW, EMA in two, zeros: 8 launches a buffer; one copy a weight; a few for the norm and numbers.
    assert found["launches"] <= 8 * found["buffers"] + found["weights"] + 12, found
