"""The embeddings of captions for a training, T5's or CLIP's, read from a file or made at the start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from latte.components.text_encoder import load_text_encoder, places, read_encoder
from latte.config import TEXT_TO_VIDEO, TrainConfig
from latte.data.cache import TEXT
from latte.data.loader import read_text
from latte.data.text_embeddings import Captions, caption_list, read_captions
from latte.errors import UserError
from latte.io.arrays import read_npz
from latte.io.atomic import atomic_path
from latte.models.latte import CLIP_TEXT
from latte.models.t5 import T5Config
from latte.runtime import device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latte.components.loading import Weights

TEXTS = 256, 32  # for which T5's blocks are read once: on an accelerator, and on a CPU, which takes longer for each


def captions_for(cfg: TrainConfig, captions: Sequence[str], width: int) -> Captions:
    """Return the embeddings (S, width) of a data set's captions, from text_embeddings, from the cache or made now.

    A dry run gets blank embeddings. Raises UserError if there are no captions, or the embeddings do not fit.
    """
    _check_any(cfg, captions)
    file = cfg.text_embeddings or (cfg.cache_folder and str(Path(cfg.cache_folder) / TEXT))
    if file:
        found, _ = read_captions(file)
        if found.width != width:
            raise UserError(f"text_embeddings {file} are {found.width} wide, but the network takes {width}")
        return found.of(captions, f"text_embeddings {file}")
    folder = cfg.text_encoder_path or ""  # `read_start` has set it
    encoder = read_encoder(folder, "t5", width)
    if cfg.dry_run:
        mask = np.eye(1, T5Config.max_length, dtype=np.int32).repeat(2, 0)  # (2, S), one token each
        blank = Captions.pack([""], [np.zeros((1, width), np.float32)] * 2, mask, np.float32)
        return blank.of([""] * len(captions), "")
    return embed(folder, captions, cfg.dtype, np.float32, encoder).of(captions, folder)


def embed(folder: str, captions: Sequence[str], dtype: str, stored: type, weights: Weights) -> Captions:
    """Return the embeddings of all different captions and of the empty prompt, and free the encoder's memory.

    folder: holds the tokenizer; dtype: arithmetic of the encoder; stored: NumPy type of the result; weights: of the
    encoder. Raises UserError if the tokenizer cannot be read.
    """
    texts, rows, masks = [*sorted(set(captions)), ""], [], []
    for values, mask in _encoded(folder, texts, dtype, weights):
        rows += [text[kept > 0] for text, kept in zip(values, mask, strict=True)]
        masks.append(mask)
    return Captions.pack(texts[:-1], rows, np.concatenate(masks), stored)


def _encoded(folder: str, texts: list[str], dtype: str, weights: Weights) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield embeddings (n, S, C) float32 and masks (n, S) of some texts at a time, then free the encoder's memory."""
    size = TEXTS[0] if device.current().batches_videos else TEXTS[1]
    encoder = load_text_encoder(folder, dtype, weights=weights, kind=weights.kind.name, stream=True)
    with tqdm(total=len(texts), desc="captions", unit="text", delay=5) as bar:  # only if it takes more than 5 s
        for part in _parts(texts, size):
            yield encoder.encode(part)
            bar.update(len(part))
    encoder.release()


