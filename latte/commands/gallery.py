"""Write what a training has made so far as one HTML file, to look at and to send: samples, curves, options, metrics.

    latte gallery outputs/sky/Latte-XL-2-20250101-120000

The file opens without a network and holds no script; a training may go on while it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latte.config import parse_config
from latte.config.gallery import GalleryConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, write the page, and say where it is."""
    cfg = parse_config(GalleryConfig, argv, __doc__)

    from latte.training.gallery import make_gallery  # after the options: MindSpore takes seconds to import

    print(make_gallery(cfg.run[0], cfg.target))
