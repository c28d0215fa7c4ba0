"""What this machine has of each device, what is missing and the command that repairs it, and a short test of one."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from latte.errors import first_line

OLDEST, MINDSPORE = "2.7.0", "2.10.0"  # what the tests were run with; the newer one as in requirements.txt
INSTALL, INSTALL_GPU = "pip install -r requirements.txt", "pip install -r requirements-gpu.txt"
INSTALL_ASCEND = "pip install -r requirements-ascend.txt"
CANN_HOMES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann")
DRIVER = "/usr/local/Ascend/driver/version.info"
# Python packages that CANN's installation guide asks for: the name to import, and that to install.
CANN_PACKAGES = {name: name for name in ("cffi", "decorator", "numpy", "psutil", "requests", "scipy", "sympy")}
CANN_PACKAGES |= {"absl": "absl-py", "attr": "attrs", "google.protobuf": "protobuf", "yaml": "pyyaml"}
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")  # in /proc/cpuinfo
BOUNDS = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 1e-1}  # relative to the largest element; GPUs may multiply in TF32
ATTEMPT, PATIENCE = 20, 300  # seconds that a program may take to say its version, and the test of a device


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: of which part, what it is about, how that is (ok, missing, failed or none), and the remedy."""

    part: str
    state: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"  {self.state:8} {self.what}" + (f"; fix: {self.mend}" if self.mend else "")


def software() -> list[Finding]:
    """Return the state of MindSpore, NumPy and the launchers, without importing them."""
    found, numpy = _version("mindspore"), _version("numpy")
    fits = found is not None and _numbers(OLDEST) <= _numbers(found) <= _numbers(MINDSPORE)
    old = numpy is not None and int(numpy.split(".")[0]) < 2
    needs = "" if old else ", but MindSpore is compiled against NumPy 1: with NumPy 2 every operation fails"
    lines = [
        _finding(
            "Software",
            fits,
            f"MindSpore {found or ''}" + ("" if fits else f", but {OLDEST} to {MINDSPORE} is needed"),
            INSTALL,
        ),
        _finding("Software", old, f"NumPy {numpy or ''}{needs}", INSTALL),
    ]
    for launcher in ("mpirun", "msrun"):
        path = shutil.which(launcher)
        what = f"{launcher}, which starts several processes{': ' + path if path else ''}"
        lines.append(_finding("Software", path, what, f"{INSTALL}, and activate that environment"))
    return lines


def ascend() -> list[Finding]:
    """Return the state of the driver, CANN, its Python packages, and the libraries of MindSpore's plugin."""
    from latte.runtime.device import DEVICE_FILES

    card = DEVICE_FILES["Ascend"]
    home = os.environ.get("ASCEND_HOME_PATH") or next(filter(_exists, CANN_HOMES), None)
    source = f"source {Path(home).parent if home else '/usr/local/Ascend/ascend-toolkit'}/set_env.sh"
    tool, driver = _says("npu-smi", "-v"), _version_in(DRIVER)
    named = f"npu-smi, which comes with the driver{': ' + tool if tool else ''}"
    lines = [
        _finding("Ascend", _exists(card), f"card ({card})", "none if this machine has no NPU; else its driver"),
        _finding("Ascend", driver, f"driver{' ' + driver if driver else ''} ({DRIVER})", "install the driver"),
        _finding("Ascend", tool, named, "install the driver"),
        _cann(home),
        _finding("Ascend", os.environ.get("ASCEND_HOME_PATH"), "environment of CANN (ASCEND_HOME_PATH)", source),
    ]
    for package in ("te", "hccl"):
        there = importlib.util.find_spec(package)
        lines.append(_finding("Ascend", there, f"Python package {package}, which comes with CANN", source))
    absent = [package for name, package in CANN_PACKAGES.items() if not _importable(name)]
    needs = f"Python packages that CANN needs{': ' + ', '.join(absent) if absent else ''}"
    lines.append(_finding("Ascend", not absent, needs, INSTALL_ASCEND))
    reason = _unloadable("libmindspore_ascend.so.2")
    what = "libraries of MindSpore's plugin" + (f": {reason}" if reason else "")
    return [*lines, _finding("Ascend", not reason, what, source)]


