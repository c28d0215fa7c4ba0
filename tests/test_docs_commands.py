"""Every command in README.md and docs/ goes through the program's own parser: an option that is not there fails here.

Nothing is run: a program ends when its options are parsed, before it reads a file or imports MindSpore.
"""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest
from support.docs_commands import commands, program
from support.golden_values import ROOT

from latte.commands.main import COMMANDS, main
from latte.config import parser


class Parsed(Exception):  # ends a program in a test
    """Raised in place of what a program does after parsing its options."""


def parse(name, arguments, monkeypatch):
    """Start a program and end it as soon as its options are parsed; raises UserError if they cannot be."""
    real = parser.parse_config

    def ending(*given, **named):
        real(*given, **named)
        raise Parsed

    config = "inference/demo.yaml" if name == "sample.py" else "training/demo_video.yaml"
    arguments = [f"configs/{config}" if word == "CONFIG" else word for word in arguments]
    modules = [importlib.import_module(f"latte.commands.{command}") for command in COMMANDS]
    for module in [*modules, parser, importlib.import_module("latte.config")]:
        if hasattr(module, "parse_config"):
            monkeypatch.setattr(module, "parse_config", ending)
    monkeypatch.setattr("latte.errors.run_main", lambda call: call())
    monkeypatch.setattr("latte.commands.main.run_main", lambda call: call())
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend((ROOT / name).parent)  # as Python does for a script
    start = main if name == "latte" else lambda: runpy.run_path(str(ROOT / name), run_name="__main__")
    with pytest.raises(Parsed):
        start()


OURS = [(page, line) for page, line in commands() if program(line)]


@pytest.mark.parametrize("page, line", OURS, ids=lambda text: text[:60])
def test_the_options_of_a_command_in_the_docs_are_there(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(*program(line), monkeypatch)


def test_there_are_commands_of_every_kind(record_property):
    programs = {program(line)[0] for _, line in OURS}
    record_property("commands parsed", len(OURS))
    assert len(OURS) >= 60 and {"latte", "sample.py", "train.py"} <= programs
    assert len(commands()) - len(OURS) <= 12, [line for _, line in commands() if not program(line)]


@pytest.mark.parametrize(
    "line", ["python sample.py --no_such_option 3", "latte samplex -c demo", "python sample.py -c ski"]
)
def test_a_command_that_cannot_be_is_found(line, monkeypatch):
    from latte.errors import UserError

    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="the nearest"):
        parse(*program(line), monkeypatch)
