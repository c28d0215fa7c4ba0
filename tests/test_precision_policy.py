"""What is computed in what: the table in docs/devices.md is what the graphs say."""

import pytest
from helpers import ROOT
from make_precision_table import lines


@pytest.mark.slow
@pytest.mark.long
def test_the_table_is_what_the_graphs_say():
    text = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    for line in lines():
        assert line in text.splitlines(), "run tests/make_precision_table.py and put its table into docs/devices.md"
