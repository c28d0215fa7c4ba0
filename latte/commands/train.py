"""Train a Latte network on videos, or fine-tune the text-to-video Latte-1.

    python train.py -c configs/training/sky_video.yaml

The options that matter most: --data_folder, or --cache_folder after embedding_cache.py; --vae_checkpoint; --model_name,
--image_size and --num_frames; --train_batch_size, --start_learning_rate and --epochs or --max_steps; --dtype;
--pretrained_model_path to start from weights, --resume auto to continue a run. --dry_run checks everything and stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import TrainConfig, parse_config
from latte.config.parser import describe_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, build the training, and run it."""
    cfg = parse_config(TrainConfig, argv, __doc__)

    from latte.training import tracker

    tracker.check(cfg.tracker)

    from latte.runtime import device  # after the options: MindSpore takes seconds to import
    from latte.runtime.layout import table
    from latte.training.agreement import check_options, check_training
    from latte.training.build import build, describe, predict
    from latte.training.start import complete

    here = device.init_device(
        *(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel),
        connect=True,
        sequence=cfg.sequence_parallel,
    )
    settings = describe_settings(cfg)
    cfg = complete(cfg)
    check_options(cfg)
    training = build(cfg)
    check_training(training)
    if here.rank == 0:
        if here.sequence > 1:
            print(table(here))
        print(f"settings: {settings}\ndevice: {device.describe_machine()}\n{describe(cfg, training)}")
    if cfg.dry_run:
        if here.rank == 0:
            print(predict(cfg, training))
        return

    from latte.training.trainer import Trainer

    Trainer(cfg, training).fit()
