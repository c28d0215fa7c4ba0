"""A program of tests: ten training steps on several ranks, which share by ZeRO what they keep. Rank 0 saves the states.

PYTHONPATH=tests [mpirun -n N] python tests/support/zero_steps.py TARGET MODEL STAGE SEQUENCE ACCUMULATION FILE [START]

MODEL is latte, t2v, or lora: a LatteT2V whose LoRA adapters are trained. The files are npz; with START, of another
call, the steps begin after the fifth. A STAGE such as 2+offload keeps on the host what an update needs.
"""

import os
import sys

import mindspore as ms
import numpy as np
from support.train_step import batch, build, small

from latte.models.adapters import choose_trained, share_frozen_weights
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import prepare
from latte.runtime import device
from latte.training.state import load_state, net_to_sample, state_of

VIDEOS, STEPS, HALF = 4, 10, 5
CLASSES = {"condition": "class", "num_classes": 5}  # 6 rows of embeddings, which 4 ranks do not divide


PROMPTS = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "sample_size": 4}
PROMPTS |= {"num_layers": 2, "caption_channels": 24, "video_length": 4}


def networks(model, dtype):
    """A network and the one of its EMA weights."""
    if model == "latte":
        return [small(dtype, num_frames=4, **CLASSES) for _ in range(2)]
    net, ema = (LatteT2V(LatteT2VConfig(**PROMPTS), seed=0, dtype=dtype) for _ in range(2))
    for each in (net, ema):
        choose_trained(each, "lora" if model == "lora" else "all", rank=4)
        prepare(each, for_training=True)
    share_frozen_weights(ema, net)
    return net, ema


def inputs(model, number):
    """All videos of a step."""
    if model == "latte":
        return batch(VIDEOS, 4, number, np.arange(VIDEOS).reshape(-1, 1))
    text = np.random.default_rng(number).normal(size=(VIDEOS, 7, PROMPTS["caption_channels"])).astype(np.float32)
    mask = (np.arange(7) < np.arange(2, 2 + VIDEOS)[:, None]).astype(np.int32)
    return [*batch(VIDEOS, 4, number), ms.Tensor(text), ms.Tensor(mask)]


def steps(stage, accumulation=1, model="latte", start=None, offload=False):
    """Return the states after steps 1, 5 and 10, and what the network then samples with, as name -> array.

    That is its output for the first video, and its weights where they are whole.
    """
    here = device.current()
    dtype = "fp32" if here.target == "CPU" else "fp16"
    net, ema = networks(model, device.compute_dtype(dtype))
    scale = {"loss_scale": 1024.0} if dtype == "fp16" else {}
    given = {"weight_decay": 0.05, "max_grad_norm": 0.5, "ema_decay": 0.9, "accumulation": accumulation, **scale}
    step, call = build(net, ema, rate=1e-4, zero_stage=stage, offload=offload, **given)
    if start:
        load_state(step, start, "the start")
    count = VIDEOS // accumulation // here.data_ranks
    found = {}
    for number in range(HALF if start else 0, STEPS):
        everything = [each.asnumpy() for each in inputs(model, number)]
        for part in range(accumulation):
            first = (part * here.data_ranks + here.data_rank) * count
            call(*(ms.Tensor(each[first : first + count]) for each in everything))
        if number + 1 in (1, HALF, STEPS):
            found |= {f"{number + 1} {name}": values.copy() for name, values in state_of(step).items()}  # not views
    before = [leaf.asnumpy().copy() for leaf in step.leaves]
    with net_to_sample(step) as sampled, device.alone():
        moments, _, t, _, _, *condition = (each.asnumpy()[:1] for each in inputs(model, 0))
        condition = [each[:, 0] if model == "latte" else each for each in condition]  # labels without those of images
        found["output of."] = sampled(*map(ms.Tensor, (moments[:, :, :4], t, *condition))).asnumpy()
        weights = dict(sampled.parameters_and_names())
        if not step.gathered:
            found |= {f"sampled {name}": weights[name].asnumpy().copy() for name in step.names}
    assert all(np.array_equal(leaf.asnumpy(), old) for leaf, old in zip(step.leaves, before, strict=True))
    return found


def main(target, model, stage, sequence, accumulation, path, start=None):
    parallel = "OMPI_COMM_WORLD_SIZE" in os.environ
    device.init_device(target, use_parallel=parallel, connect=parallel, sequence=int(sequence))
    state = None
    if start:
        with np.load(start) as saved:
            state = {name.split(" ")[1]: saved[name] for name in saved.files if name.startswith(f"{HALF} ")}
    number, _, more = stage.partition("+")
    found = steps(int(number), int(accumulation), model, state, more == "offload")
    if device.current().rank == 0:
        np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
