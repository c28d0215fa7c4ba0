"""Two ranks on CPU, for real: what one rank with twice the batch computes, and the end of a rank."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import mpi
from support.golden_values import FIXTURES, ROOT

from latte.weights.safetensors_file import read_safetensors

pytestmark = pytest.mark.slow
CONFIG = ROOT / "configs" / "training" / "sky_video.yaml"
OPTIONS = {
    "vae_checkpoint": FIXTURES / "vae.bin",
    "dtype": "fp32",
    "enable_flash_attention": False,
    "dataset_sink_mode": False,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_frames": 4,
    "image_size": 16,
    "vae_slice": 8,
    "sample_stride": 1,
    "sample_videos": 0,
    "vae_check": False,
    "num_workers": 1,
    "log_interval": 2,
    "data_folder": "frames",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    for k in range(4):
        (root / "frames" / str(k)).mkdir(parents=True)
        for number, frame in enumerate(np.random.default_rng(k).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(root / "frames" / str(k) / f"x_{number}.png")
    return root


def options(folder, **others):
    given = {**OPTIONS, "data_folder": folder / "frames", **others}
    return [f"--{key}={value}" for key, value in given.items()]


def environment(folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mpirun and msrun are beside Python
    return os.environ | {"PATH": path, "PYTHON": sys.executable, "LOG_DIR": str(folder / "logs")}


def launch(folder, script, **others):
    command = ["bash", ROOT / "scripts" / script, CONFIG, "2", *options(folder, **others)]
    return subprocess.Popen(
        command, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def state(path, step=10):
    (file,) = path.glob(f"*/ckpt/state-{step:08d}.safetensors")
    return read_safetensors(file)[0]


@pytest.fixture(scope="module")
def one_rank(folder):
    command = [sys.executable, ROOT / "train.py", "-c", CONFIG, *options(folder, max_steps=10, train_batch_size=4)]
    subprocess.run([*command, f"--output_path={folder / 'one'}"], check=True, capture_output=True)
    return state(folder / "one")


@pytest.mark.parametrize("script, zero", [("run_mpirun.sh", 0), ("run_mpirun.sh", 1), ("run_msrun.sh", 0)])
def test_two_ranks_are_one_with_twice_the_batch(script, zero, folder, one_rank):
    out = folder / f"{script}{zero}"
    process = launch(folder, script, max_steps=10, train_batch_size=2, zero_stage=zero, output_path=out)
    text, _ = process.communicate(timeout=580)
    assert process.returncode == 0, text[-3000:]
    found = state(out)
    assert set(found) == set(one_rank)
    for name, values in one_rank.items():
        if not name.startswith("sums"):
            assert np.abs(values - found[name]).max() < 1e-6, name


@pytest.mark.long  # by hand, and before a release
def test_ranks_that_share_weights_measure_and_sample_as_one_rank_does(folder):
    """Stage 3 of ZeRO: no rank has a whole network for the previews and the held-out loss."""
    more = {"max_steps": 4, "held_out": 2, "eval_every": 2, "eval_clips": 10, "sample_videos": 1, "sample_steps": 2}
    found, measured = {}, {}
    for name, ranks, given in (
        ("alone", 1, {"train_batch_size": 2}),
        ("shared", 2, {"train_batch_size": 1, "zero_stage": 3, "use_recompute": True}),
    ):
        found[name], _ = train(folder, name, ranks, **more, **given)
        (file,), (gif,) = ((folder / name).glob(f"*/{each}") for each in ("eval.csv", "samples/*.gif"))
        rows = list(csv.DictReader(file.read_text().splitlines()))
        measured[name] = np.array([[float(value) for value in row.values()] for row in rows])
        with Image.open(gif) as image:
            found[name]["sample"] = np.asarray(image.convert("RGB"), np.float32)
    assert len(measured["alone"]) == 3  # before the first step too
    np.testing.assert_allclose(measured["shared"], measured["alone"], rtol=1e-5)
    assert np.abs(found["shared"].pop("sample") - found["alone"].pop("sample")).mean() < 0.1
    for key, values in found["alone"].items():
        if not key.startswith("sums"):
            assert np.abs(values - found["shared"][key]).max() < 1e-6, key


@pytest.mark.parametrize("sequence", [1, 2])
def test_when_a_rank_is_killed_the_job_ends_with_a_message(sequence, folder):
    out = folder / f"killed{sequence}"
    more = {"train_batch_size": 2, "sequence_parallel": sequence, "ckpt_save_interval": 2, "output_path": out}
    with launch(folder, "run_mpirun.sh", max_steps=100000, **more) as process:
        try:
            end = time.time() + 500
            while not any(len(file.read_text().splitlines()) > 3 for file in out.glob("*/metrics.csv")):
                assert time.time() < end and process.poll() is None
                time.sleep(0.2)
            mpi.kill_a_rank(process, "train.py")
            text, _ = process.communicate(timeout=30)
        finally:
            process.terminate()
    assert process.returncode != 0 and "signal 9" in text
    states = sorted(out.glob("*/ckpt/state-*.safetensors"))
    assert states and all(read_safetensors(file)[0] for file in states)


def test_a_layout_that_does_not_divide_ends_a_training_with_a_sentence(folder):
    process = launch(folder, "run_mpirun.sh", sequence_parallel=3, max_steps=2, output_path=folder / "wrong")
    text, _ = process.communicate(timeout=580)
    assert process.returncode == 2 and "Traceback" not in text
    assert "sequence_parallel 3 needs a multiple of 3 ranks, and there are 2; take sequence_parallel 2, or" in text
    assert not (folder / "wrong").exists()


PARTS = {"train_batch_size": 4, "sequence_parallel": 2}


def train(folder, name, ranks, **others):
    """Train to the end, from where the run of that name is; return its newest state and its losses."""
    given = {"output_path": folder / name, "resume": "auto", **others}
    if ranks > 1:
        process = launch(folder, "run_mpirun.sh", **given)
    else:
        command = [sys.executable, ROOT / "train.py", "-c", CONFIG, *options(folder, **given)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    text, _ = process.communicate(timeout=580)
    assert process.returncode == 0, text[-3000:]
    (file,) = (folder / name).glob("*/metrics.csv")
    losses = [float(row["loss"]) for row in csv.DictReader(file.read_text().splitlines())]
    return state(folder / name, others["max_steps"]), np.array(losses)


def test_a_run_goes_on_with_other_layouts(folder, one_rank):
    """Two ranks with videos of their own, then with shared ones, then one rank: the losses of one rank throughout."""
    for steps, ranks, more in ((2, 2, {"train_batch_size": 2}), (6, 2, PARTS), (10, 1, {"train_batch_size": 4})):
        found, losses = train(folder, "layouts", ranks, max_steps=steps, **more)
    (file,) = (folder / "one").glob("*/metrics.csv")
    expected = np.array([float(row["loss"]) for row in csv.DictReader(file.read_text().splitlines())])
    assert len(losses) == len(expected) == 5 and np.abs(losses / expected - 1).max() < 1e-5
    for name, values in one_rank.items():
        if not name.startswith("sums"):
            assert np.abs(values - found[name]).max() < 1e-6, name


def test_a_run_resumed_on_the_same_layout_is_the_uninterrupted_one(folder):
    whole, losses = train(folder, "whole", 2, max_steps=6, **PARTS)
    train(folder, "cut", 2, max_steps=2, **PARTS)
    resumed, again = train(folder, "cut", 2, max_steps=6, **PARTS)
    assert np.array_equal(losses, again) and set(whole) == set(resumed)
    assert all(np.array_equal(values, resumed[name]) for name, values in whole.items())
