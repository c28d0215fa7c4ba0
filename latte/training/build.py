"""From options to a training: data, autoencoder, network and compiled step, and a description of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from latte.components.codec import Codec
from latte.components.loading import load
from latte.data.cache import Cache, read_cache
from latte.data.check import check_files
from latte.data.dataset import PixelStore, Store, VideoDataset
from latte.data.index import Index, list_records, nested
from latte.data.loader import TrainingSource
from latte.errors import UserError
from latte.inference import estimate
from latte.inference.inputs import DEFAULT_FRAMES, DEFAULT_SIZE, trained_config
from latte.runtime import collective, device
from latte.runtime.profiling import check_span
from latte.training.captions import captions_for, clip_captions
from latte.training.held_out import of_source, split
from latte.training.optim import learning_rates
from latte.training.quality import Quality
from latte.training.start import networks, read_start, teacher_of
from latte.training.step import StepOptions, TrainStep

if TYPE_CHECKING:
    import numpy as np

    from latte.config import TrainConfig
    from latte.models.autoencoder import AutoencoderConfig
    from latte.models.latte import LatteConfig
    from latte.models.latte_t2v import LatteT2VConfig
    from latte.training.update import CompiledStep


log = logging.getLogger("latte")


@dataclass
class Training:
    """Everything that a run needs; if `encodes`, pixels go through `encode` before the step."""

    config: LatteConfig | LatteT2VConfig
    num_frames: int
    codec: Codec
    source: TrainingSource
    step: TrainStep
    call: CompiledStep
    encodes: bool
    batch: int  # videos per step, over all ranks and accumulated batches
    total_steps: int
    metadata: dict[str, str]  # for checkpoints
    held_out: TrainingSource | None = None  # the clips to measure the loss on
    quality: Quality | None = None  # compares samples of the checkpoints with real videos

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return the moments (B, F, 2 L, h, w) of pixels (B, F, 3, H, W)."""
        frames = pixels.reshape(-1, *pixels.shape[2:])
        start, stop, each = collective.share_rows(len(frames), "sequence")
        own = self.codec.moments(frames[start : max(stop, start + 1)])[: stop - start]
        moments = collective.join_rows(own, len(frames), each, "sequence")
        return moments.reshape(*pixels.shape[:2], *moments.shape[1:])


def build(cfg: TrainConfig) -> Training:
    """Read the index of the data set, the autoencoder and the weights to start from; nothing is compiled yet.

    Raises UserError if options, data and weights do not fit together.
    """
    start = read_start(cfg)
    cfg, compute = start.cfg, device.compute_dtype(start.cfg.dtype)
    size, frames = cfg.image_size or DEFAULT_SIZE, cfg.num_frames or DEFAULT_FRAMES
    vae = load(start.vae)
    codec = Codec(vae, cfg.sd_scale_factor, cfg.vae_slice, dtype=cfg.vae_dtype)
    store, index = _videos(cfg, codec, size)
    used, kept = split(len(index.records), cfg.held_out)
    quality = Quality(cfg, frames) if cfg.eval_metrics else None
    dataset = VideoDataset(index, frames, store, cfg, cfg.seed, used)
    if cfg.dry_run and not cfg.cache_folder and device.current().rank == 0:
        listed_by = f"csv_path {cfg.csv_path}" if cfg.data_layout == "csv" else "its files"
        check_files(dataset, cfg.max_bad_fraction, f"data_folder {cfg.data_folder} and {listed_by}")
    batch = cfg.train_batch_size * cfg.gradient_accumulation_steps * device.current().data_ranks
    total = cfg.max_steps or cfg.epochs * len(dataset) // batch
    if total < 1:
        raise UserError(f"{len(dataset)} videos are fewer than the {batch} per step; make train_batch_size smaller")
    check_span(cfg.profile_span, total)
    flash = device.use_flash_attention(cfg.enable_flash_attention, compute, training=True)
    config = start.config or _network_config(cfg, size, vae.config)
    if vae.config.latent_channels != config.in_channels:
        raise UserError(
            f"vae_checkpoint {cfg.vae_checkpoint} has {vae.config.latent_channels} latent channels, but the network "
            f"takes {config.in_channels}; name the autoencoder that it was trained with"
        )
    shape = config.latent_shape(frames, size, size, vae.config.downsampling)
    source = _source(cfg, config, dataset, shape)  # before the networks: then the text encoder's memory is free again
    net, ema, metadata = networks(start, config, compute, flash)
    if cfg.use_recompute:
        for number, block in enumerate(net.blocks):
            if number // 2 % cfg.recompute_every == 0:  # pairs of a block over patches and one over frames
                block.recompute()
    # On a CPU the run time frees no memory inside a graph: there the autoencoder runs before the step, by slices.
    in_step = device.current().compile_scope == "step" and not cfg.cache_folder
    for weight in vae.get_parameters():
        weight.requires_grad = False
    options = _step_options(cfg, codec.scale_factor)
    rates = learning_rates(cfg.scheduler, cfg.start_learning_rate, cfg.end_learning_rate, cfg.warmup_steps, total)
    teacher = teacher_of(start, net) if cfg.distill_steps else None
    step = TrainStep(net, ema, vae if in_step else None, rates, options, teacher)
    call = step.as_function()
    encodes = not (in_step or cfg.cache_folder)
    held_out = of_source(source, kept) if cfg.eval_every and cfg.held_out else None
    return Training(net.config, frames, codec, source, step, call, encodes, batch, total, metadata, held_out, quality)


