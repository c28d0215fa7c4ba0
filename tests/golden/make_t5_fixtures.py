"""Write tests/fixtures/t5 with PyTorch and transformers: `python tests/golden/make_t5_fixtures.py`.

A T5 encoder whose heads are together narrower than it, with long distances, and texts of three lengths; and the buckets
of distances for several settings.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "t5"
LENGTHS = (200, 120, 1)
SIZES = {"d_model": 48, "d_kv": 8, "d_ff": 40, "num_layers": 4, "num_heads": 5, "vocab_size": 100}
SETTINGS = ((32, 128), (32, 64), (16, 60), (64, 1000), (8, 20))  # numbers of buckets, largest distances


def network() -> T5EncoderModel:
    """Return an encoder with weights that make every part of it matter."""
    torch.manual_seed(0)
    config = T5Config(
        **SIZES,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=160,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-5,
    )
    net = T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in name:
                weight.normal_(0, 1.5)
            else:
                weight.normal_(0, weight.shape[1] ** -0.5)
    return net


def main() -> None:
    """Write config.json, pytorch_model.bin with the table under both of its names, and the golden values."""
    net = network()
    FOLDER.mkdir(parents=True, exist_ok=True)
    net.config.save_pretrained(FOLDER)
    torch.save(net.state_dict(), FOLDER / "pytorch_model.bin")
    assert "encoder.embed_tokens.weight" in net.state_dict()
    ids = torch.randint(2, SIZES["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids * mask
    with torch.no_grad():
        hidden = net(ids, attention_mask=mask).last_hidden_state
    offsets = torch.arange(-1500, 1501)
    buckets = {
        f"buckets_{count}_{distance}": T5Attention._relative_position_bucket(offsets, True, count, distance).numpy()
        for count, distance in SETTINGS
    }
    arrays = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "hidden": hidden.numpy(), **buckets}
    np.savez_compressed(FOLDER / "recorded.npz", **arrays)


if __name__ == "__main__":
    main()
