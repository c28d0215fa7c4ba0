"""Ranks on MindSpore's Ascend back end over the stand-in: every launcher and operation, ranks that differ or die."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ascend import standin
from support.golden_values import ROOT
from support.runs import state, words, write_clips

from latte.errors import UserError
from latte.runtime import ranks

pytestmark = pytest.mark.slow
LONG = pytest.mark.long  # by hand, and before a release: `pytest tests/ascend -m slow`
if reason := standin.why_not():
    pytest.skip(reason, allow_module_level=True)

# Computes with every operation, in graphs of level O0 and without graphs, and says what it got.
PROGRAM = """
import os, sys
import mindspore as ms, numpy as np
from mindspore import ops
from latte.runtime import device

here = device.init_device("Ascend", use_parallel=True, connect=True, jit_level="O0")
n, r = here.world_size, here.rank
reduce, gather, scatter, to_all = ops.AllReduce(), ops.AllGather(), ops.ReduceScatter(), ops.AlltoAll(n, 0, 0)
root, barrier = ops.Broadcast(1), ops.Barrier()
send, receive = ops.Send(0, (r + 1) % n), ops.Receive(0, (r - 1) % n, [n, 2], ms.float16)


def say(name, tensor):
    # all of the line at once: mpirun joins the ranks' lines piece by piece
    os.write(2, f"\\nrank {r} of {n}: {name} {tensor.asnumpy().ravel().tolist()}\\n".encode())


def four(x):
    return reduce(x), gather(x), scatter(x), to_all(x)


def spread(x):  # MindSpore writes the result into x, in graphs too
    return root((x,))[0]


@ms.jit(jit_level="O0")
def add(x):
    return reduce(x)


def around(x):
    if r % 2 == 0:
        return receive(ops.depend(x, send(x)))
    received = receive(x)
    return ops.depend(received, send(ops.depend(x, received)))


def meet(rows=n):
    x = ms.Tensor((np.arange(2 * rows) + 10 * r).reshape(rows, 2), ms.float16)
    return add(x)


todo, who = sys.argv[1], int(sys.argv[2])
if todo == "all":
    for mode in ("graph", "pynative"):
        def run(function, *values):
            return (ms.jit(function, jit_level="O0") if mode == "graph" else function)(*values)

        x = ms.Tensor((np.arange(2 * n) + 10 * r).reshape(n, 2), ms.float16)
        if n == 2:
            say(mode + " around", run(around, x))
        barrier()
        for name, found in zip(("reduce", "gather", "scatter", "to_all"), run(four, x)):
            say(mode + " " + name, found)
        say(mode + " root", run(spread, x))
else:
    say("first", meet())
    if r == who and todo == "kill":
        os.kill(os.getpid(), 9)
    if r == who and todo == "raise":
        raise RuntimeError("broken")
    say("second", meet(n + 1 if r == who and todo == "shape" else n))
"""
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n"]
SAID = {
    "reduce": lambda n, r: [sum(k + 10 * other for other in range(n)) for k in range(2 * n)],
    "gather": lambda n, r: [k + 10 * other for other in range(n) for k in range(2 * n)],
    "scatter": lambda n, r: [sum(k + 10 * other for other in range(n)) for k in (2 * r, 2 * r + 1)],
    "to_all": lambda n, r: [k + 10 * other for other in range(n) for k in (2 * r, 2 * r + 1)],
    "root": lambda n, r: [k + 10 for k in range(2 * n)],
    "around": lambda n, r: [k + 10 * ((r - 1) % n) for k in range(2 * n)],
}


@pytest.fixture
def launch(tmp_path):
    """Run the program on several ranks; return the exit code, what was said, and the seconds after the first sum."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = standin.environment()
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # mpirun and msrun are beside Python
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment["PYTHONPATH"]])

    def run(launcher, number, todo, who=0):
        arguments = [str(program), todo, str(who)]
        if launcher == "mpirun":
            command = [*MPIRUN, str(number), "python", *arguments]
        elif launcher == "msrun":
            port, logs = ranks._free_port(), tmp_path / "logs"
            command = ["msrun", f"--worker_num={number}", f"--local_worker_num={number}", "--join=True"]
            command += [f"--log_dir={logs}", f"--master_port={port}", *arguments]
        else:
            command, more = by_table(tmp_path, number, arguments)
            environment.update(more)
        begin = time.time()
        process = subprocess.Popen(
            command, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )
        said = ""
        for line in process.stdout:
            if "first [" in line and "first [" not in said:
                begin = time.time()
            said += line
        code, seconds = process.wait(60), time.time() - begin
        return code, said + "".join(path.read_text() for path in tmp_path.glob("logs/rank_*.log")), seconds

    return run


