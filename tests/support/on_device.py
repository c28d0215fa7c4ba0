"""A program of tests/models/test_accelerators.py and tests/ascend: what tiny networks compute on a device, in a file.

PYTHONPATH=tests python tests/support/on_device.py TARGET DTYPE FILE.npz [PART ...]
"""

import json
import sys

import mindspore as ms
import numpy as np
from mindspore import ops
from support import variants
from support.golden_values import FIXTURES, recorded, tiny
from support.train_step import batch, build, small

from latte.components.loading import load, load_t2v, load_vae
from latte.components.text_encoder import load_t5
from latte.diffusion.solvers import Solver
from latte.inference.latents import LatentSampler, Request
from latte.models.i3d import I3D
from latte.models.latte import transformer_block
from latte.runtime import device, graphs
from latte.training.state import state_of

FOLDER = FIXTURES / "latte_t2v"


def tensors(data, *names):
    return [ms.Tensor(data[name]) for name in names]


def latte(dtype):
    """Both tiny checkpoints of Latte."""
    for kind, names in (("uncond", ("x", "t")), ("class", ("x", "t", "y"))):
        step = graphs.compile_step(tiny(kind, dtype=dtype).construct)
        yield f"latte {kind}", step(*tensors(recorded(f"latte_{kind}"), *names))


def text_to_video(dtype):
    """LatteT2V with a mask that leaves words out, and T5."""
    data, mask = recorded("latte_t2v"), (np.arange(120) < 9).astype(np.int32)[None]
    latents = ms.Tensor(np.ascontiguousarray(data["latents"].transpose(0, 2, 1, 3, 4)))
    step = graphs.compile_step(load_t2v(FOLDER / "transformer", dtype=dtype).construct)
    yield "t2v", step(latents, *tensors(data, "timestep", "text_hidden"), ms.Tensor(mask))
    yield "t5", load_t5(FIXTURES / "t5", dtype)(*tensors(recorded("t5/recorded"), "input_ids", "attention_mask"))


def clip(dtype):
    """The text encoder of a network with condition text."""
    ids = ms.Tensor(recorded("clip/recorded")["input_ids"].astype(np.int32))
    yield "clip", load(FIXTURES / "clip", "clip", dtype=dtype)(ids, ids)


def autoencoder(dtype, inside="fp32"):
    """Frames to moments and back, and the decoder that sees neighbouring frames; float32 whatever the dtype."""
    data, vae, temporal = recorded("vae"), load_vae(FIXTURES / "vae.bin"), load_vae(FOLDER / "vae_temporal_decoder")
    vae.dtype = temporal.dtype = device.autoencoder_dtype(inside)
    yield "vae encode", graphs.compile_step(vae.encode)(*tensors(data, "frames"))
    yield "vae decode", graphs.compile_step(vae.decode)(*tensors(data, "z"))
    yield "temporal decode", graphs.compile_step(temporal.decode)(*tensors(data, "z"))


def vae_dtype(dtype):
    """The same with `vae_dtype`."""
    yield from autoencoder(dtype, dtype)


def i3d(dtype):
    """The logits of a small video, in float32 whatever the dtype."""
    rng, net = np.random.default_rng(0), I3D()
    for weight in net.get_parameters():
        values = rng.standard_normal(weight.shape, np.float32) * (2 / np.prod(weight.shape[1:])) ** 0.5
        weight.set_data(ms.Tensor(values.astype(np.float32) if weight.ndim > 1 else 0 * values.astype(np.float32)))
    yield "i3d", net(ms.Tensor(rng.uniform(-1, 1, (2, 9, 3, 40, 33)).astype(np.float32)))


def training(dtype):
    """The loss and the gradients of a step, which are a tenth of AdamW's first moments."""
    scale = {"loss_scale": 1024.0, "loss_scale_window": 1000} if dtype == "fp16" else {}
    step, call = build(small(device.compute_dtype(dtype)), **scale)
    yield "loss", call(*batch()).reshape(1)
    moments = [values.ravel() for name, values in sorted(state_of(step).items()) if name.startswith("adam_m.")]
    yield "gradients", ms.Tensor(np.concatenate(moments))


def flash(dtype):
    """Latte by the fused attention kernel, where the device has one for the dtype."""
    step = graphs.compile_step(tiny("class", dtype=dtype, enable_flash_attention=True).construct)
    yield "latte flash", step(*tensors(recorded("latte_class"), "x", "t", "y"))


def int8(dtype):
    """Latte with matrices of int8."""
    step = graphs.compile_step(tiny("class", dtype=dtype, quantize="int8").construct)
    yield "latte int8", step(*tensors(recorded("latte_class"), "x", "t", "y"))


