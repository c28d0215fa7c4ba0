"""Device choice and arithmetic: what is asked for is computed, or refused with a sentence."""

import os
import subprocess
import sys

import mindspore as ms
import pytest
from helpers import ROOT

from latte import device
from latte.errors import UserError

PROGRAM = """
import mindspore as ms, numpy as np
from latte import create_model, device
device.init_device("CPU")
net = create_model("Latte-S/2", dtype={dtype!r}, hidden_size=64, depth=2, num_heads=2, input_size=8, num_frames=2)
out = net(ms.Tensor(np.ones((1, 2, 4, 8, 8), np.float32)), ms.Tensor([5], ms.int32))
print("dtype", out.dtype)
create_model("Latte-S/2", dtype={second!r}, hidden_size=64, depth=2, num_heads=2)
"""


def run_program(dtype, second, **environment):
    code = PROGRAM.format(dtype=dtype, second=second)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ONEDNN_VERBOSE": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("dtype, other", [("bf16", "fp32"), ("fp32", "bf16")])
def test_bf16_on_cpu_multiplies_in_bfloat16_and_cannot_be_changed_midway(dtype, other):
    """oneDNN itself says which arithmetic each of its products may use."""
    done = run_program(dtype, other)
    products = [line for line in done.stdout.splitlines() if "exec,cpu,matmul" in line]
    assert len(products) > 10 and "dtype Float32" in done.stdout
    assert all(("fpmath:bf16" in line) == (dtype == "bf16") for line in products)
    assert done.returncode == 1 and "UserError" in done.stderr and "start a new process" in done.stderr


def test_an_absent_device_is_refused():
    absent = next(target for target in device.TARGETS if not ms.hal.is_available(target))
    with pytest.raises(UserError, match="--device_target"):
        device.init_device(absent)


def test_the_best_target_is_one_that_is_there():
    assert ms.hal.is_available(device.best_target())


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (3, 8)),
        ({"MS_NODE_ID": "1", "MS_WORKER_NUM": "2"}, (1, 2)),
        ({"RANK_ID": "5", "RANK_SIZE": "16", "DEVICE_ID": "1"}, (5, 16)),
    ],
)
def test_ranks_come_from_the_launcher(environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "_current", None)
    here = device.init_device("CPU", use_parallel=True)
    assert (here.rank, here.world_size) == expected
    device.init_device("CPU")


def test_parallel_without_a_launcher_is_refused():
    with pytest.raises(UserError, match="mpirun"):
        device.init_device("CPU", use_parallel=True)


def test_capabilities_of_an_assumed_device():
    assert device.current().compile_scope == "block" and device.current().channels_last
    with device.assume("Ascend") as ascend:
        assert ascend.compile_scope == "step" and ascend.flash_attention and ascend.batches_videos
        assert device.compute_dtype("bf16") == ms.bfloat16
    with device.assume("GPU"), pytest.raises(UserError, match="fp16"):
        device.compute_dtype("bf16")
    assert device.init_device("CPU", mode=1).compile_scope == "none"
    device.init_device("CPU")


def test_the_fused_kernel_is_not_given_float32(caplog):
    device.say_once.cache_clear()
    with device.assume("Ascend"):
        assert device.use_flash_attention(True, ms.bfloat16) and not caplog.messages
        assert not device.use_flash_attention(True, ms.float32) and "fp16 and bf16 only" in caplog.text
        assert not device.use_flash_attention(False, ms.float16)
