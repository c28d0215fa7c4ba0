"""JSON from files that others wrote: bounded in size and depth, each key once, numbers that are numbers.

The standard parser takes NaN, lets the last of two equal keys win, recurses as deep as a file says, and reads a pipe
for as long as it is open.
"""

from __future__ import annotations

import errno
import json
import math
import numbers
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte.errors import UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LIMIT = 1 << 20  # bytes of a configuration; those of diffusers and transformers have thousands
DEPTH = 64  # objects and lists inside each other
DIGITS = 40  # of a whole number; transformers writes 10**30 for "no limit"
REMEDY = "correct it, or download it again"


def read_json(
    path: str | Path, limit: int = LIMIT, *, infinite: Collection[str] = (), remedy: str = REMEDY
) -> dict[str, Any]:
    """Return the JSON object in a regular file of at most `limit` bytes.

    Only the keys `infinite` may be infinite. Raises UserError, with the remedy, if there is no such file or it holds
    anything else.
    """
    return parse_json(read_bytes(path, limit, remedy), path, infinite=infinite, remedy=remedy)


def parse_json(
    text: str | bytes, source: str | Path, *, infinite: Collection[str] = (), remedy: str = REMEDY
) -> dict[str, Any]:
    """Return the JSON object that a text is; `source` names it in errors.

    Only the keys `infinite` may be infinite. Raises UserError, with the remedy, for anything but an object, a key that
    is there twice, NaN, half a surrogate, numbers of more than DIGITS digits and values nested deeper than DEPTH.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")  # some editors begin a file with a mark of its encoding
        found = json.loads(text, object_pairs_hook=once)
        _check_values(found, infinite)
    except UnicodeDecodeError:
        raise UserError(f"{source} is not JSON but binary data; {remedy}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid JSON (it is nested too deeply); {remedy}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not valid JSON (line {error.lineno}: {error.msg}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{source} holds no JSON object but {_kind(found)}; {remedy}")
    return found


def read_bytes(path: str | Path, limit: int, remedy: str = REMEDY) -> bytes:
    """Return the contents of a regular file; raises UserError, with the remedy, if it has more than `limit` bytes."""
    path = check_regular(path, remedy)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    if len(content) > limit:
        raise UserError(f"{path} is larger than {limit / 2**20:g} MiB, as no file of its kind is; {remedy}")
    return content


def check_regular(path: str | Path, remedy: str = REMEDY) -> Path:
    """Return the path of a file that has an end; raises UserError if it is missing, a folder, a pipe or a device."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except ValueError:  # a NUL in the name
        raise UserError(f"{quoted(path)} is no name that a file can have; {remedy}") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{path} is {what}, not a file; {remedy}")
    return path


def exists(path: str | Path) -> bool:
    """Return whether there is something at a path; what cannot be a name is nothing, trouble of a disk is something."""
    try:
        return Path(path).exists()
    except ValueError:  # a NUL
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG


def check_numbers(values: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """Raise UserError, naming `where` and the key, unless each value is a number within its bounds, or null.

    Bounds are inclusive; those that are whole numbers ask for a whole number.
    """
    for key, (low, high) in bounds.items():
        value, whole = values.get(key), isinstance(low, int)
        if value is None:
            continue
        of_kind = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
        if not of_kind or not low <= value <= high:  # NaN is within no bounds
            what = f"a whole number from {low:,} to {high:,}" if whole else f"a number from {low:g} to {high:g}"
            many = isinstance(value, int) and abs(value) >= 10**DIGITS  # which Python may refuse to print
            shown = f"a number of more than {DIGITS} digits" if many else quoted(repr(value), 60)
            raise UserError(f"{where}{': ' if where else ''}{key} must be {what}, but is {shown}")


def is_unicode(text: str) -> bool:
    """Return whether a text can be written: JSON and pickles can have halves of surrogate pairs, which cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its pairs, for `json.loads`; raises ValueError if a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_name(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return found


def _check_values(root: Any, infinite: Collection[str]) -> None:
    """Raise ValueError for values that no configuration has."""
    level = [("", root)]
    for _ in range(DEPTH):
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, dict):
                inner += value.items()
                _check_texts(value)
            elif isinstance(value, list):
                inner += [(key, item) for item in value]
            elif isinstance(value, str):
                _check_texts([value])
            elif isinstance(value, float) and not math.isfinite(value) and (key not in infinite or math.isnan(value)):
                raise ValueError(f"{_name(key)} is {value}, not a finite number")
            elif isinstance(value, int) and abs(value) >= 10**DIGITS:
                raise ValueError(f"{_name(key)} is a number of more than {DIGITS} digits")
        level = inner
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _check_texts(texts: Collection[str]) -> None:
    """Raise ValueError for a text that cannot be written as UTF-8."""
    for text in texts:
        if not is_unicode(text):
            raise ValueError(f"{_name(text)} is no text")


def _name(key: str) -> str:
    return f'"{quoted(key, 60)}"'


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")
