"""Programs on one CPU rank, or on several by mpirun, of which none is left when a test has ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from support.golden_values import ROOT

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # ranks share the cores


def start(*words, ranks=1, **environment):
    """Start Python with these words, at the root of the repository."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun is beside Python
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [*launcher, sys.executable, *map(str, words)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout):
    """Return a process that was started when it has ended; it is ended, with its ranks, if that takes too long."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun ends its ranks, which a kill would leave behind
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*words, ranks=1, timeout=580, **environment):
    """Return a program when it has ended."""
    return ended(start(*words, ranks=ranks, **environment), timeout)


def kill_a_rank(process, program):
    """Kill the newest of the ranks that a process has started to run a program."""
    below = psutil.Process(process.pid).children(recursive=True)
    ranks = {each.pid: each for each in below if any(word.endswith(program) for word in each.cmdline()[1:2])}
    started = [pid for pid, each in ranks.items() if each.ppid() not in ranks]  # not those of a loader
    ranks[max(started)].send_signal(signal.SIGKILL)
