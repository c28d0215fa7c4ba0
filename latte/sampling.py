"""What sample.py does between its options and its files: which videos, by which pipeline, with what memory."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from latte import device
from latte.checkpoint import check_model, check_vae, load_model, load_vae
from latte.codec import Codec
from latte.config import SampleConfig
from latte.diffusion.solvers import Sampler
from latte.errors import UserError
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import CLIP_TEXT, LatteConfig
from latte.pipeline import LattePipeline, random_label
from latte.video import grid, save_video

GIB = 2**30
GRID = 16  # the most videos in a grid
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


def sampler_of(cfg: SampleConfig) -> Sampler:
    """Return the solver that the options ask for."""
    return Sampler(cfg.solver, eta=cfg.eta)


def build_pipeline(cfg: SampleConfig) -> LattePipeline:
    """Load network and autoencoder and return the pipeline; raises UserError if they do not fit each other."""
    vae = load_vae(cfg.vae_checkpoint)
    net = load_model(
        cfg.checkpoint,
        dtype=cfg.dtype,
        patch_embedder=cfg.patch_embedder,
        enable_flash_attention=cfg.enable_flash_attention,
        **model_options(cfg, vae.config),
    )
    check_fit(cfg, net.config, vae.config)
    return LattePipeline(net, Codec(vae, cfg.sd_scale_factor, cfg.vae_slice))


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
    if cfg.guidance_scale != 1 and config.condition is None:
        raise UserError(f"guidance_scale {cfg.guidance_scale:g} needs a conditional model; {cfg.checkpoint} is not one")
    if (config.condition == "text") != bool(cfg.text_embeddings):
        need = "name its CLIP embeddings with" if config.condition == "text" else "leave out"
        what = "is" if config.condition == "text" else "is not"
        raise UserError(f"{cfg.checkpoint} {what} conditioned on text; {need} --text_embeddings")
    if (
        config.condition == "text"
        and cfg.guidance_scale != 1
        and _text_embeddings(Path(cfg.text_embeddings))[1] is None
    ):
        raise UserError(f"text_embeddings {cfg.text_embeddings} has no 'null', which guidance needs")


def video_numbers(cfg: SampleConfig) -> list[int]:
    """Return the numbers, of 0 .. num_samples - 1, of the videos that this rank makes; video k has seed + k."""
    here = device.current()
    return list(range(here.rank, cfg.num_samples, here.world_size))


def conditions(cfg: SampleConfig, config: LatteConfig, numbers: list[int]) -> tuple[np.ndarray | None, ...]:
    """Return the conditions of these videos and the null condition: labels, text embeddings, or None.

    A list of labels is gone through again and again; without one, a label is drawn from each video's seed.
    """
    if config.condition == "class":
        labels = cfg.class_labels
        drawn = [random_label(cfg.seed + k, config.num_classes) for k in numbers]
        return np.array([labels[k % len(labels)] for k in numbers] if labels else drawn, np.int32), None
    if config.condition == "text":
        text, null = _text_embeddings(Path(cfg.text_embeddings))
        return text[[k % len(text) for k in numbers]], null
    return None, None


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


def run(cfg: SampleConfig, pipe: LattePipeline) -> list[Path]:
    """Make this rank's videos and write them and, if there are several, a grid of the first; return the files."""
    numbers, folder = video_numbers(cfg), Path(cfg.output_path)
    files: list[Path] = []
    videos: list[np.ndarray] = []
    with _bar(len(numbers), "videos", "video", leave=True) as done:
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
    given, null = conditions(cfg, config, batch)
    seeds, sampler, steps = [cfg.seed + k for k in batch], sampler_of(cfg), cfg.sampling_steps
    with _bar(len(batch) * sampler.calls(steps), "denoising", "call") as bar:
        latents = pipe.sample_latents(seeds, given, null, steps, sampler, cfg.guidance_scale, bar.update)
    with _bar(len(batch) * config.num_frames, "decoding", "frame") as bar:
        made = pipe.decode(latents, bar.update)
    labels = [f"-class{label}" for label in given] if config.condition == "class" else [""] * len(batch)
    return labels, made


def _bar(total: int, what: str, unit: str, leave: bool = False) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, leave=leave, smoothing=0.1, disable=device.current().rank > 0)


def summary(pipe: LattePipeline) -> str:
    """Return one line on the time of a network call, the time that compiling took, and the peak of memory."""
    first, later = pipe.step_seconds[0], pipe.step_seconds[1:]
    call = float(np.median(later)) if later else first
    compiling = f", compile {max(first - call, 0):.1f} s" if later else " (compile included)"
    return f"{call:.3f} s a network call{compiling}, peak memory {device.peak_memory() / GIB:.2f} GiB"


def dry_run(cfg: SampleConfig) -> str:
    """Check options and files, build nothing that computes, and return what would be done and how much memory it takes.

    Raises UserError for everything that `build_pipeline` and `run` would raise it for.
    """
    device.compute_dtype(cfg.dtype)
    vae = check_vae(cfg.vae_checkpoint)
    config = check_model(cfg.checkpoint, **model_options(cfg, vae))
    check_fit(cfg, config, vae)
    conditions(cfg, config, video_numbers(cfg))
    folder = next(
        path for path in (Path(cfg.output_path).resolve(), *Path(cfg.output_path).resolve().parents) if path.exists()
    )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"output_path {cfg.output_path} cannot be written")
    need, free = estimate_memory(cfg, config, vae), device.free_memory()
    h, w = (size * vae.downsampling for size in config.latent_size)
    lines = [
        f"{cfg.checkpoint}: depth {config.depth}, width {config.hidden_size}, {config.num_heads} heads, "
        f"patch {config.patch_size}, condition {config.condition or 'none'}",
        f"{cfg.num_samples} videos of {config.num_frames} frames, {w} x {h} pixels, {cfg.sampling_steps} "
        f"{cfg.solver} steps, guidance {cfg.guidance_scale:g}, "
        f"on {device.current().target} in {cfg.dtype}",
        f"memory: about {need / GIB:.1f} GiB" + (f" of {free / GIB:.1f} GiB free" if free else ""),
    ]
    if free and need > free:
        lines.append("this does not fit: take a smaller batch, image or model, or another machine")
    return "\n".join(lines)


def estimate_memory(cfg: SampleConfig, config: LatteConfig, vae: AutoencoderConfig) -> int:
    """Return about how many bytes sampling takes at its peak: weights, a block, and the decoder.

    The run time keeps the memory of the denoising steps while it decodes.
    """
    b = cfg.batch_size * (1 if cfg.guidance_scale == 1 else 2) if device.current().batches_videos else 1
    d, patches, frames = config.hidden_size, config.grid[0] * config.grid[1], config.num_frames
    text = math.prod(CLIP_TEXT) * d if config.condition == "text" else 0
    weights = 4 * (config.depth * 18 * d * d + 2 * d * d + 256 * d + text)
    scores = b * config.num_heads * patches * frames * max(patches, frames)
    block = b * patches * frames * d * BYTES_TOKEN + scores * BYTES_SCORE
    slice_frames = min(cfg.vae_slice or device.current().frames_per_slice, b * frames)
    pixels = config.latent_size[0] * config.latent_size[1] * vae.downsampling**2
    decoder = slice_frames * pixels * vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)] * BYTES_PIXEL
    return BYTES_BASE + weights + block + decoder
