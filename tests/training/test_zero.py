"""Ranks that share by ZeRO what they keep train as one does, and go on from each other's states; on CPU for real."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.golden_values import ROOT
from support.zero_steps import steps

pytestmark = pytest.mark.slow
LONG = pytest.mark.long  # by hand, and before a release: `pytest tests/training -m slow`


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the program on so many ranks, once for the same options; return what it has saved, and the file."""
    folder, made = tmp_path_factory.mktemp("zero"), {}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun is beside Python
    environment = os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}

    def compute(ranks, stage, sequence=1, accumulation=1, model="latte", start=""):
        key = ranks, stage, sequence, accumulation, model, str(start)
        if key not in made:
            made[key] = folder / f"{len(made)}.npz"
            words = [model, stage, sequence, accumulation, made[key], *([start] if start else [])]
            program = [sys.executable, "tests/support/zero_steps.py", "CPU", *words]
            command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", ranks, *program]
            done = subprocess.run(
                [*map(str, command)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=580,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        with np.load(made[key]) as found:
            return dict(found), made[key]

    return compute


@pytest.fixture(scope="module")
def one():
    """What one rank computes, in this process, by the number of batches that it accumulates and the network."""
    made = {}

    def compute(*key):
        if key not in made:
            made[key] = steps(0, *key)
        return made[key]

    return compute


def deviations(found, expected):
    """Return the largest deviation of each kind of values after each step, relative to the largest of them."""
    largest: dict[str, float] = {}
    farthest: dict[str, float] = {}
    for name, values in found.items():
        if "." in name:  # no counter
            kind = name.split(".")[0] if name[0].isdecimal() else name.split()[0]
            farthest[kind] = max(farthest.get(kind, 0), float(np.abs(values - expected[name]).max()))
            largest[kind] = max(largest.get(kind, 0), float(np.abs(expected[name]).max()))
    return {kind: farthest[kind] / largest[kind] for kind in farthest}


@pytest.mark.parametrize(
    "ranks, stage, sequence, accumulation, model",
    [
        (2, 2, 1, 1, "latte"),
        (2, 3, 1, 1, "latte"),
        (2, "2+offload", 1, 1, "latte"),
        (4, 2, 1, 1, "latte"),
        (4, 3, 1, 1, "latte"),
        (2, 3, 1, 1, "t2v"),
        pytest.param(2, "1+offload", 1, 2, "latte", marks=LONG),
        pytest.param(2, 1, 1, 1, "latte", marks=LONG),
        pytest.param(2, 2, 1, 2, "latte", marks=LONG),
        pytest.param(2, 3, 1, 2, "latte", marks=LONG),
        pytest.param(2, 3, 1, 1, "lora", marks=LONG),
        pytest.param(4, 2, 2, 1, "latte", marks=LONG),
        pytest.param(4, 3, 2, 1, "latte", marks=LONG),
        pytest.param(4, 3, 1, 1, "t2v", marks=LONG),
    ],
)
def test_ten_steps_are_those_of_one_rank(ranks, stage, sequence, accumulation, model, run, one):
    (found, _), expected = run(ranks, stage, sequence, accumulation, model), one(accumulation, model)
    if stage == 3:  # no rank has these whole
        expected = {name: values for name, values in expected.items() if not name.startswith("sampled ")}
    differing = deviations(found, expected)
    print(ranks, stage, sequence, accumulation, model, differing)
    # The first moments of the first step are its gradients, times 1 - beta.
    assert set(found) == set(expected) and {"1 adam_m", "10 net", "10 ema", "10 adam_v", "output"} <= set(differing)
    assert max(differing.values()) <= 1e-5
    for name in expected:
        if name.startswith("sampled "):
            assert np.array_equal(found[name], found[name.replace("sampled ", "10 ema.")])


OTHERS = [(4, 2, 2), (4, 3, 2), (2, "2+offload", "2+offload")]


@pytest.mark.parametrize(
    "ranks, stage, first",
    [(2, 2, 2), (2, 3, 3), *(pytest.param(*each, marks=LONG) for each in OTHERS)],
)
def test_ranks_go_on_from_a_state_of_two(ranks, stage, first, run):
    """Bit for bit on as many ranks, closely on more, and from a state of another stage."""
    whole, file = run(2, first)
    found, _ = run(ranks, stage, start=file)
    if (ranks, stage) == (2, first):
        assert all(np.array_equal(values, whole[name]) for name, values in found.items())
    else:
        assert max(deviations(found, whole).values()) <= 1e-5
