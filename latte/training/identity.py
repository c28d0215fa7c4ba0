"""What makes a resumed run the same training: facts that must not differ, and facts whose changes are named."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError
from latte.models.latte import CHOICES
from latte.runtime import device
from latte.training.cache_maker import relative
from latte.weights.files import CONFIG
from latte.weights.fingerprint import fingerprint, network_fingerprint
from latte.weights.lora import ALPHA, BASE, RANK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latte.config import TrainConfig
    from latte.data.index import Record
    from latte.training.build import Training

REMEDY = "resume with the options that the run was started with"
OFFICIAL = {key: choices[0] for key, choices in CHOICES.items()}  # what networks without these fields are
FIXED, NAMED = "training", "training_options"  # keys of a state's metadata, each with facts as JSON
OPTIONS = (  # that may change on purpose, but make it another training, or other measurements, from there on
    "seed",
    "train_batch_size",
    "sequence_parallel",  # ranks times its videos are fewer
    "gradient_accumulation_steps",
    "images_per_video",
    "sample_stride",
    "transform",
    "random_flip",
    "held_out",
    "eval_clips",
    "class_dropout_prob",
    "start_learning_rate",
    "end_learning_rate",
    "scheduler",
    "warmup_steps",
    "betas",
    "optim_eps",
    "weight_decay",
    "clip_grad",
    "max_grad_norm",
    "start_clip_step",
    "ema_decay",
    "dtype",
    "loss_weighting",
    "distill_steps",
    "loss_scaler_type",
    "loss_scale_window",
)


def identity(cfg: TrainConfig, training: Training) -> dict[str, str]:
    """Return the metadata of a state that `compare` reads when the run is resumed.

    Data are told by the names, classes and captions of their videos, so that a moved folder is the same data.
    """
    fixed = {
        "autoencoder": _encoder(training),
        "sd_scale_factor": training.codec.scale_factor,
        "trainable": cfg.trainable,
        "use_ema": cfg.use_ema,
    }
    dataset = training.source.dataset
    trained = [dataset.index.records[number] for number in dataset.numbers]
    named = {name: getattr(cfg, name) for name in OPTIONS} | {
        "data": f"{len(trained)} videos ({_names([*trained, *dataset.index.images], cfg.data_folder)})",
        "latent cache": _cache(training),
        "teacher": network_fingerprint(training.step.loss.teacher)[:8] if cfg.distill_steps else None,
        "steps of the schedule": None if cfg.scheduler == "constant" else training.total_steps,
    }
    return {FIXED: json.dumps(fixed), NAMED: json.dumps(named)}


def compare(stored: Mapping[str, str], own: Mapping[str, str], source: str) -> list[str]:
    """Return a sentence on each option that a run is resumed with and was not trained with.

    stored, own: metadata of the state and of this training; facts that an older version did not store are not compared.
    Raises UserError if the state belongs to another network, other LoRA adapters, another frozen base, or another
    autoencoder or scale of its latents.
    """
    for key in (RANK, ALPHA, BASE):
        if stored.get(key) != own.get(key):
            has, asked = stored.get(key, "none"), own.get(key, "none")
            what = "another pretrained network" if key == BASE else f"{key} {has}, but the options ask for {asked}"
            raise UserError(f"{source} is of {what}; {REMEDY}")
    for key, what in ((CONFIG, "a network with"), (FIXED, "a training with")):
        if changes := _changes(stored.get(key), own.get(key), OFFICIAL if key == CONFIG else {}):
            if "autoencoder" in changes:
                raise UserError(f"{source} is of a training with another autoencoder than vae_checkpoint; {REMEDY}")
            has, asks = (", ".join(f"{name} {pair[k]}" for name, pair in changes.items()) for k in (0, 1))
            raise UserError(f"{source} is of {what} {has}, but the options ask for {asks}; {REMEDY}")
    changes = _changes(stored.get(NAMED), own.get(NAMED))
    said = [f"the run had {name} {old} and now has {new}" for name, (old, new) in changes.items()]
    if (ranks := int(stored["world_size"])) != device.current().world_size:
        said.append(f"the run had {ranks} ranks and now has {device.current().world_size}")
    return said


def _changes(
    stored: str | None, own: str | None, defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of each name that two JSON objects have with different values.

    defaults: the values of names that the old one may lack.
    """
    old, new = (json.loads(text) if text else {} for text in (stored, own))
    old = {**(defaults or {}), **old} if old else old
    return {name: (old[name], new[name]) for name in old if name in new and old[name] != new[name]}


def _encoder(training: Training) -> str:
    """Return what identifies the half of the autoencoder that makes latents, in float16 and float32 files alike."""
    weights = {
        name: weight.asnumpy().astype(np.float16)
        for name, weight in training.codec.vae.parameters_and_names()
        if name.startswith(("encoder.", "quant_conv."))
    }
    return fingerprint(weights)[:16]


def _names(records: Sequence[Record], folder: str | None) -> str:
    lines = [f"{relative(r.path, folder)}\t{r.label}\t{r.caption}" for r in records]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:8]


def _cache(training: Training) -> str:
    """Return what identifies the files of the latent cache, or "none" without one."""
    entries = getattr(training.source.dataset.store, "entries", None)
    if entries is None:
        return "none"
    sums = [entries[number].sha256 for number in sorted(entries)]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:8]
