"""Write tests/fixtures/clip with PyTorch and transformers: `python tests/golden/make_clip_fixtures.py`.

A folder as of openai/clip-vit-large-patch14: a whole small CLIP, whose text encoder takes 77 tokens, with a tokenizer
that has learned its words from the captions of the demo data; and what transformers computes from some texts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "clip"
TEXTS = (
    "clouds that drift to the right by day",
    "Clouds that drift to the left  AT NIGHT, under the moon!",
    "",
    "a sunset " * 50,
)
MERGES = ["l o", "lo u", "lou d", "c loud", "cloud s</w>", "t h", "th e</w>", "n i", "d r", "a y</w>", "d ay</w>"]


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer in whose table are all bytes, their forms at the end of a word, the merges and two marks."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (FOLDER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return CLIPTokenizer(str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt"), model_max_length=77)


def network(words: int) -> CLIPModel:
    """Return a CLIP with weights that make every part of its text encoder matter."""
    torch.manual_seed(0)
    text = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
    marks = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config={**text, **marks, "vocab_size": words, "max_position_embeddings": 77},
        vision_config={**image, "image_size": 8, "patch_size": 8},
        projection_dim=8,
    )
    net = CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            elif weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5 * (3 if "embedding" in name else 1))
            else:
                weight.normal_(0, 0.5)
    return net


def main() -> None:
    """Write the folder and the golden values."""
    words = tokenizer()
    net = network(len(words))
    words.save_pretrained(FOLDER)
    net.save_pretrained(FOLDER, safe_serialization=False)
    inputs = words(list(TEXTS), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = net.text_model(input_ids=inputs["input_ids"]).last_hidden_state
    arrays = {"input_ids": inputs["input_ids"].numpy(), "hidden": hidden.numpy(), "texts": np.array(TEXTS)}
    np.savez_compressed(FOLDER / "recorded.npz", **arrays)


if __name__ == "__main__":
    main()
