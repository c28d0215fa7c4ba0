"""Options as dataclasses: their checks, their --help, and reading them from YAML and the command line."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import io
import json
import re
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import jsonargparse
import yaml

from latte.errors import UserError
from latte.io.atomic import atomic_path

COMMAND_LINE = "command line"
INCLUDE = "data_config"  # the option that names a second YAML file, whose options are the weakest
_UNRECOGNIZED = "unrecognized arguments: "  # how argparse begins that message


class OptionError(UserError):
    """An option has a value that is not allowed; `source` is the file it stands in, or the command line."""

    def __init__(self, key: str, value: object, allowed: str, source: str | None = None) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        prefix = f"{source}: " if source else ""
        super().__init__(f"{prefix}{key} is {_show(value)}, but must be {allowed}")


@dataclasses.dataclass(kw_only=True)
class Options:
    """What a group of options inherits; a group checks its values in `__post_init__`, after those of its super."""

    def __post_init__(self) -> None:
        """Raise OptionError if a value is not allowed."""


Config = TypeVar("Config", bound=Options)


def in_range(options: Options, key: str, low: float, high: float | None = None) -> None:
    """Raise OptionError unless the option is None or from `low` to `high`, both allowed."""
    value = getattr(options, key)
    if value is None or (value >= low and (high is None or value <= high)):
        return
    raise OptionError(key, value, f"at least {low}" if high is None else f"from {low} to {high}")


def parse_config(
    cls: type[Config], argv: Sequence[str] | None = None, prog: str | None = None, description: str | None = None
) -> Config:
    """Return the options of a program: the command line over the YAML file of -c over its data file over the defaults.

    `argv` is without the program's name; None means that of this process. --help prints every option and exits with 0.
    Raises UserError, naming the file and the option, for unknown options, wrong types and values out of range.
    """
    parser = _make_parser(cls, prog, description)
    known = [field.name for field in dataclasses.fields(cls)]
    given = _read_arguments(parser, argv, known, _hints(cls))
    path = given.pop("config", None)
    from_file = _read_yaml(parser, path, known, _hints(cls)) if path else {}
    if INCLUDE not in given and from_file.get(INCLUDE):
        from_file[INCLUDE] = str(Path(path).parent / from_file[INCLUDE])
    included = {**from_file, **given}.get(INCLUDE)
    from_included = _read_yaml(parser, included, known, _hints(cls)) if included else {}
    try:
        return cls(**{**from_included, **from_file, **given})
    except OptionError as error:
        source = COMMAND_LINE if error.key in given else path if error.key in from_file else included
        raise OptionError(error.key, error.value, error.allowed, source) from None


def save_config(config: Options, path: str | Path) -> None:
    """Write every option with its value as YAML that `parse_config` reads back; raises UserError if it cannot."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def field_comments(source: str) -> dict[str, str]:
    """Return the comment at the end of each annotated line, by the name it annotates, in the source of a class."""
    source = textwrap.dedent(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    fields = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(node.target): comments.get(node.end_lineno, "") for node in fields}


class _Help(jsonargparse.DefaultHelpFormatter):
    """Leave out what jsonargparse adds: the types, which the metavars say, and `--name+`, which appends to a list."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or ""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return re.sub(r", --\w+\+ .*", "", super()._format_action_invocation(action))


def _make_parser(cls: type[Options], prog: str | None, description: str | None) -> jsonargparse.ArgumentParser:
    """Make a parser with one group of arguments for each class that `cls` inherits from."""
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=description or inspect.getdoc(cls),
        usage="%(prog)s -c CONFIG [--option VALUE ...]",
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,  # or a new option could change what an old command means
    )
    parser.add_argument("-c", "--config", type=str, help="YAML file with options; those of the command line go first")
    hints = _hints(cls)
    for owner in reversed(cls.__mro__):
        own = [field for field in dataclasses.fields(cls) if field.name in owner.__dict__.get("__annotations__", ())]
        if not own:
            continue
        group = parser.add_argument_group((inspect.getdoc(owner) or owner.__name__).splitlines()[0])
        comments = field_comments(inspect.getsource(owner))
        for field in own:
            hint = hints[field.name]
            group.add_argument(
                f"--{field.name}",
                type=_accepted(hint),
                default=_default(field),
                metavar=_metavar(hint),
                help=f"{comments[field.name]} (default: {_show(_default(field))})",
            )
    return parser


def _read_arguments(
    parser: jsonargparse.ArgumentParser, argv: Sequence[str] | None, known: list[str], hints: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that the command line gives, without defaults."""
    try:
        given = parser.parse_args(_flags_spelled_out(argv, hints), defaults=False).as_dict()
    except jsonargparse.ArgumentError as error:
        text = str(error)
        if text.startswith(_UNRECOGNIZED):
            word = text.removeprefix(_UNRECOGNIZED).split()[0]
            if word.startswith("--"):
                raise UserError(_unknown(word[2:].split("=")[0], known, COMMAND_LINE)) from None
            raise UserError(f"{COMMAND_LINE}: {word!r} is no option; write --name value, and lists as [1,2]") from None
        raise _option_error(text, hints, COMMAND_LINE) from None
    return _checked(given, hints, COMMAND_LINE)


