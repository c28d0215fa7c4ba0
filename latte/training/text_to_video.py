"""Training of LatteT2V: what its folder says, its networks, and the embeddings of its captions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import mindspore as ms
import numpy as np
from tqdm import tqdm

from latte.components.folders import is_t2v_folder
from latte.components.loading import check, read
from latte.components.text_encoder import MAX_LENGTH, VOCABULARIES, load_text_encoder
from latte.config import TEXT_TO_VIDEO, TrainConfig
from latte.data.cache import TEXT
from latte.data.text_embeddings import Captions, read_captions
from latte.errors import UserError
from latte.models.adapters import choose_trained, share_frozen_weights
from latte.models.latte_t2v import FIXED, LatteT2V
from latte.models.precision import prepare
from latte.runtime import device
from latte.weights import lora
from latte.weights.files import CONFIG
from latte.weights.fingerprint import base_fingerprint
from latte.weights.match import load_state

log = logging.getLogger("latte")
Config = TypeVar("Config", bound=TrainConfig)
TRANSFORMER, VAE, ENCODER = "transformer", "vae", "text_encoder"
PROMPTS_AT_ONCE = 8  # of the text encoder on an accelerator; a CPU takes one


def fill_from_folder(cfg: Config) -> Config:
    """Return the options with what the folder of the network says in place of null; other networks' stay as they are.

    pretrained_model_path becomes the transformer's folder. Raises UserError if the folder is not whole.
    """
    if cfg.model_name != TEXT_TO_VIDEO:
        if is_t2v_folder(cfg.pretrained_model_path):
            raise UserError(f"{cfg.pretrained_model_path} is a text-to-video folder; set model_name: {TEXT_TO_VIDEO}")
        return cfg
    root = Path(cfg.pretrained_model_path)
    if not root.exists():
        raise UserError(f"pretrained_model_path {root} does not exist; name the folder of a Latte-1")
    transformer = root / TRANSFORMER if is_t2v_folder(root) else root
    home = transformer.parent
    vae = cfg.vae_checkpoint or home / VAE
    if not cfg.vae_checkpoint and not vae.is_dir():
        raise UserError(f"vae_checkpoint is not set, and {home} has no folder {VAE}; name the autoencoder")
    config = check(transformer, "latte_t2v")
    downsampling = check(vae, "autoencoder").downsampling
    size = cfg.image_size or config.sample_size * downsampling
    if size % (downsampling * config.patch_size):
        pixels = downsampling * config.patch_size
        raise UserError(f"image_size {size} is not a multiple of {pixels}, the pixels of a patch of the network")
    if config.out_channels != 2 * config.in_channels:
        raise UserError(f"{transformer} predicts no variance, which the loss of this training needs")
    return dataclasses.replace(
        cfg,
        pretrained_model_path=str(transformer),
        vae_checkpoint=str(vae),
        text_encoder_path=cfg.text_encoder_path or str(home),
        image_size=size,
        num_frames=cfg.num_frames or config.video_length,
    )


def networks(cfg: TrainConfig, compute: ms.Type, flash: bool) -> tuple[LatteT2V, LatteT2V | None, dict[str, str]]:
    """Return the network to train, the one that averages its weights, and what checkpoints say about them.

    The options are those of `complete`. Frozen weights are in memory once.
    """
    path = cfg.pretrained_model_path
    found = read(path, "latte_t2v")
    tensors, config = found.tensors, found.config

    net = LatteT2V(config, cfg.patch_embedder, flash, seed=None, dtype=compute)
    load_state(net, tensors, path)
    ema = LatteT2V(config, cfg.patch_embedder, flash, seed=None, dtype=compute) if cfg.use_ema else None
    for each in filter(None, (net, ema)):
        choose_trained(each, cfg.trainable, cfg.lora_rank, cfg.lora_factor, cfg.seed)
        prepare(each, for_training=True)
    if ema:
        share_frozen_weights(ema, net)
    described = {"_class_name": "LatteTransformer3DModel", **FIXED, **dataclasses.asdict(config)}
    metadata = {CONFIG: json.dumps(described)}
    if cfg.trainable != "all":
        metadata[lora.BASE] = base_fingerprint(tensors)
    if cfg.trainable == "lora":
        metadata |= {lora.RANK: str(cfg.lora_rank), lora.ALPHA: f"{cfg.lora_alpha or cfg.lora_rank:g}", "base": path}
    return net, ema, metadata


def captions_for(cfg: TrainConfig, captions: Sequence[str]) -> Captions:
    """Return the embeddings of a data set's captions: those of its cache or, without one, made now.

    A dry run makes none. Raises UserError if there are no captions, or the embeddings do not fit the network.
    """
    _check_any(captions)
    width = check(cfg.pretrained_model_path, "latte_t2v").caption_channels  # `complete` has checked the weights
    file = cfg.text_embeddings or (cfg.cache_folder and str(Path(cfg.cache_folder) / TEXT))
    if file:
        found, _ = read_captions(file)
        if found.width != width:
            raise UserError(f"text_embeddings {file} are {found.width} wide, but the network takes {width}")
        return found.of(captions, f"text_embeddings {file}")
    check_encoder(cfg.text_encoder_path, width)
    if cfg.dry_run:
        mask = np.eye(1, MAX_LENGTH, dtype=np.int32).repeat(2, 0)  # (2, S), one token each
        blank = Captions.pack([""], [np.zeros((1, width), np.float32)] * 2, mask, np.float32)
        return blank.of([""] * len(captions), "")
    return embed(cfg.text_encoder_path, captions, cfg.dtype, np.float32).of(captions, cfg.text_encoder_path)


def embed(folder: str, captions: Sequence[str], dtype: str, stored: type) -> Captions:
    """Return the embeddings of all different captions and of the empty prompt, and give the encoder's memory back.

    `stored` is the type to keep them in. Raises UserError if the encoder cannot be read.
    """
    texts = [*sorted(set(captions)), ""]
    size = PROMPTS_AT_ONCE if device.current().batches_videos else 1
    encoder = load_text_encoder(folder, dtype)
    rows, masks = [], []
    with tqdm(total=len(texts), desc="captions", unit="text", delay=5) as bar:  # only if it takes longer
        for part in _parts(texts, size):
            values, mask = encoder.encode(part)
            rows += [text[kept > 0] for text, kept in zip(values, mask, strict=True)]
            masks.append(mask)
            bar.update(len(part))
    encoder.release()
    return Captions.pack(texts[:-1], rows, np.concatenate(masks), stored)


def store_captions(cfg: TrainConfig, captions: Sequence[str], stored: type) -> None:
    """Write the embeddings of all captions into the cache, unless they are there; the options are those of `complete`.

    Raises UserError as `captions_for` does.
    """
    _check_any(captions)
    check_encoder(cfg.text_encoder_path, check(cfg.pretrained_model_path, "latte_t2v").caption_channels)
    path, encoder = Path(cfg.cache_folder) / TEXT, encoder_fingerprint(cfg.text_encoder_path)
    if path.exists():
        there, made_by = read_captions(path)
        if made_by == encoder and there.text.dtype == stored and set(captions) <= set(there.captions):
            return
    embed(cfg.text_encoder_path, captions, cfg.dtype, stored).save(path, encoder)


def check_encoder(folder: str, width: int) -> None:
    """Raise UserError unless a folder seems to hold a tokenizer and a text encoder of this width; reads little."""
    root = Path(folder)
    config = root / ENCODER / "config.json"
    if not config.is_file() or not any((root / "tokenizer" / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"text_encoder_path {root} does not hold the folders tokenizer and {ENCODER}; name one that does"
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("d_model")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{config} is not valid; download the folder again") from None
    if found != width:
        raise UserError(f"the text encoder in {root} is {found} wide, but the network takes {width}; name its own")


def encoder_fingerprint(folder: str) -> str:
    """Return what tells one text encoder from another: a SHA-256 of its configuration, and of its files' sizes."""
    root = Path(folder)
    digest = hashlib.sha256((root / ENCODER / "config.json").read_bytes())
    for file in sorted(path for part in (ENCODER, "tokenizer") for path in (root / part).iterdir() if path.is_file()):
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def describe(net: LatteT2V, trainable: str) -> str:
    """Return a line about the network."""
    weights, config = list(net.get_parameters()), net.config
    trained = sum(weight.size for weight in weights if weight.requires_grad)
    return (
        f"network: {TEXT_TO_VIDEO}, depth 2 x {config.num_layers}, width {config.hidden_size}, {config.num_heads} "
        f"heads: {sum(weight.size for weight in weights):,} numbers, of which {trained:,} are trained ({trainable})"
    )


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _check_any(captions: Sequence[str]) -> None:
    if not any(captions):
        raise UserError(
            f"{TEXT_TO_VIDEO} learns from captions, but the data has none; set data_layout: csv and caption_column"
        )
