"""Run a command of latte as a job of Huawei Cloud's ModelArts, whose data and results are in OBS.

    boot file:  scripts/modelarts.py
    arguments:  train -c configs/training/sky_video.yaml --resume auto
                --data_url obs://BUCKET/sky --train_url obs://BUCKET/runs

ModelArts adds --data_url and --train_url itself if the job has inputs and outputs of these names: they stand for
data_folder and output_path. Any other option may have an obs:// path too. What is there is copied to this machine
before the command starts, by moxing, which ModelArts has; what the command writes is copied back every ten minutes and
at its end, also if it fails. Of several ranks on a machine the first one copies.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte.commands.main import main as latte
from latte.errors import UserError, run_main
from latte.runtime.ranks import LAUNCHERS, read_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

OBS = "obs://"
MEANT = {"data_url": "data_folder", "train_url": "output_path"}
WRITTEN = ("output_path", "cache_folder", "target")  # options of what is written; all others are only read
SECONDS = 600  # between two copies of what was written
FAST_DISK = Path("/cache")  # of ModelArts' machines


class Copies:
    """Folders of OBS and where they are on this machine."""

    def __init__(self, home: Path):
        self.home = home
        self.read: dict[str, Path] = {}  # addresses and their places
        self.written: dict[str, Path] = {}
        self.seen: dict[Path, float] = {}  # files that OBS has, with the time of their last change

    def here(self, name: str, address: str) -> str:
        """Return where an option's address will be on this machine."""
        place = self.home / address.removeprefix(OBS).strip("/")
        (self.written if name in WRITTEN else self.read)[address.rstrip("/")] = place
        return str(place)

    def fetch(self, mox: Any) -> None:
        """Copy to this machine what OBS has; a folder to write to may not be there yet."""
        for address, place in {**self.read, **self.written}.items():
            if not mox.file.exists(address):
                if address in self.read:
                    raise UserError(f"{address} does not exist; correct the address, or upload the data first")
                place.mkdir(parents=True, exist_ok=True)
            elif mox.file.is_directory(address):
                mox.file.copy_parallel(address, str(place))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                mox.file.copy(address, str(place))
        self.seen = {file: file.stat().st_mtime for file in self.files()}

    def files(self) -> list[Path]:
        """Return the files that the command has written; hidden ones are not whole yet."""
        found = [file for place in self.written.values() for file in sorted(place.rglob("*")) if file.is_file()]
        return [file for file in found if not any(part.startswith(".") for part in file.relative_to(self.home).parts)]

    def bring_back(self, mox: Any) -> None:
        """Copy to OBS the files that are new or have changed."""
        for address, place in self.written.items():
            for file in self.files():
                changed = file.stat().st_mtime
                if file.is_relative_to(place) and self.seen.get(file) != changed:
                    mox.file.copy(str(file), f"{address}/{file.relative_to(place).as_posix()}")
                    self.seen[file] = changed


def words_here(words: Sequence[str], copies: Copies) -> list[str]:
    """Return the words of a command with places on this machine for addresses in OBS."""
    found, name = [], ""
    for word in words:
        option, equals, value = word.partition("=")
        if word.startswith("--"):
            name = option.lstrip("-")
            name = MEANT.get(name, name)
            word = f"--{name}{equals}{value}"
        value = value if word.startswith("--") else word
        if value.startswith(OBS):
            place = copies.here(name, value)
            word = f"--{name}={place}" if word.startswith("--") else place
        found.append(word)
    return found


def load_moxing() -> Any:
    """Return moxing; raises UserError if this machine has none."""
    try:
        import moxing
    except ImportError as error:
        raise UserError("obs:// paths need moxing, which only ModelArts has; elsewhere name local folders") from error
    return moxing


def local_rank() -> int:
    """Return the number of this process among those of its machine, 0 if it is the only one."""
    launched = any(all(name in os.environ for name in names) for names in LAUNCHERS)
    return read_ranks()[2] if launched else 0


def run(words: Sequence[str]) -> None:
    """Copy, call the command, copy back."""
    copies = Copies((FAST_DISK if FAST_DISK.is_dir() else Path("outputs").resolve()) / "obs")
    given = words_here(words, copies)
    if not copies.read and not copies.written:
        latte(given)
        return
    done = copies.home / f".copied-{os.environ.get('MA_VJ_NAME', 'job')}"  # of this job: a machine may have had others
    if local_rank():
        while not done.exists():
            time.sleep(1)
        if done.read_text():
            raise UserError("the first rank of this machine could not copy the data; its log says why")
        latte(given)
        return
    mox = load_moxing()
    done.unlink(missing_ok=True)
    copies.home.mkdir(parents=True, exist_ok=True)
    try:
        copies.fetch(mox)
    except BaseException:
        done.write_text("failed")
        raise
    done.touch()
    ended = threading.Event()

    def bring_back_now_and_then() -> None:
        while not ended.wait(SECONDS):
            copies.bring_back(mox)

    copier = threading.Thread(target=bring_back_now_and_then, daemon=True)
    copier.start()
    try:
        latte(given)
    finally:
        ended.set()
        copier.join()
        copies.bring_back(mox)


if __name__ == "__main__":
    run_main(lambda: run(sys.argv[1:]))
