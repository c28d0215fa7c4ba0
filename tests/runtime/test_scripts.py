"""The shell scripts, checked by shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden_values import ROOT

SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
PLACES = ("scripts/*.sh", "scripts/slurm/*", "scripts/cuda/bin/*", "examples/*.sh", ".ci/run")
SCRIPTS = sorted(path for place in PLACES for path in ROOT.glob(place))


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck here; its package has a program for x86_64 only")
def test_shellcheck_finds_nothing(tmp_path):
    command = [SHELLCHECK, "--external-sources"]
    done = subprocess.run([*command, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(SCRIPTS) > 9, done.stdout
    (tmp_path / "bad.sh").write_text("#!/bin/bash\nrm -rf $1/*\n")
    bad = subprocess.run([*command, tmp_path / "bad.sh"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "SC2086" in bad.stdout
