"""Prompts to embeddings, with the text encoder in memory only while it works."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np

from latte.text import load_text_encoder, load_tokenizer

log = logging.getLogger("latte")
KEPT = 64  # embeddings of prompts, of 2 MB each


class Prompts:
    """The tokenizer and the text encoder of a folder; what they made of the last prompts is kept."""

    def __init__(self, folder: str | Path, dtype: str = "fp32", quantize: str | None = None):
        load_tokenizer(Path(folder) / "tokenizer")  # so that a folder without one is refused at once
        self.folder, self.dtype, self.quantize = folder, dtype, quantize
        self._known: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings (B, 120, D) float32 and masks (B, 120) int32 of prompts.

        The encoder is loaded if there is a prompt that was not encoded before, and released again. Raises UserError if
        it cannot be loaded.
        """
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            encoder = load_text_encoder(self.folder, self.dtype, self.quantize)
            self._known |= dict(zip(new, zip(*encoder.encode(new), strict=True), strict=True))
            encoder.release()
        embeds, masks = zip(*[self._known[prompt] for prompt in prompts], strict=True)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return np.stack(embeds), np.stack(masks)
