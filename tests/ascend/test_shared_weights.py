"""Stage 3 of ZeRO on MindSpore's Ascend back end over the stand-in: blocks gather their weights from two ranks."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from ascend import kernels, standin
from support.golden_values import ROOT

pytestmark = pytest.mark.slow
if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

START = 'STANDIN_TRACE="$0.${OMPI_COMM_WORLD_RANK:-0}" exec "$@" 2> "$0.${OMPI_COMM_WORLD_RANK:-0}.log"'
BLOCKS = 4
PRODUCTS = {"aclnnMm", "aclnnAddmm", "aclnnMatmul", "aclnnBatchMatMul"}
LEAST = 5  # products in a pass of a block
PROGRAM = """
import json, os, sys
from pathlib import Path
import mindspore as ms, numpy as np
from latte.runtime import device
from latte.training.state import net_to_sample, state_of
from support.train_step import batch, build, small
from support.zero_steps import inputs, networks

here = device.init_device("Ascend", use_parallel=True, connect=True)
trace = Path(os.environ["STANDIN_TRACE"])


def launched(function, *arguments):
    ms.runtime.synchronize()
    before = len(trace.read_text().splitlines())
    result = function(*arguments)
    ms.runtime.synchronize()
    lines = [json.loads(line) for line in trace.read_text().splitlines()[before:]]
    return result, [[line["op"], line["stream"], line.get("event")] for line in lines]


def given(seed):
    return [ms.Tensor(each.asnumpy()[here.rank : here.rank + 1]) for each in batch(2, 3, seed)]


found, outputs = {}, {}
for stage in (2, 3):
    nets = [small(ms.float16, depth=4) for _ in range(2)]
    for block in nets[0].blocks:
        block.recompute()
    options = dict(loss_scale=1024.0, loss_scale_window=100, max_grad_norm=0.5, weight_decay=0.1, ema_decay=0.9)
    step, call = build(*nets, rate=1e-4, zero_stage=stage, **options)
    call(*given(0))
    results, in_graph = launched(call.gradients, *given(1))
    loss, after = launched(call.finish, results)
    for seed in range(2, 5):
        call(*given(seed))
    state = state_of(step)
    x, _, t, *_ = given(0)
    with net_to_sample(step) as net, device.alone():
        outputs[stage] = net(x[:, :, :4].copy(), t).asnumpy()
    found[stage] = {"parts": sum(step.shared) - step.gathered, "gathered": step.gathered}
    found[stage] |= {"in_graph": in_graph, "after": after}
    found[stage]["state"] = {name: values.tolist() for name, values in state.items()}
assert int(state["skipped"]) == 0 and int(state["step"]) == 5
kinds = ("net.", "ema.", "adam_m.", "adam_v.")
one, other = (found[stage].pop("state") for stage in (2, 3))
assert set(one) == set(other)
differing = {kind: 0.0 for kind in kinds}
for kind in kinds:
    names = [name for name in one if name.startswith(kind)]
    most = max(np.abs(one[name]).max() for name in names)
    differing[kind] = max(float(np.abs(np.array(one[name]) - other[name]).max()) for name in names) / most
differing["output"] = float(np.abs(outputs[2] - outputs[3]).max() / np.abs(outputs[2]).max())
found["differing"] = differing

nets = networks("t2v", ms.float16)
given = [ms.Tensor(each.asnumpy()[here.rank : here.rank + 1]) for each in inputs("t2v", 0)]
_, call = build(*nets, zero_stage=3, loss_scale=1024.0)
call(*given)
_, found["t2v"] = launched(call.gradients, *given)
Path(f"{trace}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What rank 0 found, and the kernels that it chose."""
    folder = tmp_path_factory.mktemp("shared")
    program, trace = folder / "program.py", folder / "trace"
    program.write_text(PROGRAM)
    environment = standin.environment() | {"GLOG_v": "1", "STANDIN_EVENTS": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # mpirun is beside Python
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment["PYTHONPATH"]])
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "bash", "-c", START, trace]
    command = [*launcher, sys.executable, program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    log = Path(f"{trace}.0.log").read_text(errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + log[-3000:]
    chosen = {(match[1], match[2]) for match in kernels.SEEN.finditer(log)}
    chosen |= {(match[1], match[2]) for match in kernels.ON_LINE.finditer(log)}
    return json.loads(Path(f"{trace}.0.json").read_text()), chosen


def test_steps_are_those_of_stage_2(found):
    print(found[0]["differing"])
    assert max(found[0]["differing"].values()) <= 2e-3


def test_each_block_gathers_twice_and_sums_once(found):
    counts = Counter(op for op, *_ in found[0]["3"]["in_graph"])
    others = found[0]["3"]["parts"]  # buffers of weights that are no block's
    assert found[0]["3"]["gathered"] == BLOCKS
    assert counts["HcclAllGather"] == 2 * BLOCKS
    assert counts["HcclReduceScatter"] == BLOCKS + others
    assert Counter(op for op, *_ in found[0]["3"]["after"])["HcclAllGather"] == others


def exchanges(trace):
    """Return each exchange of a trace: operator, place of the launch, and of the first wait of what computes for it."""
    (own,) = {stream for op, stream, _ in trace if op == "HcclAllGather"}
    launched, recorded, waited = [], {}, {}
    for place, (op, stream, event) in enumerate(trace):
        if op.startswith("Hccl"):
            launched.append((op, place))
        elif op == "RecordEvent" and stream == own:
            recorded[event] = len(launched)
        elif op == "WaitEvent" and stream != own:
            for k in range(recorded.get(event, 0)):  # the exchanges before it are over too
                waited.setdefault(k, place)
    return [(op, place, waited[k]) for k, (op, place) in enumerate(launched)]


@pytest.mark.parametrize("network", ["3", "t2v"])
def test_exchanges_run_while_blocks_compute(network, found):
    trace = found[0][network]["in_graph"] if network == "3" else found[0][network]
    products = [place for place, (op, *_) in enumerate(trace) if op in PRODUCTS]

    def computed(start, stop):
        return sum(start < place < stop for place in products)

    gathered = [each[1:] for each in exchanges(trace) if each[0] == "HcclAllGather"]
    assert len(gathered) == 2 * BLOCKS
    for one_pass in (gathered[:BLOCKS], gathered[BLOCKS:]):
        for (_, begins), (launched, waited) in pairwise(one_pass):
            assert launched < begins < waited  # before this block computes, and only the next one waits for it
            assert computed(begins, waited) >= LEAST
        for (_, begins), (_, next_begins), (launched, _) in zip(one_pass, one_pass[1:], one_pass[2:], strict=False):
            # Only two rows at once: a third is gathered when the first block has computed.
            assert computed(begins, launched) == computed(begins, next_begins)
    summed = [each[1:] for each in exchanges(trace) if each[0] == "HcclReduceScatter"]
    for launched, waited in summed[: BLOCKS - 1]:
        assert computed(launched, waited) >= LEAST


def test_every_kernel_is_of_the_operator_library(found):
    assert not {op for op, kind in found[1] if kind not in kernels.GOOD}
