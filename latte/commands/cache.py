"""Store the latents of every frame of a data set, so that training does not encode them again in every epoch.

python tools/embedding_cache.py --config configs/training/sky_video.yaml --cache_folder DIR

The options are those of the training, and --cache_folder says where the latents go. Started again, it goes on where it
was interrupted. With mpirun the ranks share the videos.
"""

from __future__ import annotations

import logging
import sys

from latte.config import CacheConfig, parse_config

log = logging.getLogger("latte")


def main() -> None:
    """Parse, encode, report."""
    cfg = parse_config(CacheConfig, sys.argv[1:], "tools/embedding_cache.py", __doc__)
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())

    from latte.runtime import device, ranks  # after the options: MindSpore takes seconds to import
    from latte.training.cache_maker import make_cache, verify_cache

    if cfg.verify:
        verify_cache(cfg.cache_folder)
        return
    here = device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel)
    with ranks.ending_together(here.world_size):
        report = make_cache(cfg)
    if report.failed:
        raise SystemExit(1)
