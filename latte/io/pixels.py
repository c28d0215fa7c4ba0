"""One video as uint8 (F, H, W, 3), from every form that people have it in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latte.errors import UserError, first_line
from latte.io.images import to_rgb

_NEAR = 1e-3  # how far rounding errors take a video from 0 to 1 out of its range


def as_frames(frames: Any) -> np.ndarray:
    """Return one video, in whatever form it is, as uint8 (F, H, W, 3).

    frames: (F, H, W, C), whose fourth channel, transparency, is left out; (F, 3, H, W) or (F, 1, H, W);
    (F, H, W); one image (H, W, 3); a batch of one video; or a list of such images, of images of Pillow, or of tensors.
    Whole numbers are from 0 to 255, others from 0 to 1, or to 255 if one is larger than 1. Raises UserError for other
    shapes, and for values outside the range.
    """
    return _as_bytes(_as_rgb(_as_array(frames)))


def _as_array(frames: Any) -> np.ndarray:
    """Return images as one array, whatever they are."""
    if isinstance(frames, Image.Image):
        frames = [frames]
    if hasattr(frames, "__array__") or hasattr(frames, "asnumpy"):
        return _plain(frames)
    if isinstance(frames, (str, bytes, Path)):
        raise UserError(f"the frames are the text {str(frames)!r}; pass the video's frames first, then the path")
    try:
        parts = list(frames)
    except TypeError as error:
        raise UserError(
            f"the frames are of the type {type(frames).__name__}; pass an array or a list of images"
        ) from error
    if not parts:
        raise UserError("the video has no frames")
    images = []
    for number, part in enumerate(parts):
        if isinstance(part, Image.Image):
            images.append(np.asarray(part) if part.mode in ("I", "F") else to_rgb(part.copy(), f"frame {number}"))
        else:
            images.append(_as_array(part) if isinstance(part, (list, tuple)) else _plain(part))
        if images[-1].shape != images[0].shape:
            raise UserError(f"frame {number} has the shape {images[-1].shape}, but the first one {images[0].shape}")
        if images[-1].dtype != images[0].dtype:  # 0 to 255 beside 0 to 1 would be as good as black
            raise UserError(f"frame {number} holds {images[-1].dtype} values, but the first one {images[0].dtype}")
    return np.stack(images)


def _plain(array: Any) -> np.ndarray:
    """Return an array of NumPy from one or from a tensor, bfloat16 as float32."""
    if hasattr(array, "asnumpy"):  # MindSpore
        array = array.float().asnumpy() if "BFloat16" in str(array.dtype) else array.asnumpy()
    try:
        array = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:  # tensors of other libraries: on a device, with gradients
        raise UserError(f"the frames cannot be read as an array of NumPy: {first_line(error)}") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"the frames hold values of the type {array.dtype}; pass numbers or images")
    return array


def _as_rgb(array: np.ndarray) -> np.ndarray:
    """Return an array of another layout as (F, H, W, 3)."""
    shape = array.shape
    if array.ndim == 5 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = array[None]  # one image: nobody has a grey video 3 pixels wide
    elif array.ndim == 2:
        array = array[None, ..., None]
    elif array.ndim == 3:
        array = array[..., None]
    # (3, 1, H, W) may be three grey frames, or a single one in colour with its channels in front of all.
    channels_first = array.ndim == 4 and array.shape[-1] not in (1, 3, 4) and array.shape[1] in (1, 3)
    if channels_first and array.shape[:2] != (3, 1):
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise UserError(f"the frames have the shape {shape}; pass one video as (F, H, W, 3), (F, 3, H, W) or (F, H, W)")
    if array.size == 0:
        raise UserError(f"the video has no frames: its shape is {shape}")
    return np.repeat(array, 3, -1) if array.shape[-1] == 1 else array[..., :3]


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1 or from 0 to 255 as bytes."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = float(array.min()), float(array.max())  # NaN if one of the values is
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError("the frames hold values that are not finite")
    whole = array.dtype.kind in "iu"
    if not (low >= -_NEAR and high <= 255 + _NEAR) or (not whole and 1 + _NEAR < high < 2):
        hint = "; bring -1 to 1 to 0 to 1 with (frames + 1) / 2" if not whole and -2 < low < 0 and high < 2 else ""
        raise UserError(
            f"the frames hold values from {low:g} to {high:g}, but must be from 0 to 255"
            f"{'' if whole else ' or from 0 to 1'}{hint or '; clip or scale them'}"
        )
    if whole:
        return array.astype(np.uint8)
    scale = 255 if high <= 1 + _NEAR else 1
    return (np.clip(array.astype(np.float32), 0, 255 // scale) * scale + 0.5).astype(np.uint8)
