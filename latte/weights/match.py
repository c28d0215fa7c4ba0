"""From named arrays to networks: what sizes a state dict has, fitting it to others, and loading it strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from latte.errors import UserError
from latte.weights.dtypes import numpy_dtype
from latte.weights.files import CONFIG
from latte.weights.mapped import release_pages
from latte.weights.names import kind_of

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the official sizes, by width
NORM_GROUPS = 32  # of every released autoencoder
SCALING_FACTOR = 0.18215  # of the Stable Diffusion 1 and 2 autoencoders
SHOWN = 5  # names of each kind in an error


def load_state(net: nn.Cell, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter of a network, in its own dtype: a float16 file into a float32 network is cast.

    Memory for one parameter at a time is needed besides the network's.
    Raises UserError that lists missing, unexpected and mis-shaped names; then nothing is loaded.
    """
    check_state(net, tensors, source)
    set_values(dict(net.parameters_and_names()), tensors)


def set_values(parameters: Mapping[str, ms.Parameter], tensors: Mapping[str, np.ndarray]) -> None:
    """Set parameters, each in its own dtype, from the tensors of their names."""
    for name, parameter in parameters.items():
        dtype = numpy_dtype(str(parameter.dtype).lower())
        # A copy, as the file's pages are read-only and may not be aligned.
        parameter.set_data(ms.Tensor.from_numpy(np.array(tensors[name], dtype, order="C")))
        release_pages(tensors[name])


