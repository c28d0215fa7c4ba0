"""Every operation of the networks and of a training step has a GPU kernel in MindSpore: on pretended CUDA, no card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import pretend_cuda
from support.golden_values import ROOT

from latte.runtime import cuda, device

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("nm")), reason="needs gcc and nm"),
    pytest.mark.skipif(not cuda.PLUGIN.exists(), reason="this MindSpore has no GPU plugin"),
    pytest.mark.skipif(Path(device.DEVICE_FILES["GPU"]).exists(), reason="there is a card; see test_accelerators.py"),
]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return pretend_cuda.build(tmp_path_factory.mktemp("cuda"))


def run(card, *words):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", **card}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.long), "fp16"])  # norms in fp16 are float32
def test_networks_and_training(dtype, card, tmp_path):
    done = run(card, "tests/support/on_device.py", "GPU", dtype, tmp_path / "results.npz")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])) == 9


def test_an_operation_without_a_kernel_is_an_error(card):
    """bfloat16 has none, which is why it is refused."""
    code = "import mindspore as ms; from latte import ops; from latte.runtime import device; "
    code += "device.init_device('GPU'); "
    done = run(card, "-c", code + "x = ms.ops.ones((4, 4), ms.bfloat16); print(ops.linear(x, x))")
    assert done.returncode != 0 and "bfloat16" in done.stderr.lower(), done.stdout + done.stderr[-2000:]


def test_the_doctor_sees_that_the_card_computes_nothing(card):
    done = run(card, "tools/doctor.py", "--device_target", "GPU")
    assert done.returncode == 1 and "GPU computes wrongly" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "ok       MindSpore's plugin, loaded with all its libraries" in done.stdout
