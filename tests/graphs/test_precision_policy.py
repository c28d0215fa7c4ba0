"""What is computed in what: the table in docs/devices.md is what the graphs say."""

import pytest
from golden.make_precision_table import lines
from support.golden_values import ROOT


@pytest.mark.slow
@pytest.mark.long
def test_the_table_is_what_the_graphs_say():
    text = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    for line in lines():
        assert line in text.splitlines(), (
            "run tests/golden/make_precision_table.py and put its table into docs/devices.md"
        )
