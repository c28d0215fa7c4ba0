"""Damaged data files of every kind end in one sentence or are passed over, whatever is wrong with them."""

import secrets

import pytest
from support import fuzz

COUNT = 25  # mutants of each kind


@pytest.fixture(scope="module")
def first():
    return secrets.randbelow(2**31)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_a_damaged_file_never_ends_in_a_traceback_a_hang_or_a_crash(kind, first, tmp_path):
    results = fuzz.campaign(tmp_path, first, COUNT, (kind,))
    assert all(outcome in fuzz.FINE for _, outcome, _ in results[kind]), f"seeds from {first}\n{fuzz.table(results)}"
    assert len(results[kind]) == COUNT
