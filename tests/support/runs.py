"""Small runs of the programs, shared by tests that do them on other devices: data, options, what they leave."""

import csv
import os
import subprocess
import sys

import numpy as np
from PIL import Image
from support.golden_values import FIXTURES, ROOT

from latte.config import TrainConfig, parse_config
from latte.io.video import read_frames
from latte.training.build import build
from latte.training.trainer import Trainer
from latte.weights.safetensors_file import read_safetensors

TRAIN = {"vae_checkpoint": FIXTURES / "vae.bin", "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 2}
TRAIN |= {"image_size": 16, "num_frames": 4, "vae_slice": 8, "num_workers": 1, "log_interval": 2, "max_steps": 4}
TRAIN |= {"sample_videos": 1, "sample_steps": 2, "vae_check": False, "ckpt_save_interval": 4, "train_batch_size": 4}
SAMPLES = {
    "class": (
        "--checkpoint",
        FIXTURES / "latte_class.pt",
        "--vae_checkpoint",
        FIXTURES / "vae.bin",
        "--class_labels=[2]",
    ),
    "text": ("--checkpoint", FIXTURES / "latte_t2v", "--prompts", "a cat"),
}


def write_clips(root):
    """Write four clips of six frames of 16 pixels into two classes, and return the folder."""
    for k in range(4):
        folder = root / "ab"[k % 2] / str(k)
        folder.mkdir(parents=True)
        for number, frame in enumerate(np.random.default_rng(k).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(folder / f"x_{number}.png")
    return root


def words(**options):
    """Return the words of a command line of a small run; `options` come over those of `TRAIN`."""
    return [f"--{key}={value}" for key, value in (TRAIN | options).items()]


def options(**given):
    """Return the options of `words`."""
    return parse_config(TrainConfig, words(**given))


def train(**given):
    """Train in this process with the options of `words`, and return the folder of the run."""
    cfg = options(**given)
    trainer = Trainer(cfg, build(cfg))
    trainer.fit()
    return trainer.folder


def metrics(folder):
    """Return the rows of the only run below a folder."""
    (file,) = folder.glob("*/metrics.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def losses(folder):
    return np.array([float(row["loss"]) for row in metrics(folder)])


def state(folder, step):
    """Return the state that the only run below a folder saved at a step: name -> array."""
    (file,) = folder.glob(f"*/ckpt/state-{step:08d}.safetensors")
    return read_safetensors(file)[0]


def run(*command, **variables):
    """Run a program of this repository: words, and environment variables beside those of this process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", **variables}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def frames(folder):
    """Return the frames of the only video below a folder, as float."""
    (video,) = [path for path in folder.iterdir() if path.is_dir()]
    return read_frames(video).astype(float)
