"""Convert weights between PyTorch, MindSpore and safetensors, in any direction.

    latte convert --source models/skytimelapse.pt --target models/skytimelapse.ckpt
    latte convert --source models/sd-vae-ft-mse --target models/sd-vae-ft-mse.ckpt
    latte convert --source models/Latte-1 --target models/Latte-1-int8 --quantize int8

The source is recognised by its content: a Latte network, an autoencoder, or a text-to-video folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latte.config import Options, option, parse_config
from latte.config.parser import REQUIRED
from latte.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latte.weights.files import StateFile

LATTE = """Convert the weights of a Latte network between PyTorch, MindSpore and safetensors, in any direction.

    python tools/latte_converter.py --source models/skytimelapse.pt --target models/skytimelapse.ckpt
"""
VAE = """Convert an autoencoder (VAE) between PyTorch, MindSpore and safetensors, in any direction.

    python tools/vae_converter.py --source models/sd-vae-ft-mse --target models/sd-vae-ft-mse.ckpt

The source is a file with the names of diffusers or of latent-diffusion, a diffusers folder, or a whole Stable Diffusion
checkpoint; the target has the names of diffusers.
"""
FOLDER = """Convert a text-to-video folder of diffusers between safetensors, MindSpore and PyTorch, or to int8.

    python tools/t2v_converter.py --source models/Latte-1 --target models/Latte-1-ckpt --format ckpt

The folder holds model_index.json, transformer, vae, text_encoder, tokenizer, scheduler, and maybe vae_temporal_decoder.
"""


@dataclasses.dataclass(kw_only=True)
class FileOptions(Options):
    """Files"""

    source: str = option(REQUIRED, "file or folder to read")
    target: str = option(REQUIRED, "file to write, ending in .ckpt, .safetensors, .pt, ...; for a folder, a new folder")
    dry_run: bool = option(False, "check the source, print what would be written, and stop")


@dataclasses.dataclass(kw_only=True)
class LatteOptions(Options):
    """Latte network"""

    weights: Literal["ema", "model"] | None = option(
        None, "which set of weights to convert; null = ema if the file has it"
    )
    num_heads: int | None = option(None, "attention heads, for a width that no official size has")
    variant: Literal[1, 2, 3, 4] | None = option(
        None, "variant of figure 2 of the paper, where no configuration lies beside the weights; null = 1"
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = option(
        None, "what the network predicts, where no configuration lies beside the weights; null = epsilon"
    )


@dataclasses.dataclass(kw_only=True)
class VaeOptions(Options):
    """Autoencoder"""

    norm_num_groups: int | None = option(
        None, "groups of the group norms, if they are not 32 and there is no config.json"
    )


@dataclasses.dataclass(kw_only=True)
class FolderOptions(Options):
    """Text-to-video folder"""

    format: Literal["ckpt", "safetensors", "bin"] | None = option(
        None, "format of the weights; null = ckpt, the format of MindSpore"
    )
    quantize: Literal["int8"] | None = option(None, "store the matrices of transformer and text_encoder as int8")
    components: str | None = option(None, "components to convert, such as transformer,vae; null = all")


@dataclasses.dataclass(kw_only=True)
class ConvertLatteConfig(LatteOptions, FileOptions):
    """Options of tools/latte_converter.py."""


@dataclasses.dataclass(kw_only=True)
class ConvertVaeConfig(VaeOptions, FileOptions):
    """Options of tools/vae_converter.py."""


@dataclasses.dataclass(kw_only=True)
class ConvertFolderConfig(FolderOptions, FileOptions):
    """Options of tools/t2v_converter.py."""


@dataclasses.dataclass(kw_only=True)
class ConvertConfig(FolderOptions, VaeOptions, LatteOptions, FileOptions):
    """Options of all three."""


def main(argv: Sequence[str] | None = None) -> None:
    """Recognise the source and convert it; raises UserError for options of another kind of source."""
    options = parse_config(ConvertConfig, argv, __doc__)

    from latte.components.folders import INDEX  # after the options: MindSpore takes seconds to import
    from latte.components.loading import kind_of, read
    from latte.weights.files import read_state_dict

    if (Path(options.source) / INDEX).is_file():
        _refuse_others(options, FolderOptions, "a text-to-video folder")
        _convert_folder(options)
        return
    state = read_state_dict(options.source, options.weights)
    kind = kind_of(state.tensors) or read(state).kind  # `read` raises UserError for unknown weights
    if kind.name == "latte":
        _refuse_others(options, LatteOptions, kind.description)
        _convert_latte(options, state)
    elif kind.name == "autoencoder":
        _refuse_others(options, VaeOptions, kind.description)
        _convert_vae(options, state)
    else:
        raise UserError(f"{options.source} holds {kind.description}; {kind.instead}")


def main_latte(argv: Sequence[str] | None = None) -> None:
    """Convert a Latte network; raises UserError if the source is missing, damaged or another kind of weights."""
    _convert_latte(parse_config(ConvertLatteConfig, argv, LATTE))


def main_vae(argv: Sequence[str] | None = None) -> None:
    """Convert an autoencoder; raises UserError if the source is missing, damaged or another kind of weights."""
    _convert_vae(parse_config(ConvertVaeConfig, argv, VAE))


def main_folder(argv: Sequence[str] | None = None) -> None:
    """Convert the components of a text-to-video folder; raises UserError if one is missing or damaged."""
    _convert_folder(parse_config(ConvertFolderConfig, argv, FOLDER))


def _convert_latte(options: ConvertLatteConfig | ConvertConfig, state: StateFile | None = None) -> None:
    weights = None if state else options.weights  # what was read is already the set that was asked for
    asked = {key: getattr(options, key) for key in ("num_heads", "variant", "prediction_type")}
    _convert_file(options, "latte", state, weights=weights, **asked)


def _convert_vae(options: ConvertVaeConfig | ConvertConfig, state: StateFile | None = None) -> None:
    _convert_file(options, "autoencoder", state, norm_num_groups=options.norm_num_groups)


def _convert_file(options: FileOptions, kind: str, state: StateFile | None, **asked: Any) -> None:
    """Read the weights unless `state` holds them, check them against the network of their sizes, and write them."""
    from latte.components.convert import check_target, convert
    from latte.components.loading import read

    check_target(options.source, options.target)
    print(convert(read(state or options.source, kind, **asked), options.target, options.dry_run))


def _convert_folder(options: ConvertFolderConfig | ConvertConfig) -> None:
    """Read and check every component, and write them into a new folder."""
    from latte.components.convert import convert_folder

    form, as_int8, components = options.format or "ckpt", options.quantize, options.components
    print("\n".join(convert_folder(options.source, options.target, form, as_int8, components, options.dry_run)))


def _refuse_others(options: ConvertConfig, group: type[Options], what: str) -> None:
    """Raise UserError if an option is given that this kind of source does not have."""
    fits = {field.name for cls in (FileOptions, group) for field in dataclasses.fields(cls)}
    for key, value in vars(options).items():
        if key not in fits and value is not None:
            raise UserError(f"--{key} does not go with {options.source}, which is {what}; leave it out")
