"""Graphs that are kept between programs: what tells them apart, and that nothing else is ever read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from support.golden_values import ROOT

from latte.runtime import compile_cache, device

PROGRAM = """
import sys
import mindspore as ms
from mindspore import nn
from latte.runtime import compile_cache, device, graphs
device.init_device("CPU")
class Scale(nn.Cell):
    def __init__(self, weight, constant):
        super().__init__()
        self.weight, self.constant = ms.Parameter(ms.Tensor(weight, ms.float32), name="weight"), constant
    def construct(self, x):
        return x * self.weight + self.constant
cell = Scale(float(sys.argv[1]), float(sys.argv[2]))
x = ms.Tensor(1.0, ms.float32)
def less(x):
    return x - 1
def lesser(x):
    return x - 2
before = graphs.compile_training(less)(x)  # is not kept, and not taken for the other
with compile_cache.using(compile_cache.fingerprint(cell, (x,), {"constant": cell.constant})) as found:
    y = graphs.compile_training(cell.construct)(x)
after = graphs.compile_training(lesser)(x)
print(found, float(before), float(y), float(after))
"""


class Cell(nn.Cell):
    """A cell with one weight."""

    def __init__(self, shape=(2,), trained=True):
        super().__init__()
        self.weight = ms.Parameter(ms.Tensor(np.ones(shape, np.float32)), name="weight", requires_grad=trained)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Keep graphs in a folder of the test's own, as if this process had kept none."""
    monkeypatch.setenv("LATTE_COMPILE_CACHE", str(tmp_path / "graphs"))
    monkeypatch.setattr(compile_cache, "_state", {"used": False})
    monkeypatch.setattr(sys, "argv", [__file__])  # a worker of pytest-xdist has no program file
    return tmp_path / "graphs"


@pytest.mark.slow
def test_another_start_reads_the_graph_with_the_weights_that_it_has_now(folder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, program, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split()

    assert start("3", "10") == ["False", "0.0", "13.0", "-1.0"]
    assert start("5", "10") == ["True", "0.0", "15.0", "-1.0"]  # another weight, the same graph
    assert start("5", "20") == ["False", "0.0", "25.0", "-1.0"]  # another constant of the graph
    for file in folder.rglob("*.mindir"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1])
    assert start("5", "10") == ["False", "0.0", "15.0", "-1.0"]
    assert not list(folder.glob(".writing-*"))


def test_everything_that_a_graph_is_made_from_is_in_its_name(tmp_path, monkeypatch):
    x = ms.Tensor(np.ones(2, np.float32))
    name = compile_cache.fingerprint(Cell(), (x,), {"a": 1})
    assert name == compile_cache.fingerprint(Cell(), (x,), {"a": 1})
    names = {name, compile_cache.fingerprint(Cell(), (x,), {"a": 2})}
    names.add(compile_cache.fingerprint(Cell((3,)), (x,), {"a": 1}))
    names.add(compile_cache.fingerprint(Cell(trained=False), (x,), {"a": 1}))
    names.add(compile_cache.fingerprint(Cell(), (x.astype(ms.float16),), {"a": 1}))
    with device.use(jit_level="O1"):
        names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    with device.use(rank=1, world_size=2):
        names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    monkeypatch.setenv("MS_DEV_JIT_SYNTAX_LEVEL", "0")
    names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    (tmp_path / "version.info").write_text("8.5.0")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    (tmp_path / "version.info").write_text("9.0.0")
    names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    code = tmp_path / "latte" / "code.py"
    code.parent.mkdir()
    monkeypatch.setattr(compile_cache, "PACKAGE", code.parent)
    for text in ("x = 1", "x = 2"):
        code.write_text(text)
        names.add(compile_cache.fingerprint(Cell(), (x,), {"a": 1}))
    assert len(names) == 12


def write(folder, name, text="graph"):
    """Keep a graph as MindSpore would have written it."""
    compile_cache._state["used"] = False
    with compile_cache.using(name) as found:
        place = os.environ[compile_cache.PATH]
        if not found:
            for file in ("compile_cache_0.mindir", "compile_dependency.hash"):
                path = Path(place) / "rank_0" / "graph_cache" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    assert compile_cache.ENABLE not in os.environ and compile_cache.PATH not in os.environ
    return found


def test_a_graph_is_kept_once_per_process_and_where_its_folder_is_whole(folder):
    assert not write(folder, "one") and write(folder, "one")
    (file,) = (folder / "one").rglob("*.mindir")
    file.write_text("grafh")
    assert not write(folder, "one") and write(folder, "one")  # damaged, so made anew
    sums = json.loads((folder / "one" / compile_cache.SUMS).read_text())
    assert len(sums) == 2 and sorted(path.name for path in folder.iterdir()) == ["one"]
    with compile_cache.using("one") as found:  # the second of this process: MindSpore would number it 1
        assert not found and compile_cache.ENABLE not in os.environ


def test_a_graph_that_could_not_be_compiled_or_written_is_not_kept(folder):
    with pytest.raises(ValueError, match="no graph"), compile_cache.using("one"):
        raise ValueError("no graph")
    compile_cache._state["used"] = False
    with compile_cache.using("one"):
        pass  # MindSpore wrote nothing
    assert not list(folder.iterdir())


def test_graphs_that_were_not_used_for_longest_make_room(folder, monkeypatch):
    monkeypatch.setattr(compile_cache, "KEPT", 3500)  # three of these
    for number, name in enumerate("abc"):
        write(folder, name, "x" * 400)
        os.utime(folder / name, (number, number))
    assert write(folder, "a")  # was used just now
    write(folder, "d", "x" * 400)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_is_told_of_and_nothing_is_kept(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATTE_COMPILE_CACHE", str(tmp_path / "file" / "graphs"))
    with compile_cache.using("one") as found:
        assert not found and compile_cache.ENABLE not in os.environ
    assert "compile_cache: nothing is kept, as" in caplog.text
