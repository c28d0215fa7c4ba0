"""Options as dataclasses: read them from the command line and from YAML files, and show them in --help.

A field made with `option(default, text)` is an option, and its class is a group of --help.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import logging
import math
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from latte.config.values import allowed_by, fit, item_of, metavar, read_words, show
from latte.config.yaml_file import read_yaml
from latte.errors import UserError, quoted
from latte.io import resources
from latte.io.atomic import atomic_path
from latte.io.json_files import exists

if typing.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

log = logging.getLogger("latte")
COMMAND_LINE = "command line"
REQUIRED: Any = dataclasses.MISSING  # stands for the default of an option that must be given
DATA_CONFIG = "data_config"  # the option that names a YAML file; all other options override that file
FOLDER_OPTIONS = "latte.yaml"  # in a data_folder, as latte prepare writes it: what is known of the folder
PROGRAMS = {
    "TrainConfig": "train.py",
    "SampleConfig": "sample.py",
}  # whose files and options are taken for each other's
OF_FOLDER = (  # what it may say
    *("data_layout", "csv_path", "video_column", "class_column", "caption_column", "sample_stride"),
    *("image_size", "num_frames"),
)
INCLUDE = "include"  # in a YAML file: other files, whose options it overrides


class Layer(typing.NamedTuple):
    """Options of one source: a YAML file or the command line."""

    source: str
    values: dict[str, Any]
    lines: dict[str, int]  # of a YAML file, by option; empty for the command line

    def place(self, key: str) -> str:
        """Return where an option is set, for a message."""
        return _place(self.source, self.lines.get(key))


class OptionError(UserError):
    """An option has a value that is not allowed; `source` is the file that sets it, or the command line."""

    def __init__(self, key: str, value: object, allowed: str, source: str | None = None) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        prefix = f"{source}: " if source else ""
        super().__init__(f"{prefix}{key} is {show(value)}, but must be {allowed}")


@dataclasses.dataclass(kw_only=True)
class Options:
    """The base class of a group of options; a group checks its values in `__post_init__`, after calling super."""

    layers = tuple[Layer, ...]()  # no field: where the last `parse_config` found values, the command line last

    def __post_init__(self) -> None:
        """Raise OptionError if a value is not allowed; here, if a number is not finite."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise OptionError(field.name, value, "finite numbers" if isinstance(value, list) else "a finite number")


Config = TypeVar("Config", bound=Options)


def option(default: Any, text: str, words: str = "") -> Any:
    """Return a dataclass field for an option: its default, or REQUIRED, and its text in --help.

    With `words`, their names in --help, a required list is given by words without an option before them.
    """
    metadata = {"help": text, "words": words}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def in_range(options: Options, key: str, low: float, high: float | None = None) -> None:
    """Raise OptionError unless the option is None or from `low` to `high`, both included."""
    value = getattr(options, key)
    if value is None or (value >= low and (high is None or value <= high)):
        return
    raise OptionError(key, value, f"at least {low}" if high is None else f"from {low} to {high}")


def parse_config(cls: type[Config], argv: Sequence[str] | None = None, description: str | None = None) -> Config:
    """Return the options of a program; precedence: command line > YAML file of -c > its data_config > defaults.

    What is known of a data_folder (see FOLDER_OPTIONS) comes right below the source that names the folder.

    argv: the arguments after the program's name, None for those of the process. description: the program's text in
    --help, whose indented paragraphs are not filled. --help and --version print and exit with 0.
    Raises UserError, naming the file and the option, for unknown options, wrong types and values out of range.
    """
    hints = typing.get_type_hints(cls)
    given = _read_arguments(_make_parser(cls, hints, description), argv, hints)
    path = given.pop("config", None)
    path = path and _config_file(path)
    # Later layers override earlier ones.
    layers = [*(_read_file(path, hints) if path else ()), Layer(COMMAND_LINE, given, {})]
    data = _merged(layers).get(DATA_CONFIG)
    layers = _with_folder([*(_read_file(data, hints) if data else ()), *layers], hints)
    values = _merged(layers)
    for field in dataclasses.fields(cls):
        if _default(field) is REQUIRED and field.name not in values:
            raise UserError(f"{_shown(field)} is not given; it is the {field.metadata['help']}")
    try:
        config = cls(**values)
    except OptionError as error:
        source = next((layer.place(error.key) for layer in reversed(layers) if error.key in layer.values), None)
        raise OptionError(error.key, error.value, error.allowed, source) from None
    cls.layers = tuple(layers)
    return config


