"""Token embeddings of captions with their masks, as a text-to-video network is trained on them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from latte.errors import UserError
from latte.io.arrays import read_npz
from latte.io.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

REMEDY = "make it with tools/embedding_cache.py and the options of this training"


@dataclasses.dataclass(frozen=True)
class Captions:
    """Embeddings of captions (N,). Only the rows of real tokens are kept: most of the 120 places are padding."""

    captions: list[str]
    text: np.ndarray  # (tokens of all captions, C), float16 or float32
    starts: np.ndarray  # (N,), the first row of each caption
    mask: np.ndarray  # (N, S) int32, 1 for tokens
    null: np.ndarray  # (tokens, C), of the empty prompt
    null_mask: np.ndarray  # (S,)

    @classmethod
    def pack(cls, captions: list[str], rows: list[np.ndarray], mask: np.ndarray, dtype: type) -> Captions:
        """Keep the embedded tokens, each (tokens, C), and masks (N + 1, S), of captions and then of the empty prompt.

        Raises UserError if a value overflows `dtype`.
        """
        with np.errstate(over="ignore"):
            rows = [values.astype(dtype) for values in rows]
        if not all(np.isfinite(values).all() for values in rows):
            raise UserError(f"the text embeddings do not fit {np.dtype(dtype).name}; choose cache_dtype fp32")
        return cls(list(captions), np.concatenate(rows[:-1]), _starts(mask[:-1]), mask[:-1], rows[-1], mask[-1])

    @property
    def width(self) -> int:
        """The width C of an embedding."""
        return self.text.shape[1]

    def padded(self, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the embedding (S, C) float32 of a caption, None being the empty prompt, and its mask (S,) int32.

        Places without a token are zero; attention leaves them out.
        """
        mask = self.null_mask if number is None else self.mask[number]
        tokens = mask > 0
        first = 0 if number is None else self.starts[number]
        out = np.zeros((len(mask), self.width), np.float32)
        out[tokens] = (self.null if number is None else self.text)[first : first + tokens.sum()]
        return out, mask

    def of(self, captions: Sequence[str], source: str) -> Captions:
        """Return the embeddings of a list of captions, in its order; raises UserError if one is missing."""
        places = {caption: place for place, caption in enumerate(self.captions)}
        missing = [caption for caption in captions if caption not in places]
        if missing:
            raise UserError(f"{source} has no embedding of {len(missing)} captions, such as {missing[0]!r}; {REMEDY}")
        chosen = np.array([places[caption] for caption in captions])
        return dataclasses.replace(self, captions=list(captions), starts=self.starts[chosen], mask=self.mask[chosen])

    def save(self, path: Path, encoder: str) -> None:
        """Write them as .npz, with the fingerprint of the encoder they came from; raises UserError if it cannot."""
        arrays = {key: getattr(self, key) for key in ("text", "mask", "null", "null_mask")}
        with atomic_path(path) as temporary:
            np.savez(temporary, captions=np.array(self.captions), encoder=np.array(encoder), **arrays)


def read_captions(path: str | Path) -> tuple[Captions, str]:
    """Return the embeddings of a file, and the fingerprint of their encoder; raises UserError if it holds none."""
    of_t5 = ("mask", "null_mask", "encoder")
    try:
        file = read_npz(path, ("captions", "text", "null"), of_t5)
        missing = [name for name in of_t5 if name not in file]
        if missing:
            raise UserError(f"{path} has no {missing[0]}, so it is not T5's but CLIP's")
        text, null, mask, null_mask = (file[name] for name in ("text", "null", "mask", "null_mask"))
        known = caption_list(path, file["captions"])
        fits = mask.shape == (len(known), *null_mask.shape) and text.ndim == null.ndim == 2 and null_mask.ndim == 1
        fits = fits and text.shape[1] == null.shape[1] and mask.dtype.kind in "biu" and null_mask.dtype.kind in "biu"
        if not fits or len(text) != (mask > 0).sum() or len(null) != (null_mask > 0).sum():
            raise UserError(f"{path} is damaged: its masks do not fit its embeddings")
        check_finite(path, text=text, null=null)
    except UserError as error:
        raise UserError(f"text_embeddings {error}; {REMEDY}") from error
    mask, null_mask = mask.astype(np.int32), null_mask.astype(np.int32)
    return Captions(known, text, _starts(mask), mask, null, null_mask), str(file["encoder"])


def caption_list(path: str | Path, captions: np.ndarray) -> list[str]:
    """Return the captions of a file; raises UserError if they are not a list of texts."""
    if captions.ndim != 1 or captions.dtype.kind != "U":
        raise UserError(f"{path}: its captions are no list of texts, but {captions.dtype} {captions.shape}")
    return captions.tolist()


def check_finite(path: str | Path, **arrays: np.ndarray) -> None:
    """Raise UserError unless these embeddings of a file are numbers that are finite as float32."""
    for name, values in arrays.items():
        with np.errstate(over="ignore"):
            finite = values.dtype.kind == "f" and np.isfinite(values.astype(np.float32, copy=False)).all()
        if not finite:
            raise UserError(f"{path}: its {name!r} holds values that are not finite numbers")


def _starts(mask: np.ndarray) -> np.ndarray:
    return np.cumsum([0, *(mask > 0).sum(1)])[:-1]
