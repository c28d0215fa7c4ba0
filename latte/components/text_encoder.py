"""From prompts to what Latte-1 is conditioned on: a T5 tokenizer and encoder out of local folders."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from latte.components.loading import Source, Weights, load, read
from latte.components.quantize import check_kind, empty_int8, holds_int8, is_quantized
from latte.errors import UserError
from latte.io.json_files import check_numbers, check_regular, read_json
from latte.models.t5 import T5Config, T5Encoder
from latte.runtime import device

log = logging.getLogger("latte")
MAX_LENGTH = 120  # tokens of a prompt that Latte-1 was trained with
KEPT = 64  # embeddings of prompts, of 2 MB each
LARGEST = 32 << 20  # bytes of a file of a tokenizer; T5's have one or two MiB
VOCABULARIES = ("tokenizer.json", "spiece.model")  # either is a whole tokenizer


def load_t5(source: Source, dtype: str = "fp32", quantize: str | None = None) -> T5Encoder:
    """Return the T5 encoder in a folder (config.json beside its weights, in shards or not), a file, or weights read.

    Its weights are kept in `dtype`, which halves their memory with fp16 and bf16 (on CPU, bf16 keeps float32). A
    warning says if memory is too small. Options and errors are those of `loading.load`.
    """
    as_int8, found = check_kind(quantize) is not None, read(source, "t5")
    as_int8 = as_int8 or is_quantized(found.tensors)
    _warn_of_memory(t5_bytes(found.config, device.compute_dtype(dtype), as_int8))
    return load(found, "t5", dtype=dtype, quantize=quantize)


def t5_bytes(config: T5Config, compute: ms.Type, as_int8: bool) -> int:
    """Return about how much memory the weights take in a dtype; those of float16's last products stay float32."""
    size = 4 if compute == ms.float32 else 2
    return (config.parameter_count - config.matrices) * size + config.matrices * (1 if as_int8 else size)


def _warn_of_memory(needed: int) -> None:
    free = device.free_memory()
    if free is not None and needed > free:
        log.warning(
            "the text encoder needs %.1f GB of memory and %.1f GB are free; the system may stop this process",
            needed / 1e9,
            free / 1e9,
        )


def load_tokenizer(folder: str | Path) -> Any:
    """Return the T5 tokenizer in a folder that holds tokenizer.json or spiece.model.

    Raises UserError if there is neither, or they are broken.
    """
    folder = Path(folder)
    # Without either, transformers makes a tokenizer that knows no words.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{folder} holds no tokenizer ({' or '.join(VOCABULARIES)}); name a tokenizer folder")
    _check_tokenizer(folder)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would ask for torch, which nothing here needs
    from transformers import T5Tokenizer  # imported late: it takes seconds, which only prompts are worth

    try:
        return T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the Rust parser raises bare Exception, protobuf classes of its own
        reason = str(error).strip().splitlines()[:1]
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({''.join(reason)}); download the folder again"
        ) from error


def _check_tokenizer(folder: Path) -> None:
    """Raise UserError for files on which transformers would hang or fill the memory."""
    remedy = "download the folder again"
    read = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".model", ".jinja", ".txt")]
    for path in read:
        if check_regular(path, remedy).stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB, as no file of a tokenizer is; {remedy}")
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        check_numbers(read_json(settings, LARGEST, remedy=remedy), {"extra_ids": (0, 1000)}, str(settings))


def load_text_encoder(
    folder: str | Path, dtype: str = "fp32", quantize: str | None = None, weights: Weights | None = None
) -> TextEncoder:
    """Return the text encoder of a Latte-1 folder, which holds the folders tokenizer and text_encoder.

    `dtype` and `quantize` are those of `load_t5`; `weights` are those of text_encoder, if they were read before.
    Raises UserError if either is missing or broken; the tokenizer is read first, as it is small.
    """
    tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    return TextEncoder(tokenizer, load_t5(weights or Path(folder) / "text_encoder", dtype, quantize))


