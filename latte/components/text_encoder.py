"""From prompts to what networks are conditioned on: a tokenizer and encoder, T5's or CLIP's, out of local folders."""

from __future__ import annotations

import gc
import logging
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from latte.components.loading import KINDS, Source, Weights, load, read
from latte.components.quantize import check_kind, empty_int8, holds_int8, is_quantized
from latte.components.streaming import StreamedT5
from latte.errors import UserError
from latte.io.json_files import check_numbers, check_regular, read_json
from latte.models.latte import CLIP_TEXT
from latte.runtime import device

if TYPE_CHECKING:
    from latte.models.clip import ClipTextEncoder
    from latte.models.t5 import T5Config, T5Encoder

    TextNetwork = T5Encoder | ClipTextEncoder | StreamedT5

log = logging.getLogger("latte")
KEPT = 64  # embeddings of prompts, of 2 MB each
AT_ONCE = 8  # prompts per call of the network on an accelerator; a CPU takes one
LARGEST = 32 << 20  # bytes of a file of a tokenizer; T5's have one or two MiB
VOCABULARIES = {  # groups of files, each a whole tokenizer
    "t5": (("tokenizer.json",), ("spiece.model",)),
    "clip": (("tokenizer.json",), ("vocab.json", "merges.txt")),
}


def places(folder: str | Path, kind: str) -> tuple[Path, Path]:
    """Return where the tokenizer and the weights of a text encoder lie: in folders of a pipeline, or CLIP's in one.

    Raises UserError if the folder holds neither.
    """
    root = Path(folder)
    tokenizer, encoder = root / "tokenizer", root / KINDS[kind].folder
    if kind == "clip" and not encoder.is_dir():
        tokenizer = encoder = root
    if not encoder.is_dir() or not holds_tokenizer(tokenizer, kind):
        alone = f", or is no folder of {KINDS[kind].official} itself" if kind == "clip" else ""
        raise UserError(
            f"text_encoder_path {root} does not hold the folders tokenizer and {KINDS[kind].folder}{alone}; "
            "name one that does"
        )
    return tokenizer, encoder


def holds_tokenizer(folder: Path, kind: str) -> bool:
    """Return whether a folder holds a whole tokenizer."""
    return any(all((folder / name).is_file() for name in names) for names in VOCABULARIES[kind])


def load_t5(source: Source, dtype: str = "fp32", quantize: str | None = None) -> T5Encoder:
    """Return the T5 encoder in a folder (config.json beside its weights, in shards or not), a file, or weights read.

    Its weights are kept in `dtype`, which halves their memory with fp16 and bf16 (on CPU, bf16 keeps float32). A
    warning says if memory is too small. Options and errors are those of `loading.load`.
    """
    as_int8, found = check_kind(quantize) is not None, read(source, "t5")
    as_int8 = as_int8 or is_quantized(found.tensors)
    _warn_of_memory(t5_bytes(found.config, device.compute_dtype(dtype), as_int8))
    return load(found, "t5", dtype=dtype, quantize=quantize)


def encoder_bytes(weights: Weights, compute: ms.Type, quantize: str | None) -> tuple[int, int]:
    """Return about how many bytes of a text encoder's weights are in memory at once, and how many there are.

    T5 is read block by block; CLIP is float32 whatever it computes in.
    """
    if weights.kind.name == "clip":
        return (weights.config.parameter_count * 4,) * 2
    as_int8 = bool(quantize) or is_quantized(weights.tensors)
    block, whole = (t5_bytes(config, compute, as_int8) for config in (weights.config.smallest(), weights.config))
    return block, whole


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


def load_tokenizer(folder: str | Path, kind: str = "t5") -> Any:
    """Return the tokenizer, of kind "t5" or "clip", in a folder that holds its vocabulary.

    Raises UserError if there is none, or it is broken.
    """
    folder = Path(folder)
    # Without one, transformers makes a tokenizer that knows no words.
    if not holds_tokenizer(folder, kind):
        names = " or ".join(" and ".join(group) for group in VOCABULARIES[kind])
        raise UserError(f"{folder} holds no tokenizer ({names}); name a tokenizer folder")
    _check_tokenizer(folder)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would ask for torch, which nothing here needs
    from transformers import CLIPTokenizer, T5Tokenizer  # imported late: it takes seconds, which only prompts are worth

    tokenizer: Any = CLIPTokenizer if kind == "clip" else T5Tokenizer
    try:
        return tokenizer.from_pretrained(str(folder), local_files_only=True)
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


def read_encoder(folder: str | Path, kind: str, width: int) -> Weights:
    """Read the weights of a text encoder, "t5" or "clip", beside a tokenizer, without loading them into memory.

    Raises UserError unless the folder holds both, and the encoder is complete and has this width.
    """
    _, encoder = places(folder, kind)
    found = read(encoder, kind)
    if found.config.width != width:
        raise UserError(
            f"the text encoder in {folder} is {found.config.width} wide, but the network takes {width}; name its own"
        )
    if kind == "clip" and found.config.max_length != CLIP_TEXT[0]:
        raise UserError(
            f"the text encoder in {folder} takes {found.config.max_length} tokens, but the network {CLIP_TEXT[0]}; "
            "name that of openai/clip-vit-large-patch14"
        )
    return found


