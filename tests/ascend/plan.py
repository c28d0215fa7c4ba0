"""What MindSpore plans for a full-size network on an Ascend: launches of a step, and the peak of device memory.

    python tests/ascend/standin.py --mode plan --trace FILE python tests/ascend/plan.py train FILE --batch 5

The stand-in computes nothing in this mode, so that weights cost no memory here. One line of JSON is printed. With
`--ranks` it is the plan of the first of so many ranks, of which MindSpore's simulation (MS_SIMULATION_LEVEL) needs no
other: an exchange is then in the trace as copies on a stream of its own.
"""

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np

from latte import create_model
from latte.diffusion.denoiser import make_denoiser
from latte.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.runtime import device, graphs
from latte.training.step import StepOptions, TrainStep

CHANNELS = 4  # of the latents
TEXT = 4096  # width of T5's embeddings


def zeros(*shape, dtype=np.float32):
    return ms.Tensor(np.zeros(shape, dtype))


def sizes(given):
    """The options that change the size of the network; None leaves that of the model."""
    asked = {"depth": given.depth, "hidden_size": given.width, "num_heads": given.heads}
    return {key: value for key, value in asked.items() if value}


def count(net):
    return sum(weight.size for weight in net.get_parameters())


def network(given, **options):
    if given.model == "LatteT2V":
        heads, width = given.heads or 16, given.width or 1152
        config = LatteT2VConfig(
            num_layers=(given.depth or 56) // 2,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            cross_attention_dim=width,
        )
        return LatteT2V(config, flash=given.flash, seed=None, dtype=device.compute_dtype(given.dtype))
    dtype = {"dtype": given.dtype, "enable_flash_attention": given.flash, "num_frames": given.frames}
    return create_model(given.model, seed=None, input_size=given.side, **dtype, **sizes(given), **options)


def sampling(given):
    """A denoising step of `batch` videos: guided by classes or, of LatteT2V, by texts, or without conditions."""
    kinds = {} if given.unguided or given.model == "LatteT2V" else {"condition": "class", "num_classes": 99}
    net = network(given, **kinds)
    if given.loaded:
        prepare(net)
    step = graphs.compile_step(make_denoiser(net, not given.unguided, True))
    x, conditions = zeros(given.batch, given.frames, CHANNELS, given.side, given.side), ()
    if given.model == "LatteT2V":
        text, mask = zeros(given.batch, given.text, TEXT), ms.Tensor(np.ones((given.batch, given.text), np.float32))
        conditions = (text, mask) if given.unguided else (text, mask, text, mask)
    elif not given.unguided:
        conditions = (zeros(given.batch, dtype=np.int32),) * 2
    return count(net), step, (x, zeros(given.batch), ms.Tensor(np.float32(7)), *conditions)


def training(given):
    """A training step: loss scale, AdamW, EMA; from moments or, with `pixels`, from frames."""
    nets = [network(given) for _ in range(2)]
    for net in nets:
        prepare(net, for_training=True)
    for number, block in enumerate(nets[0].blocks if given.recompute else ()):
        if number // 2 % given.recompute_every == 0:
            block.recompute()
    scale = {"loss_scale": 65536.0, "loss_scale_window": 1000} if given.dtype == "fp16" else {}
    vae, weights = autoencoder() if given.pixels else None, count(nets[0])  # whose ranks may soon share them
    options = StepOptions(given.accumulation, offload=given.offload, zero_stage=given.zero_stage, **scale)
    step = TrainStep(*nets, vae, np.full(1000, 1e-4, np.float32), options)
    x = (given.batch, given.frames, CHANNELS, given.side, given.side)
    pixels = (given.batch, given.frames, 3, 8 * given.side, 8 * given.side)
    moments = (given.batch, given.frames, 2 * CHANNELS, given.side, given.side)
    times, skipped = zeros(given.batch, dtype=np.int32), zeros(given.batch, 8, dtype=np.int32)
    text = ()
    if given.model == "LatteT2V":
        text = (zeros(given.batch, given.text, TEXT), ms.Tensor(np.ones((given.batch, given.text), np.float32)))
    first = zeros(*(pixels if given.pixels else moments))
    return weights, step.as_function(), (first, zeros(*x), times, zeros(*x), skipped, *text)


