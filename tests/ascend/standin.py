"""A stand-in for CANN, Huawei's libraries below MindSpore's Ascend back end, built from `cann/*.cpp` and started here.

    python tests/ascend/standin.py python sample.py -c demo --device_target Ascend    # runs a command on it
    python tests/ascend/standin.py                                                    # lists its operators

The wheel of MindSpore holds its whole Ascend back end, compiler, choice of kernels, memory plan and executor; what it
lacks are CANN's libraries. Those of the stand-in compute on the CPU what CANN's pages say, and refuse what they
refuse. Nothing about speed on a card, or about faults of its kernels, can be learned from it.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mindspore

SOURCES = Path(__file__).resolve().parent / "cann"
MINDSPORE = Path(mindspore.__file__).resolve().parent / "lib"
PLUGIN = MINDSPORE / "plugin"
RESOURCES = PLUGIN / "ascend" / "libmindspore_ascend_res_manager.so"
BINDERS = [
    PLUGIN / "libmindspore_ascend.so.2",
    PLUGIN / "libmindspore_ops_ascend.so",
    RESOURCES,
    PLUGIN / "ascend" / "libd_collective.so",
    PLUGIN / "ascend" / "libhccl_plugin.so",
    PLUGIN / "ascend/ms_kernels_symmetric_memory/shmem/shmem/lib/libshmem.so",
]
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra", "-fPIC"]
FLAGS += ["-D_GLIBCXX_USE_CXX11_ABI=0"]  # as MindSpore's wheel is built

# Library -> its sources here, and the names that MindSpore binds to in it; what no source defines fails when called.
LIBRARIES: dict[str, tuple[list[str], str | None]] = {
    "libascendcl.so": (["runtime.cpp", "aclop.cpp"], r"acl(?!tdt|prof|nn)\w+"),
    "libopapi.so": (["tensors.cpp", "operators/*.cpp"], None),
    "libhccl.so": (["hccl.cpp"], r"Hccl[A-Z]\w+"),
    "libacl_tdt_channel.so": (["channel.cpp"], r"acltdt\w+"),
    "libmsprofiler.so": ([], r"aclprof\w+"),
    "libacl_op_compiler.so": (["compiler.cpp"], r"aclop\w+"),
    "libge_runner.so": (["graph_engine.cpp"], r"_ZN\w*2ge\w+"),
    "libruntime.so": ([], r"rt[A-Z]\w+"),
    "libmf_smem.so": ([], r"smem\w+"),
    "libascend_hal.so": ([], r"hal[A-Z]\w+"),
    "libc_sec.so": (["secure.cpp"], None),
    "libgraph.so": ([], None),
    "libnnopbase.so": ([], None),
    "libplatform.so": ([], None),
    "libmf_hybm_core.so": ([], None),
}


class Operator(NamedTuple):
    """One operator of the stand-in: its name, the page it was read from, and the rules that it refuses to break."""

    name: str
    page: str
    rules: list[str]


def why_not() -> str | None:
    """Return None if the stand-in can be built here, or why not."""
    if not BINDERS[0].exists():
        return f"this MindSpore has no Ascend back end ({BINDERS[0]} is missing)"
    if shutil.which("g++") is None or shutil.which("nm") is None:
        return "there is no C++ compiler (g++ and nm) to build the stand-in for CANN with"
    if _knows_halves().returncode:
        return "this g++ has no _Float16, which the stand-in for CANN needs (g++ 12 or later)"
    return None


@functools.cache
def _knows_halves() -> subprocess.CompletedProcess:
    check = ["g++", *FLAGS, "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(check, input="_Float16 one = 1;", text=True, capture_output=True, check=False)


@functools.cache
def build() -> Path:
    """Return the folder `.../cann` with the libraries in lib64, built unless they were built from these sources before.

    Raises subprocess.CalledProcessError where they do not compile.
    """
    cache, sources = _cache(), [path.read_text() for path in sorted(SOURCES.rglob("*.cpp"))]
    everything = [Path(__file__).read_text(), mindspore.__version__, str(MINDSPORE), *sources, *_headers()]
    home = cache / _digest(*everything) / "cann"  # MindSpore asks for "cann" in the path
    if home.exists():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        lib = Path(folder) / "cann" / "lib64"
        lib.mkdir(parents=True)
        for name in LIBRARIES:
            _compile(lib, name)
        try:
            home.parent.mkdir(exist_ok=True)
            (Path(folder) / "cann").rename(home)
        except OSError:  # another process was faster
            if not home.exists():
                raise
    return home


def environment(
    mode: str = "compute", product: str = "Ascend910B2", memory: int = 64, trace: Path | None = None
) -> dict[str, str]:
    """Return the environment of a process whose MindSpore has an Ascend: the stand-in, set to a product.

    `mode` is "compute" or "plan" (nothing is computed), `memory` the card's in GB, `trace` a file for every launch.
    Without one, LATTE_LAUNCHES may name a folder that each process gets a trace of its own in.
    """
    home, folder = build(), os.environ.get("LATTE_LAUNCHES")
    if trace is None and folder:
        trace = Path(folder) / f"{uuid.uuid4()}.jsonl"
    found = (home / "lib64", MINDSPORE, PLUGIN / "ascend", PLUGIN, os.environ.get("LD_LIBRARY_PATH"))
    python = (SOURCES / "python", os.environ.get("PYTHONPATH"))
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in found if path),
        "PYTHONPATH": os.pathsep.join(str(path) for path in python if path),
        "STANDIN_MODE": mode,
        "STANDIN_PRODUCT": product,
        "STANDIN_MEMORY": str(memory),
        "STANDIN_TRACE": str(trace or ""),
    }


def read_trace(path: Path) -> list[dict]:
    """Return the launches in a trace, in order: `op`, `stream`, `bytes`, and of operators `inputs` and `outputs`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def launches(path: Path) -> Counter[str]:
    """Return how many times each operator was launched."""
    return Counter(launch["op"] for launch in read_trace(path))


