"""From frames to pixels: centre crops, bilinear resizing, and the range of the autoencoder."""

from __future__ import annotations

import numpy as np


def to_pixels(frames: np.ndarray, size: int, transform: str, flip: bool = False) -> np.ndarray:
    """Return square pixels in [-1, 1] of frames, mirrored if `flip`.

    uint8 (F, H, W, 3) -> float32 (F, 3, size, size). "crop_resize" takes the central square of the short edge and
    resizes it; "resize_crop" resizes the short edge to `size` and takes the centre.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    if transform == "crop_resize":
        x = resize(centre(frames, short), (size, size))
    else:
        # As PyTorch's interpolate with a scale factor: the new size is rounded down, the scale stays what it is. But
        # 322 * (256 / 322) is just below 256: without the `max`, such frames would lose a row, and a batch its shape.
        scale = size / short
        x = centre(resize(frames, (max(int(height * scale), size), max(int(width * scale), size)), scale), size)
    return pixels_of(x[:, :, ::-1] if flip else x)


def pixels_of(frames: np.ndarray) -> np.ndarray:
    """Return frames (F, H, W, 3) from 0 to 255 as pixels (F, 3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray(np.moveaxis(frames, -1, 1), np.float32) / np.float32(127.5) - 1


def centre(frames: np.ndarray, size: int) -> np.ndarray:
    """Return the central square (F, size, size, 3); an odd pixel too many is split as PyTorch's round does."""
    top, left = (round((side - size) / 2.0) for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def resize(frames: np.ndarray, size: tuple[int, int], scale: float | None = None) -> np.ndarray:
    """Return frames (F, H, W, C) at another size (h, w) as float32: bilinear, centres aligned, no antialiasing."""
    if frames.shape[1:3] == size:
        return frames
    rows, columns = (_taps(old, new, scale) for old, new in zip(frames.shape[1:3], size, strict=True))
    x = _mix(frames, rows, 1)
    return _mix(x, columns, 2)


def _taps(old: int, new: int, scale: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each new position, its two neighbours and the weight of the second."""
    position = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
    position = np.maximum(position, 0)
    low = np.minimum(position.astype(int), old - 1)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _mix(x: np.ndarray, taps: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int) -> np.ndarray:
    low, high, share = taps
    share = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    first = np.take(x, low, axis).astype(np.float32)
    second = np.take(x, high, axis).astype(np.float32)
    second -= first
    second *= share
    second += first
    return second
