"""Compiled graphs kept for the next start of the same program.

MindSpore's own compile cache numbers the graphs of a process in the order in which they are compiled, and takes graph 0
of its folder for the first one, whatever that is; and it gives weights that it is not told of no values at all. So it
is switched on around one graph of a process only, a method of a cell that has all weights, and each graph has a folder
of its own, named by everything that the graph was made from: `fingerprint`. A folder is written under another name, and
takes its place when it is whole; its files are compared with their checksums before MindSpore reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms

from latte.errors import reason
from latte.io import resources
from latte.io.atomic import working_folder
from latte.io.checksums import sha256_of
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("latte")
PACKAGE = Path(__file__).resolve().parent.parent
KEPT = 8 * 2**30  # bytes; the graphs that were used last. A training step of XL/2 takes 0.23 GB for each rank
SUMS = "sums.json"  # file -> SHA-256, in the folder of a graph
ENABLE, PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
# Variables that the compiler and the choice of kernels may follow. Where a rank runs is told by `Device`.
PREFIXES = ("MS_", "ASCEND_", "CUDA_", "GRAPH_", "HCCL_", "ONEDNN_", "OMP_")
ELSEWHERE = (
    ENABLE,
    PATH,
    "MS_ROLE",
    "MS_NODE_ID",
    "MS_SCHED_",
    "MS_WORKER_",
    "MS_TOPO_",
    "ASCEND_DEVICE",
    "HCCL_CONNECT",
)
_state = {"used": False}  # MindSpore reads the path once in a process


def root() -> Path:
    """Return the folder of all graphs: LATTE_COMPILE_CACHE, or `latte/graphs` in the user's cache folder."""
    return Path(os.environ.get("LATTE_COMPILE_CACHE") or resources.user_cache() / "graphs")


def fingerprint(cell: ms.nn.Cell, inputs: tuple[ms.Tensor, ...], facts: Mapping[str, Any]) -> str:
    """Return what tells a graph of this cell apart: code, versions, device, variables, weights, inputs and `facts`.

    Of weights names, shapes and dtypes count, as their values are read when the graph runs. Constants of the graph are
    not seen here: `facts`, values that JSON or `str` shows whole, must determine them.
    """
    commit = Path(ms.__file__).parent / ".commit_id"
    found = {
        "code": {str(file.relative_to(PACKAGE)): sha256_of(file) for file in sorted(PACKAGE.rglob("*.py"))},
        "versions": [sys.version, ms.__version__, commit.read_text() if commit.exists() else "", platform.platform()],
        "CANN": _cann(),
        "device": str(device.current()),
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES) and not k.startswith(ELSEWHERE)
        },
        "weights": [(w.name, w.shape, str(w.dtype), w.requires_grad) for w in cell.get_parameters()],
        "inputs": [(tensor.shape, str(tensor.dtype)) for tensor in inputs],
        "facts": dict(facts),
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def _cann() -> list[str]:
    """Return what the files of CANN say about its version; a link named `latest` stays the same when it changes."""
    home = Path(os.environ.get("ASCEND_HOME_PATH") or "/usr/local/Ascend/ascend-toolkit/latest")
    files = sorted((*home.glob("version.*"), *home.glob("*/version.info"), *home.glob("opp/version.info")))
    return [str(home.resolve()), *(path.read_text(errors="replace") for path in files if path.is_file())]


@contextlib.contextmanager
def using(key: str | None) -> Iterator[bool]:
    """Let the one graph that is compiled inside be read from the cache, or be kept there; yield whether it is read.

    With None, a second time in a process, before MindSpore 2.10, or if the cache folder cannot be written, nothing is
    read or kept.
    """
    with contextlib.ExitStack() as stack:
        place = None if key is None or _state["used"] or not _can_cache() else _place(key, stack)
        if place is None:
            yield False
            return
        folder, whole = place
        _state["used"] = True
        saved = {name: os.environ.get(name) for name in (ENABLE, PATH)}
        os.environ.update({ENABLE: "1", PATH: str(folder)})
        try:
            yield whole
            if not whole:
                _keep(folder, root() / str(key))
        finally:
            for name, value in saved.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _can_cache() -> bool:
    # MindSpore reads the program's file to see whether it has changed; `python -c` and a notebook have none.
    return device.keeps_graphs() and Path(sys.argv[0] or ".").is_file() and ENABLE not in os.environ


def _place(key: str, stack: contextlib.ExitStack) -> tuple[Path, bool] | None:
    """Return the folder of a graph and True, or an empty folder for it and False; None if there can be none.

    The empty one is in a working folder, which goes with `stack`.
    """
    folder = root() / key
    if _is_whole(folder):
        with contextlib.suppress(OSError):
            os.utime(folder)  # the ones used last are kept
        return folder, True
    try:
        root().mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        empty = stack.enter_context(working_folder(root(), key)) / "graph"
        empty.mkdir()
        return empty, False
    except OSError as error:
        device.warn_once(f"compile_cache: nothing is kept, as {root()} cannot be written: {reason(error)}")
        return None


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        return bool(sums) and all(sha256_of(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _keep(folder: Path, target: Path) -> None:
    """Let what MindSpore wrote into a folder take its place, and drop the graphs that were not used for longest."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not any(path.name.endswith("dependency.hash") for path in files):  # MindSpore writes it last
        return
    try:
        sums = {str(path.relative_to(folder)): sha256_of(path) for path in files}
        (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        folder.rename(target)
        _drop_oldest(root())
    except OSError as error:  # another process was faster, or the disk is full
        log.debug("compile_cache: %s is not kept: %s", target, reason(error))


def _drop_oldest(folder: Path) -> None:
    """Keep the graphs that were used last, up to KEPT bytes."""
    graphs = [path for path in folder.iterdir() if (path / SUMS).exists()]
    room = KEPT
    for graph in sorted(graphs, key=lambda path: path.stat().st_mtime, reverse=True):
        room -= sum(path.stat().st_size for path in graph.rglob("*") if path.is_file())
        if room < 0:
            shutil.rmtree(graph, ignore_errors=True)
