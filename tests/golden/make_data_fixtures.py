"""Record what the official transforms do to frames: writes fixtures/transforms.npz.

Run by hand with torch. The official classes compose the operations of PyTorch that are spelled out here: to [0, 1],
central crop, bilinear interpolation without antialiasing, normalisation by 0.5.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate


def centre(x: torch.Tensor, size: int) -> torch.Tensor:
    """Cut out the central square."""
    top, left = (round((side - size) / 2.0) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def main() -> None:
    """Transform a wide and a high clip both ways."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape, size in (("wide", (2, 23, 37, 3), 10), ("high", (2, 41, 18, 3), 24)):
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        short = min(shape[1:3])
        cropped = interpolate(centre(x, short), size=(size, size), mode="bilinear", align_corners=False)
        resized = centre(interpolate(x, scale_factor=size / short, mode="bilinear", align_corners=False), size)
        arrays |= {name: frames, f"{name}_crop_resize": cropped * 2 - 1, f"{name}_resize_crop": resized * 2 - 1}
    np.savez(
        Path(__file__).resolve().parents[1] / "fixtures" / "transforms.npz",
        **{k: np.asarray(v) for k, v in arrays.items()},
    )


if __name__ == "__main__":
    main()
