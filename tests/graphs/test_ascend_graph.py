"""What Ascend would run: graphs exported with its settings, which needs no such device, and budgets for their nodes."""

import os
import subprocess
import sys
from collections import Counter

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from support.golden_values import ROOT, error, tiny
from support.graphs import ascend, inference, network, plain_inference, training, zeros
from support.plain_latte import PlainLatte

from latte import create_model
from latte.inference.export import Decoder, Denoiser, Encoder, graph_of
from latte.io.mindir import BEGIN, BRANCH, END, count, idle_casts, read_graph, table, users
from latte.models import AutoencoderKL
from latte.models.autoencoder import AutoencoderConfig
from latte.runtime import device
from latte.training.step import StepOptions, TrainStep

TOKENS = 4096  # of a Latte; a LatteT2V has a multiple of that, and no weight has as many rows
PRODUCTS = ("MatMul", "Dense")
SLOW, LONG = pytest.mark.slow, pytest.mark.long

# The most that a block may have. The weight of q, k and v is cut apart in place of their product, so there are three
# products; a block of one video changes no axes, as the kernel takes its frames as they lie. LatteT2V casts its
# modulation, and the last block counts the cast before the final layer.
BLOCK = {"Flash": 1, "MatMul": 7, "LayerNorm": 2, "Transpose": 0, "Pad": 0, "Slice": 3, "Tile": 0, "Cast": 1}
BUDGETS = {
    "blocks.even": BLOCK,
    "blocks.odd": BLOCK,
    "transformer_blocks": BLOCK | {"Flash": 2, "MatMul": 10, "Slice": 1},
    "temporal_transformer_blocks": BLOCK | {"MatMul": 6, "Slice": 1, "Cast": 2},
}


def budget_of(block):
    kind, _, number = block.rpartition(".")
    return BUDGETS[kind] if kind in BUDGETS else BUDGETS[f"blocks.{'odd' if int(number) % 2 else 'even'}"]


def check_inference(nodes, depth, dtype, videos=1):
    """Of several videos, patches and frames change places, and the final norm, without weights, is the last block's."""
    rows = count(nodes)
    blocks = [name for name in rows if "blocks." in name]
    assert len(blocks) == depth
    for name in blocks[1:]:  # in the first one, the condition is cast as well
        budget = budget_of(name) | ({"Transpose": 2, "LayerNorm": 3} if videos > 1 else {})
        over = {column: rows[name][column] for column, most in budget.items() if rows[name][column] > most}
        assert not over, (name, over)
    total = sum(rows.values(), Counter())
    assert total["Softmax"] == total["Pad"] == 0 and total["LayerNorm"] == 2 * depth + 1
    assert total["Flash"] == sum(budget_of(name)["Flash"] for name in blocks)
    check_dtypes(nodes, dtype)
    check_kernel(nodes)


def check_dtypes(nodes, dtype):
    """Products, norms and the fused kernel in half precision, but the statistics of both in float32; no idle casts."""
    assert not idle_casts(nodes)
    norms = [node.dtypes[0] for node in nodes if node.op == "LayerNormExt"]
    assert norms.count("fp32") <= 1  # the final one
    for node in nodes:
        outputs = node.dtypes
        if node.op == "FlashAttentionScore":
            assert outputs == ["fp32", "fp32", dtype, dtype], outputs  # maximum and sum of the softmax, unused, result
        if node.op == "LayerNormExt":  # of the result, the mean and 1 / deviation
            assert outputs in ([dtype, "fp32", "fp32"], ["fp32"] * 3), node
        if node.op == "LayerNormGradExt":
            assert [each.outputs[0].dtype for each in node.inputs[3:5]] == ["fp32", "fp32"], node
        if node.column == "Softmax":
            assert set(outputs) == {"fp32"}
        if node.op == "GeluExt" and "blocks." in node.block:
            assert outputs == [dtype]
        if node.op in PRODUCTS and "blocks." in node.block and node.outputs[0].shape[0] % TOKENS == 0:
            assert outputs == [dtype], node


def check_kernel(nodes):
    """q, k and v come from products, or from the one slice of theirs, and the result goes into one, all as they are."""
    taken = users(nodes)
    for node in nodes:
        if node.op != "FlashAttentionScore":
            continue
        assert {each.source().op for each in node.inputs[:3]} <= {"SplitTensor", *PRODUCTS}
        after = [user for item in taken[node] for user in taken[item]]
        while any(user.op == "Reshape" for user in after):
            after = [each for user in after for each in (taken[user] if user.op == "Reshape" else [user])]
        assert {user.op for user in after} == {"Dense"}


