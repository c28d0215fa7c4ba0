"""What a training is predicted to take: operations counted by hand, and what makes it more."""

import numpy as np
import pytest
from latte.training.estimate import estimate, flops, memory
from PIL import Image
from support.golden_values import FIXTURES

from latte.config import TrainConfig
from latte.runtime import device
from latte.training.build import build

SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 2, "image_size": 16, "num_frames": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for k in range(2):
        (root / "a" / str(k)).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "a" / str(k) / f"x_{number}.png")
    return root


def planned(data, **options):
    given = {
        "data_folder": str(data),
        "vae_checkpoint": str(FIXTURES / "vae.bin"),
        "train_batch_size": 1,
        "max_steps": 4,
    }
    cfg = TrainConfig(**(SIZES | given | options))
    return cfg, build(cfg)


def test_operations_of_a_step(data):
    cfg, training = planned(data)
    tokens, width = 4 * 4 * 4, 32  # frames x patches of 8 x 8 latents
    products = 2 * tokens * 12 * width * width * 2  # qkv, projection and MLP of two blocks
    attention = 2 * 2 * tokens * width * (16 + 4)  # scores and their product with v, over patches and over frames
    vae = training.codec.vae
    pixels = {"conv_in": 256, "down_blocks.0": 256, "down_blocks.1": 64}
    encoder = 0
    for name, weight in vae.parameters_and_names():
        if weight.ndim == 4 and name.startswith(("encoder", "quant_conv")):
            place = next((size for key, size in pixels.items() if key in name), 64)
            encoder += 2 * weight.size * (64 if "downsamplers" in name else place)
        elif weight.ndim == 2 and name.startswith("encoder"):
            encoder += 2 * weight.size * 64
    assert vae.config.downsampling == 2
    assert flops(cfg, training) == pytest.approx(3 * (products + attention) + 4 * encoder)


@pytest.mark.parametrize(
    "options", [{"num_frames": 6}, {"train_batch_size": 2}, {"hidden_size": 64}, {"gradient_accumulation_steps": 2}]
)
def test_more_takes_more(data, options):
    plain, larger = planned(data), planned(data, **options)
    assert flops(*larger) > flops(*plain)
    assert memory(*larger) > memory(*plain)


def test_recomputation_takes_time_and_gives_memory(data):
    plain, again = planned(data, depth=8), planned(data, depth=8, use_recompute=True)
    assert flops(*again) > flops(*plain)
    assert memory(*again) < memory(*plain)


def test_the_lines_are_called_predicted(data):
    cfg, training = planned(data)
    assert estimate(cfg, training).count("predicted") == 2


def test_a_step_that_does_not_fit_is_said(data, monkeypatch):
    cfg, training = planned(data)
    monkeypatch.setattr(device, "free_memory", lambda: 1)
    assert "this does not fit: take a smaller train_batch_size" in estimate(cfg, training)
