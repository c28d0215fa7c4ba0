"""Record what diffusers' LatteTransformer3DModel computes at lengths and sizes that the reference data does not have.

Needs PyTorch and diffusers; run by hand: `python tests/golden/make_t2v_fixtures.py`. The weights are those of
tests/fixtures/latte_t2v.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import LatteTransformer3DModel

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CASES = {  # frames, latents, batch, tokens, sample_size
    "long_wide": (6, (4, 12), 2, 9, 8),
    "large": (3, (8, 8), 1, 5, 128),  # positions in fractions of a patch
}


def main() -> None:
    """Write tests/fixtures/latte_t2v_sizes.npz."""
    torch.manual_seed(0)
    arrays = {}
    for name, (frames, (h, w), batch, tokens, sample_size) in CASES.items():
        net = LatteTransformer3DModel.from_pretrained(
            FIXTURES / "latte_t2v" / "transformer", video_length=frames, sample_size=sample_size
        ).eval()
        x, text = torch.randn(batch, 4, frames, h, w), torch.randn(batch, tokens, 32)
        t = torch.arange(batch) * 300 + 123
        with torch.no_grad():
            out = net(x, t, text).sample
        video = {"x": x.transpose(1, 2), "out": out.transpose(1, 2), "t": t, "text": text}
        arrays |= {f"{name}_{key}": value.contiguous().numpy() for key, value in video.items()}
    np.savez_compressed(FIXTURES / "latte_t2v_sizes.npz", **arrays)


if __name__ == "__main__":
    main()
