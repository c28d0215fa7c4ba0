"""What sample.py does between its options and its files: which videos, by which pipeline, with what memory."""

from __future__ import annotations

import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from latte.components.codec import Codec
from latte.components.folders import INDEX, find_parts, is_t2v_folder
from latte.components.loading import check, load_model, load_vae, read
from latte.components.quantize import is_quantized
from latte.components.text_encoder import load_tokenizer, t5_bytes
from latte.config import SampleConfig
from latte.diffusion.solvers import Solver
from latte.errors import UserError
from latte.inference.inputs import random_label
from latte.inference.pipeline import T2V_GUIDANCE, LattePipeline
from latte.io.video import fit, grid, read_any, save_video
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import CLIP_TEXT, LatteConfig
from latte.models.latte_t2v import LatteT2VConfig
from latte.runtime import device, graphs

GIB = 2**30
GRID = 16  # the most videos in a grid
LONGEST_NAME = 60  # characters of a prompt in the name of a file
# Bytes that the run time and one compiled graph of a block hold, per token and width, per attention score and per
# decoded pixel and channel; measured on CPU in float32 with Latte-XL/2 and the Stable Diffusion autoencoder at 256 px.
BYTES_BASE = int(0.5 * GIB)
BYTES_TOKEN = 4 * 45
BYTES_SCORE = 4 * 3
BYTES_PIXEL = 4 * 50


