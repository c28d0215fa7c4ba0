"""What the configurations of the networks say about them, without building or asking for their type."""

import math

import pytest

from latte.errors import UserError
from latte.models import Latte, LatteT2V
from latte.models.latte import LatteConfig
from latte.models.latte_t2v import LatteT2VConfig

SMALL = {"hidden_size": 48, "depth": 3, "num_heads": 4, "input_size": (4, 8), "num_frames": 3}
T2V = LatteT2VConfig(2, 12, num_layers=2, cross_attention_dim=24, sample_size=4, caption_channels=10, video_length=5)


@pytest.mark.parametrize(
    "config",
    [
        LatteConfig(**SMALL),
        LatteConfig(**SMALL, condition="class", num_classes=7, learn_sigma=False),
        LatteConfig(**SMALL, condition="text"),
        T2V,
    ],
    ids=["uncond", "class", "text", "t2v"],
)
def test_the_parameters_are_counted_without_building_the_network(config):
    net = (Latte if config.conditioning != "prompt" else LatteT2V)(config, seed=None)
    assert config.parameter_count == sum(math.prod(weight.shape) for weight in net.get_parameters())
    assert config.depth == len(net.blocks)


def test_defaults_differ_by_network():
    latte = LatteConfig(**SMALL)
    assert (latte.default_steps, latte.default_guidance, latte.default_solver) == (250, 1, "ddpm")
    assert (T2V.default_steps, T2V.default_guidance, T2V.default_solver) == (50, 7.5, None)
    assert (latte.conditioning, LatteConfig(condition="text").conditioning, T2V.conditioning) == (
        "none",
        "text",
        "prompt",
    )
    assert latte.describe() == "depth 3, width 48, 4 heads, patch 2, condition none"
    assert T2V.describe() == "depth 4, width 24, 2 heads, patch 2, condition prompt"


def test_shapes_of_latents():
    latte = LatteConfig(**SMALL)
    assert (
        latte.latent_shape() == latte.latent_shape(3, 32, 64) == latte.latent_shape(height=16, side=4) == (3, 4, 4, 8)
    )
    assert T2V.latent_shape() == (5, 4, 4, 4) and T2V.latent_shape(1, 16, 48) == (1, 4, 2, 6)
    for asked, said in (
        ({"frames": 4}, "video_length is 3 in this network, but 4"),
        ({"width": 32}, "width is 64 in"),
    ):
        with pytest.raises(UserError, match=said):
            latte.latent_shape(**asked)
    for asked in ({"height": 24}, {"width": 8}):
        with pytest.raises(UserError, match="multiples of 16; asked for are"):
            T2V.latent_shape(**asked)
    for asked in ({"frames": -1}, {"frames": 0}, {"frames": 2.0}, {"height": 0}, {"width": "32"}):
        with pytest.raises(UserError, match="(video_length|height|width) must be a whole number from 1 to"):
            T2V.latent_shape(**asked)
