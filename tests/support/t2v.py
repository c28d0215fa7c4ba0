"""Shared by the tests of text-to-video training: captioned clips, options, one call of a network, the export tool."""

import csv
import runpy
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from support.golden_values import FIXTURES, ROOT

from latte.config import CacheConfig, TrainConfig
from latte.data.demo import CLASSES, caption, clip_name, make_clip, write_frames
from latte.training.cache_maker import make_cache

FOLDER = FIXTURES / "latte_t2v"
SMALL = {
    "train_batch_size": 2,
    "num_workers": 1,
    "log_interval": 2,
    "sample_videos": 0,
    "vae_check": False,
    "vae_slice": 8,
}
CLIPS = [(label, seed) for seed in range(2) for label in range(len(CLASSES))]


def write_captioned(root):
    """Write six clips of 16 pixels and their captions, five of them different, and return the folder."""
    rows = [("video", "caption")]
    for label, seed in CLIPS:
        write_frames(make_clip(label, seed, 8, 16), root / clip_name(label, seed))
        rows.append((clip_name(label, seed), caption(label, seed)))
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def options(data, kind=TrainConfig, **others):
    """Return the options of a training of the tiny network on those clips."""
    given = {"model_name": "LatteT2V", "pretrained_model_path": FOLDER, "data_folder": data, "data_layout": "csv"}
    given |= {"csv_path": data / "table.csv", "caption_column": "caption", **SMALL, "max_steps": 24, **others}
    return kind(**{key: str(value) if isinstance(value, Path) else value for key, value in given.items()})


def cached(data, folder, patch):
    """Make a cache of T5 embeddings, and of moments that stand in for the autoencoder's, which take long to compile."""
    patch.setattr("latte.components.codec.Codec.moments", lambda codec, frames: frames[:, :1, ::2, ::2].repeat(8, 1))
    assert make_cache(options(data, CacheConfig, cache_folder=folder, cache_dtype="fp32")).failed == 0
    return folder


def learned(training, count):
    """Return the losses of so many steps on one batch."""
    batch = [ms.Tensor(np.stack(values)) for values in zip(training.source[0], training.source[1], strict=True)]
    return [float(training.call(*batch)) for _ in range(count)]


def export(patch, **given):
    """Run tools/t2v_export.py."""
    words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]
    patch.setattr(sys, "argv", ["t2v_export.py", *words])
    runpy.run_path(str(ROOT / "tools" / "t2v_export.py"), run_name="__main__")


def outputs(net):
    """Return what a network says about random latents and a text of nine tokens."""
    rng = np.random.default_rng(0)
    x, text = rng.normal(size=(1, 4, 4, 8, 8)), rng.normal(size=(1, 120, 32))
    mask = (np.arange(120) < 9).astype(np.int32)[None]
    values = x.astype(np.float32), np.array([321], np.int32), text.astype(np.float32), mask
    return net(*map(ms.Tensor, values)).asnumpy()