def model_options(cfg: SampleConfig, vae: AutoencoderConfig) -> dict[str, int | str | None]:
    """Return what the options ask of the network, as arguments of `load_model`."""
    names = ("model_name", "condition", "num_classes", "hidden_size", "depth", "num_heads", "patch_size", "num_frames")
    asked = {name: getattr(cfg, name) for name in names}
    return asked | {"input_size": cfg.image_size and cfg.image_size // vae.downsampling}


def sampler_of(cfg: SampleConfig) -> Solver:
    """Return the solver that the options ask for."""
    return Solver(cfg.solver, eta=cfg.eta)


def build_pipeline(cfg: SampleConfig) -> LattePipeline:
    """Load network and autoencoder and return the pipeline; raises UserError if they do not fit each other."""
    if is_t2v_folder(cfg.checkpoint):
        check_text_to_video(cfg)
        return LattePipeline.from_pretrained(
            cfg.checkpoint,
            cfg.vae_checkpoint,
            dtype=cfg.dtype,
            quantize=cfg.quantize,
            enable_flash_attention=cfg.enable_flash_attention,
            enable_vae_temporal_decoder=cfg.enable_vae_temporal_decoder,
            vae_slice=cfg.vae_slice,
            vae_tile=cfg.vae_tile,
            sd_scale_factor=cfg.sd_scale_factor,
        )
    check_classes(cfg)
    vae = load_vae(cfg.vae_checkpoint)
    net = load_model(
        cfg.checkpoint,
        dtype=cfg.dtype,
        patch_embedder=cfg.patch_embedder,
        enable_flash_attention=cfg.enable_flash_attention,
        **model_options(cfg, vae.config),
    )
    check_fit(cfg, net.config, vae.config)
    return LattePipeline(net, Codec(vae, cfg.sd_scale_factor, cfg.vae_slice, cfg.vae_tile))


def check_text_to_video(cfg: SampleConfig) -> None:
    """Raise UserError if there are no prompts, or options that a text-to-video folder does not take."""
    if cfg.prompts is None:
        raise UserError(f"{cfg.checkpoint} makes videos from text: give prompts, in the YAML or with --prompts")
    for name in ("class_labels", "text_embeddings", "model_name", "condition", "num_classes"):
        if getattr(cfg, name) is not None:
            raise UserError(f"{name} is for other checkpoints; {cfg.checkpoint} makes videos from prompts")
    if cfg.image_size and (cfg.height or cfg.width):
        raise UserError("image_size is given beside height or width; give either")


def check_classes(cfg: SampleConfig) -> None:
    """Raise UserError if options are given that only a text-to-video folder takes, or the autoencoder is missing."""
    if not Path(cfg.checkpoint).exists():
        raise UserError(f"{cfg.checkpoint} does not exist; check the name of the checkpoint")
    for name in ("prompts", "height", "width", "quantize", "enable_vae_temporal_decoder", "negative_prompt"):
        if getattr(cfg, name):
            raise UserError(f"{name} is for text-to-video folders; {cfg.checkpoint} has no {INDEX}")
    if not cfg.vae_checkpoint:
        raise UserError("vae_checkpoint is not set; name a file in the YAML or with --vae_checkpoint")


def check_fit(cfg: SampleConfig, config: LatteConfig, vae: AutoencoderConfig) -> None:
    """Raise UserError if autoencoder, network and options do not fit."""
    sampler_of(cfg).steps(cfg.sampling_steps)
    if vae.latent_channels != config.in_channels:
        raise UserError(
            f"{cfg.vae_checkpoint} has {vae.latent_channels} latent channels, but {cfg.checkpoint} "
            f"takes {config.in_channels}; use the autoencoder that the network was trained with"
        )
    if cfg.class_labels and config.condition != "class":
        raise UserError(f"class_labels are given, but {cfg.checkpoint} is not a class-conditional model")
    if cfg.class_labels and max(cfg.class_labels) >= config.num_classes:
        raise UserError(
            f"class_labels go up to {max(cfg.class_labels)}, but {cfg.checkpoint} has classes 0 to "
            f"{config.num_classes - 1}"
        )
    guided = cfg.guidance_scale not in (None, 1)
    if guided and config.condition is None:
        raise UserError(f"guidance_scale {cfg.guidance_scale:g} needs a conditional model; {cfg.checkpoint} is not one")
    if (config.condition == "text") != bool(cfg.text_embeddings):
        need = "name its CLIP embeddings with" if config.condition == "text" else "leave out"
        what = "is" if config.condition == "text" else "is not"
        raise UserError(f"{cfg.checkpoint} {what} conditioned on text; {need} --text_embeddings")
    if config.condition == "text" and guided and _text_embeddings(Path(cfg.text_embeddings))[1] is None:
        raise UserError(f"text_embeddings {cfg.text_embeddings} has no 'null', which guidance needs")


def video_numbers(cfg: SampleConfig) -> list[int]:
    """Return the numbers, from 0 on, of the videos that this rank makes; video k has seed + k."""
    here = device.current()
    return list(range(here.rank, cfg.num_samples * len(cfg.prompts or [None]), here.world_size))


def conditions(cfg: SampleConfig, config: LatteConfig | LatteT2VConfig, numbers: list[int]) -> dict[str, Any]:
    """Return the arguments of the pipeline that say what these videos show.

    A list of labels is gone through again and again; without one, a label is drawn from each video's seed.
    """
    if isinstance(config, LatteT2VConfig):
        prompts = [cfg.prompts[k // cfg.num_samples] for k in numbers]
        names = ("negative_prompt", "mask_feature", "enable_temporal_attentions")
        return {"prompt": prompts} | {name: getattr(cfg, name) for name in names}
    if config.condition == "class":
        labels = cfg.class_labels
        drawn = [random_label(cfg.seed + k, config.num_classes) for k in numbers]
        return {"class_labels": [labels[k % len(labels)] for k in numbers] if labels else drawn}
    if config.condition == "text":
        text, null = _text_embeddings(Path(cfg.text_embeddings))
        return {"prompt_embeds": text[[k % len(text) for k in numbers]], "negative_prompt_embeds": null}
    return {"num_videos_per_prompt": len(numbers)}


def sizes(cfg: SampleConfig, config: LatteConfig | LatteT2VConfig, side: int) -> tuple[int, int, int]:
    """Return frames, height and width in pixels; a latent spans `side` pixels."""
    if isinstance(config, LatteT2VConfig):
        own = config.sample_size * side
        height, width = (size or cfg.image_size or own for size in (cfg.height, cfg.width))
        return cfg.num_frames or config.video_length, height, width
    return config.num_frames, config.latent_size[0] * side, config.latent_size[1] * side


def first_frames(cfg: SampleConfig, size: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return the arguments of the pipeline for the frames that videos of a size (F, H, W) begin with."""
    if not cfg.init_frames:
        return {}
    given = read_any(cfg.init_frames)
    if not cfg.init_count <= min(len(given), size[0] - 1):
        raise UserError(
            f"init_count is {cfg.init_count}, but {cfg.init_frames} has {len(given)} frames and a video {size[0]}"
        )
    return {"frames": fit(given[-cfg.init_count :], *size[1:]), "strength": cfg.init_strength}


def _text_embeddings(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read `text` (N, 77, 768) and, for guidance, `null` (77, 768) from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            text, null = file["text"], file["null"][None] if "null" in file else None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"text_embeddings {path} is not an .npz file with an array 'text': {error}") from error
    for name, array in (("text", text), ("null", null)):
        if array is not None and (array.shape[1:] != CLIP_TEXT or not len(array) or array.dtype.kind != "f"):
            raise UserError(f"text_embeddings {path}: '{name}' is {array.dtype} {array.shape}; see docs/sample.md")
    return text, null


def guidance(cfg: SampleConfig, config: LatteConfig | LatteT2VConfig) -> float:
    """Return the guidance scale, which has another default for text to video."""
    if cfg.guidance_scale is None:
        return T2V_GUIDANCE if isinstance(config, LatteT2VConfig) else 1.0
    return cfg.guidance_scale


def run(cfg: SampleConfig, pipe: LattePipeline) -> list[Path]:
    """Make this rank's videos and write them and, if there are several, a grid of the first; return the files."""
    numbers, folder = video_numbers(cfg), Path(cfg.output_path)
    files: list[Path] = []
    videos: list[np.ndarray] = []
    with tqdm(total=len(numbers), desc="videos", unit="video", disable=device.current().rank > 0) as done:
        for start in range(0, len(numbers), cfg.batch_size):
            batch = numbers[start : start + cfg.batch_size]
            labels, made = _make(cfg, pipe, batch)
            for k, label, video in zip(batch, labels, made, strict=True):
                files += save_video(video, folder / f"video-{k:04d}{label}", cfg.output_format, cfg.fps)
                videos += [video] if len(videos) < GRID else []
                done.update()
    if len(videos) > 1:
        rank = f"-rank{device.current().rank}" if device.current().world_size > 1 else ""
        formats = [form for form in cfg.output_format if form != "png"] or ["mp4"]
        board = grid(np.stack(videos), columns=math.ceil(math.sqrt(len(videos))))
        files += save_video(board, folder / f"grid{rank}", formats, cfg.fps)
    return files


def _make(cfg: SampleConfig, pipe: LattePipeline, batch: list[int]) -> tuple[list[str], np.ndarray]:
    """Return what to add to the names of these videos, and the videos (B, F, H, W, 3) uint8."""
    config = pipe.net.config
    given, size = conditions(cfg, config, batch), sizes(cfg, config, pipe.codec.vae.config.downsampling)
    default = isinstance(config, LatteT2VConfig) and cfg.sampler is None and not cfg.ddim_sampling
    made = pipe(
        **given,
        **first_frames(cfg, size),
        seed=[cfg.seed + k for k in batch],
        video_length=size[0],
        height=size[1],
        width=size[2],
        num_inference_steps=cfg.sampling_steps,
        sampler=None if default else cfg.solver,
        eta=cfg.eta,
        guidance_scale=cfg.guidance_scale,
        feature_cache=cfg.feature_cache,
        output_type="uint8",
        progress=device.current().rank == 0,
    ).frames
    return [suffix(given, row) for row in range(len(batch))], made


def suffix(given: dict[str, Any], row: int) -> str:
    """Return what a video's condition adds to the name of its file: safe characters, whatever the prompt holds."""
    if "class_labels" in given:
        return f"-class{given['class_labels'][row]}"
    words = re.sub(r"[^a-z0-9]+", "-", given["prompt"][row].lower()).strip("-") if "prompt" in given else ""
    return f"-{words[:LONGEST_NAME].strip('-')}" if words else ""


def summary(pipe: LattePipeline) -> str:
    """Return one line on the time of a network call, the time that compiling took, and the peak of memory."""
    seconds = pipe.latents.step_seconds
    first, later = seconds[0], seconds[1:]
    call = float(np.median(later)) if later else first
    compiling = f", compile {max(first - call, 0):.1f} s" if later else " (compile included)"
    return f"{call:.3f} s a network call{compiling}, peak memory {device.peak_memory() / GIB:.2f} GiB"


def dry_run(cfg: SampleConfig) -> str:
    """Check options and files, build nothing that computes, and return what would be done and how much memory it takes.

    Raises UserError for everything that `build_pipeline` and `run` would raise it for.
    """
    compute, encoder = device.compute_dtype(cfg.dtype), 0
    if is_t2v_folder(cfg.checkpoint):
        check_text_to_video(cfg)
        parts = find_parts(cfg.checkpoint, cfg.vae_checkpoint, cfg.enable_vae_temporal_decoder)
        vae, config = check(parts.vae, "autoencoder"), check(parts.network, "latte_t2v")
        load_tokenizer(parts.prompts / "tokenizer")
        t5 = read(parts.prompts / "text_encoder", "t5")
        encoder = t5_bytes(t5.config, compute, bool(cfg.quantize) or is_quantized(t5.tensors))
    else:
        check_classes(cfg)
        vae = check(cfg.vae_checkpoint, "autoencoder")
        config = check(cfg.checkpoint, "latte", **model_options(cfg, vae))
        check_fit(cfg, config, vae)
    conditions(cfg, config, video_numbers(cfg))
    size = sizes(cfg, config, vae.downsampling)
    first_frames(cfg, size)
    folder = next(
        path for path in (Path(cfg.output_path).resolve(), *Path(cfg.output_path).resolve().parents) if path.exists()
    )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"output_path {cfg.output_path} cannot be written")
    need, free = estimate_memory(cfg, config, vae, encoder), device.free_memory()
    is_labels, scale = isinstance(config, LatteConfig), guidance(cfg, config)
    depth = config.depth if is_labels else 2 * config.num_layers
    kind = (config.condition or "none") if is_labels else "prompts"
    lines = [
        f"{cfg.checkpoint}: depth {depth}, width {config.hidden_size}, {config.num_heads} heads, "
        f"patch {config.patch_size}, condition {kind}",
        f"{cfg.num_samples * len(cfg.prompts or [None])} videos of {size[0]} frames, {size[2]} x {size[1]} pixels, "
        f"{cfg.sampling_steps} {cfg.solver if is_labels else cfg.sampler or 'usual'} steps, guidance "
        f"{scale:g}, on {device.current().target} in {cfg.dtype}",
        f"memory: about {need / GIB:.1f} GiB" + (f" of {free / GIB:.1f} GiB free" if free else ""),
    ]
    if free and need > free:
        lines.append("this does not fit: take a smaller batch, image or model, or another machine")
    return "\n".join(lines)


def estimate_memory(
    cfg: SampleConfig, config: LatteConfig | LatteT2VConfig, vae: AutoencoderConfig, encoder: int = 0
) -> int:
    """Return about how many bytes sampling takes at its peak: weights, a block, and the decoder.

    The run time keeps the memory of the denoising steps while it decodes. A text encoder of `encoder` bytes works
    before, and its memory is given back.
    """
    frames, height, width = sizes(cfg, config, vae.downsampling)
    batches = device.current().batches_videos
    b = cfg.batch_size * (2 if guidance(cfg, config) != 1 else 1) if batches else 1
    d, patches = config.hidden_size, height * width // (vae.downsampling * config.patch_size) ** 2
    if isinstance(config, LatteT2VConfig):
        numbers = config.num_layers * 28 * d * d + 7 * d * d
    else:
        text = math.prod(CLIP_TEXT) * d if config.condition == "text" else 0
        numbers = config.depth * 18 * d * d + 2 * d * d + 256 * d + text
    tokens = patches * frames if batches else min(patches * frames, max(graphs.TOKENS_PER_CALL, patches))
    block = b * tokens * d * BYTES_TOKEN + b * config.num_heads * tokens * max(patches, frames) * BYTES_SCORE
    slice_frames = min(cfg.vae_slice or device.current().frames_per_slice, b * frames)
    pixels = min(height * width, cfg.vae_tile**2 or math.inf)
    decoder = slice_frames * pixels * vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)] * BYTES_PIXEL
    return int(BYTES_BASE + numbers * (1 if cfg.quantize else 4) + max(block + decoder, encoder))
