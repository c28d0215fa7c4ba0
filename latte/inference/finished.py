"""Which videos of a sampling are there already, so that a second start goes on where the first one ended.

Each file carries a mark in its comment: a hash of all that its video was made from. So it is told from one of other
options or weights wherever it is, by whatever rank it was made, and no record has to be kept in step with the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte.components.text_encoder import places
from latte.config import SampleConfig
from latte.config.parser import version
from latte.errors import UserError
from latte.inference import caches
from latte.inference.inputs import asked_steps, choose_inputs, latent_shape, stem
from latte.io.atomic import atomic_path
from latte.io.checksums import sha256_of
from latte.io.json_files import exists, read_json
from latte.io.video import comment_of
from latte.runtime import device
from latte.weights.files import SUFFIXES
from latte.weights.fingerprint import checksum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latte.inference.videos import Plan

FILE = "samples.json"  # beside the videos: what the newest of them were made from
# Options that a video does not depend on, or only through its own seed, label and prompt, or through what they name.
LOOSE = (
    *("output_path", "output_format", "existing", "dry_run", "profile", "num_samples", "batch_size", "vae_slice"),
    *(
        "device_target",
        "device_id",
        "use_parallel",
        "sequence_parallel",
        "cfg_parallel",
        "seed",
        "class_labels",
        "prompts",
    ),
    *("checkpoint", "vae_checkpoint", "text_embeddings", "text_encoder_path", "init_frames", "cache"),
)
VIDEO = re.compile(r"((?:video|image)-\d{4,}-seed\d+.*?)(?:\.(?:png|mp4|gif))?")  # the name of a file or folder
ROOMS = ("components", "diffusion", "inference", "io", "models", "ops", "runtime", "weights")  # whose code makes videos


@dataclass(frozen=True)
class Target:
    """A video to be made: its number, its name without suffix, and its mark.

    done: it is there already. replaces: what is there under its name was made from something else.
    """

    number: int
    name: str
    mark: str
    done: bool = False
    replaces: bool = False


def facts(cfg: SampleConfig, plan: Plan) -> dict[str, Any]:
    """Return, as JSON can hold it, what all videos of a sampling are made from, except for seeds, labels and prompts.

    Reads all weights.
    """
    package = Path(__file__).resolve().parent.parent
    code = sorted(file for room in ROOMS for file in (package / room).rglob("*.py"))
    weights = {"network": plan.network, "autoencoder": plan.vae, "text encoder": plan.text_encoder}
    parts = plan.parts
    tokenizer = parts.prompts and parts.prompts / "tokenizer"
    if cfg.prompts and parts.clip:
        tokenizer = places(parts.clip, "clip")[0]
    small = [folder for folder in (parts.scheduler, tokenizer) if folder]
    named = sorted(
        file for folder in small for file in folder.iterdir() if file.is_file() and file.suffix not in SUFFIXES
    )
    held = None if plan.frames is None else hashlib.sha256(plan.frames.tobytes()).hexdigest()[:16]
    return {
        **{name: value for name, value in dataclasses.asdict(cfg).items() if name not in LOOSE},
        "sampling_steps": asked_steps(cfg, plan.network.config),
        **{name: [checksum(each.tensors, {})[:16], str(each.config)] for name, each in weights.items() if each},
        "scale of the latents": parts.scale_factor,
        "scheduler or tokenizer": sha256_of(*named)[:16] if named else None,
        "set of text embeddings": sha256_of(Path(cfg.text_embeddings))[:16] if cfg.text_embeddings else None,
        "set of conditioning frames": held,
        "cache": caches.facts(cfg.cache),
        "device": device.current().target,
        "release": version(),
        "version of the code": sha256_of(*code)[:16],
    }


def targets(cfg: SampleConfig, plan: Plan, numbers: Sequence[int], made_from: dict[str, Any]) -> list[Target]:
    """Return the videos with these numbers; `made_from` are the `facts`."""
    frames = _frames(cfg, plan)
    found = []
    for k, name, own in _named(cfg, plan, numbers):
        told = json.dumps([made_from, k, cfg.seed + k, own], sort_keys=True)
        mark = f"latte {hashlib.sha256(told.encode()).hexdigest()[:16]}"
        found.append(_looked_up(cfg, Target(k, name, mark), frames))
    return found


def _frames(cfg: SampleConfig, plan: Plan) -> int:
    return latent_shape(cfg, plan.network.config, plan.vae.config.downsampling)[0]


def _named(cfg: SampleConfig, plan: Plan, numbers: Sequence[int]) -> Iterator[tuple[int, str, list[Any]]]:
    """Yield the number of each video, its name, and the class or prompt that it shows."""
    config, frames = plan.network.config, _frames(cfg, plan)
    given = {} if config.conditioning == "text" else choose_inputs(cfg, config, list(numbers))
    for row, k in enumerate(numbers):
        own = [given[name][row] for name in ("class_labels", "prompt") if name in given]
        yield k, stem(k, cfg.seed + k, frames, given, row), own


def _looked_up(cfg: SampleConfig, target: Target, frames: int) -> Target:
    """Return a target with what is there under its name."""
    if cfg.existing == "replace" or cfg.profile:
        return target
    there = [file for file in files_of(cfg, target.name, frames) if exists(file)]
    own = [comment_of(file) == target.mark for file in there]
    return dataclasses.replace(
        target,
        done=len(there) == len(files_of(cfg, target.name, frames)) and all(own),
        replaces=not all(own),
    )


def files_of(cfg: SampleConfig, name: str, frames: int) -> list[Path]:
    """Return the files, or the folder for png, of a video of this name, from the least to the most lossy."""
    path = Path(cfg.output_path) / name
    if frames == 1:
        return [path.with_name(f"{name}.png")]
    forms = {"png": path, "mp4": path.with_name(f"{name}.mp4"), "gif": path.with_name(f"{name}.gif")}
    return [file for form, file in forms.items() if form in cfg.output_format]


def check_others(cfg: SampleConfig, plan: Plan, found: Sequence[Target], made_from: dict[str, Any]) -> list[str]:
    """Return sentences on videos that will be replaced, and on those in the folder that are not of this sampling.

    Raises UserError with the first sentence if `existing` is refuse.
    """
    folder, said = Path(cfg.output_path), []
    if replaced := sum(target.replaces for target in found):
        changes = _changes(folder / FILE, made_from)
        what = f"{replaced} of the videos in {folder} were made from something else{changes and f' ({changes})'}"
        said.append(f"{what}{'' if cfg.existing == 'refuse' else ', and are replaced'}")
    own = {name for _, name, _ in _named(cfg, plan, range(cfg.num_samples * len(cfg.prompts or [None])))}
    names = {match[1] for path in folder.glob("*-seed*") if (match := VIDEO.fullmatch(path.name))}
    if others := sorted(names - own):
        count = "1 video" if len(others) == 1 else f"{len(others)} videos"
        said.append(f"{folder} also holds {count} of other seeds, classes or prompts, such as {others[0]}")
    if said and cfg.existing == "refuse":
        raise UserError(f"{said[0]}; name another --output_path, or leave out --existing")
    return said


def _changes(file: Path, made_from: dict[str, Any]) -> str:
    """Return how the facts in a file differ from these ones, "" if they do not, or there is no such file."""
    try:
        then = read_json(file)
    except UserError:
        return ""
    names = [name for name in made_from if name in then and then[name] != made_from[name]]
    is_option = {field.name for field in dataclasses.fields(SampleConfig)}
    return ", ".join(
        f"{name} {then[name]} in place of {made_from[name]}" if name in is_option else f"another {name}"
        for name in names
    )


def keep(cfg: SampleConfig, made_from: dict[str, Any]) -> None:
    """Write the facts beside the videos; raises UserError if the file cannot be written."""
    with atomic_path(Path(cfg.output_path) / FILE) as temporary:
        temporary.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
