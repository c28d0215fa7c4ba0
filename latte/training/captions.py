"""The T5 embeddings of captions for training a text-to-video network, read from a file or made at the start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from latte.components.loading import KINDS, Weights, read
from latte.components.text_encoder import MAX_LENGTH, VOCABULARIES, load_text_encoder
from latte.config import TEXT_TO_VIDEO, TrainConfig
from latte.data.cache import TEXT
from latte.data.text_embeddings import Captions, read_captions
from latte.errors import UserError
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ENCODER = KINDS["t5"].folder
PROMPTS_AT_ONCE = 8  # prompts per call of the text encoder on an accelerator; a CPU takes one


def captions_for(cfg: TrainConfig, captions: Sequence[str], width: int) -> Captions:
    """Return the embeddings (S, width) of a data set's captions, from text_embeddings, from the cache or made now.

    A dry run gets blank embeddings. Raises UserError if there are no captions, or the embeddings do not fit.
    """
    _check_any(captions)
    file = cfg.text_embeddings or (cfg.cache_folder and str(Path(cfg.cache_folder) / TEXT))
    if file:
        found, _ = read_captions(file)
        if found.width != width:
            raise UserError(f"text_embeddings {file} are {found.width} wide, but the network takes {width}")
        return found.of(captions, f"text_embeddings {file}")
    folder = cfg.text_encoder_path or ""  # `read_start` has set it
    encoder = read_encoder(folder, width)
    if cfg.dry_run:
        mask = np.eye(1, MAX_LENGTH, dtype=np.int32).repeat(2, 0)  # (2, S), one token each
        blank = Captions.pack([""], [np.zeros((1, width), np.float32)] * 2, mask, np.float32)
        return blank.of([""] * len(captions), "")
    return embed(folder, captions, cfg.dtype, np.float32, encoder).of(captions, folder)


def embed(folder: str, captions: Sequence[str], dtype: str, stored: type, weights: Weights) -> Captions:
    """Return the embeddings of all different captions and of the empty prompt, and free the encoder's memory.

    folder: holds the tokenizer; dtype: arithmetic of the encoder; stored: NumPy type of the result; weights: of the
    encoder. Raises UserError if the tokenizer cannot be read.
    """
    texts = [*sorted(set(captions)), ""]
    size = PROMPTS_AT_ONCE if device.current().batches_videos else 1
    encoder = load_text_encoder(folder, dtype, weights=weights)
    rows, masks = [], []
    with tqdm(total=len(texts), desc="captions", unit="text", delay=5) as bar:  # only if it takes more than 5 s
        for part in _parts(texts, size):
            values, mask = encoder.encode(part)
            rows += [text[kept > 0] for text, kept in zip(values, mask, strict=True)]
            masks.append(mask)
            bar.update(len(part))
    encoder.release()
    return Captions.pack(texts[:-1], rows, np.concatenate(masks), stored)


def store_captions(cfg: TrainConfig, captions: Sequence[str], width: int, stored: type) -> None:
    """Write the embeddings (S, width) of all captions into the cache, unless the cache already has them.

    Raises UserError as `captions_for` does.
    """
    _check_any(captions)
    folder, path = cfg.text_encoder_path or "", Path(cfg.cache_folder or "") / TEXT  # neither is null here
    encoder, made_with = read_encoder(folder, width), encoder_fingerprint(folder)
    if path.exists():
        there, made_by = read_captions(path)
        if made_by == made_with and there.text.dtype == stored and set(captions) <= set(there.captions):
            return
    embed(folder, captions, cfg.dtype, stored, encoder).save(path, made_with)


def read_encoder(folder: str, width: int) -> Weights:
    """Read the weights of the text encoder beside a tokenizer, without loading them into memory.

    Raises UserError unless the folder holds both, and the encoder is complete and has this width.
    """
    root = Path(folder)
    there = (root / ENCODER).is_dir() and any((root / "tokenizer" / name).is_file() for name in VOCABULARIES)
    if not there:
        raise UserError(
            f"text_encoder_path {root} does not hold the folders tokenizer and {ENCODER}; name one that does"
        )
    found = read(root / ENCODER, "t5")
    if found.config.d_model != width:
        raise UserError(
            f"the text encoder in {root} is {found.config.d_model} wide, but the network takes {width}; name its own"
        )
    return found


def encoder_fingerprint(folder: str) -> str:
    """Return a SHA-256 that identifies a text encoder: of its configuration and the names and sizes of its files."""
    root = Path(folder)
    digest = hashlib.sha256((root / ENCODER / "config.json").read_bytes())
    for file in sorted(path for part in (ENCODER, "tokenizer") for path in (root / part).iterdir() if path.is_file()):
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _check_any(captions: Sequence[str]) -> None:
    if not any(captions):
        raise UserError(
            f"{TEXT_TO_VIDEO} learns from captions, but the data has none; set data_layout: csv and caption_column"
        )
