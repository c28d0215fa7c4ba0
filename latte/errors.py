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
