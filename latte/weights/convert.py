"""What the converters share: options, one file in, one file out, a line that says what was in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
from mindspore import nn
from tqdm import tqdm

from latte.errors import UserError
from latte.weights.files import CONFIG, SUFFIXES, StateFile, check_suffix, write_state_dict
from latte.weights.loading import check_state

Config = dict[str, Any]


def converter_parser(description: str) -> jsonargparse.ArgumentParser:
    """Return a parser with the options that every converter has; the description ends with a paragraph of example."""
    text, _, example = description.strip().rpartition("\n\n")
    parser = jsonargparse.ArgumentParser(description=text, epilog=f"Example: {example}")
    parser.add_argument("--source", type=str, required=True, help="file or folder to read; what it is, is read off it")
    parser.add_argument("--target", type=str, required=True, help=f"file to write, ending in {', '.join(SUFFIXES)}")
    parser.add_argument("--dry_run", action="store_true", help="check the source, say what would be written, and stop")
    return parser


def check_target(source: str, target: str) -> None:
    """Raise UserError, before anything is read, if the target cannot be written or is the source."""
    check_suffix(target)
    if Path(target).is_dir():
        raise UserError(f"{target} is a folder; name a file in it")
    if Path(source).exists() and Path(target).exists() and Path(source).samefile(target):
        raise UserError(f"{target} is the source itself; name another target")


def convert(state: StateFile, config: Config, net: nn.Cell, source: str, target: str, dry_run: bool = False) -> str:
    """Write weights with the configuration of their network, and return a line that says what they are.

    Raises UserError if they are not exactly the weights of `net`, or the file cannot be written.
    """
    check_state(net, state.tensors, source)
    size = sum(array.nbytes for array in state.tensors.values())
    if not dry_run:
        with tqdm(total=size, unit="B", unit_scale=True, desc=target, delay=5) as bar:  # only if it takes longer
            write_state_dict(target, state.tensors, {CONFIG: json.dumps(config)}, bar.update)
    return f"{source} -> {target}{' (not written)' if dry_run else ''}: {summary(state.tensors)}; {_words(config)}"


def summary(tensors: Mapping[str, np.ndarray]) -> str:
    """Return in words how many tensors and numbers there are, of which types, and their size."""
    size = sum(array.nbytes for array in tensors.values())
    numbers = sum(math.prod(array.shape) for array in tensors.values())
    dtypes = ", ".join(sorted({array.dtype.name for array in tensors.values()}))
    return f"{len(tensors)} tensors, {numbers:,} numbers, {dtypes}, {size / 1e6:,.1f} MB"


def _words(config: Config) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items() if value is not None)
