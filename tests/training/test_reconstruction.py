"""What a training says of its autoencoder, and the command it ends with."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from latte.config import TrainConfig
from latte.training.next_command import next_command
from latte.training.reconstruction import report


def codec(noise):
    """Return an autoencoder that gives back its images with so much noise."""
    rng = np.random.default_rng(0)

    def decode(latents):
        images = np.moveaxis(latents / 0.5 * 127.5 + 127.5, 1, -1)
        return np.clip(images + noise * rng.normal(size=images.shape), 0, 255).astype(np.uint8)

    return SimpleNamespace(
        frames_per_slice=8, scale_factor=0.5, moments=lambda x: np.concatenate([x, x], axis=1), decode=decode
    )


@pytest.mark.parametrize("noise, level", [(4, logging.INFO), (60, logging.WARNING)])
def test_a_poor_autoencoder_is_named_and_shown(noise, level, tmp_path, caplog):
    caplog.set_level(logging.INFO, "latte")
    frames = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 3, 16, 16)).astype(np.float32)
    psnr = report(codec(noise), list(frames), tmp_path, "models/clouds.ckpt")
    assert (psnr < 22) == (level == logging.WARNING)
    (said,) = caplog.records
    assert said.levelno == level and "models/clouds.ckpt" in said.message and str(tmp_path / "vae.png") in said.message
    with Image.open(tmp_path / "vae.png") as image:
        assert image.size == (3 * 128, 2 * (128 + 16))
    assert [path.name for path in tmp_path.iterdir()] == ["vae.png"]


@pytest.mark.parametrize(
    "called, options, words",
    [
        ("train.py", {}, "python sample.py --checkpoint '{run}'"),
        ("/a/train.py", {"device_target": "CPU"}, "python /a/sample.py --checkpoint '{run}' --device_target CPU"),
        ("/bin/latte train", {}, "latte sample --checkpoint '{run}'"),
        (
            "train.py",
            {"condition": "text", "text_embeddings": "t.npz"},
            "python sample.py --checkpoint '{run}' --text_embeddings t.npz",
        ),
        (
            "train.py",
            {"condition": "text", "text_encoder_path": "models/clip"},
            "python sample.py --checkpoint '{run}' --prompts 'A PROMPT'",
        ),
        (
            "train.py",
            {"model_name": "LatteT2V", "pretrained_model_path": "models/Latte-1/transformer"},
            "python tools/t2v_export.py --source '{run}/ckpt/ema-00000002.ckpt' --base models/Latte-1 "
            "--target '{run}/text-to-video'",
        ),
    ],
)
def test_the_command_at_the_end_of_a_training(called, options, words, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    run = tmp_path / "my run"
    (run / "ckpt").mkdir(parents=True)
    (run / "ckpt" / "ema-00000002.ckpt").touch()
    assert next_command(TrainConfig(**options), run) == words.format(run=run)
