"""From weight files to networks, one protocol for all: `read` and `check` look at a file, `load` builds its network.

What differs between networks is in the table `KINDS`, and beside each of them: their configurations know how to tell
sizes from weights (`from_weights`), and their modules what weights are called elsewhere (`own_names`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mindspore as ms
from mindspore import nn

from latte.components.folders import AUTOENCODER, CLIP, LATTE, LATTE_1, check_there
from latte.components.quantize import check_int8, check_kind, is_quantized, load_int8
from latte.errors import UserError
from latte.models import autoencoder, clip, latte, latte_t2v, t5
from latte.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latte.models.clip import ClipConfig, ClipTextEncoder
from latte.models.latte import Latte, LatteConfig
from latte.models.latte_t2v import LatteT2V, LatteT2VConfig
from latte.models.precision import pad_heads, prepare
from latte.models.t5 import T5Config, T5Encoder
from latte.models.temporal_decoder import AutoencoderKLTemporalDecoder
from latte.runtime import device
from latte.weights.files import StateFile, read_state_dict
from latte.weights.lora import is_low_rank
from latte.weights.match import check_state, load_state
from latte.weights.names import foreign, has_adapters, without_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

Config = LatteConfig | LatteT2VConfig | AutoencoderConfig | T5Config | ClipConfig
Net = TypeVar("Net", Latte, LatteT2V)


@dataclass(frozen=True)
class Kind:
    """What reading, checking, loading and converting one kind of network needs to know."""

    name: str
    description: str
    sign: str  # the name of a weight, maybe with *, by which its files are told from those that follow in the table
    config: type[Config]
    network: type[nn.Cell]
    instead: str  # what to do with its files where another network is asked for
    official: str  # the repository of its official weights
    own_names: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = dict  # weights by the network's own names
    adapt: Callable[..., dict[str, np.ndarray]] | None = None  # a method of the configuration that fits other weights
    fresh: tuple[str, ...] = ()  # beginnings of the names of weights that a training need not start from
    folder: str = ""  # its component in a folder of text to video
    stems: tuple[str, str] = ("diffusion_pytorch_model",) * 2  # of the weights there, and of those that end in .bin
    takes: tuple[str, ...] = ()  # options of `load` that only some networks have

    def build(
        self,
        config: Config,
        dtype: ms.Type = ms.float32,
        flash: bool = False,
        patch_embedder: str = "conv",
        seed: int | None = None,
    ) -> nn.Cell:
        """Return the network of a configuration; without a seed, in memory that is not touched before it is loaded."""
        if "flash" in self.takes:
            return self.network(config, patch_embedder, flash, seed=seed, dtype=dtype)
        return self.network(config, dtype) if "dtype" in self.takes else self.network(config, seed=seed)


DENOISER = ("dtype", "flash", "patch_embedder")
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="latte",
            description="a Latte network",
            sign="x_embedder.proj.weight",
            config=LatteConfig,
            network=Latte,
            instead="tools/latte_converter.py converts it",
            official=LATTE,
            own_names=latte.own_names,
            adapt=LatteConfig.adapt,
            fresh=("temp_embed", "y_embedder.", "text_embedding_projection."),
            takes=DENOISER,
        ),
        Kind(
            name="temporal_decoder",
            description="a temporal video decoder",
            sign="decoder.*temporal_res_block.*",
            config=AutoencoderConfig,
            network=AutoencoderKLTemporalDecoder,
            instead="tools/t2v_converter.py converts its folder",
            official=LATTE_1,
            own_names=autoencoder.own_names,
            folder="vae_temporal_decoder",
        ),
        Kind(
            name="autoencoder",
            description="an autoencoder",
            sign="*decoder.conv_in.weight",
            config=AutoencoderConfig,
            network=AutoencoderKL,
            instead="tools/vae_converter.py converts it",
            official=AUTOENCODER,
            own_names=autoencoder.own_names,
            folder="vae",
        ),
        Kind(
            name="latte_t2v",
            description="the transformer of the text-to-video Latte-1",
            sign="temporal_transformer_blocks.*",
            config=LatteT2VConfig,
            network=LatteT2V,
            instead="name its folder; tools/t2v_export.py makes one of a checkpoint that train.py wrote",
            official=LATTE_1,
            own_names=latte_t2v.own_names,
            folder="transformer",
            takes=DENOISER,
        ),
        Kind(
            name="t5",
            description="a T5 text encoder",
            sign="encoder.block.0.layer.*",
            config=T5Config,
            network=T5Encoder,
            instead="tools/t2v_converter.py converts its folder",
            official=LATTE_1,
            own_names=t5.own_names,
            folder="text_encoder",
            stems=("model", "pytorch_model"),
            takes=("dtype",),
        ),
        Kind(
            name="clip",
            description="a CLIP text encoder",
            sign="text_model.encoder.layers.*",
            config=ClipConfig,
            network=ClipTextEncoder,
            instead="name its folder as text_encoder_path",
            official=CLIP,
            own_names=clip.own_names,
            folder="text_encoder",
            stems=("model", "pytorch_model"),
            takes=("dtype",),
        ),
    )
}


@dataclass(frozen=True)
class Weights(StateFile):
    """The weights of one network, by its own names and with its shapes, as views into their files."""

    config: Any  # of the class that the kind has
    kind: Kind


Source = str | Path | StateFile  # a file, a folder, or what was read from one before


def kind_of(names: Iterable[str]) -> Kind | None:
    """Return the kind of network that has weights of these names, or None if it is not known here."""
    names = list(names)
    for sign in ("{}", "*.{}"):  # the network by itself, or inside something that has a name for it
        for kind in KINDS.values():
            if any(fnmatchcase(name, sign.format(kind.sign)) for name in names):
                return kind
    return None


def read(path: Source, kind: str | None = None, *, weights: str | None = None, **asked: Any) -> Weights:
    """Read the weights of a network: names, shapes and configuration; values are read only when they are used.

    The names tell which network it is; `kind` (of `KINDS`) is the one that it must be, where "autoencoder" admits both
    decoders. `weights` is "ema" or "model"; None takes "ema" where there is one. `asked` are fields of the
    configuration: another input_size or num_frames than a Latte's adapts its position embeddings, a size that the file
    does not tell is taken; anything else must agree with the file, and None asks for nothing.
    Raises UserError if there is no such file, it is not the whole of such a network, or of another than is asked for.
    """
    found = _interpret(path, kind, weights, asked)
    if found is path:
        return found
    check_fit = check_int8 if is_quantized(found.tensors) else check_state
    check_fit(found.kind.build(found.config), found.tensors, found.path)
    return found


def check(path: Source, kind: str | None = None, *, weights: str | None = None, **asked: Any) -> Any:
    """Return the configuration of the network that `load` would build; raises UserError as it does, loads nothing."""
    return read(path, kind, weights=weights, **asked).config


def load(
    path: Source,
    kind: str | None = None,
    *,
    weights: str | None = None,
    dtype: str = "fp32",
    flash: bool = False,
    quantize: str | None = None,
    patch_embedder: str = "conv",
    **asked: Any,
) -> Any:
    """Rebuild the network that a file or folder holds; `path`, `kind`, `weights` and `asked` are those of `read`.

    Denoisers and T5 compute in `dtype` (fp32, fp16, bf16); denoisers may use the fused attention kernel (`flash`) and
    another `patch_embedder`. With `quantize` "int8" the matrices of the blocks are held as int8, as those of a
    quantized file are anyway. Memory for one weight more than the network's is needed.
    Raises UserError as `read` does, and for options that the network does not have.
    """
    as_int8 = check_kind(quantize) is not None
    found = _interpret(path, kind, weights, asked)
    given = {"dtype": dtype != "fp32", "flash": flash, "patch_embedder": patch_embedder != "conv"}
    if wrong := [name for name, is_given in given.items() if is_given and name not in found.kind.takes]:
        raise UserError(
            f"{found.path} is {found.kind.description}, which has no option {', '.join(wrong)}; leave it out"
        )
    # An autoencoder is float32 beside a network of any dtype: on a CPU a process multiplies in one dtype only.
    compute = device.compute_dtype(dtype) if "dtype" in found.kind.takes else ms.float32
    net = found.kind.build(found.config, compute, device.use_flash_attention(flash, compute), patch_embedder)
    net.set_train(False)
    set_weights = load_int8 if as_int8 or is_quantized(found.tensors) else load_state
    set_weights(net, found.tensors, found.path)
    return prepare(net) if found.kind.takes == DENOISER else net


def load_model(path: str | Path, *, enable_flash_attention: bool = False, **options: Any) -> Latte:
    """Return the Latte network of a checkpoint (.ckpt, .safetensors, an official .pt); options are those of `load`."""
    return load(path, "latte", flash=enable_flash_attention, **options)


def load_t2v(path: str | Path, *, enable_flash_attention: bool = False, **options: Any) -> LatteT2V:
    """Return the text-to-video network of a diffusers folder, or of a file with its config.json; see `load`."""
    return load(path, "latte_t2v", flash=enable_flash_attention, **options)


def load_vae(path: str | Path) -> AutoencoderKL:
    """Return the autoencoder, of either decoder, that a checkpoint or a diffusers folder holds; see `load`."""
    return load(path, "autoencoder")


def load_weights(net: Latte, path: str | Path, weights: str | None = None, interpolate: bool = False) -> Latte:
    """Load a checkpoint into an existing network, strictly, and return the network.

    With `interpolate`, position embeddings of another image size or frame count are adapted.
    Raises UserError that lists missing, unexpected and mis-shaped names; then nothing is loaded.
    """
    if interpolate:
        asked = {key: getattr(net.config, key) for key in ("input_size", "num_frames", "num_heads")}
        return fill(net, read(path, "latte", weights=weights, **asked))
    return fill(net, open_weights(path, "latte", weights)[0])


def fill(net: Net, state: StateFile) -> Net:
    """Load weights strictly into a network as it was built, or as it was already prepared, and return it."""
    tensors = state.tensors
    if net.prepared and net.flash:
        tensors = {name: pad_heads(name, values, net.config.attention_heads) for name, values in tensors.items()}
    load_state(net, tensors, state.path)
    return net if net.prepared else prepare(net)


def open_weights(path: Source, kind: str | None = None, weights: str | None = None) -> tuple[StateFile, Kind]:
    """Return the weights in a file by the names of their network, which they may be only part of, and its kind.

    Raises UserError if there is no such file, or its weights are of another kind.
    """
    if isinstance(path, StateFile) and weights:
        raise ValueError("which of two sets of weights to take must be said when the file is read")
    if not isinstance(path, StateFile):
        path = check_there(path, *([KINDS[kind].official] if kind else (LATTE, LATTE_1, AUTOENCODER)))
    state = path if isinstance(path, StateFile) else read_state_dict(path, weights)
    found = _as_asked(state.tensors, kind, state.path)
    tensors = without_prefix(state.tensors, found.sign, state.path)
    return StateFile(found.own_names(tensors), state.metadata, state.path), found


def _as_asked(tensors: Mapping[str, np.ndarray], asked: str | None, source: str) -> Kind:
    """Return the kind of weights; raises UserError if it is not the one asked for, or none that is known."""
    if is_low_rank(tensors):
        raise UserError(f"{source} holds LoRA adapters without their network; tools/t2v_export.py merges them into it")
    found, wanted = kind_of(tensors), KINDS[asked] if asked else None
    if has_adapters(tensors):
        raise UserError(f"{source} holds {foreign(tensors)}; name another file")
    if found is None:
        what = f"{wanted.description}: it has no weight {wanted.sign}" if wanted else "a network that is known here"
        raise UserError(f"{source} is not {what}, but holds {foreign(tensors)}; name another file")
    if wanted and not issubclass(found.network, wanted.network):
        raise UserError(f"{source} holds {found.description}, not {wanted.description}; {found.instead}")
    return found


def _interpret(path: Source, kind: str | None, weights: str | None, asked: Mapping[str, Any]) -> Weights:
    """Return weights with the configuration that fits them and what is asked for; not yet compared with a network."""
    state, found = open_weights(path, kind, weights)
    if isinstance(path, Weights) and not asked:
        return path
    try:
        config = found.config.from_weights(state.tensors, state.metadata, state.path, **asked)
    except UserError as error:
        if state.path in str(error):
            raise
        raise UserError(f"{state.path}: {error}") from error
    tensors = state.tensors
    if found.adapt:
        tensors = found.adapt(config, tensors, state.metadata, state.path)
    return Weights(tensors, state.metadata, state.path, config, found)
