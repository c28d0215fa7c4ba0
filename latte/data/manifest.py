"""What manifest.json and the journals of a latent cache may say, checked once when they are read."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT, OLDER = "latte-cache-2", "latte-cache-1"  # the older one has no checksums of frames
DTYPES = {"fp16": np.float16, "fp32": np.float32}
SUFFIXES = {"numpy": "npy", "mindrecord": "mindrecord"}  # of files, by cache_file_type
REMAKE = "make the cache again"
MOST = 2**31 - 1  # videos, frames and classes
MAX_SIDE, MAX_FRAME = 2**16, 2**28  # of an image and of its latents; elements of the moments of a frame

Rule = tuple["Callable[[Any], bool]", str]  # whether a value is allowed, and what it must be


def _whole(low: int, high: int) -> Rule:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}"


def _one_of(*values: str) -> Rule:
    return lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}"


def _is_frame(value: Any) -> bool:
    sides = isinstance(value, list) and len(value) == 3 and all(_whole(1, MAX_SIDE)[0](side) for side in value)
    return sides and value[0] % 2 == 0 and math.prod(value) <= MAX_FRAME


_TEXT: Rule = (lambda value: isinstance(value, str), "a text")
_HASH: Rule = (lambda value: isinstance(value, str) and re.fullmatch("([0-9a-f]{64})?", value) is not None, "a SHA-256")
_SCALE: Rule = (lambda value: type(value) in (int, float) and 0 < value < math.inf, "a finite number above 0")
_FILE: Rule = (
    lambda value: (
        isinstance(value, str) and re.fullmatch(r"(\d{8,19}\.(npy|mindrecord))?", value, re.ASCII) is not None
    ),
    "the name of a file of this cache, such as 00000000.npy",
)
_FRAME_SHAPE: Rule = (_is_frame, "three sizes, channels (an even number), height and width")
_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_CLASSES: Rule = (
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "a list of names",
)

MANIFEST_RULES: dict[str, Rule] = {
    "format": _one_of(FORMAT, OLDER),
    "settings": (lambda value: isinstance(value, dict), "an object with the options that the cache was made with"),
    "classes": _CLASSES,
    "total": _whole(1, MOST),
    "videos": (lambda value: isinstance(value, list), "a list of videos"),
}
SETTINGS: dict[str, Rule] = {
    "vae_checkpoint": (lambda value: isinstance(value, str) and value != "", "the SHA-256 of an autoencoder's weights"),
    "image_size": _whole(1, MAX_SIDE),
    "transform": _TEXT,
    "sd_scale_factor": _SCALE,
    "cache_dtype": _one_of(*DTYPES),
    "cache_file_type": _one_of(*SUFFIXES),
    "flip": _FLAG,
    "frame_shape": _FRAME_SHAPE,
}
SETTINGS_OPTIONAL: dict[str, Rule] = {"reader": _TEXT}  # what decoded the video files
VIDEO: dict[str, Rule] = {
    "index": _whole(0, MOST),
    "path": _TEXT,
    "label": _whole(0, MOST),
    "caption": _TEXT,
    "frames": _whole(0, MOST),
    "file": _FILE,
    "sha256": _HASH,
    "error": _TEXT,
}
VIDEO_OPTIONAL: dict[str, Rule] = {"structure": _HASH}  # since format 2


def read_manifest(text: str, source: str) -> dict[str, Any]:
    """Return the checked content of a manifest, its videos with the keys of `VIDEO` only.

    Raises UserError that names the key if it is damaged or of another format.
    """
    content = _parse(text, source)
    known = content.get("format")
    if isinstance(known, str) and known not in (FORMAT, OLDER):
        raise UserError(f"{source} is of the format {known[:40]!r}, but {FORMAT!r} is what can be read; {REMAKE}")
    content = _checked(content, MANIFEST_RULES, source)
    given = {name: rule for name, rule in SETTINGS_OPTIONAL.items() if name in content["settings"]}
    content["settings"] |= _checked(content["settings"], SETTINGS | given, source, "settings.")
    content["videos"] = [_video(video, source, f"videos[{k}].", content) for k, video in enumerate(content["videos"])]
    return content


def read_journal_line(line: str, source: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the video of a line of a journal; raises UserError as `read_manifest`."""
    return _video(_parse(line, source), source, "", manifest)


def _video(video: Any, source: str, place: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a checked video; raises UserError if a key is wrong, or does not fit the rest of the manifest."""
    given = VIDEO_OPTIONAL.keys() & video.keys() if isinstance(video, dict) else ()
    video = _checked(video, VIDEO | {name: VIDEO_OPTIONAL[name] for name in given}, source, place)
    suffix, classes = SUFFIXES[manifest["settings"]["cache_file_type"]], manifest["classes"]
    for name, fits, wanted in (
        ("index", video["index"] < manifest["total"], f"less than total, {manifest['total']}"),
        ("label", not classes or video["label"] < len(classes), f"less than the number of classes, {len(classes)}"),
        ("file", bool(video["file"]) != bool(video["error"]), "set unless error is"),
        ("file", not video["file"] or video["file"].endswith(f".{suffix}"), f"a .{suffix} file"),
        ("frames", bool(video["frames"]) == bool(video["file"]), "a number from 1 on if file is set, else 0"),
    ):
        if not fits:
            raise _damaged(source, f"{place}{name}", video[name], wanted)
    return video


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is damaged: {error}; {REMAKE}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} is damaged: it holds no JSON object; {REMAKE}")
    return content


def _checked(values: Any, rules: dict[str, Rule], source: str, place: str = "") -> dict[str, Any]:
    """Return the values that have rules; raises UserError if one is missing or not allowed."""
    if not isinstance(values, dict):
        raise _damaged(source, place.rstrip("."), values, "an object")
    for name, (allowed, wanted) in rules.items():
        if name not in values:
            raise UserError(f"{source} is damaged: it has no {place}{name}; {REMAKE}")
        if not allowed(values[name]):
            raise _damaged(source, f"{place}{name}", values[name], wanted)
    return {name: values[name] for name in rules}


def _damaged(source: str, name: str, value: Any, wanted: str) -> UserError:
    shown = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return UserError(f"{source} is damaged: {name} is {shown}, but must be {wanted}; {REMAKE}")
