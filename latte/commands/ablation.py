"""Train several networks one after the other, compare their samples with real videos, and write one page about all.

    latte ablation configs/training/ablation/*.yaml --real datasets/held_out/frames --metrics fvd64_16f

Every training is that of `latte train -c CONFIG`, in a folder of its own below --output_path, and every checkpoint is
measured as `latte evaluate` measures those of a run. Stopped and started again, it goes on where it was. --dry_run says
what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import parse_config
from latte.config.ablation import AblationConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, train, measure, and print where the page is."""
    cfg = parse_config(AblationConfig, argv, __doc__)

    from latte.training import ablation

    if cfg.dry_run:
        print(ablation.dry_run(cfg))
        return
    print(ablation.run(cfg))
