"""tools/train_vae.py as users call it: the loss falls, the file loads, clips are held out, and what is refused."""

import csv
import re
import signal
import sys

import numpy as np
import pytest
from PIL import Image

import latte
from latte.commands import train_vae as command
from latte.config import VaeTrainConfig
from latte.data.demo import make_clip
from latte.errors import run_main
from latte.io.video import save_mp4
from latte.training import autoencoder as train_vae
from latte.weights.files import read_state_dict

TINY = ["--block_out_channels", "[32]", "--crop", "8", "--batch_size", "1"]


@pytest.fixture
def train(monkeypatch):
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["train_vae.py", *map(str, argv)])
        run_main(command.main)

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three clips of four frames, 16 x 16."""
    root = tmp_path_factory.mktemp("clips")
    for label in range(3):
        (root / f"clip{label}").mkdir()
        for i, frame in enumerate(make_clip(label, 0, 4, 16)):
            Image.fromarray(frame).save(root / f"clip{label}" / f"a_{i:04d}.png")
    return root


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(capsys, call, *words):
    with pytest.raises(SystemExit) as exit:
        call()
    said = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2
    assert said.startswith("error: ") and all(word in said for word in words), said


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The file of a short training that saves at its middle and its end."""
    target = tmp_path_factory.mktemp("out") / "vae.safetensors"
    steps = ["--steps", "12", "--save_interval", "6", "--learning_rate", "1e-3", "--ema_decay", "0", "--half", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vae, "REPORT", 3)
        patch.setattr(
            sys, "argv", ["train_vae.py", "--data_folder", str(images), "--target", str(target), *TINY, *steps]
        )
        run_main(command.main)
    return target


@pytest.mark.slow
def test_the_loss_falls_and_the_log_says_so(trained):
    rows = rows_of(trained.with_suffix(".csv"))
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert [bool(row["held_out_psnr"]) for row in rows] == [False, True, False, True]


@pytest.mark.slow
def test_the_file_loads_and_holds_what_was_measured(trained, images):
    vae = latte.load_vae(trained)
    state, last = read_state_dict(trained), rows_of(trained.with_suffix(".csv"))[-1]
    assert vae.config.block_out_channels == (32,) and not vae.config.mid_block_add_attention
    assert {array.dtype for array in state.tensors.values()} == {np.dtype(np.float16)}
    frames, clips = train_vae.read_clips(str(images))
    psnr, deviation, decoded = train_vae.measure(vae, train_vae.split(frames, clips, "")[1])
    assert psnr == pytest.approx(float(last["held_out_psnr"]), abs=0.1)  # up to the rounding to float16
    assert 1 / deviation == pytest.approx(vae.config.scaling_factor, rel=0.01)
    assert vae.config.scaling_factor == float(last["scaling_factor"])
    with Image.open(trained.with_suffix(".png")) as image:
        assert image.size == (16 * len(decoded), 2 * 16)


def test_held_out_frames_are_of_clips_that_are_not_trained_on():
    clips = np.repeat(np.arange(45), 10)
    frames = np.broadcast_to(clips.astype(np.uint8)[:, None, None, None], (450, 2, 2, 3))
    rest, held_out = train_vae.split(frames, clips, "")
    assert set(held_out[:, 0, 0, 0]) == {0, 20, 40}
    assert set(rest[:, 0, 0, 0]) == set(range(45)) - {0, 20, 40}
    assert len(rest) == 420 and len(held_out) == 30


def test_videos_are_read_where_there_are_no_images(tmp_path):
    for name, label in (("a", 0), ("b", 2)):
        save_mp4(make_clip(label, 0, 3, 32), tmp_path / "videos" / f"{name}.mp4")
    frames, clips = train_vae.read_clips(str(tmp_path))
    assert frames.shape == (6, 32, 32, 3) and list(clips) == [0, 0, 0, 1, 1, 1]
    Image.fromarray(frames[0]).save(tmp_path / "image.png")
    assert train_vae.read_clips(str(tmp_path))[0].shape == (1, 32, 32, 3)


def test_links_are_followed_and_what_a_mac_leaves_is_no_frame(tmp_path):
    for folder in ("data/one", "elsewhere/two"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "x.webp")
        (tmp_path / folder / "._x.webp").write_bytes(b"left by a Mac")
    (tmp_path / "data" / "two").symlink_to(tmp_path / "elsewhere" / "two")
    frames, clips = train_vae.read_clips(str(tmp_path / "data"))
    assert frames.shape == (2, 32, 32, 3) and clips.tolist() == [0, 1]


