"""Export parts of a pipeline as MindIR files, for MindSpore without Python or without this code, and their graphs."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
import yaml
from mindspore import nn
from mindspore.train.mind_ir_pb2 import ModelProto

from latte.components import runs
from latte.components.codec import LOGVAR_RANGE
from latte.components.folders import INDEX, is_t2v_folder, read_scheduler
from latte.components.loading import Weights, load, read
from latte.config.export import OF_SCHEDULE
from latte.diffusion.denoiser import make_denoiser
from latte.errors import UserError
from latte.inference import caches
from latte.inference.caches.schedule import all_blocks, other_blocks
from latte.inference.inputs import (
    Config,
    asked_solver,
    asked_steps,
    choose_solver,
    guidance,
    latent_shape,
    read_network,
)
from latte.io.atomic import atomic_entries
from latte.io.mindir import count, read_graph, read_model, table
from latte.models.latte import CLIP_TEXT
from latte.models.temporal_decoder import FRAMES_AT_ONCE
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.components.folders import Parts
    from latte.config import ExportConfig
    from latte.models import AutoencoderKL
    from latte.models.autoencoder import AutoencoderConfig

log = logging.getLogger("latte")
DENOISERS = ("denoiser", *OF_SCHEDULE)
DESCRIPTION = ".yaml"  # the suffix of the description beside the graph
FEED = (
    "graph = mindspore.load(FILE); outputs = mindspore.nn.GraphCell(graph)(*inputs) with mindspore.Tensor inputs in "
    "this order; or convert FILE with MindSpore Lite's converter (--fmk=MINDIR)"
)


@dataclasses.dataclass(frozen=True)
class Field:
    """An input or output of a graph."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str

    def blank(self) -> ms.Tensor:
        """Return a tensor of zeros with this shape and dtype."""
        if self.dtype == "bfloat16":  # which NumPy does not have
            return ms.Tensor(np.zeros(self.shape, np.float32), ms.bfloat16)
        return ms.Tensor(np.zeros(self.shape, self.dtype))


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a part, and the values that are constants in its graph."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    fixed: dict[str, Any]


class Denoiser(nn.Cell):
    """A network with classifier-free guidance of a constant scale."""

    def __init__(self, net: nn.Cell, guidance_scale: float, part: str = "denoiser", blocks: Sequence[int] = ()):
        super().__init__()
        self.net = net
        self.scale = ms.Tensor(np.float32(guidance_scale))  # a constant of the graph, as its description says
        guided, self.keeps = guidance_scale != 1, part == "denoiser_all"
        if part == "denoiser":
            self.denoise = make_denoiser(net, guided, device.current().batches_videos)
        else:
            function = all_blocks if part == "denoiser_all" else other_blocks
            self.denoise = function(net, (blocks[0], blocks[1]), guided)

    def construct(self, x: ms.Tensor, t: ms.Tensor, *inputs: ms.Tensor) -> Any:
        """Return the guided noise and, if the network predicts them, the variance values; maybe residuals too."""
        if self.keeps:
            noise, residuals = self.denoise(x, t, self.scale, *inputs)
            return (noise, *residuals)
        return self.denoise(x, t, self.scale, *inputs)


class Encoder(nn.Cell):
    """The encoder of an autoencoder: images to moments."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Return the moments (N, 2 L, h, w) of images (N, 3, H, W) in [-1, 1]."""
        return self.vae.encode(x)


class Decoder(nn.Cell):
    """The decoder of an autoencoder: scaled latents to images."""

    def __init__(self, vae: AutoencoderKL, scale_factor: float):
        super().__init__()
        self.vae, self.scale_factor = vae, scale_factor

    def construct(self, z: ms.Tensor) -> ms.Tensor:
        """Return the images (N, 3, H, W) in [-1, 1] of scaled latents (N, L, h, w)."""
        return self.vae.decode(z / self.scale_factor)


def export(cfg: ExportConfig) -> str:
    """Write a part of a pipeline and its description, or only examine its graph; return a report.

    Raises UserError if files or options do not fit, or a target file exists.
    """
    target = Path(cfg.target) if cfg.target else None
    if target:
        check_free(target)
    log.info("reading the weights")
    cell, signature = build(cfg)
    start = time.perf_counter()
    log.info("compiling the graph for %s; this takes half a minute for a large network", device.current().target)
    lines = []
    if target is None:
        model = graph_of(cell, *[field.blank() for field in signature.inputs])
    else:
        model, files = write(cell, signature, target, cfg)
        lines += [f"wrote {file} ({_size(file):,} bytes)" for file in files]
    nodes = read_graph(model)
    lines.append(f"the graph has {len(nodes):,} nodes; exported in {time.perf_counter() - start:.1f} s")
    return "\n".join([*([table(count(nodes), "block")] if cfg.report else []), *lines])


