"""A process of the loader that is killed ends the run in one sentence, whatever MindSpore waits for by then."""

import faulthandler
import multiprocessing
import os
import signal
import time

import pytest

from latte.data import loader

SIGBUS = "was full: make it larger (docker run --shm-size 8g), or set num_workers to 1"


def work():
    faulthandler.disable()
    time.sleep(60)


class Rows:
    """A loader of two batches whose only worker is killed after the first; the second is a second late."""

    def __init__(self, number):
        self.number = number

    def create_tuple_iterator(self, **_):
        worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        worker.start()
        yield (1,)
        if self.number:
            time.sleep(0.3)  # until the worker is at work
            os.kill(worker.pid, self.number)
            time.sleep(1.5)
        yield (2,)
        worker.kill()


def take(batches, got):
    for batch in batches:
        got.append(batch)


@pytest.fixture(autouse=True)
def nothing_abandoned(monkeypatch):
    monkeypatch.setattr(loader, "ABANDONED", [])


@pytest.mark.parametrize(
    "number, said",
    [(signal.SIGKILL, "was killed by SIGKILL; the system does that when memory"), (signal.SIGBUS, SIGBUS)],
)
def test_the_next_batch_after_a_worker_was_killed_is_an_error(number, said):
    got = []
    with pytest.raises(loader.WorkerLostError) as caught:
        take(loader.fetch(Rows(number)), got)
    assert got == [(1,), (2,)] and said in str(caught.value) and loader.ABANDONED


def test_workers_that_live_change_nothing():
    assert list(loader.fetch(Rows(0))) == [(1,), (2,)] and not loader.ABANDONED


def test_other_processes_that_end_meanwhile_change_nothing():
    """MindSpore's profiler reads its trace by a process of its own."""
    batches = loader.fetch(Rows(0))
    next(batches)
    time.sleep(0.2)
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1.3,), daemon=True)
    other.start()
    other.join()
    time.sleep(1.2)  # the watch looks every second
    assert next(batches) == (2,) and next(batches, None) is None


def test_where_the_program_is_stuck_it_is_saved_and_ended_from_outside(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(loader, "leave", left.append)
    monkeypatch.setattr(loader, "_PATIENCE", 0.01)
    batches = loader.fetch(Rows(signal.SIGKILL), lambda: "step 4 is saved: continue with --resume auto")
    with pytest.raises(loader.WorkerLostError):
        list(batches)
    assert left == [2]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a process that decodes videos was killed by SIGKILL; ")
    assert line.endswith("; step 4 is saved: continue with --resume auto")
