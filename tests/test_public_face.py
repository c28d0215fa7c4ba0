"""What `import latte` offers: at once, typed, and without MindSpore until it is used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest
from support.golden_values import ROOT

import latte


def test_importing_latte_does_not_import_mindspore():
    code = "import latte, sys; dir(latte); sys.exit('mindspore' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", latte.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(latte, name)
    assert value.__doc__ and value.__name__ == name and name in dir(latte)


def test_type_checkers_see_the_names_that_python_finds():
    tree = ast.parse((ROOT / "latte/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == latte._HOMES and sorted(typed) == sorted(latte.__all__)
    assert (ROOT / "latte/py.typed").is_file()


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'latte' has no attribute 'LatePipeline'"):
        importlib.import_module("latte").LatePipeline  # noqa: B018