def choices(dtype):
    """The variants and the other choices of the paper; of some the gradients too."""
    compute = device.compute_dtype(dtype)
    for name in variants.CHOICES:
        step = graphs.compile_step(variants.network(name, compute).construct)
        yield name, step(*variants.tensors(variants.inputs()))
    for name in variants.TRAINED:
        scale = {"loss_scale": 1024.0, "loss_scale_window": 1000} if dtype == "fp16" else {}
        step, call = build(variants.network(name, compute, for_training=True), **scale)
        call(*variants.batch())
        moments = [values.ravel() for key, values in sorted(state_of(step).items()) if key.startswith("adam_m.")]
        yield f"{name} gradients", ms.Tensor(np.concatenate(moments))


def sampling(dtype):
    """Latents of two videos after ten guided steps."""
    net = tiny("class", dtype=dtype)
    labels = np.array([1, 0], np.int32)
    request = Request(
        seeds=(3, 4),
        shape=net.config.latent_shape(),
        conditions=(labels,),
        null=(np.full_like(labels, net.config.num_classes),),
        num_inference_steps=10,
        solver=Solver("ddim"),
        guidance_scale=4.0,
    )
    yield "guided sampling", ms.Tensor(LatentSampler(net).sample(request))


def ten_steps(dtype):
    """Ten training steps with clipping and EMA: the losses, and the weights after them."""
    scale = {"loss_scale": 1024.0, "loss_scale_window": 1000} if dtype == "fp16" else {}
    nets = [small(device.compute_dtype(dtype)) for _ in range(2)]
    step, call = build(
        *nets, rate=1e-4, weight_decay=0.05, max_grad_norm=0.5, start_clip_step=5, ema_decay=0.95, **scale
    )
    losses = [float(call(*batch(seed=seed)).asnumpy()) for seed in range(10)]
    yield "ten losses", ms.Tensor(np.array(losses, np.float32))
    state = state_of(step)
    for name, prefix in (("ten steps", "net."), ("ten steps, EMA", "ema.")):
        values = [state[key].ravel() for key in sorted(state) if key.startswith(prefix)]
        yield name, ms.Tensor(np.concatenate(values))


def _weighted_block(temporal, flash):
    def weighted(x, c, *weights):
        halves = [weight.astype(x.dtype) for weight in weights]
        pairs = [(halves[i], halves[i + 1]) for i in range(0, 10, 2)]
        y = transformer_block(x, c, *pairs, 2, temporal, flash, False, False).astype(ms.float32)
        return (y * ops.cos(y)).sum()

    return weighted


def blocks(dtype):
    """A block of figure 2 by the fused kernel, where there is one, and all its gradients: over patches, over frames."""
    rng, flash = np.random.default_rng(0), device.current().target == "Ascend" and dtype != "fp32"
    shapes = [(96, 32), (96,), (32, 32), (32,), (128, 32), (128,), (32, 128), (32,), (192, 32), (192,)]
    weights = [ms.Tensor(rng.normal(size=shape) * 0.2, ms.float32) for shape in shapes]
    for temporal, videos in ((False, 1), (False, 2), (True, 1), (True, 2)):
        x, c = (ms.Tensor(rng.normal(size=shape), ms.float32) for shape in ((videos, 3, 4, 32), (videos, 32)))
        gradient = graphs.compile_training(ms.grad(_weighted_block(temporal, flash), tuple(range(12))))
        found = gradient(x.astype(device.compute_dtype(dtype)), c, *weights)
        for i, name in enumerate(("x", "c", "qkv", "proj", "fc1", "fc2", "ada")):
            parts = found[i : i + 1] if i < 2 else found[2 * i - 2 : 2 * i]
            values = [part.astype(ms.float32).asnumpy().ravel() for part in parts]
            yield f"{'frames' if temporal else 'patches'} {videos} {name}", ms.Tensor(np.concatenate(values))


PARTS = (latte, text_to_video, autoencoder, training)
MORE = (clip, i3d, flash, int8, choices, sampling, ten_steps, blocks, vae_dtype)


def main(target, dtype, path, *names):
    device.init_device(target)
    results = {}
    for part in [part for part in PARTS + MORE if part.__name__ in names] or PARTS:
        for name, value in part(dtype):
            results[name] = value.astype(ms.float32).asnumpy()
    np.savez(path, **results)
    print(json.dumps(sorted(results)))


if __name__ == "__main__":
    main(*sys.argv[1:])
