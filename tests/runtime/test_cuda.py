"""What is said when something of a GPU is missing, with stand-ins for NVIDIA's libraries; none is loaded."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden_values import ROOT

from latte.errors import UserError
from latte.runtime import cuda, device


class Driver:
    """A driver that starts, knows a version of CUDA and sees cards."""

    def __init__(self, starts=0, version=12040, cards=1):
        self.cuInit = lambda flags: starts
        self.cuDriverGetVersion = lambda pointer: setattr(pointer._obj, "value", version)
        self.cuDeviceGetCount = lambda pointer: setattr(pointer._obj, "value", cards)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says what ctypes finds: a driver or None, and the names of libraries that are missing."""

    def pretend(driver, *missing):
        loaded = []

        def load(name):
            file = Path(name).name
            if file in missing or (file == cuda.DRIVER and driver is None):
                raise OSError(f"{file}: cannot open shared object file")
            loaded.append(file)
            return driver if file == cuda.DRIVER else object()

        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.delenv("CUDA_CACHE_MAXSIZE", raising=False)
        return loaded

    cuda.load.cache_clear()
    yield pretend
    cuda.load.cache_clear()


@pytest.mark.parametrize(
    "driver, missing, said",
    [
        (None, (), "driver is missing (libcuda.so.1"),
        (Driver(starts=999), (), "cuInit returns 999"),
        (Driver(version=10020), (), "knows only CUDA 10.2"),
        (Driver(cards=0), (), "sees no card"),
        (Driver(), ("libcudnn.so.8",), "nvidia-cudnn-cu11 is missing or broken (libcudnn.so.8)"),
        (Driver(), (cuda.PLUGIN.name,), "plugin cannot be loaded"),
    ],
)
def test_what_is_missing_is_said(driver, missing, said, machine):
    loaded = machine(driver, *missing)
    assert said in cuda.load() and cuda.PLUGIN.name not in loaded


def test_libraries_come_before_the_plugin(machine):
    loaded = machine(Driver())
    assert cuda.load() is None
    assert loaded == [cuda.DRIVER, *(Path(library).name for library in cuda.LIBRARIES), cuda.PLUGIN.name]
    assert os.environ["CUDA_CACHE_MAXSIZE"] == "4000000000"


@pytest.mark.skipif(Path(device.DEVICE_FILES["GPU"]).exists(), reason="this machine has a GPU")
def test_the_reason_and_the_remedy_reach_the_user(machine):
    machine(Driver(), "libcublas.so.11")
    with pytest.raises(UserError, match=r"libcublas.so.11.*pip install -r requirements-gpu.txt.*tools/doctor.py"):
        device.init_device("GPU")


def test_every_library_has_its_pinned_package():
    assert "-e .[gpu]\n" in (ROOT / "requirements-gpu.txt").read_text()
    extra = (ROOT / "pyproject.toml").read_text().partition("\ngpu = [\n")[2].partition("]")[0]
    pinned = dict(re.findall(r'"(.*)==(.*)"', extra))
    assert set(pinned) == set(cuda.LIBRARIES.values()) and pinned["nvidia-cudnn-cu11"].startswith("8.")


def test_environment_for_other_programs(tmp_path):
    """MindSpore asks $CUDA_HOME/bin/nvcc for its version, and finds libraries on LD_LIBRARY_PATH."""
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    code = f"source {ROOT}/scripts/gpu_env.sh; echo $LD_LIBRARY_PATH; $CUDA_HOME/bin/nvcc --version"
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": "/before"}
    done = subprocess.run(["bash", "-c", code], env=environment, capture_output=True, text=True, check=False)
    path, version = done.stdout.splitlines()
    assert str(folder) in path.split(":") and path.endswith(":/before") and "release 11." in version
