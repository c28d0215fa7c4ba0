"""What tiny networks compute on MindSpore's Ascend back end over the stand-in, beside float32 on the CPU."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from ascend import standin
from support.golden_values import ROOT, error

FLOAT32 = {
    "latte": ("latte uncond", "latte class"),
    "text_to_video": ("t2v", "t5"),
    "autoencoder": ("vae encode", "vae decode", "temporal decode"),
    "training": ("loss", "gradients"),
    "int8": ("latte int8",),
    "sampling": ("guided sampling",),
    "ten_steps": ("ten losses", "ten steps", "ten steps, EMA"),
}
HALF = {"latte": FLOAT32["latte"], "text_to_video": FLOAT32["text_to_video"], "flash": ("latte flash",)}
CASES = [(part, name) for part, names in FLOAT32.items() for name in names]


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """Return a function (target, dtype, part) -> results; each is a process, as one cannot change its device."""
    folder = tmp_path_factory.mktemp("numbers")

    @functools.cache
    def compute(target, dtype, part):
        file = folder / f"{target}-{dtype}-{part}.npz"
        environment = standin.environment() if target == "Ascend" else dict(os.environ)
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests:{environment.get('PYTHONPATH', '')}"
        command = [sys.executable, "tests/support/on_device.py", target, dtype, file, part]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        with np.load(file) as results:
            return dict(results)

    return compute


@pytest.mark.parametrize(
    "part, name", [pytest.param(*case, marks=[] if case[0] == "latte" else pytest.mark.slow) for case in CASES]
)
def test_float32_is_the_cpus(part, name, computed):
    expected = computed("CPU", "fp32", part)[name]
    assert np.abs(expected).max() > 0 and error(computed("Ascend", "fp32", part)[name], expected) <= 1e-5
