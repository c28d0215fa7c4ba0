"""`latte evaluate --run RUN`: a row for each checkpoint."""

import csv
import json

import numpy as np
import pytest
from support.clips import NETWORK, make_folder
from support.golden_values import FIXTURES

from latte.config import EvaluateConfig
from latte.errors import UserError
from latte.evaluation import curve, evaluate
from latte.evaluation.clips import flicker
from latte.io.video import read_frames
from latte.weights.files import read_state_dict, write_state_dict


class StandIn:
    """Makes videos that get nearer to real ones with the steps of a checkpoint, and counts them."""

    frames, size = 16, 16

    def __init__(self, root, stop_after=10**9, **facts):
        self.root, self.made, self.stop_after = root, 0, stop_after
        self.facts = {"sampling_steps": 250, **facts}

    def make(self, checkpoint, number):
        if self.made >= self.stop_after:
            raise KeyboardInterrupt
        self.made += 1
        noise = np.random.default_rng(number).normal(size=(16, 16, 16, 3)) * 4000 / int(checkpoint.stem[-8:])
        return np.clip(read_frames(self.root / f"clip{number:03d}") + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def run_folder(tmp_path):
    make_folder(tmp_path / "real", 8)
    folder = tmp_path / "my-run"
    (folder / "ckpt").mkdir(parents=True)
    (folder / "config.yaml").write_text("sample_stride: 1\n")
    for name in ("ema-00000100.ckpt", "model-00000100.ckpt", "ema-00000200.ckpt", "model-00000050.ckpt"):
        (folder / "ckpt" / name).write_text(name)
    return folder


@pytest.fixture
def no_plot(monkeypatch):
    monkeypatch.setattr(curve._Table, "_plot", lambda table: None)  # takes half a second


def options(run_folder, **given):
    defaults = {"real": str(run_folder.parent / "real"), "run": str(run_folder), "metrics": ["fvd8_16f"]}
    features = str(run_folder.parent / "features")
    return EvaluateConfig(**{**defaults, "features_folder": features, "bootstrap": 4, "jpeg_quality": 0, **given})


def rows(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_every_checkpoint_has_a_row_with_its_distance_and_flicker(run_folder):
    (file,) = curve.run(options(run_folder), NETWORK, StandIn(run_folder.parent / "real"))
    assert file == run_folder / "evaluation/fvd8_16f.csv" and file.with_suffix(".png").stat().st_size > 1000
    found = rows(file)
    assert [row["step"] for row in found] == ["50", "100", "200"]
    distances, changes = ([float(row[name]) for row in found] for name in ("fvd", "flicker"))
    assert distances[0] > distances[1] > distances[2] > 0 and changes[0] > changes[1] > changes[2]
    real = np.mean([flicker(read_frames(path)) for path in (run_folder.parent / "real").iterdir()])
    assert [float(row["real_flicker"]) for row in found] == pytest.approx([real] * 3) and real < changes[2]
    assert all(float(row["fvd_low"]) <= float(row["fvd"]) <= float(row["fvd_high"]) for row in found)


def test_a_killed_one_goes_on_and_ends_equal(run_folder, monkeypatch, no_plot):
    monkeypatch.setattr(evaluate, "FRAMES_AT_ONCE", 16)
    real = run_folder.parent / "real"
    whole = [run_folder.parent / "whole", run_folder.parent / "others"]
    curve.run(options(run_folder, output_path=str(whole[0]), features_folder=str(whole[1])), NETWORK, StandIn(real))
    stopped, rest, again = StandIn(real, stop_after=11), StandIn(real), StandIn(real)
    with pytest.raises(KeyboardInterrupt):
        curve.run(options(run_folder), NETWORK, stopped)
    assert [row["step"] for row in rows(run_folder / "evaluation/fvd8_16f.csv")] == ["50"]
    (file,) = curve.run(options(run_folder), NETWORK, rest)
    assert rest.made == 3 * 8 - 11 and file.read_bytes() == (whole[0] / file.name).read_bytes()
    curve.run(options(run_folder), NETWORK, again)
    assert again.made == 0


def test_rows_of_checkpoints_that_are_gone_are_kept_and_new_ones_are_added(run_folder, no_plot):
    real = run_folder.parent / "real"
    (file,) = curve.run(options(run_folder), NETWORK, StandIn(real))
    before = rows(file)
    (run_folder / "ckpt/model-00000050.ckpt").unlink()
    (run_folder / "ckpt/ema-00000300.ckpt").write_text("new")
    sampler = StandIn(real)
    curve.run(options(run_folder), NETWORK, sampler)
    assert sampler.made == 8 and rows(file)[:3] == before and rows(file)[3]["step"] == "300"


def test_rows_of_other_options_are_not_mixed(run_folder, no_plot):
    real = run_folder.parent / "real"
    curve.run(options(run_folder), NETWORK, StandIn(real))
    with pytest.raises(UserError, match="was computed with sampling_steps 250, but now it is 50; name another folder"):
        curve.run(options(run_folder), NETWORK, StandIn(real, sampling_steps=50))
    (run_folder / "evaluation/fvd8_16f.json").write_text(json.dumps({"rows": [{"step": 1}]}))
    with pytest.raises(UserError, match="is damaged; remove it"):
        curve.run(options(run_folder), NETWORK, StandIn(real))


def test_what_cannot_be_is_told_before_anything_is_sampled(run_folder):
    sampler = StandIn(run_folder.parent / "real")
    with pytest.raises(UserError, match=r"fvd8_32f takes 32 frames of a sample, but those of .* have 16"):
        curve.run(options(run_folder, metrics=["fvd8_32f"]), NETWORK, sampler)
    with pytest.raises(UserError, match="is not the folder of a training run"):
        curve.run(options(run_folder, run=str(run_folder.parent)), NETWORK, sampler)
    (run_folder / "config.yaml").write_text("condition: text\n")
    with pytest.raises(UserError, match="is conditioned on text, for which run makes no samples"):
        curve.run(options(run_folder), NETWORK)
    assert sampler.made == 0


@pytest.mark.slow
def test_weights_that_are_set_in_place_sample_as_those_of_a_new_pipeline(run_folder, monkeypatch):
    state = read_state_dict(FIXTURES / "latte_class.pt")
    metadata = {**state.metadata, "config": json.dumps({"num_heads": 4})}
    (run_folder / "config.yaml").write_text(f"vae_checkpoint: {FIXTURES / 'vae.bin'}\ncondition: class\n")
    files = [run_folder / "ckpt" / name for name in ("ema-00000100.ckpt", "ema-00000200.ckpt")]
    for scale, file in zip((1.0, 0.5), files, strict=True):
        write_state_dict(file, {name: values * scale for name, values in state.tensors.items()}, metadata)
    cfg = options(run_folder, sampling_steps=2, guidance_scale=2.0)
    one = curve.Sampler(cfg, files[0])
    assert (one.frames, one.size) == (4, 16)
    first, second, back = (one.make(file, 3) for file in (*files, files[0]))
    assert (first == back).all() and (first != second).any()
    assert (curve.Sampler(cfg, files[1]).make(files[1], 3) == second).all()
    assert (one.make(files[0], 4) != first).any()
