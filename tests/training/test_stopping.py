"""A run stops in order at a signal, also with MindSpore at work and a loader's processes in its group."""

import os
import signal
import subprocess
import sys
import time
import types

import psutil
import pytest

from latte.training.stopping import StopSignal

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WORK = """
import sys, time
import mindspore as ms
import numpy as np
from latte.data.loader import fetch
from latte.errors import run_main
from latte.runtime import device
from latte.training.stopping import StopSignal

class Rows:
    def __len__(self):
        return 100_000
    def __getitem__(self, index):
        time.sleep(0.005)
        return (np.float32(index),)

def double(x):
    return x * 2


def main():
    device.init_device("CPU")
    workers = int(sys.argv[1])
    call = ms.jit(double)
    with StopSignal() as stop:
        ms.dataset.config.set_enable_shared_mem(workers > 1)
        options = {"num_parallel_workers": workers, "python_multiprocessing": workers > 1, "max_rowsize": -1}
        rows = ms.dataset.GeneratorDataset(Rows(), ["x"], shuffle=False, **options)
        left = 10  # batches that are still fetched: a step may take several
        for number, (x,) in enumerate(fetch(rows.batch(2))):
            call(ms.Tensor(x)).asnumpy()
            if number == 3:
                print("ready", flush=True)
            left -= bool(stop.requested)
            if not left:
                break
        print("saved", flush=True)


run_main(main)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "work.py").write_text(WORK)  # ms.jit reads the source
    started = []

    def start(workers):
        command = [sys.executable, tmp_path / "work.py", str(workers)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_the_second_interrupts(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
        assert f"{number.name}: stopping after this step, then saving" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_slurm_may_repeat_its_signal_while_a_run_is_saved(monkeypatch, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with StopSignal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_a_signal_in_the_middle_of_a_write_to_the_log_is_no_second_write(monkeypatch, capfd):
    """A stream that is written to by the handler, too, raises "reentrant call"."""
    stream = types.SimpleNamespace(
        write=lambda text: pytest.fail("the handler wrote to the stream"), flush=lambda: None
    )
    monkeypatch.setattr(sys, "stderr", stream)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested and "stopping" in capfd.readouterr().err


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(ZeroDivisionError), StopSignal():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("entered", [True, False])
def test_a_forked_process_ends_when_told_to_and_not_with_the_group(entered):
    def fork():
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        return child

    if entered:
        with StopSignal():
            child = fork()
    else:
        child = fork()
    time.sleep(0.1)  # until it has left the group
    try:
        assert (os.getpgid(child) == child) is entered
    finally:
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, workers, whole_group", [("SIGINT", 1, False), ("SIGTERM", 2, True), ("SIGHUP", 2, False)]
)
def test_mindspore_at_work_leaves_the_signals_to_us(number, workers, whole_group, program):
    process = program(workers)
    (os.killpg if whole_group else os.kill)(process.pid, getattr(signal, number))
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 0


@pytest.mark.slow
def test_a_killed_process_of_the_loader_is_a_failure_in_one_sentence(program):
    process = program(2)
    workers = [child for child in psutil.Process(process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    workers[0].kill()
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (said,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "a process that decodes videos was killed by SIGKILL" in said and "Traceback" not in error
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(program):
    process = program(2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
