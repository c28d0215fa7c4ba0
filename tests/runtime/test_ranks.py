"""What launchers tell a rank; and on CPU for real: ranks that meet, that wait for each other, and that die."""

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
from support import mpi
from support.golden_values import ROOT

from latte.errors import UserError
from latte.runtime import ranks

MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
TABLE = {"RANK_ID": "5", "RANK_SIZE": "16", "DEVICE_ID": "2"}
MSRUN = {"MS_NODE_ID": "1", "MS_WORKER_NUM": "2"}
SRUN = {"SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}
PROGRAM = """
import os, sys, time
import mindspore as ms, numpy as np
from mindspore import ops
from latte.runtime import device

here = device.init_device("CPU", use_parallel=True, connect=True)
add, join = ops.AllReduce(), ops.AllGather()


@ms.jit
def both(x):
    return add(x), join(x)


def meet():
    total, parts = both(ms.Tensor(np.full(2, here.rank + 1, np.float32)))
    sys.stderr.write(f"rank {here.rank} of {here.world_size}: {total.asnumpy().tolist()} {parts.asnumpy().tolist()}\\n")


meet()
who, todo = sys.argv[1:]
if here.rank == int(who):
    time.sleep(1)  # until the other rank has said its sum, as a launcher ends it at once
    if todo == "exit":
        sys.exit(3)
    if todo == "raise":
        raise RuntimeError("broken")
    if todo == "kill":
        os.kill(os.getpid(), 9)
    time.sleep(float(todo))
meet()
"""
LAUNCHERS = {
    "mpirun": ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", "python"),
    "msrun": ("msrun", "--worker_num=2", "--local_worker_num=2", "--join=True"),
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*MPIRUN, *TABLE, *MSRUN, *SRUN, "MS_ROLE", "MS_SCHED_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "environment, expected",
    [
        (MPIRUN, (3, 8, 1)),
        (TABLE, (5, 16, 2)),
        (MSRUN, (1, 2, 1)),
        (TABLE | MPIRUN, (3, 8, 1)),  # MindSpore itself sets the second from the first
        (MSRUN | TABLE, (5, 16, 2)),
        (SRUN, (6, 8, 2)),
        (SRUN | MPIRUN, (3, 8, 1)),  # mpirun in a job of Slurm
    ],
)
def test_ranks_come_from_the_launcher(environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.read_ranks() == expected


@pytest.mark.parametrize(
    "environment, said",
    [
        ({}, "mpirun"),
        ({"RANK_ID": "0"}, "no launcher was found"),
        (TABLE | {"RANK_ID": "x"}, "must be numbers"),
        (TABLE | {"RANK_ID": "-1"}, "must be numbers"),
        (TABLE | {"RANK_ID": "16"}, "must be below RANK_SIZE, which is 16"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "srun"),  # in the batch script itself
    ],
)
def test_a_bad_launch_is_refused(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        ranks.read_ranks()


def test_a_rank_table_on_cpus_is_refused(monkeypatch):
    for name, value in TABLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="rank table is for Ascend"):
        ranks.connect("CPU")


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"SLURM_STEP_NODELIST": "gpu[07-09,12],cpu1"}, ("gpu07", 20123)),
        ({"SLURM_STEP_NODELIST": "a-3,b[1-2]"}, ("a-3", 20123)),
        ({"SLURM_STEP_NODELIST": "rack[2,4]-node"}, ("rack2-node", 20123)),
        ({"SLURM_STEP_NODELIST": "alone", "SLURM_STEP_NUM_NODES": "1"}, ("127.0.0.1", 20123)),
        ({"SLURM_STEP_NODELIST": "a", "MASTER_ADDR": "b", "MASTER_PORT": "77"}, ("b", 77)),
    ],
)
def test_ranks_of_slurm_meet_at_the_first_node(given, expected, monkeypatch):
    monkeypatch.setattr(ranks.socket, "gethostbyname", lambda name: name)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (SRUN | {"SLURM_JOB_ID": "70123", "SLURM_STEP_NUM_NODES": "2"} | given).items():
        monkeypatch.setenv(name, value)
    assert ranks.by_slurm() and ranks._place_in_slurm() == expected


