"""Which kernels MindSpore's Ascend back end chooses for the operations of every graph of this project.

    PYTHONPATH=.:tests python tests/ascend/standin.py --mode plan python tests/ascend/kernels.py [GRAPH ...]

prints a line for each graph. `chosen` does the same from a test. Kernels are chosen when a graph is compiled, so that
nothing need be computed; it is MindSpore's log that tells them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import mindspore as ms
import numpy as np
from support.golden_values import FIXTURES, ROOT
from support.train_step import SMALL

from latte.components.loading import load, load_t2v, load_vae
from latte.components.quantize import quantize
from latte.components.text_encoder import load_t5
from latte.config.train_vae import VaeTrainConfig
from latte.diffusion.denoiser import make_denoiser
from latte.inference.caches import Graphs, Step, Walk
from latte.inference.caches.base import relative_change
from latte.inference.caches.fastercache import FasterCache
from latte.inference.caches.pab import PAB
from latte.inference.caches.schedule import computing, conditional, extrapolated, reusing
from latte.inference.caches.teacache import TeaCache
from latte.inference.caches.threshold import compiled_parts
from latte.models import AutoencoderKL
from latte.models.adapters import choose_trained, share_frozen_weights
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import CLIP_TEXT, Latte, LatteConfig
from latte.models.latte_t2v import LatteT2V
from latte.models.precision import prepare
from latte.ops import selftest
from latte.runtime import device, graphs
from latte.training.autoencoder import VaeStep
from latte.training.step import StepOptions, TrainStep

T2V, VIDEOS, SIDE = FIXTURES / "latte_t2v", 2, 4
# What launches a kernel of CANN's operator library, or none, or a collective operation.
GOOD = ("opapi_kernel", "rt_kernel", "hccl_kernel", "host_kernel", "internal_kernel")
MARK, FAILED = "@@@ graph ", "@@@ failed "
SEEN = re.compile(r"kernel opname:(\w+), kernel type:(\w+)")
ON_LINE = re.compile(r"CollectOpSelectedType\] (\w+) select (aclop) kernel")


def chosen(*names: str, environment: dict[str, str] | None = None) -> dict[str, Counter[tuple[str, str]]]:
    """Return how many operations of each graph got which kernel: name -> (operation, kind of kernel) -> number.

    `names` are keys of GRAPHS, by default all. The environment is that of a process on the stand-in, by default this
    one's. Raises AssertionError if a graph cannot be compiled or its process ends early.
    """
    given = {**(os.environ if environment is None else environment), "GLOG_v": "1"}
    given["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests:{given.get('PYTHONPATH', '')}"
    command = [sys.executable, __file__, "--child", *names]
    done = subprocess.run(command, env=given, capture_output=True, text=True, errors="replace", check=False)
    found, failed = _read(done.stderr)
    assert not failed, failed
    missing = [name for name in names or GRAPHS if name not in found]
    assert not missing, f"{missing} were not compiled: {done.stderr[-3000:]}"
    return found


def others(kernels: dict[str, Counter[tuple[str, str]]]) -> dict[str, list[str]]:
    """Return the operations of each graph that have no good kernel; graphs where all have one are left out."""
    found = {name: sorted({op for op, kind in counts if kind not in GOOD}) for name, counts in kernels.items()}
    return {name: ops for name, ops in found.items() if ops}


def _read(log: str) -> tuple[dict[str, Counter[tuple[str, str]]], dict[str, str]]:
    found: dict[str, Counter[tuple[str, str]]] = {}
    failed, name = {}, ""
    for line in log.splitlines():
        if line.startswith(MARK):
            name = line.removeprefix(MARK)
            found[name] = Counter()
        elif line.startswith(FAILED):
            failed[name] = line.removeprefix(FAILED)
        elif name and (match := SEEN.search(line) or ON_LINE.search(line)):
            found[name][match[1], match[2]] += 1
    return found, failed


def _tensor(*shape, dtype=np.float32):
    return ms.Tensor(np.zeros(shape, dtype))


def _latte(dtype="fp32", condition="class", flash=False, patch_embedder="conv", for_training=False, **sizes):
    classes = {"num_classes": 3} if condition == "class" else {}
    config = LatteConfig(**(SMALL | classes | {"condition": condition} | sizes))
    net = Latte(config, patch_embedder, flash, 0, device.compute_dtype(dtype))
    net.set_train(False)
    return prepare(net, for_training)


def _inputs(condition="class", videos=VIDEOS):
    given = [_tensor(videos, SMALL["num_frames"], 4, SIDE, SIDE), _tensor(videos)]
    if condition == "class":
        return [*given, _tensor(videos, dtype=np.int32)]
    return [*given, _tensor(videos, *CLIP_TEXT)] if condition == "text" else given


def latte(condition="class", int8=False, **options):
    net = _latte(condition=condition, **options)
    net = quantize(net) if int8 else net
    graphs.compile_step(net.construct)(*_inputs(condition))


def guided(**options):
    x, t, y = _inputs()
    graphs.compile_step(make_denoiser(_latte(**options), True, True))(x, t, ms.Tensor(4.0, ms.float32), y, y)


def t2v(dtype="fp32", flash=False, quantize=None):
    net = load_t2v(T2V / "transformer", dtype=dtype, enable_flash_attention=flash, quantize=quantize)
    text = [_tensor(1, 120, net.config.caption_channels), _tensor(1, 120, dtype=np.int32)]
    x, scale = _tensor(1, 4, 4, net.config.sample_size, net.config.sample_size), ms.Tensor(4.0, ms.float32)
    graphs.compile_step(make_denoiser(net, True, True))(x, _tensor(1), scale, *text, *text)


def t5(dtype="fp32", quantize=None):
    load_t5(FIXTURES / "t5", dtype, quantize)(_tensor(2, 7, dtype=np.int32), _tensor(2, 7, dtype=np.int32))


def clip(dtype="fp32"):
    load(FIXTURES / "clip", "clip", dtype=dtype)(_tensor(2, 7, dtype=np.int32), _tensor(2, 7, dtype=np.int32))


def autoencoder():
    vae, temporal = load_vae(FIXTURES / "vae.bin"), load_vae(T2V / "vae_temporal_decoder")
    graphs.compile_step(vae.encode)(_tensor(2, 3, 16, 16))
    graphs.compile_step(vae.decode)(_tensor(2, vae.config.latent_channels, 2, 2))
    graphs.compile_step(temporal.decode)(_tensor(2, temporal.config.latent_channels, 2, 2))


def feature_cache():
    """The three graphs of a network with a feature cache, and what compares tokens outside them."""
    begin, middle, end = compiled_parts(Graphs(_latte("fp16", depth=4, flash=True, hidden_size=32)))
    tokens, context = begin(*_inputs())
    last = middle(tokens, *context)
    relative_change([last], [tokens], last.shape[:2])
    end(tokens + (last - tokens), *context)


def caches():
    """The graphs of a schedule, of TeaCache, of FasterCache and of PAB, and what is computed between them."""
    made, (x, t, y) = Graphs(_latte("fp16", depth=4, flash=True, hidden_size=32)), _inputs()
    scale = ms.Tensor(4.0, ms.float32)
    _, kept = computing(made, (1, 3), True)(x, t, scale, y, y)
    reusing(made, (1, 3), True)(x, t, scale, *extrapolated([(900.0, kept), (800.0, kept)], 700.0), y, y)
    _, kept = computing(made, (1, 3), False)(x, t, scale, y)
    conditional(kept, (VIDEOS, SMALL["num_frames"]))
    walk = Walk("ddim", 3, 3, 4, True)
    for method in (TeaCache(0.1), FasterCache(2)):
        denoise = method.start(made, walk)
        for number in range(3):
            denoise(Step(number, 3, 900.0 - number, True), x, t, scale, y, y)
    denoise = PAB(235).start(made, walk)
    for number, guided in enumerate((True, True, True, False)):
        denoise(Step(number, 4, 500.0 - number, guided), x, t, scale, *((y, y) if guided else (y,)))


def _train(net, ema, inputs, vae=None, recompute=False, teacher=None, **options):
    for block in net.blocks if recompute else ():
        block.recompute()
    call = TrainStep(net, ema, vae, np.full(10, 1e-4, np.float32), StepOptions(**options), teacher).as_function()
    for _ in range(options.get("accumulation", 1)):
        call(*inputs)


def train(dtype="fp32", condition="class", images=0, flash=False, from_pixels=False, sizes=None, **options):
    """A whole training step of a Latte; with `distill_steps` it has a teacher."""
    shape = {"flash": flash, "for_training": True, **(sizes or {})}
    if options.get("distill_steps"):
        teacher = _latte(dtype, condition, flash)
        for weight in teacher.get_parameters():
            weight.requires_grad = False
        teacher.update_parameters_name("teacher.")
        options["teacher"] = teacher
    net, ema = (_latte(dtype, condition, **shape) for _ in range(2))
    latents = (VIDEOS, SMALL["num_frames"] + images, 4, SIDE, SIDE)
    vae, first = None, _tensor(*latents[:2], 8, SIDE, SIDE)
    if from_pixels:
        vae = AutoencoderKL(AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1))
        for weight in vae.get_parameters():
            weight.requires_grad = False
        first = _tensor(*latents[:2], 3, 2 * SIDE, 2 * SIDE)
    inputs = [first, _tensor(*latents), _tensor(VIDEOS, dtype=np.int32), _tensor(*latents)]
    inputs.append(_tensor(VIDEOS, 8, dtype=np.int32))
    if condition == "class":
        inputs.append(_tensor(VIDEOS, 1 + images, dtype=np.int32))
    if condition == "text":
        inputs.append(_tensor(VIDEOS, *CLIP_TEXT))
    _train(net, ema, inputs, vae, images=images, **options)


def train_t2v(dtype="fp16", trainable="all", flash=True, **options):
    """A whole training step of a LatteT2V, of all weights or of LoRA adapters."""
    config = load_t2v(T2V / "transformer").config
    nets = [LatteT2V(config, "conv", flash, 0, device.compute_dtype(dtype)) for _ in range(2)]
    for net in nets:
        choose_trained(net, trainable, 4)
    nets = [prepare(net, True) for net in nets]
    share_frozen_weights(nets[1], nets[0])
    side, width = nets[0].config.sample_size, nets[0].config.caption_channels
    latents = (VIDEOS, 3, 4, side, side)
    inputs = [_tensor(*latents[:2], 8, side, side), _tensor(*latents), _tensor(VIDEOS, dtype=np.int32)]
    inputs += [_tensor(*latents), _tensor(VIDEOS, 8, dtype=np.int32)]
    inputs += [_tensor(VIDEOS, 9, width), _tensor(VIDEOS, 9, dtype=np.int32)]
    _train(*nets, inputs, **options)


def train_vae():
    """A training step of an autoencoder."""
    config = AutoencoderConfig(block_out_channels=(32, 64), layers_per_block=1, mid_block_add_attention=False)
    vae, ema = (AutoencoderKL(config) for _ in range(2))
    step = VaeStep(vae, ema, np.full(10, 1e-3, np.float32), VaeTrainConfig()).as_function()
    step(_tensor(2, 3, 16, 16), _tensor(2, 4, 8, 8))


SCALED = {"loss_scale": 1024.0, "loss_scale_window": 1000}
VELOCITY = {"prediction_type": "v_prediction"}
ALL = {"accumulation": 2, "recompute": True, "max_grad_norm": 0.1, "start_clip_step": 2, "weight_decay": 0.01}
GRAPHS = {
    "class fp32": (latte, {}),
    "class fp32 linear": (latte, {"patch_embedder": "linear"}),
    "class fp16 flash": (latte, {"dtype": "fp16", "flash": True}),
    "class bf16 flash linear": (latte, {"dtype": "bf16", "flash": True, "patch_embedder": "linear"}),
    "class bf16": (latte, {"dtype": "bf16"}),
    "class fp16 int8": (latte, {"dtype": "fp16", "int8": True}),
    "class fp32 int8": (latte, {"int8": True}),
    "unconditional fp16": (latte, {"condition": None, "dtype": "fp16"}),
    "text fp16 flash": (latte, {"condition": "text", "dtype": "fp16", "flash": True}),
    "guided fp16 flash": (guided, {"dtype": "fp16", "flash": True}),
    "guided fp32": (guided, {}),
    "guided fp16 velocity": (guided, {"dtype": "fp16", "flash": True, **VELOCITY}),
    "t2v fp32": (t2v, {}),
    "t2v fp16 flash": (t2v, {"dtype": "fp16", "flash": True}),
    "t2v bf16 flash int8": (t2v, {"dtype": "bf16", "flash": True, "quantize": "int8"}),
    "t5 fp32": (t5, {}),
    "t5 fp16": (t5, {"dtype": "fp16"}),
    "t5 bf16 int8": (t5, {"dtype": "bf16", "quantize": "int8"}),
    "clip fp32": (clip, {}),
    "clip fp16": (clip, {"dtype": "fp16"}),
    "autoencoder": (autoencoder, {}),
    "feature cache": (feature_cache, {}),
    "caches": (caches, {}),
    "self-test": (selftest.run, {}),
    "train fp32": (train, {}),
    "train fp16": (train, {"dtype": "fp16", "flash": True, **SCALED, **ALL}),
    "train bf16": (train, {"dtype": "bf16", "flash": True, "sizes": {"patch_embedder": "linear"}, **ALL}),
    "train bf16 exact": (train, {"dtype": "bf16", "max_grad_norm": 0.1}),
    "train images": (train, {"images": 2, "dtype": "fp16", **SCALED}),
    "train text": (train, {"condition": "text", "dtype": "fp16", "flash": True, **SCALED}),
    "train pixels": (train, {"from_pixels": True, "condition": None, "dtype": "fp16"}),
    "train velocity": (train, {"dtype": "fp16", "flash": True, "sizes": VELOCITY, "loss_weighting": "v", **SCALED}),
    "train distilled": (train, {"dtype": "fp16", "flash": True, "distill_steps": 4, **SCALED}),
    "train t2v": (train_t2v, {**SCALED, **ALL}),
    "train lora": (train_t2v, {"trainable": "lora", "dtype": "bf16"}),
    "train vae": (train_vae, {}),
}


def main(*names: str) -> None:
    """Compile the graphs, each behind a line with its name in the log."""
    device.init_device("Ascend")
    for name in names or GRAPHS:
        sys.stderr.write(f"\n{MARK}{name}\n")
        sys.stderr.flush()
        function, options = GRAPHS[name]
        try:
            function(**options)
        except Exception as error:  # what MindSpore raises; the other graphs are compiled all the same
            sys.stderr.write(f"\n{FAILED}{' '.join(str(error).split())[:600]}\n")
            sys.stderr.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        main(*sys.argv[2:])
    else:
        found = chosen(*sys.argv[1:])
        for name, counts in found.items():
            sys.stdout.write(f"{name}: {dict(sorted(counts.items()))}\n")
        sys.stdout.write(f"without a good kernel: {others(found)}\n")
