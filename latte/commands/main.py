"""The `latte` program: `latte COMMAND [--option VALUE ...]` calls the command of that name."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from latte.config.parser import nearest, version
from latte.errors import UserError, run_main

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {  # modules of latte.commands; only the requested one is imported
    "sample": "sample videos from a checkpoint, or from prompts",
    "train": "train or fine-tune a network on videos",
    "prepare": "make training clips of your own videos",
    "cache": "store the latents of a data set before training",
    "download": "download official weights",
    "convert": "convert weights between PyTorch, MindSpore and safetensors",
    "merge_lora": "put LoRA adapters or a fine-tuned transformer into a text-to-video folder",
    "export": "export a network as a MindIR file",
    "evaluate": "measure the Frechet video distance (FVD) of generated videos to real ones",
    "web": "open a page in the browser to sample videos with",
    "gallery": "write a training as one HTML file: samples, curves, options, metrics",
    "estimate": "predict memory and time of a training or a sampling on a card",
    "ablation": "train several networks one after the other and compare them in one page",
    "schedule": "find which network calls of a sampling are worth computing",
    "compare": "measure videos against a reference: PSNR, SSIM, VMAF, flicker, motion",
    "doctor": "list the devices of this machine and what is missing for them",
    "demo_data": "draw a small data set of moving clouds",
    "rank_table": "make the rank table for training on several Ascend devices",
    "train_vae": "train a small autoencoder",
}
HELP = "\n".join(
    (
        "usage: latte COMMAND [--option VALUE ...]\n",
        "Latte, the Latent Diffusion Transformer for video generation, on MindSpore.\n",
        *(f"  {name:12}{text}" for name, text in COMMANDS.items()),
        "\n`latte COMMAND --help` explains the options of a command, `latte --version` shows the versions.",
    )
)


def main(argv: Sequence[str] | None = None) -> None:
    """Call a command and exit; argv: the arguments after the program's name, None for those of this process."""
    run_main(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv)))


def _dispatch(words: list[str]) -> None:
    name, *rest = words or ["--help"]
    if name in ("-h", "--help"):
        print(HELP)
    elif name == "--version":
        print(version())
    elif name in COMMANDS:
        sys.argv = [f"latte {name}", *rest]  # for the command's messages and for the processes it starts
        importlib.import_module(f"latte.commands.{name}").main()
    else:
        raise UserError(f"there is no command {name!r}; the nearest is {nearest(name, COMMANDS)!r}, see latte --help")
