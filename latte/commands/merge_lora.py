"""Put what train.py made of a text-to-video network back into its folder, for this program, diffusers or anybody.

The source is a checkpoint of a run (ckpt/ema-*.ckpt): a whole transformer, or low-rank additions (LoRA), which are
merged into the weights of the base. The target is a new diffusers folder; or, with --lora_only, a file with the
additions alone, under the names that diffusers' pipelines have for them.

python tools/t2v_export.py --source outputs/RUN/ckpt/ema-00000100.ckpt --base models/Latte-1 --target models/my-latte
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jsonargparse
import numpy as np
from tqdm import tqdm

from latte.components.convert import summary
from latte.components.folders import INDEX
from latte.components.loading import Weights, read
from latte.components.quantize import is_quantized
from latte.errors import UserError
from latte.io.atomic import atomic_folder, check_new_folder, sync
from latte.weights import lora
from latte.weights.files import StateFile, read_state_dict
from latte.weights.fingerprint import base_fingerprint
from latte.weights.safetensors_file import write_safetensors

TRANSFORMER = "transformer"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LINKED = 2**20  # bytes from which a file is linked rather than copied: nobody edits weights in place


def main() -> None:
    """Read, merge, write."""
    options = _options()
    state = read_state_dict(options.source)
    if options.lora_only:
        print(_write_additions(state, options.source, options.lora_only, options.dry_run))
        return
    if not options.base or not options.target:
        raise UserError("--base and --target are needed: the folder of the pretrained network, and the one to write")
    base, target = Path(options.base), check_new_folder(options.target)
    if not (base / INDEX).is_file():
        raise UserError(f"{base} has no {INDEX}; name the diffusers folder of the pretrained network")
    if target.is_relative_to(base.resolve()):
        raise UserError(f"{target} lies in {base}; name a folder elsewhere")
    tensors = _merged(state, read(base / TRANSFORMER, "latte_t2v"), options.base)
    if not options.dry_run:
        with atomic_folder(target) as folder:
            _write_folder(folder, base, tensors, target)
    print(f"{options.source} -> {target}{' (not written)' if options.dry_run else ''}: {summary(tensors)}")


def _options() -> jsonargparse.Namespace:
    text, _, example = __doc__.strip().rpartition("\n\n")
    parser = jsonargparse.ArgumentParser(description=text, epilog=f"Example: {example}")
    parser.add_argument("--source", type=str, required=True, help="checkpoint of a run of train.py")
    parser.add_argument("--base", type=str, help="diffusers folder of the network that the run started from")
    parser.add_argument("--target", type=str, help="folder to write; it must be new or empty")
    parser.add_argument("--lora_only", type=str, help="file to write in place of a folder, ending in .safetensors")
    parser.add_argument("--dry_run", action="store_true", help="check everything, say what would be written, and stop")
    return parser.parse_args()


def _merged(state: StateFile, original: Weights, base: str) -> dict[str, np.ndarray]:
    """Return the transformer of the source, in the dtypes of the base; raises UserError if the two do not fit."""
    source = state.path
    if is_quantized(original.tensors):
        raise UserError(f"{base} is quantized; name the network before that, and quantize what comes out")
    if lora.BASE in state.metadata and state.metadata[lora.BASE] != base_fingerprint(original.tensors):
        raise UserError(f"{source} was trained on another network than {base}; name the one it started from")
    if lora.is_low_rank(state.tensors):
        return lora.merged(original.tensors, state.tensors, lora.factor_of(state.metadata, source), source)
    whole = read(state, "latte_t2v")
    if whole.config != original.config:
        raise UserError(f"{source} is of another configuration than {base}; name the one it started from")
    tensors = {}
    for name, values in original.tensors.items():
        tensors[name] = whole.tensors[name].astype(values.dtype)
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise UserError(f"{source}: {name} does not fit {values.dtype.name}, the dtype of {base}")
    return tensors


def _write_folder(folder: Path, base: Path, tensors: Mapping[str, np.ndarray], target: Path) -> None:
    """Fill a folder with the base's components, but for the transformer's weights."""
    weights = (".safetensors", ".bin", ".index.json", ".msgpack", ".h5")
    for path in sorted(base.rglob("*")):
        inside = path.relative_to(base)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or not path.is_file() or (inside.parts[0] == TRANSFORMER and path.name.endswith(weights)):
            continue
        copy = folder / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.stat().st_size < LINKED or not _linked(path, copy):
            shutil.copyfile(path, copy)
            sync(copy)
    size = sum(values.nbytes for values in tensors.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc=str(target), delay=5) as bar:  # only if it takes longer
        write_safetensors(folder / TRANSFORMER / WEIGHTS, tensors, {}, bar.update)


def _linked(path: Path, copy: Path) -> bool:
    """Give a file a second name, if the two are on one disk that can."""
    try:
        os.link(path.resolve(), copy)  # the folders of model hubs hold links to files elsewhere
    except OSError:
        return False
    return True


def _write_additions(state: StateFile, source: str, target: str, dry_run: bool) -> str:
    """Write the low-rank additions with alpha / rank multiplied in, and return a line about them."""
    if not target.endswith(".safetensors"):
        raise UserError(f"--lora_only {target} must end in .safetensors")
    if not lora.is_low_rank(state.tensors):
        raise UserError(f"{source} is a whole network without low-rank additions; leave --lora_only out")
    factor = lora.factor_of(state.metadata, source)
    tensors = lora.peft_names(state.tensors, factor, source)
    if not dry_run:
        # Said anew in the file: rank, and an alpha that makes the factor 1, as it is in the numbers already.
        rank = state.metadata[lora.RANK]
        write_safetensors(target, tensors, {lora.RANK: rank, lora.ALPHA: rank})
    return f"{source} -> {target}{' (not written)' if dry_run else ''}: {summary(tensors)}"