@pytest.mark.parametrize(
    "given, said",
    [
        ({"SLURM_STEP_NODELIST": "no.such.node.invalid"}, "set MASTER_ADDR"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_ranks_of_slurm_that_cannot_meet_say_why(given, said, monkeypatch):
    for name, value in ({"SLURM_STEP_NUM_NODES": "2"} | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        ranks._place_in_slurm()


@pytest.mark.parametrize("connects, target", [(True, "CPU"), (False, "Ascend")])
def test_the_scheduler_of_msrun_leaves_where_nobody_meets_at_it(connects, target, monkeypatch):
    ranks.serve_if_scheduler(connects, target)
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    with pytest.raises(SystemExit) as ended:
        ranks.serve_if_scheduler(connects, target)
    assert ended.value.code == 0


@pytest.fixture
def launch(tmp_path):
    """Run the program on two ranks; return the exit code, what it said, and how long it took after the first sum."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun and msrun are beside Python

    def run(launcher, who, todo):
        command = [*LAUNCHERS[launcher], program, str(who), str(todo)]
        if launcher == "msrun":
            command[1:1] = [f"--log_dir={tmp_path / 'logs'}", f"--master_port={ranks._free_port()}"]
        begin = time.time()
        process = subprocess.Popen(
            command, env=os.environ | {"PATH": path}, stdout=-1, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )
        said = ""
        for line in process.stdout:
            if "of 2: " in line and "of 2: " not in said:
                begin = time.time()
            said += line
        return process.wait(60), said, time.time() - begin

    yield run
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if str(program) in (p.info["cmdline"] or ())]
    assert not left, f"processes are left: {left}"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_meet_and_wait_for_each_other(launcher, launch):
    code, said, _ = launch(launcher, 0, 33)  # MindSpore alone gives up after 30 seconds
    assert code == 0, said
    for rank in (0, 1):
        assert said.count(f"rank {rank} of 2: [3.0, 3.0] [1.0, 1.0, 2.0, 2.0]") == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("who, todo", [(0, "exit"), (1, "raise"), (0, "kill"), (1, "kill")])
def test_a_rank_that_ends_takes_the_other_out_of_its_sum(launcher, who, todo, launch):
    code, said, seconds = launch(launcher, who, todo)
    assert code == ({"exit": 3, "raise": 1, "kill": 137}[todo] if launcher == "mpirun" else 1), said
    assert seconds < 10
    assert said.count("of 2: ") == 2  # nobody got through the second sum
    assert f"Exit code:    {code}" in said or "signal 9" in said or "exit with exception. Error code: " in said


@pytest.mark.parametrize(
    "error, code, said", [(UserError("no data"), 2, "error: no data\n"), (KeyError("x"), 1, "KeyError: 'x'\n")]
)
def test_a_failing_rank_says_why_before_it_ends_all(error, code, said, monkeypatch, capsys):
    aborted = []
    stand_in = types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(Abort=aborted.append))
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=stand_in))
    with ranks.ending_together(2):
        raise error
    assert aborted == [code] and capsys.readouterr().err.endswith(said)


LATE = """
import os, sys, time
from datetime import timedelta

from latte.runtime import ranks

patience, late = map(float, sys.argv[1:])
rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
time.sleep(late * rank)
with ranks._giving_up_after(timedelta(seconds=patience)):
    host, port = ranks._agree_by_mpi(rank, 2)
    print("port", port)
"""


@pytest.mark.parametrize("patience, late, code", [(2, 1000, 2), (1000, 2, 0)])
def test_a_late_rank_is_waited_for_as_long_as_said(patience, late, code, tmp_path):
    program = tmp_path / "late.py"
    program.write_text(LATE)
    done = mpi.run(program, patience, late, ranks=2, timeout=60, PYTHONPATH=str(ROOT))
    assert done.returncode == code, done.stderr
    ports = done.stdout.split()[1::2]
    assert len(ports) == (0 if code else 2) and len(set(ports)) <= 1
    assert done.stderr.count("error: 2 ranks did not all start within 2 seconds; see the logs") == (1 if code else 0)
