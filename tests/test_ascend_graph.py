"""What Ascend would run: graphs exported with its settings, which needs no such device, and their nodes read back."""

from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindir import nodes
from mindspore import nn

from latte import create_model, device
from latte.diffusion.samplers import make_denoiser
from latte.models import AutoencoderKL
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import Latte, LatteConfig
from latte.models.precision import prepare
from latte.training.step import StepOptions, TrainStep

SLOW, LONG = pytest.mark.slow, pytest.mark.long
MINDIR_NAMES = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}


def export(net, tmp_path, *arrays):
    file = tmp_path / "net.mindir"
    ms.export(net, *[ms.Tensor(a) for a in arrays], file_name=str(file), file_format="MINDIR")
    (written,) = tmp_path.glob("net*.mindir")  # beyond 1 GB the weights are put beside the graph
    found = list(nodes(written))
    written.unlink()
    return found


def check_blocks(found, depth, dtype):
    count = Counter(node.op for node in found)
    assert count["FlashAttentionScore"] == depth
    assert count["Softmax"] == 0 and count["BatchMatMul"] == 0  # no exact attention is left
    assert count["Pad"] == count["PadV3"] == 0  # heads are widened in the weights, not at run time
    for node in found:
        if node.op == "FlashAttentionScore":
            assert node.dtypes[-1] == MINDIR_NAMES[dtype], node
        if node.op == "LayerNorm":
            assert set(node.dtypes) == {"FLOAT"}, node
        if node.op == "GeLU":
            assert node.dtypes == [MINDIR_NAMES[dtype]], node
    assert count["LayerNorm"] == 2 * depth + 1


@pytest.mark.parametrize(
    "dtype, depth",
    [("fp16", 2), ("bf16", 2), pytest.param("fp16", 28, marks=SLOW), pytest.param("bf16", 28, marks=[SLOW, LONG])],
)
def test_latte_xl_with_flash_attention(dtype, depth, tmp_path):
    with device.assume("Ascend"):
        net = create_model("Latte-XL/2", dtype=dtype, enable_flash_attention=True, depth=depth)
        assert net.blocks[0].attn.qkv.weight.shape == (3 * 16 * 80, 1152)
        x = np.zeros((1, 16, 4, 32, 32), np.float32)
        found = export(net, tmp_path, x, np.zeros(1, np.int32))
    check_blocks(found, depth, dtype)


class Denoiser(nn.Cell):
    """Network and guidance as a cell, for the exporter."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.denoise = make_denoiser(net, guidance_scale=7.0, batched_guidance=True)

    def construct(self, x, t, y, null):
        return self.denoise(x, t, y, null)


def test_guided_denoising_is_one_graph(tmp_path):
    with device.assume("Ascend"):
        net = create_model(
            "Latte-S/2", dtype="bf16", enable_flash_attention=True, depth=2, condition="class", num_classes=101
        )
        x, label = np.zeros((2, 16, 4, 32, 32), np.float32), np.zeros(2, np.int32)
        found = export(Denoiser(net), tmp_path, x, np.zeros(2, np.float32), label, label)
    check_blocks(found, 2, "bf16")
    assert Counter(node.op for node in found)["Conv2D"] == 1


def test_autoencoder_uses_convolutions(tmp_path):
    config = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1)
    with device.assume("Ascend"):
        vae = AutoencoderKL(config)
        found = export(vae, tmp_path, np.zeros((1, 4, 8, 8), np.float32))
        vae.construct = vae.encode
        found_encoder = export(vae, tmp_path, np.zeros((1, 3, 16, 16), np.float32))
    convolutions = [Counter(node.op for node in graph)["Conv2D"] for graph in (found, found_encoder)]
    kernels = [p.name for p in vae.get_parameters() if p.ndim == 4]
    decoder = [name for name in kernels if name.startswith(("decoder", "post_quant"))]
    assert convolutions == [len(decoder), len(kernels) - len(decoder)]


def test_large_images_split_the_fused_kernels_batch(tmp_path):
    """Temporal attention has a row a patch; the kernel takes 2048 of them, and a guided 512 px pair has 4096."""
    with device.assume("Ascend"):
        sizes = {"depth": 2, "input_size": 64, "num_frames": 2}
        net = create_model("Latte-S/2", dtype="fp16", enable_flash_attention=True, **sizes)
        found = export(net, tmp_path, np.zeros((4, 2, 4, 64, 64), np.float32), np.zeros(4, np.int32))
    assert Counter(node.op for node in found)["FlashAttentionScore"] == 1 + 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_training_step_is_one_graph(dtype, tmp_path):
    """O2: blocks in half precision forward and backward; norms, loss, gradients, AdamW and the average in float32."""
    depth = 2
    with device.assume("Ascend"):
        config = LatteConfig(depth=depth, input_size=8, num_frames=4, condition="class", num_classes=3)
        half = {"fp16": ms.float16, "bf16": ms.bfloat16}[dtype]
        net, ema = (prepare(Latte(config, flash=True, seed=0, dtype=half), for_training=True) for _ in range(2))
        for block in net.blocks:
            block.recompute()
        scale = {"loss_scale": 65536.0, "loss_scale_window": 2000} if dtype == "fp16" else {}
        vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1))
        vae.set_grad(False)
        for weight in vae.get_parameters():
            weight.requires_grad = False
        step = TrainStep(net, ema, vae, np.full(10, 1e-4, np.float32), StepOptions(max_grad_norm=0.1, **scale))
        pixels, latents = np.zeros((1, 4, 3, 16, 16), np.float32), np.zeros((1, 4, 4, 8, 8), np.float32)
        none, label = np.full((1, 8), -1, np.int32), np.zeros((1, 1), np.int32)
        found = export(step, tmp_path, pixels, latents, np.zeros(1, np.int32), latents, none, label)
    count = Counter(node.op for node in found)
    assert count["Adam"] == len(step.weights) and count["Conv2D"] > 5
    # The kernel runs once forward and, being recomputed, once more in the backward pass.
    assert count["FlashAttentionScore"] in (depth, 2 * depth) and count["FlashAttentionScoreGrad"] == depth
    for node in found:
        if node.op == "FlashAttentionScore":
            assert node.dtypes[-1] == MINDIR_NAMES[dtype], node
        if node.op in ("LayerNorm", "LayerNormGrad", "Adam"):
            assert set(node.dtypes) == {"FLOAT"}, node
