"""The shipped model: small, whole, and what it makes looks like what it was asked for."""

import numpy as np
import pytest
from support.golden_values import ROOT

from latte import load_model, load_vae
from latte.components.codec import Codec
from latte.config import SampleConfig, parse_config
from latte.data.demo import CLASSES
from latte.inference.pipeline import LattePipeline

DEMO = ROOT / "models" / "demo"


def test_it_is_small_and_whole():
    files = [DEMO / "latte.safetensors", DEMO / "vae.safetensors"]
    assert sum(file.stat().st_size for file in files) < 20e6
    net, vae = load_model(files[0]), load_vae(files[1])
    assert (net.config.num_frames, net.config.condition, net.config.num_classes) == (16, "class", len(CLASSES))
    assert net.config.input_size * vae.config.downsampling == 64 and vae.config.scaling_factor != 0.18215
    assert (DEMO / "metrics.csv").read_text().splitlines()[-1].startswith("4000,")


@pytest.mark.slow
def test_day_sunset_and_night_can_be_told_apart(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = parse_config(SampleConfig, ["-c", "configs/inference/demo.yaml"])
    pipeline = LattePipeline(load_model(cfg.checkpoint), Codec(load_vae(cfg.vae_checkpoint), None, cfg.vae_slice))
    made = pipeline(class_labels=[0, 1, 2], seed=range(3), num_inference_steps=15, sampler="ddim", output_type="uint8")
    videos = made.frames
    day, night, sunset = videos.reshape(3, -1, 3).mean(1)  # the classes are the folders in alphabetical order
    assert day.mean() > sunset.mean() > night.mean() and night.mean() < 90 < 120 < day.mean()
    assert day[2] > day[0] and sunset[0] > sunset[2] + 20
    change = np.abs(np.diff(videos.astype(float), axis=1)).mean((1, 2, 3, 4))
    assert (change > 1).all() and (change < 40).all()  # the clouds move, and do not flicker
