"""What every test shares."""

import pytest

from latte import device  # before any test imports MindSpore: latte keeps it from warning of each missing library


@pytest.fixture(autouse=True, scope="session")
def cpu():
    """Tests compute on the CPU, whatever the machine has; those marked ascend or gpu use processes of their own."""
    device.init_device("CPU")
