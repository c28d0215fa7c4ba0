"""What a training will take, before it is compiled: from its sizes, and the speed of one product on this device."""

from __future__ import annotations

import math
import re
import statistics
import time
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from latte.inference.videos import BYTES_BASE, BYTES_PIXEL
from latte.runtime import device

if TYPE_CHECKING:
    from latte.config import TrainConfig
    from latte.training.build import Training

GIB = 2**30
# Fitted on runs on a CPU and on MindSpore's memory plans for Ascend; docs/train.md compares.
BYTES_COMPILER = int(0.7 * GIB)  # what compiling a step leaves behind
KEPT = 24  # tensors of the tokens' size that a block keeps for its backward pass
PRODUCTS = 0.75  # of a step's time is in products, at the speed of the one that is measured
DOWN = re.compile(r"encoder\.down_blocks\.(\d+)\.")


def estimate(cfg: TrainConfig, training: Training) -> str:
    """Return two lines with the predicted memory and seconds of a training; multiplies matrices for half a second.

    The longer the step, the better the prediction: it knows of products, but not of the launches of small operations.
    """
    need, free = memory(cfg, training), device.free_memory()
    operations = flops(cfg, training)
    seconds = operations / _speed(cfg, training.config.hidden_size) / PRODUCTS
    steps = training.total_steps
    fits = f" of {free / GIB:.1f} GiB free" if free else ""
    lines = [
        f"memory: about {need / GIB:.1f} GiB{fits} (predicted)",
        f"time: about {_short(seconds)} per step and {_short(seconds * steps)} for {steps} steps, without compiling "
        f"(predicted from {operations / 1e12:.3g} TFLOP a step and the speed of one product here)",
    ]
    if free and need > free:
        lines.append(
            "this does not fit: take a smaller train_batch_size, image or model, use_recompute, a latent cache, or a "
            "machine with more memory"
        )
    return "\n".join(lines)


def memory(cfg: TrainConfig, training: Training) -> int:
    """Return the predicted peak memory of a step in bytes: process, weights and moments, activations, autoencoder."""
    config, itemsize = training.config, np.dtype(ms.dtype_to_nptype(_compute(cfg))).itemsize
    weights = list(training.step.net.get_parameters())
    trained = sum(w.size for w in weights if w.requires_grad)
    frozen = sum(w.size * w.itemsize for w in weights if not w.requires_grad)
    copies = 16 + 4 * cfg.use_ema + 4 * (cfg.gradient_accumulation_steps > 1)  # weight, gradient and two moments
    # Recomputed, each block keeps its input; a CPU's run time has the tensors of several blocks at once nevertheless.
    recomputed = config.depth + KEPT * (1 if device.current().compile_scope == "step" else 4)
    kept = min(recomputed, KEPT * config.depth) if cfg.use_recompute else KEPT * config.depth
    activations = cfg.train_batch_size * _tokens(cfg, training) * config.hidden_size * kept * itemsize
    vae = training.codec.vae.config
    frame = math.prod(training.source.latent_shape[2:]) * vae.downsampling**2
    encoder = (
        0 if cfg.cache_folder else training.codec.frames_per_slice * frame * vae.block_out_channels[0] * BYTES_PIXEL
    )
    return BYTES_BASE + BYTES_COMPILER + trained * copies + frozen + activations + encoder


def flops(cfg: TrainConfig, training: Training) -> float:
    """Return the floating point operations of one step on one device, a multiplication and an addition being two."""
    config, tokens = training.config, _tokens(cfg, training)
    blocks = [w for w in training.step.net.get_parameters() if "blocks." in w.name and w.ndim == 2]
    once = ("adaLN", "scale_shift_table")  # on one row per video, not on every token
    matrices = sum(w.size for w in blocks if not any(name in w.name for name in once))
    frames, patches = training.num_frames, tokens // (training.num_frames + cfg.images_per_video)
    # scores and their product with v: half of the blocks attend over the patches of a frame, half over frames
    attention = 2 * tokens * config.hidden_size * config.depth * (frames + patches)
    passes = 3 + bool(cfg.use_recompute)  # forward, and two products backward for each
    network = passes * (2 * tokens * matrices + attention)
    frame = 0.0 if cfg.cache_folder else _encoder_flops(training)
    videos = cfg.train_batch_size * cfg.gradient_accumulation_steps
    return videos * (network + (frames + cfg.images_per_video) * frame)


def _encoder_flops(training: Training) -> float:
    """Return the operations of encoding one frame: each kernel once per pixel of its block's resolution."""
    latents = math.prod(training.source.latent_shape[2:])
    pixels = latents * training.codec.vae.config.downsampling**2
    total = 0
    for name, weight in training.codec.vae.parameters_and_names():
        if weight.ndim < 2 or not name.startswith(("encoder.", "quant_conv.")):
            continue
        block = DOWN.match(name)
        level = int(block[1]) + ("downsamplers" in name) if block else 0
        total += 2 * weight.size * (pixels >> 2 * level if block or "conv_in" in name else latents)
    return float(total)


def _tokens(cfg: TrainConfig, training: Training) -> int:
    """Return the tokens of one video and its single images."""
    _, _, h, w = training.source.latent_shape
    return (training.num_frames + cfg.images_per_video) * h * w // training.config.patch_size**2


def _compute(cfg: TrainConfig) -> ms.Type:
    return device.compute_dtype(cfg.dtype)


def _speed(cfg: TrainConfig, width: int) -> float:
    """Return the operations per second of a product as a block has it, (4096, width) by (width, 4 width)."""
    rows = 4096
    x, w = (ms.ops.ones(shape, _compute(cfg)) for shape in ((rows, width), (width, 4 * width)))
    times: list[float] = []
    while sum(times) < 0.5 or len(times) < 3:
        start = time.perf_counter()
        ms.ops.matmul(x, w).asnumpy()
        times.append(time.perf_counter() - start)
    return 2 * rows * width * 4 * width / statistics.median(times[1:])


def _short(seconds: float) -> str:
    """Return a duration in the unit that a person would use."""
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"))
    size, name = next((unit for unit in units if seconds >= unit[0]), (0.001, "ms"))
    return f"{seconds / size:.3g} {name}"
