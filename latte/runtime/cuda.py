"""MindSpore's GPU plugin and the CUDA libraries that it needs, found where pip puts them.

By itself MindSpore loads the plugin only while it is imported, if CUDA_HOME has an nvcc and LD_LIBRARY_PATH the
libraries; PyPI's packages have no nvcc, and both variables must be set before Python starts (scripts/gpu_env.sh does).
But a library that is loaded already is found by its name, and the plugin registers itself whenever it is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import mindspore as ms

DRIVER = "libcuda.so.1"
OLDEST_DRIVER = 11000  # as cuDriverGetVersion says it: with that of CUDA 11.0 all of CUDA 11 runs
PLUGIN = Path(ms.__file__).parent / "lib" / "plugin" / "libmindspore_gpu.so.11.6"
LIBRARIES = {  # under the folder nvidia, each after those that it needs, and the package of requirements-gpu.txt
    "cuda_runtime/lib/libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "cublas/lib/libcublas.so.11": "nvidia-cublas-cu11",
    "cufft/lib/libcufft.so.10": "nvidia-cufft-cu11",
    "curand/lib/libcurand.so.10": "nvidia-curand-cu11",
    "cusparse/lib/libcusparse.so.11": "nvidia-cusparse-cu11",
    "cusolver/lib/libcusolver.so.11": "nvidia-cusolver-cu11",
    "cuda_nvrtc/lib/libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "cudnn/lib/libcudnn.so.8": "nvidia-cudnn-cu11",
    "cudnn/lib/libcudnn_cnn_train.so.8": "nvidia-cudnn-cu11",  # brings the convolutions of inference with it
}


@functools.cache
def load() -> str | None:
    """Load driver, libraries and plugin, so that MindSpore has GPUs; return None, or what is missing and its remedy."""
    if reason := driver_problem() or next(filter(None, map(package_problem, LIBRARIES)), None):
        return reason
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", "4000000000")  # as MindSpore does: kernels compiled for a newer card
    try:
        ctypes.CDLL(str(PLUGIN))
    except OSError as error:
        return f"MindSpore's GPU plugin cannot be loaded ({error})"
    return None


def driver_problem() -> str | None:
    """Return None if NVIDIA's driver runs CUDA 11 on a card, or what is wrong with it."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        return f"NVIDIA's driver is missing ({str(error).split(': ')[0]}); install version 450.80 or later"
    code, version, cards = driver.cuInit(0), ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    if code != 0:
        return f"NVIDIA's driver does not start (cuInit returns {code}); does nvidia-smi list a card?"
    if version.value < OLDEST_DRIVER:
        has = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        return f"NVIDIA's driver knows only {has}, and CUDA 11 is needed; install version 450.80 or later"
    driver.cuDeviceGetCount(ctypes.byref(cards))
    return None if cards.value else "NVIDIA's driver sees no card; is CUDA_VISIBLE_DEVICES set?"


def package_problem(library: str) -> str | None:
    """Load one of LIBRARIES; return None, or why that fails and the remedy."""
    found = importlib.util.find_spec("nvidia")  # the folder that all these packages share
    folders = found.submodule_search_locations if found else None
    inside = [path for folder in folders or [] if (path := Path(folder) / library).exists()]
    try:
        ctypes.CDLL(str(inside[0]) if inside else Path(library).name)  # or where the system has it
    except OSError as error:
        reason = str(error).split(": cannot open")[0]  # the name of what is not there
        return f"{LIBRARIES[library]} is missing or broken ({reason}); `pip install -r requirements-gpu.txt`"
    return None
