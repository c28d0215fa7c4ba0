"""What every test shares."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Before any test imports MindSpore: latte keeps it from warning of each missing library.
from latte.runtime import device


@pytest.fixture(autouse=True, scope="session")
def cpu():
    """Tests compute on the CPU, whatever the machine has; those marked ascend or gpu use processes of their own."""
    device.init_device("CPU")


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """Compiled training steps are kept for the programs that these tests start, away from those of the user."""
    os.environ["LATTE_COMPILE_CACHE"] = str(tmp_path_factory.mktemp("graphs"))
    yield
    del os.environ["LATTE_COMPILE_CACHE"]


@pytest.fixture(autouse=True)
def log_as_before():
    """A program run within a test sets the level of the log, on which what the next test finds in it would depend."""
    log = logging.getLogger("latte")
    level, handlers = log.level, list(log.handlers)
    for once in (device.warn_once, device.inform_once):
        once.cache_clear()
    yield
    log.setLevel(level)
    for handler in set(log.handlers) - set(handlers):
        log.removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal():
    """Whoever started the tests may ignore signals: `nohup` does, and a shell in what it starts in the background."""
    python = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in python.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(items):
    """Tests marked gpu or ascend run where there is such a device, and are skipped elsewhere."""
    for mark, target in (("gpu", "GPU"), ("ascend", "Ascend")):
        marked = [item for item in items if item.get_closest_marker(mark)]
        instead = mark == "gpu" and "LATTE_TEST_TARGET" in os.environ
        if marked and not instead and (reason := why_not(target)):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def why_not(target):
    """Return why a device cannot be used, or None; in a process of its own, because this one stays with the CPU."""
    file = device.DEVICE_FILES[target]
    if not Path(file).exists():
        return f"no {target}: there is no {file}"
    code = "import sys; from latte.errors import run_main; from latte.runtime.device import init_device; "
    code += "run_main(lambda: init_device(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no {target}: {done.stderr.strip().splitlines()[-1]}"
