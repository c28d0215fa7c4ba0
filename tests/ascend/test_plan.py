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


def planned(folder, what, words):
    """What plan.py prints for these words."""
    command = [sys.executable, "tests/ascend/plan.py", what, str(folder / "trace"), *words.split()]
    environment = standin.environment("plan", trace=folder / "trace")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"what"')] or [done.stderr]
    return json.loads(line)


def test_the_shipped_tables_are_of_this_code(tmp_path):
    sizes = "--batch 2 --frames 8 --side 16 --width 160 --heads 4 --depth 6"
    found = planned(tmp_path, "sample", f"--loaded {sizes}")
    expected = roofline.launches("sample guided", Sizes(2, 8, 8, width=160, heads=4, pairs=3, weights=found["weights"]))
    assert sum(each.number for each in expected) == sum(found["launches"].values()), REMEDY
    moved = sum(each.number * each.bytes for each in expected)
    assert moved == pytest.approx(sum(found["bytes"].values()), rel=0.03), REMEDY


def test_the_first_of_eight_ranks_is_planned_without_the_others(tmp_path):
    """Between two steps it keeps an eighth of the weights of blocks, their moments and EMA weights in float32."""
    found = planned(tmp_path, "train", "--ranks 8 --zero_stage 3 --width 288 --heads 4 --depth 4 --side 16 --frames 4")
    everything = 16 * found["weights"]
    assert everything / 8 < found["resident"] < everything / 4
    assert found["resident"] < found["peak"] < everything