def by_table(folder, number, arguments):
    """Return a command for scripts/run_distributed.sh, whose Python runs the program in place of train.py."""
    python, table, config = (
        folder / "python.sh",
        folder / "table.json",
        ROOT / "configs" / "training" / "sky_video.yaml",
    )
    given = " ".join(arguments)
    python.write_text(
        f'#!/bin/bash\nif [[ $1 == train.py ]]; then exec {sys.executable} {given}; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    make = [sys.executable, ROOT / "tools" / "make_rank_table.py", f"--devices=0-{number - 1}", f"--target={table}"]
    addresses = ",".join(f"192.168.1.{k + 1}" for k in range(number))
    subprocess.run([*make, f"--device_ips={addresses}"], check=True, capture_output=True)
    command = ["bash", str(ROOT / "scripts" / "run_distributed.sh"), str(config), str(table), "0", str(number)]
    return command, {"PYTHON": str(python), "LOG_DIR": str(folder / "logs"), "GRACE": "2"}


@pytest.mark.parametrize(
    "launcher, number",
    [("mpirun", 4), pytest.param("mpirun", 2, marks=LONG), pytest.param("msrun", 2, marks=LONG), ("rank table", 2)],
)
def test_every_operation_computes_in_graphs_and_without(launcher, number, launch):
    code, said, _ = launch(launcher, number, "all")
    assert code == 0, said[-5000:]
    for mode in ("graph", "pynative"):
        for name, expected in SAID.items():
            for rank in range(number if name != "around" or number == 2 else 0):
                line = f"rank {rank} of {number}: {mode} {name} {[float(value) for value in expected(number, rank)]}"
                assert line in said, f"{line} is not in {said[-5000:]}"


@pytest.mark.parametrize(
    "launcher", ["mpirun", pytest.param("rank table", marks=LONG), pytest.param("msrun", marks=LONG)]
)
@pytest.mark.parametrize("todo", ["kill", pytest.param("raise", marks=LONG)])
def test_a_rank_that_ends_ends_the_job(launcher, todo, launch):
    code, said, seconds = launch(launcher, 2, todo, 1)
    assert code != 0
    assert said.count("second [") == 0
    sentences = ("HcclAllReduce: rank 1", "ended with code", "signal 9", "exit with exception")  # whoever is first
    assert any(sentence in said for sentence in sentences), said[-5000:]
    assert seconds < (90 if launcher == "msrun" else 20)  # the scheduler of MindSpore waits for half a minute


def test_a_rank_with_another_shape_ends_the_job_with_a_sentence(launch):
    code, said, _ = launch("mpirun", 2, "shape", 1)
    assert code != 0
    sentence = "HcclAllReduce: the ranks differ: rank 0 calls HcclAllReduce with 4 float16, sum, but rank 1 calls "
    sentence += "HcclAllReduce with 6 float16, sum"
    assert said.count("- Ascend Error Message:") == 2 and sentence in said, said[-5000:]
    assert said.count("second [") == 0


def test_ranks_of_a_table_meet_at_the_machine_of_rank_0(tmp_path, monkeypatch):
    def write(*servers):
        listed = [{"server_id": server, "device": [{"rank_id": str(rank)}]} for rank, server in enumerate(servers)]
        (tmp_path / "table.json").write_text(json.dumps({"server_list": listed}))

    monkeypatch.setenv("RANK_TABLE_FILE", str(tmp_path / "table.json"))
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="does not tell the address of rank 0"):
        ranks._place_in_table()
    write("node_0")
    assert ranks._place_in_table() == ("127.0.0.1", 8118)
    write("192.0.2.1", "192.0.2.2")
    monkeypatch.setenv("MASTER_PORT", "9000")
    assert ranks._place_in_table() == ("192.0.2.1", 9000)
    monkeypatch.setenv("MASTER_PORT", "x")
    with pytest.raises(UserError, match="MASTER_PORT is 'x'"):
        ranks._place_in_table()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def train(folder, clips, ranks=1, **given):
    """Train four steps in float32 and return the state that is saved."""
    environment = standin.environment()
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    environment |= {"PYTHONPATH": f"{ROOT}:{environment['PYTHONPATH']}", "LOG_DIR": str(folder / "logs")}
    options = words(
        data_folder=clips,
        sample_stride=1,
        sample_videos=0,
        device_target="Ascend",
        dtype="fp32",
        output_path=folder / "out",
        **given,
    )
    config = ROOT / "configs" / "training" / "sky_video.yaml"
    script = ["bash", ROOT / "scripts" / "run_mpirun.sh", config, str(ranks)]
    start = script if ranks > 1 else [sys.executable, "train.py", "-c", config]
    done = subprocess.run(
        [*start, *options], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return state(folder / "out", 4)


@pytest.fixture(scope="module")
def one_rank(clips, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), clips, train_batch_size=4)


@pytest.mark.parametrize("zero", [0, pytest.param(1, marks=LONG), 2])
def test_two_ranks_are_one_with_twice_the_batch(zero, one_rank, clips, tmp_path):
    found = train(tmp_path, clips, ranks=2, train_batch_size=2, zero_stage=zero)
    assert set(found) == set(one_rank)
    for name, values in one_rank.items():
        if not name.startswith("sums"):
            assert np.abs(values - found[name]).max() < 1e-6, name
