"""The tables of `latte estimate` are of the graphs that this code has now: a plan of another network, beside them."""

import json
import subprocess
import sys

import pytest
from ascend import standin
from support.golden_values import ROOT

from latte.runtime import roofline
from latte.runtime.roofline import Sizes

pytestmark = pytest.mark.slow
REMEDY = "python tests/golden/make_estimate_tables.py makes the tables anew"


def test_the_shipped_tables_are_of_this_code(tmp_path):
    sizes = "--batch 2 --frames 8 --side 16 --width 160 --heads 4 --depth 6"
    command = [sys.executable, "tests/ascend/plan.py", "sample", str(tmp_path / "trace"), "--loaded", *sizes.split()]
    environment = standin.environment("plan", trace=tmp_path / "trace")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"what"')] or [done.stderr]
    planned = json.loads(line)
    found = roofline.launches("sample guided", Sizes(2, 8, 8, width=160, heads=4, pairs=3, weights=planned["weights"]))
    assert sum(each.number for each in found) == sum(planned["launches"].values()), REMEDY
    moved = sum(each.number * each.bytes for each in found)
    assert moved == pytest.approx(sum(planned["bytes"].values()), rel=0.03), REMEDY
