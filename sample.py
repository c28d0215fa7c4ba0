"""Sample videos from a Latte checkpoint, or from prompts: `python sample.py -c configs/inference/sky.yaml`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from latte.config import SampleConfig, parse_config, save_config
from latte.errors import run_main


def main() -> None:
    """Parse, load, sample, save."""
    cfg = parse_config(SampleConfig, sys.argv[1:], "sample.py", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg.require_checkpoint()

    from latte import device, sampling  # after the options: MindSpore takes seconds to import

    device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel)
    if cfg.dry_run:
        print(sampling.dry_run(cfg))
        return
    if not sampling.video_numbers(cfg):
        print("no video for this rank: there are more ranks than videos")
        return
    pipe = sampling.build_pipeline(cfg)
    save_config(cfg, Path(cfg.output_path) / "config.yaml")
    files = sampling.run(cfg, pipe)
    print(sampling.summary(pipe))
    for file in files:
        print(file)


if __name__ == "__main__":
    run_main(main)
