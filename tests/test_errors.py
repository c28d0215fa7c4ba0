"""How programs end: with one sentence, or with one word and the code of a signal."""

import io
import logging
import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from latte import errors
from latte.errors import DETAIL, ENDINGS, MINDSPORE_LOG, Interrupted, UserError, reason, run_main
from latte.io.atomic import atomic_path


@pytest.mark.parametrize("name, word", ENDINGS.items())
def test_a_signal_ends_a_program_in_order_with_one_word(name, word, tmp_path, capsys):
    number = getattr(signal, name)
    # As in a new process: MindSpore answers SIGINT with a SIGTERM to itself once it has compiled a graph.
    signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    before = signal.getsignal(number)

    def main():
        with atomic_path(tmp_path / "a.ckpt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(9)

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 128 + number and capsys.readouterr().err == word + "\n"
    assert not any(tmp_path.iterdir()) and signal.getsignal(number) is before


def test_a_library_that_makes_another_error_of_a_signal_does_not_hide_it(capsys):
    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)
        except Interrupted:
            raise RuntimeError("a callback failed") from None

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 143 and capsys.readouterr().err == "terminated\n"


def test_under_nohup_a_closed_terminal_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_main(lambda: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [UserError("no data"), ZeroDivisionError()])
def test_other_ends_are_as_ever(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit if isinstance(error, UserError) else ZeroDivisionError) as ended:
        run_main(main)
    if isinstance(error, UserError):
        assert ended.value.code == 2 and capsys.readouterr().err == "error: no data\n"


def test_a_name_that_the_system_does_not_take_is_one_sentence(tmp_path, capsys):
    (tmp_path / "a").symlink_to("a")
    for path in ("x" * 300, tmp_path / "a" / "b"):
        with pytest.raises(SystemExit) as ended:
            run_main(lambda path=path: Path(path).stat())
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1
        assert error.startswith("error: ") and error.endswith("; check the option that names it\n")


def test_a_name_that_is_no_text_can_be_printed(monkeypatch):
    for encoding in ("utf-8", "ascii"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True))
        run_main(lambda: print("videos in night\udce9 and \u65e5"))
        assert sys.stdout.buffer.getvalue().startswith(rb"videos in night\udce9 and ")


def test_with_something_abandoned_a_program_ends_at_once_with_its_code(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(errors, "ABANDONED", [object()])
    monkeypatch.setattr(errors, "leave", left.append)
    for error, ended in ((UserError("lost"), SystemExit), (ZeroDivisionError(), ZeroDivisionError)):
        main = raising(error)
        with pytest.raises(ended):
            run_main(main)
    run_main(lambda: None)
    assert left == [2, 1, 0] and "ZeroDivisionError" in capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(28, "No space left on device", "a"), "No space left on device"),
        (OSError("one\ntwo\n"), "two"),
        (OSError(), "OSError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_every_error_has_a_reason(error, said):
    assert reason(error) == said


def test_a_closed_terminal_does_not_break_what_is_written_at_the_end(tmp_path):
    """Every write to a terminal that is gone fails; the program must still clean up and end with its code."""
    code = (
        "import os, sys, time\n"
        "from latte.errors import run_main\n"
        "def main():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(30)\n"
        "    finally:\n"
        "        print('saving', flush=True)\n"
        "        open(sys.argv[1], 'w').close()\n"
        "run_main(main)\n"
    )
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", code, str(tmp_path / "saved")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # as a closed ssh session
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129 and (tmp_path / "saved").exists()


class Terminal(io.StringIO):
    """Stands for the standard error output of a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream, words, shown", [(Terminal, [], 1), (Terminal, ["--verbose"], 2), (io.StringIO, [], 2)]
)
def test_a_terminal_gets_no_lines_that_say_what_a_bar_shows(stream, words, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setenv(MINDSPORE_LOG, "3")
    monkeypatch.setenv("TQDM_MININTERVAL", "1")  # so that it is put back
    monkeypatch.delenv("TQDM_MININTERVAL")
    log = logging.getLogger("latte")

    def main():
        log.info("step 20", extra=DETAIL)
        log.info("saved")

    run_main(main)
    assert sys.stderr.getvalue().splitlines() == ["step 20", "saved"][-shown:]
    assert os.environ[MINDSPORE_LOG] == ("2" if words else "3")  # what MindSpore reads when it is imported
    assert ("TQDM_MININTERVAL" in os.environ) is (stream is io.StringIO)


def test_a_level_of_the_log_that_shows_more_is_left(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--verbose"])
    monkeypatch.setenv(MINDSPORE_LOG, "1")
    run_main(lambda: None)
    assert os.environ[MINDSPORE_LOG] == "1"