def test_an_interrupt_saves_after_the_step(tmp_path):
    settings = VaeTrainConfig(target=str(tmp_path / "vae.safetensors"), crop=16)
    config = train_vae.AutoencoderConfig(block_out_channels=(32,), layers_per_block=1, mid_block_add_attention=False)
    frames = make_clip(0, 0, 2, 16)

    def interrupted(x, noise):
        signal.raise_signal(signal.SIGINT)
        return 0.5, 0.04

    train_vae.fit(interrupted, train_vae.AutoencoderKL(config), frames, frames, settings)
    (row,) = rows_of(tmp_path / "vae.csv")
    assert (row["step"], row["loss"], row["psnr"]) == ("1", "0.50000", "20.000")
    assert latte.load_vae(settings.target).config.downsampling == 1


def test_equal_seeds_draw_equal_crops():
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)
    settings = VaeTrainConfig(crop=16, batch_size=3)
    first, again, other = (train_vae.crops(frames, settings, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 3, 16, 16) and np.abs(first).max() <= 1 and np.any(first != other)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data_folder", "nowhere"], ["data_folder nowhere holds no images or videos"]),
        (["--target", "vae.txt"], ["vae.txt must end in", ".safetensors"]),
        (["--crop", "15"], ["crop is 15", "a multiple of 4 and at most 16"]),
        (["--crop", "32"], ["crop is 32", "at most 16"]),
        (["--block_out_channels", "[32,32,32,32,32,32]"], ["crop is 16", "a multiple of 32"]),
        (["--block_out_channels", "[20]"], ["block_out_channels (20,)", "norm_num_groups 32"]),
        (["--block_out_channels", "[]"], ["block_out_channels is []"]),
        (["--steps", "0"], ["steps is 0, but must be at least 1"]),
        (["--batch_size", "many"], ["batch_size", "a whole number"]),
        (["--ema_decay", "2"], ["ema_decay is 2.0, but must be from 0 to 1"]),
        (["--step", "3"], ["step", "'steps'"]),
    ],
)
def test_bad_options(train, capsys, images, tmp_path, options, words):
    given = {"--data_folder": images, "--target": tmp_path / "vae.safetensors", "--crop": 16} | dict([options])
    refused(capsys, lambda: train(*(part for pair in given.items() for part in pair)), *words)
    assert not list(tmp_path.iterdir())


def test_bad_data(train, capsys, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    argv = ["--data_folder", tmp_path, "--target", tmp_path / "vae.safetensors", *TINY]
    refused(capsys, lambda: train(*argv), str(tmp_path), "holds one clip")
    (tmp_path / "b.png").write_bytes(b"no image")
    refused(capsys, lambda: train(*argv), "b.png", "broken")
    Image.new("RGB", (24, 16)).save(tmp_path / "b.png")
    refused(capsys, lambda: train(*argv), "b.png has another size than a.png")


def test_a_training_starts_from_an_autoencoder(train, images, tmp_path, capsys):
    """Steps that change nothing save what it was, with its sizes."""
    words = ["--data_folder", images, "--target", tmp_path / "vae.safetensors", "--steps", 1, "--learning_rate", 0]
    train(*words, "--crop", 8, "--batch_size", 1, "--pretrained_model_path", "models/demo")
    before = read_state_dict("models/demo/vae.safetensors").tensors
    after = read_state_dict(tmp_path / "vae.safetensors").tensors
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].astype(np.float32), after[name]) for name in before)
    psnr = float(re.search(r"PSNR ([\d.]+) dB", capsys.readouterr().out)[1])
    assert psnr > 15  # a new one has 6


def test_what_is_no_autoencoder_is_no_start(train, images, tmp_path, capsys):
    words = ["--data_folder", images, "--target", tmp_path / "vae.safetensors"]
    refused(
        capsys, lambda: train(*words, "--pretrained_model_path", "models/demo/latte.safetensors"), "a Latte network"
    )
    refused(capsys, lambda: train(*words, "--pretrained_model_path", "nowhere"), "nowhere")
    refused(capsys, lambda: train(*words, "--pretrained_model_path", images), "no file of weights named vae")
