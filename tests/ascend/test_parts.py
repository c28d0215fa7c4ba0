"""Ranks that share the frames of videos, on MindSpore's Ascend back end over the stand-in, by HCCL's AllToAll."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ascend import kernels, standin
from support.golden_values import ROOT

pytestmark = pytest.mark.slow
if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

START = 'STANDIN_TRACE="$0.${OMPI_COMM_WORLD_RANK:-0}" exec "$@" 2> "$0.${OMPI_COMM_WORLD_RANK:-0}.log"'


def compute(folder, ranks, sequence, guidance, *parts):
    """Return what rank 0 has saved of a computation in float16, its launches, and the kernels that it chose."""
    file, trace = folder / "found.npz", folder / "trace"
    environment = standin.environment() | {"GLOG_v": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # mpirun is beside Python
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment["PYTHONPATH"]])
    program = [sys.executable, "tests/support/in_parts.py", "Ascend", "fp16", file, str(sequence), str(guidance)]
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, "bash", "-c", START, trace, *program, *parts]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    log = Path(f"{trace}.0.log").read_text(errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + log[-3000:]
    chosen = {(match[1], match[2]) for match in kernels.SEEN.finditer(log)}
    chosen |= {(match[1], match[2]) for match in kernels.ON_LINE.finditer(log)}
    with np.load(file) as found:
        return dict(found), standin.launches(Path(f"{trace}.0")), chosen


def farthest(found, expected):
    """Return the largest deviation relative to the largest element, over all results."""
    names = [name for name in expected if not name.endswith("sent")]
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in names)


def collectives(launches):
    return Counter({op: count for op, count in launches.items() if op.startswith("Hccl")})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return {part: compute(tmp_path_factory.mktemp(part), 1, 1, 1, part)[0] for part in ("forward", "training")}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_five_frames_by_all_to_all(ranks, one, tmp_path):
    """Two exchanges per block over frames, of which there are two; the outputs are gathered, those of images too."""
    found, launches, chosen = compute(tmp_path, ranks, ranks, 1, "forward")
    assert farthest(found, one["forward"]) <= 1e-3
    assert collectives(launches) == {"HcclAlltoAll": 4, "HcclAllGather": 2}
    assert not {op for op, kind in chosen if kind not in kernels.GOOD}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ten_training_steps_are_those_of_one_rank(ranks, one, tmp_path):
    """For the block over frames two exchanges forward and two back in each step; and a gathering of outputs."""
    found, launches, chosen = compute(tmp_path, ranks, ranks, 1, "training")
    assert farthest(found, one["training"]) <= 2e-3
    counts = collectives(launches)
    assert (counts["HcclAlltoAll"], counts["HcclAllGather"]) == (10 * 4, 10)
    assert not {op for op, kind in chosen if kind not in kernels.GOOD}
