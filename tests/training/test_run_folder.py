"""Which folder a run gets, which one it goes on in, and that only one process is in it."""

import logging
import os
import re
import signal
import subprocess
import sys

import pytest

from latte.errors import UserError
from latte.training import run_folder

HOLD = """
import os, sys, time
from pathlib import Path
from latte.training import run_folder
file = run_folder.lock(Path(sys.argv[1]))
if not os.fork():
    print(os.getpid(), flush=True)  # it lets go of the lock before `fork` returns
time.sleep(60)
"""


def started(root, name, seconds, *steps):
    """Make a run that was started at some time and has checkpoints of some steps."""
    folder = run_folder.create_run(root, name)
    (folder / run_folder.CONFIG_FILE).write_text("{}")
    os.utime(folder / run_folder.CONFIG_FILE, (seconds, seconds))
    for step in steps:
        (folder / "ckpt" / f"state-{step:08d}.safetensors").touch()
    return folder


def test_runs_of_one_second_have_folders_of_their_own(tmp_path):
    folders = [run_folder.create_run(tmp_path / "new", "Latte-S-2") for _ in range(3)]
    assert len(set(folders)) == 3 and all((folder / "ckpt").is_dir() for folder in folders)
    assert all(re.fullmatch(r"Latte-S-2-\d{8}-\d{6}(-\d)?", folder.name) for folder in folders)


def test_without_resume_a_run_is_new(tmp_path):
    old = started(tmp_path, "a", 100, 5)
    assert run_folder.find_run(tmp_path, None, "a") != old


def test_auto_takes_what_was_started_or_resumed_last(tmp_path):
    assert run_folder.find_run(tmp_path / "none", "auto", "a").name.startswith("a-")
    first, second = started(tmp_path, "z", 100, 5), started(tmp_path, "a", 200, 5)
    assert run_folder.find_run(tmp_path, "auto", "a") == run_folder.newest_run(tmp_path) == second
    os.utime(first / run_folder.CONFIG_FILE, (300, 300))  # a resume writes the options again
    assert run_folder.find_run(tmp_path, "auto", "a") == first


def test_auto_restarts_a_run_that_died_before_its_first_checkpoint_in_its_folder(tmp_path):
    started(tmp_path, "a", 100, 5)
    died = started(tmp_path, "a", 200)
    assert run_folder.find_run(tmp_path, "auto", "a") == died


def test_auto_passes_over_folders_that_are_no_runs(tmp_path):
    run_folder.create_run(tmp_path, "a")  # died before it wrote its options
    (tmp_path / "notes").mkdir()
    assert run_folder.newest_run(tmp_path) is None


@pytest.mark.parametrize("part", ["", "ckpt", "ckpt/state-00000009.safetensors"])
def test_a_run_is_named_by_its_folder_or_newest_state(part, tmp_path):
    folder = started(tmp_path, "a", 100, 5, 9)
    assert run_folder.find_run("elsewhere", str(folder / part), "a") == folder


@pytest.mark.parametrize(
    "part, said",
    [
        ("../nowhere", "nowhere is not the folder of a run"),
        ("log.txt", "log.txt is not the folder of a run"),
        ("ckpt/state-00000007.safetensors", "state-00000007.safetensors is not the folder of a run"),
        ("ckpt/state-00000005.safetensors", "is not the newest of its run, state-00000009.safetensors is"),
    ],
)
def test_a_wrong_name_is_an_error(part, said, tmp_path):
    folder = started(tmp_path, "a", 100, 5, 9)
    (folder / "log.txt").touch()
    with pytest.raises(UserError, match=re.escape(said)):
        run_folder.find_run(tmp_path, str(folder / part), "a")


def test_an_output_path_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"output_path .*file"):
            run_folder.create_run(root, "a")


def test_only_one_process_is_in_a_run_and_its_children_do_not_count(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"{tmp_path} is in use by another process"):
            run_folder.lock(tmp_path)
        process.kill()
        process.wait()
        os.kill(child, 0)  # still there
        run_folder.lock(tmp_path).release()
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_run_that_cannot_be_locked_is_an_error_and_what_a_link_points_to_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / run_folder.LOCK).symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cannot be locked"):
        run_folder.lock(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_log_goes_on_after_what_is_there(tmp_path):
    (tmp_path / "log.txt").write_text("before\n")
    log = logging.getLogger("latte")
    handlers, level = list(log.handlers), log.level
    try:
        log.setLevel(logging.INFO)
        log.propagate = False  # pytest's processes cannot send each other what is no text
        run_folder.log_to(tmp_path)
        log.info("step %d", 3)
        log.info("skipped: %s", "night\udce9.mp4")  # a file's name need not be text
    finally:
        log.propagate = True
        log.setLevel(level)
        for handler in set(log.handlers) - set(handlers):
            log.removeHandler(handler)
            handler.close()
    before, line, name = (tmp_path / "log.txt").read_text().splitlines()
    assert before == "before" and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d step 3", line)
    assert name.endswith(r" skipped: night\udce9.mp4")
