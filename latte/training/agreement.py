"""What all ranks of a training must have alike: options, versions, data and weights; compared before the first step."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import platform
from typing import TYPE_CHECKING

import mindspore as ms

from latte.runtime import device
from latte.training.collective import check_same
from latte.weights.fingerprint import network_fingerprint

if TYPE_CHECKING:
    from latte.config import TrainConfig
    from latte.training.build import Training

# Options that may differ, as machines may have the same files in other places; whether they are null may not.
PLACES = (
    "data_folder",
    "cache_folder",
    "csv_path",
    "frame_list",
    "text_embeddings",
    "text_encoder_path",
    "vae_checkpoint",
    "pretrained_model_path",
    "resume",
)
OWN = ("device_id", "num_workers", "output_path", "data_config")  # that change nothing, or are read on rank 0 only


def check_options(cfg: TrainConfig) -> None:
    """Raise UserError on every rank if the ranks have other options or versions; every rank must call this."""
    values = {name: value for name, value in dataclasses.asdict(cfg).items() if name not in OWN}
    values |= {name: "null" if values[name] is None else "not null" for name in PLACES}
    own = importlib.import_module("latte").__version__  # the root of the package is above this room
    python = ".".join(platform.python_version_tuple()[:2])
    check_same({"latte": own, "MindSpore": ms.__version__, "Python": python} | values)


def check_training(training: Training) -> None:
    """Raise UserError on every rank if the ranks have other data or weights; every rank must call this."""
    if device.current().world_size == 1:
        return
    index = training.source.dataset.index
    starts = {"network": training.step.start, "autoencoder": network_fingerprint(training.codec.vae)}
    records = repr([(record.path.name, record.label, record.caption) for record in index.records + index.images])
    check_same(
        {
            "the number of videos": len(index.records),
            "the list of videos (its SHA-256)": hashlib.sha256(records.encode()).hexdigest()[:8],
            "the number of steps": training.total_steps,
            "the configuration of the network": training.config,
        }
        | {f"the {name} (SHA-256 of its biases)": start[:8] for name, start in starts.items()}
    )
