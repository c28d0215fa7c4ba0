"""A program of tests: ten training steps on several ranks, which share by ZeRO what they keep. Rank 0 saves the states.

PYTHONPATH=tests [mpirun -n N] python tests/support/zero_steps.py TARGET STAGE SEQUENCE ACCUMULATION FILE [START]

The files are npz; with START, of another call, the steps begin after the fifth. A STAGE such as 2+offload keeps on the
host what an update needs.
"""

import os
import sys

import mindspore as ms
import numpy as np
from support.train_step import batch, build, small

from latte.runtime import device
from latte.training.state import load_state, net_to_sample, state_of

VIDEOS, STEPS, HALF = 4, 10, 5
CLASSES = {"condition": "class", "num_classes": 5}  # 6 rows of embeddings, which 4 ranks do not divide


def steps(stage, accumulation=1, start=None, offload=False):
    """Return the states after steps 1, 5 and 10, and the weights sampled with, as name -> array."""
    here = device.current()
    dtype = "fp32" if here.target == "CPU" else "fp16"
    net, ema = (small(device.compute_dtype(dtype), num_frames=4, **CLASSES) for _ in range(2))
    scale = {"loss_scale": 1024.0} if dtype == "fp16" else {}
    given = {"weight_decay": 0.05, "max_grad_norm": 0.5, "ema_decay": 0.9, "accumulation": accumulation, **scale}
    step, call = build(net, ema, rate=1e-4, zero_stage=stage, offload=offload, **given)
    if start:
        load_state(step, start, "the start")
    count = VIDEOS // accumulation // here.data_ranks
    found = {}
    for number in range(HALF if start else 0, STEPS):
        everything = [each.asnumpy() for each in batch(VIDEOS, 4, number, np.arange(VIDEOS).reshape(-1, 1))]
        for part in range(accumulation):
            first = (part * here.data_ranks + here.data_rank) * count
            call(*(ms.Tensor(each[first : first + count]) for each in everything))
        if number + 1 in (1, HALF, STEPS):
            found |= {f"{number + 1} {name}": values.copy() for name, values in state_of(step).items()}  # not views
    before = [weight.asnumpy().copy() for weight in step.weights]
    with net_to_sample(step) as sampled:
        weights = dict(sampled.parameters_and_names())
        found |= {f"sampled {name}": weights[name].asnumpy().copy() for name in step.names}
    assert all(np.array_equal(weight.asnumpy(), old) for weight, old in zip(step.weights, before, strict=True))
    return found


def main(target, stage, sequence, accumulation, path, start=None):
    parallel = "OMPI_COMM_WORLD_SIZE" in os.environ
    device.init_device(target, use_parallel=parallel, connect=parallel, sequence=int(sequence))
    state = None
    if start:
        with np.load(start) as saved:
            state = {name.split(" ")[1]: saved[name] for name in saved.files if name.startswith(f"{HALF} ")}
    number, _, more = stage.partition("+")
    found = steps(int(number), int(accumulation), state, more == "offload")
    if device.current().rank == 0:
        np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
