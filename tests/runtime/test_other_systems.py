"""What Windows and macOS lack is hidden: everything is imported, and what every program needs works all the same."""

import subprocess
import sys

# MindSpore and the other packages come first: what they are built of on those systems is not ours to prove.
PROGRAM = """
import os, shutil, signal, sys
from pathlib import Path
import filelock, matplotlib.figure, mindspore, mindspore.mindrecord, mindspore.train.mind_ir_pb2, psutil, transformers
import imageio.v3, PIL.Image, safetensors, tensorboardX, tqdm.contrib.logging, mmap, types

mindspore.set_device("CPU")
for name in ("resource", "fcntl", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None
HIDDEN = {
    os: ("register_at_fork", "setpgid", "fork", "mkfifo", "waitid", "sched_getaffinity", "killpg", "getuid"),
    signal: ("SIGHUP", "SIGBUS", "SIGKILL", "SIGALRM"),
    mmap: ("MADV_DONTNEED",),
}
for module, names in HIDDEN.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=2**20)
real_open = os.open
def open_files_only(path, *arguments, **options):
    if Path(path).is_dir():
        raise PermissionError(13, "Permission denied")
    return real_open(path, *arguments, **options)
os.open = open_files_only
shutil._use_fd_functions = False  # as where folders cannot be opened

import importlib, importlib.util, pkgutil
import latte
found = [module.name for module in pkgutil.walk_packages(latte.__path__, "latte.") if "__main__" not in module.name]
if importlib.util.find_spec("gradio") is None:  # of the extra `web`
    found.remove("latte.inference.web_page")
for name in found:
    importlib.import_module(name)
print(len(found), "modules")

from latte.errors import run_main
from latte.io.atomic import atomic_folder, atomic_path, remove_leftovers
from latte.runtime import device, doctor
from latte.training import run_folder
from latte.training.stopping import StopSignal

def main():
    folder = Path(sys.argv[1])
    with atomic_path(folder / "a.txt") as path:
        path.write_text("whole")
    with atomic_folder(folder / "b") as path:
        (path / "c").write_text("whole")
    remove_leftovers(folder)
    held = run_folder.lock(run_folder.create_run(folder / "runs", "Latte"))
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested == "SIGTERM"
    assert device.peak_memory() == 2**20 and doctor.cpu()
    held.release()
run_main(main)
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_without_what_only_linux_has_everything_is_imported_and_files_are_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    modules, names = done.stdout.splitlines()[-2:]
    assert int(modules.split()[0]) > 100 and names == "['a.txt', 'b', 'runs']"
