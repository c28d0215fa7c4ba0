"""Device choice and arithmetic: what is asked for is computed, or refused with a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest
from support.golden_values import ROOT

from latte.errors import UserError
from latte.runtime import device, graphs, ranks

PROGRAM = """
import mindspore as ms, numpy as np
from support.golden_values import error, recorded, tiny
from latte.runtime import device, graphs
device.init_device("CPU")
data = recorded("latte_uncond")
print("error", error(tiny(dtype={dtype!r})(ms.Tensor(data["x"]), ms.Tensor(data["t"])), data["ema_out"]))
tiny(dtype={second!r})
"""


def run_program(dtype, second, **environment):
    code = PROGRAM.format(dtype=dtype, second=second)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "ONEDNN_VERBOSE": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, other", [("bf16", "fp32"), ("fp32", "bf16")])
def test_bf16_on_cpu_multiplies_in_bfloat16_and_cannot_be_changed_midway(dtype, other):
    """oneDNN itself says which arithmetic each of its products may use."""
    done = run_program(dtype, other)
    products = [line for line in done.stdout.splitlines() if "exec,cpu,matmul" in line]
    (deviation,) = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("error"))
    assert len(products) > 10 and deviation <= (3e-2 if dtype == "bf16" else 1e-5)
    assert all(("fpmath:bf16" in line) == (dtype == "bf16") for line in products)
    if dtype == "bf16":  # what is said is what was computed
        assert ("multiplies matrices in float32" in done.stderr) == (deviation < 1e-4)
    assert done.returncode == 1 and "UserError" in done.stderr and "start a new process" in done.stderr


@pytest.fixture
def bf16_may_be_chosen(monkeypatch):
    """The tests' own process has settled for float32."""
    monkeypatch.setattr(device, "choose_cpu_products", lambda name: None)


@pytest.mark.parametrize("measured", [True, False])
def test_bf16_on_cpu_warns_once_if_products_are_in_float32(measured, bf16_may_be_chosen, monkeypatch, caplog):
    monkeypatch.setattr(device, "multiplies_in_bfloat16", lambda: measured)
    assert {device.compute_dtype("bf16") for _ in range(2)} == {ms.float32}
    assert [("AMX" in line, "in float32" in line) for line in caplog.messages] == [(True, True)] * (not measured)
    assert device.compute_dtype("fp32") == ms.float32 and len(caplog.messages) == (not measured)


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_a_product_tells_what_it_was_computed_in(dtype, bf16_may_be_chosen, monkeypatch, caplog):
    """Whatever units the CPU says it has: AVX-512 BF16 alone is not enough for oneDNN."""
    true_product = ms.ops.matmul

    def product(*factors):
        return true_product(*(each.astype(dtype).astype(ms.float32) for each in factors))

    monkeypatch.setattr(device.ms.ops, "matmul", product)
    monkeypatch.setattr(Path, "read_text", lambda *_: "avx512_bf16 avx512f" if dtype == ms.float32 else "avx2")
    device.multiplies_in_bfloat16.cache_clear()
    try:
        device.compute_dtype("bf16")
        assert device.multiplies_in_bfloat16() == (dtype == ms.bfloat16)
    finally:
        device.multiplies_in_bfloat16.cache_clear()
    assert ("in float32" in caplog.text) == (dtype == ms.float32)


def test_an_absent_device_is_refused():
    absent = next(target for target in device.TARGETS if not ms.hal.is_available(target))
    with pytest.raises(UserError, match="--device_target"):
        device.init_device(absent)


def test_the_library_chooses_the_best_device_once_unless_the_user_has_chosen(monkeypatch, caplog):
    monkeypatch.setattr(device, "_current", None)
    monkeypatch.setattr(device, "best_target", lambda: "CPU")
    monkeypatch.setattr(device, "_is_set", lambda: True)
    assert device.choose_device().target == "CPU" and not caplog.messages
    monkeypatch.setattr(device, "_current", None)
    monkeypatch.setattr(device, "_is_set", lambda: False)
    assert [device.choose_device(target).target for target in (None, "CPU", None)] == ["CPU"] * 3
    assert [message for message in caplog.messages if message.startswith("computing on CPU; device_target")] != []
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match="device_target is GPU, but this process computes on CPU"):
        device.choose_device("GPU")


def test_the_first_call_of_a_graph_is_said_to_compile(caplog):
    caplog.set_level("INFO", "latte")
    called = set()
    for key in ("a", "a", "b"):
        with graphs.first_call("the network", called, key):
            pass
    assert [message.split()[0] for message in caplog.messages] == ["compiling", "compiled"] * 2
    with device.use("Ascend"), graphs.first_call("the network", called, "c"):
        assert caplog.messages[-1] == "compiling the network, which takes minutes the first time"


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
    with device.use():
        here = device.init_device("CPU", use_parallel=True)
    assert (here.rank, here.world_size) == expected and ranks.read_ranks()[2] == 1