def _videos(cfg: TrainConfig, codec: Codec, size: int) -> tuple[Store, Index]:
    """Return the store that videos are read from, and their index; raises UserError as `list_records` does."""
    if cfg.cache_folder is None:
        return PixelStore(size, cfg.transform), list_records(cfg)
    cache = open_cache(cfg, cfg.cache_folder, codec.cache_settings(size))
    return cache, cache.index()


def open_cache(cfg: TrainConfig, folder: str, settings: dict[str, Any]) -> Cache:
    """Return the cache in a folder; raises UserError if it was made with other settings or options."""
    cache = read_cache(folder)
    cache.check(settings | {"transform": cfg.transform, "cache_dtype": cfg.cache_dtype})
    if doubt := cache.reader_doubt():
        log.warning("%s", doubt)
    if cfg.random_flip:
        cache.check({"flip": True})
    if cfg.frame_list:
        raise UserError("frame_list names image files, but cache_folder has none; leave frame_list out")
    return cache


def _network_config(cfg: TrainConfig, size: int, vae: AutoencoderConfig) -> LatteConfig:
    if size % vae.downsampling:
        raise UserError(f"image_size {size} is not a multiple of the autoencoder's {vae.downsampling}")
    return trained_config(cfg, vae)


def _source(
    cfg: TrainConfig, config: LatteConfig | LatteT2VConfig, dataset: VideoDataset, shape: tuple[int, int, int, int]
) -> TrainingSource:
    """Return the samples with the conditions of the network; shape: (F, C, h, w) of a video's latents.

    Raises UserError if the data do not have the conditions that the network needs.
    """
    records, kind = dataset.index.records, config.conditioning
    classes = text = captions = None
    if kind == "class":
        unlabelled = cfg.data_layout == "video_files" or (cfg.data_layout == "csv" and not cfg.class_column)
        if unlabelled and not cfg.cache_folder:
            raise UserError(
                f"condition is class, but the data has no classes: data_layout is {cfg.data_layout}; set data_layout: "
                "class_folders, or data_layout: csv with a class_column"
            )
        if cfg.data_layout == "frame_folders" and (pair := nested([record.path for record in records])):
            raise UserError(
                f"{pair[0]} holds images and, in {pair[1]}, another video, so that it has a class of its own and "
                "shifts the numbers of others; move its images away"
            )
        classes, found = config.num_classes, 1 + max(record.label for record in records)
        if classes and found > classes:
            raise UserError(f"num_classes is {classes}, but data_folder {cfg.data_folder} has classes 0 to {found - 1}")
    said = [record.caption for record in (*records, *dataset.index.images)]
    if kind == "text":
        text = clip_captions(cfg, said)
    if kind == "prompt":
        captions = captions_for(cfg, said, config.text_width)
    shape = (shape[0] + cfg.images_per_video, *shape[1:])
    return TrainingSource(
        dataset,
        shape,
        cfg.seed,
        classes,
        text,
        cfg.class_dropout_prob,
        captions=captions,
        condition_frames=cfg.condition_frames,
    )


