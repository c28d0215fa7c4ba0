"""Files for containers: linted, and what they start is started. No image is built: that needs a registry of images."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden_values import ROOT

FOLDER = ROOT / "scripts" / "docker"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
FILES = sorted(FOLDER.glob("*Dockerfile"))


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint here; its package has a program for x86_64 only")
def test_they_are_linted():
    done = subprocess.run([HADOLINT, *FILES], capture_output=True, text=True)
    assert len(FILES) == 2 and done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_they_install_from_is_there(file):
    text = file.read_text()
    names = set(re.findall(r"requirements[\w-]*\.txt", text)) - {"requirements-here.txt"}
    assert "requirements.txt" in names and all((ROOT / name).is_file() for name in names)
    assert all((ROOT / name).is_file() for name in re.findall(r"scripts/[\w/]+\.sh", text))
    assert f"docker build -f {file.relative_to(ROOT)} " in text


def test_another_mindspore_takes_the_place_of_the_pinned_one():
    command = re.search(
        r"RUN (sed .*?) requirements.txt > requirements-here.txt", (FOLDER / "ascend.Dockerfile").read_text()
    )
    changed = subprocess.run(
        ["bash", "-c", f"{command[1]} requirements.txt"],
        cwd=ROOT,
        env={**os.environ, "MINDSPORE": "2.7.0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [a for a, b in zip(changed.splitlines(), lines, strict=True) if a != b] == ["mindspore==2.7.0"]


def test_the_entry_on_ascend_sets_the_variables_of_cann(tmp_path):
    program = tmp_path / "latte"
    program.write_text('#!/bin/bash\necho "$CANN|$LD_LIBRARY_PATH|$*"\n')
    program.chmod(0o755)
    (tmp_path / "ascend-toolkit").mkdir()
    (tmp_path / "ascend-toolkit" / "set_env.sh").write_text('export CANN="here$NOT_SET"\n')
    told = {"ASCEND_HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "LD_LIBRARY_PATH": "mine"}
    command = ["bash", FOLDER / "ascend_entry.sh", "sample", "-c", "a b"]
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=True)
    cann, libraries, words = done.stdout.strip().split("|")
    assert cann == "here" and words == "sample -c a b"
    assert libraries.split(":") == [f"{tmp_path}/driver/lib64/driver", f"{tmp_path}/driver/lib64/common", "mine"]


def test_what_is_large_stays_out_of_an_image():
    kept = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "datasets", "outputs", "models/*", "!models/demo"} <= set(kept)