def graph_of(cell: nn.Cell, *inputs: ms.Tensor) -> ModelProto:
    """Return the graph that would be exported, without the values of its weights; nothing is written."""
    found = []

    def take(model: ModelProto) -> None:
        found.append(_without_weights(model))
        del model.graph.parameter[:]

    with tempfile.TemporaryDirectory() as folder:
        ms.export(cell, *inputs, file_name=str(Path(folder) / "graph"), file_format="MINDIR", custom_func=take)
    return found[0]


def write(cell: nn.Cell, signature: Signature, target: Path, cfg: ExportConfig) -> tuple[ModelProto, list[Path]]:
    """Write the graph, its description and, beyond 1 GB, a folder of weights; return the graph and the files.

    The files get their final names in a temporary folder, because the graph holds the name of the weights' file.
    Raises UserError if a file is incomplete.
    """
    with atomic_entries(target.parent) as folder:
        inputs = [field.blank() for field in signature.inputs]
        ms.export(cell, *inputs, file_name=str(folder / target.name), file_format="MINDIR")
        (graph,) = folder.glob("*.mindir")
        model = read_model(graph)
        for weight in model.graph.parameter:
            place, length = weight.external_data.location, weight.external_data.length
            if place and (folder / place).stat().st_size < weight.external_data.offset + length:
                raise UserError(f"{target} is incomplete: {place} is too short; free some space and export again")
        names = sorted(entry.name for entry in folder.iterdir())
        described = yaml.safe_dump(
            describe(cfg, signature, names), sort_keys=False, width=120, default_flow_style=None, allow_unicode=True
        )
        (folder / target.name).with_suffix(DESCRIPTION).write_text(described, encoding="utf-8")
        names = [graph.name, *sorted(entry.name for entry in folder.iterdir() if entry != graph)]
    return _without_weights(model), [target.parent / name for name in names]


def check_free(target: Path) -> None:
    """Raise UserError if one of the files that an export may write exists."""
    stem = target.with_suffix("")
    for path in (target, *(Path(f"{stem}{end}") for end in ("_graph.mindir", "_variables", DESCRIPTION))):
        if path.exists():
            raise UserError(f"{path} is there already; remove it, or name another file as target")


def describe(cfg: ExportConfig, signature: Signature, files: list[str]) -> dict[str, Any]:
    """Return the content of the YAML file beside the graph."""
    here = device.current()
    return {
        "part": cfg.part,
        "files": files,
        "feed": FEED,
        "inputs": [_listed(field) for field in signature.inputs],
        "outputs": [_listed(field) for field in signature.outputs],
        **signature.fixed,
        "device_target": here.target,
        "dtype": cfg.dtype if cfg.part in (*DENOISERS, "t5") else cfg.vae_dtype,
        "enable_flash_attention": cfg.enable_flash_attention and cfg.part in DENOISERS,
        "quantize": cfg.quantize,
        "mindspore": ms.__version__,
        "checkpoint": cfg.checkpoint,
        "vae_checkpoint": cfg.vae_checkpoint,
    }


def build(cfg: ExportConfig) -> tuple[nn.Cell, Signature]:
    """Load a part and return it as a cell with its signature; raises UserError if files or options do not fit."""
    weights, signature = _read(cfg)
    if cfg.part == "t5":
        return load(weights, dtype=cfg.dtype, quantize=cfg.quantize), signature
    if cfg.part in DENOISERS:
        net = load(
            weights,
            dtype=cfg.dtype,
            flash=cfg.enable_flash_attention,
            quantize=cfg.quantize,
            patch_embedder=cfg.patch_embedder,
        )
        net.temporal = signature.fixed.get("temporal", True)
        blocks = signature.fixed.get("schedule", {}).get("blocks", ())
        return Denoiser(net, signature.fixed["guidance_scale"], cfg.part, blocks), signature
    vae = load(weights)
    vae.dtype = device.autoencoder_dtype(cfg.vae_dtype)
    return Encoder(vae) if cfg.part == "vae_encoder" else Decoder(vae, signature.fixed["sd_scale_factor"]), signature


