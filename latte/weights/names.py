"""What weights are called: finding the state dict in a checkpoint, and one style of names for every network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from latte.errors import UserError
from latte.weights.pickle_data import Opaque

SETS = ("ema", "model")  # the averaged weights are what one samples with
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DistributedDataParallel and torch.compile

T2V_KIND = "the transformer of the text-to-video Latte-1"

# What a file holds, by a key that only it has, and the program that converts it.
KINDS = (
    (r"x_embedder\.proj\.weight", "a Latte network", "tools/latte_converter.py"),
    (r"decoder\..*temporal_res_block\..*", "a temporal video decoder", "tools/t2v_converter.py"),
    (r"(first_stage_model\.)?decoder\.conv_in\.weight", "an autoencoder", "tools/vae_converter.py"),
    (r"temporal_transformer_blocks\..*", T2V_KIND, "tools/t2v_converter.py"),
    (r"encoder\.block\.0\.layer\..*", "a T5 text encoder", "tools/t2v_converter.py"),
)

LDM_VAE = "first_stage_model."  # where a whole Stable Diffusion checkpoint keeps its autoencoder
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
VAE_RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
        (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"coder\.norm_out\.", "coder.conv_norm_out."),
        (r"(\.attentions\.0)\.norm\.", r"\1.group_norm."),
        (r"(\.attentions\.0)\.(query|q)\.", r"\1.to_q."),
        (r"(\.attentions\.0)\.(key|k)\.", r"\1.to_k."),
        (r"(\.attentions\.0)\.(value|v)\.", r"\1.to_v."),
        (r"(\.attentions\.0)\.(proj_attn|proj_out)\.", r"\1.to_out.0."),
    )
)
# Of LatteTransformer3DModel files of older versions: a null text that is not used, and embeddings that are computed.
UNUSED_T2V = ("caption_projection.y_embedding", "pos_embed.pos_embed", "temp_pos_embed")
LDM_UP = re.compile(r"^decoder\.up\.(\d+)\.")
ATTENTION = re.compile(r"\.attentions\.\d+\.to_\w+(\.0)?\.weight$")


def kind_of(tensors: Iterable[str]) -> tuple[str, str] | None:
    """Return what a state dict is, in words, and the program that converts it; None for what is not known here."""
    for pattern, what, program in KINDS:
        if any(re.fullmatch(pattern, key) for key in tensors):
            return what, program
    return None


def unnest(obj: Any, which: str | None = None, source: str = "the checkpoint") -> dict[str, np.ndarray]:
    """Return the state dict inside the objects of a checkpoint, without the prefixes of wrappers.

    Known are {"model", "ema"} with either missing, Lightning's {"state_dict": {"model.*", "ema.*"}}, and the bare state
    dict. `which` is "ema" or "model"; None takes "ema" where there is one.
    Raises UserError if the asked one is not there, or there are no tensors at all.
    """
    sets = _sets(obj)
    if not sets:
        raise UserError(f"{source} holds no tensors; name a checkpoint")
    if which is None:
        which = next(name for name in (*SETS, "") if name in sets)
    if which not in sets:
        there = " and ".join(f'"{name}"' if name else "one set without a name" for name in sets)
        raise UserError(f'{source} has no weights called "{which}", it has {there}; ask for those, or for none by name')
    found = {WRAPPERS.sub("", str(key)): value for key, value in sets[which].items()}
    for key, value in found.items():
        if isinstance(value, Opaque) and value.name.startswith("torch._"):
            raise UserError(
                f"{source}: {key} is a tensor of a kind that is not supported ({value.name}); save it dense"
            )
    return {key: value for key, value in found.items() if isinstance(value, np.ndarray)}


def _sets(obj: Any) -> dict[str, Mapping[Any, Any]]:
    """Return the state dicts in a checkpoint by name; a bare one has the name ""."""
    if isinstance(obj, Mapping) and isinstance(obj.get("state_dict"), Mapping):
        obj = obj["state_dict"]
    if not isinstance(obj, Mapping):
        return {}
    nested = {name: obj[name] for name in SETS if isinstance(obj.get(name), Mapping) and obj[name]}
    if nested:
        return nested
    flat = {WRAPPERS.sub("", str(key)): value for key, value in obj.items() if isinstance(value, np.ndarray | Opaque)}
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        name, _, rest = key.partition(".")
        # A whole Stable Diffusion checkpoint has its U-Net under "model.diffusion_model.".
        if name in SETS and not rest.startswith("diffusion_model."):
            grouped.setdefault(name, {})[rest] = value
    return grouped or ({"": flat} if any(isinstance(value, np.ndarray) for value in flat.values()) else {})


def canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict with the names of our networks.

    An autoencoder's become diffusers' present ones, whether they are those, its older ones (`query`, `proj_attn`) or
    those of latent-diffusion (`encoder.down.0.block.0`, 1 x 1 convolutions for attention), also inside a whole Stable
    Diffusion checkpoint, of which the rest is left out. A text-to-video transformer loses what it does not use. Other
    networks stay as they are.
    """
    if any(key.startswith("temporal_transformer_blocks.") for key in tensors):
        return {key: value for key, value in tensors.items() if key not in UNUSED_T2V}
    inside = {key.removeprefix(LDM_VAE): value for key, value in tensors.items() if key.startswith(LDM_VAE)}
    vae = inside or dict(tensors)
    if "decoder.conv_in.weight" not in vae:
        return dict(tensors)
    levels = [int(match[1]) for key in vae if (match := LDM_UP.match(key))]
    if levels:  # such files also hold the discriminator of their training
        vae = {key: value for key, value in vae.items() if key.startswith(VAE_PARTS)}
    renamed = {}
    for key, value in vae.items():
        # latent-diffusion counts resolutions from the finest up in both directions, diffusers in order of use.
        key = LDM_UP.sub(lambda match: f"decoder.up.{max(levels) - int(match[1])}.", key)
        for pattern, name in VAE_RULES:
            key = pattern.sub(name, key)
        is_matrix = ATTENTION.search(key) and value.shape[2:] == (1, 1)
        renamed[key] = value.reshape(value.shape[:2]) if is_matrix else value
    if len(renamed) < len(vae):
        raise UserError("the checkpoint has some weights of its autoencoder twice, under old and new names; keep one")
    return renamed
