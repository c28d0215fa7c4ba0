"""Download official weights from huggingface.co or a mirror: resumed where it ended, compared with checksums.

    latte download list
    latte download skytimelapse sd-vae-ft-mse
    latte download Latte-1 --mirror https://hf-mirror.com

What is in the folder already and whole is not fetched again. docs/weights.md has every file with its licence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latte.components.official import download, list_official
from latte.config import parse_config
from latte.config.download import DownloadConfig

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the options, and fetch what is missing."""
    cfg = parse_config(DownloadConfig, argv, __doc__)
    if cfg.names == ["list"]:
        print(list_official())
        return
    for name in cfg.names:
        for line in download(name, Path(cfg.folder), cfg.mirror, cfg.dry_run):
            print(line, flush=True)