@pytest.mark.parametrize(
    "kind, dtype, depth",
    [
        ("Latte", "fp16", 4),
        ("LatteT2V", "bf16", 4),
        pytest.param("Latte", "bf16", 28, marks=SLOW),
        pytest.param("LatteT2V", "fp16", 56, marks=[SLOW, LONG]),
    ],
)
def test_inference(kind, dtype, depth):
    nodes = inference(kind, depth, dtype)
    check_inference(nodes, depth, dtype)
    if kind == "LatteT2V":  # the mask is made once for all blocks
        assert Counter(node.op for node in nodes)["BroadcastTo"] == 1
        assert len([node for node in nodes if node.op == "FlashAttentionScore" and is_masked(node)]) == depth // 2


def is_masked(node):
    return any(each.outputs and each.outputs[0].dtype == "bool" for each in node.inputs)


def test_less_than_a_plain_formulation():
    """The same function with every per-frame condition, transpose and padding that is usual; pytest -s shows both."""
    ours, plain = inference("Latte", 4, "fp16"), plain_inference(4, "fp16")
    print("", table(count(ours), "ours"), "", table(count(plain), "plain"), sep="\n")
    mine, theirs = (sum(count(nodes).values(), Counter()) for nodes in (ours, plain))
    assert mine["Flash"] == theirs["Flash"] and mine["LayerNorm"] == theirs["LayerNorm"]
    assert theirs["Transpose"] - mine["Transpose"] >= 8 and theirs["Pad"] == 12 and theirs["Tile"] - mine["Tile"] == 2
    assert mine["Cast"] <= theirs["Cast"] and mine["bytes"] < 0.7 * theirs["bytes"]


def test_the_plain_formulation_is_the_same_function():
    net, rng = tiny(), np.random.default_rng(0)
    x = ms.Tensor(rng.normal(size=(2, *net.shape)).astype(np.float32))
    t = ms.Tensor([3, 700], ms.int32)
    with device.use(graph_mode=False):
        assert error(PlainLatte(net, False)(x, t), net(x, t).asnumpy()) < 1e-5


def test_guided_denoising_is_one_graph():
    with ascend():
        sizes = {"depth": 2, "condition": "class", "num_classes": 101}
        net = create_model("Latte-S/2", dtype="bf16", enable_flash_attention=True, **sizes)
        nodes = read_graph(graph_of(Denoiser(net, 7.0), *zeros((2, 16, 4, 32, 32), (2,), (2,), (2,))))
    check_inference(nodes, 2, "bf16", videos=4)
    assert Counter(node.op for node in nodes)["Conv2DExt"] == 1


def test_autoencoder_uses_convolutions():
    config = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1)
    with ascend():
        vae = AutoencoderKL(config)
        decoder = graph_of(Decoder(vae, 0.18215), *zeros((1, 4, 8, 8)))
        encoder = graph_of(Encoder(vae), *zeros((1, 3, 16, 16)))
    convolutions = [Counter(node.op for node in read_graph(graph))["Conv2DExt"] for graph in (decoder, encoder)]
    kernels = [p.name for p in vae.get_parameters() if p.ndim == 4]
    of_decoder = [name for name in kernels if "decoder." in name or "post_quant" in name]
    assert convolutions == [len(of_decoder), len(kernels) - len(of_decoder)]


def test_large_images_split_the_fused_kernels_batch():
    """Temporal attention has a row a patch; the kernel takes 2048 of them, and a guided 512 px pair has 4096."""
    with ascend():
        net = network("Latte", 2, "fp16", input_size=64, num_frames=2)
        nodes = read_graph(graph_of(net, *zeros((4, 2, 4, 64, 64), (4,))))
    assert Counter(node.op for node in nodes)["FlashAttentionScore"] == 1 + 2


def weights(nodes):
    """Return the weights of the blocks that a graph computes with."""
    mine = (node for node in nodes if node.op == "Parameter" and not node.name.startswith("vae."))
    return [node for node in mine if "blocks." in node.name]


def check_training(nodes, kind, depth, dtype, recompute=True, ranks=2, accumulation=1):
    """O2: blocks in half precision forward and backward; norms, loss and the sums of gradients in float32."""
    counts = Counter(node.op for node in nodes)
    kernels = depth * 3 // 2 if kind == "LatteT2V" else depth
    assert counts["FlashAttentionScoreGrad"] == kernels
    assert counts["FlashAttentionScore"] == kernels * (2 if recompute else 1)
    check_dtypes(nodes, dtype)
    # One sum over ranks for all weights of one dtype and width, at most 32; with accumulation, only for the last batch.
    buffers = counts["InplaceAddExt"] if accumulation > 1 else counts["AllReduce"] if ranks > 1 else counts["Square"]
    assert 0 < buffers <= 16 + len(weights(nodes)) // 32
    assert counts["AllReduce"] == (buffers if ranks > 1 and accumulation == 1 else 0)
    # No weight of a block is cast, for products or for anything else, but for those that stay in float32.
    cast = [node.inputs[0].source() for node in nodes if node.op == "Cast"]
    assert not [node.name for node in weights(cast)]
    wide = [node.name for node in weights(nodes) if node.dtypes == ["fp32"]]
    assert all(name.endswith("scale_shift_table") for name in wide), wide
    for node in nodes:
        # The loss, and all behind it. Blocks that are computed again stand behind the loss, too.
        if not recompute and node.block in (END, BRANCH) and node.column and node.op != "Concat":
            assert not {*node.dtypes} & {"fp16", "bf16"}, node
        if node.op in ("AllReduce", "InplaceAddExt"):
            assert {*node.dtypes} <= {"fp32"}
    # None as large as the tokens, as MindSpore's own gradient of a split adds; positions of a LatteT2V are one.
    assert max(output.bytes for node in nodes if node.op == "Constant" for output in node.outputs) < 5e6


