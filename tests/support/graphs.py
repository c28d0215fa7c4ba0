"""Graphs with Ascend's settings, as MindSpore would hand them to the device's compiler; nothing is run."""

import contextlib

import mindspore as ms
import numpy as np
from support.plain_latte import PlainLatte

from latte.inference.export import Denoiser, graph_of
from latte.io.mindir import read_graph
from latte.models.latte import Latte, LatteConfig
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.runtime import device
from latte.training.step import StepOptions, TrainStep

TEXT_TOKENS = 120
HALVES = {"fp16": ms.float16, "bf16": ms.bfloat16}


@contextlib.contextmanager
def ascend(ranks=1):
    """Compile for so many Ascend devices."""
    with device.use("Ascend", world_size=ranks):
        yield


def network(kind, depth, dtype, for_training=False, flash=True, **sizes):
    """Return an XL/2-sized Latte or LatteT2V, whose memory is hardly touched; depth counts all blocks."""
    if kind == "LatteT2V":
        net = LatteT2V(LatteT2VConfig(num_layers=depth // 2, **sizes), flash=flash, seed=None, dtype=HALVES[dtype])
    else:
        net = Latte(LatteConfig(depth=depth, **sizes), flash=flash, seed=None, dtype=HALVES[dtype])
    net.set_train(False)
    return prepare(net, for_training)


def zeros(*shapes):
    """Return float32 tensors, or int32 ones for shapes of one or two axes."""
    return [ms.Tensor(np.zeros(shape, np.float32 if len(shape) > 2 else np.int32)) for shape in shapes]


def model_of(kind, depth, dtype, late=False):
    """Return the graph of a network as a file holds it: 16 frames of 256 pixels, or 512 with a text of 120 tokens."""
    with ascend():
        net = network(kind, depth, dtype)
        share(net, late)
        if kind == "LatteT2V":
            texts = [(1, TEXT_TOKENS, 4096), (1, TEXT_TOKENS)]
            return graph_of(Denoiser(net, 1.0), *zeros((1, 16, 4, 64, 64), (1,), *texts))
        return graph_of(net, *zeros((1, 16, 4, 32, 32), (1,)))


def inference(kind, depth, dtype, late=False):
    """Return the nodes of that graph."""
    return read_graph(model_of(kind, depth, dtype, late))


def plain_inference(depth, dtype):
    """Return the nodes of the plain formulation of the same Latte."""
    with ascend():
        net = network("Latte", depth, dtype, flash=False)
        return read_graph(graph_of(PlainLatte(net, True), *zeros((1, 16, 4, 32, 32), (1,))))


def training_model(kind, depth, dtype, recompute=True, accumulation=1, ranks=2, late=False):
    """Return the graph of a training step, from moments to the gradients of the buffers."""
    scaled = {"loss_scale": 65536.0, "loss_scale_window": 2000} if dtype == "fp16" else {}
    options = StepOptions(accumulation=accumulation, max_grad_norm=0.1, **scaled)
    sizes = {} if kind == "LatteT2V" else {"condition": "class", "num_classes": 101}
    with ascend(ranks):
        net, average = (network(kind, depth, dtype, True, **sizes) for _ in range(2))
        share(net, late)
        for block in net.blocks if recompute else ():
            block.recompute()
        step = TrainStep(net, average, None, np.full(10, 1e-4, np.float32), options)
        side = 64 if kind == "LatteT2V" else 32
        latents = (1, 16, 4, side, side)
        given = [(1, 16, 8, side, side), latents, (1,), latents, (1, 8)]
        conditions = [(1, TEXT_TOKENS, 4096), (1, TEXT_TOKENS)] if kind == "LatteT2V" else [(1, 1)]
        return graph_of(step, *zeros(*given, *conditions))


def training(*args, **kwargs):
    """Return the nodes of that graph."""
    return read_graph(training_model(*args, **kwargs))


def share(net, late):
    """Mark equal blocks to be compiled once and put in their places late, as `mindspore.lazy_inline` does."""
    for block in net.blocks if late else ():
        block.cell_init_args = f"lazy_inline_{type(block).__name__}{block.settings()}"
