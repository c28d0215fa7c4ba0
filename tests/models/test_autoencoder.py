"""AutoencoderKL against what diffusers computed from the same weights."""

import gc
import weakref

import mindspore as ms
import numpy as np
import pytest
from support.golden_values import FIXTURES, error, recorded

from latte import load_vae
from latte.components.codec import Codec
from latte.models import AutoencoderKL, autoencoder
from latte.models.autoencoder import AutoencoderConfig
from latte.models.layers import Initializers
from latte.ops import conv2d, from_nchw, group_norm, strips, to_nchw, upsample_nearest
from latte.runtime import device
from latte.weights.files import CONFIG, write_state_dict

INIT = Initializers(0)


@pytest.fixture(scope="module")
def vae():
    return load_vae(FIXTURES / "vae.bin")


def test_encode(vae):
    data = recorded("vae")
    mean, logvar = np.split(vae.encode(ms.Tensor(data["frames"])).asnumpy(), 2, axis=1)
    assert error(mean, data["mean"]) <= 1e-5
    assert error(np.clip(logvar, -30, 20), data["logvar"]) <= 1e-5


def test_decode(vae):
    data = recorded("vae")
    assert error(vae.decode(ms.Tensor(data["z"])), data["decoded"]) <= 1e-5


def test_the_accelerators_form(vae):
    """GPU and Ascend keep the channels first and compile the whole coder."""
    data = recorded("vae")
    with device.use("GPU"):
        assert error(ms.jit(vae.decode)(ms.Tensor(data["z"])), data["decoded"]) <= 1e-5
        moments = ms.jit(vae.encode)(ms.Tensor(data["frames"])).asnumpy()
        assert error(moments[:, :4], data["mean"]) <= 1e-5


def test_stable_diffusion_sizes():
    net = AutoencoderKL(seed=None)
    assert len(list(net.get_parameters())) == 248
    assert sum(p.size for p in net.get_parameters()) == 83_653_863


@pytest.mark.parametrize("slice_size", [1, 3, 4, 8])
def test_slices_give_the_whole(vae, slice_size):
    data = recorded("vae")
    codec = Codec(vae, scale_factor=0.5, frames_per_slice=slice_size)
    seen = []
    frames = codec.decode(data["z"] * 0.5, seen.append)
    expected = ((data["decoded"] * 0.5 + 0.5) * 255 + 0.5).clip(0, 255)
    assert frames.shape == (4, 16, 16, 3) and sum(seen) == 4
    assert np.abs(frames - expected.transpose(0, 2, 3, 1)).max() <= 1.01  # a byte is a truncation
    moments = codec.moments(data["frames"])
    assert error(moments[:, :4], data["mean"]) <= 1e-5
    noise = np.random.default_rng(0).normal(size=data["mean"].shape).astype(np.float32)
    expected = (data["mean"] + np.exp(0.5 * data["logvar"]) * noise) * 0.5
    assert error(codec.sample(moments, noise), expected) <= 1e-5


def native(function, *arrays, **options):
    """Run an image function in both layouts and return both results as (N, C, H, W)."""
    results = []
    for target in ("CPU", "GPU"):
        with device.use(target):
            tensors = [ms.Tensor(a) for a in arrays]
            results.append(to_nchw(function(from_nchw(tensors[0]), *tensors[1:], **options)).asnumpy())
    return results


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8)])
def test_convolution_against_its_definition(kernel, stride, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, *size)).astype(np.float32)
    weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((7, 5, kernel, kernel), (7,)))
    pad = (0, 1) if stride == 2 else (kernel // 2,) * 2
    padded = np.pad(x, ((0, 0), (0, 0), pad, pad)).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    expected = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    for result in native(conv2d, x, weight, bias, stride=stride):
        assert error(result, expected) <= 1e-6


def test_group_norm_with_a_large_mean_and_upsampling():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2, 8, 6, 4)) + 100).astype(np.float32)
    weight, bias = (rng.normal(size=8).astype(np.float32) for _ in range(2))
    y = x.astype(np.float64).reshape(2, 4, -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    expected = y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    for result in native(group_norm, x, weight, bias, groups=4, eps=1e-6):
        assert error(result, expected) <= 1e-4  # float32 holds 100 + x to 4e-6 of x
    for result in native(upsample_nearest, x):
        assert np.array_equal(result, x.repeat(2, 2).repeat(2, 3))


@pytest.mark.slow
def test_an_autoencoder_without_attention_and_quant_convolutions(tmp_path):
    config = AutoencoderConfig(
        block_out_channels=(16, 16),
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    made = AutoencoderKL(config)
    tensors = {name: p.asnumpy() for name, p in made.parameters_and_names()}
    write_state_dict(tmp_path / "vae.safetensors", tensors, {CONFIG: '{"norm_num_groups": 4}'})
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert loaded.config == config and not any("attentions" in name or "quant" in name for name in tensors)
    z = ms.Tensor(np.ones((1, 4, 4, 4), np.float32))
    assert np.array_equal(loaded.decode(z).asnumpy(), made.decode(z).asnumpy())


@pytest.mark.parametrize(
    "block, size",
    [
        (autoencoder.Conv(4, 16, 3, INIT), (2, 7, 5, 4)),
        (autoencoder.Conv(16, 8, 1, INIT), (2, 7, 5, 16)),
        (autoencoder.Conv(16, 16, 3, INIT, stride=2), (2, 6, 4, 16)),
        (autoencoder.UpsampleConv(16, 8, 3, INIT), (2, 7, 5, 16)),
        (autoencoder.ResnetBlock(16, 16, 4, INIT), (2, 7, 5, 16)),
        (autoencoder.ResnetBlock(16, 32, 4, INIT), (2, 7, 5, 16)),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, ms.nn.Cell) else "x".join(map(str, each)),
)
def test_a_block_in_strips_is_that_in_a_graph_and_keeps_no_image(monkeypatch, block, size):
    """A compiled graph keeps what it was last called with: were that a view, the whole image would stay in memory."""
    monkeypatch.setattr(strips, "STRIP", 200)
    monkeypatch.setattr(strips, "MEASURED", 100)
    strips._plan.cache_clear()
    x = np.random.default_rng(0).normal(size=size).astype(np.float32) + 3
    expected = ms.jit(block.construct)(ms.Tensor(x)).asnumpy()
    tensor, kept = ms.Tensor.from_numpy(x), weakref.ref(x)
    result = block(tensor).asnumpy()
    assert error(result, expected) <= 2e-6
    del tensor, x
    gc.collect()
    assert kept() is None
