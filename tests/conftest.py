"""What every test shares."""

import os

# Before any test imports MindSpore: without this it warns of every optional library that is missing.
os.environ.setdefault("GLOG_v", "3")

import pytest


@pytest.fixture(autouse=True, scope="session")
def cpu():
    """Tests compute on the CPU, whatever the machine has; those marked ascend or gpu use processes of their own."""
    from latte import device

    device.init_device("CPU")