def _flags_spelled_out(argv: Sequence[str] | None, hints: dict[str, Any]) -> list[str]:
    """Write `--dry_run` without a value as `--dry_run=true`."""
    words = list(sys.argv[1:] if argv is None else argv)
    alone = [following.startswith("-") for following in (*words[1:], "-")] if words else []
    return [
        f"{word}=true" if last and hints.get(word.removeprefix("--")) is bool and word.startswith("--") else word
        for word, last in zip(words, alone, strict=True)
    ]


def _read_yaml(
    parser: jsonargparse.ArgumentParser, path: str, known: list[str], hints: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that a YAML file gives, without defaults."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold lines of the form `name: value`")
    for key in values:
        if key not in known:
            raise UserError(_unknown(str(key), known, path))
    try:
        return _checked(parser.parse_object(values, defaults=False).as_dict(), hints, path)
    except jsonargparse.ArgumentError as error:
        raise _option_error(str(error), hints, path, values) from None


def _option_error(text: str, hints: dict[str, Any], source: str, values: dict[str, Any] | None = None) -> UserError:
    """Turn jsonargparse's several lines into one sentence."""
    key = re.search(r'Parser key "(\w+)"', text)
    value = re.search(r"(?:Got|Given) value: (.*)", text)
    if not key or key[1] not in hints:
        return UserError(f"{source}: {' '.join(text.split())}")
    text = value[1] if value else ""
    shown = values[key[1]] if values else {"None": None, "True": True, "False": False}.get(text, text)
    return OptionError(key[1], shown, _allowed(hints[key[1]]), source)


def _unknown(key: str, known: list[str], source: str) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return f"{source}: there is no option {key!r}; the nearest is {nearest[0]!r}, and --help lists all"


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _options_of(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _accepted(hint: Any) -> Any:
    """Let one item stand for a list of one, so that `--output_format gif` works."""
    items = [typing.get_args(option)[0] for option in _options_of(hint) if typing.get_origin(option) is list]
    return Union[(hint, *items)] if items else hint  # noqa: UP007, the members are only known here


def _checked(values: dict[str, Any], hints: dict[str, Any], source: str) -> dict[str, Any]:
    """Refuse what jsonargparse lets through, and make a list of the single item that `_accepted` let through."""
    result = {}
    for key, value in values.items():
        options = _options_of(hints.get(key, str | None))  # --config is the one that is not a field
        if (value is None and type(None) not in options) or (isinstance(value, bool) and bool not in options):
            raise OptionError(key, value, _allowed(hints[key]), source)
        is_list = any(typing.get_origin(option) is list for option in options)
        result[key] = _as_list(value) if is_list and value is not None and not isinstance(value, list) else value
    return result


def _as_list(item: Any) -> list[Any]:
    """Return a list of one item; a list of texts comes as one text, because that is the type that fits first."""
    if isinstance(item, str) and item.startswith("["):
        try:
            listed = yaml.safe_load(item)
        except yaml.YAMLError:
            return [item]
        if isinstance(listed, list) and all(isinstance(text, str) for text in listed):
            return listed
    return [item]


def _allowed(hint: Any) -> str:
    """Say in words what values a type hint allows."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    alternatives = []
    for option in _options_of(hint):
        if typing.get_origin(option) is Literal:
            alternatives.append("one of " + ", ".join(str(arg) for arg in typing.get_args(option)))
        elif typing.get_origin(option) is list:
            (item,) = typing.get_args(option)
            alternatives.append(f"a list such as [{', '.join(map(str, typing.get_args(item) or (0, 1)))}]")
        else:
            alternatives.append(words[option])
    return " or ".join(alternatives)


def _metavar(hint: Any) -> str:
    """A short form of `_allowed` for --help."""
    names = {int: "INT", float: "FLOAT", bool: "BOOL", str: "TEXT", type(None): "null"}
    parts = []
    for option in _options_of(hint):
        items = typing.get_args(option)
        if typing.get_origin(option) is list:
            parts.append(f"[{_metavar(items[0])},...]")
        else:
            parts.extend(map(str, items) if items else [names[option]])
    return "|".join(parts)


def _show(value: object) -> str:
    """The value as YAML has it: null, true, "text", [1, 2]."""
    return json.dumps(value, default=str)
