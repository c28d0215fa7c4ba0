"""Make training clips of your own videos: of any size, rate and rotation, cut into scenes, all of one size.

    latte prepare my_videos --image_size 256 --dry_run
    latte prepare my_videos --image_size 256

The folder that is written holds the clips, clips.csv with a column for captions that you may fill in, contact.html to
look at, and latte.yaml, by which train.py knows layout and sizes: give it the folder as data_folder. The same command
again goes on where it was ended, takes new videos, and keeps the captions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import parse_config
from latte.config.prepare import PrepareConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, make the clips, and report."""
    cfg = parse_config(PrepareConfig, argv, __doc__)

    from latte.data.prepare import prepare  # after the options: ffmpeg and Pillow take a while to import

    print(prepare(cfg))
