"""A run stops in order at a signal, also with MindSpore at work and a loader's processes in its group."""

import logging
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from latte.training.stopping import StopSignal

WORK = """
import sys, time
import mindspore as ms
import numpy as np
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

device.init_device("CPU")
workers = int(sys.argv[1])
call = ms.jit(double)
with StopSignal() as stop:
    ms.dataset.config.set_enable_shared_mem(workers > 1)
    rows = ms.dataset.GeneratorDataset(
        Rows(), ["x"], shuffle=False, num_parallel_workers=workers, python_multiprocessing=workers > 1, max_rowsize=-1
    )
    left = 10  # batches that are still fetched: a step may take several
    for number, (x,) in enumerate(rows.batch(2).create_tuple_iterator(num_epochs=1, output_numpy=True)):
        call(ms.Tensor(x)).asnumpy()
        if number == 3:
            print("ready", flush=True)
        left -= stop.requested
        if not left:
            break
    print("saved", flush=True)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "work.py").write_text(WORK)  # ms.jit reads the source
    started = []

    def start(workers):
        command = [sys.executable, tmp_path / "work.py", str(workers)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number, caplog):
    before = signal.getsignal(number)
    with caplog.at_level(logging.WARNING, "latte"), StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and f"{number.name}: stopping after this step, then saving" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_the_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), StopSignal():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers, whole_group", [(1, False), (2, True)])
def test_mindspore_at_work_leaves_the_signals_to_us(number, workers, whole_group, program):
    process = program(workers)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 0


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(program):
    process = program(2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
