"""train.py from end to end on tiny data: every layout, what a run leaves behind, resuming, bad input."""

import csv
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.golden_values import FIXTURES, ROOT

from latte import load_model
from latte.config import TrainConfig, parse_config
from latte.data.demo import CLASSES, make_clip
from latte.io.video import save_mp4

SMALL = {
    "vae_checkpoint": FIXTURES / "vae.bin",
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 2,
    "image_size": 16,
    "num_frames": 4,
    "vae_slice": 8,
    "train_batch_size": 2,
    "sample_videos": 0,
    "vae_check": False,
    "num_workers": 1,
    "log_interval": 2,
}


EVALUATED = {"held_out": 2, "eval_every": 10, "eval_clips": 10}


def slow(options):
    return pytest.param(options, marks=pytest.mark.slow)


def command(**options):
    return [sys.executable, ROOT / "train.py", *[f"--{key}={value}" for key, value in {**SMALL, **options}.items()]]


def train(**options):
    return subprocess.run(command(**options), capture_output=True, text=True, timeout=300, check=False)


def frames(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "frames"
    for k, name in enumerate(("day/a", "day/b", "night/c", "night/d")):
        (root / name).mkdir(parents=True)
        for number, frame in enumerate(frames(6, k)):
            Image.fromarray(frame).save(root / name / f"x_{number}.png")
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "videos"
    rows = [("video", "class", "caption")]
    for k, name in enumerate(("A/one.mp4", "A/two.mp4", "B/three.mp4")):
        save_mp4(frames(6, k), root / name)
        rows.append((name, name[0], f"video {k}"))
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    np.savez(
        root / "text.npz",
        captions=np.array([row[2] for row in rows[1:]]),
        text=np.random.default_rng(0).normal(size=(3, 77, 768)).astype(np.float32),
        null=np.zeros((77, 768), np.float32),
    )
    return root


def run_of(path):
    (folder,) = [entry for entry in Path(path).iterdir() if entry.is_dir()]
    return folder


@pytest.mark.slow
def test_a_run_leaves_everything_behind(folders, tmp_path):
    options = {"data_folder": folders, "condition": "class", "num_classes": 2, "sample_videos": 2, "sample_steps": 2}
    options |= {"vae_check": True, "profile": "3:4"}
    done = train(**options, output_path=tmp_path, max_steps=4, ckpt_save_interval=2, ckpt_max_keep=1, num_workers=2)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path)
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    wanted = "config.yaml log.txt metrics.csv loss.png vae.png samples/step-00000002.gif samples/step-00000004.gif"
    wanted = {*wanted.split(), "ckpt/ema-00000004.ckpt", "ckpt/state-00000004.safetensors"}
    assert wanted <= names and not any("00000002.ckpt" in name for name in names)
    assert any(name.startswith("tensorboard/events") for name in names)
    rows = (run / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,epoch,loss") and [row.split(",")[0] for row in rows[1:]] == ["2", "4"]
    log = (run / "log.txt").read_text()
    assert "traced steps 3 to 4, " in log and "profile/operations-rank0.csv" in names
    assert "compiled the training step in" in log and "set vae_checkpoint to one that knows such images" in log
    assert f"to sample from this run: python {ROOT / 'sample.py'} --checkpoint {run}\n" in log
    net = load_model(run / "ckpt" / "ema-00000004.ckpt")
    assert net.config.num_classes == 2 and net.config.num_heads == 2 and net.config.num_frames == 4
    config = parse_config(TrainConfig, ["-c", str(run / "config.yaml")])
    assert config.max_steps == 4 and config.data_folder == str(folders)


@pytest.mark.parametrize(
    "options",
    [
        slow({"data_layout": "video_files", "transform": "resize_crop", "random_flip": True, "use_recompute": True}),
        slow({"data_layout": "class_folders", "condition": "class", "num_classes": 2, "images_per_video": 2}),
        slow(
            {
                "data_layout": "csv",
                "csv_path": "table.csv",
                "class_column": "class",
                "caption_column": "caption",
                "condition": "text",
                "text_embeddings": "text.npz",
                "dtype": "fp16",
                **EVALUATED,
            }
        ),
    ],
    ids=lambda options: options["data_layout"],
)
def test_every_layout_trains(options, videos, tmp_path):
    options = {key: videos / value if "." in str(value) else value for key, value in options.items()}
    done = train(**options, data_folder=videos, output_path=tmp_path, max_steps=2, depth=1)
    assert done.returncode == 0, done.stderr
    names = ("metrics.csv", "eval.csv") if "held_out" in options else ("metrics.csv",)
    for name in names:
        rows = list(csv.DictReader((run_of(tmp_path) / name).read_text().splitlines()))
        assert rows and all(0.1 < float(row["loss"]) < 3 for row in rows)


def test_dry_run_writes_nothing(folders, tmp_path):
    done = train(data_folder=folders, output_path=tmp_path / "out", dry_run=True, max_steps=7)
    assert done.returncode == 0 and "steps: 7 of 2 videos" in done.stdout and "4 videos" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"data_folder": "nowhere"}, "data_folder nowhere is not a folder"),
        ({"vae_checkpoint": "none.ckpt"}, "none.ckpt"),
        ({"condition": "class", "num_classes": 1}, "num_classes is 1, but data_folder"),
        ({"num_frames": 40}, "videos in a row cannot be used"),
        ({"start_learning_rate": -1}, "start_learning_rate is -1"),
        ({"train_batch_size": 0}, "train_batch_size is 0, but must be at least 1"),
        ({"resume": "nowhere"}, "nowhere is not the folder of a run"),
        ({"warmup_steps": 9, "max_steps": 9}, "warmup_steps is 9, but there are only 9 steps"),
        ({"image_size": 24, "patch_size": 8}, "is not a multiple of patch_size"),
        ({"pretrained_model_path": "nothing.pt"}, "nothing.pt"),
        ({"learning_rate": 1}, "there is no option 'learning_rate'; the nearest is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(options, said, folders, tmp_path, monkeypatch, capsys):
    options = {"data_folder": folders, "max_steps": 2, "output_path": tmp_path / "out", **options}
    monkeypatch.setattr(sys, "argv", list(map(str, command(**options)[1:])))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line and not list((tmp_path / "out").glob("*/ckpt/*"))


def test_classes_are_not_all_0_because_a_table_has_none(folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "t.csv").write_text("video\nday/a\nnight/c\n")
    options = {"data_layout": "csv", "csv_path": tmp_path / "t.csv", "condition": "class", "num_classes": 2}
    said = "condition is class, but the data has no classes: data_layout is csv; set"
    test_bad_input_is_one_sentence(options, said, folders, tmp_path, monkeypatch, capsys)


def test_a_poster_beside_videos_does_not_shift_the_classes(folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    for name in ("day", "night"):
        (tmp_path / "data" / name).symlink_to(folders / name)
    Image.fromarray(frames(1, 0)[0]).save(tmp_path / "data" / "poster_1.jpg")
    options = {"data_folder": tmp_path / "data", "condition": "class", "num_classes": 3}
    test_bad_input_is_one_sentence(options, "holds images and, in", folders, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_bad_videos_are_named_and_too_many_stop_the_run(folders, tmp_path):
    root = tmp_path / "data"
    for name in ("a", "b", "c"):
        (root / name).mkdir(parents=True)
        for number, frame in enumerate(frames(6 if name != "c" else 3, 1)):
            Image.fromarray(frame).save(root / name / f"x_{number}.jpg")
    options = {"data_folder": root, "max_steps": 4, "output_path": tmp_path / "out", "depth": 1}
    done = train(**options, max_bad_fraction=0.5)
    assert done.returncode == 0 and "c has 3 frames, but 4 frames" in done.stderr
    assert "(1 bad of 3 videos)" in (run_of(tmp_path / "out") / "log.txt").read_text()
    done = train(**options)
    assert done.returncode == 2 and "1 of 3 videos are broken or too short, more than max_bad_fraction" in done.stderr


@pytest.mark.slow
def test_sigterm_saves_and_a_resumed_run_is_the_uninterrupted_one(folders, tmp_path):
    options = {"data_folder": folders, "max_steps": 40, "ckpt_save_interval": 100}
    assert train(**options, output_path=tmp_path / "whole").returncode == 0
    process = subprocess.Popen(command(**options, output_path=tmp_path / "cut"), stderr=subprocess.DEVNULL)
    metrics = wait_for(tmp_path / "cut", "metrics.csv", rows=3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and len(metrics.read_text().splitlines()) < 21
    again = train(**options, output_path=tmp_path / "cut", resume="auto")
    assert again.returncode == 0, again.stderr
    assert_equal_runs(run_of(tmp_path / "whole"), run_of(tmp_path / "cut"), 40)
    log = (run_of(tmp_path / "cut") / "log.txt").read_text()
    assert log.count("read the training step in") == 2 and "compiled the" not in log  # it was kept by the first run


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [EVALUATED, {"dtype": "fp16", "gradient_accumulation_steps": 4}], ids=["fp32", "fp16"]
)
def test_killed_three_times_and_resumed_is_the_uninterrupted_run(options, folders, tmp_path):
    options = {"data_folder": folders, "max_steps": 40, "ckpt_save_interval": 3, "num_workers": 2, **options}
    assert train(**options, output_path=tmp_path / "whole").returncode == 0
    rng = np.random.default_rng()
    for rows in (2, 7, 13):
        arguments = command(**options, output_path=tmp_path / "cut", resume="auto")
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(tmp_path / "cut", "metrics.csv", rows)
        time.sleep(rng.random())
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = train(**options, output_path=tmp_path / "cut", resume="auto")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(run_of(tmp_path / "whole"), run_of(tmp_path / "cut"), 40)


@pytest.mark.slow
def test_loss_curves_of_all_precisions_lie_together(tmp_path):
    for label, kind in enumerate(CLASSES):
        (tmp_path / "frames" / kind).mkdir(parents=True)
        for number, frame in enumerate(make_clip(label, 0, 12, 32)):
            Image.fromarray(frame).save(tmp_path / "frames" / kind / f"x_{number}.png")
    curves = {}
    for dtype in ("fp32", "fp16", "bf16"):
        options = {"data_folder": tmp_path / "frames", "dtype": dtype, "start_learning_rate": 1e-3, "max_steps": 200}
        done = train(**options, output_path=tmp_path / dtype, log_interval=20, ckpt_save_interval=200)
        assert done.returncode == 0, done.stderr
        rows = csv.DictReader((run_of(tmp_path / dtype) / "metrics.csv").read_text().splitlines())
        curves[dtype] = np.array([float(row["loss"]) for row in rows])
    assert len(curves["fp32"]) == 10 and curves["fp32"][-1] < 0.9 * curves["fp32"][0]
    for dtype in ("fp16", "bf16"):
        assert np.abs(curves[dtype] / curves["fp32"] - 1).max() < 0.02, curves


def wait_for(folder, name, rows, seconds=120):
    """Wait until a file of the only run below a folder has so many rows, and return it."""
    end = time.time() + seconds
    while time.time() < end:
        for file in folder.glob(f"*/{name}"):
            if len(file.read_text().splitlines()) > rows:
                return file
        time.sleep(0.05)
    raise AssertionError(f"no {rows} rows in {folder} after {seconds} s")


def assert_equal_runs(one, other, step):
    names = [name for name in ("metrics.csv", "eval.csv") if (one / name).exists()]
    assert [(one / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]
    for name in (f"ema-{step:08d}.ckpt", f"state-{step:08d}.safetensors"):
        assert (one / "ckpt" / name).read_bytes() == (other / "ckpt" / name).read_bytes(), name
