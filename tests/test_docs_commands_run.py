"""The commands of the documentation run, in their order, in a folder with small stand-ins for what they name.

A command is run as it stands, with options after it that make it small; last given wins. Left out is what needs a
network, several ranks, or the network of FVD; `test_docs_commands` parses those too.
"""

import runpy
import shutil
import sys

import numpy as np
import pytest
from support.docs_commands import commands, program
from support.golden_values import FIXTURES, ROOT
from support.numbered import numbered_frames
from support.runs import TRAIN, write_clips

from latte.commands.main import main
from latte.io.video import save_mp4, save_png

pytestmark = pytest.mark.slow
SMALL = {  # what is added to a command, by its program
    "sample.py": "--device_target CPU --dtype fp32 --sampling_steps 2 --sampler ddim --num_samples 1",
    "estimate": "",
    "prepare": "--image_size 16 --num_frames 4 --scene_threshold 1",
    "download": "",
    "doctor": "",
    "demo_data": "--clips 1 --num_frames 4 --size 16",
    "tools/latte_converter.py": "--num_heads 4",
    "tools/vae_converter.py": "",
    "tools/t2v_converter.py": "",
    "train.py": "",
    "train": "",
}
OF_TRAINING = (
    " ".join(f"--{name} {value}" for name, value in TRAIN.items())
    + " --device_target CPU --dtype fp32 --sample_stride 1"
)
NOT_HERE = (  # words of commands that need what a test has not
    *("mpirun", "standin.py", "--use_parallel", "download sky", "download Latte-1", "--residuals", "CONFIG", "RUN"),
    *("own_clips", "t2v_lora", "t2v_finetune", "t2i.yaml", "--profile", "demo_video", "sky_numpy", "--cards", "$"),
)


def runnable():
    """Return (page, line, program, arguments) of the commands that are run."""
    found = []
    for page, line in commands():
        if not program(line) or any(word in line for word in NOT_HERE):
            continue
        name, arguments = program(line)
        command = arguments[0] if name == "latte" else name
        if command in SMALL:
            found.append((page, line, name, arguments, command))
    return found


RUN = runnable()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with small files of the names that the documentation uses."""
    root = tmp_path_factory.mktemp("docs")
    (root / "models").mkdir()
    for name, fixture in (("skytimelapse.pt", "latte_uncond.pt"), ("ucf101.ckpt", "latte_class.pt")):
        shutil.copy(FIXTURES / fixture, root / "models" / name)
    shutil.copy(FIXTURES / "latte_uncond.pt", root / "models" / "skytimelapse.ckpt")
    shutil.copy(FIXTURES / "vae.bin", root / "models" / "sd-vae-ft-mse.ckpt")
    shutil.copytree(FIXTURES / "vae", root / "models" / "sd-vae-ft-mse")
    shutil.copytree(FIXTURES / "latte_t2v", root / "models" / "Latte-1")
    shutil.copy(ROOT / "configs" / "inference" / "ucf101.yaml", root)
    write_clips(root / "datasets" / "sky" / "frames")
    frames = numbered_frames(32)
    (root / "my_videos").mkdir()
    save_mp4(frames, root / "my_videos" / "a.mp4", 8)
    save_mp4(frames, root / "sea.mp4", 8)
    save_png(np.ascontiguousarray(frames[0]), root / "street.jpg.png")
    (root / "street.jpg.png").rename(root / "street.jpg")
    return root


def small(line, command):
    """Return the options that make a command small, and name what stands in for data and weights."""
    extra = SMALL[command].split()
    if command in ("train.py", "train"):
        folder = [] if "--data_folder" in line else ["--data_folder", "datasets/sky/frames"]
        return [*OF_TRAINING.split(), *folder, "--dry_run"]
    if command == "sample.py":
        extra += ["--enable_flash_attention", "False", "--existing", "replace"]
        extra += [] if "t2v" in line else ["--num_heads", "4"]  # of the stand-ins, whose width tells none
        extra += ["--class_labels", "1"] if "ucf101" in line else []
        extra += ["--init_count", "2"] if "--init_count" in line else []
    return extra


@pytest.mark.parametrize("page, line, name, arguments, command", RUN, ids=lambda text: str(text)[:50])
def test_a_command_of_the_docs_runs(page, line, name, arguments, command, place, monkeypatch):
    monkeypatch.chdir(place)
    for target in ("back", "Latte-1-int8", "Latte-1-ckpt"):
        if target in line.partition("--target")[2]:
            shutil.rmtree(place / "models" / target, ignore_errors=True)
            shutil.rmtree(place / target, ignore_errors=True)
    words = [name, *arguments, *small(line, command)]
    monkeypatch.setattr(sys, "argv", words)
    code = 0
    try:
        main(words[1:]) if name == "latte" else runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    assert code == 0, f"{line} ended with {code}"


def test_how_many_commands_run(record_property):
    record_property("commands run", len(RUN))
    assert len(RUN) >= 20, len(RUN)
