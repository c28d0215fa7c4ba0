"""Errors that a person can act on, and how a program ends with one or by a signal."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Objects of libraries that would hang or crash when they are destroyed; with one of them a program ends by `leave`.
ABANDONED: list[object] = []
# By which a program is asked to end, and how it says so; Python itself answers the first with a KeyboardInterrupt.
ENDINGS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
MINDSPORE_LOG = "GLOG_v"  # the level of MindSpore's log in the environment: 2 is of warnings, 3 of errors
DETAIL = {"detail": True}  # `extra` of log lines that say no more than a progress bar does, and belong into files
_OF_NAMES = (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP)  # of files by their names


class UserError(Exception):
    """One sentence for the person at the keyboard: what is wrong, where, and the remedy."""


class UnreadableError(UserError):
    """The system does not let a file be read, perhaps only now; what is in it may be whole."""


class Interrupted(KeyboardInterrupt):
    """A signal of ENDINGS, in the main thread; what is being written goes, as it does after Ctrl-C."""


def first_line(error: Exception) -> str:
    """Return the first line of a message that is neither a rule nor a heading, as MindSpore puts before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("-")), type(error).__name__)


def quoted(text: object, limit: int = 100) -> str:
    """Return text from a file as a message can show it: on one line, control characters escaped, cut at `limit`."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:limit])
    return shown[:limit] + "..." if len(whole) > limit or len(shown) > limit else shown


def reason(error: Exception) -> str:
    """Return why the system refused; of an error with a whole log, as ffmpeg's, the last line."""
    stated = getattr(error, "strerror", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return stated or (lines[-1] if lines else type(error).__name__)


def run_main(main: Callable[[], None]) -> None:
    """Call `main` with its log on the console; print a UserError as one line and exit with 2.

    With --verbose on the command line MindSpore's warnings are shown, and the lines marked as DETAIL, which a terminal
    does not get otherwise. Where there is no terminal, progress bars are written every ten seconds.

    After a signal of ENDINGS one word is printed, and the code is 128 and its number: 130 after Ctrl-C. If something
    is ABANDONED, the process ends at once.
    """
    log, handler, verbose = logging.getLogger("latte"), logging.StreamHandler(), "--verbose" in sys.argv
    on_terminal = sys.stderr.isatty()
    if verbose:  # before MindSpore is imported; see latte/__init__.py
        os.environ[MINDSPORE_LOG] = min(os.environ.get(MINDSPORE_LOG, "2"), "2")
    else:
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
    if not on_terminal:
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    handler.addFilter(lambda record: verbose or not on_terminal or not hasattr(record, "detail"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text, or not of the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 1
    try:
        _run(main)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except Exception:
        if ABANDONED:
            traceback.print_exc()
        raise
    finally:
        log.removeHandler(handler)
        if ABANDONED:
            leave(code)


def _run(main: Callable[[], None]) -> None:
    with _raising() as received:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            end_by(received[0] if received else signal.SIGINT)
        except Exception as error:
            if received:  # what a library made of it
                end_by(received[0])
            if isinstance(error, OSError) and error.errno in _OF_NAMES and isinstance(error.filename, str):
                sentence = f"error: {quoted(error.filename)}: {error.strerror}; check the option that names it"
                print(sentence, file=sys.stderr)
                raise SystemExit(2) from None
            raise


def leave(code: int) -> NoReturn:
    """End the process at once, without the end of any library; what was printed is written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def end_by(number: int) -> NoReturn:
    """Exit as a program that a signal ends; raises SystemExit."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(ENDINGS[signal.Signals(number).name], file=sys.stderr, flush=True)
    raise SystemExit(128 + number) from None


@contextlib.contextmanager
def handled(handle: Callable[[int, FrameType | None], Any], *names: str) -> Iterator[dict[int, Any]]:
    """Handle signals by name in the block, those that the system has; yields the handlers from before, by number.

    SIGHUP stays ignored where it is, as under `nohup`. At a SIGHUP, what is written to a terminal goes nowhere from
    then on, as the terminal is gone. Outside the main thread nothing is handled.
    """
    terminals = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and stream.isatty()]

    def leave_terminal(number: int, frame: FrameType | None) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)
        handle(number, frame)

    before: dict[int, Any] = {}
    try:
        for name in names if threading.current_thread() is threading.main_thread() else ():
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue
            before[number] = signal.getsignal(number)
            signal.signal(number, leave_terminal if name == "SIGHUP" else handle)
        yield before
    finally:
        restore(before)


def restore(handlers: dict[int, Any]) -> None:
    """Set handlers by number of signal; None, for one that is not Python's, becomes the system's own."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _raising() -> Iterator[list[int]]:
    """Raise Interrupted at a signal in the block; yields the list of the signals received so far."""
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise Interrupted

    with handled(interrupt, "SIGTERM", "SIGHUP"):
        yield received