def describe_settings(config: Options) -> str:
    """Return the files that set options, and those that the command line sets otherwise, with what they were before."""
    if not config.layers:
        return "those of the program"
    *files, given = config.layers
    below = {field.name: _default(field) for field in dataclasses.fields(config)} | _merged(files)
    names = [Path(layer.source).name for layer in reversed(files)] or ["the defaults"]
    changed = [
        f"{name} {show(value)}" + ("" if below[name] in (None, REQUIRED) else f" ({show(below[name])})")
        for name, value in given.values.items()
        if value != below[name]
    ]
    return ", ".join(names) + (f"; but {', '.join(changed)}" if changed else "")


def _config_file(name: str) -> str:
    """Return the path of a config file, which may be a shipped one; raises UserError, with the nearest, for none."""
    path = resources.find_config(name)  # the configurations are installed with the package
    if not exists(path) and (shipped := resources.config_names()):
        known = nearest(Path(name).stem, shipped)
        raise UserError(
            f"cannot read the config file {quoted(name)}: there is no such file, and the nearest that is shipped is "
            f"{known!r}; correct the name"
        )
    return str(path)


def save_config(config: Options, path: str | Path) -> None:
    """Write every option with its value as YAML that `parse_config` reads back; raises UserError if it cannot."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known name whose spelling is nearest to a word."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0)[0]


def program_name() -> str:
    """Return how this program was called: `python tools/doctor.py`, or `latte doctor`."""
    called = sys.argv[0]
    return f"python {called}" if called.endswith(".py") else called


def version() -> str:
    """Return a line with the versions of this package and of MindSpore."""
    # Not an import statement, because the root of the package is above this room.
    own = importlib.import_module("latte").__version__
    try:
        return f"latte {own}, MindSpore {importlib.metadata.version('mindspore')}"
    except importlib.metadata.PackageNotFoundError:
        return f"latte {own}, MindSpore is not installed"


class _Help(argparse.HelpFormatter):
    """Fill each paragraph of a description, but keep indented paragraphs, which are command lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else fill(part, width, indent) for part in paragraphs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        if message.endswith("argument"):  # argparse: "argument --seed: expected one argument"
            message += "; a value that begins with - is written --name=VALUE"
        raise UserError(f"{COMMAND_LINE}: {message}")


def _make_parser(cls: type[Options], hints: dict[str, Any], description: str | None) -> _Parser:
    """Return a parser with one group of options for each class that `cls` inherits from."""
    prog = program_name()
    needed = [_shown(field, metavar(hints[field.name])) for field in dataclasses.fields(cls) if _is_required(field)]
    parser = _Parser(
        usage=" ".join((prog, *needed, "[-c CONFIG] [--option VALUE ...]")),
        description=(description or cls.__doc__ or "").strip(),
        formatter_class=_Help,
        allow_abbrev=False,  # otherwise a new option could change the meaning of an old command
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show MindSpore's warnings too, and on a terminal every line of the log"
    )
    parser.add_argument("--version", action="version", version=version(), help="show the versions and exit")
    parser.add_argument(
        "-c",
        "--config",
        help="YAML file with options, or the name of a shipped one, such as demo; the command line overrides it",
    )
    for owner in reversed(cls.__mro__):
        own = [field for field in dataclasses.fields(cls) if field.name in inspect.get_annotations(owner)]
        group = parser.add_argument_group((inspect.getdoc(owner) or owner.__name__).splitlines()[0]) if own else parser
        for field in own:
            hint, default = hints[field.name], _default(field)
            end = "required" if default is REQUIRED else f"default: {show(default)}"
            words: dict[str, Any] = {"nargs": "+"} if item_of(hint) else {}
            if hint is bool:
                words = {"nargs": "?", "const": "true"}  # `--dry_run` is `--dry_run true`
            text = f"{field.metadata['help']} ({end})".replace("%", "%%")
            if names := field.metadata["words"]:
                group.add_argument(field.name, nargs="*", metavar=names, help=text)
            else:
                group.add_argument(f"--{field.name}", metavar=metavar(hint), help=text, **words)
    return parser


