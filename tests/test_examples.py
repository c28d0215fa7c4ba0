"""The examples run as they stand, on stand-ins for what is not here; `test_docs_commands` parses those in shell."""

import runpy
import shutil
import sys

import pytest
from support.golden_values import FIXTURES, ROOT

from latte.io.video import read_any

EXAMPLES = ROOT / "examples"


@pytest.mark.slow
@pytest.mark.long  # by hand until they have been run whole
@pytest.mark.parametrize(
    "name, arguments, made, frames",
    [("sample.py", [], "sunset.gif", 16), ("text_to_video.py", ["a cat"], "video.mp4", None)],
)
def test_an_example_makes_a_video(name, arguments, made, frames, tmp_path, monkeypatch):
    shutil.copytree(FIXTURES / "latte_t2v", tmp_path / "models" / "Latte-1")
    shutil.copytree(
        ROOT / "models" / "demo", tmp_path / "models" / "demo", ignore=shutil.ignore_patterns("first", "*.png")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert frames in (None, len(read_any(tmp_path / made)))


def test_every_example_says_how_it_is_called():
    for path in EXAMPLES.glob("*.*"):
        assert f"examples/{path.name}" in path.read_text().partition("import")[0], path