def check_state(net: nn.Cell, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Compare names and shapes with those of a network; raises UserError that lists what differs."""
    wanted = {name: tuple(parameter.shape) for name, parameter in net.parameters_and_names()}
    lists = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "mis-shaped": [
            f"{name} {tensors[name].shape} for {shape}"
            for name, shape in wanted.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    found = [f"{len(names)} {what} ({_first(names)})" for what, names in lists.items() if names]
    if found:
        raise UserError(
            f"{source} does not fit the network: {'; '.join(found)}; check the options that size the network"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def infer_latte_config(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    num_heads: int | None = None,
    source: str = "the checkpoint",
) -> dict[str, Any]:
    """Return the configuration of a Latte network as a dict with the fields of LatteConfig.

    Read off the shapes; metadata["config"] adds a latent size that is not square, and the number of heads, which
    `num_heads` gives where it does not and the official widths imply.
    Raises UserError if the tensors are not a Latte network's, or the number of heads is not known.
    """
    label = "y_embedder.embedding_table.weight"
    ranks = {"x_embedder.proj.weight": 4, "pos_embed": 3, "temp_embed": 3, "final_layer.linear.bias": 1}
    shapes = _shapes(tensors, source, "a Latte network", ranks | ({label: 2} if label in tensors else {}))
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    patches = shapes["pos_embed"][1]
    config = _described(metadata)
    heads = config.get("num_heads") or num_heads or HEADS.get(width)
    if not heads:
        raise UserError(
            f"{source} has width {width}, of which the number of heads is not known; give it with --num_heads"
        )
    condition = "class" if label in tensors else None
    if "text_embedding_projection.1.weight" in tensors:
        condition = "text"
    size = config.get("input_size")
    height, across = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or height * across != patches * patch**2:
        height = across = math.isqrt(patches) * patch
    if height * across != patches * patch**2:
        raise UserError(
            f"{source} has {patches} patches, which are no square; convert it with its configuration beside it"
        )
    return {
        "hidden_size": width,
        "depth": _count(tensors, r"blocks\.(\d+)\."),
        "num_heads": int(heads),
        "patch_size": patch,
        "input_size": height if height == across else (height, across),
        "num_frames": shapes["temp_embed"][1],
        "in_channels": channels,
        "learn_sigma": shapes["final_layer.linear.bias"][0] == 2 * channels * patch**2,
        "condition": condition,
        "num_classes": shapes[label][0] - 1 if condition == "class" else None,
    }


def infer_vae_config(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    norm_num_groups: int | None = None,
    source: str = "the checkpoint",
) -> dict[str, Any]:
    """Return the configuration of an AutoencoderKL as a dict with the fields of AutoencoderConfig.

    Read off the shapes, but for the number of groups, which comes from the argument, metadata["config"], or is 32, and
    the scaling factor of the latents, which comes from the latter, or is Stable Diffusion's.
    Raises UserError if the tensors are not an autoencoder's, or the groups do not divide its channels.
    """
    first, last, latent = "encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"
    levels = _count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    blocks = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    temporal = "decoder.time_conv_out.weight" in tensors
    what = "a temporal video decoder" if temporal else "an autoencoder"
    shapes = _shapes(tensors, source, what, dict.fromkeys((first, last, latent, *blocks), 4))
    channels = tuple(shapes[key][0] for key in blocks)
    groups = norm_num_groups or _described(metadata).get("norm_num_groups") or NORM_GROUPS
    if any(count % groups for count in channels):
        raise UserError(
            f"{source} has channels {channels}, which {groups} groups do not divide; give the number of groups with "
            "--norm_num_groups, or put its config.json beside it under the file's name"
        )
    return {
        "in_channels": shapes[first][1],
        "out_channels": shapes[last][0],
        "latent_channels": shapes[latent][1],
        "block_out_channels": channels,
        "layers_per_block": _count(tensors, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": int(groups),
        "temporal_decoder": temporal,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in tensors,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "scaling_factor": float(_described(metadata).get("scaling_factor") or SCALING_FACTOR),
    }


def adapt_latte(
    tensors: Mapping[str, np.ndarray],
    grid: tuple[int, int],
    temp_embed: np.ndarray,
    stored: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Return the state dict with position embeddings for a patch grid (rows, columns) and for temp_embed's frames.

    pos_embed is interpolated; temp_embed (1, F, D) takes the place of another length's. `stored` is the patch grid of
    the tensors; None takes `grid` if it has as many patches, else a square. What fits already, or is not there, stays.
    Raises UserError if the stored embedding is no square and `stored` is None.
    """
    adapted = dict(tensors)
    pos, temp = tensors.get("pos_embed"), tensors.get("temp_embed")
    if pos is not None and pos.ndim == 3 and (stored != grid if stored else pos.shape[1] != math.prod(grid)):
        adapted["pos_embed"] = interpolate_pos_embed(pos, grid, stored)
    if temp is not None and temp.ndim == 3 and temp.shape[1] != temp_embed.shape[1]:
        adapted["temp_embed"] = temp_embed
    return adapted


def interpolate_pos_embed(
    pos_embed: np.ndarray, grid: tuple[int, int], stored: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the position embedding (1, T, D) of one patch grid for another as (1, rows * columns, D) float32.

    Bicubic, as vision transformers do it: pixel centres aligned (not corners), borders repeated, no antialiasing.
    Raises UserError if `stored` is None and T is no square.
    """
    _, patches, width = pos_embed.shape
    stored = stored or (math.isqrt(patches),) * 2
    if math.prod(stored) != patches:
        raise UserError(f"pos_embed has {patches} patches, which are no square; it can only be used at its own size")
    image = pos_embed.astype(np.float64).reshape(*stored, width)
    rows, columns = (_bicubic(old, new) for old, new in zip(stored, grid, strict=True))
    return np.einsum("yi,xj,ijd->yxd", rows, columns, image, optimize=True).reshape(1, -1, width).astype(np.float32)


def _bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Return the matrix (new, old) that resamples a line by Keys' kernel; a = -0.75 is the choice of PyTorch."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        index = np.floor(position).astype(int) + tap
        d = np.abs(position - index)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(new), index.clip(0, old - 1)), np.where(d <= 1, near, far))
    return matrix


def read_config(metadata: Mapping[str, str], source: str | Path) -> dict[str, Any]:
    """Return the network's configuration that lies beside weights; raises UserError if there is none, or no JSON."""
    if CONFIG not in metadata:
        raise UserError(f"{source} has no config.json beside its weights; download the whole folder")
    try:
        config = json.loads(metadata[CONFIG])
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"the config.json of {source} is not valid; download it again")
    return config


def _shapes(
    tensors: Mapping[str, np.ndarray], source: str, what: str, ranks: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors that must be there with these numbers of dimensions."""
    kind = kind_of(tensors)
    if kind and kind[0] != what:
        raise UserError(f"{source} holds {kind[0]}, not {what}; {kind[1]} converts it")
    wrong = [key for key, rank in ranks.items() if key not in tensors or tensors[key].ndim != rank]
    if wrong:
        raise UserError(
            f"{source} is not the whole of {what}: {_first(wrong)} missing or not as wide; name another file"
        )
    return {key: tuple(tensors[key].shape) for key in ranks}


def _count(keys: Iterable[str], pattern: str) -> int:
    """Return how many different numbers follow in the names that begin like the pattern."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def _described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the numbers and lists of metadata["config"] that make sense; nothing if it is not a JSON object."""
    try:
        config = json.loads(metadata.get(CONFIG, "{}"))
    except ValueError:
        return {}
    values = config.items() if isinstance(config, dict) else ()
    return {
        key: value
        for key, value in values
        if all(
            (type(size) is int or (type(size) is float and key == "scaling_factor")) and size > 0
            for size in (value if isinstance(value, list) else [value])
        )
    }
