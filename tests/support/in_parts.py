"""A program of tests that computes what ranks share: in parts of frames, in halves of guidance. Rank 0 saves it.

PYTHONPATH=tests [mpirun -n N] python tests/support/in_parts.py TARGET DTYPE FILE.npz SEQUENCE GUIDANCE [PART ...]
"""

import importlib
import os
import sys
from unittest import mock

import mindspore as ms
import numpy as np
from support import variants
from support.golden_values import FIXTURES, tiny
from support.train_step import batch, build, small

from latte.components.codec import Codec
from latte.components.loading import load_t2v, load_vae
from latte.diffusion.solvers import Solver
from latte.inference import caches
from latte.inference.latents import LatentSampler, Request
from latte.runtime import device
from latte.runtime.device import Device
from latte.training.state import state_of

CLASSES = {"condition": "class", "num_classes": 5}


def network(dtype, frames=5, **sizes):
    """Five patches of two latents a side, and so many frames: no number of ranks divides them."""
    return small(device.compute_dtype(dtype), input_size=(2, 10), num_frames=frames, depth=4, **CLASSES, **sizes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def forward(dtype):
    """Latte with classes, 5 frames of 5 patches, two videos; and single images, which are shared as they are."""
    net = network(dtype)
    t, labels = ms.Tensor([500.0, 20.0], ms.float32), ms.Tensor([1, 4], ms.int32)
    yield "latte", net(ms.Tensor(normal(2, 5, 4, 2, 10)), t, labels)
    yield "images", net(ms.Tensor(normal(2, 1, 4, 2, 10)), t, labels)


def choices(dtype):
    """The variants and the other choices of the paper, as videos and as images; and the gradients of two."""
    compute = device.compute_dtype(dtype)
    for name in variants.CHOICES:
        net = variants.network(name, compute)
        yield name, net(*variants.tensors(variants.inputs()))
        if net.config.tubelet == 1:
            yield f"{name} images", net(*variants.tensors(variants.inputs(frames=1)))
    for name in variants.TRAINED:
        step, call = build(variants.network(name, compute, for_training=True))
        call(*variants.batch())
        moments = [values.ravel() for key, values in sorted(state_of(step).items()) if key.startswith("adam_m.")]
        yield f"{name} gradients", ms.Tensor(np.concatenate(moments))


def text(dtype):
    """LatteT2V, 17 frames of 4 x 6 patches, with a mask."""
    net = load_t2v(FIXTURES / "latte_t2v" / "transformer", dtype=dtype)
    words, mask = ms.Tensor(normal(1, 20, 32)), ms.Tensor((np.arange(20) < 9).astype(np.int32)[None])
    x = normal(1, 17, 4, 6, 10)
    yield "t2v", net(ms.Tensor(x), ms.Tensor([321.0], ms.float32), words, mask)
    net.temporal = False
    yield "t2v as images", net(ms.Tensor(x[:, :3]), ms.Tensor([321.0], ms.float32), words, mask)


def request(net, cache=None, guidance=4.0, steps=6, interval=None, frames=None):
    labels = np.array([1, 0], np.int32)
    return Request(
        seeds=(3, 4),
        shape=(frames or net.config.num_frames, *net.config.latent_shape()[1:]),
        conditions=(labels,),
        null=(np.full_like(labels, net.config.num_classes),) if guidance != 1 else (),
        num_inference_steps=steps,
        solver=Solver("ddim"),
        guidance_scale=guidance,
        guidance_interval=interval,
        **({"cache": cache} if cache else {}),
    )


def sampling(dtype):
    """Two guided videos."""
    net = network(dtype)
    yield "guided", ms.Tensor(LatentSampler(net).sample(request(net)))


def ways(dtype):
    """The ways to skip work, with guidance in some steps only."""
    net = network(dtype)
    walk = caches.Walk.of(Solver("ddim"), 6, 1.0, 4, True)
    for name in ("every2-order1", "threshold:0.3", "teacache:0.4"):
        sampler = LatentSampler(net)
        given = request(net, caches.choose(name, 0.0, walk), interval=(200.0, 900.0))
        yield name, ms.Tensor(sampler.sample(given))
        leads = device.current().half == 0  # with threshold the other half of guidance decides for itself
        assert sampler.skipped > 0 or not leads, f"{name} skips nothing"


def batched(dtype):
    """Two single images, and two videos, with both halves of guidance in one batch, as accelerators have them."""
    net = network(dtype)
    walk = caches.Walk.of(Solver("ddim"), 6, 1.0, 4, True)
    with mock.patch.object(Device, "batches_videos", True):
        for name in ("every4", "pab:222"):
            for frames in (1, 5):
                sampler = LatentSampler(net)
                given = request(net, caches.choose(name, 0.0, walk), interval=(500.0, 900.0), frames=frames)
                yield f"{name}, {frames} frames", ms.Tensor(sampler.sample(given))
                assert sampler.skipped > 0, f"{name} skips nothing"


def int8(dtype):
    """Matrices of int8."""
    net = tiny("class", dtype=dtype, quantize="int8")
    frames, channels, height, width = net.config.latent_shape()
    t, labels = ms.Tensor([500.0], ms.float32), ms.Tensor([1], ms.int32)
    yield "int8", net(ms.Tensor(normal(1, frames, channels, height, width)), t, labels)


def decoding(dtype):
    """Seven frames by the autoencoder, and by the one that sees neighbouring frames, three at once."""
    for name, path in (("vae", FIXTURES / "vae.bin"), ("temporal", FIXTURES / "latte_t2v" / "vae_temporal_decoder")):
        codec = Codec(load_vae(path))
        latents = normal(7, 4, 4, 4)
        yield name, ms.Tensor(codec.decode_together(latents, frames_per_slice=3, as_bytes=False))


def training(dtype):
    """Ten steps with recomputed blocks: the losses, the first gradients, and the weights at the end."""
    yield from _trained("", dtype, recompute=True)


def joint(dtype):
    """The same with two single images per video."""
    yield from _trained("joint ", dtype, images=2)


def _trained(name, dtype, recompute=False, images=0):
    net = small(device.compute_dtype(dtype), num_frames=5, **CLASSES)
    for block in net.blocks if recompute else ():
        block.recompute()
    scale = {"loss_scale": 1024.0, "loss_scale_window": 1000} if dtype == "fp16" else {}
    step, call = build(net, rate=1e-4, weight_decay=0.05, max_grad_norm=0.5, images=images, **scale)
    here, losses = device.current(), []
    videos = 4 // here.data_ranks
    rows = slice(here.data_rank * videos, (here.data_rank + 1) * videos)
    for seed in range(10):
        labels = np.arange(4 * (1 + images)).reshape(4, -1) % 6
        given = [ms.Tensor(each.asnumpy()[rows]) for each in batch(4, 5 + images, seed, labels)]
        losses.append(float(call(*given).asnumpy()))
        if seed == 0:
            moments = [values.ravel() for key, values in sorted(state_of(step).items()) if key.startswith("adam_m.")]
            yield name + "gradients", ms.Tensor(np.concatenate(moments))
    if here.data_ranks == 1:
        yield name + "losses", ms.Tensor(np.array(losses, np.float32))
    weights = [values.ravel() for key, values in sorted(state_of(step).items()) if key.startswith("net.")]
    yield name + "weights", ms.Tensor(np.concatenate(weights))


PARTS = (forward, choices, text, sampling, ways, batched, int8, decoding, training, joint)
exchange = importlib.import_module("latte.ops.exchange")  # the module, not the function of that name
SENT = [0]  # bytes that this rank has sent to others in exchanges


def counting(x, inner=exchange._rows_outside):
    """Exchange rows, and count those for others."""
    SENT[0] += x.size * x.itemsize * (len(x) - 1) // len(x)
    return inner(x)


def main(target, dtype, path, sequence, guidance, *names):
    if target == "CPU" and not {"training", "joint"} & set(names):  # where exchanges are called outside graphs
        exchange._rows_outside = counting
    parallel = "OMPI_COMM_WORLD_SIZE" in os.environ
    device.init_device(target, use_parallel=parallel, connect=parallel, sequence=int(sequence), guidance=int(guidance))
    results = {}
    for part in [part for part in PARTS if not names or part.__name__ in names]:
        before = SENT[0]
        for name, value in part(dtype):
            results[name] = value.astype(ms.float32).asnumpy()
        results[f"{part.__name__} sent"] = np.array(SENT[0] - before)
    if device.current().rank == 0:
        np.savez(path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