def _read_arguments(parser: _Parser, argv: Sequence[str] | None, hints: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the command line, without defaults; raises UserError for unknown options."""
    found, rest = parser.parse_known_args(argv)
    if rest and rest[0].startswith("--"):
        raise UserError(_unknown(rest[0][2:].split("=")[0], hints, COMMAND_LINE))
    if rest:
        raise UserError(f"{COMMAND_LINE}: {rest[0]!r} is no option; write --name value")
    given = {key: value for key, value in vars(found).items() if value not in (None, [])}
    given.pop("verbose", None)  # `run_main` looks for it
    path = given.pop("config", None)
    for key, words in given.items():
        value = read_words([words] if isinstance(words, str) else words, hints[key])
        given[key] = _fitted(key, value, hints, COMMAND_LINE)
    return given | ({"config": path} if path else {})


def _read_file(path: str, hints: dict[str, Any], above: tuple[str, ...] = ()) -> list[Layer]:
    """Return the options of a YAML file, after the options of the files it includes; `above`: files that include it."""
    if path in above:
        raise UserError(f"{above[-1]}: include names {path}, which includes it in turn; remove one of the two")
    (values, lines), layers = read_yaml(path), []
    names = _fitted(INCLUDE, values.pop(INCLUDE, []), {INCLUDE: list[str]}, _place(path, lines.get(INCLUDE)))
    for name in names:
        layers += _read_file(str(Path(path).parent / name), hints, (*above, path))
    for key in values:
        place = _place(path, lines[key])
        if key not in hints:
            raise UserError(_unknown(key, hints, place) + _hint_of_run(path, hints))
        values[key] = _fitted(key, values[key], hints, place)
    if values.get(DATA_CONFIG):
        values[DATA_CONFIG] = str(Path(path).parent / values[DATA_CONFIG])
    return [*layers, Layer(path, values, lines)]


def _with_folder(layers: list[Layer], hints: dict[str, Any]) -> list[Layer]:
    """Put what the data_folder itself says below the source that names it: another folder has other sizes."""
    place = next((k for k in reversed(range(len(layers))) if layers[k].values.get("data_folder")), None)
    if place is None:
        return layers
    folder = Path(layers[place].values["data_folder"])
    path = folder / FOLDER_OPTIONS
    if not exists(path):
        return layers
    found = _read_file(str(path), {name: hints[name] for name in OF_FOLDER if name in hints})
    layer = found[-1]._replace(values=_merged(found))
    table = layer.values.get("csv_path")
    if table:
        if Path(table).name != table:
            raise OptionError("csv_path", table, "the name of a file beside it", layer.place("csv_path"))
        layer.values["csv_path"] = str(folder / table)
    log.info("%s sets %s", path, ", ".join(f"{name}: {show(value)}" for name, value in layer.values.items()))
    return [*layers[:place], layer, *layers[place:]]


def _place(path: str, line: int | None) -> str:
    return f"{path}, line {line}" if line else path


def _fitted(key: str, value: Any, hints: dict[str, Any], source: str) -> Any:
    try:
        return fit(value, hints[key])
    except ValueError:
        raise OptionError(key, value, allowed_by(hints[key]), source) from None


def _merged(layers: Iterable[Layer]) -> dict[str, Any]:
    return {key: value for layer in layers for key, value in layer.values.items()}


def _unknown(key: str, known: Iterable[str], source: str) -> str:
    # Looked up in the room itself, which imports this file.
    groups = {program: getattr(importlib.import_module("latte.config"), name) for name, program in PROGRAMS.items()}
    owner = next((program for program, group in groups.items() if key in group.__dataclass_fields__), None)
    there = f", which is one of {owner}" if owner else ""
    return f"{source}: there is no option {key!r}{there}; the nearest is {nearest(key, known)!r}, and --help lists all"


def _hint_of_run(path: str, known: Iterable[str]) -> str:
    """Return what to type in place of the config of a training, where a program takes the folder of its run."""
    run = Path(path).parent
    return (
        f"; to sample from a run name its folder: --checkpoint {run}"
        if "checkpoint" in known and (run / "ckpt").is_dir()
        else ""
    )


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(field: dataclasses.Field, value: str = "") -> str:
    """Return how a required option is written, with a value if there is one."""
    return field.metadata["words"] or f"--{field.name} {value}".rstrip()


def _is_required(field: dataclasses.Field) -> bool:
    return _default(field) is REQUIRED
