"""From options to what training needs: data, autoencoder, network, compiled step; and a description of it all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from latte.components.codec import Codec
from latte.components.loading import load_vae, open_weights
from latte.config import TEXT_TO_VIDEO, TrainConfig
from latte.data.cache import TEXT, Cache, read_cache
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.index import list_records
from latte.data.loader import TrainingSource, read_text
from latte.errors import UserError
from latte.models.autoencoder import AutoencoderConfig
from latte.models.latte import Latte, LatteConfig, adapt_positions, named_sizes
from latte.models.latte_t2v import LatteT2VConfig
from latte.models.precision import prepare
from latte.runtime import device, graphs
from latte.training import text_to_video
from latte.training.optim import learning_rates
from latte.training.step import StepOptions, TrainStep
from latte.weights.files import CONFIG
from latte.weights.match import load_state

log = logging.getLogger("latte")
DEFAULTS = {"model_name": "Latte-XL/2", "image_size": 256, "num_frames": 16}
CONDITION_PARTS = ("y_embedder.", "text_embedding_projection.")  # what may be missing in the weights to start from


@dataclass
class Training:
    """All that a run needs; `encode` turns a batch of pixels into moments where the step itself does not."""

    config: LatteConfig | LatteT2VConfig
    num_frames: int
    codec: Codec
    source: TrainingSource
    step: TrainStep
    call: Callable[..., ms.Tensor]
    encodes: bool
    batch: int  # videos of all ranks and accumulated batches in a step
    total_steps: int
    metadata: dict[str, str]  # of checkpoints

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Return the moments (B, F, 2 L, h, w) of pixels (B, F, 3, H, W)."""
        moments = self.codec.moments(pixels.reshape(-1, *pixels.shape[2:]))
        return moments.reshape(*pixels.shape[:2], *moments.shape[1:])


def build(cfg: TrainConfig) -> Training:
    """Read the data set's index, the autoencoder and the weights to start from, and compile nothing yet.

    Raises UserError for whatever does not fit.
    """
    cfg = text_to_video.fill_from_folder(cfg)
    if not cfg.vae_checkpoint:
        raise UserError("vae_checkpoint is not set; name the autoencoder in the YAML or with --vae_checkpoint")
    compute = device.compute_dtype(cfg.dtype)
    chosen = {name: getattr(cfg, name) or default for name, default in DEFAULTS.items()}
    index = None if cfg.cache_folder else list_records(cfg)  # before what takes longer
    vae = load_vae(cfg.vae_checkpoint)
    codec = Codec(vae, cfg.sd_scale_factor, cfg.vae_slice)
    store = PixelStore(chosen["image_size"], cfg.transform)
    if cfg.cache_folder:
        store = open_cache(cfg, codec.cache_settings(chosen["image_size"]))
        index = store.index()
    dataset = VideoDataset(index, chosen["num_frames"], store, cfg, cfg.seed)
    batch = cfg.train_batch_size * cfg.gradient_accumulation_steps * device.current().world_size
    total = cfg.max_steps or cfg.epochs * len(dataset) // batch
    if total < 1:
        raise UserError(f"{len(dataset)} videos are fewer than the {batch} of a step; make train_batch_size smaller")
    flash = device.use_flash_attention(cfg.enable_flash_attention, compute)
    if cfg.model_name == TEXT_TO_VIDEO:  # the captions first, so that the text encoder's memory is free again
        source = _captioned_source(cfg, dataset, vae.config)
        net, ema, metadata = text_to_video.networks(cfg, compute, flash)
    else:
        config = _network_config(cfg, chosen, vae.config.downsampling, vae.config.latent_channels)
        source = _source(cfg, config, dataset)
        net, ema, metadata = _networks(cfg, config, compute, flash)
    if cfg.use_recompute:
        for block in net.blocks:
            block.recompute()
    # The run time of a CPU frees nothing inside a graph: there the autoencoder runs before the step, slice by slice.
    in_step = device.current().compile_scope == "step" and not cfg.cache_folder
    for weight in vae.get_parameters():
        weight.requires_grad = False
    options = _step_options(cfg, codec.scale_factor)
    rates = learning_rates(cfg.scheduler, cfg.start_learning_rate, cfg.end_learning_rate, cfg.warmup_steps, total)
    step = TrainStep(net, ema, vae if in_step else None, rates, options)
    call = graphs.compile_training(step.construct)
    encodes = not (in_step or cfg.cache_folder)
    return Training(net.config, chosen["num_frames"], codec, source, step, call, encodes, batch, total, metadata)


def _networks(
    cfg: TrainConfig, config: LatteConfig, compute: ms.Type, flash: bool
) -> tuple[Latte, Latte | None, dict[str, str]]:
    """Return the network to train, the one that averages its weights, and what checkpoints say about them."""
    nets = [Latte(config, cfg.patch_embedder, flash, cfg.seed, compute) for _ in range(2 if cfg.use_ema else 1)]
    for net in nets:
        if cfg.pretrained_model_path:
            start_from(net, cfg.pretrained_model_path)
        prepare(net, for_training=True)
    return nets[0], nets[1] if cfg.use_ema else None, {CONFIG: json.dumps(asdict(config))}


