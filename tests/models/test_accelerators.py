"""Networks, a training step and both programs on a GPU or an Ascend device beside the CPU.

They run where there is such a device and are skipped elsewhere. LATTE_TEST_TARGET=CPU runs the tests for GPUs on a CPU,
which shows that the tests themselves work.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.golden_values import ROOT, error
from support.runs import SAMPLES, frames, losses, run, words, write_clips

GPU = os.environ.get("LATTE_TEST_TARGET", "GPU")
BOUNDS = {"fp32": 1e-3, "fp16": 4e-2, "bf16": 1e-1}  # relative to the largest number of the CPU's float32
RESULTS = (
    "latte uncond",
    "latte class",
    "t2v",
    "t5",
    "vae encode",
    "vae decode",
    "temporal decode",
    "loss",
    "gradients",
)
TARGETS = [pytest.param(GPU, marks=pytest.mark.gpu), pytest.param("Ascend", marks=pytest.mark.ascend)]
DTYPES = [pytest.param(GPU, dtype, marks=pytest.mark.gpu) for dtype in ("fp32", "fp16")]
DTYPES += [pytest.param("Ascend", dtype, marks=pytest.mark.ascend) for dtype in BOUNDS]


@pytest.fixture(scope="session")
def computed(tmp_path_factory):
    """Return a function (target, dtype) -> results; each is a process, because one cannot change its device."""
    folder = tmp_path_factory.mktemp("results")

    @functools.cache
    def compute(target, dtype):
        path = folder / f"{target}-{dtype}.npz"
        run(
            "tests/support/on_device.py", target, dtype, path, NVIDIA_TF32_OVERRIDE="0"
        )  # real float32 in float32's test
        with np.load(path) as file:
            return dict(file)

    return compute


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("target, dtype", DTYPES)
def test_it_computes_what_the_cpu_does(target, dtype, name, computed):
    expected = computed("CPU", "fp32")[name]
    assert np.abs(expected).max() > 0 and error(computed(target, dtype)[name], expected) <= BOUNDS[dtype]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", SAMPLES.values(), ids=SAMPLES)
def test_sample(options, target, tmp_path):
    steps = ("--sampling_steps", 4, "--sampler", "ddim", "--guidance_scale", 2, "--output_format", "png")
    for name in dict.fromkeys(("CPU", target)):
        run("sample.py", *options, *steps, "--device_target", name, "--output_path", tmp_path / name)
    run("sample.py", *options, *steps, "--device_target", target, "--dtype", "fp16", "--output_path", tmp_path / "fp16")
    expected = frames(tmp_path / "CPU")
    assert expected.std() > 1
    assert np.abs(frames(tmp_path / target) - expected).mean() < 1  # of 255 shades
    assert np.abs(frames(tmp_path / "fp16") - expected).mean() < 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("target", TARGETS)
def test_train(target, data, tmp_path):
    """A run with a sample and checkpoints; the losses are the CPU's, in fp16 nearly."""
    for name, dtype in dict.fromkeys([("CPU", "fp32"), (target, "fp32"), (target, "fp16")]):
        given = {"data_folder": data, "device_target": name, "dtype": dtype, "output_path": tmp_path / (name + dtype)}
        run("train.py", *words(**given))
        assert list((tmp_path / (name + dtype)).glob("*/ckpt/ema-00000004.ckpt"))
    expected = losses(tmp_path / "CPUfp32")
    assert len(expected) == 2
    assert losses(tmp_path / f"{target}fp32") == pytest.approx(expected, rel=5e-3)
    assert losses(tmp_path / f"{target}fp16") == pytest.approx(expected, rel=2e-2)


def cards(target):
    """Return how many devices of a kind there are; each core could be one of CPU."""
    names = {"GPU": "nvidia", "Ascend": "davinci"}
    return len(list(Path("/dev").glob(f"{names[target]}[0-9]*"))) if target in names else 2


@pytest.mark.parametrize("target", TARGETS)
def test_two_ranks_are_one_with_twice_the_batch(target, data, tmp_path):
    if cards(target) < 2:
        pytest.skip("there is one device only")
    options = {"data_folder": data, "device_target": target, "sample_videos": 0}
    run("train.py", *words(**options, output_path=tmp_path / "one"))
    config = tmp_path / "empty.yaml"
    config.write_text("{}\n")
    given = words(**options | {"train_batch_size": 2}, output_path=tmp_path / "two")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # msrun is beside Python
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "run_msrun.sh", config, "2", *given],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
            "PATH": path,
            "PYTHON": sys.executable,
            "LOG_DIR": str(tmp_path / "l"),
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=5e-3)
