"""Encode every frame of a data set once and store the latents, so that training need not encode them again.

    python tools/embedding_cache.py --config configs/training/sky_video.yaml --cache_folder DIR

The options are those of train.py; --cache_folder names the folder to write to. To continue an interrupted cache, give
the same command again; --dry_run says what would be written. With mpirun the ranks share the videos. Exit code 1: some
videos failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import CacheConfig, parse_config
from latte.config.parser import describe_settings

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, encode the videos, and report."""
    cfg = parse_config(CacheConfig, argv, __doc__)

    from latte.runtime import device, ranks  # after the options: MindSpore takes seconds to import
    from latte.training.cache_maker import make_cache, verify_cache

    if cfg.verify:
        verify_cache(cfg.cache_path)
        return
    here = device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel)
    if here.rank == 0:
        print(f"settings: {describe_settings(cfg)}\ndevice: {device.describe_machine()}", flush=True)
    with ranks.ending_together(here.world_size):
        report = make_cache(cfg)
    if report.failed:
        raise SystemExit(1)
