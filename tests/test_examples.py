"""The examples run as they stand, on stand-ins for what is not here; `test_docs_commands` parses those in shell."""

import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from support.golden_values import FIXTURES, ROOT

from latte.io.video import read_any, save_mp4

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty folder to work in, with `latte` as a program."""
    shim = tmp_path / "bin" / "latte"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latte "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def run(program, *arguments):
    """Run an example by a program, and return what it printed."""
    *interpreter, name = program
    words = [*interpreter, str(EXAMPLES / name), *arguments]
    done = subprocess.run(words, input="\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, arguments, made, frames",
    [
        ("sample.py", [], "sunset.gif", 16),
        ("text_to_video.py", ["a cat"], "video.mp4", None),
        ("add_data_set.py", ["own"], "outputs/own_layout/Latte-*/samples/step-00000004.gif", 16),
    ],
)
def test_an_example_makes_a_video(name, arguments, made, frames, here):
    shutil.copytree(FIXTURES / "latte_t2v", here / "models" / "Latte-1")
    run([sys.executable, name], *arguments)
    (file,) = here.glob(made)
    assert frames in (None, len(read_any(file)))


def cells(kind):
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(here, monkeypatch):
    shown = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda path, width: shown.append((path, width))
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names = {}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert [len(read_any(path)) for path, _ in shown] == [16, 16, 16]
    first, longer = (read_any(path) for path in ("sunset.gif", "goes_on.gif"))
    assert np.abs(first[-1].astype(int) - longer[0]).mean() < 8  # of 255: it goes on from there


def test_the_notebook_is_kept_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells("code"))
    assert len(cells("code")) >= 4 and len(cells("markdown")) > len(cells("code"))


@pytest.mark.slow
def test_fewer_steps_are_measured_and_the_distance_is_left_out_without_its_network(here):
    said = run(["bash", "evaluate.sh"])
    assert "dpmpp20" in said and "dpmpp8" in said and "FVD is left out" in said
    assert (here / "outputs/evaluate/compared/compare.csv").is_file()


@pytest.fixture
def mine(here):
    """Write three videos of different sizes and a broken one into the folder `mine`."""
    for k, (height, width) in enumerate([(48, 80), (96, 64), (70, 70)]):
        frames = np.random.default_rng(k).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        save_mp4(np.concatenate([np.roll(frames, 4 * f, axis=2) for f in range(24)]), here / f"mine/{k}.mp4", 8)
    (here / "mine/broken.mp4").write_bytes(b"no video")


SMALL = {"max_steps": 2, "warmup_steps": 0, "sample_videos": 1, "sample_steps": 2}


@pytest.mark.slow
def test_own_clips_become_a_model_that_samples(mine, here):
    small = SMALL | {"train_batch_size": 2}
    said = run(["bash", "own_clips_cpu.sh"], "mine", "2", *(f"--{name}={value}" for name, value in small.items()))
    assert "left out: cannot read the video mine/broken.mp4" in said and "3 clips" in said
    assert len(list(here.glob("outputs/own/samples/video-*.gif"))) == 4
    (page,) = here.glob("outputs/own/Latte-*/gallery.html")
    assert page.stat().st_size > 10000


@pytest.mark.slow
def test_own_clips_become_adapters_of_a_folder_that_samples(mine, here):
    shutil.copytree(FIXTURES / "latte_t2v", here / "models" / "Latte-1")
    words = ["latte", "prepare", "mine", "--output_path", "datasets/own", "--image_size", "64"]
    subprocess.run(words, check=True, capture_output=True)
    table = here / "datasets/own/clips.csv"
    table.write_text(table.read_text().replace("mp4,,", "mp4,a pattern,"))  # what a person does at the script's prompt
    small = SMALL | {"gradient_accumulation_steps": 1}
    said = run(["bash", "own_clips.sh"], "mine", "64", *(f"--{name}={value}" for name, value in small.items()))
    assert "3 clips" in said and len(list(here.glob("outputs/own/LatteT2V-*/gallery.html"))) == 1
    assert (here / "models/own/model_index.json").is_file() and list(here.glob("outputs/own/samples/*.gif"))


def test_every_example_says_how_it_is_called():
    for path in EXAMPLES.glob("*.*"):
        assert (
            f"examples/{path.name}" in path.read_text().partition("import numpy" if path == NOTEBOOK else "import")[0]
        )