def _step_options(cfg: TrainConfig, scale_factor: float) -> StepOptions:
    scaled = cfg.dtype == "fp16"
    return StepOptions(
        accumulation=cfg.gradient_accumulation_steps,
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.optim_eps,
        weight_decay=cfg.weight_decay,
        max_grad_norm=cfg.max_grad_norm if cfg.clip_grad else math.inf,
        start_clip_step=cfg.start_clip_step,
        ema_decay=cfg.ema_decay,
        loss_scale=cfg.init_loss_scale if scaled else 1.0,
        loss_scale_window=cfg.loss_scale_window if scaled and cfg.loss_scaler_type == "dynamic" else 0,
        scale_factor=scale_factor,
        images=cfg.images_per_video,
        zero_stage=cfg.zero_stage,
        offload=cfg.offload_optimizer,
        loss_weighting=cfg.loss_weighting,
        distill_steps=cfg.distill_steps,
    )


def describe(cfg: TrainConfig, training: Training) -> str:
    """Return lines on the network, the data and the steps of a training, and a doubt if there is one; reads one sample.

    Raises UserError if no sample can be read.
    """
    source, step, config = training.source, training.step, training.config
    source[0]
    kept, evaluated = len(source.dataset.index.records) - len(source.dataset), ""
    if training.held_out:
        training.held_out[0]
        evaluated = f", {cfg.eval_clips} clips of them measured every {cfg.eval_every} steps"
    compared = ""
    if training.quality:
        compared = f"; {', '.join(cfg.eval_metrics)} of samples with {cfg.sample_steps} steps every {cfg.eval_every}"
    shape = (training.num_frames + cfg.images_per_video, *source.dataset.store.frame_shape)
    per_epoch = len(source.dataset) / training.batch
    total, trained = step.total, step.trained
    tokens = training.num_frames * math.prod(source.latent_shape[2:]) // config.patch_size**2
    return "\n".join(
        (
            f"network: {config.describe()}: {total:,} parameters, {trained:,} of them trained "
            f"({cfg.trainable}), {tokens} tokens per video",
            f"data: {len(source.dataset)} videos in {cfg.cache_folder or cfg.data_folder}, "
            + (f"{len(source.dataset.index.classes)} classes, " if config.conditioning == "class" else "")
            + f"{'x'.join(map(str, shape))} per sample"
            + (f"; {kept} more are held out{evaluated}" if kept else "")
            + compared,
            f"steps: {training.total_steps} of {training.batch} videos, {per_epoch:.1f} steps per epoch, on "
            f"{device.current().world_size} x {device.current().target} in {cfg.dtype}",
            *_doubt(cfg, training.total_steps),
        )
    )


def _doubt(cfg: TrainConfig, steps: int) -> list[str]:
    """Return a line if the EMA weights would end as they began, because the run is too short for ema_decay."""
    old = cfg.ema_decay**steps if cfg.use_ema else 0.0
    if old <= 0.5:
        return []
    better = f"; --ema_decay {1 - 10 / steps:.2g} would follow" if steps > 20 else ""
    return [
        f"EMA weights: samples are made with them, and after {steps} steps with ema_decay {cfg.ema_decay:g} they are "
        f"still {old:.0%} those of the start{better}"
    ]


def predict(cfg: TrainConfig, training: Training) -> str:
    """Return the lines on what a training is predicted to take on this device; see `latte.inference.estimate`."""
    shape = (training.num_frames, *training.source.latent_shape[1:])
    work = estimate.training(cfg, training.config, shape, training.codec.vae.config, training.step.trained)
    return estimate.report_here(
        replace(work, total_steps=training.total_steps, vae_slice=training.codec.frames_per_slice)
    )
