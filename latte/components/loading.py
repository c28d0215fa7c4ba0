"""From weight files to networks: what a converted or official checkpoint holds is enough to rebuild its network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

import numpy as np

from latte.components.quantize import check_int8, check_kind, is_quantized, load_int8
from latte.errors import UserError
from latte.models import AutoencoderKL, Latte
from latte.models.autoencoder import AutoencoderConfig
from latte.models.embeddings import frame_embedding
from latte.models.latte import LatteConfig, named_sizes
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig, config_from_json
from latte.models.precision import pad_heads, prepare
from latte.models.temporal_decoder import AutoencoderKLTemporalDecoder
from latte.runtime import device
from latte.weights.files import StateFile, read_state_dict
from latte.weights.lora import is_low_rank
from latte.weights.match import (
    adapt_latte,
    check_state,
    infer_latte_config,
    infer_vae_config,
    load_state,
    read_config,
)
from latte.weights.names import T2V_KIND, kind_of

log = logging.getLogger("latte")
Net = TypeVar("Net", Latte, LatteT2V)
RESIZABLE = ("input_size", "num_frames")  # what position embeddings can be adapted to


def load_model(
    path: str | Path,
    *,
    dtype: str = "fp32",
    patch_embedder: str = "conv",
    enable_flash_attention: bool = False,
    weights: str | None = None,
    **asked: int | str | tuple[int, int] | None,
) -> Latte:
    """Rebuild the Latte network that a checkpoint holds (.ckpt, .safetensors, or an official .pt).

    `weights` is "ema" or "model"; None takes "ema" where there is one. `asked` are fields of LatteConfig: another
    input_size or num_frames than the file's adapts its position embeddings; num_heads is taken where the file does not
    tell; anything else must agree with the file.
    Raises UserError if the file cannot be read, is not a whole Latte, or is another network than the one asked for.
    """
    compute = device.compute_dtype(dtype)
    tensors, config = _read_latte(path, weights, asked)
    flash = device.use_flash_attention(enable_flash_attention, compute)
    net = Latte(config, patch_embedder, flash, seed=None, dtype=compute)
    net.set_train(False)
    return _load(net, tensors, path)


def load_t2v(
    path: str | Path,
    *,
    dtype: str = "fp32",
    patch_embedder: str = "conv",
    enable_flash_attention: bool = False,
    quantize: str | None = None,
) -> LatteT2V:
    """Rebuild the text-to-video network in a diffusers folder, or in a file with its config.json beside it.

    With `quantize` "int8" the matrices of its blocks are held as int8, as those of a quantized file are anyway.
    Raises UserError if it cannot be read, or is not a whole LatteTransformer3DModel.
    """
    kind, compute = check_kind(quantize), device.compute_dtype(dtype)
    tensors, config = read_t2v(path)
    flash = device.use_flash_attention(enable_flash_attention, compute)
    net = LatteT2V(config, patch_embedder, flash, seed=None, dtype=compute)
    if kind or is_quantized(tensors):
        return prepare(load_int8(net, tensors, path))
    return _load(net, tensors, path)


def check_t2v(path: str | Path) -> LatteT2VConfig:
    """Return the configuration of the network that `load_t2v` would build; raises UserError as it does."""
    tensors, config = read_t2v(path)
    check = check_int8 if is_quantized(tensors) else check_state
    check(LatteT2V(config, seed=None), tensors, str(path))
    return config


def read_t2v(path: str | Path) -> tuple[dict[str, np.ndarray], LatteT2VConfig]:
    """Return the tensors of a text-to-video network, as views into its files, and its configuration.

    Raises UserError if they are another network's or only additions to one, or have no configuration beside them.
    """
    state = read_state_dict(path)
    if is_low_rank(state.tensors):
        raise UserError(f"{path} holds low-rank additions to a network; tools/t2v_export.py puts them together")
    kind = kind_of(state.tensors)
    if kind is None or kind[0] != T2V_KIND:
        raise UserError(f"{path} holds {kind[0] if kind else 'something else'}, not {T2V_KIND}")
    described = read_config(state.metadata, path)
    return state.tensors, config_from_json(described, f"the config.json of {path}")


def load_weights(net: Latte, path: str | Path, weights: str | None = None, interpolate: bool = False) -> Latte:
    """Load a checkpoint into an existing network, strictly, and return the network.

    With `interpolate`, position embeddings of another image size or frame count are adapted.
    Raises UserError that lists missing, unexpected and mis-shaped names; then nothing is loaded.
    """
    if interpolate:
        asked = {key: getattr(net.config, key) for key in (*RESIZABLE, "num_heads")}
        tensors, _ = _read_latte(path, weights, asked)
    else:
        tensors = read_state_dict(path, weights).tensors
    return _load(net, tensors, path)


def _load(net: Net, tensors: dict[str, np.ndarray], path: str | Path) -> Net:
    """Load official weights strictly into a network as it was built, or as it was already prepared."""
    if net.prepared and net.flash:
        tensors = {name: pad_heads(name, values, net.config.num_heads) for name, values in tensors.items()}
    load_state(net, tensors, str(path))
    return net if net.prepared else prepare(net)


def load_vae(path: str | Path) -> AutoencoderKL:
    """Rebuild the AutoencoderKL that a checkpoint or a diffusers folder holds.

    Raises UserError if the file cannot be read or is not a whole autoencoder.
    """
    vae, tensors = _read_vae(path)
    load_state(vae, tensors, str(path))
    return vae


def check_vae(path: str | Path) -> AutoencoderConfig:
    """Return the configuration of the autoencoder that `load_vae` would build; raises UserError as it does."""
    vae, tensors = _read_vae(path)
    check_state(vae, tensors, str(path))
    return vae.config


def _read_vae(path: str | Path) -> tuple[AutoencoderKL, dict[str, np.ndarray]]:
    state = read_state_dict(path)
    return empty_vae(state, path), state.tensors


def empty_vae(state: StateFile, path: str | Path) -> AutoencoderKL:
    """Return the autoencoder that weights are for, in memory that is not touched; raises UserError if they are none."""
    config = infer_vae_config(state.tensors, state.metadata, source=str(path))
    kind = AutoencoderKLTemporalDecoder if config["temporal_decoder"] else AutoencoderKL
    return kind(AutoencoderConfig(**config), seed=None)


def check_model(path: str | Path, weights: str | None = None, **asked: int | str | None) -> LatteConfig:
    """Return the configuration of the network that `load_model` would build, having read names and shapes only.

    Raises UserError as `load_model` does.
    """
    tensors, config = _read_latte(path, weights, asked)
    check_state(Latte(config, seed=None), tensors, str(path))  # its memory is never touched
    return config


def _read_latte(path: str | Path, weights: str | None, asked: dict) -> tuple[dict[str, np.ndarray], LatteConfig]:
    """Return the tensors of a file and the configuration they are for, both fitted to the sizes that are asked for."""
    asked = {key: value for key, value in asked.items() if value is not None}
    if name := asked.pop("model_name", None):
        asked = named_sizes(name) | asked
    state = read_state_dict(path, weights)
    found = infer_latte_config(state.tensors, state.metadata, asked.get("num_heads"), str(path))
    wrong = [key for key in asked if key not in RESIZABLE and asked[key] != found.get(key)]
    if wrong:
        has, wants = (", ".join(f"{key} {config.get(key)}" for key in wrong) for config in (found, asked))
        raise UserError(f"{path} holds a network with {has}, but {wants} is asked for; correct the one or the other")
    for key in RESIZABLE:
        if key in asked and asked[key] != found[key]:
            log.warning("%s: position embeddings adapted from %s %s to %s", path, key, found[key], asked[key])
    stored, config = LatteConfig(**found), LatteConfig(**(found | asked))
    frames = frame_embedding(config.hidden_size, config.num_frames)
    return adapt_latte(state.tensors, config.grid, frames, stored.grid), config
