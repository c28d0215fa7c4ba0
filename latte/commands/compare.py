"""Measure videos against a reference: PSNR, SSIM, VMAF, flicker and motion, as a table, pictures and a plot.

    python tools/compare_videos.py a.mp4 b.mp4
    python tools/compare_videos.py outputs/ddim250 outputs/ddim50 outputs/unipc20 --output_path outputs/solvers

The first path is the reference. Of folders, videos of the same name are compared. docs/compare.md says what each
number means; --dry_run only checks and matches the videos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import parse_config
from latte.config.compare import CompareConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write it with strips and plot."""
    cfg = parse_config(CompareConfig, argv, __doc__)

    from latte.evaluation import compare  # after the options: Pillow and ffmpeg take a while to import

    print(compare.run(cfg))
