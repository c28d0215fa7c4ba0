"""The command to sample from a run, which a training prints at its end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latte.components.folders import is_t2v_folder
from latte.components.runs import newest_weights
from latte.config import TEXT_TO_VIDEO
from latte.data.cache import TEXT

if TYPE_CHECKING:
    from latte.config import TrainConfig


def next_command(cfg: TrainConfig, run: Path) -> str:
    """Return the command line that samples from a run, or for text to video makes the folder that can be sampled.

    Raises UserError if the run has no weights.
    """
    if cfg.model_name == TEXT_TO_VIDEO:
        base = Path(cfg.pretrained_model_path or "")
        base = base if is_t2v_folder(base) else base.parent
        words = ["--source", newest_weights(run), "--base", base, "--target", run / "text-to-video"]
        return shlex.join([*_program("tools/t2v_export.py", "merge_lora"), *map(str, words)])
    words = ["--checkpoint", run]
    if cfg.condition == "text":
        if cfg.text_encoder_path:
            words += ["--prompts", "A PROMPT"]
        else:
            words += ["--text_embeddings", cfg.text_embeddings or Path(cfg.cache_folder or "") / TEXT]
    if cfg.device_target:
        words += ["--device_target", cfg.device_target]
    return shlex.join([*_program("sample.py", "sample"), *map(str, words)])


def _program(script: str, command: str) -> list[str]:
    """Return how another program is called, in the way in which this one was: as a script, or as `latte COMMAND`."""
    called = Path(sys.argv[0].partition(" ")[0])
    return ["python", str(called.parent / script)] if called.suffix == ".py" else [called.name, command]
