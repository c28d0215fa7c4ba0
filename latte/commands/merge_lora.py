"""Put a text-to-video network that train.py has trained into a folder for sample.py and diffusers.

    python tools/t2v_export.py --source outputs/RUN/ckpt/ema-00000100.ckpt --base models/Latte-1 --target models/mine

The source is a checkpoint of a run (ckpt/ema-*.ckpt): a whole transformer, or LoRA adapters, which are merged into the
weights of the base. The target is a new diffusers folder or, with --lora_only, a file of the adapters alone with the
names that diffusers' pipelines use.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from latte.config import Options, option, parse_config
from latte.config.parser import REQUIRED
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(kw_only=True)
class Settings(Options):
    """Merging"""

    source: str = option(REQUIRED, "checkpoint of a run of train.py")
    base: str | None = option(None, "diffusers folder of the network that the run started from")
    target: str | None = option(None, "folder to write; it must be new or empty")
    lora_only: str | None = option(
        None, "file to write in place of a folder, for LoRA adapters alone; it ends in .safetensors"
    )
    dry_run: bool = option(False, "check everything, print what would be written, and stop")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the checkpoint, merge it into the base, and write the result."""
    options = parse_config(Settings, argv, __doc__)

    from latte.components.merge import merge, write_adapters  # after the options: MindSpore takes seconds to import

    if options.lora_only:
        print(write_adapters(options.source, options.lora_only, options.dry_run))
    elif options.base and options.target:
        print(merge(options.source, options.base, options.target, options.dry_run))
    else:
        raise UserError("--base and --target are needed: the folder of the pretrained network, and the one to write")
