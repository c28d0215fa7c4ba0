"""Frechet video distance (FVD) of generated videos to real ones, by the protocol of the paper, and its interval.

    python tools/evaluate_fvd.py --real datasets/ucf101/frames --fake outputs/samples
    python tools/evaluate_fvd.py --real DIR --fake DIR --metrics fvd2048_16f fvd2048_128f
    python tools/evaluate_fvd.py --real DIR --run outputs/train/RUN --metrics fvd256_16f --sampling_steps 50
    python tools/evaluate_fvd.py --fetch_i3d

--fetch_i3d gets the weights of the network, once. A stopped evaluation goes on when the same command is given again.
With mpirun and --use_parallel the ranks share the clips. --dry_run says what would be done. docs/evaluate.md explains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import EvaluateConfig, parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, compare the videos, and print the distances."""
    cfg = parse_config(EvaluateConfig, argv, __doc__)

    from latte.evaluation import curve, evaluate, i3d  # after the options: MindSpore takes seconds to import
    from latte.runtime import device, ranks

    if cfg.fetch_i3d:
        print(i3d.fetch())
        return
    here = device.init_device(cfg.device_target, cfg.device_id, cfg.mode, cfg.jit_level, cfg.use_parallel)
    with ranks.ending_together(here.world_size):
        if cfg.dry_run:
            print(curve.dry_run(cfg) if cfg.run else evaluate.dry_run(cfg))
            return
        if cfg.run:
            files = curve.run(cfg)
            if here.rank == 0:
                print(*files, sep="\n")
            return
        for result in evaluate.run(cfg):
            print(evaluate.describe_result(result))
