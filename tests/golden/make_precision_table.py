"""Print the table of precision in docs/devices.md, read off the graphs: python tests/golden/make_precision_table.py"""

import mindspore as ms
import numpy as np
from support.graphs import zeros

from latte.errors import UserError
from latte.inference.export import graph_of
from latte.io.mindir import BEGIN, END, read_graph
from latte.models import AutoencoderKL
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import Latte, LatteConfig
from latte.models.precision import prepare
from latte.runtime import device
from latte.training.step import StepOptions, TrainStep

PRODUCTS, ACTIVATIONS = ("MatMul", "Dense"), ("GeLU", "GeluExt", "Sigmoid")
CLASSES = {  # the operations that a column looks at, in the blocks or outside
    "linear layers of blocks": (PRODUCTS, True),
    "attention": (("BatchMatMul", "FlashAttentionScore"), True),
    "its softmax": (("Softmax", "FlashAttentionScore"), True),
    "norms": (("LayerNorm", "LayerNormExt", "Rsqrt"), True),
    "GELU": (ACTIVATIONS, True),
    "embeddings, last layer": (PRODUCTS, False),
    "autoencoder": (("Conv2D", "Conv2DExt", "BatchMatMul"), None),
    "AdamW, average": (("Adam", "Sqrt"), None),
}
SIZE, FRAMES = 8, 4


def graphs(target, dtype):
    """Return the nodes of a network, of a training step and of an autoencoder, and whether attention is fused."""
    with device.use(target):
        flash = device.use_flash_attention(True, dtype)
        config = LatteConfig(depth=2, input_size=SIZE, num_frames=FRAMES, condition="class", num_classes=3)
        net, average = (prepare(Latte(config, flash=flash, seed=0, dtype=dtype), for_training=True) for _ in range(2))
        step = TrainStep(net, average, None, np.full(10, 1e-4, np.float32), StepOptions())
        latents = (1, FRAMES, 4, SIZE, SIZE)
        given = zeros((1, FRAMES, 8, SIZE, SIZE), latents, (1,), latents, (1, 8), (1, 1))
        forward = read_graph(graph_of(net, *zeros(latents, (1,), (1,))))
        vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1))
        return forward, read_graph(graph_of(step, *given)), read_graph(graph_of(vae, *zeros((1, 4, SIZE, SIZE)))), flash


def cell(name, forward, step, vae):
    """Return what the operations of a class compute in, in these graphs."""
    ops, in_blocks = CLASSES[name]
    graph = {"autoencoder": vae, "AdamW, average": step}.get(name, forward)
    outside = (BEGIN, END)
    # What has an axis of one are sums and repeats, but for the root of a norm that is written out.
    nodes = [
        node
        for node in graph
        if node.op in ops
        and (in_blocks is None or in_blocks == (node.block not in outside))
        and (node.op == "Rsqrt" or not any(1 in n.outputs[0].shape[-2:] for n in (node, *node.inputs) if n.outputs))
    ]
    # The kernel's first outputs are the maxima and sums of its softmax, its last one is the attention.
    which = 0 if name == "its softmax" else -1
    found = sorted({node.dtypes[which] for node in nodes})
    return ", ".join(found) or "-"


def row(target, name):
    """Return a line of the table."""
    with device.use(target):
        try:
            dtype = ms.float32 if target == "CPU" and name == "bf16" else device.compute_dtype(name)
        except UserError as error:
            return [target, name, *["refused"] * len(CLASSES), str(error).split(";")[0]]
    *found, flash = graphs(target, dtype)
    if target == "CPU" and name == "bf16":
        note = "oneDNN multiplies in bfloat16 if the CPU has AMX, else in float32, and a line says so"
    elif flash:
        note = "fused kernel, if asked for; otherwise products in " + name + ", softmax in fp32"
    else:
        note = "attention by blocks" if target != "Ascend" else "the fused kernel takes fp16 and bf16 only"
    return [target, name, *(cell(each, *found) for each in CLASSES), note]


def lines():
    """Return the lines of the table."""
    header = ["device", "dtype", *CLASSES, "note"]
    rows = [row(target, name) for target in device.TARGETS for name in device.DTYPES]
    return ["| " + " | ".join(each) + " |" for each in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    with device.use("CPU"):
        print("\n".join(lines()))