def load_text_encoder(
    folder: str | Path,
    dtype: str = "fp32",
    quantize: str | None = None,
    weights: Weights | None = None,
    kind: str = "t5",
    stream: bool = False,
) -> TextEncoder:
    """Return the text encoder of a folder that `places` knows, such as that of Latte-1.

    `dtype` and `quantize` are those of `load_t5`; `weights` are those of text_encoder, if they were read before. With
    `stream` a T5 is never loaded as a whole: each call of `encode` reads its blocks, one after another.
    Raises UserError if either is missing or broken; the tokenizer is read first, as it is small.
    """
    tokenizer, encoder = places(folder, kind)
    loaded = load_tokenizer(tokenizer, kind)
    return TextEncoder(loaded, _network(weights or encoder, kind, dtype, quantize, stream))


def _network(source: Source, kind: str, dtype: str, quantize: str | None, stream: bool) -> TextNetwork:
    """Return a text encoder; that of CLIP is so small that it is always loaded, and no warning of memory is due."""
    if kind == "clip":
        return load(source, "clip", dtype=dtype, quantize=quantize)
    if stream:
        return StreamedT5(read(source, "t5"), device.compute_dtype(dtype), check_kind(quantize) is not None)
    return load_t5(source, dtype, quantize)


class TextEncoder:
    """Turns prompts into embeddings; `release` frees the memory of the weights."""

    def __init__(self, tokenizer: Any, network: TextNetwork):
        self.tokenizer = tokenizer
        self.network: TextNetwork | None = network
        self.max_length: int = network.config.max_length  # tokens of a prompt
        self._shapes: set[tuple[int, ...]] = set()  # of the calls so far

    def encode(self, prompts: list[str], max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings (B, L, D) float32 and masks (B, L) int32, 1 for tokens and 0 for padding; L is max_length.

        Prompts are cut to `max_length` tokens, by default as many as the network was trained with, with a warning; for
        T5 they are stripped and set in lower case, as Latte-1 was trained, which CLIP's tokenizer does by itself.
        Equal prompts are encoded once. On CPU they go through the network one by one.
        Raises UserError if the tokenizer is another network's, RuntimeError after `release`.
        """
        if self.network is None:
            raise RuntimeError("the text encoder was released; load it again to encode more prompts")
        max_length = max_length or self.max_length
        texts = [prompt.lower().strip() for prompt in prompts] if self.network.config.lowers else prompts
        unique = list(dict.fromkeys(texts))
        ids, mask = self.tokenize(unique, max_length)
        size = AT_ONCE if device.current().batches_videos else 1
        parts = [(ids[i : i + size], mask[i : i + size]) for i in range(0, len(unique), size)]
        self._shapes |= {part.shape for part, _ in parts}
        if isinstance(self.network, StreamedT5):
            found = self.network(parts)
        else:
            found = [self.network(ms.Tensor(part), ms.Tensor(kept)).asnumpy() for part, kept in parts]
        rows = [unique.index(text) for text in texts]
        return np.concatenate(found)[rows], mask[rows]

    def tokenize(self, texts: list[str], max_length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and masks of texts as they are, both (B, max_length) int32.

        Raises UserError if there are tokens that the network does not know.
        """
        max_length = max_length or self.max_length
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
        network = self.network.net if isinstance(self.network, StreamedT5) else self.network
        kind: Any = type(network)
        make = partial(kind, network.config.smallest(), network.dtype)
        as_int8 = holds_int8(network)
        self.network = network = None
        gc.collect()  # cells hold each other in circles
        if device.current().compile_scope != "block":
            return
        # A compiled graph keeps the tensors of its last call, the weights of a block; in a call of a network that was
        # never filled, others take their place that occupy no memory.
        stand_in = make()
        if as_int8:
            empty_int8(stand_in)
        for shape in self._shapes:
            stand_in(ms.Tensor(np.zeros(shape, np.int32)), ms.Tensor(np.ones(shape, np.int32))).asnumpy()


class Prompts:
    """The tokenizer and the text encoder, "t5" or "clip", of a folder; the embeddings of the last prompts are kept.

    keep: also keep the encoder in memory, so that new prompts need not read it again; else a T5 is never there as a
    whole, but read block by block.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: str = "fp32",
        quantize: str | None = None,
        keep: bool = False,
        kind: str = "t5",
    ):
        tokenizer, self.encoder = places(folder, kind)
        self.tokenizer = load_tokenizer(tokenizer, kind)  # a folder without one is refused at once
        self.folder, self.kind, self.dtype, self.quantize, self.keep = Path(folder), kind, dtype, quantize, keep
        self._encoder: TextEncoder | None = None  # what is kept
        self._known: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def encode(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings (B, L, D) float32 and masks (B, L) int32 of prompts: 120 tokens for T5, 77 for CLIP.

        The encoder is read if there is a prompt that was not encoded before, and released again unless it is kept.
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
        network = _network(self.encoder, self.kind, self.dtype, self.quantize, stream=not self.keep)
        return TextEncoder(self.tokenizer, network)
