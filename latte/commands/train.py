"""Train a Latte network on videos: `python train.py -c configs/training/sky_video.yaml`."""

from __future__ import annotations

import logging
import sys

from latte.config import TrainConfig, parse_config

log = logging.getLogger("latte")


def main() -> None:
    """Parse, build, train."""
    cfg = parse_config(TrainConfig, sys.argv[1:], "train.py", __doc__)
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())

    from latte.runtime import device  # after the options: MindSpore takes seconds to import
    from latte.training.build import build, describe

    here = device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel, connect=True)
    training = build(cfg)
    if here.rank == 0:
        print(describe(cfg, training))
    if cfg.dry_run:
        return

    from latte.training.trainer import Trainer

    Trainer(cfg, training).fit()