def _read(cfg: ExportConfig) -> tuple[Weights, Signature]:
    """Return the weights of a part, read but not loaded, and its signature; raises UserError as `build` does."""
    parts = runs.find(cfg.require_checkpoint(), _vae(cfg), cfg.enable_vae_temporal_decoder)
    if cfg.part == "t5":
        weights = read(_text_encoder(cfg), "t5")
        return weights, t5_signature(cfg, weights.config.d_model)
    cfg = dataclasses.replace(cfg, sd_scale_factor=cfg.sd_scale_factor or parts.scale_factor)  # that of a run's options
    vae = read(parts.vae, "autoencoder")
    if cfg.part not in DENOISERS:
        return vae, vae_signature(cfg, vae.config)
    if cfg.quantize and parts.prompts is None:
        raise UserError(f"quantize is for text-to-video folders; {cfg.checkpoint} has no {INDEX}")
    weights = read_network(cfg, parts, vae.config)
    signature = denoiser_signature(cfg, weights.config, vae.config)
    return weights, _with_schedule(cfg, signature, parts, weights.config) if cfg.part in OF_SCHEDULE else signature


def dry_run(cfg: ExportConfig) -> str:
    """Check options and files and describe what would be written; raises UserError as `export` does."""
    if cfg.target:
        check_free(Path(cfg.target))
    weights, signature = _read(cfg)
    if cfg.part in (*DENOISERS, "t5"):
        size = weights.config.parameter_count * (4 if device.DTYPES[cfg.dtype] == ms.float32 else 2)
    else:
        size = sum(values.size * 4 for values in weights.tensors.values()) // 2
    lines = [
        f"{kind} {field.name}: {field.dtype} {list(field.shape)}, {field.meaning}" for kind, field in _all(signature)
    ]
    where = cfg.target or "no file, as there is no target"
    return "\n".join([f"{cfg.part} for {device.current().target}: {where}, about {size / 1e6:,.0f} MB", *lines])


def denoiser_signature(cfg: ExportConfig, config: Config, vae: AutoencoderConfig) -> Signature:
    """Return the signature of a network with its guidance; raises UserError if it cannot be guided."""
    batch, scale = cfg.batch_size, guidance(cfg, config)
    shape = (batch, *latent_shape(cfg, config, vae.downsampling))
    frames = shape[1]
    factor = cfg.sd_scale_factor or vae.scaling_factor
    fields = [
        Field("x", shape, "float32", f"noisy latents (B, F, C, H, W), scaled by {factor:g}"),
        Field("t", (batch,), "float32", "timesteps of the training, 0 to 999, not necessarily whole"),
    ]
    fixed = {"guidance_scale": scale, "sd_scale_factor": factor}
    if config.conditioning == "prompt":
        fixed["temporal"] = cfg.enable_temporal_attentions and frames > 1
        text = (batch, cfg.text_tokens)
        given = [
            Field("text", (*text, config.text_width), "float32", "embeddings of T5"),
            Field("mask", text, "int32", "1 for tokens of the prompt, 0 for padding"),
        ]
    elif config.conditioning == "class":
        assert config.num_classes is not None
        classes = f"labels, 0 to {config.num_classes - 1}; {config.num_classes} is the null class"
        given = [Field("y", (batch,), "int32", classes)]
    else:
        given = [Field("y", (batch, *CLIP_TEXT), "float32", "embeddings of CLIP")] * (config.conditioning == "text")
    if scale != 1:
        if not given:
            raise UserError(f"guidance_scale {scale:g} needs a conditional model; {cfg.checkpoint} is not one")
        given += [
            dataclasses.replace(each, name=f"{each.name}_null", meaning="the same for the null condition")
            for each in given
        ]
    channels = config.out_channels
    meaning = f"the guided noise in the first {config.in_channels} channels, then variance values if there are any"
    output = Field("noise", (batch, frames, channels, *shape[3:]), "float32", meaning)
    return Signature((*fields, *given), (output,), fixed)


