"""Every command in README.md and docs/ goes through the program's own parser: an option that is not there fails here.

Nothing is run: a program ends when its options are parsed, before it reads a file or imports MindSpore.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys

import pytest
from support.golden_values import ROOT

from latte.commands.main import COMMANDS, main
from latte.config import parser

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
STAND_INS = {
    "[options": "",
    "of": "",
    "train.py]": "",
}  # what readers put their own words in place of
LAUNCHERS = {"scripts/run_mpirun.sh": 2, "scripts/run_msrun.sh": 2, "scripts/run_distributed.sh": 4}  # own words first
OTHERS = {  # programs of others, and scripts that take no options; what follows the name is not looked at
    "source",
    "git",
    "pip",
    "pytest",
    "hf",
    "tensorboard",
    "export",
    "cd",
    "scripts/quickstart.sh",
    "scripts/test.sh",
    "scripts/run_distributed_sky_numpy_video.sh",
    "tests/golden/make_estimate_tables.py",
}


class Parsed(Exception):  # ends a program in a test
    """Raised in place of what a program does after parsing its options."""


def commands():
    """Return (page, command line) of every command in the blocks of shell code."""
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.strip()) for line in lines if line.strip() and not line.strip().startswith("#")]
    return found


def program(line):
    """Return the program that a command line starts, and its arguments; None if it is not one of ours.

    Launchers and variables before it are left out.
    """
    words = [word for part in shlex.split(line, comments=True) if (word := STAND_INS.get(part, part))]
    if "&&" in words:
        words = words[: words.index("&&")]
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    if words[0] == "mpirun":
        words = words[words.index("python") :]
    name, *rest = words
    if name in ("python", "bash"):
        name, *rest = rest
    if name == "-m":
        name, *rest = rest
    if name == "tests/ascend/standin.py":  # starts another program
        rest = rest[rest.index("python") + 1 :] if "python" in rest else []
        return (rest[0], rest[1:]) if rest else None
    if name in LAUNCHERS:
        assert (ROOT / name).is_file(), f"there is no {name}"
        return "train.py", ["-c", rest[0], *rest[LAUNCHERS[name] :]]
    if name in OTHERS or name == "venv":
        assert "/" not in name or (ROOT / name).is_file(), f"there is no {name}"
        return None
    return name, rest


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
