"""Distilling a network by train.py: what it refuses, and that sampling knows in how many steps to make videos."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.golden_values import ROOT

from latte.components.loading import load_model, read
from latte.config import TrainConfig
from latte.data.demo import make_clip
from latte.diffusion.distillation import WALK
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.inputs import choose_solver
from latte.models.latte import LatteConfig
from latte.weights.files import read_state_dict

DEMO = {"pretrained_model_path": "models/demo", "data_folder": "clips"}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"pretrained_model_path": None}, "pretrained_model_path .* the network to learn from, with distill_steps"),
        ({"model_name": "LatteT2V"}, "distill_steps .* 0 for LatteT2V, which needs guidance"),
        ({"images_per_video": 2}, "images_per_video .* 0 with distill_steps"),
        ({"condition_frames": 2}, "condition_frames .* 0 with distill_steps"),
        ({"held_out": 5, "eval_every": 10}, "held_out .* 0 with distill_steps"),
        ({"guidance_scale": 3.0}, "guidance_scale .* 1 with distill_steps"),
        ({"loss_weighting": "v"}, "loss_weighting .* uniform with distill_steps"),
        ({"distill_steps": 251}, "distill_steps .* from 0 to 250"),
    ],
)
def test_what_does_not_go_with_it_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        TrainConfig(**{**DEMO, "distill_steps": 4, **wrong})


def test_a_distilled_network_says_how_it_is_sampled():
    config = LatteConfig(distill_steps=4)
    assert config.default_steps == 4 and "distilled to 4 steps" in config.describe()
    for asked in (None, "ddim"):
        assert choose_solver({}, config.default_solver, asked, 0.0) == WALK
    assert choose_solver({}, config.default_solver, "unipc", 0.0) == Solver("unipc")
    assert WALK.steps(4).timesteps.tolist() == [999, 749, 499, 249]
    assert LatteConfig().default_steps == 250 and LatteConfig().default_solver == "ddpm"


def program(name, *arguments):
    command = [sys.executable, ROOT / name, *map(str, arguments), "--device_target", "CPU"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_demo_model_is_distilled_and_sampled(tmp_path):
    for label, kind in enumerate(("day", "sunset", "night")):
        for number, frame in enumerate(make_clip(label, 1, 16)):
            path = tmp_path / "clips" / kind / "one" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
    options = ["--pretrained_model_path", "models/demo", "--data_folder", tmp_path / "clips", "--distill_steps", 2]
    options += [
        "--condition",
        "class",
        "--num_classes",
        3,
        "--train_batch_size",
        2,
        "--max_steps",
        2,
        "--sample_videos",
        1,
    ]
    options += ["--start_learning_rate", "1e-3", "--ema_decay", "0.5", "--output_path", tmp_path / "runs"]
    program("train.py", *options, "--ckpt_save_interval", 1)
    (run,) = (tmp_path / "runs").iterdir()
    found = read(run / "ckpt" / "ema-00000002.ckpt")
    assert found.config.distill_steps == 2
    before = load_model(ROOT / "models" / "demo" / "latte.safetensors").parameters_and_names()
    moved = [np.abs(np.array(found.tensors[name], np.float32) - w.asnumpy()).max() for name, w in before]
    assert 1e-4 < max(moved) < 1e-2 and len(moved) == len(found.tensors)
    said = program("sample.py", "--checkpoint", run, "--output_path", tmp_path / "samples", "--class_labels", "0")
    assert "distilled to 2 steps" in said and "2 ddim steps" in said
    # Stopped after a step and resumed, it is the same training: the teacher is what it was.
    program("train.py", *options[:-1], tmp_path / "again", "--max_steps", 1, "--ckpt_save_interval", 1)
    program("train.py", *options[:-1], tmp_path / "again", "--resume", "auto", "--ckpt_save_interval", 1)
    (again,) = (tmp_path / "again").iterdir()
    states = [read_state_dict(each / "ckpt" / "state-00000002.safetensors").tensors for each in (run, again)]
    assert set(states[0]) == set(states[1])
    assert all(np.array_equal(np.array(values), states[1][name]) for name, values in states[0].items())
