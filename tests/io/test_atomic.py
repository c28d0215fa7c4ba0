"""Files and folders are there whole or not at all, and what killed writers left goes."""

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from latte.errors import UserError
from latte.io import atomic
from latte.io.atomic import atomic_entries, atomic_folder, atomic_path, remove_leftovers

WRITERS = {"atomic_path": "target.ckpt", "atomic_folder": "target", "atomic_entries": ""}


@contextlib.contextmanager
def writing_process(writer, target):
    """Run a process that is in the middle of writing, and yield its number; it ends with the block at the latest."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with getattr(atomic, writer)(target) as temporary:
            (temporary if writer == "atomic_path" else temporary / "part").write_bytes(b"half")
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("writer, name", WRITERS.items())
def test_the_next_write_removes_what_a_killed_one_left_but_not_what_a_living_one_writes(writer, name, tmp_path):
    with writing_process(writer, tmp_path / name):
        pass  # killed
    (left,) = hidden(tmp_path)
    assert not (tmp_path / "target").exists() and not (tmp_path / "target.ckpt").exists()
    with writing_process(writer, tmp_path / name):
        atomic._swept.clear()
        with atomic_path(tmp_path / "other.txt") as temporary:
            temporary.write_text("whole")
        (living,) = hidden(tmp_path)
        assert living != left
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_nothing_of_others_is_taken_for_a_leftover(tmp_path):
    (tmp_path / ".git-0123abcd" / "objects").mkdir(parents=True)  # has no lock of ours
    (tmp_path / ".note-0123abcd").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / atomic.LOCK).touch()
    (tmp_path / ".link-0123abcd").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    remove_leftovers(tmp_path / "none")


def test_a_process_killed_before_its_first_byte_leaves_nothing_for_ever(tmp_path):
    (tmp_path / ".a-0123abcd").mkdir()
    remove_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["mkdir", "acquire", "touch", "replace", "rmtree"])
def test_an_interrupt_at_any_moment_leaves_nothing(step, tmp_path, monkeypatch):
    """A signal raises in the middle of anything; what a second one keeps from being removed goes at the end."""
    homes = {"acquire": atomic.FileLock, "rmtree": shutil}
    home = homes.get(step, Path)
    real = getattr(home, step)

    def interrupted(*arguments, **options):
        if step != "rmtree":
            real(*arguments, **options)
        raise KeyboardInterrupt

    def write():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("whole")

    with monkeypatch.context() as patch:
        patch.setattr(home, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write()
    atomic._remove_all()  # the end of the program
    assert hidden(tmp_path) == [] and not atomic._working


def test_a_forked_process_does_not_remove_what_its_parent_writes(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        child = os.fork()
        if not child:
            atomic._remove_all()
            os._exit(0)
        os.waitpid(child, 0)
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and hidden(tmp_path) == []


def test_two_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    with atomic_path(tmp_path / "a.txt") as first, atomic_path(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first" and hidden(tmp_path) == []


def test_a_working_folder_that_was_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    real, removed = atomic.FileLock.acquire, []

    def acquire(lock, *arguments, **options):
        if not removed:
            removed.append(Path(lock.lock_file).parent)
            removed[0].rmdir()
        return real(lock, *arguments, **options)

    monkeypatch.setattr(atomic.FileLock, "acquire", acquire)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and removed


@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_the_folder_is_on_the_disk_after_the_rename(write, tmp_path, monkeypatch):
    target, seen = tmp_path / "new" / "deep" / "target", []
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: seen.append((folder, target.exists())))
    with write(target):
        pass
    assert {(target.parent, True), (tmp_path / "new", True), (tmp_path, True)} <= set(seen)


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "big.ckpt").write_text("old")
    link = tmp_path / "a.ckpt"
    link.symlink_to(disk / "big.ckpt")
    with atomic_path(link) as temporary:
        assert temporary.parent.parent == disk  # so that the rename stays on that disk
        temporary.write_text("new")
    assert link.is_symlink() and (disk / "big.ckpt").read_text() == "new"
    assert hidden(tmp_path) == hidden(disk) == []


@pytest.mark.parametrize("kind, said", [("loop", "cannot write"), ("nowhere", "whose folder does not exist")])
def test_links_that_lead_nowhere_are_refused(kind, said, tmp_path):
    link = tmp_path / "a.ckpt"
    link.symlink_to(link if kind == "loop" else tmp_path / "unplugged" / "a.ckpt")
    with pytest.raises(UserError, match=said), atomic_path(link) as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_regular_files_are_replaced(kind, tmp_path):
    target = tmp_path / "a.ckpt"
    os.mkfifo(target) if kind == "pipe" else target.mkdir()
    with pytest.raises(UserError, match="name another file"), atomic_path(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_mask_of_the_process_is_respected_and_never_changed(tmp_path, monkeypatch):
    program = f"""
import os
os.umask(0o027)
from latte.io import atomic
changed = []
os.umask = changed.append
with atomic.atomic_path({str(tmp_path / "a.txt")!r}) as path:
    path.write_text("whole")
with atomic.atomic_folder({str(tmp_path / "b")!r}) as path:
    pass
print(changed)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n" or not Path("/proc/self/status").exists()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    "error, free, said",
    [
        (OSError(), 2**30, "OSError"),
        (OSError("a log of ffmpeg\n\nmuxer does not know\n\n"), 2**30, "muxer does not know"),
        (OSError("1000 requested and 0 written"), 0, os.strerror(errno.ENOSPC)),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), 0, os.strerror(errno.EROFS)),
    ],
)
def test_the_sentence_has_the_right_reason(error, free, said, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'a.mp4'}: {said}$"), atomic_path(tmp_path / "a.mp4"):
        raise error


@pytest.mark.parametrize("writable", [True, False])
def test_a_disk_that_is_too_small_is_told_in_units_that_show_it(writable, tmp_path, monkeypatch):
    """A disk that cannot be written may have nothing free either, which is not the reason."""
    usage = shutil.disk_usage(tmp_path)._replace(free=2500)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(os, "access", lambda folder, mode: writable)
    atomic.check_room(tmp_path, 2500, "make room")
    said = f"^{tmp_path} has 2.5 kB free, but 3.1 MB are needed; make room$"
    with pytest.raises(UserError, match=said) if writable else contextlib.nullcontext():
        atomic.check_room(tmp_path / "new" / "deep", 3_100_000, "make room")


def test_sizes_have_the_largest_unit_that_fits():
    sizes = (0, 999, 1000, 25_000_000_000, 3 * 10**15)
    assert [*map(atomic.describe_bytes, sizes)] == ["0 bytes", "999 bytes", "1.0 kB", "25.0 GB", "3,000.0 TB"]


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    name = "é" * 120 + ".ckpt"
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_system_without_locks_or_synced_folders_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(code):
        def refused(*_arguments, **_options):
            raise OSError(code, os.strerror(code))

        return refused

    real = os.fsync
    monkeypatch.setattr(atomic.FileLock, "acquire", refuse(errno.ENOLCK))
    monkeypatch.setattr(
        os, "fsync", lambda file: refuse(errno.EINVAL)() if stat.S_ISDIR(os.fstat(file).st_mode) else real(file)
    )
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    with atomic_entries(tmp_path) as temporary:
        (temporary / "b.txt").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]