def clip_captions(
    cfg: TrainConfig, captions: Sequence[str], cached: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return CLIP embeddings (M, 77, 768), the place of each caption among them (N,), and the null one (77, 768).

    They come from text_embeddings, if `cached` from the cache, or from text_encoder_path, now; a dry run gets blank
    ones then.
    Raises UserError if neither is set, there are no captions, or embeddings do not fit.
    """
    if not any(captions):
        raise UserError("condition is text, but the data has no captions; set data_layout: csv and caption_column")
    if file := cfg.text_embeddings or (cached and cfg.cache_folder and str(Path(cfg.cache_folder) / TEXT)):
        return read_text(file, list(captions))
    if not cfg.text_encoder_path:
        raise UserError(
            "condition is text, but neither text_encoder_path nor text_embeddings is set; see docs/train.md"
        )
    encoder, known = read_encoder(cfg.text_encoder_path, "clip", CLIP_TEXT[1]), sorted(set(captions))
    if cfg.dry_run:
        return np.zeros((1, *CLIP_TEXT), np.float32), np.zeros(len(captions), int), np.zeros(CLIP_TEXT, np.float32)
    text = embed_clip(cfg.text_encoder_path, known, cfg.dtype, encoder)
    numbers = {caption: number for number, caption in enumerate(known)}
    return text[:-1], np.array([numbers[caption] for caption in captions]), text[-1]


def embed_clip(folder: str, captions: list[str], dtype: str, weights: Weights) -> np.ndarray:
    """Return the embeddings (N + 1, 77, 768) float32 of captions and then of the empty prompt; see `embed`."""
    return np.concatenate([values for values, _ in _encoded(folder, [*captions, ""], dtype, weights)])


def store_clip_captions(cfg: TrainConfig, captions: Sequence[str], stored: type) -> None:
    """Write the CLIP embeddings of all captions into the cache, unless the cache already has them.

    They come from text_embeddings, or from text_encoder_path. Raises UserError as `clip_captions` does.
    """
    known, path = sorted(set(captions)), Path(cfg.cache_folder or "") / TEXT  # which is not null here
    made_with = encoder_fingerprint(cfg.text_encoder_path, "clip") if cfg.text_encoder_path else ""
    if path.exists() and made_with and not cfg.text_embeddings:
        there = read_npz(path, ("captions", "text"), ("encoder",))
        if str(there.get("encoder", "")) == made_with and set(known) <= set(caption_list(path, there["captions"])):
            return
    text, places_of, null = clip_captions(cfg, known, cached=False)
    stored = text.dtype if cfg.text_embeddings else stored  # those of others stay as they are
    with np.errstate(over="ignore"), atomic_path(path) as temporary:
        arrays = {"text": text[places_of].astype(stored), "null": null.astype(stored)}
        np.savez(temporary, captions=np.array(known), encoder=np.array(made_with), **arrays)


def store_captions(cfg: TrainConfig, captions: Sequence[str], width: int, stored: type) -> None:
    """Write the embeddings (S, width) of all captions into the cache, unless the cache already has them.

    Raises UserError as `captions_for` does.
    """
    _check_any(cfg, captions)
    folder, path = cfg.text_encoder_path or "", Path(cfg.cache_folder or "") / TEXT  # neither is null here
    encoder, made_with = read_encoder(folder, "t5", width), encoder_fingerprint(folder, "t5")
    if path.exists():
        there, made_by = read_captions(path)
        if made_by == made_with and there.text.dtype == stored and set(captions) <= set(there.captions):
            return
    embed(folder, captions, cfg.dtype, stored, encoder).save(path, made_with)


def encoder_fingerprint(folder: str, kind: str) -> str:
    """Return a SHA-256 that identifies a text encoder: of its configuration and the names and sizes of its files."""
    tokenizer, encoder = places(folder, kind)
    digest = hashlib.sha256((encoder / "config.json").read_bytes())
    for file in sorted(path for part in {encoder, tokenizer} for path in part.iterdir() if path.is_file()):
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _parts(items: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _check_any(cfg: TrainConfig, captions: Sequence[str]) -> None:
    if not any(captions):
        is_table = cfg.data_layout == "csv" and cfg.csv_path and cfg.caption_column
        remedy = f"fill in the column {cfg.caption_column} of {cfg.csv_path}" if is_table else ""
        remedy = remedy or "set data_layout: csv and caption_column"
        raise UserError(f"{TEXT_TO_VIDEO} learns from captions, but the data has none; {remedy}")
