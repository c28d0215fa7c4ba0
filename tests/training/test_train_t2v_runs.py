"""Text-to-video training that takes longer: whole checkpoints with samples, and kill -9."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.golden_values import ROOT, error
from support.t2v import FOLDER, export, learned, options, outputs

from latte.components.loading import load_t2v
from latte.training.build import build
from latte.training.trainer import Trainer
from latte.weights.files import read_state_dict

HALF = {"dtype": "fp16", "gradient_accumulation_steps": 2, "use_recompute": True}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "temporal"])
def test_whole_checkpoints(trainable, data, cache, tmp_path, monkeypatch):
    given = {"sample_videos": 2, "sample_steps": 2, "guidance_scale": 3.0, "start_learning_rate": 2e-3}
    given |= {"trainable": trainable, "cache_folder": cache, "output_path": tmp_path / "out", "ema_decay": 0.5}
    cfg = options(data, **given)
    training = build(cfg)
    losses = learned(training, 12)
    assert losses[-1] < (0.8 if trainable == "all" else 0.99) * losses[0]
    trainer = Trainer(cfg, training)
    trainer.step = 12
    trainer.fit()
    (run,) = (tmp_path / "out").iterdir()
    source, base = run / "ckpt" / "ema-00000024.ckpt", read_state_dict(FOLDER / "transformer").tensors
    found = read_state_dict(source).tensors
    assert set(found) == set(base) and len(list((run / "samples").glob("*.gif"))) == 1
    same = {name for name in base if np.array_equal(found[name], base[name])}
    spatial = {name for name in base if not name.startswith("temporal_transformer_blocks.")}
    assert same == (spatial if trainable == "temporal" else set())
    export(monkeypatch, source=source, base=FOLDER, target=tmp_path / "mine")
    assert (
        error(outputs(load_t2v(tmp_path / "mine")) if False else outputs(load_t2v(source)), outputs(training.step.ema))
        < 1
    )
    assert error(outputs(load_t2v(tmp_path / "mine" / "transformer")), outputs(load_t2v(source))) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, pytest.param(HALF, marks=pytest.mark.long)])
def test_killed_and_resumed_is_the_uninterrupted_run(given, data, cache, tmp_path):
    cfg = options(data, cache_folder=cache, trainable="lora", max_steps=16, ckpt_save_interval=3, **given)

    def command(out):
        values = {key: value for key, value in dataclasses.asdict(cfg).items() if value is not None}
        values |= {"output_path": out, "resume": "auto"}
        return [sys.executable, ROOT / "train.py", *[f"--{key}={value}" for key, value in values.items()]]

    assert subprocess.run(command(tmp_path / "whole"), capture_output=True, timeout=300).returncode == 0
    process = subprocess.Popen(command(tmp_path / "cut"), stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.time() + 200
    while time.time() < end and not list((tmp_path / "cut").glob("*/ckpt/state-00000006*")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command(tmp_path / "cut"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    for name in ("metrics.csv", "ckpt/ema-00000016.ckpt", "ckpt/state-00000016.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