@SLOW
@pytest.mark.parametrize(
    "kind, dtype, depth, options",
    [
        ("Latte", "fp16", 4, {"accumulation": 2}),
        ("Latte", "bf16", 2, {"recompute": False, "ranks": 1}),
        pytest.param("LatteT2V", "fp16", 2, {}, marks=LONG),
        ("LatteT2V", "bf16", 4, {}),
        pytest.param("Latte", "fp16", 28, {}, marks=LONG),
    ],
)
def test_training_step(kind, dtype, depth, options):
    """The gradients of a batch, with accumulation, their sum over ranks and loss scaling (fp16)."""
    nodes = training(kind, depth, dtype, **options)
    check_training(nodes, kind, depth, dtype, **options)
    assert not [node for node in nodes if node.column in ("Softmax", "Pad")]  # no exact attention, nothing widened
    scales = [node for node in nodes if node.op == "Parameter" and node.name == "scale"]
    assert len(scales) == (1 if dtype == "fp16" else 0)  # a loss that is not scaled costs nothing


@SLOW
def test_training_from_pixels_is_one_graph():
    """The autoencoder is part of the step, which begins with convolutions."""
    with ascend():
        sizes = {"input_size": 8, "num_frames": 4, "condition": "class", "num_classes": 3}
        net = network("Latte", 2, "fp16", for_training=True, **sizes)
        vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1))
        for weight in vae.get_parameters():
            weight.requires_grad = False
        step = TrainStep(net, None, vae, np.full(10, 1e-4, np.float32), StepOptions())
        pixels, latents = (1, 4, 3, 16, 16), (1, 4, 4, 8, 8)
        nodes = read_graph(graph_of(step, *zeros(pixels, latents, (1,), latents, (1, 8), (1, 1))))
    counts = Counter(node.op for node in nodes)
    assert counts["Conv2DExt"] > 5
    check_training(nodes, "Latte", 2, "fp16", recompute=False, ranks=1)


LATE = """
import sys
from collections import Counter
from latte.io.mindir import count
from support.graphs import TEXT_TOKENS, inference, training

def columns(nodes):
    # A recomputed block computes products of the label or the text again, or shares the first ones: left out here.
    return sum(count([n for n in nodes if n.op != "Dense" or n.outputs[0].shape[0] > TEXT_TOKENS]).values(), Counter())


for nodes in (inference, training):
    now, late = (columns(nodes(sys.argv[1], 4, "bf16", late=late)) for late in (False, True))
    for column in ("MatMul", "Flash", "LayerNorm", "Transpose", "Pad", "Softmax"):
        assert now[column] == late[column], (column, now[column], late[column])
"""


@SLOW
@pytest.mark.parametrize("kind", ["Latte", pytest.param("LatteT2V", marks=LONG)])
def test_blocks_that_are_put_in_place_late(kind):
    """`mindspore.lazy_inline` changes how often a block is in the file, and not what is computed.

    In a process of its own: after it, MindSpore compiles nothing for a CPU any more.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    done = subprocess.run(
        [sys.executable, "-c", LATE, kind], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_checks_find_what_they_are_for():
    """A plain formulation breaks the budgets; casts to and fro are seen, also where a view lies between."""
    with pytest.raises(AssertionError):
        check_inference(plain_inference(2, "fp16"), 2, "fp16")

    class ToAndFro(nn.Cell):
        def construct(self, x):
            return ops.exp(x.astype(ms.float16).reshape(-1).astype(ms.float32))

    nodes = read_graph(graph_of(ToAndFro(), *zeros((2, 3, 4))))
    assert [node.outputs[0].dtype for node in idle_casts(nodes)] == ["fp16"]


def test_every_node_has_a_block():
    assert {node.block for node in inference("Latte", 2, "fp16") if node.column} == {BEGIN, "blocks.0", "blocks.1", END}
