"""The YAML that options are written in: lines of `name: value`, of which every name may stand once.

A value without quotation marks is kept as it is spelled, because only its option knows whether 20240105, 2024-01-05 or
off is meant as text.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_FILE = 1 << 20  # bytes; a file of options has some thousands
DEEPEST = 8  # levels of lists in lists; an option needs two
YAML_SIGNS = (yaml.scanner.ScannerError, yaml.parser.ParserError)
MOST_VALUES = 10_000  # with those that aliases repeat


@dataclass(frozen=True)
class Plain:
    """A value without quotation marks, as it is spelled; its option knows what it stands for."""

    text: str


@dataclass
class _Reader:
    """Builds values from the events of a parser; `sizes` of lists and mappings bound what aliases may repeat."""

    events: Iterator[Any]
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of the keys of the outermost mapping, from 1 on

    def document(self) -> Any:
        """Return the value of the only document; None if there is none."""
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value, _ = self.value(next(self.events), 0)
        next(self.events)  # the end of the document
        if not isinstance(after := next(self.events), yaml.StreamEndEvent):
            raise _mistake("a second document begins", after)
        return value

    def value(self, event: Any, depth: int) -> tuple[Any, int]:
        """Return the value that begins with an event, and how many values it consists of."""
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _mistake(f"*{event.anchor} stands for nothing that ends before it", event)
            return self.anchors[event.anchor]
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _mistake(f"the tag {event.tag!r} is not allowed", event)
        if isinstance(event, yaml.ScalarEvent):
            is_plain = event.implicit[0] and event.tag is None
            found: tuple[Any, int] = (Plain(event.value) if is_plain else event.value), 1
        elif depth == DEEPEST:
            raise _mistake(f"lists are nested more than {DEEPEST} deep", event)
        else:
            is_list = isinstance(event, yaml.SequenceStartEvent)
            found = self._list(depth + 1) if is_list else self._mapping(depth + 1)
        if event.anchor:
            self.anchors[event.anchor] = found
        return found

    def _list(self, depth: int) -> tuple[list[Any], int]:
        values, count = [], 1
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            value, size = self.value(event, depth)
            values.append(value)
            count = _bounded(count + size, event)
        return values, count

    def _mapping(self, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        count = 1
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _mistake("a name must be text", event)
            line = _line(event)
            if event.value in values:
                raise _mistake(
                    f"{event.value!r} stands there twice, the first time in line {lines[event.value]}", event
                )
            value, size = self.value(next(self.events), depth)
            values[event.value], lines[event.value] = value, line
            count = _bounded(count + size, event)
        if depth == 1:
            self.lines = lines
        return values, count


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values in a YAML file by name, and the line of each name, from 1 on.

    Values are `Plain`, str for what stands in quotation marks, and lists and mappings of these.
    Raises UserError, which names the file and the line, if there is no such regular file, it is not UTF-8, too large,
    not valid or no mapping, or a name stands twice.
    """
    text = _text(path)
    reader = _Reader(iter(yaml.parse(text, Loader=yaml.SafeLoader)))
    try:
        values = reader.document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        # What YAML's own parser says about a text such as `a: b` helps nobody who does not know YAML.
        hint = "; put a text with such characters in quotation marks" if isinstance(error, YAML_SIGNS) else ""
        raise UserError(f"{path}{where} is not valid YAML: {problem}{hint}") from None
    if values is None or (isinstance(values, Plain) and not values.text):
        return {}, {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form `name: value`")
    return values, reader.lines


def flow_list(text: str) -> list[Any] | None:
    """Return the values of a list in brackets, such as `[a, "b, c"]`, or None if the text is no such list."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        values = _Reader(iter(yaml.parse(text, Loader=yaml.SafeLoader))).document()
    except yaml.YAMLError:
        return None
    return values if isinstance(values, list) else None


def _text(path: str | Path) -> str:
    try:
        # A pipe without a writer would hang, a device never end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise UserError(f"cannot read the config file {path}: it is a folder, a pipe or a device; name a file")
            if about.st_size > LARGEST_FILE:
                raise UserError(f"{path} is larger than {LARGEST_FILE:,} bytes, so it is no config file; name another")
            content = file.read(LARGEST_FILE)
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from None
    except ValueError:  # a null character in the name
        raise UserError(f"cannot read the config file {str(path)!r}: no file can have this name") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from None


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _bounded(count: int, event: Any) -> int:
    if count > MOST_VALUES:
        raise _mistake(f"it holds more than {MOST_VALUES:,} values", event)
    return count


def _mistake(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
