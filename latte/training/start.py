"""The start of a training: read each file that the options name once, and make the networks from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from latte.components import runs
from latte.components.folders import is_t2v_folder
from latte.components.loading import KINDS, Kind, Weights, open_weights, read
from latte.config import TEXT_TO_VIDEO, TrainConfig
from latte.errors import UserError
from latte.io import resources
from latte.models.adapters import choose_trained, share_frozen_weights
from latte.models.embeddings import KERNEL, resize_patches
from latte.models.latte import CHOICES, LatteConfig
from latte.models.precision import prepare
from latte.runtime import device
from latte.weights import lora
from latte.weights.files import CONFIG, StateFile
from latte.weights.fingerprint import base_fingerprint
from latte.weights.mapped import OFFICIAL
from latte.weights.match import load_state

if TYPE_CHECKING:
    import mindspore as ms

    from latte.models import Latte, LatteT2V
    from latte.models.latte_t2v import LatteT2VConfig

Options = TypeVar("Options", bound=TrainConfig)
# Options that weights know.
SIZES = ("hidden_size", "depth", "num_heads", "patch_size", *CHOICES, "num_frames", "image_size")
TRANSFORMER, VAE = KINDS["latte_t2v"].folder, KINDS["autoencoder"].folder


@dataclass(frozen=True)
class Start(Generic[Options]):
    """The options, with values from the files in place of null, and the weights in these files."""

    cfg: Options
    kind: Kind  # of the network
    vae: Weights
    weights: StateFile | None = None  # to start from; None = a random initialisation
    config: LatteT2VConfig | None = None  # of the network, if its files determine it; None = the options do


def read_start(cfg: Options) -> Start[Options]:
    """Read the weights that a training starts from, without loading them into memory.

    For text to video, pretrained_model_path becomes the transformer's folder, and options that are null get the values
    of the folder around it. Raises UserError if a file is missing, damaged or does not fit.
    """
    if cfg.model_name == TEXT_TO_VIDEO:
        return _read_folder(cfg)
    cfg = complete(cfg)
    if not cfg.vae_checkpoint:
        raise UserError("vae_checkpoint is not set; name the autoencoder in the YAML or with --vae_checkpoint")
    vae = read(cfg.vae_checkpoint, "autoencoder")
    weights = open_weights(cfg.pretrained_model_path, "latte")[0] if cfg.pretrained_model_path else None
    return Start(cfg, KINDS["latte"], vae, weights)


def complete(cfg: Options) -> Options:
    """Return the options of a training with what the Latte it starts from says in place of null.

    A folder (a run, or one with latte.* and vae.*) becomes the file of its network, and gives the autoencoder. Without
    a model_name the network has the sizes of the weights, if they are all of a Latte's; those of a DiT are not.
    Raises UserError if there is no such folder or file, or it is of another network.
    """
    if cfg.model_name == TEXT_TO_VIDEO or not cfg.pretrained_model_path:
        return cfg
    if is_t2v_folder(cfg.pretrained_model_path):
        raise UserError(f"{cfg.pretrained_model_path} is a text-to-video folder; set model_name: {TEXT_TO_VIDEO}")
    if (folder := resources.find(cfg.pretrained_model_path)).is_dir():
        parts = runs.find(folder, cfg.vae_checkpoint)
        cfg = replace(cfg, pretrained_model_path=str(parts.network), vae_checkpoint=str(parts.vae))
        cfg = replace(cfg, sd_scale_factor=parts.scale_factor if cfg.sd_scale_factor is None else cfg.sd_scale_factor)
    if cfg.model_name or not cfg.vae_checkpoint or None not in (getattr(cfg, name) for name in SIZES):
        return cfg
    state = open_weights(str(cfg.pretrained_model_path), "latte")[0]
    if "temp_embed" not in state.tensors and CONFIG not in state.metadata:
        return cfg
    # Of variants 3 and 4, which have the same names, a file without metadata does not tell.
    told = {"num_heads": cfg.num_heads, "num_frames": cfg.num_frames}
    told["variant"] = cfg.variant if cfg.variant in (3, 4) else None
    found = LatteConfig.from_weights(state.tensors, state.metadata, state.path, **told)
    sizes = {name: getattr(found, name) for name in SIZES if name != "image_size"}
    if isinstance(found.input_size, int):
        sizes["image_size"] = found.input_size * read(cfg.vae_checkpoint, "autoencoder").config.downsampling
    return replace(cfg, **{name: value for name, value in sizes.items() if getattr(cfg, name) is None})


def _read_folder(cfg: Options) -> Start[Options]:
    root = Path(cfg.pretrained_model_path or "")  # the options have checked that it is set
    if not root.exists():
        raise UserError(f"pretrained_model_path {root} does not exist; name the folder of a Latte-1; {OFFICIAL}")
    transformer = root / TRANSFORMER if is_t2v_folder(root) else root
    home = transformer.parent
    if not cfg.vae_checkpoint and not (home / VAE).is_dir():
        raise UserError(f"vae_checkpoint is not set, and {home} has no folder {VAE}; name the autoencoder")
    weights = read(transformer, "latte_t2v")
    vae = read(cfg.vae_checkpoint or home / VAE, "autoencoder")
    config, pixels = weights.config, vae.config.downsampling * weights.config.patch_size
    size = cfg.image_size or config.sample_size * vae.config.downsampling
    if size % pixels:
        raise UserError(f"image_size {size} is not a multiple of {pixels}, the pixels of a patch of the network")
    if config.out_channels != 2 * config.in_channels:
        raise UserError(f"{transformer} predicts no variance, which the training loss needs; name a network that does")
    filled = replace(
        cfg,
        pretrained_model_path=str(transformer),
        vae_checkpoint=vae.path,
        text_encoder_path=cfg.text_encoder_path or str(home),
        image_size=size,
        num_frames=cfg.num_frames or config.default_frames,
    )
    return Start(filled, weights.kind, vae, weights, config)


def networks(
    start: Start, config: LatteConfig | LatteT2VConfig, compute: ms.Type, flash: bool
) -> tuple[Latte | LatteT2V, Latte | LatteT2V | None, dict[str, str]]:
    """Return the network to train, the network of EMA weights (None without use_ema), and the metadata of checkpoints.

    Both networks share their frozen weights.
    """
    cfg = start.cfg
    # Without a seed no random numbers are drawn; they are needed only if some weights keep their initialisation.
    seed = cfg.seed if start.weights is None or start.kind.fresh else None
    net = start.kind.build(config, compute, flash, cfg.patch_embedder, seed)
    if start.weights:
        start_from(net, start.weights, start.kind.fresh)
    ema = start.kind.build(config, compute, flash, cfg.patch_embedder) if cfg.use_ema else None
    for each in filter(None, (net, ema)):
        choose_trained(each, cfg.trainable, cfg.lora_rank, cfg.lora_factor, cfg.seed)
        prepare(each, for_training=True)
    if ema:
        share_frozen_weights(ema, net)
    metadata = {CONFIG: json.dumps(config.to_json())}
    if start.weights and cfg.trainable != "all":
        metadata[lora.BASE] = base_fingerprint(start.weights.tensors)
    if start.weights and cfg.trainable == "lora":
        rank, alpha = str(cfg.lora_rank), f"{cfg.lora_alpha or cfg.lora_rank:g}"
        metadata |= {lora.RANK: rank, lora.ALPHA: alpha, "base": start.weights.path}
    return net, ema, metadata


def teacher_of(start: Start, net: Latte) -> Latte:
    """Return a frozen network with the weights that a network started from."""
    assert start.weights is not None
    teacher = start.kind.build(net.config, net.dtype, net.flash, start.cfg.patch_embedder, None)
    start_from(teacher, start.weights)
    for weight in teacher.get_parameters():
        weight.requires_grad = False
    prepare(teacher)
    teacher.update_parameters_name("teacher.")  # in one graph with the other
    return teacher


def start_from(net: Latte | LatteT2V, weights: StateFile, fresh: tuple[str, ...] = ()) -> None:
    """Load weights into a new network; a Latte also takes the weights of another size or condition, or of a DiT.

    Position embeddings are interpolated, and layers that depend on the size of a patch are resized. Weights whose names
    begin with one of `fresh` keep their initialisation, with one warning, if the file has none that fit.
    Raises UserError if other names or shapes do not fit.
    """
    own = dict(net.parameters_and_names())
    tensors = resize_patches(net.config.with_positions(weights.tensors), net.config.patch_size)
    if tensors.get(KERNEL) is not weights.tensors.get(KERNEL):
        device.warn_once(f"{weights.path} has patches of another size: its first and last layer are resized")
    missing = [
        name
        for name, weight in own.items()
        if name.startswith(fresh) and (name not in tensors or tensors[name].shape != weight.shape)
    ]
    kept = {name: values for name, values in tensors.items() if name in own or not name.startswith(fresh)}
    if missing:
        device.warn_once(f"{weights.path} has no fitting {', '.join(missing)}: these start from scratch")
    load_state(net, kept | {name: own[name].asnumpy() for name in missing}, weights.path)
