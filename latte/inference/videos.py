"""The work of sample.py: check the options, build the pipeline, make and save the videos, estimate the memory."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from latte.components import runs
from latte.components.folders import Parts, is_t2v_folder, read_scheduler
from latte.components.loading import Weights, read
from latte.components.text_encoder import encoder_bytes, load_tokenizer, places, read_encoder
from latte.errors import UserError
from latte.inference import caches, estimate, finished
from latte.inference.inputs import (
    Config,
    asked_solver,
    asked_steps,
    check_inputs,
    check_interval,
    check_options,
    choose_inputs,
    choose_solver,
    guidance,
    latent_shape,
    read_network,
    stem,
)
from latte.inference.pipeline import LattePipeline
from latte.io.atomic import check_writable
from latte.io.listing import GRID
from latte.io.video import fit, grid, read_any, save_png, save_video
from latte.runtime import collective, device
from latte.runtime.profiling import Profile, check_span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latte.config import SampleConfig
    from latte.diffusion.solvers import Solver
    from latte.inference.finished import Target
    from latte.inference.pipeline import StepCallback

log = logging.getLogger("latte")
GIB = 2**30
IN_GRID = 16  # videos, at most
STRENGTH = 0.6  # with conditioning frames that a network was not trained to follow


@dataclass(frozen=True)
class Plan:
    """The files of a pipeline, read but not loaded, after all checks against the options."""

    parts: Parts
    network: Weights
    vae: Weights
    text_encoder: Weights | None  # for prompts only
    solver: Solver
    walk: caches.Walk
    frames: np.ndarray | None  # of init_frames (F, H, W, 3) uint8


def check(cfg: SampleConfig) -> Plan:
    """Check options and files and return what was read; raises UserError for everything that would stop the run."""
    checkpoint = cfg.require_checkpoint()
    text = is_t2v_folder(checkpoint)
    check_options(cfg, text)
    device.autoencoder_dtype(cfg.vae_dtype)
    frames = _init_frames(cfg)  # before the weights, which take longer
    parts = runs.find(checkpoint, cfg.vae_checkpoint, cfg.enable_vae_temporal_decoder, cfg.text_encoder_path)
    vae = read(parts.vae, "autoencoder")
    network = read_network(cfg, parts, vae.config)
    config, encoder = network.config, None
    solver = choose_solver(read_scheduler(parts.scheduler), config.default_solver, asked_solver(cfg), cfg.eta)
    strength = strength_of(cfg, config)
    scale = guidance(cfg, config)
    walk = caches.Walk.of(solver, asked_steps(cfg, config), strength, config.depth, scale != 1)
    check_span(cfg.profile_span, walk.steps)
    caches.choose(cfg.cache, cfg.feature_cache, walk)
    check_interval(cfg.guidance_interval, scale)
    if cfg.cfg_parallel and scale == 1:
        raise UserError(
            "cfg_parallel shares the halves of guidance, and there is none: set guidance_scale, or leave it out"
        )
    if vae.config.latent_channels != config.in_channels:
        raise UserError(
            f"{parts.vae} has {vae.config.latent_channels} latent channels, but {cfg.checkpoint} "
            f"takes {config.in_channels}; use the autoencoder that the network was trained with"
        )
    check_inputs(cfg, config)
    given_frames(cfg, config, frames, latent_shape(cfg, config, vae.config.downsampling), vae.config.downsampling)
    if parts.prompts:
        load_tokenizer(parts.prompts / "tokenizer")
        encoder = read(parts.prompts / "text_encoder", "t5")
    elif cfg.prompts:
        if parts.clip is None:
            raise UserError(
                f"prompts need CLIP's text encoder, and {cfg.checkpoint} names none; give text_encoder_path"
            )
        load_tokenizer(places(parts.clip, "clip")[0], "clip")
        encoder = read_encoder(parts.clip, "clip", config.text_width)
    check_writable(cfg.output_path, "output_path")
    return Plan(parts, network, vae, encoder, solver, walk, frames)


def build_pipeline(cfg: SampleConfig, plan: Plan | None = None) -> LattePipeline:
    """Check the options, unless there is a plan, and load the pipeline; raises UserError as `check` does."""
    plan = plan or check(cfg)
    return LattePipeline.from_parts(
        plan.parts,
        plan.network,
        plan.vae,
        dtype=cfg.dtype,
        quantize=cfg.quantize,
        enable_flash_attention=cfg.enable_flash_attention,
        patch_embedder=cfg.patch_embedder,
        vae_slice=cfg.vae_slice,
        vae_tile=cfg.vae_tile,
        vae_dtype=cfg.vae_dtype,
        sd_scale_factor=cfg.sd_scale_factor,
    )


def video_numbers(cfg: SampleConfig) -> list[int]:
    """Return the numbers of the videos that this rank makes, counted from 0; video k has the seed `seed` + k.

    Ranks that share frames or guidance make the same ones together.
    """
    here = device.current()
    return list(range(here.data_rank, cfg.num_samples * len(cfg.prompts or [None]), here.data_ranks))


def _init_frames(cfg: SampleConfig) -> np.ndarray | None:
    """Return the frames (N, H, W, 3) uint8 of init_frames, if it is set; raises UserError if they cannot be read."""
    return read_any(cfg.init_frames) if cfg.init_frames else None


def strength_of(cfg: SampleConfig, config: Config) -> float:
    """Return how far other frames may leave the conditioning frames: 1 without any, or if the network follows them."""
    if not cfg.init_frames:
        return 1.0
    follows = cfg.init_count <= config.condition_frames
    return cfg.init_strength or (1.0 if follows else STRENGTH)


def given_frames(
    cfg: SampleConfig, config: Config, given: np.ndarray | None, shape: tuple[int, int, int, int], side: int
) -> dict[str, Any]:
    """Return the pipeline's arguments for conditioning frames, resized to the videos.

    given: the frames (N, H, W, 3) uint8 of init_frames; shape: (F, C, h, w) of a video's latents; side: pixels per
    latent. Raises UserError if init_count does not fit.
    """
    if given is None:
        return {}
    if not cfg.init_count <= min(len(given), shape[0] - 1):
        raise UserError(
            f"init_count is {cfg.init_count}, but must be at most {min(len(given), shape[0] - 1)}: "
            f"{cfg.init_frames} has {len(given)} frames, and a video has {shape[0]}"
        )
    return {
        "frames": fit(given[-cfg.init_count :], shape[2] * side, shape[3] * side),
        "strength": strength_of(cfg, config),
    }


def find_targets(cfg: SampleConfig, plan: Plan) -> list[Target]:
    """Return this rank's videos, with those that are there already, and keep beside them what they are made from.

    Raises UserError if files of something else are in the way and `existing` is refuse.
    """
    made_from = finished.facts(cfg, plan)
    targets = _agreed(finished.targets(cfg, plan, video_numbers(cfg), made_from))
    said = finished.check_others(cfg, plan, targets, made_from)
    if device.current().rank == 0 and not cfg.dry_run:
        for sentence in said:
            log.info(sentence)
        finished.keep(cfg, made_from)
    return targets


def _agreed(targets: list[Target]) -> list[Target]:
    """Return the videos with those marked as done that the first of the ranks with the same videos has found."""
    done = collective.gather_arrays(np.array([target.done for target in targets], np.float32), "video")[0]
    return [replace(target, done=bool(there)) for target, there in zip(targets, done, strict=True)]


def run(
    cfg: SampleConfig, pipe: LattePipeline, targets: Sequence[Target] = (), follow: StepCallback | None = None
) -> tuple[list[Path], dict[int, np.ndarray]]:
    """Sample and save those of this rank's videos that are not there.

    targets: what `find_targets` returns; without them all videos are made. follow: a callback_on_step_end. Returns the
    files, and those of the videos (F, H, W, 3) uint8 that belong into a grid, by number.
    """
    here, folder = device.current(), Path(cfg.output_path)
    marks = {target.number: target.mark for target in targets}
    numbers = [target.number for target in targets if not target.done] if targets else video_numbers(cfg)
    side = pipe.codec.vae.config.downsampling
    shape = latent_shape(cfg, pipe.net.config, side)
    given = given_frames(cfg, pipe.net.config, _init_frames(cfg), shape, side) | {"cache": caches.opened(cfg.cache)}
    if shape[0] == 1 and cfg.output_format != ["png"]:
        log.info("videos of one frame are saved as .png, whatever output_format says")
    files: list[Path] = []
    first = [target.number for target in targets[:IN_GRID]]
    kept: dict[int, np.ndarray] = {}
    bar = tqdm(
        desc=f"videos of rank 0 of {here.data_ranks}" if here.data_ranks > 1 else "videos",
        initial=len(targets) - len(numbers) if targets else 0,
        total=len(targets) or len(numbers),
        unit="video",
        disable=here.rank > 0,
    )
    profile = Profile(cfg.profile_span, folder)
    with bar as done, logging_redirect_tqdm([log]), contextlib.closing(profile):
        profile.begin(0)
        for start in range(0, len(numbers), cfg.batch_size):
            batch = numbers[start : start + cfg.batch_size]
            names, made = _make(cfg, pipe, batch, given, follow or (profile.step if cfg.profile else None))
            for k, name, video in zip(batch, names, made, strict=True) if here.leads else ():
                files += _save(video, folder / name, cfg.output_format, cfg.fps, marks.get(k, ""))
                kept |= {k: video} if k in first else {}
                done.update()
    return files, kept


def save_grid(cfg: SampleConfig, plan: Plan, targets: Sequence[Target], kept: Mapping[int, np.ndarray]) -> list[Path]:
    """Write a grid of the first of this rank's videos, if there are several and one of them is new; return its files.

    kept: new ones by number; those of an earlier start are read from their files, with the losses of their format.
    """
    first, folder = targets[:IN_GRID], Path(cfg.output_path)
    if len(first) < 2:
        return []
    rank = f"-rank{device.current().data_rank}" if device.current().data_ranks > 1 else ""
    name = f"{GRID}{cfg.seed + first[0].number}-{cfg.seed + first[-1].number}{rank}"
    formats = [form for form in cfg.output_format if form != "png"] or ["mp4"]
    if not kept and any(folder.glob(f"{name}.*")):
        return []
    frames = latent_shape(cfg, plan.network.config, plan.vae.config.downsampling)[0]
    videos = [
        kept[target.number] if target.number in kept else read_any(finished.files_of(cfg, target.name, frames)[0])
        for target in first
    ]
    board = grid(np.stack(videos), columns=math.ceil(math.sqrt(len(videos))))
    return _save(board, folder / name, formats, cfg.fps)


def _save(video: np.ndarray, path: Path, formats: Sequence[str], fps: int, mark: str = "") -> list[Path]:
    """Write a video (F, H, W, 3) uint8 in each format, one frame as an image, with its mark, and return the files.

    Raises UserError if a file cannot be written.
    """
    if len(video) > 1:
        return save_video(video, path, formats, fps, mark)
    file = path.with_name(f"{path.name}.png")
    save_png(video[0], file, mark)
    return [file]


def _make(
    cfg: SampleConfig, pipe: LattePipeline, batch: list[int], given: dict[str, Any], follow: StepCallback | None
) -> tuple[list[str], np.ndarray]:
    """Return the file names of these videos, without suffixes, and the videos (B, F, H, W, 3) uint8.

    given: the arguments that all batches share: those for conditioning frames, see `given_frames`, and the cache.
    """
    config, side = pipe.net.config, pipe.codec.vae.config.downsampling
    shape = latent_shape(cfg, config, side)
    shown = choose_inputs(cfg, config, batch)
    made = pipe(
        **shown,
        **given,
        seed=[cfg.seed + k for k in batch],
        video_length=shape[0],
        height=shape[2] * side,
        width=shape[3] * side,
        num_inference_steps=cfg.sampling_steps,
        sampler=asked_solver(cfg),
        eta=cfg.eta,
        guidance_scale=cfg.guidance_scale,
        feature_cache=cfg.feature_cache,
        guidance_interval=cfg.guidance_interval,
        window=cfg.window,
        window_stride=cfg.window_stride,
        loop=cfg.loop,
        shared_noise=cfg.shared_noise,
        autoregressive=cfg.autoregressive,
        output_type="uint8",
        progress=device.current().rank == 0,
        callback_on_step_end=follow,
    ).frames
    return [stem(k, cfg.seed + k, shape[0], shown, row) for row, k in enumerate(batch)], made


def summary(pipe: LattePipeline) -> str:
    """Return one line with the seconds per network call, the seconds to compile and the peak memory in GiB."""
    seconds = pipe.latents.step_seconds
    first, later = seconds[0], seconds[1:]
    call = float(np.median(later)) if later else first
    compiling = f", {max(first - call, 0):.1f} s to compile the network" if later else " (with the time to compile)"
    skipped = f", blocks left out in {pipe.latents.skipped:.0%} of the passes" if pipe.latents.skipped else ""
    return f"{call:.3f} s per network call{compiling}{skipped}, peak memory {device.peak_memory() / GIB:.2f} GiB"


def describe(cfg: SampleConfig, plan: Plan) -> str:
    """Return two lines on the network and the videos of a run."""
    config, vae = plan.network.config, plan.vae.config
    frames, _, h, w = latent_shape(cfg, config, vae.downsampling)
    return (
        f"network: {cfg.checkpoint}, {config.describe()}\n"
        f"plan: {cfg.num_samples * len(cfg.prompts or [None])} videos of {frames} frames, {w * vae.downsampling} x "
        f"{h * vae.downsampling} pixels, {asked_steps(cfg, config)} "
        f"{plan.solver.name} steps, guidance "
        f"{guidance(cfg, config):g}, on {device.current().target} in {cfg.dtype}, to {cfg.output_path}"
    )


def dry_run(cfg: SampleConfig) -> str:
    """Check options and files without loading them, and describe the run and the memory it needs.

    Raises UserError as `check` does; `build_pipeline` makes the same checks.
    """
    plan = check(cfg)
    config, vae, encoder = plan.network.config, plan.vae.config, (0, 0)
    if plan.text_encoder:
        encoder = encoder_bytes(plan.text_encoder, device.compute_dtype(cfg.dtype), cfg.quantize)
    lines = [describe(cfg, plan), estimate.report_here(estimate.sampling(cfg, config, vae, plan.solver, encoder))]
    is_there = Path(cfg.output_path).is_dir()  # or else no weights need to be read
    if made := sum(target.done for target in find_targets(cfg, plan)) if is_there else 0:
        lines.append(f"{made} of this rank's videos are in {cfg.output_path} already, and are kept")
    return "\n".join(lines)