def _cann(home: str | None) -> Finding:
    """Return the state of CANN: is it there, and is it one that this MindSpore was made for?"""
    if home is None or not _exists(home):
        what = f"CANN, the toolkit, in {home or ' or '.join(CANN_HOMES)}"
        return Finding("Ascend", "missing", what, "install CANN 8.2 or later, toolkit and kernels")
    version, fitting = _version_in(str(Path(home, "compiler", "version.info"))), _fitting_cann()
    if version is None or not fitting:
        return Finding("Ascend", "ok", f"CANN {version or 'of an unknown version'}, the toolkit, in {home}")
    fits = ".".join(version.split(".")[:2]) in fitting
    takes = f"{'which' if fits else 'but'} MindSpore {_version('mindspore')} takes {', '.join(fitting)}"
    remedy = f"install CANN {fitting[-1]}, or the MindSpore for {version} (docs/ascend.md)"
    return _finding("Ascend", fits, f"CANN {version}, the toolkit, in {home}, {takes}", remedy)


def _fitting_cann() -> list[str]:
    """Return the versions of CANN that this MindSpore checks for at its start, or none where it does not say."""
    try:
        from mindspore.run_check._check_version import AscendEnvChecker

        return list(AscendEnvChecker("").version)
    except (ImportError, AttributeError, TypeError):
        return []


