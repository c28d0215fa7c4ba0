"""The shipped model: small, whole, and what it makes looks like what it was asked for."""

import csv

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
    for metrics, steps in (("first/metrics.csv", 4000), ("metrics.csv", 5000)):
        assert (DEMO / metrics).read_text().splitlines()[-1].startswith(f"{steps},")


def test_it_was_chosen_by_fvd_on_clips_that_it_has_not_seen():
    """And is better than the network that it was trained on from, which is step 0."""
    rows = list(csv.DictReader((DEMO / "fvd64_16f.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["fvd"]))
    assert best is rows[-1] and rows[0]["step"] == "0" and best["step"] == "5000"
    flicker = [abs(float(row["flicker"]) - float(row["real_flicker"])) for row in rows]
    assert flicker[-1] < flicker[0] / 2 and float(best["fvd"]) < float(rows[0]["fvd"])


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
