"""What MindSpore plans for a full-size network on an Ascend: launches of a step, and the peak of device memory.

    python tests/ascend/standin.py --mode plan --trace FILE python tests/ascend/plan.py train FILE --batch 5

The stand-in computes nothing in this mode, so that weights cost no memory here. One line of JSON is printed.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import mindspore as ms
import numpy as np

from latte import create_model
from latte.diffusion.denoiser import make_denoiser
from latte.models.precision import prepare
from latte.runtime import device, graphs
from latte.training.step import StepOptions, TrainStep

SIDE, CHANNELS = 32, 4  # of the latents of 256 pixels


def zeros(*shape, dtype=np.float32):
    return ms.Tensor(np.zeros(shape, dtype))


def network(given, **options):
    dtype = {"dtype": given.dtype, "enable_flash_attention": given.flash, "num_frames": given.frames}
    return create_model(given.model, seed=None, **dtype, **options)


def sampling(given):
    """A guided denoising step of `batch` videos, class-conditional."""
    net = network(given, condition="class", num_classes=101)
    step = graphs.compile_step(make_denoiser(net, True, True))
    x, labels = zeros(given.batch, given.frames, CHANNELS, SIDE, SIDE), zeros(given.batch, dtype=np.int32)
    return step, (x, zeros(given.batch), ms.Tensor(np.float32(7)), labels, labels)


def training(given):
    """A training step from a latent cache: loss scale, AdamW, EMA."""
    nets = [network(given) for _ in range(2)]
    for net in nets:
        prepare(net, for_training=True)
    for block in nets[0].blocks if given.recompute else ():
        block.recompute()
    scale = {"loss_scale": 65536.0, "loss_scale_window": 1000} if given.dtype == "fp16" else {}
    step = TrainStep(*nets, None, np.full(1000, 1e-4, np.float32), StepOptions(**scale))
    x = (given.batch, given.frames, CHANNELS, SIDE, SIDE)
    moments = (given.batch, given.frames, 2 * CHANNELS, SIDE, SIDE)
    times, skipped = zeros(given.batch, dtype=np.int32), zeros(given.batch, 8, dtype=np.int32)
    return step.compiled(), (zeros(*moments), zeros(*x), times, zeros(*x), skipped)


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
    parser.add_argument("what", choices=("sample", "train"))
    parser.add_argument("trace", type=Path, help="the file of --trace")
    parser.add_argument("--model", default="Latte-XL/2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--exact", dest="flash", action="store_false", help="without the fused attention kernel")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--jit_level", default="O0")
    given = parser.parse_args()
    device.init_device("Ascend", jit_level=given.jit_level)
    step, inputs = (training if given.what == "train" else sampling)(given)
    step(*inputs)
    ms.runtime.synchronize()
    before, moved_before = launched(given.trace)
    step(*inputs)
    ms.runtime.synchronize()
    after, moved = launched(given.trace)
    launches = after - before
    report = vars(given) | {
        "trace": given.trace.name,
        "peak": ms.runtime.max_memory_allocated(),
        "reserved": ms.runtime.max_memory_reserved(),
        "launches": dict(launches.most_common()),
        "bytes": {op: moved[op] - moved_before[op] for op in launches},
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