def gpu() -> list[Finding]:
    """Return the state of the driver, the CUDA libraries and the libraries of MindSpore's plugin."""
    from latte.runtime import cuda
    from latte.runtime.device import DEVICE_FILES, why_unavailable

    card, cards = DEVICE_FILES["GPU"], _says("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    driver = cuda.driver_problem()
    lines = [
        _finding("GPU", _exists(card), f"card ({card})", "none if this machine has no NVIDIA GPU; else its driver"),
        _finding("GPU", cards, f"nvidia-smi{': ' + cards if cards else ''}", "install NVIDIA's driver"),
        _finding(
            "GPU",
            not driver,
            driver.split(";")[0] if driver else f"driver ({cuda.DRIVER})",
            "install NVIDIA's driver, 450.80 or later",
        ),
    ]
    problems: dict[str, str | None] = {}
    for library, package in cuda.LIBRARIES.items():
        problems[package] = problems.get(package) or cuda.package_problem(library)
    for package, problem in problems.items():
        version = _version(package)
        what = problem.split(";")[0] if problem else f"{package}{' ' + version if version else ' (of the system)'}"
        lines.append(_finding("GPU", not problem, what, INSTALL_GPU))
    if driver or any(problems.values()):
        asked = [cuda.DRIVER] * bool(driver) + [Path(name).name for name, p in cuda.LIBRARIES.items() if problems[p]]
        return [*lines, Finding("GPU", "missing", f"libraries of MindSpore's plugin: {', '.join(asked)}")]
    reason = why_unavailable("GPU")
    return [*lines, _finding("GPU", not reason, reason or "MindSpore's plugin, loaded with all its libraries")]


def cpu() -> list[Finding]:
    """Return cores, units, memory, and what bf16 is multiplied in."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    units = [unit for unit in UNITS if unit in flags]
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    products = _products_of_bf16()
    bf16 = (
        f"bf16 is multiplied in {products}, as a product shows"
        if products
        else "bf16 products, which were not measured"
    )
    return [
        Finding("CPU", "ok", f"{cores} cores for this process, of {os.cpu_count()}"),
        Finding("CPU", "ok", f"units: {' '.join(units) or 'none that is known'}"),
        _finding("CPU", products, bf16, INSTALL),
        Finding("CPU", "ok", f"memory: {memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}"),
    ]


def examine() -> list[Finding]:
    """Return all findings; if MindSpore cannot be imported, only those that do not need it."""
    lines = software()
    try:
        import mindspore  # noqa: F401
    except (ImportError, OSError, AttributeError) as error:
        failed = Finding("Software", "failed", f"MindSpore cannot be imported: {first_line(error)}", INSTALL)
        return [*lines, failed, *cpu()]
    return [*lines, *ascend(), *gpu(), *cpu()]


def try_device(target: str | None, device_id: int = 0) -> list[Finding]:
    """Compute on a device, or the best there is, in a process of its own; the last finding is ok if all is well.

    A result is right if it lies within the bound of its dtype around what NumPy computes in float64.
    """
    command = [sys.executable, "-m", "latte.ops.selftest", target or "", str(device_id)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        told = {"failed": f"no answer in {PATIENCE} s"}
    except (IndexError, ValueError):  # it died
        told = {"failed": f"ended with code {done.returncode}: {done.stderr.strip()[-300:]}"}
    if "failed" in told:
        return [Finding("Self-test", "failed", told["failed"])]
    lines = []
    for dtype, errors in told["errors"].items():
        said = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
        right = all(value <= BOUNDS[dtype] for value in errors.values())  # not for NaN
        what = f"{dtype}: {said} from NumPy, at most {BOUNDS[dtype]:g} is right"
        lines.append(Finding("Self-test", "ok" if right else "failed", what))
    if all(line.state == "ok" for line in lines):
        return [*lines, Finding("Self-test", "ok", f"{told['target']} works")]
    return [*lines, Finding("Self-test", "failed", f"{told['target']} computes wrongly")]


def shorten(findings: list[Finding], wanted: str | None = None) -> list[Finding]:
    """Return the findings with one line for each accelerator of which nothing is there, unless it is the wanted one."""
    for part in ("Ascend", "GPU"):
        own = [finding for finding in findings if finding.part == part]
        if part != wanted and own and all(finding.state == "missing" for finding in own):
            line = Finding(part, "none", f"neither a card nor its software; --all lists the {len(own)} things it needs")
            findings = [line if finding is own[0] else finding for finding in findings if finding not in own[1:]]
    return findings


def report(findings: list[Finding]) -> str:
    """Return the findings as lines, below the names of their parts."""
    parts = dict.fromkeys(finding.part for finding in findings)
    return "\n".join(f"{part}\n" + "\n".join(str(f) for f in findings if f.part == part) for part in parts)


def _finding(part: str, good: object, what: str, mend: str = "") -> Finding:
    return Finding(part, "ok", what) if good else Finding(part, "missing", what, mend)


def _numbers(version: str) -> list[int]:
    """Return the first three numbers of a version."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _version_in(info: str) -> str | None:
    """Return the version in one of CANN's or the driver's `version.info` files, or None."""
    try:
        found = re.search(r"^Version=(\S+)", Path(info).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _exists(path: str) -> bool:
    return Path(path).exists()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _products_of_bf16() -> str | None:
    """Return the dtype that `--dtype bf16` multiplies in, measured by a process that may still choose it, or None."""
    code = (
        "from latte.runtime import device; device.choose_cpu_products('bf16'); "
        "print('bfloat16' if device.multiplies_in_bfloat16() else 'float32')"
    )
    return _says(sys.executable, "-c", code, patience=PATIENCE)


def _says(program: str, *arguments: str, patience: int = ATTEMPT) -> str | None:
    """Return what a program prints, in one line, or None if it is not there or fails."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=patience, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.split("\n")).strip("; ")


def _unloadable(plugin: str) -> str | None:
    """Return why a plugin of MindSpore cannot be loaded, which is the first library that it lacks, or None."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        return "MindSpore is not installed"
    try:
        ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "plugin" / plugin))
    except OSError as error:
        return str(error)
    return None