def test_parallel_without_a_launcher_is_refused():
    with pytest.raises(UserError, match="mpirun"):
        device.init_device("CPU", use_parallel=True)


def test_capabilities_of_a_pretended_device():
    assert device.current().compile_scope == "block" and device.current().channels_last
    with device.use("Ascend") as ascend:
        assert ascend.compile_scope == "step" and ascend.fused_attention == "train" and ascend.batches_videos
        assert device.compute_dtype("bf16") == ms.bfloat16
    with device.use("GPU"), pytest.raises(UserError, match="fp16"):
        device.compute_dtype("bf16")
    with device.use():
        assert device.init_device("CPU", mode=1).compile_scope == "none"


def test_a_pretended_device_is_the_one_in_use_but_for_the_fields_given_and_ends_with_its_block():
    before = device.current()
    with device.use(rank=1, world_size=2), device.use("GPU", graph_mode=False) as here:
        assert here is device.current() and here == device.Device("GPU", 1, 2, graph_mode=False)
        assert device.init_device("CPU").rank == 0
    with pytest.raises(ZeroDivisionError), device.use("Ascend"):
        raise ZeroDivisionError
    assert device.current() == before
    with pytest.raises(TypeError, match="colour"), device.use(colour="red"):
        pass
    assert device.current() == before


def test_the_fused_kernel_is_not_given_float32(caplog):
    with device.use("Ascend"):
        assert device.use_flash_attention(True, ms.bfloat16) and not caplog.messages
        assert not device.use_flash_attention(True, ms.float32) and "fp16 and bf16 only" in caplog.text
        assert not device.use_flash_attention(False, ms.float16)


@pytest.mark.parametrize(
    "chip, use",
    [
        *[(chip, "train") for chip in (None, "Ascend910B1", "Ascend910B2C", "Ascend910B3", "Ascend910_9391")],
        *[(chip, "infer") for chip in ("Ascend910B4", "Ascend910B4-1")],
        *[(chip, None) for chip in ("Ascend910", "Ascend910A", "Ascend910B", "Ascend910ProB", "Ascend310P3")],
    ],
)
def test_the_cards_name_says_what_its_fused_attention_is_for(chip, use, caplog):
    caplog.set_level("INFO", "latte")
    with device.use("Ascend", chip=chip) as here:
        assert here.fused_attention == use and here.multiplies_int8 == (use is not None)
        for _ in range(2):
            assert device.use_flash_attention(True, ms.float16) == (use is not None)
        assert device.use_flash_attention(True, ms.float16, training=True) == (use == "train")
    kernel = {"train": "FlashAttentionScore", "infer": "PromptFlashAttention"}.get(use)
    first = f"{chip or 'Ascend'} attends by {kernel}" if use else f"does not exist on {chip}"
    assert first in caplog.messages[0] and len(caplog.messages) == 1 + (use == "infer")
    assert all("has no gradient on" in message for message in caplog.messages[1:])


def test_the_autoencoder_computes_in_halves_where_the_device_does():
    assert device.autoencoder_dtype("fp32") == ms.float32
    with pytest.raises(UserError, match="vae_dtype bf16 is for accelerators.*use --vae_dtype fp32"):
        device.autoencoder_dtype("bf16")
    with device.use("Ascend", chip="Ascend910B2"):
        assert device.autoencoder_dtype("bf16") == ms.bfloat16
    with device.use("GPU"):
        assert device.autoencoder_dtype("fp16") == ms.float16
    with device.use("Ascend", chip="Ascend910A"), pytest.raises(UserError, match="no kernels on Ascend910A; use"):
        device.autoencoder_dtype("bf16")


def test_the_first_cards_have_no_bfloat16():
    with device.use("Ascend", chip="Ascend910A") as here:
        assert here.tensor_dtypes == ("fp32", "fp16")
        with pytest.raises(UserError, match="not exist on Ascend910A"):
            device.compute_dtype("bf16")
    with device.use("Ascend", chip="Ascend910B4") as here:
        assert "bf16" in here.tensor_dtypes


@pytest.mark.parametrize(
    "target, level, said", [("GPU", "O2", "O1"), ("GPU", "O1", ""), ("CPU", "O1", "changes nothing")]
)
def test_jit_levels(target, level, said, caplog):
    with device.use(target, jit_level=level):
        assert graphs.compile_step(device.TARGETS.index) is not None
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_whole_graph_level_is_ascends_back_end(monkeypatch):
    asked = {}
    monkeypatch.setattr(device.ms, "jit", lambda step, **options: asked.update(options) or step)
    with device.use("Ascend", jit_level="O2"):
        graphs.compile_step(device.TARGETS.index)
    assert asked == {"backend": "GE"}


def test_the_first_cards_compile_without_it(monkeypatch):
    asked = {}
    monkeypatch.setattr(device.ms, "jit", lambda step, **options: asked.update(options) or step)
    with device.use("Ascend", chip="Ascend910A"):
        graphs.compile_step(device.TARGETS.index)
    assert asked == {"backend": "ms_backend"}