def autoencoder():
    vae = AutoencoderKL(AutoencoderConfig(), seed=None)
    for weight in vae.get_parameters():
        weight.requires_grad = False
    return vae


def encoding(given):
    """The encoder on `batch` x `frames` images at once."""
    images = zeros(given.batch * given.frames, 3, 8 * given.side, 8 * given.side)
    vae = autoencoder()
    return count(vae), graphs.compile_step(vae.encode), (images,)


def decoding(given):
    """The decoder on the latents of `batch` x `frames` images at once."""
    latents = zeros(given.batch * given.frames, CHANNELS, given.side, given.side)
    vae = autoencoder()
    return count(vae), graphs.compile_step(vae.decode), (latents,)


PLANS = {"sample": sampling, "train": training, "encode": encoding, "decode": decoding}


def launched(trace):
    """Return the launches so far: operator -> (count, bytes)."""
    counts, moved = Counter(), Counter()
    for line in trace.read_text().splitlines():
        launch = json.loads(line)
        counts[launch["op"]] += 1
        moved[launch["op"]] += launch["bytes"]
    return counts, moved


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(PLANS))
    parser.add_argument("trace", type=Path, help="the file of --trace")
    parser.add_argument("--model", default="Latte-XL/2", help="Latte-XL/2 and its like, or LatteT2V")
    for size in ("depth", "width", "heads"):
        parser.add_argument(f"--{size}", type=int, help="in place of the model's; blocks over patches and frames count")
    parser.add_argument("--side", type=int, default=32, help="latents a side: an eighth of the pixels")
    parser.add_argument("--text", type=int, default=120, help="tokens of a text")
    parser.add_argument("--unguided", action="store_true", help="sample without guidance")
    parser.add_argument("--loaded", action="store_true", help="sample with weights as a pipeline loads them, in dtype")
    parser.add_argument("--pixels", action="store_true", help="train from pixels, with the autoencoder in the step")
    parser.add_argument("--accumulation", type=int, default=1, help="batches of a training step")
    parser.add_argument("--ranks", type=int, default=1, help="that train together")
    parser.add_argument("--zero_stage", type=int, default=0, help="what they share")
    parser.add_argument("--offload", action="store_true", help="train with AdamW and EMA weights on the host")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--exact", dest="flash", action="store_false", help="without the fused attention kernel")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--recompute_every", type=int, default=1)
    parser.add_argument("--jit_level", default="O0")
    given = parser.parse_args()
    if given.ranks > 1:
        os.environ |= {"MS_SIMULATION_LEVEL": "3", "RANK_SIZE": str(given.ranks), "RANK_ID": "0", "DEVICE_ID": "0"}
    together = {"use_parallel": given.ranks > 1, "connect": given.ranks > 1}
    device.init_device("Ascend", jit_level=given.jit_level, **together)
    weights, step, inputs = PLANS[given.what](given)
    start = time.process_time()  # of this process, whatever else the machine does
    step(*inputs)
    ms.runtime.synchronize()
    compiling = time.process_time() - start
    before, moved_before = launched(given.trace)
    step(*inputs)
    ms.runtime.synchronize()
    after, moved = launched(given.trace)
    launches = after - before
    report = vars(given) | {
        "trace": given.trace.name,
        "weights": weights,
        "compile": round(compiling, 1),
        "peak": ms.runtime.max_memory_allocated(),
        "resident": ms.runtime.memory_allocated(),  # between two calls: weights, moments, EMA
        "reserved": ms.runtime.max_memory_reserved(),
        "launches": dict(launches.most_common()),
        "bytes": {op: moved[op] - moved_before[op] for op in launches},
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
