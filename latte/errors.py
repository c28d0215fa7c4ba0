"""Errors that a person can act on, and how a program ends with one."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class UserError(Exception):
    """One sentence for the person at the keyboard: what is wrong, where, and the remedy."""


class UnreadableError(UserError):
    """The system does not let a file be read, perhaps only now; what is in it may be whole."""


def first_line(error: Exception) -> str:
    """Return the first line of a message that is neither a rule nor a heading, as MindSpore puts before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("-")), type(error).__name__)


def quoted(text: object, limit: int = 100) -> str:
    """Return text from a file as a message can show it: on one line, control characters escaped, cut at `limit`."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:limit])
    return shown[:limit] + "..." if len(whole) > limit or len(shown) > limit else shown


def run_main(main: Callable[[], None]) -> None:
    """Call `main` with its log on the console; print a UserError as one line and exit with 2, an interrupt with 130."""
    log, handler = logging.getLogger("latte"), logging.StreamHandler()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        log.removeHandler(handler)
