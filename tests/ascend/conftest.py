"""Tests over the stand-in for CANN; they are skipped where it cannot be built."""

import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from ascend import standin
from support.golden_values import ROOT


class Done(NamedTuple):
    """What a program left: its exit code, what it printed, and how many times it launched each operator."""

    code: int
    stdout: str
    stderr: str
    launches: Counter


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    if reason := standin.why_not():
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def on_standin(tmp_path):
    """Return a function that runs a program of this repository on the stand-in: words and settings -> Done."""
    folder = Path(os.environ.get("LATTE_LAUNCHES", tmp_path))

    def run(*words, code=0, timeout=900, variables=(), **settings):
        trace = folder / f"launches-{uuid.uuid4()}.jsonl"
        environment = standin.environment(trace=trace, **settings) | dict(variables)
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests:{environment['PYTHONPATH']}"
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        launches = standin.launches(trace) if trace.exists() else Counter()
        return Done(done.returncode, done.stdout, done.stderr, launches)

    return run