def _with_schedule(cfg: ExportConfig, signature: Signature, parts: Parts, config: Config) -> Signature:
    """Return the signature of a network that is sampled with a schedule; raises UserError if cache is none for it."""
    solver = choose_solver(read_scheduler(parts.scheduler), config.default_solver, asked_solver(cfg), cfg.eta)
    guided = signature.fixed["guidance_scale"] != 1
    walk = caches.Walk.of(solver, asked_steps(cfg, config), 1.0, config.depth, guided)
    schedule = caches.choose(cfg.cache, 0, walk)
    if not isinstance(schedule, caches.Schedule):
        raise UserError(f"cache {cfg.cache} is no schedule, and cannot be exported; name a file, or one such as every2")
    batch, frames, _, h, w = signature.inputs[0].shape
    rows, patch = batch * (2 if guided and device.current().batches_videos else 1), config.patch_size
    shape = (rows, frames, h * w // patch**2, config.hidden_size)
    dtype = str(device.compute_dtype(cfg.dtype)).lower()
    names = ["residual", "residual_null"] if guided and rows == batch else ["residual"]
    meaning = f"what blocks {schedule.blocks[0]} to {schedule.blocks[1] - 1} add, of denoiser_all"
    residuals = [Field(name, shape, dtype, meaning) for name in names]
    fixed = signature.fixed | {
        "schedule": {
            "computed": list(schedule.computed),  # network calls of denoiser_all, the others are of denoiser_rest
            "calls": schedule.calls,
            "blocks": list(schedule.blocks),
            "order": schedule.order,  # of the polynomial in t through the last residuals, see latte/inference/caches
        }
    }
    if cfg.part == "denoiser_all":
        return Signature(signature.inputs, (*signature.outputs, *residuals), fixed)
    return Signature((*signature.inputs[:2], *residuals, *signature.inputs[2:]), signature.outputs, fixed)


def vae_signature(cfg: ExportConfig, config: AutoencoderConfig) -> Signature:
    """Return the signature of an encoder or decoder for vae_slice frames; raises UserError if the size does not fit."""
    together, factor = config.temporal_decoder, cfg.sd_scale_factor or config.scaling_factor
    encodes = cfg.part == "vae_encoder"
    count = cfg.vae_slice or (FRAMES_AT_ONCE if together and not encodes else device.current().frames_per_slice)
    height, width = (size or cfg.image_size or 256 for size in (cfg.height, cfg.width))
    side = config.downsampling
    if height % side or width % side:
        raise UserError(f"height and width must be multiples of {side}; they are {height} and {width}")
    pixels, latents = (count, 3, height, width), (count, config.latent_channels, height // side, width // side)
    images = Field("images", pixels, "float32", "frames, RGB, -1 to 1")
    if encodes:
        low, high = LOGVAR_RANGE
        meaning = f"mean, then logvar: latents = (mean + exp(clip(logvar, {low:g}, {high:g}) / 2) noise) {factor:g}"
        moments = Field("moments", (count, 2 * latents[1], *latents[2:]), "float32", meaning)
        return Signature((images,), (moments,), {"sd_scale_factor": factor})
    given = Field("latents", latents, "float32", f"latents of the denoiser, scaled by {factor:g}")
    return Signature((given,), (images,), {"sd_scale_factor": factor})


def t5_signature(cfg: ExportConfig, width: int) -> Signature:
    """Return the signature of the text encoder, whose embeddings have `width` elements per token."""
    shape = (cfg.batch_size, cfg.text_tokens)
    ids = Field("input_ids", shape, "int32", "tokens of the prompt in lower case, the end token (1), then padding (0)")
    mask = Field("attention_mask", shape, "int32", "1 for tokens and the end token, 0 for padding")
    output = Field("text", (*shape, width), "float32", "embeddings, an input of the denoiser")
    return Signature((ids, mask), (output,), {})


def _vae(cfg: ExportConfig) -> str | None:
    if cfg.part == "t5" and not is_t2v_folder(cfg.checkpoint):
        raise UserError(f"part t5 is of text-to-video folders; {cfg.checkpoint} has no {INDEX}")
    return cfg.vae_checkpoint


def _text_encoder(cfg: ExportConfig) -> Path:
    return Path(cfg.require_checkpoint()) / "text_encoder"


def _listed(field: Field) -> dict[str, Any]:
    return {"name": field.name, "shape": list(field.shape), "dtype": field.dtype, "meaning": field.meaning}


def _all(signature: Signature) -> list[tuple[str, Field]]:
    return [*(("input", field) for field in signature.inputs), *(("output", field) for field in signature.outputs)]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def _without_weights(model: ModelProto) -> ModelProto:
    """Return a copy of a graph that holds only the names and shapes of its weights."""
    for weight in model.graph.parameter:
        weight.ClearField("raw_data")
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
