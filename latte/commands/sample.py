"""Sample videos from a Latte checkpoint, or from prompts.

    python sample.py -c configs/inference/sky.yaml
    python sample.py -c configs/inference/t2v.yaml --prompts "a dog wearing sunglasses floating in space"

The options that matter most: --checkpoint and --vae_checkpoint, --sampling_steps and --sampler, --guidance_scale,
--class_labels or --prompts, --num_samples, --seed, --dtype, --output_path. --dry_run only prints what would be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import SampleConfig, keep_config, parse_config
from latte.config.parser import describe_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

LISTED = 20  # files that are named in the end


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, load the pipeline, sample the videos, and save them."""
    cfg = parse_config(SampleConfig, argv, __doc__)
    cfg.require_checkpoint()

    from latte.inference import videos  # after the options: MindSpore takes seconds to import
    from latte.runtime import device
    from latte.runtime.layout import table

    here = device.init_device(
        *(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel),
        sequence=cfg.sequence_parallel,
        guidance=2 if cfg.cfg_parallel else 1,
    )
    if here.rank == 0:
        if here.data_ranks < here.world_size:
            print(table(here))
        print(f"settings: {describe_settings(cfg)}\ndevice: {device.describe_machine()}")
    if cfg.dry_run:
        print(videos.dry_run(cfg))
        return
    if not videos.video_numbers(cfg):
        print("no video for this rank, because there are more ranks than videos")
        return
    plan = videos.check(cfg)
    if here.rank == 0:
        print(videos.describe(cfg, plan), flush=True)
    targets = videos.find_targets(cfg, plan)
    if here.leads:
        keep_config(cfg)
    made = [target for target in targets if target.done]
    files: list[Path] = []
    kept: dict[int, np.ndarray] = {}
    if made and here.leads:
        what = f"{len(made)} of {len(targets)} videos are in {cfg.output_path} already, of the same options and weights"
        print(f"{what}, and are kept; --existing replace makes them again")
    if len(made) < len(targets):
        pipe = videos.build_pipeline(cfg, plan)
        files, kept = videos.run(cfg, pipe, targets)
    if not here.leads:
        return
    if len(made) < len(targets):
        print(videos.summary(pipe))
    files += videos.save_grid(cfg, plan, targets, kept)
    _list(files, cfg.output_path)


def _list(files: Sequence[Path], folder: str) -> None:
    for file in files[:LISTED]:
        print(file)
    if len(files) > LISTED:
        print(f"and {len(files) - LISTED} more files in {folder}")
