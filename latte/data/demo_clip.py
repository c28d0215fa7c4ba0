"""A text encoder for the demo data: CLIP's network with random weights, which knows the captions' words by name only.

Its embeddings tell captions apart, so a network learns which videos belong to them; that "dusk" is like "sunset" it
cannot tell.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from latte.data.demo import CLASSES, caption
from latte.io.atomic import atomic_folder
from latte.weights.safetensors_file import write_safetensors

if TYPE_CHECKING:
    from pathlib import Path

SEED = 3407
WIDTH, TOKENS, HEADS = 768, 77, 12  # as ViT-L/14
MARKS = ("<|startoftext|>", "<|endoftext|>")
QUIET = 0.1  # of the last norm: 59136 inputs of 1 would change the condition by 10 in a step of AdamW at 4e-4


def write_demo_clip(folder: Path) -> None:
    """Write the folder that text_encoder_path takes: a tokenizer whose words are those of the captions, and weights.

    Raises UserError if it cannot be written.
    """
    words, merges = _vocabulary()
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "vocab_size": len(words),
        "max_position_embeddings": TOKENS,
        "layer_norm_eps": 1e-5,
    }
    start, end = MARKS
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
    }
    with atomic_folder(folder) as temporary:
        _write_json(temporary / "vocab.json", {word: number for number, word in enumerate(words)})
        (temporary / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
        _write_json(temporary / "tokenizer_config.json", tokenizer)
        _write_json(temporary / "config.json", config)
        write_safetensors(temporary / "model.safetensors", _weights(len(words)), {"format": "pt"})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")


def _vocabulary() -> tuple[list[str], list[str]]:
    """Return the tokens, and the merges that make one token of each word of the captions."""
    letters = [*map(chr, range(ord("!"), ord("~") + 1)), *map(chr, [*range(0xA1, 0xAD), *range(0xAE, 0x100)])]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # bytes that do not print, as GPT-2 spells them
    captions = [caption(label, seed) for label in range(len(CLASSES)) for seed in range(16)]
    words = sorted({word for text in captions for word in text.split()}, key=lambda word: (-len(word), word))
    merges = dict.fromkeys(merge for word in words for merge in _merges_of(word))  # each once, in order
    return [*letters, *(f"{x}</w>" for x in letters), *(x.replace(" ", "") for x in merges), *MARKS], list(merges)


def _merges_of(word: str) -> list[str]:
    parts = [*word[:-1], f"{word[-1]}</w>"]
    return [f"{''.join(parts[:i])} {parts[i]}" for i in range(1, len(parts))]


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    """Return random weights under their official names; every matrix keeps the size of what it multiplies."""
    rng = np.random.default_rng(SEED)

    def draw(rows: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, WIDTH)) * scale).astype(np.float32)

    layer = "encoder.layers.0"
    weights = {"embeddings.token_embedding.weight": draw(vocabulary, 1.0)}
    weights["embeddings.position_embedding.weight"] = draw(TOKENS, 0.3)
    names = [*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]
    for name in names:
        weights[f"{layer}.{name}.weight"] = draw(WIDTH, WIDTH**-0.5)
        weights[f"{layer}.{name}.bias"] = np.zeros(WIDTH, np.float32)
    for name, scale in ((f"{layer}.layer_norm1", 1.0), (f"{layer}.layer_norm2", 1.0), ("final_layer_norm", QUIET)):
        weights[f"{name}.weight"] = np.full(WIDTH, scale, np.float32)
        weights[f"{name}.bias"] = np.zeros(WIDTH, np.float32)
    return {f"text_model.{name}": values for name, values in weights.items()}
