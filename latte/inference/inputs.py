"""From what a user gives - prompts, labels, seeds, frames - to the arrays that a network takes, a row a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latte.components.text_encoder import Prompts
from latte.errors import UserError
from latte.inference.latents import Conditions
from latte.models.latte import CLIP_TEXT, LatteConfig
from latte.models.latte_t2v import LatteT2VConfig

Prompt = str | Sequence[str] | None
Embeds = tuple[Any, Any]  # of the prompts and of what guidance steers away from; either may be None


def random_label(seed: int, num_classes: int) -> int:
    """Return the class that a video draws from its seed, by a stream of its own beside that of the noise."""
    return int(np.random.Generator(np.random.Philox(key=[seed, 1])).integers(num_classes))


def seeds_of(seed: int | Sequence[int] | None, generator: np.random.Generator | None, count: int) -> list[int]:
    """Return a seed a video: counted up from one, as listed, or drawn; raises UserError for too few."""
    if seed is None:
        drawn = (generator or np.random.default_rng()).integers(2**32, size=count)
        return [int(value) for value in drawn]
    if generator is not None:
        raise UserError("give either a seed or a generator")
    seeds = [seed + k for k in range(count)] if isinstance(seed, int | np.integer) else [int(value) for value in seed]
    if len(seeds) != count or min(seeds) < 0:
        raise UserError(f"there are {count} videos, but {len(seeds)} seeds: {seeds[:8]}; they count from 0 on")
    return seeds


def text_conditions(
    config: LatteT2VConfig,
    prompts: Prompts | None,
    texts: tuple[Prompt, Prompt],
    embeds: Embeds,
    guided: bool,
    mask_feature: bool = True,
) -> tuple[Conditions, Conditions]:
    """Return text (B, S, D) and mask (B, S) of what to follow, and of what guidance steers away from, or nothing.

    `texts` are prompt and negative prompt; either embeds or texts are given. The mask of both is that of the prompt,
    since the original cuts the negative prompt to its length; without mask_feature it is all ones.
    Raises UserError for anything else.
    """
    (prompt, negative_prompt), (given, negative) = texts, embeds
    if (prompt is None) == (given is None):
        raise UserError("give either a prompt or prompt_embeds")
    follow = [] if prompt is None else _list(prompt, "prompt")
    count = len(follow) if given is None else len(given)
    against = _list(negative_prompt, "negative_prompt", count) if guided and negative is None else []
    if follow or against:
        if prompts is None:
            raise UserError("this pipeline has no text encoder; give prompt_embeds and negative_prompt_embeds")
        encoded, masks = prompts.encode([*follow, *against])
    text = _checked(encoded[:count] if given is None else given, "prompt_embeds", count, config.caption_channels)
    mask = masks[:count] if given is None and mask_feature else np.ones(text.shape[:2], np.int32)
    if not guided:
        return (text, mask), ()
    null = _checked(
        encoded[-count:] if negative is None else negative, "negative_prompt_embeds", count, config.caption_channels
    )
    if null.shape != text.shape:
        raise UserError(f"negative_prompt_embeds are {null.shape}, but prompt_embeds are {text.shape}")
    return (text, mask), (null, mask)


def label_conditions(
    config: LatteConfig, labels: int | Sequence[int] | None, embeds: Embeds, guided: bool
) -> tuple[Conditions, Conditions]:
    """Return the conditions of a network without a text encoder, and what guidance steers away from, or nothing.

    They are labels (B,), CLIP text (B, 77, 768) that comes as embeds, or nothing. Raises UserError if what is given is
    not what the network takes.
    """
    text, null = embeds
    kind, wanted = config.condition, {"class": "class_labels", "text": "prompt_embeds"}
    given = {"class_labels": labels, "prompt_embeds": text}
    for name, value in given.items():
        if value is not None and wanted.get(kind) != name:
            raise UserError(f"{name} are given, but this network is conditioned on {kind or 'nothing'}")
    if kind is None:
        if guided:
            raise UserError("guidance_scale other than 1 needs a conditional model; this one has no condition")
        return (), ()
    if given[wanted[kind]] is None:
        raise UserError(f"this model is conditioned on {kind}: give {wanted[kind]}, one a video")
    if kind == "class":
        labels = np.atleast_1d(np.asarray(labels, np.int32))
        if labels.ndim != 1 or labels.min() < 0 or labels.max() > config.num_classes:
            raise UserError(f"class labels are 0 to {config.num_classes - 1}; got {labels.tolist()}")
        return (labels,), (np.full_like(labels, config.num_classes),) if guided else ()
    text = np.asarray(text, np.float32)
    if text.shape[1:] != CLIP_TEXT:
        raise UserError(f"prompt_embeds are {text.shape}; this network takes (B, {CLIP_TEXT[0]}, {CLIP_TEXT[1]})")
    if not guided:
        return (text,), ()
    if null is None:
        raise UserError("guidance of a text model needs the embedding of the empty prompt as negative_prompt_embeds")
    return (text,), (np.array(np.broadcast_to(np.asarray(null, np.float32), text.shape)),)


def _list(prompt: Prompt, name: str, count: int | None = None) -> list[str]:
    """Return texts as a list; a single one may stand for `count`."""
    texts = [prompt] * (count or 1) if isinstance(prompt, str) else list(prompt or ())
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a text or a list of one or more texts")
    for text in texts:
        if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            raise UserError(f"{name} {text!r} is no valid Unicode: it has half of a character")
    if count is not None and len(texts) != count:
        raise UserError(f"there are {count} prompts, but {len(texts)} of {name}")
    return texts


def _checked(values: Any, name: str, count: int, width: int) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.ndim != 3 or values.shape[2] != width or len(values) != count:
        raise UserError(f"{name} are {values.shape}; this network takes ({count}, tokens, {width})")
    return values