def operators() -> list[Operator]:
    """Return all operators of the stand-in, read off its source."""
    found = []
    for path in sorted((SOURCES / "operators").glob("*.cpp")):
        text = path.read_text()
        shared = dict(re.findall(r"^#define ((?:ACLNN|NEED)_\w+)((?:.*\\\n)*.*\n)", text, re.MULTILINE))
        parts = re.split(r'^(ACLNN\w*)\((\w+),\s*"([^"]+)"', text, flags=re.MULTILINE)
        for macro, name, page, body in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4], strict=True):
            body = shared.get(macro, body)
            body = "".join(shared.get(part, part) for part in re.split(r"\b(NEED_\w+)", body))
            found.append(Operator(f"aclnn{name}", page, _rules(body)))
    return sorted(found)


def _rules(body: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r'NEED\([^;]*?"([^"]*)"\);', body)))


def _compile(lib: Path, name: str) -> None:
    """Build one library of its sources, and of one function that fails for every other name that MindSpore binds to."""
    patterns, bound = LIBRARIES[name]
    sources = [path for pattern in patterns for path in sorted(SOURCES.glob(pattern))]
    written = set().union(*(_defined(path) for path in sources))
    missing = sorted(each for each in _bound_names() - written if bound and re.fullmatch(bound, each))
    text = "#include <stdio.h>\n"
    for each in missing:
        fails = f'fprintf(stderr, "[stand-in] {each} is not implemented\\n"); return 500000;'
        body = "return 0;" if name == "libge_runner.so" else fails  # names are registered there, nothing more
        text += f'extern "C" long {each}() {{ {body} }}\n'
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(_object, [*(path.read_text() for path in sources), text]))
    core = [] if name == "libascendcl.so" else [f"-L{lib}", "-lascendcl"]
    onednn = [f"-L{MINDSPORE}", "-l:libdnnl.so.3"] if name == "libopapi.so" else []
    command = ["g++", "-shared", f"-Wl,-soname,{name}", *map(str, objects), *core, *onednn]
    subprocess.run([*command, "-o", str(lib / name)], check=True)


def _object(text: str) -> Path:
    """Return the object file of a source, compiled unless it was before."""
    path = _cache() / "objects" / f"{_digest(text, *_included(text))}.o"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".o", delete=False) as half:
            command = ["g++", *FLAGS, f"-I{SOURCES}", "-c", "-x", "c++", "-", "-o", half.name]
            subprocess.run(command, input=text, text=True, check=True)
            Path(half.name).rename(path)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "latte-standin"


def _included(text: str) -> list[str]:
    """Return the texts of the headers that a source includes, and of those that they include."""
    found = []
    for name in re.findall(r'^#include "(\w+\.h)"', text, re.MULTILINE):
        found.append((SOURCES / name).read_text())
        found += _included(found[-1])
    return found


def _headers() -> list[str]:
    return [path.read_text() for path in sorted(SOURCES.glob("*.h"))]


@functools.cache
def _machine() -> str:
    """Return what `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join([*texts, *FLAGS, _machine()]).encode()).hexdigest()[:16]


def _defined(source: Path) -> set[str]:
    """Return the names of the functions that a source defines, which begin at the left of a line."""
    return set(re.findall(r"^\w[\w ]*[ *](\w+)\(", source.read_text(), re.MULTILINE)) | set(
        re.findall(r'^extern "C" \w+ [*]?(\w+)\(', source.read_text(), re.MULTILINE)
    )


@functools.cache
def _bound_names() -> set[str]:
    """Return the names that MindSpore binds to, at its start (undefined symbols) or later (names in its text)."""
    names = set()
    for binder in BINDERS:
        undefined = subprocess.run(["nm", "-D", "--undefined-only", binder], capture_output=True, text=True, check=True)
        names |= {line.split()[-1].split("@")[0] for line in undefined.stdout.splitlines() if line.strip()}
        if binder.stat().st_size < 100_000_000:
            names |= {
                name.decode() for name in re.findall(rb"\0((?:acl|Hccl)[A-Z]?\w{3,60})(?=\0)", binder.read_bytes())
            }
    return names


def main() -> None:
    """Run a command on the stand-in, or list its operators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("compute", "plan"), default="compute", help="plan computes nothing")
    parser.add_argument("--product", default="Ascend910B2", help="name of the card's chip")
    parser.add_argument("--memory", type=int, default=64, help="of the card, in GB")
    parser.add_argument("--trace", type=Path, help="file that every launch is added to")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    given = parser.parse_args()
    if reason := why_not():
        parser.error(reason)
    if not given.command:
        for operator in operators():
            sys.stdout.write(f"{operator.name} ({operator.page}): {'; '.join(operator.rules) or 'no rules'}\n")
        return
    settings = environment(given.mode, given.product, given.memory, given.trace)
    os.execvpe(given.command[0], given.command, settings)


if __name__ == "__main__":
    main()