def open_cache(cfg: TrainConfig, settings: dict[str, Any]) -> Cache:
    """Return the cache that cache_folder names; raises UserError if it was made with other settings or options."""
    cache = read_cache(cfg.cache_folder)
    cache.check(settings | {"transform": cfg.transform, "cache_dtype": cfg.cache_dtype})
    if cfg.random_flip:
        cache.check({"flip": True})
    if cfg.frame_list:
        raise UserError("frame_list names image files, but cache_folder has none; leave frame_list out")
    return cache


def _network_config(cfg: TrainConfig, chosen: dict, downsampling: int, channels: int) -> LatteConfig:
    sizes = named_sizes(chosen["model_name"])
    asked = {name: getattr(cfg, name) for name in ("hidden_size", "depth", "num_heads", "patch_size")}
    if chosen["image_size"] % downsampling:
        raise UserError(f"image_size {chosen['image_size']} is not a multiple of the autoencoder's {downsampling}")
    if cfg.images_per_video and cfg.condition == "text":
        raise UserError("images_per_video needs condition null or class: single images have no captions")
    return LatteConfig(
        **(sizes | {name: value for name, value in asked.items() if value}),
        input_size=chosen["image_size"] // downsampling,
        num_frames=chosen["num_frames"],
        in_channels=channels,
        condition=cfg.condition,
        num_classes=cfg.num_classes,
    )


def _source(cfg: TrainConfig, config: LatteConfig, dataset: VideoDataset) -> TrainingSource:
    records = dataset.index.records
    classes = config.num_classes if config.condition == "class" else None
    found = 1 + max(record.label for record in records)
    if classes and found > classes:
        raise UserError(f"num_classes is {classes}, but data_folder {cfg.data_folder} has classes 0 to {found - 1}")
    text = None
    if config.condition == "text":
        path = cfg.text_embeddings or (cfg.cache_folder and str(Path(cfg.cache_folder) / TEXT))
        if not path:
            raise UserError("condition is text, but text_embeddings is not set; see docs/train.md")
        text = read_text(path, [record.caption for record in records])
    shape = (config.num_frames + cfg.images_per_video, config.in_channels, *config.latent_size)
    return TrainingSource(dataset, shape, cfg.seed, classes, text, cfg.class_dropout_prob)


def _captioned_source(cfg: TrainConfig, dataset: VideoDataset, vae: AutoencoderConfig) -> TrainingSource:
    captions = text_to_video.captions_for(cfg, [record.caption for record in dataset.index.records])
    side = cfg.image_size // vae.downsampling
    shape = (cfg.num_frames, vae.latent_channels, side, side)
    return TrainingSource(dataset, shape, cfg.seed, dropout=cfg.class_dropout_prob, captions=captions)


def _step_options(cfg: TrainConfig, scale_factor: float) -> StepOptions:
    scaled = cfg.dtype == "fp16"
    return StepOptions(
        accumulation=cfg.gradient_accumulation_steps,
        betas=tuple(cfg.betas),
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
    )


def start_from(net: Latte, path: str) -> None:
    """Load weights to start from: a Latte's, also of another size or condition, or an image DiT's.

    Position embeddings are fitted; the embedding of labels or text stays as initialised where the file has none that
    fits, which is said once. Raises UserError for anything else that does not fit.
    """
    own = dict(net.parameters_and_names())
    tensors = adapt_positions(open_weights(path, "latte")[0].tensors, net.config)
    fresh = ["temp_embed"] if "temp_embed" not in tensors else []  # an image model
    for name, weight in own.items():
        if name.startswith(CONDITION_PARTS) and (name not in tensors or tensors[name].shape != weight.shape):
            fresh.append(name)
    kept = {name: values for name, values in tensors.items() if name in own or not name.startswith(CONDITION_PARTS)}
    if fresh:
        device.warn_once(f"{path} has no fitting {', '.join(fresh)}: these start from scratch")
    load_state(net, kept | {name: own[name].asnumpy() for name in fresh}, path)


def describe(cfg: TrainConfig, training: Training) -> str:
    """Return what will be trained, on what, for how long; reads one sample."""
    source, net = training.source, training.step.net
    source[0]
    shape = (training.num_frames + cfg.images_per_video, *source.dataset.store.frame_shape)
    per_epoch = len(source.dataset) / training.batch
    is_t2v = cfg.model_name == TEXT_TO_VIDEO
    return "\n".join(
        (
            text_to_video.describe(net, cfg.trainable) if is_t2v else _describe_network(training.config, net),
            f"data: {len(source.dataset)} videos of {cfg.cache_folder or cfg.data_folder}, "
            f"{len(source.dataset.index.classes)} classes; a sample is {'x'.join(map(str, shape))}",
            f"steps: {training.total_steps} of {training.batch} videos, {per_epoch:.1f} an epoch, on "
            f"{device.current().world_size} x {device.current().target} in {cfg.dtype}",
        )
    )


def _describe_network(config: LatteConfig, net: Latte) -> str:
    numbers = sum(math.prod(weight.shape) for weight in net.get_parameters())
    return (
        f"network: depth {config.depth}, width {config.hidden_size}, {config.num_heads} heads, patch "
        f"{config.patch_size}, condition {config.condition or 'none'}: {numbers:,} numbers, "
        f"{config.num_frames * math.prod(config.grid)} tokens"
    )