class TextEncoder:
    """Turns prompts into embeddings; `release` frees the memory of the weights."""

    def __init__(self, tokenizer: Any, network: T5Encoder):
        self.tokenizer = tokenizer
        self.network: T5Encoder | None = network
        self._shapes: set[tuple[int, int]] = set()  # of the calls so far

    def encode(self, prompts: list[str], max_length: int = MAX_LENGTH) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings (B, L, D) float32 and masks (B, L) int32, 1 for tokens and 0 for padding; L is max_length.

        Prompts are stripped and set in lower case, as Latte-1 was trained, and cut to `max_length` tokens with a
        warning. Equal prompts are encoded once. On CPU they go through the network one by one.
        Raises UserError if the tokenizer is another network's, RuntimeError after `release`.
        """
        if self.network is None:
            raise RuntimeError("the text encoder was released; load it again to encode more prompts")
        texts = [prompt.lower().strip() for prompt in prompts]
        unique = list(dict.fromkeys(texts))
        ids, mask = self.tokenize(unique, max_length)
        size = len(unique) if device.current().batches_videos else 1
        self._shapes.add((size, max_length))
        parts = [
            self.network(ms.Tensor(ids[i : i + size]), ms.Tensor(mask[i : i + size])).asnumpy()
            for i in range(0, len(unique), size)
        ]
        rows = [unique.index(text) for text in texts]
        return np.concatenate(parts)[rows], mask[rows]

    def tokenize(self, texts: list[str], max_length: int = MAX_LENGTH) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and masks of texts as they are, both (B, max_length) int32.

        Raises UserError if there are tokens that the network does not know.
        """
        ids = np.full((len(texts), max_length), self.tokenizer.pad_token_id, np.int32)
        mask = np.zeros((len(texts), max_length), np.int32)
        for row, text in enumerate(texts):
            tokens = self.tokenizer(text, verbose=False)["input_ids"]  # the last one ends the text
            if len(tokens) > max_length:
                cut = self.tokenizer.decode(tokens[max_length - 1 : -1])
                log.warning("the prompt is longer than %d tokens; this part of it is cut off: %s", max_length, cut)
                tokens = [*tokens[: max_length - 1], tokens[-1]]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        known = self.network.config.vocab_size if self.network else ids.max() + 1
        if ids.max() >= known:
            raise UserError(
                f"the tokenizer has a token {ids.max()}, but the text encoder knows {known}; take both from one folder"
            )
        return ids, mask

    def release(self) -> None:
        """Give back the memory of the network's weights; `tokenize` still works."""
        if self.network is None:
            return
        config, dtype, as_int8 = self.network.config, self.network.dtype, holds_int8(self.network)
        self.network = None
        gc.collect()  # cells hold each other in circles
        if device.current().compile_scope != "block":
            return
        # A compiled graph keeps the tensors of its last call, the weights of a block; in a call of a network that was
        # never filled, others take their place that occupy no memory.
        stand_in = T5Encoder(dataclasses.replace(config, num_layers=1, vocab_size=1), dtype)
        if as_int8:
            empty_int8(stand_in)
        for shape in self._shapes:
            stand_in(ms.Tensor(np.zeros(shape, np.int32)), ms.Tensor(np.ones(shape, np.int32))).asnumpy()


class Prompts:
    """The tokenizer and the text encoder of a folder; the embeddings of the last prompts are kept.

    keep: also keep the encoder in memory, so that new prompts need not load it again.
    """

    def __init__(self, folder: str | Path, dtype: str = "fp32", quantize: str | None = None, keep: bool = False):
        self.tokenizer = load_tokenizer(Path(folder) / "tokenizer")  # a folder without one is refused at once
        self.folder, self.dtype, self.quantize, self.keep = Path(folder), dtype, quantize, keep
        self._encoder: TextEncoder | None = None  # what is kept
        self._known: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings (B, 120, D) float32 and masks (B, 120) int32 of prompts.

        The encoder is loaded if there is a prompt that was not encoded before, and released again unless it is kept.
        Raises UserError if it cannot be loaded.
        """
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            encoder = self._encoder or self._load()
            self._encoder = encoder if self.keep else None
            self._known |= dict(zip(new, zip(*encoder.encode(new), strict=True), strict=True))
            if not self.keep:
                encoder.release()
        embeds, masks = zip(*[self._known[prompt] for prompt in prompts], strict=True)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return np.stack(embeds), np.stack(masks)

    def _load(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, load_t5(self.folder / "text_encoder", self.dtype, self.quantize))
